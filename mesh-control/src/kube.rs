//! The control plane's dealings with a Kubernetes API server, other than reading policy: who callers are, where the
//! authority's keys are kept, and everything that is written.
//!
//! Whatever is read here stays in force while the API server is away. Only the leader among the replicas writes what
//! they share; the authority's Secret, which must exist before anybody can be served, is made by whoever comes first.

mod call;
pub mod cleanup;
mod client;
pub mod conditions;
pub mod leader;
pub mod object_status;
pub mod replica;
pub mod root_cert;
pub mod secrets;
pub mod token_review;

#[cfg(test)]
pub(crate) mod fake;

use std::collections::BTreeMap;

pub use call::CallError;
pub use client::{ClientError, connect};

/// Who we are among the managers of fields.
pub const MANAGER: &str = "mesh-control";
/// The Lease that replicas elect their leader with.
pub const LEASE: &str = "mesh-control-leader";
/// The Secret of the authority that the control plane makes itself.
pub const CA_SECRET: &str = "mesh-ca";
/// The Secret of a plugged-in authority, as in Istio; it comes first.
pub const PLUGGED_IN_SECRET: &str = "cacerts";
/// The ConfigMap, in every namespace of the mesh, that tells pods the mesh's roots.
pub const ROOT_CERT_CONFIG_MAP: &str = "mesh-ca-root-cert";

/// Labels of every object that the control plane makes.
fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/part-of".to_owned(), "mesh".to_owned()),
        ("app.kubernetes.io/managed-by".to_owned(), MANAGER.to_owned()),
    ])
}
