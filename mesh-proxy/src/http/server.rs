//! Serves HTTP on a connection, until the client, an error or a drain ends it.

use std::cell::Cell;
use std::convert::Infallible;
use std::error::Error as _;
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use super::HttpVersion;
use crate::body::Body;
use crate::drain::Drain;

/// Most headers of a request.
const MAX_HEADERS: usize = 100;
/// Most bytes of a request's head, Envoy's limit; more gets 431.
const MAX_HEAD: usize = 60 * 1024;
/// A connection without a complete request head for so long is closed; Envoy's and Istio's idle timeout.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long a drain waits for the first request of an HTTP/2 connection.
const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// How long a drain waits for one more request on an HTTP/1 connection. Its client may be about to send it, and is told only
/// with the answer that it is the last; closed at once, the connection would take a request with it that nobody may repeat.
const LAST_REQUEST: Duration = Duration::from_secs(1);
/// Requests at a time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 1024;
/// Streams that a client has reset before we got to look at them, as many as it may have open. h2's own limit of 20 is met
/// by any busy peer whose callers give up while this process has to wait for its turn on the CPU.
const MAX_UNSEEN_RESETS: usize = MAX_STREAMS as usize;
/// Streams that we reset for what a client sent on them, in the whole life of a connection. A client that is still sending
/// a body when it gets its answer makes us do so, so h2's limit of 1024 ends connections that live long enough.
const MAX_OWN_RESETS: usize = 16 * 1024;
/// Requests that a client may call off on one connection within [`CALLED_OFF_WITHIN`]. Past it the connection is asked to
/// end; its other requests go on. This bounds what a rapid reset attack (CVE-2023-44487) gets done for a handshake.
const CALLED_OFF_MOST: u32 = 1024;
const CALLED_OFF_WITHIN: Duration = Duration::from_secs(1);
/// Flow control windows of HTTP/2, for a stream and a connection.
const WINDOW: (u32, u32) = (256 * 1024, 1024 * 1024);

/// Runs futures of hyper on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Serves a connection; `handler` answers each request. When a drain starts, HTTP/1.1 responses get `connection: close` and
/// HTTP/2 a GOAWAY, and the connection ends after what it is doing. When the client goes away, so do its requests: `handler`'s
/// futures are dropped.
///
/// # Errors
/// When the connection broke, or its client called off too many requests.
pub(crate) async fn serve<I, H, F>(io: I, version: HttpVersion, drain: &Drain, handler: H) -> Result<(), ServeError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Result<Response<Body>, Infallible>> + 'static,
{
    let io = TokioIo::new(io);
    let requests = Rc::new(Requests::default());
    let service = {
        let requests = requests.clone();
        service_fn(move |request: Request<Incoming>| {
            let begun = requests.begin();
            let may_be_last = version == HttpVersion::Http1 && request.method() != Method::CONNECT;
            let answer = handler(request);
            async move {
                let mut response = answer.await;
                if let Ok(response) = &mut response
                    && may_be_last
                    && begun.requests.ending.get()
                    && response.status() != StatusCode::SWITCHING_PROTOCOLS
                {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(http::header::CONNECTION, close);
                }
                begun.answered();
                response
            }
        })
    };
    match version {
        HttpVersion::Http1 => {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE_TIMEOUT)
                .auto_date_header(false)
                .max_headers(MAX_HEADERS)
                .max_buf_size(MAX_HEAD)
                .serve_connection(io, service)
                .with_upgrades();
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                result = connection.as_mut() => return Ok(result?),
                () = drain.started() => requests.ending.set(true),
            }
            // Not cut short when listeners close: who was let in last has not sent its request yet.
            tokio::select! {
                result = connection.as_mut() => return Ok(result?),
                () = tokio::time::sleep(LAST_REQUEST) => {}
            }
            connection.as_mut().graceful_shutdown();
            Ok(connection.await?)
        }
        HttpVersion::Http2 => {
            let mut builder = hyper::server::conn::http2::Builder::new(LocalExecutor);
            builder
                .timer(TokioTimer::new())
                .auto_date_header(false)
                .max_concurrent_streams(MAX_STREAMS)
                .max_pending_accept_reset_streams(MAX_UNSEEN_RESETS)
                .max_local_error_reset_streams(MAX_OWN_RESETS)
                .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
                .initial_stream_window_size(WINDOW.0)
                .initial_connection_window_size(WINDOW.1);
            let connection = builder.serve_connection(io, service);
            let mut connection = std::pin::pin!(connection);
            let flooded = tokio::select! {
                result = connection.as_mut() => return Ok(result?),
                () = may_end(drain, &requests) => false,
                () = requests.too_many.notified() => true,
            };
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                result = connection.as_mut() => match (result, flooded) {
                    (Ok(()), true) => Err(ServeError::Flooded),
                    (result, _) => Ok(result?),
                },
                // It goes on as if nothing had been said.
                () = requests.too_many.notified() => Err(ServeError::Flooded),
            }
        }
    }
}

/// Why a connection did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// It broke, or its client broke the rules of HTTP.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// Its client called off more requests than [`CALLED_OFF_MOST`] at a time.
    #[error("the client called off too many requests")]
    Flooded,
}

/// The requests of a connection.
#[derive(Default)]
struct Requests {
    any: Cell<bool>,
    first: Notify,
    /// Whether the next answer of HTTP/1 is the connection's last.
    ending: Cell<bool>,
    /// Those that were called off since then.
    called_off: Cell<(u32, Option<Instant>)>,
    too_many: Notify,
}

impl Requests {
    fn begin(self: &Rc<Self>) -> BegunRequest {
        if !self.any.replace(true) {
            self.first.notify_one();
        }
        BegunRequest {
            requests: self.clone(),
            answered: false,
        }
    }

    fn call_off(&self) {
        let now = Instant::now();
        let (count, since) = match self.called_off.get() {
            (count, Some(since)) if now - since < CALLED_OFF_WITHIN => (count + 1, since),
            _ => (1, now),
        };
        if count > CALLED_OFF_MOST {
            self.called_off.set((0, None));
            self.too_many.notify_one();
        } else {
            self.called_off.set((count, Some(since)));
        }
    }
}

/// A request without an answer yet; dropped as such, it counts as called off.
struct BegunRequest {
    requests: Rc<Requests>,
    answered: bool,
}

impl BegunRequest {
    fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for BegunRequest {
    fn drop(&mut self) {
        if !self.answered {
            self.requests.call_off();
        }
    }
}

/// Resolves when a drain has started and an HTTP/2 connection may be asked to end: hyper closes one that has had no request,
/// while its client has just been let in and is about to send it.
async fn may_end(drain: &Drain, requests: &Requests) {
    drain.started().await;
    if !requests.any.get() {
        let _ = tokio::time::timeout(FIRST_REQUEST, requests.first.notified()).await;
    }
}

/// Counts a connection that ended in an error: malformed bytes close it and harm nothing else.
pub(crate) fn count_error(side: &'static str, error: &ServeError) {
    let kind = match error {
        ServeError::Flooded => "flood",
        ServeError::Http(error) if error.is_parse() || error.is_parse_too_large() => "malformed",
        ServeError::Http(error) if error.is_timeout() => "timeout",
        ServeError::Http(error) if is_flood(error) => "flood",
        ServeError::Http(_) => "io",
    };
    metrics::counter!("mesh_downstream_connection_errors_total", "side" => side, "kind" => kind).increment(1);
}

/// Whether we ended an HTTP/2 connection because its client made us work for nothing (RFC 9113 §10.5).
fn is_flood(error: &hyper::Error) -> bool {
    let h2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    h2.is_some_and(|error| error.is_library() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM))
}
