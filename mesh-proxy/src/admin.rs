//! The proxy's administration over HTTP/1.1: what it holds, what it counted, whether it is ready; and, by POST on the
//! loopback listener only, draining, ending, and the level of its log.
//!
//! Three faces on three ports: everything on the administration port, metrics on the metrics port, readiness on the
//! readiness port. It runs beside discovery, never on a worker, and hands out no key.

mod certificates;
mod json;
mod pages;
pub(crate) mod server;
mod stats;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderValue, Method, Request, StatusCode, header};
use mesh_api::model;
use mesh_api::names::WorkloadId;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::drain::{Drain, Stage};
use crate::identity::CertStore;
use crate::logging::Logging;
use crate::telemetry::Telemetry;
use server::{Answer, method_not_allowed, text};

/// Longest recording of live events, in seconds.
const MOST_SECONDS: u64 = 60;

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
    /// Draining, and the number of open connections.
    pub drain: Drain,
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

impl Admin {
    /// Why traffic should not come yet, or no more; `None` when it should.
    #[must_use]
    pub fn not_ready(&self) -> Option<&'static str> {
        // A drain that keeps to inbound traffic still serves who comes: then nobody needs to be told from here.
        if self.drain.stage() > Stage::Draining || self.quit.is_cancelled() {
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

    async fn answer(&self, face: Face, request: &Request<hyper::body::Incoming>) -> Answer {
        let path = request.uri().path();
        let query = request.uri().query().unwrap_or_default();
        let allowed = match face {
            Face::Administration => true,
            Face::Metrics => matches!(path, "/stats/prometheus" | "/metrics" | "/stats" | "/" | "/help"),
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
            Method::GET if path == "/debug/pprof/trace" => self.record(query).await,
            Method::GET | Method::HEAD => self.page(face, path, query),
            _ => method_not_allowed("GET, HEAD"),
        }
    }

    fn change(&self, path: &str, query: &str) -> Answer {
        match path {
            "/drain" if query == "inboundonly" => self.drain.start(),
            "/drain" => self.drain.end(),
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

    /// Records live events for a while.
    async fn record(&self, query: &str) -> Answer {
        let seconds = query.split('&').find_map(|pair| pair.strip_prefix("seconds="));
        let seconds = match seconds.map_or(Ok(1), str::parse) {
            Ok(seconds @ 1..=MOST_SECONDS) => seconds,
            _ => {
                return text(
                    StatusCode::BAD_REQUEST,
                    format!("expected /debug/pprof/trace?seconds=N with N from 1 to {MOST_SECONDS}\n"),
                );
            }
        };
        let Some(recording) = self.telemetry.record_events() else {
            return text(StatusCode::CONFLICT, "somebody else is recording; try again later\n");
        };
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let mut answer = server::json(recording.finish(&self.workload.to_string()));
        let disposition = HeaderValue::from_static("attachment; filename=trace.json");
        answer.headers_mut().insert(header::CONTENT_DISPOSITION, disposition);
        answer
    }

    /// Whether traffic may come.
    pub(crate) fn readiness(&self) -> Answer {
        match self.not_ready() {
            None => text(StatusCode::OK, "ready\n"),
            Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
        }
    }

    fn page(&self, face: Face, path: &str, query: &str) -> Answer {
        let as_json = query.split('&').any(|pair| pair == "format=json");
        match path {
            "/" | "/help" => text(StatusCode::OK, pages::help(face)),
            "/config_dump" => json_answer(&pages::config_dump(self, &(self.view)())),
            "/certs" => json_answer(&certificates::page(&self.certificates)),
            "/clusters" if as_json => json_answer(&pages::clusters_json(&(self.view)())),
            "/clusters" => text(StatusCode::OK, pages::clusters_text(&(self.view)())),
            "/server_info" => json_answer(&pages::server_info(self)),
            "/logging" => text(StatusCode::OK, format!("{}\n", self.logging.current())),
            "/stats" => stats::page(self, query),
            "/stats/prometheus" | "/metrics" => stats::prometheus(self),
            "/healthz/ready" | "/ready" => self.readiness(),
            _ => text(StatusCode::NOT_FOUND, "no such page; see /help\n"),
        }
    }
}

/// Serves one face on one port until `shutdown`.
pub async fn serve(admin: Arc<Admin>, face: Face, listener: TcpListener, shutdown: CancellationToken) {
    let purpose = match face {
        Face::Administration => "administration",
        Face::Metrics => "metrics",
        Face::Readiness => "readiness",
    };
    server::serve(listener, purpose, shutdown, move |request, _| {
        let admin = admin.clone();
        async move { admin.answer(face, &request).await }
    })
    .await;
}

fn json_answer(value: &serde_json::Value) -> Answer {
    server::json(format!("{value:#}\n"))
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
pub(crate) mod tests;
