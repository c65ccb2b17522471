//! MeshConfig (`mesh.dev`): the mesh's own settings, one object for the whole mesh.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::status::{Condition, Generation, ValidationMessage};
use crate::duration::Duration;

/// Settings of the whole mesh.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "mesh.dev",
    version = "v1",
    kind = "MeshConfig",
    plural = "meshconfigs",
    status = "MeshConfigStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "Settings of the whole mesh.",
    printcolumn = r#"{"name":"mTLS","type":"string","jsonPath":".status.mtlsMode"}"#,
    printcolumn = r#"{"name":"Trust Domain","type":"string","jsonPath":".status.trustDomain"}"#,
    printcolumn = r#"{"name":"Version","type":"string","jsonPath":".status.controlPlaneVersion"}"#,
    printcolumn = r#"{"name":"Proxies in sync","type":"string","jsonPath":".status.proxiesInSync"}"#,
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

/// The state of the mesh, as its control plane sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct MeshConfigStatus {
    /// Whether workloads take plaintext where no narrower PeerAuthentication says: STRICT, PERMISSIVE or DISABLE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls_mode: Option<String>,
    /// The trust domain in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<String>,
    /// Versions of the control plane's replicas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_plane_version: Option<String>,
    /// Proxies that have acknowledged all that they were sent, of those that are connected: `12/12`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxies_in_sync: Option<String>,
    /// What holds for the object now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Findings of the last validation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub validation_messages: Vec<ValidationMessage>,
    /// The generation that the status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<Generation>,
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
