//! What the status of a policy object says: pure functions from what is known of it to conditions, and from those and the
//! present status to the new one. Conditions that others have written stay.

use k8s_openapi::jiff::Timestamp;
use mesh_api::crd::Kind;
use mesh_api::source::{Diagnostic, Severity};
use serde_json::{Map, Value, json};

use super::replica::Count;
use crate::source::kube::{Acceptance, PolicyObject};

/// Whether it is acted on, or why not.
const ACCEPTED: &str = "Accepted";
/// On how many proxies it is in force.
const PROGRAMMED: &str = "Programmed";
/// Whether another object says something else.
const CONFLICTED: &str = "Conflicted";
/// Codes of findings that are conflicts.
const CONFLICTS: [&str; 2] = ["conflict", "duplicate-object"];
/// Findings that a message tells of; the others are counted.
const TOLD: usize = 5;
/// Longest message; the API takes 32 KiB.
const MAX_MESSAGE: usize = 4096;
/// Codes of Istio's own analysis, which stay.
const ISTIO_CODE: &str = "IST";

/// What a status is to say. Equal ones need not be written again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    uid: String,
    generation: i64,
    conditions: Vec<Condition>,
    messages: Vec<Value>,
    /// Further fields, of a MeshConfig.
    further: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    kind: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

/// What the status of an object is to say.
#[must_use]
pub fn wanted(object: &PolicyObject, count: &Count, further: Map<String, Value>) -> Wanted {
    let (conflicts, findings): (Vec<&Diagnostic>, Vec<&Diagnostic>) = object
        .findings
        .iter()
        .partition(|finding| CONFLICTS.contains(&finding.code));
    let mut conditions = vec![accepted(object.acceptance, &findings), programmed(object, count)];
    if !conflicts.is_empty() {
        conditions.push(Condition {
            kind: CONFLICTED,
            status: "True",
            reason: "Conflict",
            message: told(&conflicts),
        });
    }
    Wanted {
        uid: object.uid.to_string(),
        generation: object.generation,
        conditions,
        messages: object.findings.iter().map(message).collect(),
        further,
    }
}

fn accepted(acceptance: Acceptance, findings: &[&Diagnostic]) -> Condition {
    let errors: Vec<&Diagnostic> = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .copied()
        .collect();
    let (status, reason, start) = match acceptance {
        Acceptance::InForce if errors.is_empty() && findings.is_empty() => ("True", "Accepted", "in force"),
        Acceptance::InForce if errors.is_empty() => ("True", "AcceptedWithWarnings", "in force; "),
        Acceptance::InForce => (
            "False",
            "FaultyRulesDeny",
            "in force, and what is faulty in it denies; ",
        ),
        Acceptance::LastGood => ("False", "Invalid", "its last good version stays in force; "),
        Acceptance::Denies => ("False", "Invalid", "what it selects is denied until it is right; "),
        Acceptance::Refused => ("False", "Invalid", "not in force; "),
    };
    let shown = if errors.is_empty() { findings } else { &errors };
    Condition {
        kind: ACCEPTED,
        status,
        reason,
        message: clipped(start.to_owned() + &told(shown)),
    }
}

fn programmed(object: &PolicyObject, count: &Count) -> Condition {
    let Count { holding, programmed } = count;
    let mut message = format!("programmed on {programmed} of {holding} proxies");
    let (status, reason) = match object.acceptance {
        Acceptance::Refused => {
            message = "it is not accepted".to_owned();
            ("False", "NotAccepted")
        }
        _ if *holding == 0 => {
            message.push_str(": no connected proxy has asked for anything that it affects");
            ("False", "NotInUse")
        }
        _ if programmed == holding => ("True", "Programmed"),
        _ => ("False", "Pending"),
    };
    Condition {
        kind: PROGRAMMED,
        status,
        reason,
        message: clipped(message),
    }
}

/// `spec.http[0].timeout: duration "5" lacks a unit; …`.
fn told(findings: &[&Diagnostic]) -> String {
    let texts = findings.iter().take(TOLD).map(|finding| {
        if finding.field.is_root() {
            finding.message.clone()
        } else {
            format!("{}: {}", finding.field, finding.message)
        }
    });
    let mut text = texts.collect::<Vec<_>>().join("; ");
    if findings.len() > TOLD {
        text.push_str(&format!("; and {} more", findings.len() - TOLD));
    }
    clipped(text)
}

fn clipped(mut text: String) -> String {
    if text.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or_default());
    }
    text
}

fn message(finding: &Diagnostic) -> Value {
    let level = match finding.severity {
        Severity::Error => "ERROR",
        Severity::Warning => "WARNING",
    };
    json!({ "level": level, "type": { "name": finding.code, "code": finding.code } })
}

/// The status as it is to be, made from what it is (null where there is none).
#[must_use]
pub fn merged(present: &Value, wanted: &Wanted, now: Timestamp) -> Value {
    let mut status = present.as_object().cloned().unwrap_or_default();
    let list = |name: &str| present[name].as_array().cloned().unwrap_or_default();
    let before = list("conditions");
    let kind = |condition: &Value| condition["type"].as_str().unwrap_or_default().to_owned();
    let mut conditions: Vec<Value> = before
        .iter()
        .filter(|condition| ![ACCEPTED, PROGRAMMED, CONFLICTED].contains(&kind(condition).as_str()))
        .cloned()
        .collect();
    for condition in &wanted.conditions {
        let known = before.iter().find(|known| kind(known) == condition.kind);
        let same = known.filter(|known| known["status"] == condition.status);
        let since = same.map(|known| known["lastTransitionTime"].clone());
        let since = since.filter(Value::is_string);
        conditions.push(json!({
            "type": condition.kind,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message,
            "lastTransitionTime": since.unwrap_or_else(|| json!(format!("{now:.0}"))),
            "observedGeneration": wanted.generation,
        }));
    }
    let mut messages: Vec<Value> = list("validationMessages");
    messages.retain(|message| {
        let code = message.pointer("/type/code").and_then(Value::as_str);
        code.is_some_and(|code| code.starts_with(ISTIO_CODE))
    });
    messages.extend(wanted.messages.iter().cloned());
    status.insert("conditions".to_owned(), Value::Array(conditions));
    if !messages.is_empty() || !present["validationMessages"].is_null() {
        status.insert("validationMessages".to_owned(), Value::Array(messages));
    }
    status.insert("observedGeneration".to_owned(), json!(wanted.generation));
    status.extend(wanted.further.clone());
    Value::Object(status)
}

/// What the status of a MeshConfig shows beside its conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshFacts {
    /// Mode of mutual TLS where no narrower policy says otherwise.
    pub mtls_mode: &'static str,
    /// Trust domain of the mesh.
    pub trust_domain: String,
    /// Versions of the control plane's replicas.
    pub versions: Vec<String>,
    /// Connected proxies.
    pub proxies: u32,
    /// Those of them that have acknowledged everything.
    pub in_sync: u32,
}

impl MeshFacts {
    /// The fields for an object of a kind: a MeshConfig has them, others none.
    #[must_use]
    pub fn fields(&self, kind: Kind) -> Map<String, Value> {
        if kind != Kind::MeshConfig {
            return Map::new();
        }
        Map::from_iter([
            ("mtlsMode".to_owned(), json!(self.mtls_mode)),
            ("trustDomain".to_owned(), json!(self.trust_domain)),
            ("controlPlaneVersion".to_owned(), json!(self.versions.join(", "))),
            (
                "proxiesInSync".to_owned(),
                json!(format!("{}/{}", self.in_sync, self.proxies)),
            ),
        ])
    }
}

#[cfg(test)]
mod tests;
