//! Judges objects beyond their schema: what cannot work is an error, what does not do what it seems to is a warning.
//!
//! One object or a set of objects comes in, findings by field come out. The rules are Istio's, and each field that
//! Istio has and this mesh does not act on yet is reported here: nothing is silently ignored. Objects are not changed.

mod authorization_policy;
mod destination_rule;
mod further;
mod headers;
mod http_route;
mod security;
mod service_entry;
mod set;
mod support;
mod text;
mod traffic_policy;
mod virtual_service;

use crate::crd::{Kind, Object};
use crate::source::{Diagnostic, FieldPath, Finding, Loaded, Severity};

pub use set::{analyze_among, analyze_set};
pub use text::{collector, namespace};

/// Judges one object by itself.
pub fn check(object: &Object) -> Vec<Finding> {
    let mut findings = Findings::default();
    let spec = FieldPath::new("spec");
    match object {
        Object::VirtualService(o) => virtual_service::check(&o.spec, &spec, &mut findings),
        Object::DestinationRule(o) => destination_rule::check(&o.spec, &spec, &mut findings),
        Object::ServiceEntry(o) => service_entry::check(&o.spec, &spec, &mut findings),
        Object::WorkloadEntry(o) => service_entry::check_workload(&o.spec, &spec, &mut findings),
        Object::WorkloadGroup(o) => further::workload_group(&o.spec, &spec, &mut findings),
        Object::Gateway(o) => further::gateway(&o.spec, &spec, &mut findings),
        Object::Sidecar(o) => further::sidecar(&o.spec, &spec, &mut findings),
        Object::ProxyConfig(o) => further::proxy_config(&o.spec, &spec, &mut findings),
        Object::Telemetry(o) => further::telemetry(&o.spec, &spec, &mut findings),
        Object::MeshConfig(o) => further::mesh_config(&o.spec, &spec, &mut findings),
        Object::AuthorizationPolicy(o) => authorization_policy::check(&o.metadata, &o.spec, &spec, &mut findings),
        Object::PeerAuthentication(o) => security::peer_authentication(&o.spec, &spec, &mut findings),
        Object::RequestAuthentication(o) => security::request_authentication(&o.spec, &spec, &mut findings),
    }
    if let Some(export_to) = export_to(object) {
        text::export_to(
            export_to,
            object.namespace(),
            object.kind(),
            &spec.field("exportTo"),
            &mut findings,
        );
    }
    support::check(object, &mut findings);
    findings.0
}

/// Judges one object that was read from a file.
pub fn analyze(loaded: &Loaded) -> Vec<Diagnostic> {
    check(&loaded.object)
        .into_iter()
        .map(|finding| loaded.locate(finding))
        .collect()
}

/// The fields of a kind, below `spec`, that this release acts on, as [`fields`](crate::crd::compare::fields) writes
/// them; [`check`] reports each other one that an object sets.
pub fn acted_on(kind: Kind) -> Vec<String> {
    support::acted_on(kind)
}

/// Whether objects of a kind are to be compiled even where [`check`] finds errors. To leave out an authorization policy
/// would let in what it was meant to keep out: its faulty rules deny instead.
pub fn fails_closed(kind: Kind) -> bool {
    kind == Kind::AuthorizationPolicy
}

/// Whether any of the diagnostics is an error.
pub fn has_errors(diagnostics: &[Diagnostic]) -> bool {
    diagnostics.iter().any(|d| d.severity == Severity::Error)
}

fn export_to(object: &Object) -> Option<&[String]> {
    match object {
        Object::VirtualService(o) => Some(&o.spec.export_to),
        Object::DestinationRule(o) => Some(&o.spec.export_to),
        Object::ServiceEntry(o) => Some(&o.spec.export_to),
        _ => None,
    }
}

/// Findings as they are gathered.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn error(&mut self, field: FieldPath, code: &'static str, message: impl Into<String>) {
        self.0.push(Finding::error(field, code, message));
    }

    fn warning(&mut self, field: FieldPath, code: &'static str, message: impl Into<String>) {
        self.0.push(Finding::warning(field, code, message));
    }

    /// Reports what a test of a value says is wrong with it.
    fn test(&mut self, field: FieldPath, outcome: Result<(), String>) {
        if let Err(message) = outcome {
            self.error(field, "bad-value", message);
        }
    }
}
