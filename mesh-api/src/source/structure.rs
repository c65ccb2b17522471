//! Checks a tree against the schema of its kind, as an API server does, and turns it into JSON.
//!
//! All findings of an object are given at once, each with the field that it is about.

use std::sync::OnceLock;

use serde_json::{Map, Value as Json, json};

use super::diagnostic::Finding;
use super::path::{FieldPath, Position};
use super::suggest::nearest;
use super::tree::{Entry, Node, Value};
use crate::crd::definition::{ONE_OF, schema};
use crate::crd::{Kind, Timestamp};
use crate::duration::{self, Duration};

/// A finding, with its position where the path alone does not say.
pub(super) struct Found {
    pub finding: Finding,
    pub position: Option<Position>,
}

/// Checks an object of a kind.
pub(super) fn check(node: &Node, kind: Kind) -> Vec<Found> {
    let mut checker = Checker { found: Vec::new() };
    let root = FieldPath::root();
    let schema = schema(kind);
    for entry in checker.unique_fields(node, &root) {
        let path = root.field(&entry.key);
        match entry.key.as_str() {
            // The reader has looked at these; a status says nothing in a file.
            "apiVersion" | "kind" | "status" => {}
            "metadata" => checker.metadata(&entry.value, &path),
            name => match schema["properties"].get(name) {
                Some(property) => checker.value(&entry.value, property, &path),
                None => checker.unknown(&path, name, ["metadata", "spec"]),
            },
        }
    }
    if node.field("metadata").is_none() {
        checker.error(
            &root.field("metadata").field("name"),
            "missing-field",
            "the object has no name",
        );
    }
    checker.required(node, schema, &root);
    // Without a spec, what is required within it is missing all the same.
    if node.field("spec").is_none() {
        let empty = Node {
            position: node.position,
            value: Value::Map(Vec::new()),
        };
        checker.required(&empty, &schema["properties"]["spec"], &root.field("spec"));
    }
    checker.found
}

/// The object as JSON, without what files say and nobody reads: status, and metadata that is empty.
pub(super) fn value(node: &Node) -> Json {
    let mut value = to_json(node);
    if let Some(object) = value.as_object_mut() {
        object.remove("status");
        if let Some(metadata) = object.get_mut("metadata").and_then(Json::as_object_mut) {
            metadata.retain(|_, value| !value.is_null());
            metadata.remove("managedFields");
        }
    }
    value
}

fn to_json(node: &Node) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Number(value) => Json::Number(value.clone()),
        Value::Text(text) => Json::String(text.clone()),
        Value::List(items) => Json::Array(items.iter().map(to_json).collect()),
        Value::Map(entries) => Json::Object(
            entries
                .iter()
                .map(|entry| (entry.key.clone(), to_json(&entry.value)))
                .collect::<Map<_, _>>(),
        ),
    }
}

/// What Kubernetes knows of an object's metadata.
fn metadata_schema() -> &'static Json {
    static SCHEMA: OnceLock<Json> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let text = json!({ "type": "string" });
        let texts = json!({ "type": "object", "additionalProperties": text });
        let anything = json!({});
        json!({
            "type": "object",
            "properties": {
                "name": text, "namespace": text, "generateName": text, "labels": texts, "annotations": texts,
                "creationTimestamp": text, "uid": text, "resourceVersion": text, "selfLink": text,
                "generation": { "type": "integer" }, "deletionTimestamp": text,
                "deletionGracePeriodSeconds": { "type": "integer" },
                "finalizers": { "type": "array", "items": text },
                "ownerReferences": anything, "managedFields": anything,
            },
        })
    })
}

struct Checker {
    found: Vec<Found>,
}

impl Checker {
    fn error(&mut self, path: &FieldPath, code: &'static str, message: impl Into<String>) {
        self.found.push(Found {
            finding: Finding::error(path.clone(), code, message),
            position: None,
        });
    }

    fn unknown<'a>(&mut self, path: &FieldPath, name: &str, known: impl IntoIterator<Item = &'a str>) {
        let message = match nearest(name, known) {
            Some(near) => format!("unknown field {name:?}; did you mean {near:?}?"),
            None => format!("unknown field {name:?}"),
        };
        self.error(path, "unknown-field", message);
    }

    fn metadata(&mut self, node: &Node, path: &FieldPath) {
        let Value::Map(entries) = &node.value else {
            return self.mismatch(node, path, "an object");
        };
        // Generators write these without a value.
        let set = entries.iter().filter(|entry| !entry.value.is_null()).cloned().collect();
        self.value(
            &Node {
                position: node.position,
                value: Value::Map(set),
            },
            metadata_schema(),
            path,
        );

        let text = |name| node.field(name).and_then(|entry| entry.value.as_text());
        if node
            .field("name")
            .is_none_or(|entry| entry.value.is_null() || entry.value.as_text() == Some(""))
        {
            self.error(&path.field("name"), "missing-field", "the object has no name");
        }
        for name in ["name", "namespace"] {
            if let Some(text) = text(name).filter(|text| !text.is_empty() && !is_object_name(text)) {
                let message = format!("{text:?} is no name of an object: use lower-case letters, digits, '-' and '.'");
                self.error(&path.field(name), "bad-value", message);
            }
        }
        for name in ["creationTimestamp", "deletionTimestamp"] {
            if text(name).is_some_and(|text| text.parse::<Timestamp>().is_err()) {
                let message = "expected a time such as \"2026-01-31T12:00:00Z\"";
                self.error(&path.field(name), "wrong-type", message);
            }
        }
    }

    /// The fields of an object, with those written twice reported and given once.
    fn unique_fields<'n>(&mut self, node: &'n Node, path: &FieldPath) -> Vec<&'n Entry> {
        let Value::Map(entries) = &node.value else {
            return Vec::new();
        };
        let mut seen = std::collections::HashSet::new();
        let mut unique = Vec::with_capacity(entries.len());
        for entry in entries {
            if seen.insert(entry.key.as_str()) {
                unique.push(entry);
            } else {
                let message = format!("field {:?} is written twice", entry.key);
                let finding = Finding::error(path.field(&entry.key), "duplicate-field", message);
                self.found.push(Found {
                    finding,
                    position: Some(entry.key_position),
                });
            }
        }
        unique
    }

    fn value(&mut self, node: &Node, schema: &Json, path: &FieldPath) {
        if schema.get("x-kubernetes-int-or-string").is_some() || schema.get("type").is_none() {
            return;
        }
        if node.is_null() {
            if schema.get("nullable").is_none() {
                let message = "the field has no value; write one, or remove the field";
                self.error(path, "missing-value", message);
            }
            return;
        }
        match schema["type"].as_str().unwrap_or_default() {
            "object" => self.object(node, schema, path),
            "array" => match node.as_list() {
                Some(items) => {
                    for (index, item) in items.iter().enumerate() {
                        self.value(item, &schema["items"], &path.index(index));
                    }
                }
                None => self.mismatch(node, path, "a list"),
            },
            "string" => self.text(node, schema, path),
            "boolean" if !matches!(node.value, Value::Bool(_)) => self.mismatch(node, path, "true or false"),
            "integer" => self.integer(node, schema, path),
            "number" if !matches!(node.value, Value::Number(_)) => self.mismatch(node, path, "a number"),
            _ => {}
        }
    }

    fn object(&mut self, node: &Node, schema: &Json, path: &FieldPath) {
        if !node.is_map() {
            return self.mismatch(node, path, "an object");
        }
        let properties = schema.get("properties").and_then(Json::as_object);
        for entry in self.unique_fields(node, path) {
            let path = path.field(&entry.key);
            match properties.and_then(|properties| properties.get(&entry.key)) {
                Some(property) => self.value(&entry.value, property, &path),
                None => match schema.get("additionalProperties") {
                    Some(values) => self.value(&entry.value, values, &path),
                    None => {
                        let known = properties.into_iter().flat_map(|p| p.keys()).map(String::as_str);
                        self.unknown(&path, &entry.key, known);
                    }
                },
            }
        }
        self.required(node, schema, path);
        self.exclusive(node, schema, path);
    }

    fn required(&mut self, node: &Node, schema: &Json, path: &FieldPath) {
        for name in schema
            .get("required")
            .and_then(Json::as_array)
            .into_iter()
            .flatten()
            .filter_map(Json::as_str)
        {
            if node.field(name).is_none() {
                self.error(
                    &path.field(name),
                    "missing-field",
                    format!("the required field {name:?} is missing"),
                );
            }
        }
    }

    fn exclusive(&mut self, node: &Node, schema: &Json, path: &FieldPath) {
        let names = schema
            .get(ONE_OF)
            .and_then(Json::as_array)
            .into_iter()
            .flatten()
            .filter_map(Json::as_str);
        let set: Vec<&str> = names
            .filter(|name| node.field(name).is_some_and(|e| !e.value.is_null()))
            .collect();
        if let [first, second, ..] = set[..] {
            let message = format!("{second:?} cannot be set together with {first:?}: only one of them is allowed");
            self.error(&path.field(second), "one-of", message);
        }
    }

    fn text(&mut self, node: &Node, schema: &Json, path: &FieldPath) {
        let is_duration = schema.get("pattern").and_then(Json::as_str) == Some(duration::PATTERN);
        let Some(text) = node.as_text() else {
            return match (is_duration, &node.value) {
                (true, _) => self.mismatch(node, path, "a duration such as \"5s\""),
                (false, Value::Bool(_) | Value::Number(_)) => {
                    let message = format!("expected a text, found {}; put it in quotes", node.describe());
                    self.error(path, "wrong-type", message);
                }
                (false, _) => self.mismatch(node, path, "a text"),
            };
        };
        if is_duration && let Err(e) = text.parse::<Duration>() {
            self.error(path, "bad-duration", e.to_string());
        }
        let values: Vec<&str> = schema
            .get("enum")
            .and_then(Json::as_array)
            .into_iter()
            .flatten()
            .filter_map(Json::as_str)
            .collect();
        if !values.is_empty() && !values.contains(&text) {
            let message = match nearest(text, values.iter().copied()) {
                Some(near) => format!("{text:?} is not known here; did you mean {near}?"),
                None => format!("{text:?} is not known here; expected one of {}", values.join(", ")),
            };
            self.error(path, "bad-value", message);
        }
    }

    fn integer(&mut self, node: &Node, schema: &Json, path: &FieldPath) {
        let number = match &node.value {
            Value::Number(number) if number.is_i64() || number.is_u64() => number,
            _ => return self.mismatch(node, path, "a whole number"),
        };
        let value = number
            .as_i64()
            .map_or_else(|| number.as_u64().map_or(i128::MAX, i128::from), i128::from);
        let bound = |keyword: &str| {
            schema.get(keyword).and_then(|bound| {
                bound
                    .as_i64()
                    .map(i128::from)
                    .or_else(|| bound.as_f64().map(|bound| bound as i128))
            })
        };
        let (mut least, mut most) = (bound("minimum"), bound("maximum"));
        if schema.get("format").and_then(Json::as_str) == Some("int32") {
            least = least.or(Some(i128::from(i32::MIN)));
            most = most.or(Some(i128::from(i32::MAX)));
        }
        if least.is_some_and(|least| value < least) || most.is_some_and(|most| value > most) {
            let message = match (least, most) {
                (Some(least), Some(most)) => format!("{value} is out of range: from {least} to {most} is allowed"),
                (Some(least), None) => format!("{value} is out of range: at least {least} is allowed"),
                _ => format!("{value} is out of range"),
            };
            self.error(path, "bad-value", message);
        }
    }

    fn mismatch(&mut self, node: &Node, path: &FieldPath, expected: &str) {
        self.error(
            path,
            "wrong-type",
            format!("expected {expected}, found {}", node.describe()),
        );
    }
}

/// Whether a text is a DNS subdomain, as Kubernetes wants names to be.
fn is_object_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    text.len() <= 253
        && text.split('.').all(|label| {
            let bytes = label.as_bytes();
            bytes.iter().all(|b| inner(*b)) && edge(bytes.first()) && edge(bytes.last())
        })
}
