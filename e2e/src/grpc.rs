//! A gRPC client for tests that shows frames as they are: it sends messages, and counts those that come back.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

/// How a call ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// HTTP status.
    pub status: u16,
    /// Headers of the response.
    pub headers: HeaderMap,
    /// Messages that came.
    pub messages: Vec<Bytes>,
    /// `grpc-status`, of the trailers or of a response without body.
    pub grpc_status: Option<i32>,
    /// `grpc-message`.
    pub grpc_message: Option<String>,
}

/// Calls `http://authority/Service/Method` over HTTP/2 through a sidecar's explicit proxy.
///
/// # Errors
/// When the connection or the stream breaks.
pub fn call(proxy: SocketAddr, url: &str, messages: &[&[u8]]) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let call = exchange(proxy, url, messages);
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(20), call)
            .await
            .context("a gRPC call")?
    })
}

async fn exchange(proxy: SocketAddr, url: &str, messages: &[&[u8]]) -> anyhow::Result<Outcome> {
    let stream = tokio::net::TcpStream::connect(proxy).await?;
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await?;
    let connection = tokio::spawn(connection);
    let mut body = Vec::new();
    for message in messages {
        body.push(0);
        body.extend_from_slice(&u32::try_from(message.len())?.to_be_bytes());
        body.extend_from_slice(message);
    }
    let request = Request::post(url)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(body)))?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    let collected = body.collect().await?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let field = |name: &str| {
        let value = trailers.get(name).or_else(|| head.headers.get(name))?;
        value.to_str().ok().map(str::to_owned)
    };
    let (grpc_status, grpc_message) = (
        field("grpc-status").and_then(|status| status.parse().ok()),
        field("grpc-message"),
    );
    let mut rest = collected.to_bytes();
    let mut came = Vec::new();
    while !rest.is_empty() {
        let prefix: [u8; 4] = rest.get(1..5).context("half a prefix")?.try_into()?;
        let length = usize::try_from(u32::from_be_bytes(prefix))?;
        anyhow::ensure!(rest.len() >= 5 + length, "half a message");
        came.push(rest.slice(5..5 + length));
        rest = rest.slice(5 + length..);
    }
    connection.abort();
    Ok(Outcome {
        status: head.status.as_u16(),
        headers: head.headers,
        messages: came,
        grpc_status,
        grpc_message,
    })
}
