//! Policy kinds as users write them, one file per kind, each a type of its own from which its CRD is generated.
//!
//! Field names, nesting and defaults are Istio's; the few extensions say so. Nothing here decides anything:
//! `validate` judges objects, the control plane compiles them.

pub mod authorization_policy;
pub mod common;
pub mod compare;
pub mod definition;
pub mod destination_rule;
pub mod gateway;
pub mod mesh_config;
pub mod object;
pub mod peer_authentication;
pub mod proxy_config;
pub mod request_authentication;
pub mod service_entry;
pub mod sidecar;
pub mod status;
pub mod telemetry;
pub mod traffic_policy;
pub mod virtual_service;
pub mod workload_entry;
pub mod workload_group;

pub use authorization_policy::AuthorizationPolicy;
pub use destination_rule::DestinationRule;
pub use gateway::Gateway;
pub use mesh_config::MeshConfig;
pub use object::{Kind, Meta, Object, ObjectRef, Seniority, Timestamp};
pub use peer_authentication::PeerAuthentication;
pub use proxy_config::ProxyConfig;
pub use request_authentication::RequestAuthentication;
pub use service_entry::ServiceEntry;
pub use sidecar::Sidecar;
pub use telemetry::Telemetry;
pub use virtual_service::VirtualService;
pub use workload_entry::WorkloadEntry;
pub use workload_group::WorkloadGroup;
