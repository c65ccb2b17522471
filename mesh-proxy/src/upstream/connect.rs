//! Connections to endpoints: TCP, and the mesh's mutual TLS where the endpoint has it.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use mesh_api::identity::SpiffeId;
use mesh_api::model::{ConnectionPool, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;

use super::endpoint::{Endpoint, Security};
use super::error::{ConnectFailure, SendError, SendErrorKind, connect_error};
use super::limits::ConnectionPermit;
use crate::tls::AlpnKind;
use crate::tls::outbound::OutboundTls;

/// How this proxy makes connections; one a worker.
#[derive(Default)]
pub struct Connector {
    /// Mutual TLS; without it endpoints that need it cannot be reached.
    pub tls: Option<Arc<OutboundTls>>,
    /// Addresses to connect from.
    pub source: Source,
}

/// Which addresses connections come from, where the system is not to choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Of connections over IPv4.
    pub v4: Option<Ipv4Addr>,
    /// Of connections over IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl Source {
    /// The workload's own address, where proxies share a host without network namespaces.
    #[must_use]
    pub fn workload(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self { v4: Some(v4), v6: None },
            IpAddr::V6(v6) => Self { v4: None, v6: Some(v6) },
        }
    }

    fn towards(self, destination: SocketAddr) -> Option<IpAddr> {
        match destination {
            SocketAddr::V4(_) => self.v4.map(IpAddr::from),
            SocketAddr::V6(_) => self.v6.map(IpAddr::from),
        }
    }
}

/// What is known of a connection once it stands.
#[derive(Debug)]
pub struct ConnectionFacts {
    /// Our address (`UPSTREAM_LOCAL_ADDRESS`).
    pub local: SocketAddr,
    /// The endpoint's (`UPSTREAM_HOST`).
    pub peer: SocketAddr,
    /// Whether it is the mesh's mutual TLS.
    pub mutual_tls: bool,
    /// Who the endpoint proved to be.
    pub identity: Option<SpiffeId>,
    read: AtomicU64,
    written: AtomicU64,
}

/// A connection; counts against `maxConnections` until it is dropped.
pub struct UpstreamIo {
    stream: Stream,
    facts: Arc<ConnectionFacts>,
    // Dropped after the socket.
    _permit: ConnectionPermit,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connector {
    /// Connects within `connectTimeout`, handshake included.
    pub(super) async fn connect(
        &self,
        endpoint: &Endpoint,
        pool: &ConnectionPool,
        alpn: AlpnKind,
        permit: ConnectionPermit,
    ) -> Result<UpstreamIo, SendError> {
        match tokio::time::timeout(pool.connect_timeout, self.connect_untimed(endpoint, pool, alpn)).await {
            Ok(connected) => connected.map(|(stream, facts)| UpstreamIo {
                stream,
                facts: Arc::new(facts),
                _permit: permit,
            }),
            Err(_) => Err(SendError::new(
                SendErrorKind::Connect(ConnectFailure::Timeout),
                format!(
                    "no connection to {} within {:?}",
                    endpoint.address, pool.connect_timeout
                ),
            )),
        }
    }

    async fn connect_untimed(
        &self,
        endpoint: &Endpoint,
        pool: &ConnectionPool,
        alpn: AlpnKind,
    ) -> Result<(Stream, ConnectionFacts), SendError> {
        let tcp = self
            .connect_tcp(endpoint.address, pool.keepalive.as_ref())
            .await
            .map_err(|error| connect_error(&error))?;
        let mut facts = ConnectionFacts {
            local: tcp.local_addr().map_err(|error| connect_error(&error))?,
            peer: endpoint.address,
            mutual_tls: endpoint.is_mutual_tls(),
            identity: None,
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
        };
        let Security::MutualTls { expected, sni } = &*endpoint.security else {
            return Ok((Stream::Plain(tcp), facts));
        };
        let tls_error = |text: String| SendError::new(SendErrorKind::Tls, format!("TLS_error: {text}"));
        let Some(tls) = &self.tls else {
            return Err(tls_error("this proxy has no identity".to_owned()));
        };
        let stream = tls
            .connect(tcp, sni.clone(), expected, alpn)
            .await
            .map_err(|error| tls_error(error.to_string()))?;
        facts.identity = crate::tls::verify::peer(stream.get_ref().1);
        Ok((Stream::Tls(Box::new(stream)), facts))
    }

    async fn connect_tcp(&self, address: SocketAddr, keepalive: Option<&TcpKeepalive>) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        socket.set_nodelay(true)?;
        if let Some(keepalive) = keepalive {
            set_keepalive(&socket, keepalive)?;
        }
        if let Some(source) = self.source.towards(address) {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        socket.connect(address).await
    }
}

fn set_keepalive(socket: &TcpSocket, keepalive: &TcpKeepalive) -> io::Result<()> {
    let mut options = socket2::TcpKeepalive::new();
    if let Some(time) = keepalive.time {
        options = options.with_time(time);
    }
    if let Some(interval) = keepalive.interval {
        options = options.with_interval(interval);
    }
    if let Some(probes) = keepalive.probes {
        options = options.with_retries(probes);
    }
    socket2::SockRef::from(socket).set_tcp_keepalive(&options)
}

impl ConnectionFacts {
    /// Bytes of the endpoint so far, without TLS.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes to the endpoint so far, without TLS.
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

impl UpstreamIo {
    /// What is known of the connection; stays valid after it is closed.
    #[must_use]
    pub fn facts(&self) -> &Arc<ConnectionFacts> {
        &self.facts
    }

    /// The socket, for splicing, where nothing is between it and the bytes.
    #[must_use]
    pub fn plain(&self) -> Option<&TcpStream> {
        match &self.stream {
            Stream::Plain(tcp) => Some(tcp),
            Stream::Tls(_) => None,
        }
    }

    fn count(counter: &AtomicU64, bytes: usize) {
        // One worker writes; others may look.
        counter.store(counter.load(Ordering::Relaxed) + bytes as u64, Ordering::Relaxed);
    }
}

impl AsyncRead for UpstreamIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        };
        Self::count(&self.facts.read, buf.filled().len() - before);
        polled
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        })?;
        Self::count(&self.facts.written, written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Stream::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        })?;
        Self::count(&self.facts.written, written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(tcp) => tcp.is_write_vectored(),
            Stream::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
