//! An application for tests: speaks HTTP/1 and HTTP/2, notes what comes, and misbehaves when told to.
//!
//! It answers with its name. A request header `x-answer-with: name: value` puts a header on its answer.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::bodies::{Body, full};

/// What the application does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Answers at once with this status.
    Status(u16),
    /// Answers 200 after a while.
    After(Duration),
    /// Answers 200 when [`Backend::release`] lets it.
    Hold,
    /// Ends the connection instead of answering.
    Reset,
    /// Answers 200, and ends the connection without having said so.
    Last,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Method.
    pub method: http::Method,
    /// Target.
    pub uri: Uri,
    /// Version.
    pub version: Version,
    /// Headers.
    pub headers: HeaderMap,
    /// All of the body.
    pub body: Bytes,
    /// Which connection it came on, from 0.
    pub connection: usize,
}

impl Seen {
    /// First value of a header; empty when there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default()
    }
}

/// A running application; it ends with the value.
pub struct Backend {
    /// What its answers carry as `x-backend`.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    stop: watch::Sender<Going>,
}

/// Whether it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Going {
    No,
    /// When it is done.
    Gently,
    /// At once.
    Now,
}

struct Shared {
    name: HeaderValue,
    seen: Mutex<Vec<Seen>>,
    script: Mutex<VecDeque<Step>>,
    always: Mutex<Step>,
    gate: Semaphore,
    connections: AtomicUsize,
    open: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Backend {
    /// Listens.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn start(name: &str, address: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            name: HeaderValue::from_str(name)?,
            seen: Mutex::default(),
            script: Mutex::default(),
            always: Mutex::new(Step::Status(200)),
            gate: Semaphore::new(0),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        });
        let (stop, stopped) = watch::channel(Going::No);
        tokio::spawn(accept(listener, shared.clone(), stopped));
        Ok(Self {
            name: name.to_owned(),
            address,
            shared,
            stop,
        })
    }

    /// What it does with the next requests, one step each, before it does again as always.
    pub fn then(&self, steps: impl IntoIterator<Item = Step>) {
        lock(&self.shared.script).extend(steps);
    }

    /// What it does with requests from now on; at first, 200 at once.
    pub fn always(&self, step: Step) {
        *lock(&self.shared.always) = step;
    }

    /// Lets so many held requests have their answer.
    pub fn release(&self, requests: usize) {
        self.shared.gate.add_permits(requests);
    }

    /// The requests that came.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.seen).clone()
    }

    /// The requests that came, and forgets them.
    #[allow(clippy::must_use_candidate, reason = "also called to forget them")]
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *lock(&self.shared.seen))
    }

    /// Requests that have no answer yet.
    #[must_use]
    pub fn now(&self) -> usize {
        self.shared.now.load(Ordering::SeqCst)
    }

    /// Most requests that were without an answer at a time.
    #[must_use]
    pub fn most(&self) -> usize {
        self.shared.most.load(Ordering::SeqCst)
    }

    /// Connections that are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Stops listening and breaks all connections.
    pub async fn stop(&self) {
        self.stop.send_replace(Going::Now);
        self.stop.closed().await;
    }

    /// Stops listening at once, and ends connections after what they are doing, as a good application does at SIGTERM.
    pub async fn leave(&self) {
        self.stop.send_replace(Going::Gently);
        self.stop.closed().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Resolves when it is told to go so, or more urgently.
async fn told(stopped: &mut watch::Receiver<Going>, how: Going) {
    let _ = stopped.wait_for(|going| *going >= how).await;
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, mut stopped: watch::Receiver<Going>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = told(&mut stopped, Going::Gently) => break,
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { return };
                connections.spawn(connection(stream, shared.clone(), stopped.clone()));
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    tokio::select! {
        () = told(&mut stopped, Going::Now) => {}
        () = async { while connections.join_next().await.is_some() {} } => {}
    }
    connections.shutdown().await;
}

/// Counts while it lives.
struct Count<'a>(&'a AtomicUsize);

impl<'a> Count<'a> {
    fn new(counter: &'a AtomicUsize) -> (Self, usize) {
        let count = counter.fetch_add(1, Ordering::SeqCst) + 1;
        (Self(counter), count)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>, mut stopped: watch::Receiver<Going>) {
    let number = shared.connections.fetch_add(1, Ordering::SeqCst);
    let (_open, _) = Count::new(&shared.open);
    let _ = stream.set_nodelay(true);
    // HTTP/2 begins with "PRI".
    let mut start = [0; 3];
    while let Ok(length) = stream.peek(&mut start).await {
        if length == 0 || length == start.len() || start[0] != b'P' {
            break;
        }
        tokio::task::yield_now().await;
    }
    let end = Arc::new(tokio::sync::Notify::new());
    let service = {
        let (shared, end) = (shared.clone(), end.clone());
        service_fn(move |request| {
            let (shared, end) = (shared.clone(), end.clone());
            async move { answer(&shared, &end, number, request).await }
        })
    };
    let io = TokioIo::new(stream);
    // How a connection ends is the tests' own doing.
    if &start == b"PRI" {
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        // It puts up with callers that give up, however late it gets to know of them.
        builder
            .max_pending_accept_reset_streams(10_000)
            .max_local_error_reset_streams(None);
        let mut serving = std::pin::pin!(builder.serve_connection(io, service));
        tokio::select! {
            _ = serving.as_mut() => {}
            () = told(&mut stopped, Going::Gently) => {
                serving.as_mut().graceful_shutdown();
                let _ = serving.await;
            }
        }
    } else {
        let serving = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
        let mut serving = std::pin::pin!(serving.with_upgrades());
        tokio::select! {
            _ = serving.as_mut() => {}
            () = end.notified() => {}
            () = told(&mut stopped, Going::Gently) => {
                serving.as_mut().graceful_shutdown();
                let _ = serving.await;
            }
        }
    }
}

/// A connection is ended by failing the service.
#[derive(Debug, thiserror::Error)]
#[error("the test asked for a reset")]
struct ResetAsked;

async fn answer(
    shared: &Shared,
    end: &Arc<tokio::sync::Notify>,
    connection: usize,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, ResetAsked> {
    let upgrading = request.headers().contains_key(http::header::UPGRADE);
    let upgrade = upgrading.then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let step = lock(&shared.script).pop_front();
    let step = step.unwrap_or_else(|| *lock(&shared.always));
    let (_now, count) = Count::new(&shared.now);
    shared.most.fetch_max(count, Ordering::SeqCst);
    lock(&shared.seen).push(Seen {
        method: parts.method,
        uri: parts.uri.clone(),
        version: parts.version,
        headers: parts.headers.clone(),
        body: body.clone(),
        connection,
    });
    let mut status = 200;
    match step {
        Step::Status(code) => status = code,
        Step::After(delay) => tokio::time::sleep(delay).await,
        Step::Hold => {
            if let Ok(permit) = shared.gate.acquire().await {
                permit.forget();
            }
        }
        Step::Reset => return Err(ResetAsked),
        Step::Last => {
            let end = end.clone();
            tokio::spawn(async move {
                // After the answer has been written.
                tokio::time::sleep(Duration::from_millis(20)).await;
                end.notify_one();
            });
        }
    }
    let mut response = match upgrade {
        Some(upgrade) => super::tcp::accept_upgrade(&parts.headers, upgrade),
        None => Response::new(full(shared.name.as_bytes().to_vec())),
    };
    if status != 200 {
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    }
    let headers = response.headers_mut();
    headers.insert("x-backend", shared.name.clone());
    for extra in parts.headers.get_all("x-answer-with") {
        if let Some((name, value)) = extra.to_str().ok().and_then(|extra| extra.split_once(": "))
            && let (Ok(name), Ok(value)) = (name.parse::<http::HeaderName>(), value.parse())
        {
            headers.append(name, value);
        }
    }
    Ok(response)
}
