//! Requests as an application makes them: through its sidecar's explicit proxy, or in a connection that the proxy was
//! asked for with CONNECT.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::bodies::{Body, full};

/// No answer takes longer.
const LIMIT: Duration = Duration::from_secs(60);

/// An answer, with all of its body.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Version.
    pub version: Version,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
    /// Trailers.
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    /// First value of a header; empty when there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default()
    }

    /// The application that answered; empty when a proxy did.
    #[must_use]
    pub fn backend(&self) -> &str {
        self.header("x-backend")
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// See the module. Cheap to clone.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    proxy: SocketAddr,
}

impl Caller {
    /// Of the application whose sidecar's explicit proxy this is.
    #[must_use]
    pub fn new(proxy: SocketAddr) -> Self {
        Self { proxy }
    }

    /// GET.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn get(&self, url: &str) -> anyhow::Result<Answer> {
        self.with(url, &[]).await
    }

    /// GET with headers.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn with(&self, url: &str, headers: &[(&str, &str)]) -> anyhow::Result<Answer> {
        self.call(Method::GET, url, headers, "").await
    }

    /// Any request, on a connection of its own.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn call(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Answer> {
        let uri: Uri = url.parse()?;
        let host = uri.authority().context("no host")?.as_str().to_owned();
        let mut request = Request::builder().method(method).uri(uri).header("host", host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(body.into())?).await
    }

    /// A request as it stands, on a connection of its own.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn send(&self, request: Request<Bytes>) -> anyhow::Result<Answer> {
        self.connection().await?.send(request).await
    }

    /// A connection to the proxy that is kept.
    ///
    /// # Errors
    /// When there is none to be had.
    pub async fn connection(&self) -> anyhow::Result<Connection> {
        Connection::http1(connect(self.proxy).await?).await
    }

    /// What CONNECT gives: a connection to `host:port`, captured by the sidecar.
    ///
    /// # Errors
    /// When the proxy refuses.
    pub async fn tunnel(&self, target: &str) -> anyhow::Result<TcpStream> {
        let mut stream = connect(self.proxy).await?;
        let head = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        // Byte by byte: what follows is not the proxy's.
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(bounded("an answer to CONNECT", stream.read_u8()).await??);
        }
        if !answer.starts_with(b"HTTP/1.1 200") {
            bail!("CONNECT {target}: {}", String::from_utf8_lossy(&answer));
        }
        Ok(stream)
    }
}

/// A connection of HTTP that is kept.
pub enum Connection {
    /// HTTP/1.1.
    Http1(http1::SendRequest<Body>),
    /// HTTP/2.
    Http2(http2::SendRequest<Body>),
}

impl Connection {
    /// HTTP/1.1 on a stream.
    ///
    /// # Errors
    /// When it breaks at once.
    pub async fn http1(stream: TcpStream) -> anyhow::Result<Self> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection.with_upgrades());
        Ok(Self::Http1(sender))
    }

    /// HTTP/2 on a stream, with prior knowledge.
    ///
    /// # Errors
    /// When it breaks at once.
    pub async fn http2(stream: TcpStream) -> anyhow::Result<Self> {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self::Http2(sender))
    }

    /// In this version of HTTP on a stream.
    ///
    /// # Errors
    /// When it breaks at once.
    pub async fn on(stream: TcpStream, version: Version) -> anyhow::Result<Self> {
        match version {
            Version::HTTP_2 => Self::http2(stream).await,
            _ => Self::http1(stream).await,
        }
    }

    /// Sends a request and waits for all of the answer.
    ///
    /// # Errors
    /// When there is no whole answer.
    pub async fn send(&mut self, request: Request<Bytes>) -> anyhow::Result<Answer> {
        self.exchange(request.map(full)).await
    }

    /// Sends a request with any body and waits for all of the answer.
    ///
    /// # Errors
    /// When there is no whole answer.
    pub async fn exchange(&mut self, request: Request<Body>) -> anyhow::Result<Answer> {
        bounded("an answer", async { collect(self.begin(request).await?).await }).await?
    }

    /// Sends a request and waits for the head of the answer.
    ///
    /// # Errors
    /// When there is none.
    pub async fn begin(&mut self, request: Request<Body>) -> anyhow::Result<Response<Incoming>> {
        bounded("the head of an answer", async {
            Ok(match self {
                Self::Http1(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await?
                }
                Self::Http2(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await?
                }
            })
        })
        .await?
    }
}

/// Reads the rest of an answer.
///
/// # Errors
/// When it breaks off.
pub async fn collect(response: Response<Incoming>) -> anyhow::Result<Answer> {
    let (parts, body) = response.into_parts();
    let body = bounded("the end of an answer", body.collect()).await??;
    Ok(Answer {
        status: parts.status.as_u16(),
        version: parts.version,
        headers: parts.headers,
        trailers: body.trailers().cloned(),
        body: body.to_bytes(),
    })
}

/// A connection.
///
/// # Errors
/// When it is refused.
pub async fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = bounded("a connection", TcpStream::connect(address)).await?;
    let stream = stream.with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The future's value, if it comes within a minute.
///
/// # Errors
/// When it does not; `what` says what did not come.
pub async fn bounded<T>(what: &str, future: impl Future<Output = T>) -> anyhow::Result<T> {
    let value = tokio::time::timeout(LIMIT, future).await;
    value.with_context(|| format!("not within {LIMIT:?}: {what}"))
}
