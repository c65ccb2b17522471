//! The fast backend: answers every request with the same body, as fast as hyper can on one thread.
//!
//! Its address goes to stdout as one line; it ends when it is killed or its parent dies.

use std::convert::Infallible;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

use super::setting::Protocol;

/// Listens on a port of the system's choice, prints the address, serves for ever.
///
/// # Errors
/// When the socket cannot be opened.
pub async fn run(protocol: Protocol, body_bytes: usize) -> anyhow::Result<()> {
    let (address, serving) = bind(protocol, body_bytes).await?;
    println!("{address}");
    std::io::stdout().flush()?;
    serving.await
}

/// The address, and the future that serves on it.
///
/// # Errors
/// When the socket cannot be opened.
pub async fn bind(
    protocol: Protocol,
    body_bytes: usize,
) -> anyhow::Result<(SocketAddr, impl Future<Output = anyhow::Result<()>> + Send)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .context("cannot open the backend's socket")?;
    let address = listener.local_addr()?;
    let body = Bytes::from(vec![b'x'; body_bytes]);
    let serving = async move {
        loop {
            let (stream, _) = listener.accept().await.context("the backend cannot accept")?;
            stream.set_nodelay(true)?;
            tokio::spawn(serve(stream, protocol, body.clone()));
        }
    };
    Ok((address, serving))
}

async fn serve(stream: TcpStream, protocol: Protocol, body: Bytes) {
    let service = service_fn(move |_: Request<Incoming>| {
        let mut response = Response::new(Full::new(body.clone()));
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let io = TokioIo::new(stream);
    // A connection that a proxy cuts is the proxy's business: whatever matters shows in the load generator's checks.
    let _ = match protocol {
        Protocol::Http1 => {
            hyper::server::conn::http1::Builder::new()
                .serve_connection(io, service)
                .await
        }
        Protocol::Http2 => {
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder.max_concurrent_streams(4096).serve_connection(io, service).await
        }
    };
}
