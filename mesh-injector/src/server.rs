//! HTTPS around the webhooks: TLS and HTTP/1.1 or HTTP/2 come in from the API server, bodies are handed on. Sizes, times
//! and numbers are bounded; what a client says otherwise concerns only its own connection.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{Unanswered, Webhooks};
use crate::cluster::Cluster;

/// The API server takes objects of up to 3 MiB; an update comes with the old one.
pub const MAX_BODY: usize = 8 * 1024 * 1024;
/// Connections at once; more wait in the system's queue. An API server needs one or two.
const MAX_CONNECTIONS: usize = 256;
/// Requests whose bodies are held at once.
const MAX_REQUESTS: usize = 64;
const MAX_STREAMS: u32 = 100;
const MAX_HEADER_BYTES: u32 = 64 * 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// A silent peer is asked whether it lives, and left after as long without an answer.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long connections may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(10);

type Answer = Response<Full<Bytes>>;

/// The TLS settings of the webhooks. Clients are not asked for a certificate, as API servers rarely have one.
///
/// # Errors
/// When the protocol versions cannot be set, which does not happen.
pub fn tls_config(resolver: Arc<dyn ResolvesServerCert>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Serves until `shutdown`, then lets connections end.
pub async fn serve<C: Cluster>(
    webhooks: Arc<Webhooks<C>>,
    tls: Arc<ServerConfig>,
    listener: TcpListener,
    shutdown: CancellationToken,
) {
    let server = Arc::new(Server {
        webhooks,
        acceptor: TlsAcceptor::from(tls),
        requests: Semaphore::new(MAX_REQUESTS),
        shutdown: shutdown.clone(),
    });
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            break;
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let server = server.clone();
                connections.spawn(async move {
                    server.connection(stream).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("accepting a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    // Whoever does not end is left behind.
    let _ = tokio::time::timeout(STOP_LIMIT, connections.wait()).await;
}

struct Server<C> {
    webhooks: Arc<Webhooks<C>>,
    acceptor: TlsAcceptor,
    requests: Semaphore,
    shutdown: CancellationToken,
}

impl<C: Cluster> Server<C> {
    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                metrics::counter!("injector_handshake_failures_total").increment(1);
                return tracing::debug!("TLS handshake: {error}");
            }
            Err(_) => {
                metrics::counter!("injector_handshake_failures_total").increment(1);
                return;
            }
        };
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let server = self.clone();
        let service = service_fn(move |request| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        let io = TokioIo::new(stream);
        // A connection that breaks off concerns nobody else.
        if is_http2 {
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .max_header_list_size(MAX_HEADER_BYTES)
                .keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE)
                .serve_connection(io, service);
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                _ = &mut connection => return,
                () = self.shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        } else {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(MAX_HEADER_BYTES as usize)
                .serve_connection(io, service);
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                _ = &mut connection => return,
                () = self.shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path();
        let injection = match path {
            "/inject" => true,
            "/validate" => false,
            "/ready" => return text(StatusCode::OK, "ready\n"),
            _ => return text(StatusCode::NOT_FOUND, "no such page; there are /inject and /validate\n"),
        };
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "allowed: POST\n");
        }
        let Ok(_place) = self.requests.acquire().await else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
        };
        let limited = Limited::new(request.into_body(), MAX_BODY);
        let body = match tokio::time::timeout(BODY_TIMEOUT, limited.collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let message = format!("the body is larger than {MAX_BODY} bytes\n");
                return text(StatusCode::PAYLOAD_TOO_LARGE, message);
            }
            Ok(Err(_)) => return text(StatusCode::BAD_REQUEST, "the body broke off\n"),
            Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the body took too long\n"),
        };
        let outcome = match injection {
            true => self.webhooks.inject(&body).await,
            false => self.webhooks.validate(&body),
        };
        match outcome {
            Ok(review) => {
                let mut answer = Response::new(Full::new(Bytes::from(review)));
                let kind = HeaderValue::from_static("application/json");
                answer.headers_mut().insert(header::CONTENT_TYPE, kind);
                answer
            }
            Err(error) => text(status_of(&error), format!("{error}\n")),
        }
    }
}

fn status_of(error: &Unanswered) -> StatusCode {
    if error.is_askers() {
        StatusCode::BAD_REQUEST
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    }
}

pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

#[cfg(test)]
mod tests;
