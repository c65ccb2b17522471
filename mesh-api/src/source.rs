//! Reads policy objects from YAML: bytes of a file come in, typed objects with the position of every field go out.
//!
//! One bad document never hides the others. What a schema can judge is judged here, strictly: fields that do not
//! exist, values of the wrong type, fields that exclude each other. What needs an understanding of the object is for
//! `validate`. Nothing is read from disk here, and nothing panics whatever the bytes.

mod diagnostic;
mod path;
mod scalar;
mod structure;
mod suggest;
mod tree;

use std::sync::Arc;

use crate::crd::{Kind, Meta, Object, ObjectRef, definition};

pub use diagnostic::{Diagnostic, Finding, Severity};
pub use path::{FieldPath, Position, Positions};
pub(crate) use suggest::nearest;

use tree::Node;

/// The largest file that is read, in bytes.
pub const MAX_BYTES: usize = 8 * 1024 * 1024;

/// Groups of Kubernetes' own kinds beside those that end in `.k8s.io`.
const KUBERNETES_GROUPS: &[&str] = &["", "apps", "batch", "autoscaling", "policy", "extensions"];

/// Kinds of Istio that this mesh does without.
const FOREIGN_KINDS: &[&str] = &["EnvoyFilter", "WasmPlugin", "TrafficExtension"];

/// An object that was read, and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The object; its namespace is filled in.
    pub object: Object,
    /// Its metadata, with the `apiVersion` as written.
    pub meta: Meta,
    /// The file that it was read from.
    pub file: Arc<str>,
    /// The line of its first field, from 1.
    pub line: u32,
    /// The column of its first field, from 1.
    pub column: u32,
    /// Where each of its fields stands.
    pub positions: Arc<Positions>,
}

impl Loaded {
    /// Which object it is.
    pub fn reference(&self) -> ObjectRef {
        self.object.reference()
    }

    /// The object without the places of its fields, which take more memory than the object.
    #[must_use]
    pub fn without_positions(self) -> Self {
        Self {
            positions: Arc::new(Positions::none()),
            ..self
        }
    }

    /// Gives a finding about the object its place in the file.
    pub fn locate(&self, finding: Finding) -> Diagnostic {
        let position = self.positions.of(&finding.field);
        finding.into_diagnostic(&self.file, position, Some(self.reference()))
    }
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// The objects that could be read, in order.
    pub objects: Vec<Loaded>,
    /// In place of authorization policies that could not be read: policies that deny what those select. Who has no good
    /// version of such a policy must put these in force, or a mistake would let in what it was meant to keep out.
    pub closed: Vec<Loaded>,
    /// What is wrong with the others, and what was passed over.
    pub diagnostics: Vec<Diagnostic>,
}

impl Contents {
    /// Whether anything could not be read.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|d| d.severity == Severity::Error)
    }
}

/// Reads all objects of a file. `file` only names it in diagnostics; objects without namespace get `default_namespace`.
pub fn read(file: &str, bytes: &[u8], default_namespace: &str) -> Contents {
    let mut reader = Reader {
        file: Arc::from(file),
        default_namespace,
        contents: Contents::default(),
    };
    match text_of(bytes) {
        Err((position, code, message)) => {
            reader.report(Finding::error(FieldPath::root(), code, message), position, None)
        }
        Ok(text) => {
            for document in tree::documents(text) {
                match document {
                    Ok(node) => reader.document(&node, FieldPath::root()),
                    Err(e) => {
                        let finding = Finding::error(FieldPath::root(), "yaml-syntax", e.message);
                        reader.report(finding, e.position, None);
                    }
                }
            }
        }
    }
    reader.contents
}

fn text_of(bytes: &[u8]) -> Result<&str, (Position, &'static str, String)> {
    if bytes.len() > MAX_BYTES {
        let message = format!("the file has {} bytes; at most {MAX_BYTES} are read", bytes.len());
        return Err((Position::START, "file-too-large", message));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').unwrap_or(text)),
        Err(e) => {
            let before = &bytes[..e.valid_up_to()];
            let line = before.iter().filter(|b| **b == b'\n').count();
            let column = before.iter().rev().take_while(|b| **b != b'\n').count();
            let position = Position::new(line + 1, column + 1);
            Err((position, "not-utf8", "the file is not UTF-8 text here".to_owned()))
        }
    }
}

struct Reader<'a> {
    file: Arc<str>,
    default_namespace: &'a str,
    contents: Contents,
}

impl Reader<'_> {
    fn report(&mut self, finding: Finding, position: Position, object: Option<ObjectRef>) {
        self.contents
            .diagnostics
            .push(finding.into_diagnostic(&self.file, position, object));
    }

    /// Takes one document, or one entry of a `List`.
    fn document(&mut self, node: &Node, at: FieldPath) {
        if node.is_null() {
            return;
        }
        if !node.is_map() {
            let message = format!("expected an object with apiVersion and kind, found {}", node.describe());
            return self.report(Finding::error(at, "not-an-object", message), node.position, None);
        }
        let Some(kind) = self.header(node, &at, "kind") else {
            return;
        };
        let Some(api_version) = self.header(node, &at, "apiVersion") else {
            return;
        };
        if kind.ends_with("List")
            && let Some(items) = node.field("items").and_then(|items| items.value.as_list())
        {
            for (index, item) in items.iter().enumerate() {
                self.document(item, at.field("items").index(index));
            }
            return;
        }
        match known_kind(api_version, kind) {
            Ok(kind) => self.object(node, kind, api_version),
            Err(finding) => {
                let name = if finding.code == "unknown-version" {
                    "apiVersion"
                } else {
                    "kind"
                };
                let position = node.field(name).map_or(node.position, |entry| entry.key_position);
                self.report(
                    Finding {
                        field: at.field(name),
                        ..finding
                    },
                    position,
                    None,
                );
            }
        }
    }

    fn header<'n>(&mut self, node: &'n Node, at: &FieldPath, name: &str) -> Option<&'n str> {
        let entry = node.field(name);
        let found = entry
            .and_then(|entry| entry.value.as_text())
            .filter(|text| !text.is_empty());
        if found.is_none() {
            let (position, message) = match entry {
                None => (node.position, format!("the object has no {name}")),
                Some(entry) => (
                    entry.key_position,
                    format!("expected a text, found {}", entry.value.describe()),
                ),
            };
            self.report(Finding::error(at.field(name), "missing-field", message), position, None);
        }
        found
    }

    fn object(&mut self, node: &Node, kind: Kind, api_version: &str) {
        let positions = Arc::new(Positions::of_tree(node));
        let text = |name| {
            node.field("metadata")
                .and_then(|m| m.value.field(name))
                .and_then(|e| e.value.as_text())
        };
        let namespace = match (kind.is_namespaced(), text("namespace").filter(|n| !n.is_empty())) {
            (false, _) => "",
            (true, Some(namespace)) => namespace,
            (true, None) => self.default_namespace,
        };
        let reference = text("name").map(|name| ObjectRef {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        });

        let findings = structure::check(node, kind);
        let flawed = findings.iter().any(|f| f.finding.severity == Severity::Error);
        for found in findings {
            let position = found.position.unwrap_or_else(|| positions.of(&found.finding.field));
            self.report(found.finding, position, reference.clone());
        }
        let value = structure::value(node);
        let load = |mut object: Object| {
            object.metadata_mut().namespace = kind.is_namespaced().then(|| namespace.to_owned());
            let meta = Meta {
                api_version: api_version.to_owned(),
                ..object.meta()
            };
            Loaded {
                object,
                meta,
                file: self.file.clone(),
                line: node.position.line,
                column: node.position.column,
                positions: positions.clone(),
            }
        };
        if flawed {
            if kind == Kind::AuthorizationPolicy && reference.is_some() {
                self.contents.closed.extend(closed_policy(&value).map(load));
            }
            return;
        }
        match Object::from_value(kind, value) {
            Ok(object) => {
                let loaded = load(object);
                self.contents.objects.push(loaded);
            }
            Err(e) => {
                let finding = Finding::error(FieldPath::root(), "unreadable", e.to_string());
                self.report(finding, node.position, reference);
            }
        }
    }
}

/// A policy that denies what an unreadable one selects: its workloads where the selector can be read, else all of its
/// namespace.
fn closed_policy(value: &serde_json::Value) -> Option<Object> {
    let policy = |selector: Option<&serde_json::Value>| {
        // A condition that no release knows: the rule is invalid, and so denies.
        let mut spec = serde_json::json!({ "rules": [{ "when": [{ "key": UNREADABLE, "values": ["*"] }] }] });
        if let Some(selector) = selector {
            spec["selector"] = selector.clone();
        }
        let name = &value["metadata"]["name"];
        let object = serde_json::json!({ "metadata": { "name": name }, "spec": spec });
        Object::from_value(Kind::AuthorizationPolicy, object).ok()
    };
    let selector = value.get("spec").and_then(|spec| spec.get("selector"));
    policy(selector).or_else(|| policy(None))
}

/// The condition of a policy that stands in for an unreadable one, as logs name it.
const UNREADABLE: &str = "the policy cannot be read";

/// Which of our kinds an object is of; a finding if it is of none.
fn known_kind(api_version: &str, name: &str) -> Result<Kind, Finding> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let root = FieldPath::root;
    if let Some(kind) = Kind::from_name(name).filter(|kind| kind.group() == group) {
        let served = definition::served_versions(kind);
        if served.iter().any(|v| v == version) {
            return Ok(kind);
        }
        let message = format!("{kind} has no version {version:?}; there is {}", served.join(", "));
        return Err(Finding::error(root(), "unknown-version", message));
    }
    if group == "gateway.networking.k8s.io" {
        let message = format!("not supported yet: kind {name} of the Gateway API; the object has no effect");
        return Err(Finding::warning(root(), "not-supported-yet", message));
    }
    if KUBERNETES_GROUPS.contains(&group) || group.ends_with(".k8s.io") {
        let message = format!("{name} is a kind of Kubernetes and ignored here; describe services with ServiceEntry");
        return Err(Finding::warning(root(), "ignored-kind", message));
    }
    if FOREIGN_KINDS.contains(&name) {
        let message = format!("{name} is for Envoy's proxies; this mesh has no use for it");
        return Err(Finding::error(root(), "unknown-kind", message));
    }
    let message = match Kind::from_name(name) {
        Some(kind) => format!(
            "there is no {name} in group {group:?}; did you mean {}/{}?",
            kind.group(),
            kind.version()
        ),
        None => match nearest(name, Kind::ALL.iter().map(|kind| kind.as_str())) {
            Some(near) => format!("there is no kind {name} in {api_version}; did you mean {near}?"),
            None => format!("there is no kind {name} in {api_version}"),
        },
    };
    Err(Finding::error(root(), "unknown-kind", message))
}
