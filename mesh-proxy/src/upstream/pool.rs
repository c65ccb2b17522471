//! A worker's connections to endpoints.
//!
//! A request comes in with the endpoint that was chosen for it; the response head goes out, or the reason why there is
//! none. HTTP/1.1 connections are used again, the latest first; HTTP/2 connections are shared. A connection stays with its
//! worker and with one cluster, one expected identity and one protocol. Limits hold for the whole proxy: see
//! [`limits`](super::limits). Requests are never tried again by policy here; only a request that a dying idle connection
//! swallowed is replayed once, when that is safe.

mod adapt;
mod http1;
mod http2;

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use http::{Method, Request, Response, StatusCode};
use mesh_api::model::ConnectionPool;

use super::cluster::Cluster;
use super::connect::{ConnectionFacts, Connector, UpstreamIo};
use super::endpoint::{Endpoint, InFlight, Lease, PoolKey, PoolProtocol};
use super::error::{ConnectFailure, SendError, SendErrorKind};
use super::limits::{ClusterState, ConnectionPermit, Grant, Waiter};
use super::registry::{Mailbox, Upstreams};
use crate::body::{Again, Body};
use crate::tls::AlpnKind;

pub use http2::StreamLease;

/// Between looks for idle connections to close.
const SWEEP: Duration = Duration::from_secs(1);

/// One worker's pool. Cheap to clone; made and used inside the worker's `LocalSet`.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<Inner>,
}

/// The version of HTTP that an endpoint is spoken to in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamProto {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, with prior knowledge or by ALPN.
    Http2,
}

/// A response head, with the body still to come.
pub struct Answer {
    /// The response.
    pub response: Response<Body>,
    /// The connection that it came on.
    pub connection: Arc<ConnectionFacts>,
    /// After an upgrade (101, or 2xx to CONNECT): to be held for as long as the tunnel lasts.
    pub tunnel: Option<StreamLease>,
}

/// A TCP connection to an endpoint; counts towards its load and `maxConnections` until it is dropped.
pub struct TcpUpstream {
    /// The connection.
    pub io: UpstreamIo,
    /// Its share of the endpoint's load.
    pub in_flight: InFlight,
}

pub(super) struct Inner {
    mailbox: Arc<Mailbox>,
    upstreams: Arc<Upstreams>,
    http1: RefCell<HashMap<PoolKey, Rc<http1::Host>, foldhash::fast::RandomState>>,
    http2: RefCell<HashMap<PoolKey, Rc<http2::Host>, foldhash::fast::RandomState>>,
    /// Connections for waiters that were told but did not run yet, by ticket.
    handoffs: RefCell<HashMap<u64, Handoff, foldhash::fast::RandomState>>,
}

enum Handoff {
    Http1(Rc<http1::Connection>),
    Http2(http2::Stream),
}

/// What the limits of the moment say of a connection's life.
#[derive(Clone, Copy)]
struct Lifetime {
    idle: Duration,
    whole: Option<Duration>,
    requests: u32,
}

impl Pool {
    /// A pool for this worker. Must be called inside its `LocalSet`.
    #[must_use]
    pub fn new(upstreams: &Arc<Upstreams>) -> Self {
        let inner = Rc::new(Inner {
            mailbox: upstreams.mailbox(),
            upstreams: Arc::clone(upstreams),
            http1: RefCell::default(),
            http2: RefCell::default(),
            handoffs: RefCell::default(),
        });
        tokio::task::spawn_local(keep_house(Rc::downgrade(&inner), Arc::clone(&inner.mailbox)));
        Self { inner }
    }

    /// Sends a request to an endpoint and waits for the head of its response. The caller bounds the time and reports the
    /// outcome with [`Cluster::report`]. Dropping the future cancels the request.
    ///
    /// The request is adapted to the version: a `host` header for HTTP/1.1, `:authority` for HTTP/2.
    ///
    /// # Errors
    /// See [`SendError`]; it gives the request back where that was surely not sent.
    pub async fn send(
        &self,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
        protocol: UpstreamProto,
        connector: &Rc<Connector>,
        request: Request<Body>,
    ) -> Result<Answer, SendError> {
        match protocol {
            UpstreamProto::Http1 => http1::send(&self.inner, cluster, endpoint, connector, request).await,
            UpstreamProto::Http2 => http2::send(&self.inner, cluster, endpoint, connector, request).await,
        }
    }

    /// Connects to an endpoint for bytes that are not HTTP. Waits for one of `maxConnections` as requests do, at most for
    /// `connectTimeout`.
    ///
    /// # Errors
    /// When there is no connection, or no room to wait for one.
    pub async fn connect_tcp(
        &self,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
        connector: &Connector,
    ) -> Result<TcpUpstream, SendError> {
        let pool = &cluster.model.pool;
        let permit = match cluster.state.try_connection() {
            Some(permit) => permit,
            None => {
                let mut place = self
                    .inner
                    .stand_in_line(&cluster.state, endpoint.key(PoolProtocol::Tcp))?;
                match tokio::time::timeout(pool.connect_timeout, place.granted()).await {
                    Ok(Granted::Slot(permit)) => permit,
                    // Connections of HTTP are never handed to it.
                    Ok(_) => return Err(lost_place()),
                    Err(_) => {
                        return Err(SendError::new(
                            SendErrorKind::Connect(ConnectFailure::Timeout),
                            format!("all connections of {} stayed in use", cluster.state.name()),
                        ));
                    }
                }
            }
        };
        let in_flight = InFlight::new(endpoint);
        let io = connector.connect(endpoint, pool, AlpnKind::Tcp, permit).await?;
        Ok(TcpUpstream { io, in_flight })
    }

    /// Connections of HTTP that wait for a request on this worker.
    #[must_use]
    pub fn idle_connections(&self) -> usize {
        let http1: usize = self.inner.http1.borrow().values().map(|host| host.idle_count()).sum();
        let http2: usize = self.inner.http2.borrow().values().map(|host| host.idle_count()).sum();
        http1 + http2
    }
}

impl Inner {
    fn http1_host(&self, cluster: &Cluster, endpoint: &Endpoint) -> Rc<http1::Host> {
        let key = endpoint.key(PoolProtocol::Http1);
        if let Some(host) = self.http1.borrow().get(&key) {
            host.lifetime.set(Lifetime::of(&cluster.model.pool));
            return Rc::clone(host);
        }
        let host = Rc::new(http1::Host::new(key, cluster, endpoint));
        self.http1.borrow_mut().insert(key, Rc::clone(&host));
        host
    }

    fn http2_host(&self, cluster: &Cluster, endpoint: &Endpoint) -> Rc<http2::Host> {
        let key = endpoint.key(PoolProtocol::Http2);
        if let Some(host) = self.http2.borrow().get(&key) {
            host.lifetime.set(Lifetime::of(&cluster.model.pool));
            return Rc::clone(host);
        }
        let host = Rc::new(http2::Host::new(key, cluster, endpoint));
        self.http2.borrow_mut().insert(key, Rc::clone(&host));
        host
    }

    /// Gets in line for a connection, and asks all workers for idle ones that nobody else can use.
    fn stand_in_line(self: &Rc<Self>, state: &Arc<ClusterState>, key: PoolKey) -> Result<Place, SendError> {
        let waiter = state.wait_in_line(self.mailbox.worker, key)?;
        self.upstreams.reclaim(state);
        Ok(Place {
            pool: Rc::clone(self),
            waiter,
        })
    }

    /// Closes this worker's idle connections of a cluster while somebody waits for a slot.
    fn close_idle_for(&self, state: &Arc<ClusterState>) {
        // Copies, since closing a connection may come back here.
        let http1: Vec<_> = of_cluster(&self.http1, |host| Arc::ptr_eq(&host.cluster, state));
        let http2: Vec<_> = of_cluster(&self.http2, |host| Arc::ptr_eq(&host.cluster, state));
        let idle = |count: usize| count > 0;
        for host in http1 {
            while idle(host.idle_count()) && state.wants_idle_connection() {
                host.close_oldest();
            }
        }
        for host in http2 {
            while idle(host.idle_count()) && state.wants_idle_connection() {
                host.close_idle();
            }
        }
    }

    fn sweep(&self) {
        let http1: Vec<_> = self.http1.borrow().values().map(Rc::clone).collect();
        let http2: Vec<_> = self.http2.borrow().values().map(Rc::clone).collect();
        http1.iter().for_each(|host| host.sweep());
        http2.iter().for_each(|host| host.sweep());
        drop((http1, http2));
        self.http1
            .borrow_mut()
            .retain(|_, host| Rc::strong_count(host) > 1 || host.idle_count() > 0);
        self.http2
            .borrow_mut()
            .retain(|_, host| Rc::strong_count(host) > 1 || !host.is_unused());
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.upstreams.close_mailbox(self.mailbox.worker);
        self.http1.get_mut().values().for_each(|host| host.close_all());
        self.http2.get_mut().values().for_each(|host| host.close_all());
    }
}

impl Lifetime {
    fn of(pool: &ConnectionPool) -> Self {
        Self {
            idle: pool.http_idle_timeout,
            whole: pool.max_connection_duration,
            requests: pool.max_requests_per_connection.unwrap_or(u32::MAX),
        }
    }
}

/// A place in line, on this worker.
struct Place {
    pool: Rc<Inner>,
    waiter: Waiter,
}

/// What the line gave.
enum Granted {
    Slot(ConnectionPermit),
    Http1(Rc<http1::Connection>),
    Http2(http2::Stream),
    Lost,
}

impl Place {
    async fn granted(&mut self) -> Granted {
        match self.waiter.granted().await {
            Some(Grant::Slot(permit)) => Granted::Slot(permit),
            Some(Grant::Handoff) => match self.take_handoff() {
                Some(Handoff::Http1(connection)) => Granted::Http1(connection),
                Some(Handoff::Http2(stream)) => Granted::Http2(stream),
                None => Granted::Lost,
            },
            None => Granted::Lost,
        }
    }

    fn take_handoff(&self) -> Option<Handoff> {
        self.pool.handoffs.borrow_mut().remove(&self.waiter.ticket())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Cancelled between being told and running: the connection goes to the next.
        match self.take_handoff() {
            Some(Handoff::Http1(connection)) => connection.give_back(),
            Some(Handoff::Http2(stream)) => drop(stream),
            None => {}
        }
    }
}

fn lost_place() -> SendError {
    SendError::new(
        SendErrorKind::Connect(ConnectFailure::Other),
        "the place in line was lost",
    )
}

fn of_cluster<H>(
    hosts: &RefCell<HashMap<PoolKey, Rc<H>, foldhash::fast::RandomState>>,
    belongs: impl Fn(&H) -> bool,
) -> Vec<Rc<H>> {
    hosts
        .borrow()
        .values()
        .filter(|host| belongs(host))
        .map(Rc::clone)
        .collect()
}

/// Closes connections that are no longer wanted, until the pool is dropped.
async fn keep_house(pool: Weak<Inner>, mailbox: Arc<Mailbox>) {
    let mut ticks = tokio::time::interval(SWEEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = mailbox.notify.notified() => {
                let Some(pool) = pool.upgrade() else { return };
                for state in mailbox.take() {
                    pool.close_idle_for(&state);
                }
            }
            _ = ticks.tick() => {
                let Some(pool) = pool.upgrade() else { return };
                pool.sweep();
            }
        }
    }
}

/// Whether a request does no harm if it is done twice (RFC 9110 §9.2.2), so that the pool replays it when a connection that
/// was reused is lost under it. It can, where the body is in memory or kept in a [`ReplayBuffer`](crate::body::ReplayBuffer).
#[must_use]
pub fn may_replay(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
    )
}

/// What a request that gets lost on a reused connection is made again from: only where a replay does no harm.
struct Spare {
    head: Request<()>,
    body: Again,
}

impl Spare {
    fn of(request: &Request<Body>) -> Option<Self> {
        if !may_replay(request.method()) || request.headers().contains_key(http::header::UPGRADE) {
            return None;
        }
        let body = request.body().again()?;
        let mut head = Request::new(());
        *head.method_mut() = request.method().clone();
        *head.uri_mut() = request.uri().clone();
        *head.version_mut() = request.version();
        *head.headers_mut() = request.headers().clone();
        Some(Self { head, body })
    }

    fn request(self) -> Option<Request<Body>> {
        let body = self.body.body()?;
        Some(self.head.map(|()| body))
    }
}

/// An exchange that ended without a response.
struct Lost {
    error: SendError,
    unsent: Option<Request<Body>>,
    /// Not a byte came for it.
    silent: bool,
}

impl Lost {
    fn closed(request: Request<Body>) -> Self {
        let kind = SendErrorKind::ConnectionClosed { request_started: false };
        Self {
            error: SendError::new(kind, "the connection was closed before the request"),
            unsent: Some(request),
            silent: true,
        }
    }

    fn into_error(self) -> SendError {
        match self.unsent {
            Some(request) => self.error.with_request(request),
            None => self.error,
        }
    }
}

/// Whether a response turns its connection or stream into a tunnel.
fn is_tunnel(method_is_connect: bool, status: StatusCode) -> bool {
    status == StatusCode::SWITCHING_PROTOCOLS || (method_is_connect && status.is_success())
}

fn admit(endpoint: &Arc<Endpoint>) -> Result<Lease, SendError> {
    Lease::new(endpoint).map_err(SendError::from)
}

#[cfg(test)]
mod tests;
