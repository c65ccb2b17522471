//! Service-account tokens: the text of one comes in, whose it is goes out, as the API server says.
//!
//! A token counts when the API server vouches for it and for an audience that this mesh takes. Answers are kept for some
//! seconds under a hash of the token. When the API server cannot be asked, nobody is let in: callers hear UNAVAILABLE and
//! try again.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use mesh_api::identity::{SpiffeId, TrustDomain};
use tokio::sync::Semaphore;
use tonic::Status;

use super::call::call;
use crate::ca::{ReviewToken, Reviewing, ServiceAccount};

/// A service-account token has 1 to 2 KiB.
const MAX_TOKEN: usize = 16 * 1024;
/// Reviews at once; callers beyond wait their turn.
const MAX_REVIEWS: usize = 32;
/// How long a caller waits for its turn.
const TURN: Duration = Duration::from_secs(5);
/// Answers kept; when there are more, all are forgotten.
const MAX_KEPT: usize = 4096;
/// A token that was good is asked about again after this long: it ends when its pod is gone.
const KEEP_GOOD: Duration = Duration::from_secs(30);
/// A bad one may become good: a pod can be so new that not every API server knows it.
const KEEP_BAD: Duration = Duration::from_secs(2);
/// Where a token does not say when it ends.
const UNKNOWN_LIFETIME: Duration = Duration::from_secs(3600);

const USER_PREFIX: &str = "system:serviceaccount:";

/// Asks the API server whose tokens are.
pub struct TokenReviewer {
    api: Api<TokenReview>,
    audiences: Vec<String>,
    trust_domain: TrustDomain,
    turns: Semaphore,
    kept: Mutex<HashMap<[u8; 32], Kept>>,
}

struct Kept {
    outcome: Result<ServiceAccount, NotTaken>,
    until: Instant,
}

/// Why a token is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum NotTaken {
    #[error("the service-account token is longer than {MAX_TOKEN} bytes")]
    TooLong,
    #[error("the API server does not know the service-account token: {0}")]
    Unknown(String),
    #[error("the service-account token is not for this mesh: its audience must be one of {0}")]
    Audience(String),
    #[error("the token belongs to `{0}`, which is no service account")]
    NotServiceAccount(String),
    #[error("the service account of the token makes no identity: {0}")]
    Identity(String),
}

impl TokenReviewer {
    /// Takes tokens for any of `audiences`, and gives their accounts identities of `trust_domain`.
    #[must_use]
    pub fn new(client: Client, audiences: Vec<String>, trust_domain: TrustDomain) -> Self {
        Self {
            api: Api::all(client),
            audiences,
            trust_domain,
            turns: Semaphore::new(MAX_REVIEWS),
            kept: Mutex::default(),
        }
    }

    async fn reviewed(&self, token: &str) -> Result<ServiceAccount, Status> {
        if token.len() > MAX_TOKEN {
            return Err(refused(&NotTaken::TooLong));
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        if let Some(outcome) = self.recall(&hash) {
            count("kept");
            return outcome.map_err(|error| refused(&error));
        }
        let outcome = match self.ask(token).await {
            Ok(status) => self.judge(token, status),
            Err(reason) => {
                count("unavailable");
                tracing::error!("service-account tokens cannot be reviewed: {reason}");
                return Err(Status::unavailable(
                    "service-account tokens cannot be reviewed now: the API server does not do it",
                ));
            }
        };
        count(if outcome.is_ok() { "accepted" } else { "refused" });
        self.keep(hash, outcome.clone());
        outcome.map_err(|error| refused(&error))
    }

    async fn ask(&self, token: &str) -> Result<TokenReviewStatus, String> {
        let turn = tokio::time::timeout(TURN, self.turns.acquire()).await;
        let _turn = turn.map_err(|_| format!("{MAX_REVIEWS} reviews are under way"))?;
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(self.audiences.clone()),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let what = || "creating a TokenReview".to_owned();
        let answer = call(what, self.api.create(&PostParams::default(), &review)).await;
        let answer = answer.map_err(|error| error.to_string())?;
        answer.status.ok_or_else(|| "its answer has no status".to_owned())
    }

    fn judge(&self, token: &str, status: TokenReviewStatus) -> Result<ServiceAccount, NotTaken> {
        if status.authenticated != Some(true) {
            let reason = status.error.filter(|error| !error.is_empty());
            return Err(NotTaken::Unknown(
                reason.unwrap_or_else(|| "no reason given".to_owned()),
            ));
        }
        // An API server that does not look at audiences names none: such a token could be anybody's.
        let audiences = status.audiences.unwrap_or_default();
        if !audiences.iter().any(|audience| self.audiences.contains(audience)) {
            return Err(NotTaken::Audience(self.audiences.join(", ")));
        }
        let user = status.user.and_then(|user| user.username).unwrap_or_default();
        let account = user
            .strip_prefix(USER_PREFIX)
            .and_then(|account| account.split_once(':'));
        let (namespace, account) = account.ok_or_else(|| NotTaken::NotServiceAccount(user.clone()))?;
        let identity = SpiffeId::new(&self.trust_domain, namespace, account);
        Ok(ServiceAccount {
            identity: identity.map_err(|error| NotTaken::Identity(error.to_string()))?,
            expires: expiry(token).unwrap_or_else(|| SystemTime::now() + UNKNOWN_LIFETIME),
        })
    }

    fn recall(&self, hash: &[u8; 32]) -> Option<Result<ServiceAccount, NotTaken>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kept.get(hash).filter(|kept| kept.until > Instant::now())?;
        Some(kept.outcome.clone())
    }

    fn keep(&self, hash: [u8; 32], outcome: Result<ServiceAccount, NotTaken>) {
        let lifetime = match &outcome {
            Ok(account) => {
                let left = account.expires.duration_since(SystemTime::now());
                left.unwrap_or_default().min(KEEP_GOOD)
            }
            Err(_) => KEEP_BAD,
        };
        let now = Instant::now();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, kept| kept.until > now);
            if kept.len() >= MAX_KEPT {
                kept.clear();
            }
        }
        let until = now + lifetime;
        kept.insert(hash, Kept { outcome, until });
    }
}

impl ReviewToken for TokenReviewer {
    fn review<'a>(&'a self, token: &'a str) -> Reviewing<'a> {
        Box::pin(self.reviewed(token))
    }
}

fn refused(error: &NotTaken) -> Status {
    Status::unauthenticated(error.to_string())
}

fn count(result: &'static str) {
    metrics::counter!("mesh_token_reviews_total", "result" => result).increment(1);
}

/// `exp` of a JSON Web Token (RFC 7519 section 4.1.4). Nothing is verified: the API server has done that.
fn expiry(token: &str) -> Option<SystemTime> {
    #[derive(serde::Deserialize)]
    struct Claims {
        exp: u64,
    }
    let payload = token.split('.').nth(1)?;
    let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: Claims = serde_json::from_slice(&payload).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp))
}

#[cfg(test)]
mod tests;
