//! Timeouts and retries of a route: the VirtualService's own setting, else the DestinationRule's, else Istio's default.

use std::time::Duration;

use http::StatusCode;
use mesh_api::crd::virtual_service::HttpRetry;
use mesh_api::model::{RetryCondition, RetryPolicy};

use super::policy::Policy;

/// Bound of the whole request; zero is none.
#[must_use]
pub fn timeout(own: Option<mesh_api::duration::Duration>, policy: &Policy) -> Option<Duration> {
    own.or_else(|| policy.timeout.as_ref().and_then(|(block, _)| block.http))
        .filter(|timeout| !timeout.is_zero())
        .map(Into::into)
}

/// When and how often to try again; `None` never.
#[must_use]
pub fn policy(own: Option<&HttpRetry>, policy: &Policy) -> Option<RetryPolicy> {
    let default = RetryPolicy::istio_default();
    let positive = |time: Option<mesh_api::duration::Duration>| time.filter(|time| !time.is_zero()).map(Into::into);
    if let Some(own) = own {
        return Some(RetryPolicy {
            attempts: attempts(own.attempts.unwrap_or(0))?,
            per_try_timeout: positive(own.per_try_timeout),
            retry_on: conditions(own.retry_on.as_deref()).unwrap_or(default.retry_on),
            backoff: positive(own.backoff).unwrap_or(default.backoff),
            ignore_previous_hosts: own.retry_ignore_previous_hosts.unwrap_or(true),
        });
    }
    let Some((block, _)) = &policy.retry else {
        return Some(default);
    };
    Some(RetryPolicy {
        attempts: match block.attempts {
            Some(count) => attempts(count)?,
            None => default.attempts,
        },
        per_try_timeout: positive(block.per_try_timeout),
        retry_on: conditions(block.retry_on.as_deref()).unwrap_or(default.retry_on),
        backoff: default.backoff,
        ignore_previous_hosts: true,
    })
}

/// Zero, and in Istio anything below, disables retries.
fn attempts(count: i32) -> Option<u32> {
    u32::try_from(count).ok().filter(|count| *count > 0)
}

/// The conditions of `retryOn`; `None` when nothing is written. Tokens without meaning here are passed over, as validation
/// says.
fn conditions(text: Option<&str>) -> Option<Vec<RetryCondition>> {
    let text = text.filter(|text| !text.trim().is_empty())?;
    let mut conditions = Vec::new();
    for token in text.split(',').map(str::trim) {
        if let Some(condition) = condition(token)
            && !conditions.contains(&condition)
        {
            conditions.push(condition);
        }
    }
    Some(conditions)
}

fn condition(token: &str) -> Option<RetryCondition> {
    Some(match token {
        "5xx" => RetryCondition::ServerError,
        "gateway-error" => RetryCondition::GatewayError,
        "reset" => RetryCondition::Reset,
        "reset-before-request" => RetryCondition::ResetBeforeRequest,
        "connect-failure" => RetryCondition::ConnectFailure,
        "retriable-4xx" => RetryCondition::Retriable4xx,
        "refused-stream" => RetryCondition::RefusedStream,
        "cancelled" => RetryCondition::GrpcCancelled,
        "deadline-exceeded" => RetryCondition::GrpcDeadlineExceeded,
        "internal" => RetryCondition::GrpcInternal,
        "resource-exhausted" => RetryCondition::GrpcResourceExhausted,
        "unavailable" => RetryCondition::GrpcUnavailable,
        "envoy-ratelimited" => RetryCondition::EnvoyRateLimited,
        number => RetryCondition::Status(StatusCode::from_u16(number.parse().ok()?).ok()?),
    })
}
