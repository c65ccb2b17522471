//! Bootstrap tokens: how a proxy outside Kubernetes proves, once, which identity it may have.
//!
//! The text form is `mesh-bootstrap.v1.<secret>.<root>`: 32 random bytes in base64url without padding, and the SHA-256
//! of the authority's root certificate in hexadecimal. The proxy checks the root before it sends the secret. Only the
//! control plane makes tokens; it keeps a hash of the secret and never the secret.

use std::fmt;
use std::str::FromStr;

const PREFIX: &str = "mesh-bootstrap.v1.";
/// 32 bytes in base64url without padding.
const SECRET_LENGTH: usize = 43;

/// The SHA-256 of a certificate in DER form.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

/// Why text is not a fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a SHA-256 fingerprint: expected 64 hexadecimal digits")]
pub struct InvalidFingerprint(String);

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|value| u8::try_from(value).ok());
        let mut bytes = [0; 32];
        let text_bytes = text.as_bytes();
        if text_bytes.len() != 64 {
            return Err(InvalidFingerprint(text.to_owned()));
        }
        for (byte, pair) in bytes.iter_mut().zip(text_bytes.chunks_exact(2)) {
            match (digit(pair[0]), digit(pair[1])) {
                (Some(high), Some(low)) => *byte = high << 4 | low,
                _ => return Err(InvalidFingerprint(text.to_owned())),
            }
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A bootstrap token. `Display` writes the secret, `Debug` does not.
#[derive(Clone, PartialEq, Eq)]
pub struct BootstrapToken {
    secret: Box<str>,
    root: Fingerprint,
}

/// Why text is not a bootstrap token. The text is not repeated: it may be nearly a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a bootstrap token: expected mesh-bootstrap.v1.<secret>.<root fingerprint>, as `mesh-control token create` \
     prints it"
)]
pub struct InvalidBootstrapToken;

impl BootstrapToken {
    /// Puts a token together from its secret (32 bytes in base64url without padding) and the root's fingerprint.
    ///
    /// # Errors
    /// When the secret has another form.
    pub fn new(secret: &str, root: Fingerprint) -> Result<Self, InvalidBootstrapToken> {
        let allowed = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
        if secret.len() != SECRET_LENGTH || !secret.bytes().all(allowed) {
            return Err(InvalidBootstrapToken);
        }
        Ok(Self {
            secret: secret.into(),
            root,
        })
    }

    /// What proves the identity.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// The root certificate that the control plane's chain must end in.
    #[must_use]
    pub fn root(&self) -> Fingerprint {
        self.root
    }
}

impl FromStr for BootstrapToken {
    type Err = InvalidBootstrapToken;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.trim().strip_prefix(PREFIX).ok_or(InvalidBootstrapToken)?;
        let (secret, root) = rest.split_once('.').ok_or(InvalidBootstrapToken)?;
        Self::new(secret, root.parse().map_err(|_| InvalidBootstrapToken)?)
    }
}

impl fmt::Display for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}.{}", self.secret, self.root)
    }
}

impl fmt::Debug for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}<secret>.{}", self.root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_goes_both_ways_and_debug_hides_the_secret() {
        let secret = "A".repeat(SECRET_LENGTH);
        let token = BootstrapToken::new(&secret, Fingerprint([0xab; 32])).unwrap();
        let text = token.to_string();
        assert_eq!(text, format!("mesh-bootstrap.v1.{secret}.{}", "ab".repeat(32)));
        assert_eq!(text.parse::<BootstrapToken>().unwrap(), token);
        assert_eq!(format!("{text}\n").parse::<BootstrapToken>().unwrap(), token);
        assert!(!format!("{token:?}").contains(&secret));
    }

    #[test]
    fn refused_tokens() {
        let (secret, root) = ("A".repeat(SECRET_LENGTH), "0".repeat(64));
        for text in [
            String::new(),
            secret.clone(),
            format!("mesh-bootstrap.v2.{secret}.{root}"),
            format!("mesh-bootstrap.v1.{secret}"),
            format!("mesh-bootstrap.v1.{secret}.{}", &root[1..]),
            format!("mesh-bootstrap.v1.{secret}.{}g", &root[1..]),
            format!("mesh-bootstrap.v1.{secret}A.{root}"),
            format!("mesh-bootstrap.v1.{}/.{root}", &secret[1..]),
        ] {
            assert!(text.parse::<BootstrapToken>().is_err(), "{text}");
        }
    }
}
