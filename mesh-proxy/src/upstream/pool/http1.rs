//! HTTP/1.1 connections: one request at a time, the latest used first.
//!
//! A connection's driver task holds hyper's connection. When a response is over, the driver itself puts the connection
//! back, without another task or wake-up.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Instant;

use http::header::UPGRADE;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;

use super::{Answer, Granted, Handoff, Inner, Lifetime, Lost, Spare, StreamLease, admit, is_tunnel, lost_place};
use crate::body::Body;
use crate::tls::AlpnKind;
use crate::upstream::cluster::Cluster;
use crate::upstream::connect::{ConnectionFacts, Connector};
use crate::upstream::endpoint::{Endpoint, EndpointState, Lease, PoolKey, Security};
use crate::upstream::error::{SendError, SendErrorKind, exchange_error};
use crate::upstream::limits::{ClusterState, ConnectionPermit, Freed};

/// Largest response head, as Envoy's.
const HEAD_MOST: usize = 60 * 1024;

/// The connections to one endpoint that may serve each other's requests.
pub(super) struct Host {
    key: PoolKey,
    pub(super) cluster: Arc<ClusterState>,
    endpoint: Arc<EndpointState>,
    /// The key's, which stays the same key while this is alive.
    _security: Arc<Security>,
    pub(super) lifetime: Cell<Lifetime>,
    idle: RefCell<Vec<Rc<Connection>>>,
}

/// A connection, shared by its driver and whoever uses it.
pub(super) struct Connection {
    host: Rc<Host>,
    pool: Weak<Inner>,
    sender: RefCell<Option<SendRequest<Body>>>,
    phase: Cell<Phase>,
    /// Held by the request that it serves, until the response was read.
    lease: RefCell<Option<Lease>>,
    /// Whether the request asked for another protocol.
    may_be_tunnel: Cell<bool>,
    requests: Cell<u32>,
    born: Instant,
    idle_since: Cell<Instant>,
    facts: Arc<ConnectionFacts>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waits for a response head, or belongs to somebody who is about to send.
    Busy,
    /// The head is there; free once hyper has read the rest.
    Returning,
    Idle,
    Closed,
}

enum Found {
    Reused(Rc<Connection>),
    Slot(ConnectionPermit),
}

pub(super) async fn send(
    pool: &Rc<Inner>,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    connector: &Connector,
    request: Request<Body>,
) -> Result<Answer, SendError> {
    let host = pool.http1_host(cluster, endpoint);
    let is_connect = request.method() == Method::CONNECT;
    let mut request = super::adapt::http1(request);
    let mut replayed = false;
    loop {
        let found = match find(pool, &host, replayed).await {
            Ok(found) => found,
            Err(error) => return Err(error.with_request(request)),
        };
        let lease = match admit(endpoint) {
            Ok(lease) => lease,
            Err(error) => {
                if let Found::Reused(connection) = found {
                    connection.give_back();
                }
                return Err(error.with_request(request));
            }
        };
        let (connection, reused) = match found {
            Found::Reused(connection) => (connection, true),
            Found::Slot(permit) => match connect(pool, &host, cluster, endpoint, connector, permit).await {
                Ok(connection) => (connection, false),
                Err(error) => return Err(error.with_request(request)),
            },
        };
        let spare = if reused && !replayed { Spare::of(&request) } else { None };
        let lost = match connection.exchange(request, lease).await {
            Ok(response) => return Ok(connection.answer(response, is_connect)),
            Err(lost) => lost,
        };
        // The endpoint closed an idle connection while the request was on its way to it.
        match lost {
            Lost {
                unsent: Some(unsent), ..
            } if reused => request = unsent,
            Lost { silent: true, .. } if spare.is_some() => match spare.and_then(Spare::request) {
                Some(again) => {
                    request = again;
                    replayed = true;
                }
                None => return Err(lost.into_error()),
            },
            lost => return Err(lost.into_error()),
        }
    }
}

/// A connection that is free or may be made now, or as soon as it is the request's turn.
async fn find(pool: &Rc<Inner>, host: &Rc<Host>, fresh: bool) -> Result<Found, SendError> {
    if !fresh && let Some(connection) = host.take_idle() {
        return Ok(Found::Reused(connection));
    }
    if let Some(permit) = host.cluster.try_connection() {
        return Ok(Found::Slot(permit));
    }
    match pool.stand_in_line(&host.cluster, host.key)?.granted().await {
        Granted::Slot(permit) => Ok(Found::Slot(permit)),
        Granted::Http1(connection) => Ok(Found::Reused(connection)),
        Granted::Http2(_) | Granted::Lost => Err(lost_place()),
    }
}

async fn connect(
    pool: &Rc<Inner>,
    host: &Rc<Host>,
    cluster: &Cluster,
    endpoint: &Endpoint,
    connector: &Connector,
    permit: ConnectionPermit,
) -> Result<Rc<Connection>, SendError> {
    let io = connector
        .connect(endpoint, &cluster.model.pool, AlpnKind::Http1, permit)
        .await?;
    let facts = Arc::clone(io.facts());
    let (sender, connection) = Builder::new()
        .max_header_size(HEAD_MOST)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| exchange_error(&error, false))?;
    let now = Instant::now();
    let shared = Rc::new(Connection {
        host: Rc::clone(host),
        pool: Rc::downgrade(pool),
        sender: RefCell::new(Some(sender)),
        phase: Cell::new(Phase::Busy),
        lease: RefCell::new(None),
        may_be_tunnel: Cell::new(false),
        requests: Cell::new(0),
        born: now,
        idle_since: Cell::new(now),
        facts,
    });
    tokio::task::spawn_local(drive(Rc::clone(&shared), connection.with_upgrades()));
    Ok(shared)
}

async fn drive(shared: Rc<Connection>, connection: impl Future<Output = hyper::Result<()>>) {
    let mut connection = pin!(connection);
    // Declared after the connection, so that a waiter who gets its slot finds the request's permit returned.
    let ended = Ended(shared);
    let result = poll_fn(|cx| {
        let polled = connection.as_mut().poll(cx);
        if polled.is_pending() {
            ended.0.give_back_when_read();
        }
        polled
    })
    .await;
    if let Err(error) = result {
        tracing::trace!(%error, peer = %ended.0.facts.peer, "an HTTP/1.1 connection ended");
    }
}

struct Ended(Rc<Connection>);

impl Drop for Ended {
    fn drop(&mut self) {
        // A tunnel goes on without its driver: whoever waits for its head takes the lease.
        let tunnel = self.0.may_be_tunnel.get() && self.0.phase.get() == Phase::Busy;
        let lease = if tunnel { self.0.lease.take() } else { None };
        self.0.close();
        self.0.lease.replace(lease);
    }
}

impl Connection {
    async fn exchange(self: &Rc<Self>, request: Request<Body>, lease: Lease) -> Result<Response<Incoming>, Lost> {
        let (read, written) = (self.facts.bytes_read(), self.facts.bytes_written());
        let may_be_tunnel = request.method() == Method::CONNECT || request.headers().contains_key(UPGRADE);
        self.may_be_tunnel.set(may_be_tunnel);
        let sent = match self.sender.borrow_mut().as_mut() {
            Some(sender) => sender.try_send_request(request),
            None => return Err(Lost::closed(request)),
        };
        self.phase.set(Phase::Busy);
        self.requests.set(self.requests.get().saturating_add(1));
        self.lease.replace(Some(lease));
        match sent.await {
            Ok(response) => Ok(response),
            Err(mut failed) => {
                let unsent = failed.take_message();
                let started = unsent.is_none() && self.facts.bytes_written() > written;
                let error = exchange_error(failed.error(), started);
                let closed = matches!(error.kind, SendErrorKind::ConnectionClosed { .. });
                Err(Lost {
                    error,
                    unsent,
                    silent: closed && self.facts.bytes_read() == read,
                })
            }
        }
    }

    fn answer(self: &Rc<Self>, response: Response<Incoming>, is_connect: bool) -> Answer {
        let tunnel = if is_tunnel(is_connect, response.status()) {
            let lease = self.lease.take().map(StreamLease::of_connection);
            self.close();
            lease
        } else {
            self.phase.set(Phase::Returning);
            // Small responses are read already.
            self.give_back_when_read();
            None
        };
        Answer {
            response: response.map(Body::incoming),
            connection: Arc::clone(&self.facts),
            tunnel,
        }
    }

    fn give_back_when_read(self: &Rc<Self>) {
        if self.phase.get() == Phase::Returning && self.sender.borrow().as_ref().is_some_and(SendRequest::is_ready) {
            self.give_back();
        }
    }

    /// Offers the free connection to whoever waits, or keeps it.
    pub(super) fn give_back(self: &Rc<Self>) {
        drop(self.lease.take());
        let Some(pool) = self.pool.upgrade() else {
            return self.close();
        };
        if self.phase.get() == Phase::Closed || self.is_used_up() {
            return self.close();
        }
        match self.host.cluster.connection_is_free(pool.mailbox.worker, self.host.key) {
            Freed::KeepIdle => {
                self.phase.set(Phase::Idle);
                self.idle_since.set(Instant::now());
                self.host.idle.borrow_mut().push(Rc::clone(self));
            }
            Freed::Serve(ticket) => {
                self.phase.set(Phase::Busy);
                let taken = Handoff::Http1(Rc::clone(self));
                pool.handoffs.borrow_mut().insert(ticket, taken);
            }
            Freed::Close => self.close(),
        }
    }

    fn is_used_up(&self) -> bool {
        let lifetime = self.host.lifetime.get();
        self.requests.get() >= lifetime.requests
            || lifetime.whole.is_some_and(|whole| self.born.elapsed() >= whole)
            || self.host.endpoint.is_gone()
    }

    /// Closes the connection; where a response is still being read, after that.
    fn close(&self) {
        if self.phase.replace(Phase::Closed) == Phase::Idle {
            let mut idle = self.host.idle.borrow_mut();
            idle.retain(|other| !std::ptr::eq(&raw const **other, self));
        }
        drop(self.lease.take());
        drop(self.sender.take());
    }
}

impl Host {
    pub(super) fn new(key: PoolKey, cluster: &Cluster, endpoint: &Endpoint) -> Self {
        Self {
            key,
            cluster: Arc::clone(&cluster.state),
            endpoint: Arc::clone(&endpoint.state),
            _security: Arc::clone(&endpoint.security),
            lifetime: Cell::new(Lifetime::of(&cluster.model.pool)),
            idle: RefCell::default(),
        }
    }

    pub(super) fn idle_count(&self) -> usize {
        self.idle.borrow().len()
    }

    fn take_idle(&self) -> Option<Rc<Connection>> {
        loop {
            let connection = self.idle.borrow_mut().pop()?;
            connection.phase.set(Phase::Busy);
            let ready = connection.sender.borrow().as_ref().is_some_and(SendRequest::is_ready);
            if ready && !connection.is_used_up() {
                return Some(connection);
            }
            connection.close();
        }
    }

    /// Closes the connection that is idle for the longest time.
    pub(super) fn close_oldest(&self) {
        let oldest = self.idle.borrow().first().map(Rc::clone);
        if let Some(connection) = oldest {
            connection.close();
        }
    }

    pub(super) fn sweep(&self) {
        let idle = self.lifetime.get().idle;
        let over =
            |connection: &&Rc<Connection>| connection.is_used_up() || connection.idle_since.get().elapsed() >= idle;
        let over: Vec<_> = self.idle.borrow().iter().filter(over).map(Rc::clone).collect();
        over.iter().for_each(|connection| connection.close());
    }

    pub(super) fn close_all(&self) {
        for connection in self.idle.take() {
            connection.close();
        }
    }
}
