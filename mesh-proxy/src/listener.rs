//! Listening sockets: one per worker and address, sharing the port, so that the kernel spreads connections and no lock
//! is taken to accept.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

/// Downstream connections at once, of the whole proxy; more are closed and counted.
pub const MAX_CONNECTIONS: usize = 50_000;

/// Connections that the kernel queues for a listener.
const BACKLOG: i32 = 4096;

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for {purpose}: {source}")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// What it is for.
    pub purpose: &'static str,
    /// Why not.
    pub source: io::Error,
}

/// Binds an address for several workers; each converts its own with [`TcpListener::from_std`]. Port 0 is chosen by the
/// system, once for all.
///
/// # Errors
/// When the address cannot be bound.
pub fn bind_shared(
    address: SocketAddr,
    workers: usize,
    purpose: &'static str,
) -> Result<Vec<std::net::TcpListener>, BindError> {
    bind_each(address, workers, purpose, Families::Usual)
}

/// As [`bind_shared`], for one family only: the other has listeners of its own.
pub(crate) fn bind_captured(
    address: SocketAddr,
    workers: usize,
    purpose: &'static str,
) -> Result<Vec<std::net::TcpListener>, BindError> {
    bind_each(address, workers, purpose, Families::Own)
}

/// What an IPv6 socket takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Families {
    /// As the system has it: usually both.
    Usual,
    Own,
}

fn bind_each(
    address: SocketAddr,
    workers: usize,
    purpose: &'static str,
    families: Families,
) -> Result<Vec<std::net::TcpListener>, BindError> {
    let error = |source| BindError {
        address,
        purpose,
        source,
    };
    let mut listeners = Vec::with_capacity(workers);
    let mut address = address;
    for _ in 0..workers.max(1) {
        let listener = bind(address, workers > 1, families).map_err(error)?;
        address = listener.local_addr().map_err(error)?;
        listeners.push(listener);
    }
    Ok(listeners)
}

fn bind(address: SocketAddr, shared: bool, families: Families) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if families == Families::Own && address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The next connection. Errors that concern one connection are passed over; running out of descriptors waits a little.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Small responses must not wait for acknowledgements of earlier ones.
                let _ = stream.set_nodelay(true);
                return (stream, peer);
            }
            Err(error) if is_transient(&error) => {}
            Err(error) => {
                metrics::counter!("mesh_listener_accept_errors_total").increment(1);
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Closes a listener, and gives the connections that the kernel has accepted for it.
pub fn close(listener: TcpListener) -> Vec<(TcpStream, SocketAddr)> {
    let Ok(listener) = listener.into_std() else {
        return Vec::new();
    };
    let accept = || loop {
        match listener.accept() {
            Err(error) if is_transient(&error) => {}
            accepted => return accepted.ok(),
        }
    };
    let connections = std::iter::from_fn(accept).filter_map(|(stream, peer)| {
        stream.set_nonblocking(true).ok()?;
        let _ = stream.set_nodelay(true);
        Some((TcpStream::from_std(stream).ok()?, peer))
    });
    connections.collect()
}

/// Whether the proxy has room for one more connection beside the `open` ones.
pub(crate) fn has_room(open: usize) -> bool {
    let room = open < MAX_CONNECTIONS;
    if !room {
        metrics::counter!("mesh_listener_connections_over_limit_total").increment(1);
    }
    room
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
