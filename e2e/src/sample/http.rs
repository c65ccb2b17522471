//! One connection to an HTTP server, opened and kept by whoever calls.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::resolve;

/// Of an answer.
const MAX_ANSWER: usize = 16 << 20;

/// What is asked for, again and again.
#[derive(Clone, Debug)]
pub struct Call {
    /// Method.
    pub method: Method,
    /// `http://host:port/path`
    pub url: Uri,
    /// Further headers; one of them may be `host`.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// Whether the server is spoken to in HTTP/2 from the first byte.
    pub http2: bool,
}

/// An answer that has been read to its end.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Version.
    pub version: Version,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// A connection that requests can be sent on.
pub enum Connection {
    /// One request at a time.
    Http1(http1::SendRequest<Full<Bytes>>),
    /// Many.
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// A request that failed, and whether the connection had ended before it was written.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct Failed {
    /// Nothing of the request was sent: any client would send it again.
    pub unsent: bool,
    source: hyper::Error,
}

impl Call {
    /// Where the server is.
    ///
    /// # Errors
    /// When the URL has no host, or it no address.
    pub async fn addresses(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let host = self.url.host().context("the URL has no host")?;
        if self.url.scheme_str().is_some_and(|scheme| scheme != "http") {
            bail!("{}: only http is spoken here", self.url);
        }
        let port = self.url.port_u16().unwrap_or(80);
        let addresses = resolve::addresses(host).await?;
        Ok(addresses
            .into_iter()
            .map(|address| SocketAddr::new(address, port))
            .collect())
    }

    /// Connects to the first address that answers.
    ///
    /// # Errors
    /// When none does within `limit`.
    pub async fn connect(&self, limit: Duration) -> anyhow::Result<Connection> {
        let addresses = self.addresses().await?;
        let stream = tokio::time::timeout(limit, first(&addresses))
            .await
            .with_context(|| format!("connecting to {addresses:?}: no answer"))?
            .with_context(|| format!("connecting to {addresses:?}"))?;
        stream.set_nodelay(true)?;
        let stream = TokioIo::new(stream);
        // Connections end on their own when their senders are gone.
        if self.http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(connection);
            Ok(Connection::Http2(sender))
        } else {
            let (sender, connection) = http1::handshake(stream).await?;
            tokio::spawn(connection);
            Ok(Connection::Http1(sender))
        }
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers.clone();
        if self.http2 {
            *request.version_mut() = Version::HTTP_2;
            *request.uri_mut() = self.url.clone();
        } else {
            let path = self.url.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
            *request.uri_mut() = Uri::try_from(path).unwrap_or_default();
            if let Some(authority) = self.url.authority()
                && !request.headers().contains_key(header::HOST)
                && let Ok(host) = HeaderValue::from_str(authority.as_str())
            {
                request.headers_mut().insert(header::HOST, host);
            }
        }
        request
    }
}

impl Connection {
    /// Whether it can take a request; waits until the one before is done with it.
    pub async fn ready(&mut self) -> bool {
        match self {
            Self::Http1(sender) => sender.ready().await.is_ok(),
            Self::Http2(sender) => sender.ready().await.is_ok(),
        }
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// When the connection breaks before the answer's end.
    pub async fn send(&mut self, call: &Call) -> Result<Answer, Failed> {
        let response = match self {
            Self::Http1(sender) => sender.send_request(call.request()).await,
            Self::Http2(sender) => sender.send_request(call.request()).await,
        };
        let (parts, body) = response
            .map_err(|source| Failed {
                unsent: source.is_canceled(),
                source,
            })?
            .into_parts();
        let body =
            Limited::new(body, MAX_ANSWER)
                .collect()
                .await
                .map_err(|error| match error.downcast::<hyper::Error>() {
                    Ok(source) => Some(*source),
                    Err(_) => None,
                });
        let body = match body {
            Ok(body) => body.to_bytes(),
            Err(Some(source)) => return Err(Failed { unsent: false, source }),
            // Longer than anything that tests answer with: cut off.
            Err(None) => Bytes::new(),
        };
        Ok(Answer {
            status: parts.status,
            version: parts.version,
            headers: parts.headers,
            body,
        })
    }
}

async fn first(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
