//! What is tried again, and when: the semantics of Envoy's `x-envoy-retry-on`.
//!
//! The number of attempts, the retry budget and whether the request can be repeated at all are the caller's concern.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use mesh_api::model::{RetryCondition, RetryPolicy};

/// Longest back-off, in multiples of the base.
const MAX_BACKOFF_FACTOR: u32 = 10;

const GRPC_CANCELLED: i32 = 1;
const GRPC_DEADLINE_EXCEEDED: i32 = 4;
const GRPC_RESOURCE_EXHAUSTED: i32 = 8;
const GRPC_INTERNAL: i32 = 13;
const GRPC_UNAVAILABLE: i32 = 14;

/// How one try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryOutcome {
    /// No connection could be made.
    ConnectFailure,
    /// The connection or stream broke before a response.
    Reset {
        /// Whether any byte of the request had been sent.
        request_started: bool,
    },
    /// The peer refused the HTTP/2 stream and did not look at the request.
    RefusedStream,
    /// `perTryTimeout` passed.
    Timeout,
    /// A circuit breaker, here or at the peer (`x-envoy-overloaded`), let the request not through. Never tried again:
    /// that would add to the load that it sheds.
    Overflow,
    /// A response came.
    Response {
        /// Its status.
        status: StatusCode,
        /// `grpc-status` of a gRPC response without a body.
        grpc_status: Option<i32>,
        /// `x-envoy-ratelimited` is there.
        rate_limited: bool,
    },
}

impl TryOutcome {
    /// The outcome of a try that got a response with these headers.
    #[must_use]
    pub fn of_response(status: StatusCode, headers: &HeaderMap) -> Self {
        if headers.contains_key("x-envoy-overloaded") {
            return Self::Overflow;
        }
        Self::Response {
            status,
            grpc_status: headers
                .get("grpc-status")
                .and_then(|value| value.to_str().ok()?.parse().ok()),
            rate_limited: headers.contains_key("x-envoy-ratelimited"),
        }
    }
}

/// Whether the policy wants another try after this one.
#[must_use]
pub fn should_retry(policy: &RetryPolicy, outcome: &TryOutcome) -> bool {
    policy.retry_on.iter().any(|condition| covers(*condition, outcome))
}

fn covers(condition: RetryCondition, outcome: &TryOutcome) -> bool {
    // What has no response becomes a 503 or 504, so the conditions on these cover it.
    let no_response = matches!(
        condition,
        RetryCondition::ServerError | RetryCondition::GatewayError | RetryCondition::Reset
    );
    match *outcome {
        TryOutcome::Overflow => false,
        TryOutcome::ConnectFailure => {
            no_response
                || matches!(
                    condition,
                    RetryCondition::ConnectFailure | RetryCondition::ResetBeforeRequest
                )
        }
        TryOutcome::Reset { request_started } => {
            no_response || (condition == RetryCondition::ResetBeforeRequest && !request_started)
        }
        TryOutcome::RefusedStream => no_response || condition == RetryCondition::RefusedStream,
        TryOutcome::Timeout => no_response,
        TryOutcome::Response { rate_limited: true, .. } => condition == RetryCondition::EnvoyRateLimited,
        TryOutcome::Response {
            status, grpc_status, ..
        } => covers_response(condition, status, grpc_status),
    }
}

fn covers_response(condition: RetryCondition, status: StatusCode, grpc_status: Option<i32>) -> bool {
    let grpc = |code: i32| grpc_status == Some(code);
    match condition {
        RetryCondition::ServerError => status.is_server_error(),
        RetryCondition::GatewayError => matches!(status.as_u16(), 502..=504),
        RetryCondition::Retriable4xx => status == StatusCode::CONFLICT,
        RetryCondition::Status(listed) => status == listed,
        RetryCondition::GrpcCancelled => grpc(GRPC_CANCELLED),
        RetryCondition::GrpcDeadlineExceeded => grpc(GRPC_DEADLINE_EXCEEDED),
        RetryCondition::GrpcInternal => grpc(GRPC_INTERNAL),
        RetryCondition::GrpcResourceExhausted => grpc(GRPC_RESOURCE_EXHAUSTED),
        RetryCondition::GrpcUnavailable => grpc(GRPC_UNAVAILABLE),
        RetryCondition::Reset
        | RetryCondition::ResetBeforeRequest
        | RetryCondition::ConnectFailure
        | RetryCondition::RefusedStream
        | RetryCondition::EnvoyRateLimited => false,
    }
}

/// How long to wait before a retry: evenly between nothing and base × 2ⁿ, at most ten times the base. `retry_number`
/// counts from 0; `draw` is any number, evenly distributed over all of `u64`.
#[must_use]
pub fn backoff(policy: &RetryPolicy, retry_number: u32, draw: u64) -> Duration {
    let factor = 1_u32
        .checked_shl(retry_number)
        .map_or(MAX_BACKOFF_FACTOR, |factor| factor.min(MAX_BACKOFF_FACTOR));
    let ceiling = policy.backoff.saturating_mul(factor).as_nanos();
    // Below 2^96 × 2^64 only for back-offs of centuries: those saturate.
    let nanos = ceiling.saturating_mul(u128::from(draw)) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
