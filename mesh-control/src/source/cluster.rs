//! What is read of Kubernetes' own kinds: only the fields that the world asks for, so that the rest of an object (its
//! status, its managed fields, its containers) is passed over while the bytes are read and never takes memory.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;

/// The kinds of Kubernetes that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClusterKind {
    /// `v1` Node: where pods run.
    Node,
    /// `v1` Pod: workloads.
    Pod,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice: who serves a Service.
    EndpointSlice,
    /// `networking.k8s.io` ServiceCIDR: addresses of Services.
    ServiceCidr,
}

impl ClusterKind {
    /// All of them, in the order in which a world is best told.
    pub const ALL: [Self; 5] = [
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::ServiceCidr,
    ];

    /// The name as it stands in objects.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }
}

/// An object of Kubernetes, as far as it is read.
#[derive(Clone, Debug)]
pub enum ClusterObject {
    /// A Node.
    Node(Box<Node>),
    /// A Pod.
    Pod(Box<Pod>),
    /// A Service.
    Service(Box<Service>),
    /// An EndpointSlice.
    EndpointSlice(Box<EndpointSlice>),
    /// A ServiceCIDR.
    ServiceCidr(Box<ServiceCidr>),
}

/// Which object of Kubernetes is meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterRef {
    /// Its kind.
    pub kind: ClusterKind,
    /// Its namespace; empty for kinds of the whole cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ClusterObject {
    /// Reads an object of a kind.
    ///
    /// # Errors
    /// When a field has a type that Kubernetes does not give it.
    pub fn from_value(kind: ClusterKind, value: serde_json::Value) -> Result<Self, serde_json::Error> {
        Ok(match kind {
            ClusterKind::Node => Self::Node(serde_json::from_value(value)?),
            ClusterKind::Pod => Self::Pod(serde_json::from_value(value)?),
            ClusterKind::Service => Self::Service(serde_json::from_value(value)?),
            ClusterKind::EndpointSlice => Self::EndpointSlice(serde_json::from_value(value)?),
            ClusterKind::ServiceCidr => Self::ServiceCidr(serde_json::from_value(value)?),
        })
    }

    /// Its metadata.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        match self {
            Self::Node(object) => &object.metadata,
            Self::Pod(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::ServiceCidr(object) => &object.metadata,
        }
    }

    /// Which object it is.
    #[must_use]
    pub fn reference(&self) -> ClusterRef {
        let metadata = self.metadata();
        ClusterRef {
            kind: match self {
                Self::Node(_) => ClusterKind::Node,
                Self::Pod(_) => ClusterKind::Pod,
                Self::Service(_) => ClusterKind::Service,
                Self::EndpointSlice(_) => ClusterKind::EndpointSlice,
                Self::ServiceCidr(_) => ClusterKind::ServiceCidr,
            },
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
        }
    }
}

/// What all objects have.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// Its namespace; empty for kinds of the whole cluster.
    pub namespace: String,
    /// The version to continue a watch from.
    pub resource_version: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// When it was created.
    pub creation_timestamp: Option<Time>,
    /// When its deletion was asked for.
    pub deletion_timestamp: Option<Time>,
    /// Who made it.
    pub owner_references: Vec<OwnerReference>,
}

/// Who made an object.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct OwnerReference {
    /// Kind of the owner.
    pub kind: String,
    /// Name of the owner.
    pub name: String,
    /// Whether it is the one that manages the object.
    pub controller: bool,
}

/// Where pods run.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Labels say region and zone.
    pub metadata: Metadata,
    /// The part that is read.
    pub spec: NodeSpec,
}

/// What is read of a Node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    /// Addresses of its pods.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
    /// As `podCIDRs`, where there is one family.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
}

impl Node {
    /// Addresses of its pods, as far as they are ranges.
    pub fn pod_ranges(&self) -> impl Iterator<Item = IpNet> {
        let one = std::iter::once(&self.spec.pod_cidr);
        let all = self.spec.pod_cidrs.iter().chain(one);
        all.filter_map(|text| text.parse::<IpNet>().ok())
            .map(|range| range.trunc())
    }
}

/// A workload.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Labels, annotations, owners.
    pub metadata: Metadata,
    /// The part that is read.
    pub spec: PodSpec,
    /// The part that is read.
    pub status: PodStatus,
}

/// What is read of a Pod's spec.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Its service account; empty is `default`.
    pub service_account_name: String,
    /// The Node that it runs on.
    pub node_name: String,
    /// Whether it has the addresses of its Node.
    pub host_network: bool,
    /// Containers, for the names of their ports.
    pub containers: Vec<Container>,
    /// Init containers; those that restart serve as the others do.
    pub init_containers: Vec<Container>,
}

/// What is read of a container.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Container {
    /// Declared ports.
    pub ports: Vec<ContainerPort>,
}

/// A port of a container.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// Its name.
    pub name: String,
    /// Its number.
    pub container_port: u16,
    /// TCP, UDP or SCTP; empty is TCP.
    pub protocol: String,
}

/// What is read of a Pod's status.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: String,
    /// Its first address.
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    /// All of its addresses.
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
    /// Of these, `Ready`.
    pub conditions: Vec<PodCondition>,
}

/// An address of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// The address.
    pub ip: String,
}

/// One aspect of a Pod's state.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PodCondition {
    /// The aspect.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
}

impl Pod {
    /// Its addresses, the first first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let first = std::iter::once(&self.status.pod_ip);
        let mut addresses = Vec::new();
        for text in first.chain(self.status.pod_ips.iter().map(|entry| &entry.ip)) {
            if let Ok(address) = text.parse::<IpAddr>()
                && !addresses.contains(&address.to_canonical())
            {
                addresses.push(address.to_canonical());
            }
        }
        addresses
    }

    /// Whether it has ended: its address may be somebody else's.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Whether it takes traffic.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let ready = |condition: &PodCondition| condition.kind == "Ready" && condition.status == "True";
        self.metadata.deletion_timestamp.is_none() && self.status.conditions.iter().any(ready)
    }
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Annotations say who sees it.
    pub metadata: Metadata,
    /// The part that is read.
    pub spec: ServiceSpec,
}

/// What is read of a Service.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`; empty is `ClusterIP`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its address, or `None` for a headless one.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// All of its addresses.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// The name that an `ExternalName` stands for.
    pub external_name: String,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Labels of the pods that serve it.
    pub selector: BTreeMap<String, String>,
    /// `IPv4` and `IPv6`, the preferred one first.
    pub ip_families: Vec<String>,
    /// `None` or `ClientIP`.
    pub session_affinity: String,
    /// `Cluster` or `Local`.
    pub internal_traffic_policy: String,
    /// Which endpoints are preferred.
    pub traffic_distribution: String,
}

/// A port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Its name; may be empty where it is the only one.
    pub name: String,
    /// The number that clients use.
    pub port: u16,
    /// The port of the pods.
    pub target_port: Option<TargetPort>,
    /// TCP, UDP or SCTP; empty is TCP.
    pub protocol: String,
    /// What is spoken.
    pub app_protocol: Option<String>,
}

/// A port of pods, by number or by the name that their containers give it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum TargetPort {
    /// A number; 0 is that of the Service's port.
    Number(u16),
    /// A name.
    Name(String),
}

/// Some of those who serve a Service.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// The label `kubernetes.io/service-name` says which Service.
    pub metadata: Metadata,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: String,
    /// Those who serve.
    pub endpoints: Option<Vec<Endpoint>>,
    /// Their ports, by the names of the Service's.
    pub ports: Option<Vec<EndpointPort>>,
}

impl EndpointSlice {
    /// Label that names the Service.
    pub const SERVICE: &str = "kubernetes.io/service-name";

    /// Name of the Service; `None` for a slice of nobody's.
    #[must_use]
    pub fn service(&self) -> Option<&str> {
        let name = self.metadata.labels.get(Self::SERVICE);
        name.map(String::as_str).filter(|name| !name.is_empty())
    }
}

/// One who serves.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// Its addresses, of which the first counts.
    pub addresses: Vec<String>,
    /// Whether it takes traffic.
    pub conditions: Conditions,
    /// Its name under the Service's, where the Service is headless.
    pub hostname: Option<String>,
    /// The Pod that it is.
    pub target_ref: Option<TargetRef>,
    /// Zone that it is in.
    pub zone: Option<String>,
}

/// Whether an endpoint takes traffic.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// It does; unknown is yes.
    pub ready: Option<bool>,
    /// It would, whether or not it is about to end; unknown is as `ready`.
    pub serving: Option<bool>,
    /// It is about to end.
    pub terminating: Option<bool>,
}

/// The object behind an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct TargetRef {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// A port of endpoints.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    /// Name of the Service's port.
    pub name: Option<String>,
    /// The number.
    pub port: Option<u16>,
    /// TCP, UDP or SCTP; unset is TCP.
    pub protocol: Option<String>,
}

/// Addresses of Services.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ServiceCidr {
    /// Its name.
    pub metadata: Metadata,
    /// The part that is read.
    pub spec: ServiceCidrSpec,
}

/// What is read of a ServiceCIDR.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ServiceCidrSpec {
    /// The ranges.
    pub cidrs: Vec<String>,
}
