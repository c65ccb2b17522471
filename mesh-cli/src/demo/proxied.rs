//! A connector that reaches everything through one HTTP proxy: the sidecar.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

/// Connects to the proxy, whatever the request's URI, and has the client write absolute URIs.
#[derive(Clone, Copy, Debug)]
pub struct ViaProxy {
    proxy: SocketAddr,
}

impl ViaProxy {
    /// A connector to `proxy`.
    #[must_use]
    pub fn new(proxy: SocketAddr) -> Self {
        Self { proxy }
    }
}

impl Service<Uri> for ViaProxy {
    type Response = ProxyStream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<ProxyStream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let proxy = self.proxy;
        Box::pin(async move {
            let stream = TcpStream::connect(proxy).await?;
            stream.set_nodelay(true)?;
            Ok(ProxyStream(TokioIo::new(stream)))
        })
    }
}

/// A connection to the proxy.
pub struct ProxyStream(TokioIo<TcpStream>);

impl Connection for ProxyStream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(true)
    }
}

impl Read for ProxyStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for ProxyStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
