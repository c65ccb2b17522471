//! The client side: an endpoint's expected identities go in, a configuration that accepts nobody else comes out.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, PoisonError, RwLock};

use hashbrown::HashMap;
use mesh_api::identity::SpiffeId;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::verify::ExpectedServer;
use super::{AlpnKind, HANDSHAKE_TIMEOUT, TlsUnavailable, provider, with_reason};
use crate::identity::{CertStore, Credentials};

/// Configurations kept; one for each set of expected identities and protocol that this workload calls. Beyond it all are
/// made anew, counted by `mesh_tls_client_configs_dropped_total`.
const MAX_CONFIGS: usize = 1024;
/// Server names whose sessions one configuration keeps for resumption: its identities' ports and subsets.
const SESSIONS: usize = 8;

/// Who may answer at an endpoint. Nobody, when empty.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ExpectedPeer {
    /// The endpoint's identity, or the service's where the endpoint's is not known.
    pub identities: SmallVec<[SpiffeId; 1]>,
}

impl From<SpiffeId> for ExpectedPeer {
    fn from(identity: SpiffeId) -> Self {
        Self {
            identities: SmallVec::from_iter([identity]),
        }
    }
}

impl FromIterator<SpiffeId> for ExpectedPeer {
    fn from_iter<I: IntoIterator<Item = SpiffeId>>(identities: I) -> Self {
        Self {
            identities: identities.into_iter().collect(),
        }
    }
}

impl fmt::Display for ExpectedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for identity in &self.identities {
            write!(f, "{separator}{identity}")?;
            separator = " or ";
        }
        if self.identities.is_empty() {
            f.write_str("nobody (no identity is known)")
        } else {
            Ok(())
        }
    }
}

impl fmt::Debug for ExpectedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// TLS for connections to peers; shared by all workers.
pub struct OutboundTls {
    store: Arc<CertStore>,
    cache: RwLock<Cache>,
}

#[derive(Default)]
struct Cache {
    generation: u64,
    configs: HashMap<(ExpectedPeer, AlpnKind), Arc<ClientConfig>>,
}

/// A key of the cache by reference.
#[derive(Hash)]
struct Wanted<'a>(&'a ExpectedPeer, AlpnKind);

impl hashbrown::Equivalent<(ExpectedPeer, AlpnKind)> for Wanted<'_> {
    fn equivalent(&self, key: &(ExpectedPeer, AlpnKind)) -> bool {
        *self.0 == key.0 && self.1 == key.1
    }
}

impl OutboundTls {
    /// TLS with whatever `store` holds at the time of each connection.
    #[must_use]
    pub fn new(store: Arc<CertStore>) -> Self {
        Self {
            store,
            cache: RwLock::default(),
        }
    }

    /// The configuration for connections to `expected`; the same one until the credentials change, so that sessions are
    /// resumed.
    ///
    /// # Errors
    /// Before the first certificate.
    pub fn config(&self, expected: &ExpectedPeer, alpn: AlpnKind) -> Result<Arc<ClientConfig>, TlsUnavailable> {
        let credentials = self.store.current().ok_or(TlsUnavailable::NoCredentials)?;
        {
            let cache = self.cache.read().unwrap_or_else(PoisonError::into_inner);
            if cache.generation == credentials.generation()
                && let Some(config) = cache.configs.get(&Wanted(expected, alpn))
            {
                return Ok(config.clone());
            }
        }
        let config = Arc::new(client_config(&credentials, expected, alpn)?);
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        if cache.generation != credentials.generation() {
            *cache = Cache {
                generation: credentials.generation(),
                configs: HashMap::new(),
            };
        } else if cache.configs.len() >= MAX_CONFIGS {
            metrics::counter!("mesh_tls_client_configs_dropped_total").increment(MAX_CONFIGS as u64);
            cache.configs.clear();
        }
        Ok(cache.configs.entry((expected.clone(), alpn)).or_insert(config).clone())
    }

    /// Shakes hands with the peer at the other end of `stream`, with `sni` as the server name.
    ///
    /// # Errors
    /// When there is no certificate yet, the peer is not an expected one (the error's inner one is then
    /// [`NotAPeer`](super::verify::NotAPeer), where the chain itself is good), or the handshake takes more than 10 s.
    pub async fn connect<S>(
        &self,
        stream: S,
        sni: ServerName<'static>,
        expected: &ExpectedPeer,
        alpn: AlpnKind,
    ) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let connector = TlsConnector::from(self.config(expected, alpn)?);
        tokio::time::timeout(HANDSHAKE_TIMEOUT, connector.connect(sni, stream))
            .await?
            .map_err(with_reason)
    }
}

/// The server name to send, in Istio's form `outbound_.<port>_.<subset>_.<host>` (`Cluster::sni` writes it). A text that
/// cannot be a host name, such as one with a wildcard, is not sent: identities are what is verified.
#[must_use]
pub fn server_name(sni: &str) -> ServerName<'static> {
    ServerName::try_from(sni.to_owned()).unwrap_or(ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
}

fn client_config(
    credentials: &Credentials,
    expected: &ExpectedPeer,
    alpn: AlpnKind,
) -> Result<ClientConfig, TlsUnavailable> {
    let verifier = ExpectedServer {
        roots: credentials.root_store().clone(),
        trust: credentials.trust().clone(),
        expected: expected.clone(),
        algorithms: provider().signature_verification_algorithms,
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        // Every peer of the mesh takes it: Istio's servers too.
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(credentials.resolver().clone());
    config.alpn_protocols = alpn.offers().iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn istios_server_names_go_out_as_they_are() {
        for sni in [
            "outbound_.9080_._.reviews.default.svc.cluster.local",
            "outbound_.9080_.v1_.reviews.default.svc.cluster.local",
            "outbound_.443_.eu-west_.api.example.com",
        ] {
            assert!(
                matches!(server_name(sni), ServerName::DnsName(name) if name.as_ref() == sni),
                "{sni}"
            );
        }
        for text in ["outbound_.443_._.*.example.com", "", "a..b"] {
            assert!(
                matches!(server_name(text), ServerName::IpAddress(_)),
                "{text}: no server name at all"
            );
        }
    }
}
