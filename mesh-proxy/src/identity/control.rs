//! Connections to the control plane: who it is, is verified before anything is said; who we are, is proven by our
//! certificate when we hold a live one, else by a token in the metadata of each call.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mesh_api::bootstrap::{BootstrapToken, Fingerprint};
use mesh_api::identity::SpiffeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::store::CertStore;
use crate::resolver;
use crate::tls::{HANDSHAKE_TIMEOUT, provider, verify, with_reason};

/// A control plane that is gone must be noticed on a silent stream.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// `host:port` of the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlAddress {
    host: String,
    port: u16,
    name: ServerName<'static>,
}

/// Why text is not an address of a control plane.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address of a control plane: expected host:port, such as mesh-control.mesh-system.svc:15012")]
pub struct InvalidAddress(String);

impl FromStr for ControlAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidAddress(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(invalid)?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let name = match host.parse::<IpAddr>() {
            Ok(address) => ServerName::from(address),
            Err(_) => ServerName::try_from(host.to_owned()).map_err(|_| invalid())?,
        };
        Ok(Self {
            host: host.to_owned(),
            port,
            name,
        })
    }
}

impl fmt::Display for ControlAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Where the token comes from that proves an identity before there is a certificate.
#[derive(Clone)]
pub enum TokenSource {
    /// A bootstrap token, given at the start.
    Bootstrap(BootstrapToken),
    /// A file, read at each use: a bootstrap token, or a service-account token that Kubernetes renews in place.
    File(PathBuf),
}

/// How the control plane is reached and recognised.
#[derive(Clone)]
pub struct ControlPlaneConfig {
    /// Where it listens.
    pub address: ControlAddress,
    /// Its workload identity. Its certificate must carry this, or the host name or address that was dialled.
    pub identity: SpiffeId,
    /// Proof of our identity before the first certificate.
    pub token: Option<TokenSource>,
    /// The mesh's roots in PEM, read at each connection; without it the bootstrap token's fingerprint must do.
    pub roots: Option<PathBuf>,
}

/// Dials the control plane. One for the process, shared by the identity and the discovery client.
pub struct ControlPlane {
    config: ControlPlaneConfig,
    store: Arc<CertStore>,
}

/// A channel to the control plane whose calls prove who we are.
pub type ControlChannel = InterceptedService<Channel, Prove>;

/// Adds the token to calls on connections that were opened without a certificate.
#[derive(Clone)]
pub struct Prove {
    control: Arc<ControlPlane>,
    by_certificate: Arc<AtomicBool>,
}

enum Token {
    Bootstrap(BootstrapToken),
    Other(String),
}

impl ControlPlane {
    /// Dials as `config` says, with the certificates of `store`.
    #[must_use]
    pub fn new(config: ControlPlaneConfig, store: Arc<CertStore>) -> Arc<Self> {
        Arc::new(Self { config, store })
    }

    /// Where the control plane is.
    #[must_use]
    pub fn address(&self) -> &ControlAddress {
        &self.config.address
    }

    /// A channel with a connection of its own, opened at the first call. A client whose stream has failed should take a
    /// new one, which proves our identity with the certificate of that time.
    ///
    /// # Errors
    /// When the address does not make a URI.
    pub fn channel(self: &Arc<Self>) -> Result<ControlChannel, tonic::transport::Error> {
        let by_certificate = Arc::new(AtomicBool::new(self.live_certificate()));
        let prove = Prove {
            control: self.clone(),
            by_certificate: by_certificate.clone(),
        };
        let endpoint = Endpoint::from_shared(format!("http://{}", self.config.address))?
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .keep_alive_timeout(HANDSHAKE_TIMEOUT);
        let control = self.clone();
        let connector = tower::service_fn(move |_| {
            let (control, by_certificate) = (control.clone(), by_certificate.clone());
            async move {
                let with_certificate = control.live_certificate();
                let stream = control.dial(with_certificate).await?;
                by_certificate.store(with_certificate, Ordering::Relaxed);
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        Ok(InterceptedService::new(
            endpoint.connect_with_connector_lazy(connector),
            prove,
        ))
    }

    fn live_certificate(&self) -> bool {
        self.store.current().is_some_and(|credentials| credentials.is_live())
    }

    /// A boxed future: it is long, and rare.
    fn dial(
        &self,
        with_certificate: bool,
    ) -> Pin<Box<dyn Future<Output = io::Result<TlsStream<TcpStream>>> + Send + '_>> {
        Box::pin(async move {
            let address = &self.config.address;
            let config = self.client_config(with_certificate)?;
            let tcp = resolver::connect(&address.host, address.port).await;
            let tcp = tcp.map_err(|error| named(address, error))?;
            tcp.set_nodelay(true)?;
            let tls = TlsConnector::from(Arc::new(config)).connect(address.name.clone(), tcp);
            let tls = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls);
            tls.await
                .map_err(|_| named(address, io::ErrorKind::TimedOut.into()))?
                .map_err(|error| named(address, with_reason(error)))
        })
    }

    fn client_config(&self, with_certificate: bool) -> io::Result<ClientConfig> {
        let verifier = ControlServer {
            trust: self.trust()?,
            identity: self.config.identity.clone(),
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let credentials = self.store.current().filter(|_| with_certificate);
        let mut config = match credentials {
            Some(credentials) => builder.with_client_cert_resolver(credentials.resolver().clone()),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// What the control plane's chain must end in: the roots we were given last.
    fn trust(&self) -> io::Result<Trust> {
        let mut roots = RootCertStore::empty();
        if let Some(path) = &self.config.roots {
            let unreadable = |error: String| io::Error::other(format!("roots in {}: {error}", path.display()));
            let pem = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
            for root in CertificateDer::pem_slice_iter(&pem) {
                let root = root.map_err(|error| unreadable(error.to_string()))?;
                roots.add(root).map_err(|error| unreadable(error.to_string()))?;
            }
        }
        if let Some(credentials) = self.store.current() {
            roots.roots.extend(credentials.root_store().roots.iter().cloned());
        }
        if !roots.is_empty() {
            return Ok(Trust::Roots(roots));
        }
        match self.token() {
            Ok(Some(Token::Bootstrap(token))) => Ok(Trust::Pinned(token.root())),
            Ok(_) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the control plane cannot be recognised: give the mesh's root certificates, or a bootstrap token, which \
                 carries the root's fingerprint",
            )),
            Err(error) => Err(error),
        }
    }

    fn token(&self) -> io::Result<Option<Token>> {
        let path = match &self.config.token {
            None => return Ok(None),
            Some(TokenSource::Bootstrap(token)) => return Ok(Some(Token::Bootstrap(token.clone()))),
            Some(TokenSource::File(path)) => path,
        };
        let text = std::fs::read_to_string(path)
            .map_err(|error| io::Error::new(error.kind(), format!("token in {}: {error}", path.display())))?;
        Ok(Some(match text.parse() {
            Ok(token) => Token::Bootstrap(token),
            Err(_) => Token::Other(text.trim().to_owned()),
        }))
    }
}

impl Interceptor for Prove {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if self.by_certificate.load(Ordering::Relaxed) {
            return Ok(request);
        }
        let text = match self.control.token() {
            Ok(Some(Token::Bootstrap(token))) => token.to_string(),
            Ok(Some(Token::Other(text))) => text,
            Ok(None) => return Ok(request),
            Err(error) => return Err(Status::unauthenticated(error.to_string())),
        };
        let mut value = MetadataValue::try_from(format!("Bearer {text}"))
            .map_err(|_| Status::unauthenticated("the token holds characters that a header cannot"))?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

/// What a call to the control plane failed with, for people: the status' own text, and causes that say more.
pub(crate) fn describe(status: &Status) -> String {
    let mut text = match status.message() {
        "" => format!("{:?}", status.code()),
        message => format!("{message} ({:?})", status.code()),
    };
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let cause = error.to_string();
        // tonic's own name for any error of a connection says nothing.
        if cause != "transport error" && !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}

fn named(address: &ControlAddress, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("control plane at {address}: {error}"))
}

/// Why who answers is not believed to be the control plane. Nothing is said to it, no token shown.
#[derive(Debug, Clone, Copy, thiserror::Error)]
enum NotTheControlPlane {
    #[error(
        "its certificate does not lead to the root whose fingerprint the bootstrap token carries ({0}): the token is of \
         another mesh, or the authority has a new root; the token was not sent"
    )]
    OtherRoot(Fingerprint),
    #[error(
        "its certificate does not lead to one of the mesh's root certificates that this proxy has; it was told nothing"
    )]
    OtherRoots,
}

impl From<NotTheControlPlane> for rustls::Error {
    fn from(error: NotTheControlPlane) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

#[derive(Debug)]
enum Trust {
    Roots(RootCertStore),
    /// The presented chain must hold the root with this fingerprint.
    Pinned(Fingerprint),
}

/// Verifies the control plane: the chain, and then that it is not any other workload of the mesh.
#[derive(Debug)]
struct ControlServer {
    trust: Trust,
    identity: SpiffeId,
}

impl ServerCertVerifier for ControlServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = provider().signature_verification_algorithms.all;
        let pinned;
        let roots = match &self.trust {
            Trust::Roots(roots) => roots,
            Trust::Pinned(fingerprint) => {
                pinned = pinned_root(intermediates, fingerprint)?;
                &pinned
            }
        };
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms).map_err(|error| {
            match error {
                rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                    NotTheControlPlane::OtherRoots.into()
                }
                error => error,
            }
        })?;
        if verify::identity(leaf).is_ok_and(|presented| presented == self.identity) {
            return Ok(ServerCertVerified::assertion());
        }
        verify_server_name(&parsed, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &provider().signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn pinned_root(presented: &[CertificateDer<'_>], fingerprint: &Fingerprint) -> Result<RootCertStore, rustls::Error> {
    let digest = |certificate: &CertificateDer<'_>| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
    let root = presented
        .iter()
        .find(|certificate| digest(certificate).as_ref() == fingerprint.0);
    let root = root.ok_or(NotTheControlPlane::OtherRoot(*fingerprint))?;
    let mut roots = RootCertStore::empty();
    roots.add(root.clone().into_owned())?;
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for text in [
            "mesh-control.mesh-system.svc:15012",
            "127.0.0.1:15012",
            "[::1]:15012",
            "localhost:1",
        ] {
            assert_eq!(text.parse::<ControlAddress>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "host",
            "host:",
            ":15012",
            "host:0",
            "host:99999",
            "http://host:1",
            "a b:1",
        ] {
            assert!(text.parse::<ControlAddress>().is_err(), "{text}");
        }
    }
}
