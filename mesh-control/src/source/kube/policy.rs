//! Policy objects as the API server has them: which are good, what is wrong with the others, and what is in force.
//!
//! The rules are those of files: an object that becomes wrong keeps its last good version in force, and an authorization
//! policy that cannot be read denies.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher as _;
use std::sync::Arc;

use mesh_api::crd::{Kind, ObjectRef};
use mesh_api::source::{self, Diagnostic, Loaded, Severity};
use mesh_api::validate;
use serde_json::Value;

use crate::source::Event;

/// What diagnostics say where files have their name.
const ORIGIN: &str = "cluster";
/// kubectl's copy of the whole object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Whether an object is acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceptance {
    /// As it stands.
    InForce,
    /// In an earlier version, since the present one has errors.
    LastGood,
    /// Not at all.
    Refused,
    /// It denies what it selects, since it has errors and there is no earlier version.
    Denies,
}

/// One policy object of the cluster and what the control plane makes of it.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyObject {
    /// Which object.
    pub reference: ObjectRef,
    /// The version in which it is read, `networking.istio.io/v1`.
    pub api_version: Arc<str>,
    /// Kubernetes' unique id.
    pub uid: Arc<str>,
    /// The generation that this is about.
    pub generation: i64,
    /// Whether it is acted on.
    pub acceptance: Acceptance,
    /// What is wrong with it by itself, and with it among others.
    pub findings: Vec<Diagnostic>,
}

/// The policy objects of a cluster.
#[derive(Debug, Default)]
pub struct Policies {
    known: BTreeMap<ObjectRef, Known>,
}

#[derive(Debug)]
struct Known {
    api_version: Arc<str>,
    uid: Arc<str>,
    generation: i64,
    /// Hash of what counts of the object.
    content: u64,
    acceptance: Acceptance,
    /// What is in force.
    loaded: Option<Box<Loaded>>,
    diagnostics: Vec<Diagnostic>,
}

impl Policies {
    /// Takes in an object; gives what changes of what is in force. `None` if nothing that is read has changed.
    pub fn take(&mut self, kind: Kind, mut object: Value) -> Option<Option<Event>> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let reference = ObjectRef {
            kind,
            namespace: text("/metadata/namespace").to_owned(),
            name: text("/metadata/name").to_owned(),
        };
        let api_version: Arc<str> = text("/apiVersion").into();
        let uid: Arc<str> = text("/metadata/uid").into();
        let generation = object
            .pointer("/metadata/generation")
            .and_then(Value::as_i64)
            .unwrap_or_default();
        strip(&mut object);
        let bytes = serde_json::to_vec(&object).unwrap_or_default();
        let content = foldhash::quality::FixedState::with_seed(0).hash_one(&bytes);
        if let Some(known) = self.known.get_mut(&reference)
            && known.content == content
            && known.uid == uid
        {
            // Only its status has changed, or something else that nobody reads.
            let before = std::mem::replace(&mut known.generation, generation);
            return (before != generation).then_some(None);
        }
        let before = self.known.remove(&reference).and_then(|known| known.loaded);
        let judged = judge(&bytes, before.map(|loaded| *loaded));
        let event = judged.loaded.as_ref().filter(|_| judged.changed).map(|loaded| {
            // What the compiler keeps is distilled; the object itself is kept once, here.
            Event::Applied(Arc::new(loaded.object.clone()))
        });
        self.known.insert(
            reference,
            Known {
                api_version,
                uid,
                generation,
                content,
                acceptance: judged.acceptance,
                loaded: judged.loaded.map(Box::new),
                diagnostics: judged.diagnostics,
            },
        );
        Some(event)
    }

    /// Forgets an object; gives what changes of what is in force.
    pub fn remove(&mut self, reference: &ObjectRef) -> Option<Event> {
        let known = self.known.remove(reference)?;
        known.loaded.map(|_| Event::Deleted(reference.clone()))
    }

    /// All objects, with what is wrong with each by itself and among the others. `services` are hosts of services that no
    /// policy object describes.
    pub fn review(&self, services: &BTreeSet<String>, domain: &str) -> Vec<PolicyObject> {
        let loaded = self.known.values().filter_map(|known| known.loaded.as_deref());
        let mut of_set: BTreeMap<ObjectRef, Vec<Diagnostic>> = BTreeMap::new();
        for mut diagnostic in validate::analyze_among(loaded, services, domain) {
            if let Some(reference) = diagnostic.object.clone() {
                unplace(&mut diagnostic);
                of_set.entry(reference).or_default().push(diagnostic);
            }
        }
        let all = self.known.iter().map(|(reference, known)| {
            let mut findings = known.diagnostics.clone();
            findings.extend(of_set.remove(reference).unwrap_or_default());
            PolicyObject {
                reference: reference.clone(),
                api_version: known.api_version.clone(),
                uid: known.uid.clone(),
                generation: known.generation,
                acceptance: known.acceptance,
                findings,
            }
        });
        all.collect()
    }
}

struct Judged {
    acceptance: Acceptance,
    loaded: Option<Loaded>,
    /// Whether what is in force is other than before.
    changed: bool,
    diagnostics: Vec<Diagnostic>,
}

/// Judges an object; `before` is what was in force of it.
fn judge(bytes: &[u8], before: Option<Loaded>) -> Judged {
    let mut contents = source::read(ORIGIN, bytes, "");
    let mut diagnostics = std::mem::take(&mut contents.diagnostics);
    let read = contents.objects.pop().map(|loaded| {
        let findings = validate::analyze(&loaded);
        let good = !validate::has_errors(&findings) || validate::fails_closed(loaded.object.kind());
        diagnostics.extend(findings);
        (loaded, good)
    });
    diagnostics.iter_mut().for_each(unplace);
    let (acceptance, loaded, changed) = match (read, before, contents.closed.pop()) {
        (Some((loaded, true)), before, _) => {
            let changed = before.is_none_or(|before| before.object != loaded.object);
            (Acceptance::InForce, Some(loaded), changed)
        }
        (_, Some(before), _) => {
            for diagnostic in diagnostics.iter_mut().filter(|d| d.severity == Severity::Error) {
                diagnostic.message.push_str("; its last good version stays in force");
            }
            (Acceptance::LastGood, Some(before), false)
        }
        (_, None, Some(closed)) => (Acceptance::Denies, Some(closed), true),
        (_, None, None) => (Acceptance::Refused, None, false),
    };
    Judged {
        acceptance,
        loaded: loaded.map(Loaded::without_positions),
        changed,
        diagnostics,
    }
}

/// Objects of a cluster have no lines.
fn unplace(diagnostic: &mut Diagnostic) {
    diagnostic.line = 0;
    diagnostic.column = 0;
}

/// Drops what the API server adds and nobody reads.
fn strip(object: &mut Value) {
    let Some(fields) = object.as_object_mut() else { return };
    fields.remove("status");
    if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
        for name in [
            "managedFields",
            "resourceVersion",
            "uid",
            "generation",
            "selfLink",
            "ownerReferences",
        ] {
            metadata.remove(name);
        }
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(LAST_APPLIED);
            if annotations.is_empty() {
                metadata.remove("annotations");
            }
        }
    }
}
