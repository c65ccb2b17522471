//! The certificate authority. Certificate signing requests of authenticated callers come in, certificates that carry
//! the caller's own SPIFFE identity go out, over Istio's certificate service.
//!
//! What it never does: sign an identity that the caller did not prove, hand out its key, or keep a bootstrap token's
//! secret.

mod authenticate;
mod authority;
mod material;
mod service;
mod token;

#[cfg(test)]
mod tests;

pub use authenticate::{
    Authenticator, Caller, PeerCertificate, PeerInfo, Proof, ReviewToken, Reviewing, ServiceAccount,
};
pub use authority::{Authority, Issued, Lifetimes, SignError};
pub(crate) use material::{CA_CERT, CA_KEY, CERT_CHAIN, Files, ROOT_CERT, ROOT_KEY};
pub use material::{MaterialError, root_fingerprint};
pub use service::CertificateService;
pub use token::{TokenError, TokenStore, create_token};
