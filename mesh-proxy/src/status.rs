//! The status port of a pod's sidecar, 15020: the application's health checks, and its metrics together with the proxy's.
//!
//! The kubelet and Prometheus have no identity in the mesh and still must reach the application when it takes mutual TLS
//! only; so they ask here, and the proxy asks the application beside it. Nothing of the application's can fail the proxy's
//! own part. Nothing here changes anything, but for ending the proxy when a process of the same pod asks for it.

mod client;
mod merge;
mod probe;
mod spec;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, server};
use client::{Version, Where};
use merge::Form;
use probe::Asked;
pub use spec::{Action, Grpc, Header, HttpGet, InvalidProbers, Probe, Probers, Scheme, Scrape, TcpSocket};

/// Largest page of the application's metrics.
const MOST_METRICS: usize = 16 * 1024 * 1024;
/// How long the application may take for them when the scraper does not say how long it waits.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(9);
/// Longest time that a scraper may ask for.
const MOST_SCRAPE_TIMEOUT: Duration = Duration::from_secs(60);
const SCRAPE_TIMEOUT_HEADER: &str = "x-prometheus-scrape-timeout-seconds";

/// What the status port knows.
pub struct Status {
    /// Readiness, the proxy's metrics, and its end.
    pub admin: Arc<Admin>,
    /// The pod's address, where the application listens.
    pub own: IpAddr,
    /// The port that is served.
    pub port: u16,
    /// The application's health checks.
    pub probers: Probers,
    /// The application's metrics.
    pub scrape: Scrape,
}

/// Serves the port until `shutdown`.
pub async fn serve(status: Arc<Status>, listener: TcpListener, shutdown: CancellationToken) {
    server::serve(listener, "status", shutdown, move |request, peer| {
        let status = status.clone();
        async move { status.answer(request, peer).await }
    })
    .await;
}

/// Listens on all addresses of both families, or of IPv4 where there is no other.
///
/// # Errors
/// When the port is taken.
pub fn bind(port: u16) -> std::io::Result<TcpListener> {
    let both = bind_to(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port));
    match both {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(error),
        Err(_) => bind_to(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)),
    }
}

fn bind_to(address: SocketAddr) -> std::io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(
        domain,
        socket2::Type::STREAM.nonblocking(),
        Some(socket2::Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

impl Status {
    async fn answer(&self, request: Request<Incoming>, peer: SocketAddr) -> server::Answer {
        let path = request.uri().path();
        if path == "/quitquitquit" {
            return self.quit(&request, peer);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return server::method_not_allowed("GET, HEAD");
        }
        match path {
            "/healthz/ready" => self.admin.readiness(),
            "/stats/prometheus" | "/metrics" => self.metrics(request.headers()).await,
            path => match self.probers.get(path) {
                Some(probe) => {
                    let asked = Asked {
                        headers: request.headers(),
                        port: self.port,
                    };
                    let verdict = probe::run(probe, self.own, &asked).await;
                    let mut answer = server::Answer::new(Full::new(verdict.body));
                    *answer.status_mut() = verdict.status;
                    answer
                }
                None => server::text(
                    StatusCode::NOT_FOUND,
                    "served here: /healthz/ready, /stats/prometheus, and the health checks of this pod under /app-health/\n",
                ),
            },
        }
    }

    /// Jobs with Istio's sidecar end it here, from a process of the pod itself.
    fn quit(&self, request: &Request<Incoming>, peer: SocketAddr) -> server::Answer {
        if !peer.ip().to_canonical().is_loopback() {
            return server::text(StatusCode::FORBIDDEN, "only from the pod itself, over loopback\n");
        }
        if request.headers().contains_key(header::ORIGIN) {
            return server::text(StatusCode::FORBIDDEN, "not from a browser\n");
        }
        if *request.method() != Method::POST {
            return server::method_not_allowed("POST");
        }
        self.admin.quit.cancel();
        server::text(StatusCode::OK, "OK\n")
    }

    /// The proxy's metrics, and the application's if they come.
    async fn metrics(&self, asked: &HeaderMap) -> server::Answer {
        let scraped = match &self.scrape {
            Scrape::Off => None,
            Scrape::Unusable(reason) => Some(Err(reason.clone())),
            Scrape::At { port, .. } if *port == self.port => {
                Some(Err("prometheus.io/port is the sidecar's own".to_owned()))
            }
            Scrape::At { port, path } => {
                let timeout = scrape_timeout(asked);
                let scraping = scrape(self.own, *port, path, asked, timeout);
                Some(match tokio::time::timeout(timeout, scraping).await {
                    Ok(scraped) => scraped,
                    Err(_) => Err(format!("no answer within {timeout:?}")),
                })
            }
        };
        let mut own = String::with_capacity(64 * 1024);
        self.admin.telemetry.render_prometheus(&mut own);
        let merged = scraped.map(|scraped| {
            let (text, form) = scraped?;
            Ok((merge::merge(&own, &text, form)?, form))
        });
        let (page, form) = match merged {
            None => (merge::alone(&own, None), Form::Text),
            Some(Ok(merged)) => {
                metrics::counter!("mesh_application_scrapes_total", "result" => "success").increment(1);
                merged
            }
            Some(Err(reason)) => {
                let reason: String = reason;
                metrics::counter!("mesh_application_scrapes_total", "result" => "failure").increment(1);
                tracing::debug!(%reason, "the application's metrics are missing");
                (merge::alone(&own, Some(&reason)), Form::Text)
            }
        };
        let mut answer = server::text(StatusCode::OK, page);
        let kind = HeaderValue::from_static(form.content_type());
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
        answer
    }
}

/// A little less than the scraper waits, so that the proxy's part still comes in time.
fn scrape_timeout(asked: &HeaderMap) -> Duration {
    let given = asked
        .get(SCRAPE_TIMEOUT_HEADER)
        .and_then(|value| value.to_str().ok()?.parse::<f64>().ok());
    let given = given.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    given.map_or(SCRAPE_TIMEOUT, |given| given.min(MOST_SCRAPE_TIMEOUT).mul_f64(0.9))
}

/// Reads the application's page.
async fn scrape(
    own: IpAddr,
    port: u16,
    path: &str,
    asked: &HeaderMap,
    timeout: Duration,
) -> Result<(String, Form), String> {
    let address = SocketAddr::new(own, port);
    let stream = match client::connect(address, Where::Here).await {
        Ok(stream) => stream,
        // It may keep its metrics to loopback.
        Err(error) => {
            let loopback: IpAddr = if own.is_ipv4() {
                Ipv4Addr::LOCALHOST.into()
            } else {
                Ipv6Addr::LOCALHOST.into()
            };
            let second = client::connect(SocketAddr::new(loopback, port), Where::Here).await;
            second.map_err(|_| format!("cannot connect to {address}: {error}"))?
        }
    };
    // What cannot be merged is not asked for.
    let open = asked.get_all(header::ACCEPT).iter().any(|accept| {
        accept
            .to_str()
            .is_ok_and(|accept| accept.contains("application/openmetrics-text"))
    });
    let accept = if open {
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5"
    } else {
        "text/plain;version=0.0.4"
    };
    let mut request = Request::builder()
        .uri(path)
        .header(header::HOST, address.to_string())
        .header(header::ACCEPT, accept)
        .header(SCRAPE_TIMEOUT_HEADER, timeout.as_secs_f64().to_string())
        .body(Full::<Bytes>::default())
        .map_err(|error| format!("prometheus.io/path `{path}`: {error}"))?;
    if let Some(agent) = asked.get(header::USER_AGENT) {
        request.headers_mut().insert(header::USER_AGENT, agent.clone());
    }
    let reply = client::exchange(Box::new(stream), Version::Http1, request, MOST_METRICS).await?;
    if reply.status != StatusCode::OK {
        return Err(format!("{address}{path} answers with status {}", reply.status));
    }
    if reply.cut {
        return Err(format!("{address}{path} has more than {MOST_METRICS} bytes"));
    }
    if reply.headers.contains_key(header::CONTENT_ENCODING) {
        return Err(format!("{address}{path} is compressed, though nobody asked for it"));
    }
    let kind = reply
        .headers
        .get(header::CONTENT_TYPE)
        .map(|kind| kind.to_str().unwrap_or("unreadable"));
    let form =
        Form::of(kind).ok_or_else(|| format!("{address}{path} has content type {}", kind.unwrap_or_default()))?;
    let text = String::from_utf8(reply.body.into()).map_err(|_| format!("{address}{path} is not UTF-8"))?;
    Ok((text, form))
}

#[cfg(test)]
mod tests;
