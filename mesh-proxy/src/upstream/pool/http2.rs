//! HTTP/2 connections, shared by requests.
//!
//! A request takes a stream of a connection that has one free. Where none has, it joins a connection that is being made,
//! or makes one; connections are made by tasks of their own, so that a request that gives up takes nothing with it.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::sync::Notify;

use super::{Answer, Granted, Handoff, Inner, Lifetime, Lost, Spare, admit, is_tunnel, lost_place};
use crate::body::Body;
use crate::tls::AlpnKind;
use crate::upstream::cluster::Cluster;
use crate::upstream::connect::{ConnectionFacts, Connector, UpstreamIo};
use crate::upstream::endpoint::{Endpoint, EndpointState, Lease, PoolKey, Security};
use crate::upstream::error::{SendError, SendErrorKind, exchange_error};
use crate::upstream::limits::{ClusterState, ConnectionPermit, Freed};

/// Streams that a connection is expected to take before its endpoint says how many (h2's own assumption).
const STREAMS_ASSUMED: usize = 100;
/// Largest response head, as Envoy's.
const HEAD_MOST: u32 = 60 * 1024;
/// Requests that were called off of which h2 remembers the streams for a second, to know what still comes for them.
const RESETS_REMEMBERED: usize = 1024;
/// Streams on which we answer late frames with another reset, in the whole life of a connection; past it h2 breaks the
/// connection. Its own limit of 1024 ends connections that live long enough, with all of their requests.
const RESETS_MOST: usize = 16 * 1024;
/// Requests that are called off on a connection, in its whole life, before it takes no more: long before [`RESETS_MOST`].
pub(super) const CALLED_OFF_MOST: u32 = 4096;
/// Connections that one request waits for, where each is full or closed again before its turn comes.
const TRIES: usize = 4;

type Client = http2::Connection<TokioIo<UpstreamIo>, Body, Executor>;

/// The connections to one endpoint that may serve each other's requests.
pub(super) struct Host {
    key: PoolKey,
    pub(super) cluster: Arc<ClusterState>,
    endpoint: Arc<EndpointState>,
    /// The key's, which stays the same key while this is alive.
    _security: Arc<Security>,
    pub(super) lifetime: Cell<Lifetime>,
    /// What the policy allows on a connection.
    max_streams: Cell<usize>,
    /// What the endpoint last said that it allows; a new connection is used before it says so again.
    allowed: Cell<usize>,
    connections: RefCell<Vec<Rc<Connection>>>,
    dials: RefCell<Vec<Rc<Dial>>>,
}

pub(super) struct Connection {
    host: Rc<Host>,
    pool: Weak<Inner>,
    sender: RefCell<Option<SendRequest<Body>>>,
    client: RefCell<Option<Client>>,
    active: Cell<usize>,
    requests: Cell<u32>,
    /// Those that were given up before their answers had ended.
    called_off: Cell<u32>,
    born: Instant,
    idle_since: Cell<Instant>,
    facts: Arc<ConnectionFacts>,
}

/// One of a connection's streams; free again when dropped.
pub(super) struct Stream(Rc<Connection>);

/// An active request and the stream that it uses, until dropped.
pub struct StreamLease {
    // Returned first: who gets the stream needs it.
    _lease: Lease,
    stream: Option<Stream>,
}

/// A connection that is being made, and those who wait for it.
#[derive(Default)]
struct Dial {
    joined: Cell<usize>,
    /// One for each who waits, as far as the connection has them: nobody else finds it idle meanwhile.
    streams: RefCell<Vec<Stream>>,
    failure: RefCell<Option<(SendErrorKind, String)>>,
    done: Cell<bool>,
    notify: Notify,
}

#[derive(Clone, Copy)]
struct Executor;

impl<F: Future + 'static> hyper::rt::Executor<F> for Executor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

pub(super) async fn send(
    pool: &Rc<Inner>,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    connector: &Rc<Connector>,
    request: Request<Body>,
) -> Result<Answer, SendError> {
    let host = pool.http2_host(cluster, endpoint);
    host.max_streams
        .set(cluster.model.pool.max_concurrent_streams.unwrap_or(u32::MAX) as usize);
    let is_connect = request.method() == Method::CONNECT;
    let fallback = if request.uri().authority().is_none() && !request.headers().contains_key(http::header::HOST) {
        endpoint.address.to_string()
    } else {
        String::new()
    };
    let mut request = super::adapt::http2(request, &fallback);
    let mut replayed = false;
    let dialer = Dialer {
        pool,
        host: &host,
        cluster,
        endpoint,
        connector,
    };
    loop {
        let stream = match dialer.find().await {
            Ok(stream) => stream,
            Err(error) => return Err(error.with_request(request)),
        };
        let lease = match admit(endpoint) {
            Ok(lease) => lease,
            Err(error) => return Err(error.with_request(request)),
        };
        let reused = stream.0.requests.get() > 0;
        let spare = if reused && !replayed { Spare::of(&request) } else { None };
        let connection = Rc::clone(&stream.0);
        let lease = StreamLease {
            _lease: lease,
            stream: Some(stream),
        };
        let lost = match connection.exchange(request).await {
            Ok(response) => return Ok(connection.answer(response, is_connect, lease)),
            Err(lost) => lost,
        };
        drop(lease);
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

/// What it takes to make a connection.
struct Dialer<'a> {
    pool: &'a Rc<Inner>,
    host: &'a Rc<Host>,
    cluster: &'a Arc<Cluster>,
    endpoint: &'a Arc<Endpoint>,
    connector: &'a Rc<Connector>,
}

impl Dialer<'_> {
    async fn find(&self) -> Result<Stream, SendError> {
        for _ in 0..TRIES {
            if let Some(stream) = self.host.reserve() {
                return Ok(stream);
            }
            let dial = match self.host.dial_with_room() {
                Some(dial) => dial,
                None => match self.host.cluster.try_connection() {
                    Some(permit) => self.dial(permit),
                    None => match self
                        .pool
                        .stand_in_line(&self.host.cluster, self.host.key)?
                        .granted()
                        .await
                    {
                        Granted::Slot(permit) => self.dial(permit),
                        Granted::Http2(stream) => return Ok(stream),
                        Granted::Http1(_) | Granted::Lost => return Err(lost_place()),
                    },
                },
            };
            if let Some(stream) = Joined::new(&dial).wait().await? {
                return Ok(stream);
            }
        }
        Err(SendError::new(
            SendErrorKind::ConnectionClosed { request_started: false },
            "new connections were closed or full at once",
        ))
    }

    fn dial(&self, permit: ConnectionPermit) -> Rc<Dial> {
        let dial = Rc::new(Dial::default());
        self.host.dials.borrow_mut().push(Rc::clone(&dial));
        tokio::task::spawn_local(connect(
            Rc::downgrade(self.pool),
            Rc::clone(self.host),
            Arc::clone(self.cluster),
            Arc::clone(self.endpoint),
            Rc::clone(self.connector),
            permit,
            Rc::clone(&dial),
        ));
        dial
    }
}

async fn connect(
    pool: Weak<Inner>,
    host: Rc<Host>,
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    connector: Rc<Connector>,
    permit: ConnectionPermit,
    dial: Rc<Dial>,
) {
    let connected = async {
        let limits = &cluster.model.pool;
        let io = connector.connect(&endpoint, limits, AlpnKind::Http2, permit).await?;
        let facts = Arc::clone(io.facts());
        let mut builder = Builder::new(Executor);
        builder
            .max_header_list_size(HEAD_MOST)
            .max_concurrent_reset_streams(RESETS_REMEMBERED)
            .max_local_error_reset_streams(RESETS_MOST);
        let (sender, client) = builder
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| exchange_error(&error, false))?;
        Ok((sender, client, facts))
    }
    .await;
    host.dials.borrow_mut().retain(|other| !Rc::ptr_eq(other, &dial));
    match connected {
        Ok((sender, client, facts)) => {
            let now = Instant::now();
            let shared = Rc::new(Connection {
                host: Rc::clone(&host),
                pool,
                sender: RefCell::new(Some(sender)),
                client: RefCell::new(Some(client)),
                active: Cell::new(0),
                requests: Cell::new(0),
                called_off: Cell::new(0),
                born: now,
                idle_since: Cell::new(now),
                facts,
            });
            host.connections.borrow_mut().push(Rc::clone(&shared));
            let waiting = dial.joined.get().min(host.streams());
            dial.streams
                .replace((0..waiting).map(|_| shared.take_stream()).collect());
            tokio::task::spawn_local(drive(shared));
        }
        Err(SendError { kind, detail, .. }) => {
            dial.failure.replace(Some((kind, detail.into_owned())));
        }
    }
    dial.done.set(true);
    dial.notify.notify_waiters();
}

async fn drive(shared: Rc<Connection>) {
    struct Ended(Rc<Connection>);
    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.close();
            drop(self.0.client.take());
        }
    }
    let ended = Ended(shared);
    let result = poll_fn(|cx| match ended.0.client.borrow_mut().as_mut() {
        Some(client) => Pin::new(client).poll(cx),
        None => Poll::Ready(Ok(())),
    })
    .await;
    if let Err(error) = result {
        tracing::trace!(%error, peer = %ended.0.facts.peer, "an HTTP/2 connection ended");
    }
}

/// One of those who wait for a dial.
struct Joined<'a>(&'a Dial);

impl<'a> Joined<'a> {
    fn new(dial: &'a Dial) -> Self {
        dial.joined.set(dial.joined.get() + 1);
        Self(dial)
    }

    /// A stream of the new connection, unless others have all of them.
    async fn wait(self) -> Result<Option<Stream>, SendError> {
        let notified = self.0.notify.notified();
        if !self.0.done.get() {
            notified.await;
        }
        match &*self.0.failure.borrow() {
            Some((kind, detail)) => Err(SendError::new(*kind, detail.clone())),
            None => Ok(self.0.streams.borrow_mut().pop()),
        }
    }
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        let waiting = self.0.joined.get() - 1;
        self.0.joined.set(waiting);
        // Whoever gave up after its stream was set aside leaves it behind.
        let left = self.0.streams.borrow().len() > waiting;
        let stream = if left { self.0.streams.borrow_mut().pop() } else { None };
        drop(stream);
    }
}

impl Connection {
    async fn exchange(&self, request: Request<Body>) -> Result<Response<Incoming>, Lost> {
        let sent = match self.sender.borrow_mut().as_mut() {
            Some(sender) => sender.try_send_request(request),
            None => return Err(Lost::closed(request)),
        };
        self.requests.set(self.requests.get().saturating_add(1));
        if self.is_used_up() {
            // The last request that it takes.
            self.close();
        }
        let waiting = Waiting(&self.called_off);
        let sent = sent.await;
        std::mem::forget(waiting);
        match sent {
            Ok(response) => Ok(response),
            Err(mut failed) => {
                let unsent = failed.take_message();
                let error = exchange_error(failed.error(), unsent.is_none());
                let silent = match error.kind {
                    // What it sent meanwhile was for others.
                    SendErrorKind::ConnectionClosed { .. } => true,
                    // Refused because the connection is going away, not because the endpoint is full.
                    SendErrorKind::RefusedStream => self.sender.borrow().as_ref().is_none_or(SendRequest::is_closed),
                    _ => false,
                };
                Err(Lost { error, unsent, silent })
            }
        }
    }

    fn answer(&self, response: Response<Incoming>, is_connect: bool, lease: StreamLease) -> Answer {
        let (response, tunnel) = if is_tunnel(is_connect, response.status()) {
            (response.map(Body::incoming), Some(lease))
        } else {
            (response.map(|body| Body::incoming(body).holding(lease)), None)
        };
        Answer {
            response,
            connection: Arc::clone(&self.facts),
            tunnel,
        }
    }

    fn is_open(&self) -> bool {
        self.sender.borrow().as_ref().is_some_and(|sender| !sender.is_closed())
    }

    fn has_room(&self) -> bool {
        if !self.is_open() {
            return false;
        }
        let told = self.facts.bytes_read() > 0;
        if told
            && let Ok(client) = self.client.try_borrow()
            && let Some(client) = &*client
        {
            // An endpoint that allows none at present may allow some later: one request finds out.
            self.host.allowed.set(client.current_max_send_streams().max(1));
        }
        self.active.get() < self.host.streams()
    }

    fn take_stream(self: &Rc<Self>) -> Stream {
        self.active.set(self.active.get() + 1);
        Stream(Rc::clone(self))
    }

    fn is_used_up(&self) -> bool {
        let lifetime = self.host.lifetime.get();
        self.requests.get() >= lifetime.requests
            || self.called_off.get() >= CALLED_OFF_MOST
            || lifetime.whole.is_some_and(|whole| self.born.elapsed() >= whole)
            || self.host.endpoint.is_gone()
    }

    /// Takes no more requests; those that are active go on.
    fn close(&self) {
        drop(self.sender.take());
        let mut connections = self.host.connections.borrow_mut();
        connections.retain(|other| !std::ptr::eq(&raw const **other, self));
    }

    /// Offers free streams to those who wait.
    fn serve_waiting(self: &Rc<Self>) {
        let Some(pool) = self.pool.upgrade() else { return };
        while self.has_room() {
            match self.host.cluster.connection_is_free(pool.mailbox.worker, self.host.key) {
                Freed::Serve(ticket) => {
                    let taken = Handoff::Http2(self.take_stream());
                    pool.handoffs.borrow_mut().insert(ticket, taken);
                }
                // Only a connection without requests is given up for others.
                Freed::Close if self.active.get() == 0 => return self.close(),
                Freed::Close | Freed::KeepIdle => return,
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let connection = &self.0;
        connection.active.set(connection.active.get() - 1);
        if connection.active.get() == 0 {
            connection.idle_since.set(Instant::now());
        }
        if connection.host.cluster.pending_requests() > 0 {
            connection.serve_waiting();
        }
    }
}

/// Counts a request that is given up while it waits for its answer.
struct Waiting<'a>(&'a Cell<u32>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_add(1));
    }
}

impl StreamLease {
    /// Notes that the answer is given up before its end.
    pub(crate) fn call_off(&self) {
        if let Some(Stream(connection)) = &self.stream {
            drop(Waiting(&connection.called_off));
        }
    }

    pub(super) fn of_connection(lease: Lease) -> Self {
        Self {
            _lease: lease,
            stream: None,
        }
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
            max_streams: Cell::new(usize::MAX),
            allowed: Cell::new(STREAMS_ASSUMED),
            connections: RefCell::default(),
            dials: RefCell::default(),
        }
    }

    fn reserve(&self) -> Option<Stream> {
        let connections = self.connections.borrow();
        let free = connections.iter().find(|connection| connection.has_room());
        free.map(Connection::take_stream)
    }

    fn dial_with_room(&self) -> Option<Rc<Dial>> {
        let room = self.streams();
        self.dials
            .borrow()
            .iter()
            .find(|dial| dial.joined.get() < room)
            .map(Rc::clone)
    }

    /// Streams of a connection that may be in use at once.
    fn streams(&self) -> usize {
        self.allowed.get().min(self.max_streams.get()).max(1)
    }

    pub(super) fn idle_count(&self) -> usize {
        self.connections
            .borrow()
            .iter()
            .filter(|connection| connection.active.get() == 0)
            .count()
    }

    pub(super) fn is_unused(&self) -> bool {
        self.connections.borrow().is_empty() && self.dials.borrow().is_empty()
    }

    /// Closes a connection without requests.
    pub(super) fn close_idle(&self) {
        let idle = self
            .connections
            .borrow()
            .iter()
            .find(|connection| connection.active.get() == 0)
            .map(Rc::clone);
        if let Some(connection) = idle {
            connection.close();
        }
    }

    pub(super) fn sweep(&self) {
        let idle = self.lifetime.get().idle;
        let over = |connection: &&Rc<Connection>| {
            let unused = connection.active.get() == 0 && connection.idle_since.get().elapsed() >= idle;
            unused || connection.is_used_up() || !connection.is_open()
        };
        let over: Vec<_> = self.connections.borrow().iter().filter(over).map(Rc::clone).collect();
        over.iter().for_each(|connection| connection.close());
    }

    pub(super) fn close_all(&self) {
        let connections = self.connections.take();
        connections.iter().for_each(|connection| connection.close());
    }
}
