//! Limits of a cluster, counted for the whole proxy: connections, requests that wait for one, requests, retries.
//!
//! Permits go out and count until they are dropped. Who finds all connections taken waits in line; a freed connection goes
//! to the head of the line, whichever worker it is on. A connection that becomes idle where nobody can use it is closed
//! for the line's sake. Nothing is locked while the line is empty.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use mesh_api::model::{ConnectionPool, RetryBudget};
use tokio::sync::oneshot;

use super::endpoint::{PoolKey, Security};

/// How often the head of the line may be passed by requests that a connection of their own worker can serve at once.
const OVERTAKEN_MOST: u32 = 64;

/// A limit that was hit (`UO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Overflow {
    /// `http1MaxPendingRequests`, with all of `maxConnections` in use.
    #[error("all connections are in use and the line for one is full")]
    PendingRequests,
    /// `http2MaxRequests`.
    #[error("too many requests are active")]
    Requests,
    /// `maxRetries`, or the retry budget.
    #[error("too many retries are active")]
    Retries,
}

impl Overflow {
    fn label(self) -> &'static str {
        match self {
            Self::PendingRequests => "pending_requests",
            Self::Requests => "requests",
            Self::Retries => "retries",
        }
    }

    pub(super) fn detail(self) -> &'static str {
        match self {
            Self::PendingRequests => "http1MaxPendingRequests reached",
            Self::Requests => "http2MaxRequests reached",
            Self::Retries => "maxRetries or retryBudget reached",
        }
    }
}

/// What a cluster counts. It outlives configuration: a new version of the cluster's policy changes limits, not counts.
#[derive(Debug)]
pub struct ClusterState {
    pub(super) id: u64,
    name: Arc<str>,
    requests: Padded,
    connections: AtomicU32,
    waiting: AtomicU32,
    line: Mutex<VecDeque<Waiting>>,
    tickets: AtomicU64,
    retries: AtomicU32,
    limits: Limits,
    overflows: [AtomicU64; 3],
    /// Where round robin stands.
    pub(super) cursor: AtomicUsize,
    /// Held while an endpoint is ejected, so that the share of ejected ones is kept.
    pub(super) ejecting: Mutex<()>,
    securities: Mutex<Vec<(u64, Weak<Security>)>>,
}

/// On a cache line of its own: it is written twice a request.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded(AtomicU32);

#[derive(Debug)]
struct Limits {
    connections: AtomicU32,
    pending: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
}

impl ClusterState {
    pub(super) fn new(id: u64, name: &str) -> Self {
        let unlimited = || AtomicU32::new(u32::MAX);
        Self {
            id,
            name: Arc::from(name),
            requests: Padded::default(),
            connections: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            line: Mutex::default(),
            tickets: AtomicU64::new(0),
            retries: AtomicU32::new(0),
            limits: Limits {
                connections: unlimited(),
                pending: unlimited(),
                requests: unlimited(),
                retries: unlimited(),
            },
            overflows: Default::default(),
            cursor: AtomicUsize::new(0),
            ejecting: Mutex::new(()),
            securities: Mutex::default(),
        }
    }

    /// The cluster's name, `outbound|9080|v1|reviews.default.svc.cluster.local`.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Connections that are open or being made.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Requests that wait for a connection.
    #[must_use]
    pub fn pending_requests(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Requests that have a connection and no complete response.
    #[must_use]
    pub fn active_requests(&self) -> u32 {
        self.requests.0.load(Ordering::Relaxed)
    }

    /// How often a limit was hit.
    #[must_use]
    pub fn overflows(&self, limit: Overflow) -> u64 {
        self.overflows[limit as usize].load(Ordering::Relaxed)
    }

    pub(super) fn set_limits(self: &Arc<Self>, pool: &ConnectionPool) {
        self.limits.connections.store(pool.max_connections, Ordering::SeqCst);
        self.limits.pending.store(pool.max_pending_requests, Ordering::Relaxed);
        self.limits.requests.store(pool.max_requests, Ordering::Relaxed);
        self.limits.retries.store(pool.max_retries, Ordering::Relaxed);
        self.grant();
    }

    /// One of the identities and settings that the cluster's connections are made with, as a small number.
    pub(super) fn intern(&self, security: Security) -> (u64, Arc<Security>) {
        let mut known = self.securities.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, security)| security.strong_count() > 0);
        for (id, other) in known.iter() {
            if let Some(other) = other.upgrade().filter(|other| **other == security) {
                return (*id, other);
            }
        }
        let id = self.tickets.fetch_add(1, Ordering::Relaxed);
        let security = Arc::new(security);
        known.push((id, Arc::downgrade(&security)));
        (id, security)
    }

    fn overflow(&self, limit: Overflow) -> Overflow {
        self.overflows[limit as usize].fetch_add(1, Ordering::Relaxed);
        metrics::counter!("mesh_upstream_overflows_total", "cluster" => Arc::clone(&self.name), "limit" => limit.label())
            .increment(1);
        limit
    }

    pub(super) fn enter_request(&self) -> Result<(), Overflow> {
        let active = self.requests.0.fetch_add(1, Ordering::Relaxed);
        if active >= self.limits.requests.load(Ordering::Relaxed) {
            self.requests.0.fetch_sub(1, Ordering::Relaxed);
            return Err(self.overflow(Overflow::Requests));
        }
        Ok(())
    }

    pub(super) fn leave_request(&self) {
        self.requests.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn admit_retry(self: &Arc<Self>, budget: Option<&RetryBudget>) -> Result<RetryPermit, Overflow> {
        let most = match budget {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share of a count; saturates"
            )]
            Some(budget) => {
                let load = f64::from(self.active_requests()) + f64::from(self.pending_requests());
                ((load * budget.percent / 100.0) as u32).max(budget.min_concurrency)
            }
            None => self.limits.retries.load(Ordering::Relaxed),
        };
        if self.retries.fetch_add(1, Ordering::Relaxed) >= most {
            self.retries.fetch_sub(1, Ordering::Relaxed);
            return Err(self.overflow(Overflow::Retries));
        }
        Ok(RetryPermit(Arc::clone(self)))
    }

    /// A connection's slot, unless all are taken or others wait for one.
    pub(super) fn try_connection(self: &Arc<Self>) -> Option<ConnectionPermit> {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            return None;
        }
        self.take_connection()
    }

    fn take_connection(self: &Arc<Self>) -> Option<ConnectionPermit> {
        let most = self.limits.connections.load(Ordering::SeqCst);
        self.connections
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |taken| {
                (taken < most).then(|| taken + 1)
            })
            .ok()
            .map(|_| ConnectionPermit(Arc::clone(self)))
    }

    /// Gets in line for a connection to `key` on `worker`. `bound` is of those who wait, not of those who dial.
    pub(super) fn wait_in_line(self: &Arc<Self>, worker: u64, key: PoolKey) -> Result<Waiter, Overflow> {
        let (sender, receiver) = oneshot::channel();
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        {
            let mut line = self.line();
            if line.len() >= self.limits.pending.load(Ordering::Relaxed) as usize {
                drop(line);
                return Err(self.overflow(Overflow::PendingRequests));
            }
            line.push_back(Waiting {
                ticket,
                worker,
                key,
                overtaken: 0,
                reclaimed: false,
                sender,
            });
            self.waiting.fetch_add(1, Ordering::SeqCst);
        }
        // A connection may have been freed between the caller's look and its place in line.
        self.grant();
        Ok(Waiter {
            state: Arc::clone(self),
            ticket,
            receiver,
        })
    }

    /// What becomes of a connection to `key` on `worker` that is free now.
    pub(super) fn connection_is_free(&self, worker: u64, key: PoolKey) -> Freed {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return Freed::KeepIdle;
        }
        let mut line = self.line();
        while let Some(position) = line
            .iter()
            .position(|waiting| waiting.worker == worker && waiting.key == key)
        {
            if position > 0
                && let Some(head) = line.front_mut()
            {
                head.overtaken += 1;
                if head.overtaken > OVERTAKEN_MOST {
                    return Freed::Close;
                }
            }
            if let Some(waiting) = self.leave_line(&mut line, position)
                && waiting.sender.send(Grant::Handoff).is_ok()
            {
                return Freed::Serve(waiting.ticket);
            }
        }
        if line.is_empty() { Freed::KeepIdle } else { Freed::Close }
    }

    /// Whether an idle connection should be closed for somebody in line; each of those is asked for once.
    pub(super) fn wants_idle_connection(&self) -> bool {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let mut line = self.line();
        match line.iter_mut().find(|waiting| !waiting.reclaimed) {
            Some(waiting) => {
                waiting.reclaimed = true;
                true
            }
            None => false,
        }
    }

    /// Gives free slots to the line, in order.
    fn grant(self: &Arc<Self>) {
        while self.waiting.load(Ordering::SeqCst) > 0 {
            let mut refused = None;
            {
                let mut line = self.line();
                if line.is_empty() {
                    return;
                }
                let Some(permit) = self.take_connection() else { return };
                if let Some(waiting) = self.leave_line(&mut line, 0) {
                    refused = waiting.sender.send(Grant::Slot(permit)).err();
                }
            }
            // A waiter that is just leaving: its permit goes on to the next, after the lock is let go.
            drop(refused);
        }
    }

    fn release_connection(self: &Arc<Self>) {
        self.connections.fetch_sub(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.grant();
        }
    }

    fn leave_line(&self, line: &mut VecDeque<Waiting>, position: usize) -> Option<Waiting> {
        let waiting = line.remove(position);
        if waiting.is_some() {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        waiting
    }

    fn line(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A retry that counts until it is dropped.
#[derive(Debug)]
#[must_use = "a retry counts only while its permit is held"]
pub struct RetryPermit(Arc<ClusterState>);

impl Drop for RetryPermit {
    fn drop(&mut self) {
        self.0.retries.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that counts until it is dropped; lives in the connection's socket.
#[derive(Debug)]
pub(super) struct ConnectionPermit(Arc<ClusterState>);

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.release_connection();
    }
}

/// What becomes of a free connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Freed {
    /// Nobody waits.
    KeepIdle,
    /// The waiter with this ticket takes it; it was told.
    Serve(u64),
    /// Others need its slot.
    Close,
}

/// What a waiter gets.
#[derive(Debug)]
pub(super) enum Grant {
    /// Make a connection.
    Slot(ConnectionPermit),
    /// Its own worker keeps a connection for its ticket.
    Handoff,
}

#[derive(Debug)]
struct Waiting {
    ticket: u64,
    worker: u64,
    key: PoolKey,
    overtaken: u32,
    reclaimed: bool,
    sender: oneshot::Sender<Grant>,
}

/// A place in line; dropping it leaves the line, and passes on what was granted meanwhile.
#[derive(Debug)]
pub(super) struct Waiter {
    state: Arc<ClusterState>,
    ticket: u64,
    receiver: oneshot::Receiver<Grant>,
}

impl Waiter {
    pub(super) fn ticket(&self) -> u64 {
        self.ticket
    }

    /// Waits; `None` never comes while the cluster's state lives.
    pub(super) async fn granted(&mut self) -> Option<Grant> {
        (&mut self.receiver).await.ok()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.state.waiting.load(Ordering::SeqCst) > 0 {
            let mut line = self.state.line();
            if let Some(position) = line.iter().position(|waiting| waiting.ticket == self.ticket) {
                self.state.leave_line(&mut line, position);
            }
        }
    }
}

#[cfg(test)]
mod tests;
