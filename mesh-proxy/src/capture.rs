//! Connections that the rules of [`intercept`](crate::intercept) redirected here: where they were meant to go.
//!
//! The kernel remembers the original destination of every redirected connection. One that has none, or whose destination
//! is this proxy's own port, was not redirected: it is closed, or it would be a loop. So is an inbound connection from the
//! address that this proxy itself uses towards the application.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::listener::{BindError, bind_captured};

/// Where this proxy's connections to the application come from, so that the rules leave them alone. The second is put on
/// the loopback interface by `mesh-proxy intercept`.
pub const TO_APPLICATION_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// See [`TO_APPLICATION_V4`].
pub const TO_APPLICATION_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// Whose connections a listener takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Outbound,
    Inbound,
}

/// Why a connection is not carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NotCaptured {
    NoOriginalDestination,
    OwnPort,
    Loop,
}

/// Listeners for redirected connections, by worker: those of each family that this host has.
///
/// # Errors
/// When a port is taken.
pub(crate) fn bind(side: Side, port: u16, workers: usize) -> Result<Vec<Vec<std::net::TcpListener>>, BindError> {
    // Connections of this namespace's own processes are redirected to loopback, others to the interface they came to.
    let (addresses, purpose): ([IpAddr; 2], _) = match side {
        Side::Outbound => (
            [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            "captured outbound traffic",
        ),
        Side::Inbound => (
            [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            "captured inbound traffic",
        ),
    };
    let mut listeners: Vec<Vec<_>> = (0..workers.max(1)).map(|_| Vec::new()).collect();
    let mut port = port;
    for address in addresses {
        let bound = match bind_captured(SocketAddr::new(address, port), workers, purpose) {
            Err(error) if address.is_ipv6() && is_absent(&error.source) => {
                tracing::info!(%error, "IPv6 connections are not captured");
                continue;
            }
            bound => bound?,
        };
        // A port of the system's choice is the same for both families.
        port = bound
            .first()
            .and_then(|first| first.local_addr().ok())
            .map_or(port, |at| at.port());
        for (own, listener) in listeners.iter_mut().zip(bound) {
            own.push(listener);
        }
    }
    Ok(listeners)
}

fn is_absent(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT)
    )
}

/// Where a redirected connection was meant to go. Others are counted, and given up.
pub(crate) fn original_destination(stream: &TcpStream, peer: SocketAddr, side: Side) -> Option<SocketAddr> {
    let refused = match find(stream, peer, side) {
        Ok(destination) => return Some(destination),
        Err(refused) => refused,
    };
    let (side, reason) = (side.name(), refused.reason());
    tracing::debug!(side, reason, %peer, "a connection that was not redirected is closed");
    metrics::counter!("mesh_capture_connections_refused_total", "side" => side, "reason" => reason).increment(1);
    None
}

fn find(stream: &TcpStream, peer: SocketAddr, side: Side) -> Result<SocketAddr, NotCaptured> {
    let local = stream.local_addr().map_err(|_| NotCaptured::NoOriginalDestination)?;
    let socket = SockRef::from(stream);
    let original = match local {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    let original = original.ok().and_then(|address| address.as_socket());
    judge(original, local, peer, side)
}

fn judge(
    original: Option<SocketAddr>,
    local: SocketAddr,
    peer: SocketAddr,
    side: Side,
) -> Result<SocketAddr, NotCaptured> {
    let original = original.ok_or(NotCaptured::NoOriginalDestination)?;
    let own = match side {
        Side::Outbound => original == local,
        // Whatever the address: behind the port is this proxy.
        Side::Inbound => original.port() == local.port(),
    };
    if own {
        return Err(NotCaptured::OwnPort);
    }
    if side == Side::Inbound && [IpAddr::from(TO_APPLICATION_V4), TO_APPLICATION_V6.into()].contains(&peer.ip()) {
        return Err(NotCaptured::Loop);
    }
    Ok(original)
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

impl NotCaptured {
    fn reason(self) -> &'static str {
        match self {
            Self::NoOriginalDestination => "no_original_destination",
            Self::OwnPort => "own_port",
            Self::Loop => "loop",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_redirected_is_no_captured_connection() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (out, inb) = (Side::Outbound, Side::Inbound);
        for (original, local, peer, side, expected) in [
            ("198.18.0.9:80", "127.0.0.1:15001", "198.18.0.1:4000", out, None),
            ("[2001:db8::9]:80", "[::1]:15001", "[2001:db8::1]:4000", out, None),
            // Somebody else's port of the same number.
            ("198.18.0.9:15001", "127.0.0.1:15001", "198.18.0.1:4000", out, None),
            (
                "127.0.0.1:15001",
                "127.0.0.1:15001",
                "127.0.0.1:4000",
                out,
                Some(NotCaptured::OwnPort),
            ),
            ("198.18.0.1:8080", "198.18.0.1:15006", "198.18.0.9:4000", inb, None),
            ("198.18.0.1:8080", "127.0.0.1:15006", "198.18.0.1:4000", inb, None),
            (
                "198.18.0.1:15006",
                "198.18.0.1:15006",
                "198.18.0.9:4000",
                inb,
                Some(NotCaptured::OwnPort),
            ),
            (
                "198.18.0.1:15006",
                "127.0.0.1:15006",
                "198.18.0.1:4000",
                inb,
                Some(NotCaptured::OwnPort),
            ),
            (
                "198.18.0.1:8080",
                "127.0.0.1:15006",
                "127.0.0.6:4000",
                inb,
                Some(NotCaptured::Loop),
            ),
            (
                "[2001:db8::1]:8080",
                "[::1]:15006",
                "[::6]:4000",
                inb,
                Some(NotCaptured::Loop),
            ),
        ] {
            let judged = judge(Some(at(original)), at(local), at(peer), side);
            assert_eq!(judged.err(), expected, "{original} at {local} from {peer}");
        }
        let nothing = judge(None, at("127.0.0.1:15001"), at("127.0.0.1:4000"), out);
        assert_eq!(nothing, Err(NotCaptured::NoOriginalDestination));
    }

    #[tokio::test]
    async fn a_connection_made_straight_to_a_listener_is_none() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (stream, peer) = accepted.unwrap();
        assert_eq!(original_destination(&stream, peer, Side::Outbound), None);
        assert_eq!(original_destination(&stream, peer, Side::Inbound), None);
        drop(client);
    }

    #[test]
    fn every_worker_listens_on_each_family() {
        let listeners = bind(Side::Inbound, 0, 2).unwrap();
        assert_eq!(listeners.len(), 2);
        let ports: Vec<u16> = listeners
            .iter()
            .flatten()
            .map(|listener| listener.local_addr().unwrap().port())
            .collect();
        assert!(!ports.is_empty() && ports.iter().all(|port| *port == ports[0]));
    }
}
