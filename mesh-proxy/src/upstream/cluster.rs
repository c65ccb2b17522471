//! A cluster in use: its policy, its endpoints, and the choice among them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_api::model::{self, ClientTls, EndpointAddress, EndpointSlice, Health};

use super::balance::EndpointSet;
use super::clock::Clock;
use super::endpoint::{Endpoint, Security};
use super::limits::{ClusterState, Overflow, RetryPermit};
use super::outlier::{self, Outcome};
use super::registry::Upstreams;
use crate::tls::outbound::{ExpectedPeer, server_name};

/// Endpoints of passthrough clusters that are remembered.
const PASSTHROUGH_MOST: usize = 4096;

/// A set of endpoints with the policy towards them.
#[derive(Debug)]
pub struct Cluster {
    /// The policy.
    pub model: Arc<model::Cluster>,
    /// Counts, which outlive this version of the policy.
    pub state: Arc<ClusterState>,
    endpoints: ArcSwap<EndpointSet>,
    slices: Mutex<Vec<Arc<EndpointSlice>>>,
    passthrough: Mutex<HashMap<SocketAddr, Arc<Endpoint>, foldhash::fast::RandomState>>,
    upstreams: Weak<Upstreams>,
    clock: Clock,
    resolved: tokio::sync::Notify,
    me: Weak<Self>,
}

/// No endpoint can take the request (`UH`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NoEndpoint {
    /// The cluster has none.
    #[error("the cluster has no endpoints")]
    Empty,
    /// Its names have no addresses (yet).
    #[error("the names of the cluster's endpoints do not resolve")]
    Unresolved,
    /// None is ready.
    #[error("no endpoint is ready")]
    NotReady,
    /// All that are ready were ejected by outlier detection.
    #[error("all endpoints are ejected by outlier detection")]
    Ejected,
}

impl Cluster {
    pub(super) fn new(
        model: Arc<model::Cluster>,
        state: Arc<ClusterState>,
        upstreams: Weak<Upstreams>,
        clock: Clock,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            endpoints: ArcSwap::from_pointee(EndpointSet::new(Vec::new(), NoEndpoint::Empty, &model.balancer)),
            model,
            state,
            slices: Mutex::default(),
            passthrough: Mutex::default(),
            upstreams,
            clock,
            resolved: tokio::sync::Notify::new(),
            me: me.clone(),
        })
    }

    /// Takes the current slices. Endpoints whose facts did not change stay the same objects.
    pub fn set_endpoints(&self, slices: &[Arc<EndpointSlice>]) {
        let mut current = self.slices.lock().unwrap_or_else(PoisonError::into_inner);
        *current = slices.to_vec();
        self.rebuild(&current);
    }

    /// Looks at the names' addresses again.
    pub(super) fn names_changed(&self) {
        let current = self.slices.lock().unwrap_or_else(PoisonError::into_inner);
        self.rebuild(&current);
        self.resolved.notify_waiters();
    }

    fn rebuild(&self, slices: &[Arc<EndpointSlice>]) {
        let Some(upstreams) = self.upstreams.upgrade() else {
            return;
        };
        let before = self.endpoints.load();
        let mut known: HashMap<SocketAddr, Vec<&Arc<Endpoint>>> = HashMap::new();
        for endpoint in before.endpoints() {
            known.entry(endpoint.address).or_default().push(endpoint);
        }
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::new();
        let mut why_none = NoEndpoint::Empty;
        for facts in slices.iter().flat_map(|slice| &slice.endpoints) {
            let selected = self
                .model
                .selector
                .iter()
                .all(|(key, value)| facts.workload.labels.get(key) == Some(value));
            if !selected {
                continue;
            }
            if facts.health != Health::Healthy {
                why_none = NoEndpoint::NotReady;
                continue;
            }
            let Some(addresses) = self.addresses(&upstreams, &facts.address) else {
                why_none = NoEndpoint::Unresolved;
                continue;
            };
            for ip in addresses {
                let address = SocketAddr::new(ip, facts.port);
                let same = known
                    .get(&address)
                    .and_then(|same| same.iter().find(|endpoint| endpoint.facts == *facts));
                endpoints.push(match same {
                    Some(endpoint) => Arc::clone(endpoint),
                    None => self.endpoint(&upstreams, facts.clone(), address),
                });
            }
        }
        // An order that every proxy agrees on, and one entry an address.
        endpoints.sort_by_key(|endpoint| endpoint.address);
        endpoints.dedup_by_key(|endpoint| endpoint.address);
        self.endpoints
            .store(Arc::new(EndpointSet::new(endpoints, why_none, &self.model.balancer)));
    }

    fn addresses(&self, upstreams: &Upstreams, address: &EndpointAddress) -> Option<Vec<IpAddr>> {
        match address {
            EndpointAddress::Ip(ip) => Some(vec![*ip]),
            EndpointAddress::Name(name) => upstreams.names.addresses(name, &self.me),
            EndpointAddress::NameRoundRobin(name) => {
                let mut addresses = upstreams.names.addresses(name, &self.me)?;
                addresses.truncate(1);
                Some(addresses)
            }
        }
    }

    fn endpoint(&self, upstreams: &Upstreams, facts: model::Endpoint, address: SocketAddr) -> Arc<Endpoint> {
        let state = upstreams.endpoint_state(&self.model.service.host, self.model.port, address);
        let security = security(&self.model, &facts);
        Arc::new(Endpoint::new(facts, address, state, Arc::clone(&self.state), security))
    }

    /// Chooses an endpoint. `hash` places the request on a ring; endpoints in `tried` are avoided while there are others.
    ///
    /// # Errors
    /// When there is none that is ready and not ejected.
    pub fn pick(&self, hash: Option<u64>, tried: &[Arc<Endpoint>]) -> Result<Arc<Endpoint>, NoEndpoint> {
        let clock = self.model.outlier.as_ref().map(|_| &self.clock);
        self.endpoints.load().pick(hash, tried, &self.state.cursor, clock)
    }

    /// Waits, at most so long, for the first answer to every name among the endpoints. Returns at once for addresses.
    pub async fn resolved(&self, within: Duration) {
        if !self.endpoints.load().is_unresolved() {
            return;
        }
        let wait = async {
            loop {
                let changed = self.resolved.notified();
                if !self.endpoints.load().is_unresolved() {
                    return;
                }
                changed.await;
            }
        };
        // Without an answer in time, `pick` says why there is no endpoint.
        let _ = tokio::time::timeout(within, wait).await;
    }

    /// The endpoint at the address that the application asked for, of a passthrough cluster.
    #[must_use]
    pub fn passthrough_endpoint(&self, address: SocketAddr) -> Option<Arc<Endpoint>> {
        let upstreams = self.upstreams.upgrade()?;
        let mut known = self.passthrough.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(endpoint) = known.get(&address) {
            return Some(Arc::clone(endpoint));
        }
        if known.len() >= PASSTHROUGH_MOST {
            let unused = |endpoint: &Arc<Endpoint>| Arc::strong_count(endpoint) == 1;
            let victim = known
                .iter()
                .find(|(_, endpoint)| unused(endpoint))
                .or_else(|| known.iter().next());
            if let Some(victim) = victim.map(|(address, _)| *address)
                && let Some(endpoint) = known.remove(&victim)
            {
                endpoint.state.leave();
            }
        }
        let facts = model::Endpoint {
            address: EndpointAddress::Ip(address.ip()),
            port: address.port(),
            workload: Arc::default(),
            weight: 1,
            mutual_tls: false,
            health: Health::Healthy,
        };
        let endpoint = self.endpoint(&upstreams, facts, address);
        endpoint.state.join();
        known.insert(address, Arc::clone(&endpoint));
        Some(endpoint)
    }

    /// Counts a retry against `maxRetries` or the retry budget, until the permit is dropped.
    ///
    /// # Errors
    /// When too many are active already.
    pub fn admit_retry(&self) -> Result<RetryPermit, Overflow> {
        self.state.admit_retry(self.model.retry_budget.as_ref())
    }

    /// Tells outlier detection how a try ended: once a try, by whoever waited for its response.
    pub fn report(&self, endpoint: &Endpoint, outcome: Outcome) {
        let Some(rules) = &self.model.outlier else { return };
        if endpoint.state.health.record(outcome, rules) {
            let _one_at_a_time = self.state.ejecting.lock().unwrap_or_else(PoisonError::into_inner);
            if outlier::eject(endpoint, self.endpoints.load().endpoints(), rules, &self.clock) {
                metrics::counter!("mesh_upstream_ejections_total", "cluster" => Arc::clone(self.state.name()))
                    .increment(1);
            }
        }
    }

    /// All endpoints that are ready, ejected or not.
    #[must_use]
    pub fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.endpoints.load().endpoints().to_vec()
    }

    /// Whether outlier detection leaves an endpoint alone at present.
    #[must_use]
    pub fn is_ejected(&self, endpoint: &Endpoint) -> bool {
        self.model.outlier.is_some() && endpoint.state.health.is_ejected(&self.clock)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let known = self.passthrough.get_mut().unwrap_or_else(PoisonError::into_inner);
        for endpoint in known.values() {
            endpoint.state.leave();
        }
    }
}

/// Istio's rules: who is expected is what a DestinationRule names, else the endpoint's own identity, else the service's
/// accounts.
fn security(cluster: &model::Cluster, facts: &model::Endpoint) -> Security {
    let (names, sni) = match &cluster.tls {
        ClientTls::Disable => return Security::Plaintext,
        ClientTls::Auto if !facts.mutual_tls => return Security::Plaintext,
        ClientTls::Auto => (&[][..], None),
        ClientTls::IstioMutual { subject_alt_names, sni } => (&subject_alt_names[..], sni.as_deref()),
    };
    let expected = match (names, &facts.workload.identity) {
        ([], Some(own)) => ExpectedPeer::from(own.clone()),
        ([], None) => parsed(&cluster.subject_alt_names),
        (names, _) => parsed(names),
    };
    let sni = match sni {
        Some(sni) => server_name(sni),
        None => server_name(&cluster.sni()),
    };
    Security::MutualTls { expected, sni }
}

/// Names that are no identities of a mesh match nobody.
fn parsed(names: &[Arc<str>]) -> ExpectedPeer {
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

#[cfg(test)]
mod tests;
