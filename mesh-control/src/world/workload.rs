//! Workloads: WorkloadEntry, and the endpoints that a ServiceEntry lists, distilled.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::crd::workload_entry::WorkloadEntrySpec;
use mesh_api::model::{Labels, Locality};
use mesh_api::names::WorkloadId;

use super::Age;
use super::service::shared_labels;

const TLS_MODE: &str = "security.istio.io/tlsMode";
const WORKLOAD_NAME: &str = "service.istio.io/workload-name";

/// One workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Name and namespace of the WorkloadEntry. An endpoint that a ServiceEntry lists has its address and ports for a
    /// name.
    pub id: WorkloadId,
    /// Name of what owns it, for metrics.
    pub owner: Arc<str>,
    /// Where it is.
    pub address: Option<Address>,
    /// Its ports by the names of service ports.
    pub ports: BTreeMap<Arc<str>, u16>,
    /// Its labels: of the spec, and of the object where the spec does not say.
    pub labels: Labels,
    /// Where it runs.
    pub locality: Locality,
    /// Relative share of traffic.
    pub weight: u32,
    /// Service account, if named.
    pub service_account: Option<Arc<str>>,
    /// Whether it has a sidecar of the mesh: label `security.istio.io/tlsMode` says `istio`, or there is no such label
    /// but a service account.
    pub meshed: bool,
}

/// Where a workload is.
#[derive(Clone, Debug, PartialEq, Eq)]
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
            address: spec.address.as_deref().and_then(parse_address),
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

    /// Its address, if it is not a name.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self.address {
            Some(Address::Ip(address)) => Some(address),
            _ => None,
        }
    }
}

/// An address or a name; paths of Unix sockets are not supported, as validation says.
fn parse_address(text: &str) -> Option<Address> {
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
