//! Names of destinations, `<host>:<port>`: as they are asked for, compared the way DNS compares them.

use std::fmt::{self, Write as _};
use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;

/// Longest host name (RFC 1035 §2.3.4, in text).
const MAX_HOST: usize = 253;

/// A destination's name: the host in lower case without trailing dot, IPv6 addresses in brackets, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name {
    text: Arc<str>,
    port: u16,
}

/// A host as requests bring it, not normalised yet.
#[derive(Clone, Copy)]
pub(crate) struct Query<'a> {
    host: &'a str,
    port: u16,
}

impl Name {
    /// The name of a host as requests bring it: any case, perhaps a trailing dot, IPv6 with or without brackets. `None`
    /// when no service can have this name.
    pub(crate) fn new(host: &str, port: u16) -> Option<Self> {
        let host = bare(host);
        let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.' | b':');
        if host.is_empty() || host.len() > MAX_HOST || !host.bytes().all(allowed) {
            return None;
        }
        let mut text = String::with_capacity(host.len() + 8);
        let written = if host.contains(':') {
            write!(text, "[{host}]:{port}")
        } else {
            write!(text, "{host}:{port}")
        };
        written.ok()?;
        text.make_ascii_lowercase();
        Some(Self {
            text: text.into(),
            port,
        })
    }

    /// Reads `<host>:<port>`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        Self::new(host, port.parse().ok()?)
    }

    /// As subscriptions write it.
    pub(crate) fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// The host, without brackets.
    pub(crate) fn host(&self) -> &str {
        bare(self.text.rsplit_once(':').map_or("", |(host, _)| host))
    }

    pub(crate) fn query(&self) -> Query<'_> {
        Query {
            host: self.host(),
            port: self.port,
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<'a> Query<'a> {
    pub(crate) fn new(host: &'a str, port: u16) -> Self {
        Self { host: bare(host), port }
    }

    pub(crate) fn hash(self, state: &RandomState) -> u64 {
        let mut hasher = state.build_hasher();
        let mut buffer = [0; 64];
        for chunk in self.host.as_bytes().chunks(buffer.len()) {
            let lower = &mut buffer[..chunk.len()];
            lower.copy_from_slice(chunk);
            lower.make_ascii_lowercase();
            hasher.write(lower);
        }
        hasher.write_u16(self.port);
        hasher.finish()
    }

    pub(crate) fn is(self, name: &Name) -> bool {
        self.port == name.port && self.host.eq_ignore_ascii_case(name.host())
    }
}

/// Without trailing dot or brackets.
fn bare(host: &str) -> &str {
    let host = host.strip_suffix('.').unwrap_or(host);
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

/// The text of an address, without allocation.
pub(crate) struct AddressText {
    bytes: [u8; Self::LONGEST],
    length: usize,
}

impl AddressText {
    /// `xxxx:xxxx:xxxx:xxxx:xxxx:xxxx:255.255.255.255`
    const LONGEST: usize = 45;

    pub(crate) fn new(address: IpAddr) -> Self {
        let mut text = Self {
            bytes: [0; Self::LONGEST],
            length: 0,
        };
        // Cannot fail: every address fits.
        let _ = write!(text, "{}", address.to_canonical());
        text
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }
}

impl fmt::Write for AddressText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length + text.len();
        let free = self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?;
        free.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised() {
        for (host, text, bare) in [
            ("reviews", "reviews:80", "reviews"),
            ("Reviews.Default.", "reviews.default:80", "reviews.default"),
            ("10.0.0.1", "10.0.0.1:80", "10.0.0.1"),
            ("::1", "[::1]:80", "::1"),
            ("[FE80::1]", "[fe80::1]:80", "fe80::1"),
        ] {
            let name = Name::new(host, 80).unwrap();
            assert_eq!((&**name.text(), name.host()), (text, bare));
            assert_eq!(Name::parse(name.text()), Some(name.clone()));
            assert!(Query::new(host, 80).is(&name));
            assert!(!Query::new(host, 81).is(&name));
        }
    }

    #[test]
    fn no_service_is_called() {
        for host in ["", ".", "a b", "a/b", "ä", &"x".repeat(254)] {
            assert_eq!(Name::new(host, 80), None, "{host}");
        }
        for text in ["", "a", "a:", ":80", "a:66000"] {
            assert_eq!(Name::parse(text), None, "{text}");
        }
    }

    #[test]
    fn hashes_follow_equality() {
        let state = RandomState::default();
        let long = "A".repeat(70);
        for (one, other) in [
            ("reviews", "REVIEWS."),
            ("[::1]", "::1"),
            (&*long, &*long.to_lowercase()),
        ] {
            assert_eq!(Query::new(one, 80).hash(&state), Query::new(other, 80).hash(&state));
        }
        assert_ne!(Query::new("a", 80).hash(&state), Query::new("a", 81).hash(&state));
    }

    #[test]
    fn addresses_as_text() {
        for address in [
            "127.0.0.1",
            "255.255.255.255",
            "::1",
            "2001:db8:1111:2222:3333:4444:5555:6666",
        ] {
            assert_eq!(AddressText::new(address.parse().unwrap()).as_str(), address);
        }
        assert_eq!(
            AddressText::new("::ffff:10.0.0.1".parse().unwrap()).as_str(),
            "10.0.0.1"
        );
    }
}
