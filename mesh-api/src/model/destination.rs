//! What a proxy needs to know to send traffic to one port of one service.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::{Balancer, ClientTls, ConnectionPool, HttpRoute, OutlierDetection, Protocol, RetryBudget, WeightedCluster};
use crate::names::{Hostname, ObjectRef};

/// The answer to "what is at this authority and port" for one kind of client.
#[derive(Clone, Debug, PartialEq)]
pub struct Destination {
    /// The service.
    pub service: ServiceRef,
    /// Service port.
    pub port: u16,
    /// Declared protocol.
    pub protocol: Protocol,
    /// Inside the mesh or not.
    pub location: Location,
    /// HTTP rules, first match wins; a request that none matches gets 404 `NR`.
    pub routes: Vec<HttpRoute>,
    /// Where TCP goes: one leg, or several with weights.
    pub tcp: SmallVec<[WeightedCluster; 1]>,
    /// Clusters that routes and `tcp` refer to by index.
    pub clusters: Vec<Arc<Cluster>>,
}

/// A service as metrics and logs name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceRef {
    /// `reviews.default.svc.cluster.local`.
    pub host: Hostname,
    /// `reviews`.
    pub name: Arc<str>,
    /// `default`.
    pub namespace: Arc<str>,
}

/// `ServiceEntry.location`, and all Kubernetes services are internal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Location {
    /// Workloads of the mesh: identities are expected, peer metadata exchanged.
    #[default]
    MeshInternal,
    /// Outside: plaintext or the application's own TLS.
    MeshExternal,
}

/// A set of endpoints with the policy towards them: service, port, and subset.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// The service; may differ from the destination's, since rules send requests to other services.
    pub service: ServiceRef,
    /// Service port.
    pub port: u16,
    /// Subset name.
    pub subset: Option<Arc<str>>,
    /// Labels that an endpoint's workload must have (the subset's).
    pub selector: BTreeMap<Arc<str>, Arc<str>>,
    /// Inside the mesh or not.
    pub location: Location,
    /// Protocol of the port.
    pub protocol: Protocol,
    /// Where endpoints come from.
    pub endpoints: EndpointSource,
    /// How an endpoint is chosen.
    pub balancer: Balancer,
    /// Limits.
    pub pool: ConnectionPool,
    /// Passive health checks.
    pub outlier: Option<OutlierDetection>,
    /// Bound of retries, if any was set.
    pub retry_budget: Option<RetryBudget>,
    /// Security of connections.
    pub tls: ClientTls,
    /// Identities that an endpoint may have where its own is not known: the service's accounts (`subjectAltNames`).
    pub subject_alt_names: Vec<Arc<str>>,
    /// DestinationRules that made this policy.
    pub origins: Vec<ObjectRef>,
}

impl Cluster {
    /// Envoy's and Istio's name of the cluster, `outbound|9080|v1|reviews.default.svc.cluster.local`.
    #[must_use]
    pub fn name(&self) -> String {
        format!(
            "outbound|{}|{}|{}",
            self.port,
            self.subset.as_deref().unwrap_or_default(),
            self.service.host
        )
    }

    /// SNI of mutual TLS, `outbound_.9080_.v1_.reviews.default.svc.cluster.local`.
    #[must_use]
    pub fn sni(&self) -> String {
        format!(
            "outbound_.{}_.{}_.{}",
            self.port,
            self.subset.as_deref().unwrap_or_default(),
            self.service.host
        )
    }
}

/// Where a cluster's endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointSource {
    /// Endpoint slices of these names.
    Slices(Vec<Arc<str>>),
    /// The address that the application asked for (resolution `NONE`).
    Passthrough,
    /// There is no such cluster: requests get 503 `NC`.
    Missing(Missing),
}

/// Why a cluster that a rule names is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No such service.
    Host,
    /// The service has no such port.
    Port,
    /// No DestinationRule defines the subset.
    Subset,
    /// A DestinationRule asks for TLS that this release does not originate; plaintext would be no substitute.
    Tls,
}
