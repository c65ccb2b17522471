//! Connections to this workload: identify the peer, then hand on to HTTP or TCP.
//!
//! Until this workload's policy has come, nothing is let in. Whether a connection is the mesh's is read from what its
//! ClientHello offers; PeerAuthentication says whether plaintext is taken. TLS of the application's own passes untouched
//! where plaintext would.

mod application;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ::http::HeaderValue;
use mesh_api::model::{Inbound, MtlsMode, Protocol};
use tokio::net::{TcpListener, TcpStream};

use crate::capture::{self, Side};
use crate::config::InboundMapping;
use crate::detect::{Detected, detect};
use crate::edges::Source;
use crate::failure::Failure;
use crate::flags::ResponseFlags;
use crate::http::exchange::Downstream;
use crate::http::{self, HttpVersion, headers};
use crate::outbound::DETECTION_TIMEOUT;
use crate::policy::{self, AuthzRequest, DenyReason, Peer, RequestView, Verdict};
use crate::stream::{Connection, Stream, local_addr};
use crate::telemetry::SpanKind;
use crate::tls::AlpnKind;
use crate::worker::Worker;
use crate::{listener, tcp};

pub(crate) use application::{Application, Applications, passthrough_model, single_leg};

/// Accepts connections to one port of the workload, until a drain closes it.
pub(crate) async fn serve(worker: Rc<Worker>, mapping: InboundMapping, listener: TcpListener) {
    let application = Application::mapped(&worker, &mapping);
    accept(&worker, listener, |stream, _| {
        Some((application.clone(), local_addr(stream)))
    })
    .await;
}

/// Accepts connections to any port of the workload that interception redirected, until a drain closes it.
pub(crate) async fn serve_captured(worker: Rc<Worker>, listener: TcpListener) {
    accept(&worker, listener, |stream, peer| {
        let original = capture::original_destination(stream, peer, Side::Inbound)?;
        Some((worker.applications.at(&worker, original), original))
    })
    .await;
}

/// Hands connections on with what `find` makes of them: the application, and the address that the peer connected to.
async fn accept(
    worker: &Rc<Worker>,
    listener: TcpListener,
    find: impl Fn(&TcpStream, SocketAddr) -> Option<(Rc<Application>, SocketAddr)>,
) {
    let drain = worker.proxy.drain.clone();
    let _open = drain.listener();
    let take = |(stream, peer)| {
        if !listener::has_room(drain.connections()) {
            return;
        }
        if let Some((application, local)) = find(&stream, peer) {
            // Counted before anything runs, so that a drain does not overlook it.
            let open = drain.arrival();
            let serving = connection(worker.clone(), application, stream, peer, local);
            tokio::task::spawn_local(async move {
                serving.await;
                drop(open);
            });
        }
    };
    let mut closing = std::pin::pin!(drain.closing());
    loop {
        tokio::select! {
            accepted = listener::accept(&listener) => take(accepted),
            () = closing.as_mut() => break,
        }
    }
    listener::close(listener).into_iter().for_each(take);
}

/// What a connection turned out to be.
enum Carries {
    Http(HttpVersion),
    Tcp,
}

async fn connection(
    worker: Rc<Worker>,
    application: Rc<Application>,
    stream: TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
) {
    let Some(policy) = worker.proxy.directory.inbound() else {
        return refused("policy_unavailable", peer);
    };
    let protocol = policy
        .port(application.port)
        .map_or(Protocol::Detect, |port| port.protocol);
    let mode = policy.mtls(application.port);
    let timeout = match (mode, protocol) {
        (MtlsMode::Strict, _) => None,
        (_, protocol) if protocol.is_http() => None,
        _ => Some(DETECTION_TIMEOUT),
    };
    let (detected, stream) = if mode == MtlsMode::Disable && matches!(protocol, Protocol::Tcp | Protocol::Tls) {
        (Detected::Opaque, Stream::Tcp(stream).fresh())
    } else {
        match detect(Stream::Tcp(stream), timeout).await {
            Ok(detected) => detected,
            Err(error) => {
                tracing::debug!(%error, %peer, "a connection broke before it said what it carries");
                return refused("malformed", peer);
            }
        }
    };
    let (carries, stream, downstream) = match detected {
        Detected::Tls(hello) if mode != MtlsMode::Disable && hello.mesh_protocol().is_some() => {
            let offered = hello.mesh_protocol();
            let accepted = match worker.proxy.inbound_tls.accept(stream).await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, %peer, "a TLS handshake failed");
                    return refused("tls", peer);
                }
            };
            let carries = match (protocol, offered, accepted.alpn) {
                (Protocol::Tcp | Protocol::Tls, _, _) | (_, Some(AlpnKind::Tcp), _) => Carries::Tcp,
                (_, _, Some(AlpnKind::Http2)) => Carries::Http(HttpVersion::Http2),
                _ => Carries::Http(HttpVersion::Http1),
            };
            let local_identity = worker.identity();
            let client_cert = client_cert(&accepted, local_identity.as_ref());
            let downstream = Downstream {
                peer,
                local,
                identity: Some(accepted.peer),
                local_identity,
                server_name: hello.sni.map(Into::into),
                client_cert,
            };
            (carries, Stream::Tls(Box::new(accepted.stream)).fresh(), downstream)
        }
        detected => {
            if mode == MtlsMode::Strict {
                return refused("plaintext_under_strict", peer);
            }
            let server_name = match &detected {
                Detected::Tls(hello) => hello.sni.as_deref().map(Into::into),
                _ => None,
            };
            let carries = match (protocol, detected) {
                (Protocol::Tcp | Protocol::Tls, _) => Carries::Tcp,
                (_, Detected::Http1) => Carries::Http(HttpVersion::Http1),
                (_, Detected::Http2) => Carries::Http(HttpVersion::Http2),
                // What is declared HTTP is held to it: a method that nobody knows, or bytes that get a 400.
                (protocol, Detected::Opaque) if protocol.is_http() => Carries::Http(HttpVersion::Http1),
                (_, Detected::Tls(_) | Detected::Opaque) => Carries::Tcp,
            };
            (
                carries,
                stream,
                Downstream {
                    server_name,
                    ..Downstream::plaintext(peer, local)
                },
            )
        }
    };
    let downstream = Rc::new(downstream);
    match carries {
        Carries::Http(version) => http::inbound::serve(worker, application, stream, version, downstream).await,
        Carries::Tcp => opaque(&worker, &application, stream, &downstream, &policy).await,
    }
}

fn client_cert(
    accepted: &crate::tls::inbound::Accepted<Connection>,
    local: Option<&mesh_api::identity::SpiffeId>,
) -> Option<HeaderValue> {
    use std::fmt::Write as _;
    let (_, connection) = accepted.stream.get_ref();
    let leaf = connection.peer_certificates()?.first()?;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, leaf);
    let mut hash = String::with_capacity(64);
    for byte in digest.as_ref() {
        let _ = write!(hash, "{byte:02x}");
    }
    headers::client_cert_header(local?.as_str(), accepted.peer.as_str(), &hash)
}

fn refused(reason: &'static str, peer: SocketAddr) {
    tracing::debug!(reason, %peer, "an inbound connection is refused");
    metrics::counter!("mesh_inbound_connections_refused_total", "reason" => reason).increment(1);
}

/// Opaque bytes to the application. A change of policy is applied to the live connection too.
async fn opaque(
    worker: &Rc<Worker>,
    application: &Application,
    stream: Connection,
    downstream: &Rc<Downstream>,
    policy: &Inbound,
) {
    let source = Source::new(downstream);
    let edge = source.edge(worker, &policy.workload, policy.port(application.port));
    if let Err(denial) = authorize(policy, application.port, downstream, None) {
        edge.tcp_opened();
        edge.tcp_closed(ResponseFlags::NONE);
        tcp::log_denial(worker, downstream, &application.name, &denial);
        return refused("rbac", downstream.peer);
    }
    let Ok(endpoint) = application.cluster.pick(None, &[]) else {
        return;
    };
    let carrying = tcp::carry(
        worker,
        stream,
        downstream,
        SpanKind::Server,
        &application.cluster,
        &endpoint,
        Some((edge, &application.name)),
    );
    let mut changes = worker.proxy.directory.changed();
    let denied = async {
        while changes.changed().await.is_ok() {
            let current = worker.proxy.directory.inbound();
            if current.is_none_or(|policy| authorize(&policy, application.port, downstream, None).is_err()) {
                return;
            }
        }
        // The control plane's client lives as long as the process.
        std::future::pending::<()>().await;
    };
    let drained = async {
        worker.proxy.drain.ending().await;
        tokio::time::sleep(worker.proxy.config.drain_duration.max(Duration::from_millis(1))).await;
    };
    tokio::select! {
        () = carrying => {}
        () = denied => refused("rbac_changed", downstream.peer),
        () = drained => {}
    }
}

/// Decides on a request, or on a connection that is no HTTP, with the policy in force now, which may be newer than the
/// connection.
pub(crate) fn authorize(
    policy: &Inbound,
    port: u16,
    downstream: &Downstream,
    http: Option<RequestView<'_>>,
) -> Result<(), Failure> {
    if downstream.identity.is_none() && policy.mtls(port) == MtlsMode::Strict {
        return Err(Failure::Denied {
            details: "mesh_plaintext_under_strict".to_owned(),
            by: None,
            reason: None,
        });
    }
    if policy.authorization.is_empty() {
        return Ok(());
    }
    let request = AuthzRequest {
        peer: Peer {
            identity: downstream.identity.as_ref(),
            address: downstream.peer.ip(),
        },
        destination: SocketAddr::new(downstream.local.ip(), port),
        sni: downstream.server_name.as_deref(),
        http,
    };
    let verdict = policy::authorize(&policy.authorization, &request);
    match &verdict {
        Verdict::Allowed { .. } => Ok(()),
        Verdict::Denied { by, reason } => Err(Failure::Denied {
            details: policy::details(&verdict),
            by: by.map(|(origin, rule)| (origin.clone(), rule)),
            reason: match reason {
                DenyReason::NoAllowMatched => None,
                DenyReason::MatchedDeny => None,
                DenyReason::InvalidRule(message) => Some((*message).to_owned()),
            },
        }),
    }
}
