//! The one type of downstream connection: a socket, a tunnel through an HTTP connection, or TLS over either.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::io::Prefixed;

/// A downstream connection of which some bytes may have been read to see what it carries.
pub(crate) type Connection = Prefixed<Stream>;

/// What the bytes come from.
pub(crate) enum Stream {
    /// A socket.
    Tcp(TcpStream),
    /// A stream of an HTTP/2 connection, or an upgraded HTTP/1.1 connection.
    Tunnel(TokioIo<Upgraded>),
    /// The mesh's TLS.
    Tls(Box<TlsStream<Connection>>),
}

impl Stream {
    /// As a connection of which nothing was read yet.
    pub fn fresh(self) -> Connection {
        Prefixed::new(Bytes::new(), self)
    }
}

/// Address of our end of a socket; unspecified when it is gone already.
pub(crate) fn local_addr(stream: &TcpStream) -> SocketAddr {
    stream
        .local_addr()
        .unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)))
}

/// Takes two layers of bytes read ahead for one.
pub(crate) fn flatten(stream: Prefixed<Connection>) -> Connection {
    let (first, inner) = stream.into_parts();
    let (second, stream) = inner.into_parts();
    let prefix = if second.is_empty() {
        first
    } else {
        let mut both = BytesMut::from(&first[..]);
        both.extend_from_slice(&second);
        both.freeze()
    };
    Prefixed::new(prefix, stream)
}

macro_rules! each {
    ($this:expr, $stream:ident => $call:expr) => {
        match $this.get_mut() {
            Stream::Tcp($stream) => $call,
            Stream::Tunnel($stream) => $call,
            Stream::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tunnel(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
