//! Judges policy objects that are written to the API server, as `meshctl analyze` judges files: errors refuse the object
//! with the path of the field and the reason, warnings are passed on to whoever wrote it.

use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, Operation};
use mesh_api::crd::{Kind, definition};
use mesh_api::source::{Diagnostic, Severity, read};
use mesh_api::validate;
use serde_json::Value;

use crate::events::cut;

/// kubectl shows each on a line.
const MAX_WARNING: usize = 256;
/// Beyond these, the number of those left out is said.
const MAX_WARNINGS: usize = 10;
/// All errors are said at once, up to this many.
const MAX_ERRORS: usize = 20;
/// An object that only has a prefix for its name yet.
const PLACEHOLDER: &str = "generated";

/// What becomes of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgement {
    /// Why it cannot work; it is refused when there are any.
    pub errors: Vec<String>,
    /// What does not do what it seems to.
    pub warnings: Vec<String>,
}

/// Answers an admission request for an object of any kind. Kinds of others, deletions and subresources are let pass.
pub fn review(request: &AdmissionRequest<DynamicObject>) -> AdmissionResponse {
    let response = AdmissionResponse::from(request);
    let kind = &request.kind;
    let ours = is_ours(&kind.group, &kind.version, &kind.kind);
    let written = matches!(request.operation, Operation::Create | Operation::Update);
    let Some(object) = request
        .object
        .as_ref()
        .filter(|_| ours && written && request.sub_resource.as_deref().unwrap_or_default().is_empty())
    else {
        return response;
    };
    let judgement = if object.metadata.deletion_timestamp.is_some() {
        // Only its finalizers are still of interest.
        Judgement::default()
    } else {
        let namespace = request.namespace.as_deref().unwrap_or_default();
        let judgement = judge(object, namespace);
        match &request.old_object {
            // What was let in before, or when nobody looked, can still be labelled.
            Some(old) if old.data.get("spec") == object.data.get("spec") => judgement.softened(),
            _ => judgement,
        }
    };
    let result = if judgement.errors.is_empty() {
        "galley_validation_passed"
    } else {
        "galley_validation_failed"
    };
    metrics::counter!(result, "group" => kind.group.clone(), "version" => kind.version.clone(),
        "resource" => request.resource.resource.clone())
    .increment(1);
    answer(response, judgement)
}

/// Judges an object, as the API server has it.
pub fn judge(object: &DynamicObject, namespace: &str) -> Judgement {
    let mut judgement = Judgement::default();
    let mut value = match serde_json::to_value(object) {
        Ok(value) => value,
        Err(error) => {
            judgement.errors.push(error.to_string());
            return judgement;
        }
    };
    prepare(&mut value);
    // JSON is YAML: the reader of files does the rest, and finds what it finds in files.
    let contents = read("object", value.to_string().as_bytes(), namespace);
    let mut diagnostics = contents.diagnostics;
    for loaded in &contents.objects {
        diagnostics.extend(validate::analyze(loaded));
    }
    for diagnostic in &diagnostics {
        match diagnostic.severity {
            Severity::Error => judgement.errors.push(sentence(diagnostic)),
            Severity::Warning => judgement.warnings.push(sentence(diagnostic)),
        }
    }
    judgement
}

impl Judgement {
    /// The same without refusing.
    fn softened(mut self) -> Self {
        let errors = std::mem::take(&mut self.errors);
        self.warnings.splice(0..0, errors);
        self
    }
}

fn is_ours(group: &str, version: &str, kind: &str) -> bool {
    Kind::from_name(kind).is_some_and(|kind| {
        kind.group() == group && definition::served_versions(kind).iter().any(|served| served == version)
    })
}

/// Leaves out what the API server adds and no file has.
fn prepare(value: &mut Value) {
    let Some(object) = value.as_object_mut() else { return };
    object.remove("status");
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    metadata.remove("managedFields");
    let nameless = metadata.get("name").and_then(Value::as_str).is_none_or(str::is_empty);
    if nameless && metadata.contains_key("generateName") {
        metadata.insert("name".to_owned(), PLACEHOLDER.into());
    }
}

fn sentence(diagnostic: &Diagnostic) -> String {
    if diagnostic.field.is_root() {
        diagnostic.message.clone()
    } else {
        format!("{}: {}", diagnostic.field, diagnostic.message)
    }
}

fn answer(mut response: AdmissionResponse, judgement: Judgement) -> AdmissionResponse {
    response.warnings = warnings(judgement.warnings);
    if judgement.errors.is_empty() {
        return response;
    }
    let more = judgement.errors.len().saturating_sub(MAX_ERRORS);
    let mut message = judgement.errors[..judgement.errors.len() - more].join("; ");
    if more > 0 {
        message.push_str(&format!("; and {more} more"));
    }
    let mut response = response.deny(message);
    response.result.code = 422;
    response.result.reason = "Invalid".to_owned();
    response
}

/// Warnings within the bounds of an answer.
pub(crate) fn warnings(mut all: Vec<String>) -> Option<Vec<String>> {
    let more = all.len().saturating_sub(MAX_WARNINGS);
    all.truncate(MAX_WARNINGS);
    // A header of HTTP carries them.
    let one_line = |text: &str| text.replace(|c: char| c.is_control(), " ");
    let mut warnings: Vec<String> = all.iter().map(|text| cut(&one_line(text), MAX_WARNING)).collect();
    if more > 0 {
        warnings.push(format!("and {more} more: see meshctl analyze"));
    }
    (!warnings.is_empty()).then_some(warnings)
}

#[cfg(test)]
mod tests;
