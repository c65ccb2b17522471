//! Whether a peer's certificate is the mesh's, and whose it is: the chain must lead to a root of the mesh, and the leaf
//! must carry exactly one URI name, a workload identity (X509-SVID §2). Nothing else in a certificate counts.

use std::sync::Arc;

use mesh_api::identity::{InvalidSpiffeId, SpiffeId, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
};

use super::outbound::ExpectedPeer;

/// The trust domains whose identities are the mesh's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustDomains {
    own: TrustDomain,
    aliases: Vec<TrustDomain>,
}

impl TrustDomains {
    /// This mesh's domain and its aliases, which mean the same (`trustDomainAliases`).
    #[must_use]
    pub fn new(own: TrustDomain, aliases: Vec<TrustDomain>) -> Self {
        Self { own, aliases }
    }

    /// Whether an identity is of the mesh.
    #[must_use]
    pub fn has(&self, identity: &SpiffeId) -> bool {
        let domain = identity.trust_domain();
        self.own.as_str() == domain || self.aliases.iter().any(|alias| alias.as_str() == domain)
    }

    /// Whether two identities name the same workload: they are equal, or differ only in domains that mean the same.
    #[must_use]
    pub fn same(&self, one: &SpiffeId, other: &SpiffeId) -> bool {
        one == other
            || (one.namespace() == other.namespace()
                && one.service_account() == other.service_account()
                && self.has(one)
                && self.has(other))
    }
}

/// Why a verified chain is still not a peer of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAPeer {
    /// No URI name at all.
    #[error("the certificate names no identity (no URI in its alternative names)")]
    NoIdentity,
    /// More than one URI name.
    #[error("the certificate names several identities")]
    SeveralIdentities,
    /// A URI that is no workload identity.
    #[error("the certificate's name {0}")]
    Malformed(#[from] InvalidSpiffeId),
    /// An identity of somebody else's mesh.
    #[error("{0} is not in a trust domain of this mesh")]
    OtherTrustDomain(SpiffeId),
    /// An identity of this mesh, but not one of those expected.
    #[error("the certificate is {presented}'s, expected was {expected}")]
    Unexpected {
        /// Whose certificate it is.
        presented: SpiffeId,
        /// Who should have answered.
        expected: ExpectedPeer,
    },
}

impl From<NotAPeer> for Error {
    fn from(error: NotAPeer) -> Self {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// The identity that a leaf names.
///
/// # Errors
/// When it names none, several, or something else.
pub fn identity(leaf: &CertificateDer<'_>) -> Result<SpiffeId, NotAPeer> {
    let certificate = webpki::EndEntityCert::try_from(leaf).map_err(|_| NotAPeer::NoIdentity)?;
    let mut names = certificate.valid_uri_names();
    match (names.next(), names.next()) {
        (None, _) => Err(NotAPeer::NoIdentity),
        (Some(_), Some(_)) => Err(NotAPeer::SeveralIdentities),
        (Some(name), None) => Ok(name.parse()?),
    }
}

/// Whose certificate the other side of a finished handshake presented.
#[must_use]
pub fn peer(connection: &rustls::CommonState) -> Option<SpiffeId> {
    identity(connection.peer_certificates()?.first()?).ok()
}

/// Verifies servers: mesh roots, then one of the expected identities.
#[derive(Debug)]
pub(super) struct ExpectedServer {
    pub roots: Arc<RootCertStore>,
    pub trust: Arc<TrustDomains>,
    pub expected: ExpectedPeer,
    pub algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ExpectedServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, self.algorithms.all)?;
        let presented = identity(leaf)?;
        if self
            .expected
            .identities
            .iter()
            .any(|expected| self.trust.same(expected, &presented))
        {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(NotAPeer::Unexpected {
                presented,
                expected: self.expected.clone(),
            }
            .into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Verifies clients: mesh roots (by `chain`), then any identity of the mesh's trust domains.
#[derive(Debug)]
pub(super) struct MeshClient {
    pub chain: Arc<dyn ClientCertVerifier>,
    pub trust: Arc<TrustDomains>,
}

impl ClientCertVerifier for MeshClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(leaf, intermediates, now)?;
        let presented = identity(leaf)?;
        if self.trust.has(&presented) {
            Ok(verified)
        } else {
            Err(NotAPeer::OtherTrustDomain(presented).into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
