//! WorkloadEntry (`networking.istio.io`): one workload outside Kubernetes.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A workload: where it is and who it is.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "networking.istio.io",
    version = "v1",
    kind = "WorkloadEntry",
    plural = "workloadentries",
    shortname = "we",
    category = "istio-io",
    category = "networking-istio-io",
    namespaced,
    status = "super::status::IstioStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "A workload: where it is and who it is.",
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Address","type":"string","jsonPath":".spec.address"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadEntrySpec {
    /// An IP address, a name to resolve, or `unix://` and a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Ports of the workload, by the name of the service's port.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u32>,
    /// Labels, for selectors and subsets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The network that the workload is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Where it runs, as `region/zone/sub_zone`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<String>,
    /// Share of traffic, in proportion to the sum of the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// The service account of its identity, in the namespace of the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
}
