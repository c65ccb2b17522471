//! Host names, and references to the policy objects that users wrote.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A host name without trailing dot, in lower case; never a wildcard. IP addresses in text form are allowed, since
/// authorities may be addresses.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hostname(Arc<str>);

/// Why text is not a host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a host name")]
pub struct InvalidHostname(String);

impl Hostname {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Hostname {
    type Err = InvalidHostname;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let trimmed = text.strip_suffix('.').unwrap_or(text);
        let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.' | b':');
        if trimmed.is_empty()
            || trimmed.len() > 253
            || trimmed.starts_with('.')
            || trimmed.ends_with('.')
            || !trimmed.bytes().all(allowed)
        {
            return Err(InvalidHostname(text.to_owned()));
        }
        Ok(Self(Arc::from(trimmed.to_ascii_lowercase())))
    }
}

impl Borrow<str> for Hostname {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The policy object that something in the model came from, as users know it: `VirtualService default/reviews`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ObjectRef {
    /// `VirtualService`, `DestinationRule`…
    pub kind: Arc<str>,
    /// Namespace of the object.
    pub namespace: Arc<str>,
    /// Name of the object.
    pub name: Arc<str>,
}

impl ObjectRef {
    /// A reference from its three parts.
    #[must_use]
    pub fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self {
            kind: kind.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// What a workload calls itself towards the control plane: `<name>.<namespace>`, the node id of discovery.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct WorkloadId {
    /// Name of the workload, such as `reviews-v1`.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
}

/// Why text is not a workload id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a workload id: expected <name>.<namespace>")]
pub struct InvalidWorkloadId(String);

impl FromStr for WorkloadId {
    type Err = InvalidWorkloadId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.rsplit_once('.') {
            Some((name, namespace)) if !name.is_empty() && !namespace.is_empty() => Ok(Self {
                name: name.into(),
                namespace: namespace.into(),
            }),
            _ => Err(InvalidWorkloadId(text.to_owned())),
        }
    }
}

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_have_one_form() {
        for (text, expected) in [("Reviews.Default.", "reviews.default"), ("::1", "::1"), ("a_b", "a_b")] {
            assert_eq!(text.parse::<Hostname>().unwrap().as_str(), expected);
        }
        for text in ["", ".", "a..", ".a", "*.a", "a b", "a/b", "é"] {
            assert!(text.parse::<Hostname>().is_err(), "{text}");
        }
    }
}
