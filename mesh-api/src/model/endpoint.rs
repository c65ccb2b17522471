//! Workloads, and where they are reached.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::identity::SpiffeId;

/// Labels of a workload.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// What is known of a workload: the facts of metrics, logs and policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Name of what owns it: the deployment, or the WorkloadEntry (`destination_workload`).
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Identity that its certificates carry; `None` when it has no sidecar of the mesh.
    pub identity: Option<SpiffeId>,
    /// Its labels.
    pub labels: Labels,
    /// Cluster id, `Kubernetes` by default in Istio.
    pub cluster: Arc<str>,
    /// Where it runs.
    pub locality: Locality,
}

const UNKNOWN: &str = "unknown";

impl Workload {
    fn first_label(&self, names: &[&str]) -> Option<&str> {
        names
            .iter()
            .find_map(|name| self.labels.get(*name))
            .map(|value| &**value)
    }

    /// `app` label, or `unknown`.
    #[must_use]
    pub fn app(&self) -> &str {
        self.first_label(&["app"]).unwrap_or(UNKNOWN)
    }

    /// `version` label, or `unknown`.
    #[must_use]
    pub fn version(&self) -> &str {
        self.first_label(&["version"]).unwrap_or(UNKNOWN)
    }

    /// Istio's canonical service: label, else `app`, else the workload's name.
    #[must_use]
    pub fn canonical_service(&self) -> &str {
        self.first_label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"])
            .unwrap_or(&self.name)
    }

    /// Istio's canonical revision: label, else `version`, else `latest`.
    #[must_use]
    pub fn canonical_revision(&self) -> &str {
        self.first_label(&[
            "service.istio.io/canonical-revision",
            "app.kubernetes.io/version",
            "version",
        ])
        .unwrap_or("latest")
    }
}

/// `region/zone/subzone`; empty parts are unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    /// Region.
    pub region: Arc<str>,
    /// Zone.
    pub zone: Arc<str>,
    /// Subzone.
    pub subzone: Arc<str>,
}

/// A part of a service port's endpoints: a change of one re-sends its slice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointSlice {
    /// In no particular order.
    pub endpoints: Vec<Endpoint>,
}

/// One address that serves the port.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Where.
    pub address: EndpointAddress,
    /// Workload port.
    pub port: u16,
    /// Who.
    pub workload: Arc<Workload>,
    /// Relative share of traffic, at least 1.
    pub weight: u32,
    /// Whether the workload takes the mesh's mutual TLS on this port.
    pub mutual_tls: bool,
    /// Whether it takes traffic.
    pub health: Health,
}

/// An address, or a name that the proxy resolves (resolution `DNS`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndpointAddress {
    /// An address.
    Ip(IpAddr),
    /// A DNS name; every address of it is an endpoint.
    Name(Arc<str>),
    /// A DNS name of which one address at a time is used (`DNS_ROUND_ROBIN`).
    NameRoundRobin(Arc<str>),
}

/// Whether an endpoint takes traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// Takes requests.
    #[default]
    Healthy,
    /// Finishes what it has; no new requests.
    Draining,
    /// Not ready.
    Unhealthy,
}
