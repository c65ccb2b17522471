//! Commands that run in the sidecar's container beside the proxy: what a pod's hooks execute, and what people type there.
//!
//! They speak to the proxy's own ports over loopback, change nothing else, and need no configuration of their own: the
//! container's environment tells them where those ports are.

mod client;
pub mod curl;
mod drain;
mod wait;

pub use drain::Drain;
pub use wait::Wait;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where a listener is reached from within: the same address, or loopback for one that listens on all.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
