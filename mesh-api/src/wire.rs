//! The wire protocol: delta discovery, the certificate service, and conversions between resources and the model.

/// Generated from `proto/discovery.proto`: the delta discovery service.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod discovery {
    tonic::include_proto!("envoy.service.discovery.v3");
}

/// Generated from `proto/ca.proto`: Istio's certificate service.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod ca {
    tonic::include_proto!("istio.v1.auth");
}

mod resource_type;

pub use resource_type::ResourceType;
