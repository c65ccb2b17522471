//! MeshConfig (`mesh.dev`): the mesh's own settings, one object for the whole mesh.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;

/// Settings of the whole mesh.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "mesh.dev",
    version = "v1",
    kind = "MeshConfig",
    plural = "meshconfigs",
    status = "super::status::IstioStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "Settings of the whole mesh.",
    printcolumn = r#"{"name":"Trust Domain","type":"string","jsonPath":".spec.trustDomain"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct MeshConfigSpec {
    /// The trust domain of the mesh's identities; the default is `cluster.local`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<String>,
    /// Other trust domains whose identities count as this mesh's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trust_domain_aliases: Vec<String>,
    /// The namespace whose policies hold for the whole mesh; the default is that of the control plane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_namespace: Option<String>,
    /// What happens to traffic to unknown hosts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    /// Limit for connecting where no DestinationRule says otherwise; the default is 10 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<Duration>,
    /// Where access logs go, `/dev/stdout`; empty is nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_log_file: Option<String>,
    /// Text or JSON; the default is TEXT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_log_encoding: Option<AccessLogEncoding>,
    /// The format, with Envoy's command operators; empty is Istio's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_log_format: Option<String>,
    /// Where spans go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracing: Option<MeshTracing>,
}

/// What happens to traffic to unknown hosts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutboundTrafficPolicy {
    /// Whether it may leave; the default is ALLOW_ANY.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<OutboundMode>,
}

/// Whether traffic to unknown hosts may leave the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundMode {
    /// It goes where it wants.
    AllowAny,
    /// It is refused: HTTP with 502, TCP by closing.
    RegistryOnly,
}

/// Encodings of the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AccessLogEncoding {
    /// One line of text.
    Text,
    /// One JSON object per line.
    Json,
}

/// Where spans go, and how many.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeshTracing {
    /// The OTLP collector, as `http://host:port`; empty is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// Share of requests traced, from 0 to 100; the default is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampling_percentage: Option<f64>,
}
