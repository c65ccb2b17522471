//! One call to the API server: bounded in time, its failure told so that somebody can act on it.

use std::future::Future;
use std::time::Duration;

use kube::core::Status;

/// No single answer takes longer.
const LIMIT: Duration = Duration::from_secs(10);

/// Why a call to the API server failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The API server says no.
    #[error("{what}: the API server refused: {}{}", .status.message, hint(.status))]
    Refused {
        /// What was tried.
        what: String,
        /// Its answer.
        status: Box<Status>,
    },
    /// The API server did not answer, or with something else.
    #[error("{what}: {source}")]
    Failed {
        /// What was tried.
        what: String,
        /// What happened.
        source: Box<kube::Error>,
    },
    /// The API server took too long.
    #[error("{what}: the API server did not answer within {LIMIT:?}")]
    TimedOut {
        /// What was tried.
        what: String,
    },
}

impl CallError {
    fn status(&self) -> Option<&Status> {
        match self {
            Self::Refused { status, .. } => Some(status),
            _ => None,
        }
    }

    /// The object is there already.
    pub(super) fn already_exists(&self) -> bool {
        self.status().is_some_and(Status::is_already_exists)
    }

    /// Somebody else changed the object in between.
    pub(super) fn is_conflict(&self) -> bool {
        self.status().is_some_and(Status::is_conflict)
    }

    /// There is no such object, or no such kind.
    pub(super) fn is_not_found(&self) -> bool {
        self.status().is_some_and(Status::is_not_found)
    }
}

/// Makes a call; `what` says what for, in messages.
pub(super) async fn call<T>(
    what: impl FnOnce() -> String,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(LIMIT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(CallError::Refused { what: what(), status }),
        Ok(Err(source)) => Err(CallError::Failed {
            what: what(),
            source: Box::new(source),
        }),
        Err(_) => Err(CallError::TimedOut { what: what() }),
    }
}

fn hint(status: &Status) -> &'static str {
    if status.is_forbidden() {
        " (the control plane's ClusterRole and Role must allow it: install the chart's RBAC)"
    } else {
        ""
    }
}
