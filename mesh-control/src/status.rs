//! What the control plane shows over plaintext HTTP/1.1: metrics, the state of proxies, what is wrong in the sources.
//! Nothing here changes anything, and no secret is shown.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_api::source::Diagnostic;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::discovery::Discovery;

/// Connections at once; more wait in the system's queue.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection is kept, idle or slow.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
const MAX_HEADER_BYTES: usize = 16 * 1024;

const HELP: &str = "\
GET /debug/syncz        state of every connected proxy
GET /debug/diagnostics  what is wrong in the sources of policy
GET /metrics            metrics
GET /ready              200 when proxies are served
GET /version            version
";

/// What the pages show.
pub struct Pages {
    /// The state of proxies.
    pub discovery: Discovery,
    /// The metrics page.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
    /// Findings in the sources, as they are now.
    pub diagnostics: Box<dyn Fn() -> Arc<[Diagnostic]> + Send + Sync>,
    /// How far the start has come.
    pub stage: Box<dyn Fn() -> Stage + Send + Sync>,
}

/// How far a control plane has come. It never goes back: an API server that is away takes nothing from what is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The certificate authority's keys are read.
    Authority,
    /// The sources of policy are read for the first time.
    Policy,
    /// Proxies are served.
    Serving,
}

type Answer = Response<Full<Bytes>>;

impl Pages {
    fn answer(&self, request: &Request<hyper::body::Incoming>) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "allowed: GET, HEAD\n");
        }
        match request.uri().path() {
            "/" | "/help" => text(StatusCode::OK, HELP),
            "/debug/syncz" => json(&self.discovery.status()),
            "/debug/diagnostics" => json(&diagnostics(&(self.diagnostics)())),
            "/metrics" => {
                let mut answer = text(StatusCode::OK, (self.metrics)());
                let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                answer.headers_mut().insert(header::CONTENT_TYPE, kind);
                answer
            }
            "/ready" | "/healthz" | "/healthz/ready" => match (self.stage)() {
                Stage::Serving => text(StatusCode::OK, "ready\n"),
                Stage::Policy => text(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "not ready: the sources of policy are still read\n",
                ),
                Stage::Authority => text(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "not ready: the certificate authority's keys cannot be read yet, see the log\n",
                ),
            },
            "/version" => json(&serde_json::json!({ "version": env!("CARGO_PKG_VERSION") })),
            _ => text(StatusCode::NOT_FOUND, "no such page; see /help\n"),
        }
    }
}

/// Each with its fields, and as the line that people read.
fn diagnostics(diagnostics: &[Diagnostic]) -> serde_json::Value {
    diagnostics
        .iter()
        .map(|diagnostic| serde_json::json!({ "text": diagnostic.to_string(), "diagnostic": diagnostic }))
        .collect()
}

/// Serves until `shutdown`.
pub async fn serve(pages: Arc<Pages>, listener: TcpListener, shutdown: CancellationToken) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = connections.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("accepting a connection for status: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let pages = pages.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = pages.answer(&request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(MAX_HEADER_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            // Whoever breaks off, or reads no answer, concerns nobody else.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
            drop(place);
        });
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec_pretty(value) {
        Ok(body) => {
            let mut answer = text(StatusCode::OK, body);
            let kind = HeaderValue::from_static("application/json");
            answer.headers_mut().insert(header::CONTENT_TYPE, kind);
            answer
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}
