//! Workload identities: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
//!
//! What comes in from certificates, policies and the command line is parsed here once; inside the mesh an identity is
//! never a string.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A SPIFFE trust domain: the authority part of an identity (SPIFFE-ID §2.1).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// Why text is not a trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a trust domain: 1 to 255 of lower-case letters, digits, `.`, `-` and `_`")]
pub struct InvalidTrustDomain(String);

impl TrustDomain {
    /// Istio's default, `cluster.local`.
    #[must_use]
    pub fn cluster_local() -> Self {
        Self(Arc::from("cluster.local"))
    }

    /// The text, without scheme.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = InvalidTrustDomain;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > 255 || !text.bytes().all(allowed) {
            return Err(InvalidTrustDomain(text.to_owned()));
        }
        Ok(Self(Arc::from(text)))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A workload's identity in Istio's form, `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// Cheap to clone; the whole URI is kept once and its parts are slices of it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    /// Byte ranges of namespace and service account within `uri`.
    namespace: (usize, usize),
    service_account: usize,
}

/// Why text is not a workload identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a workload identity: expected spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
pub struct InvalidSpiffeId(String);

const SCHEME: &str = "spiffe://";

impl SpiffeId {
    /// Builds an identity from its parts.
    ///
    /// # Errors
    /// When namespace or service account is empty or holds a character that a Kubernetes name cannot have.
    pub fn new(trust_domain: &TrustDomain, namespace: &str, service_account: &str) -> Result<Self, InvalidSpiffeId> {
        format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// The whole URI.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The URI without `spiffe://`, as AuthorizationPolicy writes principals.
    #[must_use]
    pub fn principal(&self) -> &str {
        &self.uri[SCHEME.len()..]
    }

    /// The trust domain's text.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.uri[SCHEME.len()..self.namespace.0 - "/ns/".len()]
    }

    /// The Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.uri[self.namespace.0..self.namespace.1]
    }

    /// The Kubernetes service account.
    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.uri[self.service_account..]
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidSpiffeId(text.to_owned());
        let name = |part: &str| {
            !part.is_empty()
                && part.len() <= 253
                && part
                    .bytes()
                    .all(|c| matches!(c, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
        };
        let rest = text.strip_prefix(SCHEME).ok_or_else(invalid)?;
        let mut parts = rest.split('/');
        let (Some(domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(invalid());
        };
        if domain.parse::<TrustDomain>().is_err() || !name(namespace) || !name(account) {
            return Err(invalid());
        }
        let start = SCHEME.len() + domain.len() + "/ns/".len();
        Ok(Self {
            uri: Arc::from(text),
            namespace: (start, start + namespace.len()),
            service_account: text.len() - account.len(),
        })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_an_identity() {
        let id: SpiffeId = "spiffe://cluster.local/ns/default/sa/order-service".parse().unwrap();
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.namespace(), "default");
        assert_eq!(id.service_account(), "order-service");
        assert_eq!(id.principal(), "cluster.local/ns/default/sa/order-service");
    }

    #[test]
    fn refused_identities() {
        for text in [
            "",
            "cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://Cluster.local/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://td/ns/a b/sa/c",
            "spiffe://td/ns/a/sa/b?x=y",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }
}
