//! The whole mesh on one machine: control plane, sidecars and a shop of small services, as processes of one tree.

pub mod app;
pub mod proxied;
pub mod shop;
pub mod supervisor;
