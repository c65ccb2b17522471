//! Serves HTTP on a connection, until the client, an error or a drain ends it.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response};
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
/// How long a drain waits for the first request of a connection.
const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// Requests at a time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 1024;
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
pub(crate) async fn serve<I, H, F>(io: I, version: HttpVersion, drain: &Drain, handler: H) -> Result<(), hyper::Error>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Result<Response<Body>, Infallible>> + 'static,
{
    let io = TokioIo::new(io);
    let begun = Rc::new(Begun::default());
    let service = {
        let begun = begun.clone();
        service_fn(move |request| {
            begun.note();
            handler(request)
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
                result = connection.as_mut() => result,
                () = may_end(drain, &begun) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
        HttpVersion::Http2 => {
            let mut builder = hyper::server::conn::http2::Builder::new(LocalExecutor);
            builder
                .timer(TokioTimer::new())
                .auto_date_header(false)
                .max_concurrent_streams(MAX_STREAMS)
                .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
                .initial_stream_window_size(WINDOW.0)
                .initial_connection_window_size(WINDOW.1);
            let connection = builder.serve_connection(io, service);
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                result = connection.as_mut() => result,
                () = may_end(drain, &begun) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    }
}

/// Whether a connection had its first request.
#[derive(Default)]
struct Begun {
    any: Cell<bool>,
    first: Notify,
}

impl Begun {
    fn note(&self) {
        if !self.any.replace(true) {
            self.first.notify_one();
        }
    }
}

/// Resolves when a drain has started and the connection may be asked to end: hyper closes one that has had no request,
/// while its client has just been let in and is about to send it.
async fn may_end(drain: &Drain, begun: &Begun) {
    drain.started().await;
    if !begun.any.get() {
        let _ = tokio::time::timeout(FIRST_REQUEST, begun.first.notified()).await;
    }
}

/// Counts a connection that ended in an error: malformed bytes close it and harm nothing else.
pub(crate) fn count_error(side: &'static str, error: &hyper::Error) {
    let kind = if error.is_parse() || error.is_parse_too_large() {
        "malformed"
    } else if error.is_timeout() {
        "timeout"
    } else {
        "io"
    };
    metrics::counter!("mesh_downstream_connection_errors_total", "side" => side, "kind" => kind).increment(1);
}
