//! What the injector shows in plaintext: whether it is ready, and its metrics. Nothing here changes anything.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{HeaderValue, Method, StatusCode, header};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::server::text;

/// Connections at once; more wait in the system's queue.
const MAX_CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection is kept, idle or slow.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Between foldings of histogram samples, which would otherwise pile up between scrapes.
const UPKEEP: Duration = Duration::from_secs(5);
const TIME_BUCKETS: [f64; 8] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

/// Takes in the `metrics` macros of the process.
pub fn recorder() -> anyhow::Result<PrometheusHandle> {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    if let Some(handle) = HANDLE.get() {
        return Ok(handle.clone());
    }
    let matcher = Matcher::Full("sidecar_injection_time_seconds".to_owned());
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(matcher, &TIME_BUCKETS)?
        .build_recorder();
    let handle = HANDLE.get_or_init(|| recorder.handle());
    // Where another recorder is set already, the page stays empty.
    let _ = metrics::set_global_recorder(recorder);
    for name in ["requests", "success", "failure", "skip"] {
        metrics::counter!(format!("sidecar_injection_{name}_total")).absolute(0);
    }
    Ok(handle.clone())
}

/// Keeps the memory of histograms bounded. Runs for ever.
pub async fn upkeep(handle: PrometheusHandle) {
    let mut interval = tokio::time::interval(UPKEEP);
    loop {
        interval.tick().await;
        handle.run_upkeep();
    }
}

/// Serves until `shutdown`.
pub async fn serve(
    metrics: PrometheusHandle,
    ready: watch::Receiver<bool>,
    listener: TcpListener,
    shutdown: CancellationToken,
) {
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
        let (metrics, ready) = (metrics.clone(), ready.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let page = match (request.method(), request.uri().path()) {
                    (&Method::GET | &Method::HEAD, "/ready" | "/healthz") if *ready.borrow() => {
                        text(StatusCode::OK, "ready\n")
                    }
                    (&Method::GET | &Method::HEAD, "/ready" | "/healthz") => text(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "not ready: the certificate is not published yet, or the injector is stopping\n",
                    ),
                    (&Method::GET | &Method::HEAD, "/metrics") => {
                        let mut answer = text(StatusCode::OK, metrics.render());
                        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
                        answer
                    }
                    (&Method::GET | &Method::HEAD, _) => {
                        text(StatusCode::NOT_FOUND, "no such page; there are /ready and /metrics\n")
                    }
                    _ => text(StatusCode::METHOD_NOT_ALLOWED, "allowed: GET, HEAD\n"),
                };
                async move { Ok::<_, Infallible>(page) }
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
