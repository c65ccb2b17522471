//! Injection without a cluster, for `meshctl inject`: YAML with any number of documents comes in, the same with the
//! proxy in every pod template goes out. Documents that do not change are given back to the letter.

use std::fmt;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{Outcome, Refusal, Surroundings, inject};
use crate::config::InjectorConfig;

/// Kinds with pods in them, and where those are.
const KINDS: [(&str, &str, &str); 8] = [
    ("", "Pod", ""),
    ("", "ReplicationController", "/spec/template"),
    ("apps", "Deployment", "/spec/template"),
    ("apps", "StatefulSet", "/spec/template"),
    ("apps", "DaemonSet", "/spec/template"),
    ("apps", "ReplicaSet", "/spec/template"),
    ("batch", "Job", "/spec/template"),
    ("batch", "CronJob", "/spec/jobTemplate/spec/template"),
];

/// What YAML could not be injected, and why.
#[derive(Debug, thiserror::Error)]
#[error("document {document}{}: {reason}", DisplayObject(.object))]
pub struct ManifestError {
    /// Which one, from 1.
    pub document: usize,
    /// Kind and name, where they could be read.
    pub object: Option<String>,
    /// What is wrong.
    pub reason: Reason,
}

/// Why a document could not be injected.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// It is not YAML.
    #[error("{0}")]
    Yaml(String),
    /// Its pod is not one.
    #[error("its pod cannot be read: {0}")]
    Pod(String),
    /// Its pod cannot have a proxy.
    #[error(transparent)]
    Refusal(#[from] Refusal),
}

struct DisplayObject<'a>(&'a Option<String>);

impl fmt::Display for DisplayObject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(object) => write!(f, " ({object})"),
            None => Ok(()),
        }
    }
}

/// Injected YAML, and what is to be said about it.
#[derive(Debug, Default)]
pub struct Manifests {
    /// The YAML.
    pub yaml: String,
    /// One line for each object with pods that stays as it is, and each warning: `Deployment shop: …`.
    pub notes: Vec<String>,
}

/// Injects every pod of `yaml`; namespaces count as being in the mesh unless they are the system's.
///
/// # Errors
/// When a document is not YAML, or a pod cannot have a proxy.
pub fn manifests(yaml: &str, config: &InjectorConfig) -> Result<String, ManifestError> {
    manifests_with_notes(yaml, config).map(|manifests| manifests.yaml)
}

/// As [`manifests`], with what is to be said about it.
///
/// # Errors
/// As [`manifests`].
pub fn manifests_with_notes(yaml: &str, config: &InjectorConfig) -> Result<Manifests, ManifestError> {
    let mut config = config.clone();
    config.enable_namespaces_by_default = true;
    let mut out = Manifests::default();
    for (index, document) in documents(yaml).into_iter().enumerate() {
        let failed = |object: Option<String>, reason: Reason| ManifestError {
            document: index + 1,
            object,
            reason,
        };
        let text = document.body;
        out.yaml.push_str(document.marker);
        if is_blank(text) {
            out.yaml.push_str(text);
            continue;
        }
        let mut value: Value = serde_saphyr::from_str(text).map_err(|e| failed(None, Reason::Yaml(e.to_string())))?;
        let changed =
            object(&mut value, &config, &mut out.notes).map_err(|(object, reason)| failed(Some(object), reason))?;
        if changed {
            let text = serde_saphyr::to_string(&value).map_err(|e| failed(None, Reason::Yaml(e.to_string())))?;
            out.yaml.push_str(text.trim_end());
            out.yaml.push('\n');
        } else {
            out.yaml.push_str(text);
        }
    }
    Ok(out)
}

/// Injects one object, or those of a list. Says whether it changed.
fn object(value: &mut Value, config: &InjectorConfig, notes: &mut Vec<String>) -> Result<bool, (String, Reason)> {
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if kind == "List" {
        let mut changed = false;
        for item in value["items"].as_array_mut().into_iter().flatten() {
            changed |= object(item, config, notes)?;
        }
        return Ok(changed);
    }
    let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
    let Some((_, _, path)) = KINDS.iter().find(|(g, k, _)| *g == group && *k == kind) else {
        return Ok(false);
    };
    let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let namespace = value["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
    let called = format!("{kind} {name}");
    let Some(template) = value.pointer_mut(path).filter(|template| template.is_object()) else {
        return Ok(false);
    };
    for part in ["metadata", "spec"] {
        if template[part].is_null() {
            template[part] = json!({});
        }
    }
    let mut pod: Pod =
        serde_json::from_value(template.clone()).map_err(|e| (called.clone(), Reason::Pod(e.to_string())))?;
    if pod.metadata.name.is_none() {
        // The pods will be called after it; in the patch it does not appear.
        pod.metadata.generate_name = Some(format!("{name}-"));
    }
    let around = Surroundings {
        namespace,
        native_sidecars: true,
        ..Surroundings::default()
    };
    match inject(&pod, &around, config).map_err(|e| (called.clone(), e.into()))? {
        Outcome::Skipped { why, .. } => {
            notes.push(format!("{called}: not injected: {why}"));
            Ok(false)
        }
        Outcome::Injected { patch, warnings, .. } => {
            notes.extend(warnings.into_iter().map(|warning| format!("{called}: {warning}")));
            json_patch::patch(template, &patch).map_err(|e| (called, Reason::Pod(e.to_string())))?;
            Ok(true)
        }
    }
}

/// One document: the line that begins it, and the rest.
struct Document<'a> {
    marker: &'a str,
    body: &'a str,
}

fn documents(yaml: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut marker, mut start, mut at) = ("", 0, 0);
    for line in yaml.split_inclusive('\n') {
        let content = line.trim_end();
        // With text behind it, the line is part of the document.
        if content == "---" {
            documents.push(Document {
                marker,
                body: &yaml[start..at],
            });
            marker = line;
            start = at + line.len();
        }
        at += line.len();
    }
    documents.push(Document {
        marker,
        body: &yaml[start..],
    });
    // What stands before the first marker is no document when there is nothing.
    if documents.len() > 1 && documents[0].body.is_empty() {
        documents.remove(0);
    }
    documents
}

/// Nothing but comments, directives and space.
fn is_blank(text: &str) -> bool {
    text.lines()
        .map(str::trim)
        .all(|line| line.is_empty() || line.starts_with('#') || line.starts_with('%') || line == "...")
}
