//! Workloads: Pods, WorkloadEntries, and the endpoints that a ServiceEntry lists, distilled.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::crd::workload_entry::WorkloadEntrySpec;
use mesh_api::model::{Labels, Locality};
use mesh_api::names::WorkloadId;

use super::Age;
use super::service::shared_labels;
use super::texts::Texts;
use crate::source::cluster;

const TLS_MODE: &str = "security.istio.io/tlsMode";
const WORKLOAD_NAME: &str = "service.istio.io/workload-name";
const SIDECAR_STATUS: &str = "sidecar.istio.io/status";
const LOCALITY: &str = "istio-locality";

/// One workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Name and namespace of the Pod or WorkloadEntry. An endpoint that a ServiceEntry lists has its address and ports for a
    /// name.
    pub id: WorkloadId,
    /// Name of what owns it, for metrics.
    pub owner: Arc<str>,
    /// What says so.
    pub origin: Origin,
    /// Where it is.
    pub address: Option<Address>,
    /// Its further addresses, in a cluster with two families.
    pub further: Box<[IpAddr]>,
    /// Whether others have its addresses as well, so that these do not tell who it is: a pod with its Node's network.
    pub shares_address: bool,
    /// Whether it takes traffic.
    pub ready: bool,
    /// The Node that it runs on.
    pub node: Option<Arc<str>>,
    /// Its ports by the names of service ports.
    pub ports: Box<[(Arc<str>, u16)]>,
    /// Its labels: of the spec, and of the object where the spec does not say.
    pub labels: Labels,
    /// Where it runs.
    pub locality: Locality,
    /// Relative share of traffic.
    pub weight: u32,
    /// Service account, if named.
    pub service_account: Option<Arc<str>>,
    /// Whether it has a sidecar of the mesh: label `security.istio.io/tlsMode` says `istio`. Of a Pod the annotation
    /// `sidecar.istio.io/status` says so too, of a WorkloadEntry without such a label a service account.
    pub meshed: bool,
}

/// What says that a workload is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A WorkloadEntry, or a service that lists it.
    Entry,
    /// A Pod.
    Pod,
}

/// Where a workload is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// An address.
    Ip(IpAddr),
    /// A name to resolve.
    Name(Arc<str>),
}

impl Workload {
    /// Keeps of a WorkloadEntry what the compiler asks for.
    #[must_use]
    pub fn distil(age: &Age, labels: Option<&BTreeMap<String, String>>, spec: &WorkloadEntrySpec) -> Self {
        Self::new(age.name.clone(), age.namespace.clone(), labels, spec)
    }

    /// An endpoint that a ServiceEntry lists.
    #[must_use]
    pub fn listed(entry: &Age, spec: &WorkloadEntrySpec) -> Self {
        let mut name = spec.address.clone().unwrap_or_else(|| entry.name.to_string());
        for (port, number) in &spec.ports {
            name.push_str(&format!(",{port}={number}"));
        }
        let mut workload = Self::new(name.into(), entry.namespace.clone(), None, spec);
        if !workload.labels.contains_key(WORKLOAD_NAME) {
            workload.owner = entry.name.clone();
        }
        workload
    }

    fn new(
        name: Arc<str>,
        namespace: Arc<str>,
        object_labels: Option<&BTreeMap<String, String>>,
        spec: &WorkloadEntrySpec,
    ) -> Self {
        let mut labels = object_labels.map(shared_labels).unwrap_or_default();
        labels.extend(shared_labels(&spec.labels));
        let service_account: Option<Arc<str>> = spec
            .service_account
            .as_deref()
            .filter(|account| !account.is_empty())
            .map(Arc::from);
        let meshed = match labels.get(TLS_MODE) {
            Some(mode) => &**mode == "istio",
            None => service_account.is_some(),
        };
        Self {
            owner: labels.get(WORKLOAD_NAME).unwrap_or(&name).clone(),
            id: WorkloadId { name, namespace },
            origin: Origin::Entry,
            address: spec.address.as_deref().and_then(parse_address),
            further: Box::default(),
            shares_address: false,
            ready: true,
            node: None,
            ports: spec
                .ports
                .iter()
                .filter_map(|(name, port)| Some((name.as_str().into(), u16::try_from(*port).ok()?)))
                .collect(),
            locality: spec.locality.as_deref().map(parse_locality).unwrap_or_default(),
            weight: spec.weight.unwrap_or(1).max(1),
            meshed,
            service_account,
            labels,
        }
    }

    /// An endpoint of which nothing is known but where it is.
    #[must_use]
    pub fn unknown(service: &Age, name: Arc<str>, address: Address, zone: Option<&str>) -> Self {
        Self {
            id: WorkloadId {
                name,
                namespace: service.namespace.clone(),
            },
            owner: service.name.clone(),
            origin: Origin::Entry,
            address: Some(address),
            further: Box::default(),
            shares_address: false,
            ready: true,
            node: None,
            ports: Box::default(),
            labels: Labels::new(),
            locality: Locality {
                zone: zone.unwrap_or_default().into(),
                ..Locality::default()
            },
            weight: 1,
            service_account: None,
            meshed: false,
        }
    }

    /// The endpoint of a service that is found by a name.
    #[must_use]
    pub fn outside(service: &Age, host: &str) -> Self {
        Self::unknown(service, host.into(), Address::Name(host.into()), None)
    }

    /// Keeps of a Pod what the compiler asks for; `None` for one that has ended.
    #[must_use]
    pub fn of_pod(pod: &cluster::Pod, texts: &mut Texts) -> Option<Self> {
        if pod.has_ended() {
            return None;
        }
        let metadata = &pod.metadata;
        let labels: Labels = metadata
            .labels
            .iter()
            .map(|(name, value)| (texts.share(name), texts.share(value)))
            .collect();
        let mut addresses = pod.addresses().into_iter();
        let account = match pod.spec.service_account_name.as_str() {
            "" => "default",
            account => account,
        };
        let ports = pod.spec.containers.iter().chain(&pod.spec.init_containers);
        let ports = ports.flat_map(|container| &container.ports).filter(|port| {
            matches!(port.protocol.as_str(), "" | "TCP") && !port.name.is_empty() && port.container_port > 0
        });
        Some(Self {
            id: WorkloadId {
                name: metadata.name.as_str().into(),
                namespace: texts.share(&metadata.namespace),
            },
            owner: texts.share(
                labels
                    .get(WORKLOAD_NAME)
                    .map_or_else(|| owner(metadata), |name| &**name),
            ),
            origin: Origin::Pod,
            address: addresses.next().map(Address::Ip),
            further: addresses.collect(),
            shares_address: pod.spec.host_network,
            ready: pod.is_ready(),
            node: Some(pod.spec.node_name.as_str())
                .filter(|name| !name.is_empty())
                .map(|name| texts.share(name)),
            ports: ports
                .map(|port| (texts.share(&port.name), port.container_port))
                .collect(),
            locality: labels
                .get(LOCALITY)
                .map(|text| parse_locality(&text.replace('.', "/")))
                .unwrap_or_default(),
            weight: 1,
            service_account: Some(texts.share(account)),
            meshed: labels.get(TLS_MODE).is_some_and(|mode| &**mode == "istio")
                || metadata.annotations.contains_key(SIDECAR_STATUS),
            labels,
        })
    }

    /// The port that it has under a name.
    #[must_use]
    pub fn port(&self, name: &str) -> Option<u16> {
        let named = self.ports.iter().find(|(known, _)| **known == *name);
        named.map(|(_, number)| *number)
    }

    /// Its address, if it is not a name.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self.address {
            Some(Address::Ip(address)) => Some(address),
            _ => None,
        }
    }

    /// The addresses at which it, and nobody else, is.
    pub fn own_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let all = self.ip().into_iter().chain(self.further.iter().copied());
        all.filter(|_| !self.shares_address)
    }
}

/// Name of what a Pod belongs to, as metrics have it: the Deployment of its ReplicaSet, the CronJob of its Job, else what
/// controls it, else the Pod itself.
fn owner(metadata: &cluster::Metadata) -> &str {
    let mut owners = metadata.owner_references.iter();
    // A static pod is its Node's, which says nothing about it.
    let Some(owner) = owners.find(|owner| owner.controller && owner.kind != "Node") else {
        return &metadata.name;
    };
    let name = owner.name.as_str();
    let shorter = match owner.kind.as_str() {
        "ReplicaSet" => metadata
            .labels
            .get("pod-template-hash")
            .and_then(|hash| name.strip_suffix(hash.as_str())?.strip_suffix('-')),
        // A CronJob names its Jobs by the minute that they are for.
        "Job" => name
            .rsplit_once('-')
            .filter(|(_, time)| (8..=10).contains(&time.len()) && time.bytes().all(|c| c.is_ascii_digit()))
            .map(|(name, _)| name),
        _ => None,
    };
    shorter.filter(|shorter| !shorter.is_empty()).unwrap_or(name)
}

/// An address or a name; paths of Unix sockets are not supported, as validation says.
pub(super) fn parse_address(text: &str) -> Option<Address> {
    if text.is_empty() || text.starts_with("unix:") {
        return None;
    }
    Some(match text.parse::<IpAddr>() {
        Ok(address) => Address::Ip(address.to_canonical()),
        Err(_) => Address::Name(super::hosts::normal(text).into()),
    })
}

fn parse_locality(text: &str) -> Locality {
    let mut parts = text.splitn(3, '/').map(Arc::<str>::from);
    let mut next = || parts.next().unwrap_or_default();
    Locality {
        region: next(),
        zone: next(),
        subzone: next(),
    }
}
