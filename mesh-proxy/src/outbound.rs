//! Connections of this workload's application.
//!
//! They are redirected here by interception, or come through the explicit proxy: plain requests name their destination themselves, and CONNECT makes a captured
//! connection of the rest, as interception does. A captured connection is looked up by where it was meant to go, then its
//! protocol is declared or detected: HTTP goes on to [`http::outbound`](crate::http::outbound), everything else to
//! [`tcp`](crate::tcp). What the mesh does not know follows `outboundTrafficPolicy`.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mesh_api::model::{OutboundPolicy, Protocol};
use tokio::net::{TcpListener, TcpStream};

use crate::capture::{self, Side};
use crate::detect::{Detected, detect};
use crate::directory::{Destination, Lookup};
use crate::http::exchange::Downstream;
use crate::http::{self, HttpVersion};
use crate::stream::{Connection, Stream, flatten, local_addr};
use crate::worker::Worker;
use crate::{listener, tcp};

/// An undeclared port without bytes for so long is taken for TCP: the server speaks first.
pub(crate) const DETECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a captured connection was meant to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// As CONNECT named it; the host is in lower case.
    Host(Arc<str>, u16),
    /// As interception found it, or CONNECT with an address.
    Address(SocketAddr),
}

impl Target {
    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Host(_, port) => *port,
            Self::Address(address) => address.port(),
        }
    }

    /// Asks the control plane what is there.
    pub async fn lookup(&self, worker: &Worker) -> Lookup {
        let directory = &worker.proxy.directory;
        match self {
            Self::Host(host, port) => directory.lookup(host, *port).await,
            Self::Address(address) => directory.lookup_address(address.ip(), address.port()).await,
        }
    }
}

/// Accepts connections of the explicit proxy.
pub(crate) async fn serve(worker: Rc<Worker>, listener: TcpListener) {
    loop {
        let (stream, peer) = listener::accept(&listener).await;
        if !listener::has_room(worker.proxy.drain.connections()) {
            continue;
        }
        tokio::task::spawn_local(explicit(worker.clone(), stream, peer));
    }
}

/// Accepts connections that interception redirected.
pub(crate) async fn serve_captured(worker: Rc<Worker>, listener: TcpListener) {
    loop {
        let (stream, peer) = listener::accept(&listener).await;
        if !listener::has_room(worker.proxy.drain.connections()) {
            continue;
        }
        let Some(original) = capture::original_destination(&stream, peer, Side::Outbound) else {
            continue;
        };
        tokio::task::spawn_local(redirected(worker.clone(), stream, peer, original));
    }
}

async fn redirected(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr, original: SocketAddr) {
    let _open = worker.proxy.drain.connection();
    let downstream = Rc::new(Downstream::plaintext(peer, original));
    let stream = Stream::Tcp(stream).fresh();
    captured(worker, stream, downstream, Target::Address(original)).await;
}

async fn explicit(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr) {
    let _open = worker.proxy.drain.connection();
    let downstream = Rc::new(Downstream::plaintext(peer, local_addr(&stream)));
    let version = match detect(Stream::Tcp(stream), None).await {
        // Methods that nobody knows are served, and what is no HTTP gets a 400.
        Ok((Detected::Http1 | Detected::Opaque, stream)) => Some((HttpVersion::Http1, stream)),
        Ok((Detected::Http2, stream)) => Some((HttpVersion::Http2, stream)),
        _ => None,
    };
    let Some((version, stream)) = version else {
        metrics::counter!("mesh_downstream_connection_errors_total", "side" => "outbound", "kind" => "malformed")
            .increment(1);
        return;
    };
    http::outbound::serve(worker.clone(), stream, version, downstream, None).await;
}

/// Carries a captured connection to its end.
pub(crate) async fn captured(worker: Rc<Worker>, stream: Connection, downstream: Rc<Downstream>, target: Target) {
    let found = target.lookup(&worker).await;
    let timeout = match &found {
        Lookup::Found(destination) => match destination.model.protocol {
            Protocol::Tcp | Protocol::Tls => {
                return to_destination(&worker, stream, &downstream, destination, &target).await;
            }
            Protocol::Http | Protocol::Http2 | Protocol::Grpc => None,
            Protocol::Detect => Some(DETECTION_TIMEOUT),
        },
        Lookup::NotInMesh | Lookup::Unavailable => Some(DETECTION_TIMEOUT),
    };
    let (detected, stream) = match detect(stream, timeout).await {
        Ok((detected, stream)) => (detected, flatten(stream)),
        Err(error) => {
            tracing::debug!(%error, peer = %downstream.peer, "a connection broke before it said what it carries");
            return;
        }
    };
    let version = match detected {
        Detected::Http1 => HttpVersion::Http1,
        Detected::Http2 => HttpVersion::Http2,
        Detected::Tls(hello) => {
            let downstream = Rc::new(Downstream {
                server_name: hello.sni.map(Into::into),
                ..(*downstream).clone()
            });
            return opaque(&worker, stream, &downstream, found, &target).await;
        }
        // What is declared HTTP is held to it.
        Detected::Opaque if declared_http(&found) => HttpVersion::Http1,
        Detected::Opaque => return opaque(&worker, stream, &downstream, found, &target).await,
    };
    http::outbound::serve(worker.clone(), stream, version, downstream, Some(target)).await;
}

fn declared_http(found: &Lookup) -> bool {
    matches!(found, Lookup::Found(destination) if destination.model.protocol.is_http())
}

async fn opaque(worker: &Rc<Worker>, stream: Connection, downstream: &Rc<Downstream>, found: Lookup, target: &Target) {
    match found {
        Lookup::Found(destination) => to_destination(worker, stream, downstream, &destination, target).await,
        Lookup::Unavailable => tcp::refuse(worker, downstream, tcp::Refusal::DiscoveryUnavailable),
        Lookup::NotInMesh => match worker.outbound_policy() {
            OutboundPolicy::RegistryOnly => tcp::refuse(worker, downstream, tcp::Refusal::BlackHole),
            OutboundPolicy::AllowAny => tcp::passthrough(worker, stream, downstream, target).await,
        },
    }
}

async fn to_destination(
    worker: &Rc<Worker>,
    stream: Connection,
    downstream: &Rc<Downstream>,
    destination: &Arc<Destination>,
    target: &Target,
) {
    tcp::outbound(worker, stream, downstream, destination, target).await;
}
