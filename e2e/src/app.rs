//! Applications for tests: they run in the test's own process, on ports of the system's choice, and remember what came.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body::Frame;
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use crate::bodies::{Body, BoxError, full};

/// A request as the application saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Version.
    pub version: Version,
    /// Headers.
    pub headers: HeaderMap,
    /// Who connected.
    pub peer: SocketAddr,
}

impl Seen {
    /// First value of a header, as text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// A running application; it ends with the value.
pub struct App {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    runtime: Option<Runtime>,
}

impl App {
    /// Speaks HTTP/1.1 and HTTP/2 on loopback. It answers with its name; `?status=503` and `?delay=100` (milliseconds) make
    /// it misbehave, `?reset` makes it end the connection, and a gRPC call gets its own messages back.
    ///
    /// # Errors
    /// When there is no port.
    pub fn http(name: &str) -> anyhow::Result<Self> {
        Self::http_at(name, SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0))
    }

    /// The same at an address.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn http_at(name: &str, address: SocketAddr) -> anyhow::Result<Self> {
        let name = Bytes::copy_from_slice(name.as_bytes());
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let requests = seen.clone();
        let (address, runtime) = serve(address, move |stream, peer| {
            let (name, seen) = (name.clone(), seen.clone());
            async move { http_connection(stream, peer, name, seen).await }
        })?;
        Ok(Self {
            address,
            seen: requests,
            runtime: Some(runtime),
        })
    }

    /// Sends back every byte. With a greeting, it speaks first.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn tcp(greeting: &'static str) -> anyhow::Result<Self> {
        Self::tcp_at(greeting, SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0))
    }

    /// The same at an address.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn tcp_at(greeting: &'static str, address: SocketAddr) -> anyhow::Result<Self> {
        use tokio::io::AsyncWriteExt as _;
        let (address, runtime) = serve(address, move |mut stream, _| async move {
            let (mut reader, mut writer) = stream.split();
            if writer.write_all(greeting.as_bytes()).await.is_ok() {
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                let _ = writer.shutdown().await;
            }
        })?;
        Ok(Self {
            address,
            seen: Arc::default(),
            runtime: Some(runtime),
        })
    }

    /// Does with each connection what the test says; at the end of the future the connection is closed.
    ///
    /// # Errors
    /// When there is no port.
    pub fn raw<F>(handler: impl Fn(TcpStream) -> F + Send + 'static) -> anyhow::Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let (address, runtime) = serve(address, move |stream, _| handler(stream))?;
        Ok(Self {
            address,
            seen: Arc::default(),
            runtime: Some(runtime),
        })
    }

    /// Answers each request as the test says, over HTTP/1 and HTTP/2; an error ends the connection or stream.
    ///
    /// # Errors
    /// When there is no port.
    pub fn handler<F>(handler: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static) -> anyhow::Result<Self>
    where
        F: Future<Output = anyhow::Result<Response<Body>>> + Send + 'static,
    {
        Self::raw(move |stream| {
            let handler = handler.clone();
            let service = service_fn(move |request| {
                let answer = handler(request);
                async move { answer.await.map_err(|error| Broken(format!("{error:#}"))) }
            });
            async move { serve_http(stream, service).await }
        })
    }

    /// The requests that came, and forgets them.
    #[must_use]
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for App {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn serve<H, F>(address: SocketAddr, handler: H) -> anyhow::Result<(SocketAddr, Runtime)>
where
    H: Fn(TcpStream, SocketAddr) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.spawn(async move {
        let Ok(listener) = TcpListener::from_std(listener) else {
            return;
        };
        while let Ok((stream, peer)) = listener.accept().await {
            tokio::spawn(handler(stream, peer));
        }
    });
    Ok((address, runtime))
}

async fn http_connection(stream: TcpStream, peer: SocketAddr, name: Bytes, seen: Arc<Mutex<Vec<Seen>>>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (name, seen) = (name.clone(), seen.clone());
        async move {
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(Seen {
                method: request.method().to_string(),
                path: request
                    .uri()
                    .path_and_query()
                    .map_or("", |path| path.as_str())
                    .to_owned(),
                version: request.version(),
                headers: request.headers().clone(),
                peer,
            });
            respond(request, name).await
        }
    });
    serve_http(stream, service).await;
}

/// Speaks the version of HTTP that the client begins with, until the connection ends.
async fn serve_http<S>(stream: TcpStream, service: S)
where
    S: Service<Request<Incoming>, Response = Response<Body>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
{
    let _ = stream.set_nodelay(true);
    // HTTP/2 begins with "PRI".
    let mut start = [0; 3];
    while let Ok(length) = stream.peek(&mut start).await {
        if length == 0 || length == start.len() || start[0] != b'P' {
            break;
        }
        tokio::task::yield_now().await;
    }
    let io = TokioIo::new(stream);
    // How a connection ends is the tests' own doing.
    if &start == b"PRI" {
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(io, service)
            .await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(io, service)
            .with_upgrades()
            .await;
    }
}

/// A test's handler failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Broken(String);

/// A connection is ended by failing the service.
#[derive(Debug, thiserror::Error)]
#[error("the test asked for a reset")]
struct Reset;

async fn respond(request: Request<Incoming>, name: Bytes) -> Result<Response<Body>, Reset> {
    let query: HashMap<String, String> = request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    if query.contains_key("reset") {
        return Err(Reset);
    }
    let number = |key: &str| query.get(key).and_then(|value| value.parse::<u64>().ok());
    if let Some(delay) = number("delay") {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    let grpc = request.headers().get(http::header::CONTENT_TYPE);
    if grpc.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return Ok(echo(request));
    }
    let status = number("status")
        .and_then(|status| u16::try_from(status).ok())
        .unwrap_or(200);
    // All of the body is read, so that its bytes have passed.
    let _ = request.into_body().collect().await;
    let mut response = Response::new(full(name));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    Ok(response)
}

/// The messages of a gRPC call back to the caller, and status 0.
fn echo(request: Request<Incoming>) -> Response<Body> {
    let trailers = stream::once(async {
        let trailers = HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            HeaderValue::from_static("0"),
        )]);
        Ok::<_, hyper::Error>(Frame::trailers(trailers))
    });
    let body = futures_util::StreamExt::chain(BodyStream::new(request.into_body()), trailers);
    let mut response = Response::new(StreamBody::new(body).map_err(BoxError::from).boxed_unsync());
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

/// Bytes there and back over a connection to an echo.
///
/// # Errors
/// When they do not come back.
pub fn ping(stream: &mut std::net::TcpStream, bytes: &[u8]) -> anyhow::Result<()> {
    stream.write_all(bytes)?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back)?;
    anyhow::ensure!(back == bytes, "other bytes came back");
    Ok(())
}
