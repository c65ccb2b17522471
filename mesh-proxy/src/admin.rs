//! The proxy's administration over HTTP/1.1: what it holds, what it counted, whether it is ready; and, by POST on the
//! loopback listener only, draining, ending, and the level of its log.
//!
//! Three faces on three ports: everything on the administration port, metrics on the metrics port, readiness on the
//! readiness port. It runs beside discovery, never on a worker, and hands out no key.

mod certificates;
mod json;
mod pages;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_api::model;
use mesh_api::names::WorkloadId;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::identity::CertStore;
use crate::logging::Logging;
use crate::telemetry::Telemetry;

/// Connections at once on each port; more wait in the system's queue.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an idle connection, or one that is read slowly, is kept.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// Requests here are short.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// What administration shows and does.
pub struct Admin {
    /// The workload that this proxy is beside.
    pub workload: WorkloadId,
    /// Boot configuration, as text.
    pub boot: String,
    /// What the control plane said, at the moment of the call.
    pub view: Box<dyn Fn() -> View + Send + Sync>,
    /// Metrics.
    pub telemetry: Arc<Telemetry>,
    /// The proxy's own certificate.
    pub certificates: Arc<CertStore>,
    /// Level of the log.
    pub logging: Logging,
    /// Cancelled when connections shall end after what they are doing.
    pub drain: CancellationToken,
    /// Cancelled when the process shall drain and end.
    pub quit: CancellationToken,
    /// When the proxy started.
    pub started: Instant,
}

/// What the proxy holds at one moment.
#[derive(Default)]
pub struct View {
    /// What holds for every proxy.
    pub settings: Option<Arc<model::MeshSettings>>,
    /// How this workload receives traffic.
    pub inbound: Option<Arc<model::Inbound>>,
    /// Destinations, by the name that was asked for.
    pub destinations: Vec<(String, Found)>,
    /// Clusters with their endpoints.
    pub clusters: Vec<ClusterView>,
}

/// The answer to a name.
pub enum Found {
    /// Of the mesh.
    Destination(Arc<model::Destination>),
    /// Not in the mesh.
    Nothing,
    /// Not answered yet.
    Waiting,
}

/// A cluster in use.
pub struct ClusterView {
    /// `outbound|9080|v1|reviews.default.svc.cluster.local`.
    pub name: String,
    /// Its endpoints.
    pub endpoints: Vec<EndpointView>,
}

/// An endpoint in use.
pub struct EndpointView {
    /// Where it is.
    pub address: SocketAddr,
    /// What the control plane says of it.
    pub facts: model::Endpoint,
    /// Requests and connections that it works on for this proxy.
    pub in_flight: u32,
    /// Whether outlier detection leaves it alone at present.
    pub ejected: bool,
    /// How often it was ejected.
    pub ejections: u64,
}

/// Which part of administration a port serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    /// Everything, changes included. For loopback only.
    Administration,
    /// Metrics.
    Metrics,
    /// Readiness.
    Readiness,
}

type Answer = Response<Full<Bytes>>;

impl Admin {
    /// Why traffic should not come yet, or no more; `None` when it should.
    #[must_use]
    pub fn not_ready(&self) -> Option<&'static str> {
        if self.drain.is_cancelled() || self.quit.is_cancelled() {
            return Some("draining");
        }
        let view = (self.view)();
        if !self
            .certificates
            .current()
            .is_some_and(|credentials| credentials.is_live())
        {
            return Some("no certificate from the control plane yet");
        }
        if view.settings.is_none() {
            return Some("no mesh settings from the control plane yet");
        }
        if view.inbound.is_none() {
            return Some("no policy for this workload from the control plane yet");
        }
        None
    }

    fn answer(&self, face: Face, request: &Request<hyper::body::Incoming>) -> Answer {
        let path = request.uri().path();
        let query = request.uri().query().unwrap_or_default();
        let allowed = match face {
            Face::Administration => true,
            Face::Metrics => matches!(path, "/stats/prometheus" | "/metrics" | "/stats"),
            Face::Readiness => path == "/healthz/ready",
        };
        if !allowed {
            return text(StatusCode::NOT_FOUND, "not served on this port\n");
        }
        let changes = matches!(path, "/drain" | "/quitquitquit") || (path == "/logging" && !query.is_empty());
        if changes {
            // A page in somebody's browser must not end a proxy: browsers send `Origin` with such requests.
            if request.headers().contains_key(header::ORIGIN) {
                return text(StatusCode::FORBIDDEN, "not from a browser\n");
            }
            return match *request.method() {
                Method::POST => self.change(path, query),
                _ => method_not_allowed("POST"),
            };
        }
        match *request.method() {
            Method::GET | Method::HEAD => self.page(path, query),
            _ => method_not_allowed("GET, HEAD"),
        }
    }

    fn change(&self, path: &str, query: &str) -> Answer {
        match path {
            "/drain" => self.drain.cancel(),
            "/quitquitquit" => self.quit.cancel(),
            _ => {
                let level = query.split('&').find_map(|pair| pair.strip_prefix("level="));
                let Some(level) = level else {
                    return text(StatusCode::BAD_REQUEST, "expected /logging?level=<filter>\n");
                };
                if let Err(error) = self.logging.set(&percent_decoded(level)) {
                    return text(StatusCode::BAD_REQUEST, format!("{error}\n"));
                }
            }
        }
        text(StatusCode::OK, "OK\n")
    }

    fn page(&self, path: &str, query: &str) -> Answer {
        let as_json = query.split('&').any(|pair| pair == "format=json");
        match path {
            "/" | "/help" => text(StatusCode::OK, pages::HELP),
            "/config_dump" => json_answer(&pages::config_dump(self, &(self.view)())),
            "/certs" => json_answer(&certificates::page(&self.certificates)),
            "/clusters" if as_json => json_answer(&pages::clusters_json(&(self.view)())),
            "/clusters" => text(StatusCode::OK, pages::clusters_text(&(self.view)())),
            "/server_info" => json_answer(&pages::server_info(self)),
            "/logging" => text(StatusCode::OK, format!("{}\n", self.logging.current())),
            "/stats/prometheus" | "/metrics" | "/stats" => {
                let mut page = String::with_capacity(64 * 1024);
                self.telemetry.render_prometheus(&mut page);
                let mut answer = text(StatusCode::OK, page);
                let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                answer.headers_mut().insert(header::CONTENT_TYPE, kind);
                answer
            }
            "/healthz/ready" | "/ready" => match self.not_ready() {
                None => text(StatusCode::OK, "ready\n"),
                Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
            },
            _ => text(StatusCode::NOT_FOUND, "no such page; see /help\n"),
        }
    }
}

/// Serves one face on one port until `shutdown`.
pub async fn serve(admin: Arc<Admin>, face: Face, listener: TcpListener, shutdown: CancellationToken) {
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
                tracing::warn!(%error, ?face, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let admin = admin.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = admin.answer(face, &request);
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

fn json_answer(value: &serde_json::Value) -> Answer {
    let mut answer = text(StatusCode::OK, format!("{value:#}\n"));
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn method_not_allowed(allow: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("allowed: {allow}\n"));
    answer
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static(allow));
    answer
}

/// RFC 3986 section 2.1; what is malformed stays as it is.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = (byte == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        let escaped = escaped.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        out.push(escaped.unwrap_or(byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests;
