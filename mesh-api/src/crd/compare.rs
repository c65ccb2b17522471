//! Compares our definitions with those that Istio publishes: field by field, with types and enum values.
//!
//! In goes the text of Istio's file; out comes a list of differences that should not be. The file itself is no part
//! of this repository.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Kind;
use super::definition::{definition, served_versions};

/// Field paths that we have and Istio has not, by kind: retries and timeouts in traffic policies.
const EXTENSIONS: &[(Kind, &[&str])] = &[(
    Kind::DestinationRule,
    &[
        "spec.trafficPolicy.retryPolicy",
        "spec.trafficPolicy.timeout",
        "spec.trafficPolicy.portLevelSettings[].retryPolicy",
        "spec.trafficPolicy.portLevelSettings[].timeout",
        "spec.subsets[].trafficPolicy.retryPolicy",
        "spec.subsets[].trafficPolicy.timeout",
        "spec.subsets[].trafficPolicy.portLevelSettings[].retryPolicy",
        "spec.subsets[].trafficPolicy.portLevelSettings[].timeout",
    ],
)];

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Fields that are the same in both.
    pub common: usize,
    /// Fields that are ours alone, and meant to be.
    pub extensions: usize,
    /// Differences that should not be, each in a sentence.
    pub differences: Vec<String>,
}

/// Istio's file cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the definitions to compare with are not YAML: {0}")]
pub struct NotYaml(#[from] serde_saphyr::Error);

/// Compares all of our kinds but `MeshConfig`, which is our own, with the definitions in a YAML text.
pub fn compare(istio: &str) -> Result<Comparison, NotYaml> {
    let theirs: Vec<Value> = serde_saphyr::from_multiple(istio)?;
    let mut result = Comparison::default();
    for kind in Kind::ALL.iter().copied().filter(|kind| *kind != Kind::MeshConfig) {
        let found = theirs.iter().find(|crd| {
            crd.pointer("/spec/names/kind").and_then(Value::as_str) == Some(kind.as_str())
                && crd.pointer("/spec/group").and_then(Value::as_str) == Some(kind.group().as_str())
        });
        match found {
            Some(theirs) => compare_kind(kind, &definition(kind), theirs, &mut result),
            None => result
                .differences
                .push(format!("{kind}: there is no such definition in the file")),
        }
    }
    Ok(result)
}

fn compare_kind(kind: Kind, ours: &Value, theirs: &Value, result: &mut Comparison) {
    let name = |version: &Value| version["name"].as_str().unwrap_or_default().to_owned();
    let versions = |crd: &Value| {
        crd.pointer("/spec/versions")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    for pointer in [
        "/spec/scope",
        "/spec/names/plural",
        "/spec/names/singular",
        "/spec/names/shortNames",
    ] {
        if ours.pointer(pointer) != theirs.pointer(pointer) {
            result.differences.push(format!("{kind}: {pointer} differs"));
        }
    }
    let served = served_versions(kind);
    for version in versions(theirs) {
        if !served.contains(&name(&version)) {
            result
                .differences
                .push(format!("{kind}: version {} is not served", name(&version)));
        }
    }
    // Istio's versions share one schema; the one that bears our first version's name stands for all.
    let theirs = versions(theirs)
        .into_iter()
        .find(|version| name(version) == kind.version());
    let their_fields = theirs
        .map(|version| fields(&version["schema"]["openAPIV3Schema"]))
        .unwrap_or_default();
    let our_fields = fields(super::definition::schema(kind));

    for (path, theirs) in &their_fields {
        match our_fields.get(path) {
            None => result.differences.push(format!("{kind}: field {path} is missing")),
            Some(ours) if ours != theirs => {
                result
                    .differences
                    .push(format!("{kind}: field {path} is {ours}, and {theirs} in Istio"));
            }
            Some(_) => result.common += 1,
        }
    }
    let extensions = EXTENSIONS
        .iter()
        .find(|(of, _)| *of == kind)
        .map_or(&[][..], |(_, paths)| paths);
    for path in our_fields.keys().filter(|path| !their_fields.contains_key(*path)) {
        let belongs = |root: &&str| {
            path.strip_prefix(*root)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if extensions.iter().any(belongs) {
            result.extensions += 1;
        } else {
            result.differences.push(format!("{kind}: field {path} is not Istio's"));
        }
    }
}

/// All fields of a schema, by path (`spec.http[].match[].uri`, `{}` for the values of a map), with what they hold.
pub fn fields(schema: &Value) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    collect("", schema, &mut found);
    found
}

fn collect(path: &str, schema: &Value, found: &mut BTreeMap<String, String>) {
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        for (name, property) in properties {
            let path = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            found.insert(path.clone(), describe(property));
            collect(&path, property, found);
        }
    }
    for (keyword, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
        if let Some(inner) = schema.get(keyword).filter(|inner| inner.is_object()) {
            let path = format!("{path}{suffix}");
            found.insert(path.clone(), describe(inner));
            collect(&path, inner, found);
        }
    }
}

fn describe(schema: &Value) -> String {
    let kind = match schema.get("x-kubernetes-int-or-string") {
        Some(_) => "integer or string",
        None => schema.get("type").and_then(Value::as_str).unwrap_or("anything"),
    };
    let mut values: Vec<&str> = schema
        .get("enum")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    values.sort_unstable();
    if values.is_empty() {
        kind.to_owned()
    } else {
        format!("{kind} of {}", values.join("|"))
    }
}
