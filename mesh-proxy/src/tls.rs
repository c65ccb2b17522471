//! The mesh's mutual TLS. Credentials come from the [`CertStore`](crate::identity::CertStore); configurations for both
//! sides go out, rebuilt when the credentials change, so that no connection is opened with old ones.
//!
//! - [`inbound`]: the server side; a client certificate of the mesh is required.
//! - [`outbound`]: the client side; the server's certificate must name an expected identity. Host names prove nothing.
//! - [`hello`]: what a ClientHello offers, before any handshake.
//! - [`verify`]: chains and SPIFFE names.
//!
//! It is Istio's mutual TLS on the wire: SPIFFE URI names, `istio*` application protocols, and Istio's form of SNI.

use std::io;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustls::CertificateError;
use rustls::crypto::CryptoProvider;

pub mod hello;
pub mod inbound;
pub mod outbound;
pub mod verify;

#[cfg(test)]
pub(crate) mod tests;

use verify::NotAPeer;

/// A handshake that takes longer has lost its peer.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a connection of the mesh carries, as its application protocol says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AlpnKind {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Any other bytes.
    Tcp,
}

impl AlpnKind {
    /// What a client of the mesh offers, in Istio's order.
    #[must_use]
    pub fn offers(self) -> &'static [&'static [u8]] {
        match self {
            Self::Http1 => &[b"istio-http/1.1", b"istio", b"http/1.1"],
            Self::Http2 => &[b"istio-h2", b"istio", b"h2"],
            Self::Tcp => &[b"istio"],
        }
    }

    /// What a negotiated protocol means; `None` when it is not one of the mesh's.
    #[must_use]
    pub fn from_negotiated(protocol: &[u8]) -> Option<Self> {
        match protocol {
            b"istio-h2" | b"h2" => Some(Self::Http2),
            b"istio-http/1.1" | b"istio-http/1.0" | b"http/1.1" | b"http/1.0" => Some(Self::Http1),
            b"istio" => Some(Self::Tcp),
            _ => None,
        }
    }
}

/// No handshake is possible: this proxy has no certificate yet, or the TLS library refused the configuration.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsUnavailable {
    /// The control plane has not issued a certificate yet.
    #[error("no certificate yet: the control plane has not issued one")]
    NoCredentials,
    /// A configuration was refused.
    #[error("TLS configuration refused: {0}")]
    Config(String),
}

impl From<rustls::Error> for TlsUnavailable {
    fn from(error: rustls::Error) -> Self {
        Self::Config(error.to_string())
    }
}

impl From<TlsUnavailable> for io::Error {
    fn from(error: TlsUnavailable) -> Self {
        Self::new(io::ErrorKind::NotConnected, error)
    }
}

/// The one cryptography provider of the process.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

/// A failed handshake's error, with our own reason for it on top instead of deep inside.
pub(crate) fn with_reason(error: io::Error) -> io::Error {
    let reason = error.get_ref().and_then(|inner| match inner.downcast_ref()? {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => Some(other.0.clone()),
        _ => None,
    });
    match reason {
        Some(reason) => io::Error::new(
            io::ErrorKind::PermissionDenied,
            match reason.downcast_ref::<NotAPeer>() {
                Some(reason) => reason.clone().into(),
                None => Box::<dyn std::error::Error + Send + Sync>::from(reason.to_string()),
            },
        ),
        None => error,
    }
}
