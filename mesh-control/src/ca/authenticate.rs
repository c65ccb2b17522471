//! Who calls the control plane: the connection's client certificate, else the bearer token of the call. Tokens are
//! bootstrap tokens of this mesh, or service-account tokens that Kubernetes vouches for.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
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
    /// By a token of its Kubernetes service account.
    ServiceAccountToken {
        /// The end of the token's validity.
        expires: SystemTime,
    },
}

impl Proof {
    /// Until when it holds.
    #[must_use]
    pub fn ends(&self) -> SystemTime {
        match self {
            Self::Certificate { not_after } => *not_after,
            Self::BootstrapToken { expires } | Self::ServiceAccountToken { expires } => *expires,
        }
    }
}

/// Whom a service-account token belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its identity in the mesh.
    pub identity: SpiffeId,
    /// When the token ends.
    pub expires: SystemTime,
}

/// A review under way.
pub type Reviewing<'a> = Pin<Box<dyn Future<Output = Result<ServiceAccount, Status>> + Send + 'a>>;

/// Says whom a service-account token belongs to.
pub trait ReviewToken: Send + Sync + 'static {
    /// Reviews a token.
    ///
    /// # Errors
    /// UNAUTHENTICATED when it is not one for this mesh, UNAVAILABLE when that cannot be found out now.
    fn review<'a>(&'a self, token: &'a str) -> Reviewing<'a>;
}

/// Authenticates the callers of every service of the control plane.
#[derive(Clone)]
pub struct Authenticator {
    trust_domain: TrustDomain,
    tokens: Option<TokenStore>,
    reviewer: Option<Arc<dyn ReviewToken>>,
}

impl Authenticator {
    /// Takes certificates of `trust_domain` and the bootstrap tokens in `tokens`.
    #[must_use]
    pub fn new(trust_domain: TrustDomain, tokens: TokenStore) -> Self {
        Self {
            trust_domain,
            tokens: Some(tokens),
            reviewer: None,
        }
    }

    /// Takes certificates of `trust_domain`, and service-account tokens that `reviewer` knows.
    #[must_use]
    pub fn in_cluster(trust_domain: TrustDomain, reviewer: Arc<dyn ReviewToken>) -> Self {
        Self {
            trust_domain,
            tokens: None,
            reviewer: Some(reviewer),
        }
    }

    /// Authenticates a request that came in over [`ControlTls`](crate::tls::ControlTls).
    ///
    /// # Errors
    /// As [`Self::authenticate`].
    pub fn authenticate_request<T>(
        &self,
        request: &Request<T>,
    ) -> impl Future<Output = Result<Caller, Status>> + Send + use<T> {
        // A request is not always `Sync`: what is needed of it is taken out before anything waits.
        let (this, metadata) = (self.clone(), request.metadata().clone());
        let certificate = request
            .extensions()
            .get::<PeerInfo>()
            .and_then(|peer| peer.certificate.clone());
        async move { this.authenticate(&metadata, certificate.as_ref()).await }
    }

    /// A live certificate decides; without one, the `authorization` metadata must hold a token in force.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` with what is missing or wrong; `UNAVAILABLE` when tokens cannot be read or reviewed.
    pub async fn authenticate(
        &self,
        metadata: &MetadataMap,
        certificate: Option<&PeerCertificate>,
    ) -> Result<Caller, Status> {
        match certificate {
            Some(certificate) if certificate.not_after > SystemTime::now() => self.by_certificate(certificate),
            Some(_) if metadata.get("authorization").is_none() => Err(Status::unauthenticated(
                "the connection's client certificate has expired: connect again with a new one, or with a token",
            )),
            _ => self.by_token(metadata).await,
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

    async fn by_token(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let value = metadata.get("authorization").ok_or_else(|| {
            Status::unauthenticated(
                "no proof of identity: present a client certificate of the mesh, or a token as `authorization: Bearer …`",
            )
        })?;
        let text = value.to_str().ok().and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token)
        });
        let text =
            text.ok_or_else(|| Status::unauthenticated("the `authorization` metadata is not `Bearer <token>`"))?;
        match (&self.tokens, &self.reviewer) {
            (_, Some(reviewer)) => {
                let ServiceAccount { identity, expires } = reviewer.review(text).await?;
                let how = Proof::ServiceAccountToken { expires };
                Ok(Caller { identity, how })
            }
            (Some(tokens), None) => by_bootstrap_token(tokens, text),
            (None, None) => Err(Status::unauthenticated("tokens are not taken here")),
        }
    }
}

fn by_bootstrap_token(tokens: &TokenStore, text: &str) -> Result<Caller, Status> {
    match tokens.verify(text) {
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
