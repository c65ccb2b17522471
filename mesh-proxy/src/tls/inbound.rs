//! The server side: connections of peers come in, streams with a proven peer go out. A certificate of the mesh is
//! required; there is no anonymous peer behind this.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use mesh_api::identity::SpiffeId;
use rustls::ServerConfig;
use rustls::server::{ServerSessionMemoryCache, StoresServerSessions, WebPkiClientVerifier};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::verify::{self, MeshClient};
use super::{AlpnKind, HANDSHAKE_TIMEOUT, TlsUnavailable, provider, with_reason};
use crate::identity::{CertStore, Credentials};

/// Istio's list without `istio-peer-exchange`, whose bytes this proxy does not speak; the server's order decides.
const PROTOCOLS: [&[u8]; 6] = [
    b"h2",
    b"http/1.1",
    b"istio-h2",
    b"istio-http/1.1",
    b"istio-http/1.0",
    b"istio",
];

/// Sessions kept for resumption, by all workers together; about 1 KiB each.
const MAX_SESSIONS: usize = 256;
/// A resumed session is not verified again, so it must not live long.
const SESSION_LIFETIME: Duration = Duration::from_secs(10 * 60);

/// TLS for connections of peers; shared by all workers.
pub struct InboundTls {
    store: Arc<CertStore>,
    current: ArcSwapOption<Generation>,
}

struct Generation {
    number: u64,
    config: Arc<ServerConfig>,
}

/// A connection whose peer has proven its identity.
#[derive(Debug)]
pub struct Accepted<S> {
    /// The decrypted stream.
    pub stream: TlsStream<S>,
    /// Whose it is.
    pub peer: SpiffeId,
    /// What it carries, when the peer's offer said so.
    pub alpn: Option<AlpnKind>,
}

impl InboundTls {
    /// TLS with whatever `store` holds at the time of each connection.
    #[must_use]
    pub fn new(store: Arc<CertStore>) -> Self {
        Self {
            store,
            current: ArcSwapOption::empty(),
        }
    }

    /// The configuration for the next connection.
    ///
    /// # Errors
    /// Before the first certificate.
    pub fn config(&self) -> Result<Arc<ServerConfig>, TlsUnavailable> {
        let credentials = self.store.current().ok_or(TlsUnavailable::NoCredentials)?;
        if let Some(current) = &*self.current.load()
            && current.number == credentials.generation()
        {
            return Ok(current.config.clone());
        }
        // Two workers may both get here; either result is good.
        let config = Arc::new(server_config(&credentials)?);
        self.current.store(Some(Arc::new(Generation {
            number: credentials.generation(),
            config: config.clone(),
        })));
        Ok(config)
    }

    /// Takes the handshake of a peer.
    ///
    /// # Errors
    /// When there is no certificate yet, the peer does not prove an identity of the mesh (the error's inner one is then
    /// [`NotAPeer`](verify::NotAPeer), where the chain itself is good), or the handshake takes more than 10 s.
    pub async fn accept<S>(&self, stream: S) -> io::Result<Accepted<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = TlsAcceptor::from(self.config()?);
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
            .await?
            .map_err(with_reason)?;
        let (_, connection) = stream.get_ref();
        let peer = verify::peer(connection).ok_or(io::ErrorKind::PermissionDenied)?;
        let alpn = connection.alpn_protocol().and_then(AlpnKind::from_negotiated);
        Ok(Accepted { stream, peer, alpn })
    }
}

fn server_config(credentials: &Credentials) -> Result<ServerConfig, TlsUnavailable> {
    let chain = WebPkiClientVerifier::builder_with_provider(credentials.root_store().clone(), provider())
        // The mesh's certificates are the only ones that a peer has; hints would only make the handshake longer.
        .clear_root_hint_subjects()
        .build()
        .map_err(|error| TlsUnavailable::Config(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(Arc::new(MeshClient {
            chain,
            trust: credentials.trust().clone(),
        }))
        .with_cert_resolver(credentials.resolver().clone());
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    // One store for each configuration: sessions of another verifier must not be resumed here.
    config.session_storage = Arc::new(RecentSessions(ServerSessionMemoryCache::new(MAX_SESSIONS)));
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// Sessions that are forgotten after [`SESSION_LIFETIME`]; each is stored behind the second of its making.
#[derive(Debug)]
struct RecentSessions(Arc<ServerSessionMemoryCache>);

impl RecentSessions {
    fn fresh(stored: Vec<u8>) -> Option<Vec<u8>> {
        let (made, session) = stored.split_first_chunk()?;
        let age = now().checked_sub(u64::from_be_bytes(*made))?;
        (age < SESSION_LIFETIME.as_secs()).then(|| session.to_vec())
    }
}

impl StoresServerSessions for RecentSessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        let mut stored = now().to_be_bytes().to_vec();
        stored.extend_from_slice(&value);
        self.0.put(key, stored)
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.get(key).and_then(Self::fresh)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.take(key).and_then(Self::fresh)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_sessions_are_forgotten() {
        let stored = |age: u64| {
            let mut bytes = (now() - age).to_be_bytes().to_vec();
            bytes.extend_from_slice(b"session");
            bytes
        };
        assert_eq!(RecentSessions::fresh(stored(0)).as_deref(), Some(&b"session"[..]));
        assert!(RecentSessions::fresh(stored(500)).is_some());
        assert!(RecentSessions::fresh(stored(600)).is_none());
        assert!(RecentSessions::fresh(vec![1, 2]).is_none());
    }
}
