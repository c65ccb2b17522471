//! The mesh on a real Kubernetes cluster: `e2e/cluster test` runs these, in the cluster that KUBECONFIG names.

mod chart;
mod kinds;
mod lifecycle;
mod operations;
mod status;
mod traffic;
mod walk;
mod webhook;
