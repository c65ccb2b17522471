//! What outlives configuration, for all workers: state by cluster name, and by service and address.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use mesh_api::model;
use mesh_api::names::Hostname;

use super::clock::Clock;
use super::cluster::Cluster;
use super::endpoint::EndpointState;
use super::limits::ClusterState;
use super::resolve::Names;

/// Unused state is not looked for while there is less than this.
const PRUNE_FROM: usize = 1024;

/// The registry. One for the process; all workers share it.
#[derive(Debug)]
pub struct Upstreams {
    clusters: Mutex<Clusters>,
    endpoints: Mutex<Endpoints>,
    mailboxes: Mutex<Vec<Arc<Mailbox>>>,
    ids: AtomicU64,
    clock: Clock,
    pub(super) names: Names,
    me: Weak<Self>,
}

#[derive(Debug, Default)]
struct Clusters {
    known: HashMap<String, Known>,
    /// Unused ones are looked for when there are this many.
    prune_at: usize,
}

#[derive(Debug)]
struct Known {
    state: Arc<ClusterState>,
    latest: Weak<Cluster>,
}

type EndpointKey = (Hostname, u16, SocketAddr);

#[derive(Debug, Default)]
struct Endpoints {
    states: HashMap<EndpointKey, Arc<EndpointState>>,
    /// Unused states are looked for when there are this many.
    prune_at: usize,
}

/// How a worker hears that others need connections that it holds idle.
#[derive(Debug)]
pub(super) struct Mailbox {
    pub(super) worker: u64,
    wanted: Mutex<Vec<Arc<ClusterState>>>,
    pub(super) notify: tokio::sync::Notify,
}

impl Upstreams {
    /// An empty registry on the system's clock.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with_clock(Clock::system())
    }

    /// An empty registry on a clock of the caller's.
    #[must_use]
    pub fn with_clock(clock: Clock) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            clusters: Mutex::default(),
            endpoints: Mutex::default(),
            mailboxes: Mutex::default(),
            ids: AtomicU64::new(1),
            clock,
            names: Names::default(),
            me: me.clone(),
        })
    }

    /// A cluster with its endpoints. The same policy gives the same object; a changed one a new object with the state of
    /// the old.
    pub fn cluster(&self, model: Arc<model::Cluster>, slices: &[Arc<model::EndpointSlice>]) -> Arc<Cluster> {
        let cluster = self.latest(model);
        cluster.set_endpoints(slices);
        cluster
    }

    fn latest(&self, model: Arc<model::Cluster>) -> Arc<Cluster> {
        let name = model.name();
        let mut clusters = lock(&self.clusters);
        if clusters.known.len() >= clusters.prune_at.max(PRUNE_FROM) {
            clusters
                .known
                .retain(|_, known| known.latest.strong_count() > 0 || Arc::strong_count(&known.state) > 1);
            clusters.prune_at = clusters.known.len() * 2;
        }
        let known = clusters.known.entry(name).or_insert_with_key(|name| Known {
            state: Arc::new(ClusterState::new(self.next_id(), name)),
            latest: Weak::new(),
        });
        if let Some(latest) = known.latest.upgrade().filter(|latest| latest.model == model) {
            return latest;
        }
        known.state.set_limits(&model.pool);
        let cluster = Cluster::new(model, Arc::clone(&known.state), self.me.clone(), self.clock.clone());
        known.latest = Arc::downgrade(&cluster);
        cluster
    }

    pub(super) fn endpoint_state(&self, host: &Hostname, port: u16, address: SocketAddr) -> Arc<EndpointState> {
        let mut endpoints = lock(&self.endpoints);
        if endpoints.states.len() >= endpoints.prune_at.max(PRUNE_FROM) {
            // An ejected endpoint that left may come back: it is not forgotten while it is ejected.
            let used =
                |state: &Arc<EndpointState>| Arc::strong_count(state) > 1 || state.health.is_ejected(&self.clock);
            endpoints.states.retain(|_, state| used(state));
            endpoints.prune_at = endpoints.states.len() * 2;
        }
        let state = endpoints
            .states
            .entry((host.clone(), port, address))
            .or_insert_with(|| Arc::new(EndpointState::new(self.next_id())));
        Arc::clone(state)
    }

    /// Adds a worker.
    pub(super) fn mailbox(&self) -> Arc<Mailbox> {
        let mailbox = Arc::new(Mailbox {
            worker: self.next_id(),
            wanted: Mutex::default(),
            notify: tokio::sync::Notify::new(),
        });
        lock(&self.mailboxes).push(Arc::clone(&mailbox));
        mailbox
    }

    /// Removes a worker.
    pub(super) fn close_mailbox(&self, worker: u64) {
        lock(&self.mailboxes).retain(|mailbox| mailbox.worker != worker);
    }

    /// Asks all workers for connections of a cluster that they hold idle.
    pub(super) fn reclaim(&self, state: &Arc<ClusterState>) {
        for mailbox in lock(&self.mailboxes).iter() {
            let mut wanted = lock(&mailbox.wanted);
            if !wanted.iter().any(|other| Arc::ptr_eq(other, state)) {
                wanted.push(Arc::clone(state));
            }
            drop(wanted);
            mailbox.notify.notify_one();
        }
    }

    /// The clusters in use, for administration.
    #[must_use]
    pub fn clusters(&self) -> Vec<Arc<Cluster>> {
        let clusters = lock(&self.clusters);
        clusters
            .known
            .values()
            .filter_map(|known| known.latest.upgrade())
            .collect()
    }

    /// How many clusters and endpoints are remembered.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize) {
        (lock(&self.clusters).known.len(), lock(&self.endpoints).states.len())
    }

    fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }
}

impl Mailbox {
    pub(super) fn take(&self) -> Vec<Arc<ClusterState>> {
        std::mem::take(&mut lock(&self.wanted))
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
