//! One address that a cluster's requests go to, and what is remembered of it.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use mesh_api::model;
use rustls::pki_types::ServerName;

use super::limits::{ClusterState, Overflow};
use super::outlier::Health;
use crate::tls::outbound::ExpectedPeer;

/// An endpoint as one version of a cluster sees it. The same object stays in use while its facts stay the same.
#[derive(Debug)]
pub struct Endpoint {
    /// What the control plane says of it.
    pub facts: model::Endpoint,
    /// Where it is.
    pub address: SocketAddr,
    /// What is remembered of it, shared by everybody who sends to this address of this service.
    pub state: Arc<EndpointState>,
    /// Counts and limits of its cluster.
    pub cluster: Arc<ClusterState>,
    /// How connections to it are secured.
    pub security: Arc<Security>,
    pub(super) key: PoolKey,
    extension: OnceLock<Arc<dyn Any + Send + Sync>>,
}

/// What is remembered of an address of a service, whatever configuration comes and goes.
#[derive(Debug)]
pub struct EndpointState {
    id: u64,
    in_flight: AtomicU32,
    /// Endpoint sets that hold it.
    members: AtomicU32,
    pub(super) health: Health,
}

/// How a connection is secured.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    /// Not at all.
    Plaintext,
    /// By the mesh's mutual TLS.
    MutualTls {
        /// Identities of which the endpoint must have one; nobody, when none is known.
        expected: ExpectedPeer,
        /// Server name of the handshake.
        sni: ServerName<'static>,
    },
}

/// Connections that may serve each other's requests have the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PoolKey {
    endpoint: u64,
    cluster: u64,
    security: u64,
    protocol: PoolProtocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum PoolProtocol {
    Http1,
    Http2,
    Tcp,
}

impl Endpoint {
    pub(super) fn new(
        facts: model::Endpoint,
        address: SocketAddr,
        state: Arc<EndpointState>,
        cluster: Arc<ClusterState>,
        security: Security,
    ) -> Self {
        let (security_id, security) = cluster.intern(security);
        let key = PoolKey {
            endpoint: state.id,
            cluster: cluster.id,
            security: security_id,
            protocol: PoolProtocol::Tcp,
        };
        Self {
            facts,
            address,
            state,
            cluster,
            security,
            key,
            extension: OnceLock::new(),
        }
    }

    /// Whether connections to it are the mesh's mutual TLS.
    #[must_use]
    pub fn is_mutual_tls(&self) -> bool {
        matches!(*self.security, Security::MutualTls { .. })
    }

    /// A place for what another module prepares once for an endpoint, such as metric handles. The first to ask decides
    /// the type; who asks for another type gets nothing.
    pub fn extension<T: Any + Send + Sync>(&self, prepare: impl FnOnce() -> Arc<T>) -> Option<&T> {
        self.extension.get_or_init(|| prepare()).downcast_ref()
    }

    pub(super) fn key(&self, protocol: PoolProtocol) -> PoolKey {
        PoolKey { protocol, ..self.key }
    }

    pub(super) fn weight(&self) -> u32 {
        self.facts.weight.max(1)
    }
}

impl EndpointState {
    pub(super) fn new(id: u64) -> Self {
        Self {
            id,
            in_flight: AtomicU32::new(0),
            members: AtomicU32::new(0),
            health: Health::default(),
        }
    }

    /// Requests and connections that it works on, of the whole proxy.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// How often it was ejected.
    #[must_use]
    pub fn ejections(&self) -> u64 {
        self.health.ejections()
    }

    pub(super) fn join(&self) {
        self.members.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn leave(&self) {
        self.members.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether no cluster has it any more.
    pub(super) fn is_gone(&self) -> bool {
        self.members.load(Ordering::Relaxed) == 0
    }
}

/// Counts towards an endpoint's load until it is dropped.
#[derive(Debug)]
#[must_use = "load counts only while it is held"]
pub struct InFlight(Arc<Endpoint>);

impl InFlight {
    pub(super) fn new(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.state.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(endpoint))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.state.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An active request: counts towards its endpoint's load and its cluster's `http2MaxRequests` until it is dropped.
#[derive(Debug)]
#[must_use = "a request counts only while its lease is held"]
pub struct Lease(InFlight);

impl Lease {
    pub(super) fn new(endpoint: &Arc<Endpoint>) -> Result<Self, Overflow> {
        endpoint.cluster.enter_request()?;
        Ok(Self(InFlight::new(endpoint)))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.0.cluster.leave_request();
    }
}
