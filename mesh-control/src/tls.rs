//! The control plane's TLS on port 15012: TCP connections come in, streams go out that tonic can serve and that carry
//! who the peer is. A client certificate is taken when there is one and must then be the mesh's; a caller with a
//! bootstrap token has none yet. No session is ever resumed: every connection proves its certificate anew.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use futures_util::Stream;
use mesh_api::identity::SpiffeId;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::ca::{Authority, PeerCertificate, PeerInfo, SignError};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at once; more wait in the system's accept queue.
const MAX_HANDSHAKES: usize = 256;
/// Connections at once, one for each proxy and some that reconnect.
const MAX_CONNECTIONS: usize = 16_384;
const RETRY_RENEWAL: Duration = Duration::from_secs(10);
/// Renewal looks at the clock at least this often: a suspended machine must not oversleep.
const CLOCK_CHECK: Duration = Duration::from_secs(60);

/// Names and addresses in the control plane's own certificate.
#[derive(Debug, Clone)]
pub struct ServingNames {
    /// Its workload identity, `spiffe://<trust domain>/ns/<root namespace>/sa/mesh-control`.
    pub identity: SpiffeId,
    /// Host names under which proxies reach it.
    pub dns_names: Vec<String>,
    /// Addresses under which proxies reach it.
    pub addresses: Vec<IpAddr>,
}

/// Why the serving certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ControlTlsError {
    /// The authority did not sign it.
    #[error("the control plane's serving certificate: {0}")]
    Sign(#[from] SignError),
    /// The key could not be made.
    #[error("the control plane's serving key: {0}")]
    Key(#[from] rcgen::Error),
    /// The TLS library refused the configuration.
    #[error("the control plane's TLS configuration: {0}")]
    Config(#[from] rustls::Error),
    /// The roots do not make a verifier.
    #[error("the control plane's client verification: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// TLS of the control plane's port; shared, and renewed in place.
pub struct ControlTls {
    authority: Arc<Authority>,
    names: ServingNames,
    current: ArcSwap<Serving>,
}

struct Serving {
    config: Arc<ServerConfig>,
    renew_at: SystemTime,
}

impl ControlTls {
    /// Makes the first serving certificate.
    ///
    /// # Errors
    /// When the authority's certificate has ended, or a name is not a name.
    pub fn new(authority: Arc<Authority>, names: ServingNames) -> Result<Arc<Self>, ControlTlsError> {
        let current = ArcSwap::from_pointee(serving(&authority, &names)?);
        Ok(Arc::new(Self {
            authority,
            names,
            current,
        }))
    }

    /// The configuration for the next connection.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        self.current.load().config.clone()
    }

    /// Renews the serving certificate at half its life, and whenever the authority's keys or roots change, until
    /// `shutdown`.
    pub async fn keep_fresh(&self, shutdown: CancellationToken) {
        let mut changes = self.authority.changes();
        // What changed before this task began counts too.
        let mut due = true;
        loop {
            let remaining = self.current.load().renew_at.duration_since(SystemTime::now());
            let pause = match remaining {
                Ok(remaining) if !due => remaining.min(CLOCK_CHECK),
                _ => match serving(&self.authority, &self.names) {
                    Ok(serving) => {
                        self.current.store(Arc::new(serving));
                        due = false;
                        continue;
                    }
                    Err(error) => {
                        tracing::error!("{error}; trying again in {RETRY_RENEWAL:?}");
                        RETRY_RENEWAL
                    }
                },
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                Ok(()) = changes.changed() => due = true,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Accepts connections until the returned stream is dropped. Handshakes run beside each other and end after 10 s;
    /// a failed one is counted and harms no other.
    pub fn incoming(self: Arc<Self>, listener: TcpListener) -> impl Stream<Item = io::Result<ControlStream>> + Send {
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(self.accept_loop(listener, sender));
        tokio_stream::wrappers::ReceiverStream::new(receiver)
    }

    async fn accept_loop(self: Arc<Self>, listener: TcpListener, sender: mpsc::Sender<io::Result<ControlStream>>) {
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let (handshake, connection) = match (
                handshakes.clone().acquire_owned().await,
                connections.clone().acquire_owned().await,
            ) {
                (Ok(handshake), Ok(connection)) => (handshake, connection),
                _ => return,
            };
            let accepted = tokio::select! {
                () = sender.closed() => return,
                accepted = listener.accept() => accepted,
            };
            let tcp = match accepted {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    // Out of file descriptors, most likely: some time for others to close theirs.
                    tracing::warn!("accepting a connection of a proxy: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (config, sender) = (self.config(), sender.clone());
            tokio::spawn(async move {
                match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake_with(tcp, config, connection)).await {
                    Ok(Ok(stream)) => {
                        let _ = sender.send(Ok(stream)).await;
                    }
                    Ok(Err(error)) => refused(&error.to_string()),
                    Err(_) => refused("timed out"),
                }
                drop(handshake);
            });
        }
    }
}

fn refused(reason: &str) {
    metrics::counter!("mesh_control_tls_handshake_failures_total").increment(1);
    tracing::debug!("TLS handshake of a proxy failed: {reason}");
}

fn serving(authority: &Authority, names: &ServingNames) -> Result<Serving, ControlTlsError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let issued = authority.issue(&names.identity, &names.dns_names, &names.addresses, &key, None)?;
    let now = SystemTime::now();
    let renew_at = now + issued.not_after.duration_since(now).unwrap_or_default() / 2;
    // The roots close the chain: a proxy that only knows a root's fingerprint looks for the root in it.
    let mut chain = issued.chain;
    chain.extend(issued.roots.iter().cloned());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(authority.root_store()?, provider.clone())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Serving {
        config: Arc::new(config),
        renew_at,
    })
}

async fn handshake_with(
    tcp: TcpStream,
    config: Arc<ServerConfig>,
    permit: OwnedSemaphorePermit,
) -> io::Result<ControlStream> {
    tcp.set_nodelay(true)?;
    let address = tcp.peer_addr()?;
    let tls = TlsAcceptor::from(config).accept(tcp).await?;
    let leaf = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let certificate = leaf.and_then(PeerCertificate::from_verified);
    Ok(ControlStream {
        tls,
        peer: PeerInfo { address, certificate },
        _permit: permit,
    })
}

/// A connection of a proxy, for `tonic::transport::Server::serve_with_incoming`; requests carry its [`PeerInfo`].
pub struct ControlStream {
    tls: TlsStream<TcpStream>,
    peer: PeerInfo,
    _permit: OwnedSemaphorePermit,
}

impl Connected for ControlStream {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for ControlStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for ControlStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
