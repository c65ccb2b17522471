//! A real Kubernetes cluster for the suite: the one that KUBECONFIG names, spoken to with kubectl and helm as users do.
//!
//! | module | what |
//! |---|---|
//! | [`tools`] | kubectl and helm as processes, with a limit to their time |
//! | [`wait`] | waiting for conditions, with deadlines |
//! | [`namespace`] | a namespace of a test's own, gone with the value |
//! | [`pods`] | the sample image in pods: manifests, commands in them, their logs |
//! | [`forward`] | a port of a pod on this machine |
//! | [`mesh`] | the mesh's chart, installed once for all tests that only use it |
//! | [`skip`] | what cannot run here says so and is counted |

pub mod forward;
pub mod mesh;
pub mod namespace;
pub mod pods;
pub mod skip;
pub mod tools;
pub mod wait;

pub use namespace::Namespace;
pub use tools::{Outcome, helm, json, kubectl};
