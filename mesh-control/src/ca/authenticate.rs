//! Who calls the control plane: the connection's client certificate, else the bearer token of the call.

use std::net::SocketAddr;
use std::time::SystemTime;

use mesh_api::identity::{SpiffeId, TrustDomain};
use rustls_pki_types::CertificateDer;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::authority::Time;
use super::token::{TokenError, TokenStore};

/// What is known of a connection, in the extensions of each of its requests.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Where it comes from.
    pub address: SocketAddr,
    /// The certificate that the peer presented and that was verified, when there is one.
    pub certificate: Option<PeerCertificate>,
}

/// A verified client certificate, reduced to what authentication needs.
#[derive(Debug, Clone)]
pub struct PeerCertificate {
    /// Its one SPIFFE name.
    pub identity: SpiffeId,
    /// The end of its validity: a connection may outlive it.
    pub not_after: SystemTime,
}

impl PeerCertificate {
    /// Reads a leaf that the TLS handshake has verified. `None` when it names no workload, or several.
    #[must_use]
    pub fn from_verified(leaf: &CertificateDer<'_>) -> Option<Self> {
        let certificate = webpki::EndEntityCert::try_from(leaf).ok()?;
        let mut names = certificate.valid_uri_names();
        let (Some(name), None) = (names.next(), names.next()) else {
            return None;
        };
        Some(Self {
            identity: name.parse().ok()?,
            not_after: Time::not_after(leaf).ok()?,
        })
    }
}

/// An authenticated caller.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who it is.
    pub identity: SpiffeId,
    /// How it proved that.
    pub how: Proof,
}

/// How a caller proved its identity, and until when that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// By the certificate of its connection.
    Certificate {
        /// The end of the certificate's validity.
        not_after: SystemTime,
    },
    /// By a bootstrap token.
    BootstrapToken {
        /// The end of the token's validity.
        expires: SystemTime,
    },
}

/// Authenticates the callers of every service of the control plane.
#[derive(Debug, Clone)]
pub struct Authenticator {
    trust_domain: TrustDomain,
    tokens: TokenStore,
}

impl Authenticator {
    /// Takes certificates of `trust_domain` and the tokens in `tokens`.
    #[must_use]
    pub fn new(trust_domain: TrustDomain, tokens: TokenStore) -> Self {
        Self { trust_domain, tokens }
    }

    /// Authenticates a request that came in over [`ControlTls`](crate::tls::ControlTls).
    ///
    /// # Errors
    /// As [`Self::authenticate`].
    pub fn authenticate_request<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let peer = request.extensions().get::<PeerInfo>();
        self.authenticate(request.metadata(), peer.and_then(|peer| peer.certificate.as_ref()))
    }

    /// A live certificate decides; without one, the `authorization` metadata must hold a bootstrap token in force.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` with what is missing or wrong; `UNAVAILABLE` when tokens cannot be read.
    pub fn authenticate(
        &self,
        metadata: &MetadataMap,
        certificate: Option<&PeerCertificate>,
    ) -> Result<Caller, Status> {
        match certificate {
            Some(certificate) if certificate.not_after > SystemTime::now() => self.by_certificate(certificate),
            Some(_) if metadata.get("authorization").is_none() => Err(Status::unauthenticated(
                "the connection's client certificate has expired: connect again with a new one, or with a bootstrap token",
            )),
            _ => self.by_token(metadata),
        }
    }

    fn by_certificate(&self, certificate: &PeerCertificate) -> Result<Caller, Status> {
        let identity = certificate.identity.clone();
        if identity.trust_domain() != self.trust_domain.as_str() {
            return Err(Status::unauthenticated(format!(
                "{identity} is not in the trust domain `{}`",
                self.trust_domain
            )));
        }
        Ok(Caller {
            identity,
            how: Proof::Certificate {
                not_after: certificate.not_after,
            },
        })
    }

    fn by_token(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let value = metadata.get("authorization").ok_or_else(|| {
            Status::unauthenticated(
                "no proof of identity: present a client certificate of the mesh, or a bootstrap token as \
                 `authorization: Bearer …`",
            )
        })?;
        let text = value.to_str().ok().and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token)
        });
        let text =
            text.ok_or_else(|| Status::unauthenticated("the `authorization` metadata is not `Bearer <token>`"))?;
        match self.tokens.verify(text) {
            Ok(grant) => Ok(Caller {
                identity: grant.identity,
                how: Proof::BootstrapToken { expires: grant.expires },
            }),
            Err(error @ (TokenError::Io { .. } | TokenError::Corrupt { .. })) => {
                tracing::error!("{error}");
                Err(Status::unavailable("bootstrap tokens cannot be read now"))
            }
            Err(error) => Err(Status::unauthenticated(error.to_string())),
        }
    }
}
