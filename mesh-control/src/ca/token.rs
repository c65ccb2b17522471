//! Bootstrap tokens on disk: one file per token under `tokens/` in the authority's directory, named by the SHA-256 of
//! the secret. A token made by another process counts at once, and a removed file ends its token.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use mesh_api::bootstrap::{BootstrapToken, Fingerprint, InvalidBootstrapToken};
use mesh_api::identity::{SpiffeId, TrustDomain};
use serde::{Deserialize, Serialize};

use super::authority::Authority;
use super::material::{MaterialError, create_if_absent};

/// More tokens than this at once are a mistake, not a fleet.
const MAX_TOKENS: usize = 10_000;
const MAX_LIFETIME: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// An expired token is remembered so long, to be told from an unknown one.
const MEMORY: Duration = Duration::from_secs(24 * 60 * 60);

/// The tokens of one authority.
#[derive(Debug, Clone)]
pub struct TokenStore {
    directory: PathBuf,
}

/// Why a token was not made, or not taken.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The identity is not of this mesh.
    #[error("{identity} is not in the trust domain `{trust_domain}`")]
    OtherTrustDomain {
        /// The identity asked for.
        identity: SpiffeId,
        /// The authority's trust domain.
        trust_domain: TrustDomain,
    },
    /// Zero, or longer than a year.
    #[error("a bootstrap token lives between one second and 366 days, not {0:?}")]
    Lifetime(Duration),
    /// Too many of them.
    #[error("{MAX_TOKENS} bootstrap tokens exist in {0}: remove files of those that are not needed")]
    TooMany(PathBuf),
    /// The token was never made here, or its file was removed.
    #[error("unknown bootstrap token: make one with `mesh-control token create`")]
    Unknown,
    /// Its time is over.
    #[error("the bootstrap token for {identity} expired at {at}: make a new one with `mesh-control token create`")]
    Expired {
        /// The identity that it named.
        identity: SpiffeId,
        /// When it ended.
        at: Timestamp,
    },
    /// The text is not a token.
    #[error(transparent)]
    Malformed(#[from] InvalidBootstrapToken),
    /// The token's file says something else than this mesh wrote.
    #[error("bootstrap token file {path}: {reason}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The system had no random bytes.
    #[error("no random bytes for a bootstrap token")]
    Random,
    /// A file could not be read or written.
    #[error("bootstrap token file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] MaterialError),
}

#[derive(Serialize, Deserialize)]
struct Record {
    identity: String,
    expires: String,
}

/// A token in force.
#[derive(Debug, Clone)]
pub(super) struct Grant {
    pub identity: SpiffeId,
    pub expires: SystemTime,
}

/// What `mesh-control token create` does: makes a token for `identity` in the authority's directory. The control plane
/// need not run, and needs no restart.
///
/// # Errors
/// See [`TokenError`].
pub fn create_token(
    directory: &Path,
    authority: &Authority,
    identity: &SpiffeId,
    lifetime: Duration,
) -> Result<BootstrapToken, TokenError> {
    TokenStore::new(directory).create(authority, identity, lifetime)
}

impl TokenStore {
    /// The tokens kept in the authority's directory.
    #[must_use]
    pub fn new(authority_directory: &Path) -> Self {
        Self {
            directory: authority_directory.join("tokens"),
        }
    }

    /// Makes a token that gives `identity` for `lifetime`; removes those that ended more than a day ago.
    ///
    /// # Errors
    /// When the identity is of another trust domain, the lifetime out of bounds, or the directory not writable.
    pub fn create(
        &self,
        authority: &Authority,
        identity: &SpiffeId,
        lifetime: Duration,
    ) -> Result<BootstrapToken, TokenError> {
        if identity.trust_domain() != authority.trust_domain().as_str() {
            let trust_domain = authority.trust_domain().clone();
            return Err(TokenError::OtherTrustDomain {
                identity: identity.clone(),
                trust_domain,
            });
        }
        if lifetime < Duration::from_secs(1) || lifetime > MAX_LIFETIME {
            return Err(TokenError::Lifetime(lifetime));
        }
        self.create_unchecked(authority.fingerprint(), identity, SystemTime::now() + lifetime)
    }

    pub(super) fn create_unchecked(
        &self,
        root: Fingerprint,
        identity: &SpiffeId,
        expires: SystemTime,
    ) -> Result<BootstrapToken, TokenError> {
        fs::create_dir_all(&self.directory).map_err(|e| io_error(&self.directory, e))?;
        if self.prune()? >= MAX_TOKENS {
            return Err(TokenError::TooMany(self.directory.clone()));
        }
        let mut bytes = [0; 32];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| TokenError::Random)?;
        let secret = URL_SAFE_NO_PAD.encode(bytes);
        let path = self.path(&secret);
        let expires = timestamp(expires, &path)?;
        let record = Record {
            identity: identity.to_string(),
            expires: expires.to_string(),
        };
        let text = serde_json::to_string(&record).map_err(|e| corrupt(&path, e))?;
        create_if_absent(&path, text.as_bytes())?;
        Ok(BootstrapToken::new(&secret, root)?)
    }

    /// What a token's text grants now. The lookup is by a hash of the secret, so its timing says nothing about it.
    pub(super) fn verify(&self, text: &str) -> Result<Grant, TokenError> {
        let token: BootstrapToken = text.parse()?;
        let path = self.path(token.secret());
        let content = match fs::read_to_string(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(TokenError::Unknown),
            Err(error) => return Err(io_error(&path, error)),
        };
        let (identity, expires) = parse(&content, &path)?;
        if expires <= Timestamp::now() {
            return Err(TokenError::Expired { identity, at: expires });
        }
        Ok(Grant {
            identity,
            expires: expires.into(),
        })
    }

    fn path(&self, secret: &str) -> PathBuf {
        let hash = digest(&SHA256, secret.as_bytes());
        let name: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        self.directory.join(name + ".json")
    }

    /// Removes tokens that ended long ago; returns how many are left.
    fn prune(&self) -> Result<usize, TokenError> {
        let mut left = 0;
        for entry in fs::read_dir(&self.directory).map_err(|e| io_error(&self.directory, e))? {
            let path = entry.map_err(|e| io_error(&self.directory, e))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            left += 1;
            let Ok(content) = fs::read_to_string(&path) else {
                continue;
            };
            let over = |(_, expires): (_, Timestamp)| SystemTime::now() > SystemTime::from(expires) + MEMORY;
            if parse(&content, &path).is_ok_and(over) && fs::remove_file(&path).is_ok() {
                left -= 1;
            }
        }
        Ok(left)
    }
}

fn parse(content: &str, path: &Path) -> Result<(SpiffeId, Timestamp), TokenError> {
    let record: Record = serde_json::from_str(content).map_err(|e| corrupt(path, e))?;
    let identity = record.identity.parse().map_err(|e| corrupt(path, e))?;
    let expires = record.expires.parse().map_err(|e| corrupt(path, e))?;
    Ok((identity, expires))
}

fn timestamp(time: SystemTime, path: &Path) -> Result<Timestamp, TokenError> {
    Timestamp::try_from(time).map_err(|e| corrupt(path, e))
}

fn corrupt(path: &Path, reason: impl ToString) -> TokenError {
    TokenError::Corrupt {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

fn io_error(path: &Path, source: io::Error) -> TokenError {
    TokenError::Io {
        path: path.to_owned(),
        source,
    }
}
