//! Every field of every kind, taken from the schemas: it acts, or setting it is reported at the field.

use std::collections::BTreeSet;

use mesh_api::crd::definition::schema;
use mesh_api::crd::{Kind, Object};
use mesh_api::source::{FieldPath, Finding};
use mesh_api::validate::{self, acted_on};
use serde_json::{Map, Value, json};

/// Values that do not act, of fields that do with others.
const VALUES_NOT_YET: &[(Kind, &str)] = &[
    (Kind::DestinationRule, "SIMPLE"),
    (Kind::DestinationRule, "MUTUAL"),
    (Kind::ServiceEntry, "DYNAMIC_DNS"),
    (Kind::AuthorizationPolicy, "CUSTOM"),
    (Kind::AuthorizationPolicy, "AUDIT"),
];

/// Fields that do not act, by their ends, with what is said of them instead of `not-supported-yet`.
const SAID_OTHERWISE: &[(Kind, &str, &str)] = &[
    // Without effect in Istio as well.
    (Kind::DestinationRule, "outlierDetection.consecutiveErrors", "no-effect"),
    // An error with any action but CUSTOM, which is not supported itself.
    (Kind::AuthorizationPolicy, "provider.name", "bad-value"),
];

/// One step of a path in the notation of the tables.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Entry,
    Value,
}

/// Fields that hold values: scalars, and lists and maps of scalars.
fn leaves(schema: &Value, path: &[Step], found: &mut Vec<Vec<Step>>) {
    let with = |step: Step| [path, &[step]].concat();
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        for (name, property) in properties {
            leaves(property, &with(Step::Field(name.clone())), found);
        }
    } else if let Some(inner) = schema.get("items").filter(|inner| holds_fields(inner)) {
        leaves(inner, &with(Step::Entry), found);
    } else if let Some(inner) = schema.get("additionalProperties").filter(|inner| holds_fields(inner)) {
        leaves(inner, &with(Step::Value), found);
    } else {
        found.push(path.to_vec());
    }
}

fn holds_fields(schema: &Value) -> bool {
    ["properties", "items", "additionalProperties"]
        .iter()
        .any(|keyword| schema.get(keyword).is_some_and(Value::is_object))
}

fn pattern(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Field(name) if text.is_empty() => text += name,
            Step::Field(name) => text += &format!(".{name}"),
            Step::Entry => text += "[]",
            Step::Value => text += "{}",
        }
    }
    text
}

fn all_leaves(kind: Kind) -> Vec<Vec<Step>> {
    let mut found = Vec::new();
    leaves(&schema(kind)["properties"]["spec"], &[], &mut found);
    found
}

const KEY: &str = "key";

/// The values that a field is tried with: each of an enum, and texts that may be durations.
fn samples(schema: &Value) -> Vec<Value> {
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        return values.clone();
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("boolean") => vec![json!(true)],
        Some("integer") => vec![json!(1)],
        Some("number") => vec![json!(1.0)],
        Some("array") => samples(&schema["items"]).into_iter().map(|one| json!([one])).collect(),
        Some("object") if schema.get("properties").is_some() => vec![Value::Object(required(schema))],
        Some("object") => {
            let inner = samples(&schema["additionalProperties"]);
            inner.into_iter().map(|one| json!({ KEY: one })).collect()
        }
        _ => vec![json!("x"), json!("1"), json!("1s")],
    }
}

/// What must be in an object for it to be read at all.
fn required(schema: &Value) -> Map<String, Value> {
    let names = schema.get("required").and_then(Value::as_array);
    let names = names.into_iter().flatten().filter_map(Value::as_str);
    names
        .filter_map(|name| Some((name.to_owned(), samples(&schema["properties"][name]).pop()?)))
        .collect()
}

/// An object in which the path holds a value, and nothing else is set that need not be.
fn with(schema: &Value, path: &[Step], value: &Value) -> Value {
    match path.split_first() {
        None => value.clone(),
        Some((Step::Field(name), rest)) => {
            let mut object = required(schema);
            object.insert(name.clone(), with(&schema["properties"][name], rest, value));
            Value::Object(object)
        }
        Some((Step::Entry, rest)) => json!([with(&schema["items"], rest, value)]),
        Some((Step::Value, rest)) => json!({ KEY: with(&schema["additionalProperties"], rest, value) }),
    }
}

fn field_path(path: &[Step]) -> FieldPath {
    path.iter().fold(FieldPath::new("spec"), |at, step| match step {
        Step::Field(name) => at.field(name),
        Step::Entry => at.index(0),
        Step::Value => at.field(KEY),
    })
}

/// Findings about a field, its entries, or something that holds it.
fn about<'f>(findings: &'f [Finding], at: &FieldPath) -> Vec<&'f Finding> {
    let holds = |outer: &str, inner: &str| {
        let rest = inner.strip_prefix(outer);
        outer.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    let at = at.as_str();
    findings
        .iter()
        .filter(|finding| holds(finding.field.as_str(), at) || holds(at, finding.field.as_str()))
        .collect()
}

#[test]
fn every_field_of_every_kind_acts_or_is_reported() {
    let mut fields = 0;
    for kind in Kind::ALL.iter().copied() {
        let acting: BTreeSet<String> = acted_on(kind).into_iter().collect();
        let spec_schema = &schema(kind)["properties"]["spec"];
        for path in all_leaves(kind) {
            fields += 1;
            let name = pattern(&path);
            let leaf = path.iter().fold(spec_schema, |schema, step| match step {
                Step::Field(name) => &schema["properties"][name],
                Step::Entry => &schema["items"],
                Step::Value => &schema["additionalProperties"],
            });
            let mut tried = 0;
            for value in samples(leaf) {
                let spec = with(spec_schema, &path, &value);
                let object = json!({ "metadata": { "name": "a", "namespace": "default" }, "spec": spec });
                let Ok(object) = Object::from_value(kind, object) else {
                    continue;
                };
                tried += 1;
                let findings = validate::check(&object);
                let about = about(&findings, &field_path(&path));
                let reported = about.iter().any(|finding| finding.code == "not-supported-yet");
                // Of gateways only the mesh acts.
                let by_value = name.ends_with("gateways")
                    || VALUES_NOT_YET
                        .iter()
                        .any(|(of, not_yet)| *of == kind && value == *not_yet);
                if acting.contains(&name) {
                    assert_eq!(reported, by_value, "{kind} {name}: {value} acts: {findings:#?}");
                } else {
                    let otherwise = |(of, field, code): &(Kind, &str, &str)| {
                        *of == kind && name.ends_with(field) && about.iter().any(|finding| finding.code == *code)
                    };
                    assert!(
                        reported || SAID_OTHERWISE.iter().any(otherwise),
                        "{kind} {name}: {value} is silently ignored: {findings:#?}"
                    );
                }
            }
            assert!(tried > 0, "{kind} {name}: no value fits");
        }
    }
    assert!(fields > 500, "{fields} fields only");
}

#[test]
fn the_tables_name_fields_that_hold_values_each_once() {
    for kind in Kind::ALL.iter().copied() {
        let known: BTreeSet<String> = all_leaves(kind).iter().map(|path| pattern(path)).collect();
        let mut seen = BTreeSet::new();
        for field in acted_on(kind) {
            assert!(known.contains(&field), "{kind} {field} is no field with a value");
            assert!(seen.insert(field.clone()), "{kind} {field} is listed twice");
        }
    }
}
