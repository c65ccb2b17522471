//! The wire protocol: delta discovery, the certificate service, and conversions between resources and the model.
//!
//! A resource goes out as `model -> message -> bytes` and comes in as `bytes -> message -> model`. Encoding is
//! deterministic, so a version can be a hash of the bytes. Decoding checks everything that the model promises and names
//! the field that is wrong: what comes out needs no further validation. The generated messages never leave this module.

use bytes::Bytes;
use prost::Message;

use crate::model::{Destination, EndpointSlice, Inbound, MeshSettings, Workload};

mod authorization;
mod destination;
mod endpoint;
mod field;
mod inbound;
mod resource_type;
mod route;
mod settings;
mod text;
mod traffic;

#[cfg(test)]
mod tests;

pub use resource_type::ResourceType;

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

/// Generated from `proto/mesh.proto`: the resource messages.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod proto {
    tonic::include_proto!("mesh.v1");
}

/// Why bytes are not a resource.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes are not the protobuf message that the type promises.
    #[error("{resource} resource: not a protobuf message: {reason}")]
    Malformed {
        /// What it should have been.
        resource: ResourceType,
        /// What the protobuf decoder says.
        reason: String,
    },
    /// A field holds what the model cannot have.
    #[error("{resource} resource: {field}: {reason}")]
    Field {
        /// What it should have been.
        resource: ResourceType,
        /// Path of the field, such as `routes[2].matches[0].path`.
        field: String,
        /// What is wrong with its value.
        reason: String,
    },
}

/// Encodes the mesh's settings.
#[must_use]
pub fn encode_mesh(settings: &MeshSettings) -> Bytes {
    settings::encode(settings).encode_to_vec().into()
}

/// Encodes how a workload receives traffic.
#[must_use]
pub fn encode_inbound(inbound: &Inbound) -> Bytes {
    inbound::encode(inbound).encode_to_vec().into()
}

/// Encodes routes, clusters and policy towards a service port.
#[must_use]
pub fn encode_destination(destination: &Destination) -> Bytes {
    destination::encode(destination).encode_to_vec().into()
}

/// Encodes endpoints; texts and workloads that repeat are written once.
#[must_use]
pub fn encode_slice(slice: &EndpointSlice) -> Bytes {
    endpoint::encode_slice(slice).encode_to_vec().into()
}

/// Encodes a workload.
#[must_use]
pub fn encode_workload(workload: &Workload) -> Bytes {
    endpoint::encode_workload(workload).encode_to_vec().into()
}

/// Decodes the mesh's settings.
///
/// # Errors
/// When the bytes are malformed, or a field is (named in the error).
pub fn decode_mesh(bytes: &[u8]) -> Result<MeshSettings, WireError> {
    decode(ResourceType::Mesh, bytes, settings::decode)
}

/// Decodes how a workload receives traffic. What this release does not know in an authorization rule makes the rule
/// [invalid](crate::model::Rule::invalid), which denies; it never vanishes.
///
/// # Errors
/// When the bytes are malformed, or a field is (named in the error).
pub fn decode_inbound(bytes: &[u8]) -> Result<Inbound, WireError> {
    decode(ResourceType::Inbound, bytes, inbound::decode)
}

/// Decodes routes, clusters and policy towards a service port.
///
/// # Errors
/// When the bytes are malformed, or a field is (named in the error).
pub fn decode_destination(bytes: &[u8]) -> Result<Destination, WireError> {
    decode(ResourceType::Destination, bytes, destination::decode)
}

/// Decodes endpoints; equal workloads and texts of a slice are shared in memory.
///
/// # Errors
/// When the bytes are malformed, or a field is (named in the error).
pub fn decode_slice(bytes: &[u8]) -> Result<EndpointSlice, WireError> {
    decode(ResourceType::EndpointSlice, bytes, endpoint::decode_slice)
}

/// Decodes a workload.
///
/// # Errors
/// When the bytes are malformed, or a field is (named in the error).
pub fn decode_workload(bytes: &[u8]) -> Result<Workload, WireError> {
    decode(ResourceType::Workload, bytes, endpoint::decode_workload)
}

fn decode<P: Message + Default, M>(
    resource: ResourceType,
    bytes: &[u8],
    convert: impl FnOnce(P) -> Result<M, field::FieldError>,
) -> Result<M, WireError> {
    let message = P::decode(bytes).map_err(|error| WireError::Malformed {
        resource,
        reason: error.to_string(),
    })?;
    convert(message).map_err(|error| WireError::Field {
        resource,
        field: error.path,
        reason: error.reason,
    })
}
