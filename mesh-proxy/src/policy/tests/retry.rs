//! Retries and faults.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use mesh_api::model::{Abort, Fault, Percentage, RetryCondition, RetryPolicy};

use super::super::{FaultDecision, FaultDraws, TryOutcome, backoff, draw_fault, should_retry};

fn policy(retry_on: Vec<RetryCondition>) -> RetryPolicy {
    RetryPolicy {
        retry_on,
        ..RetryPolicy::istio_default()
    }
}

const CONNECT: TryOutcome = TryOutcome::ConnectFailure;
const BROKEN: TryOutcome = TryOutcome::Reset { request_started: true };
const UNSENT: TryOutcome = TryOutcome::Reset { request_started: false };
const REFUSED: TryOutcome = TryOutcome::RefusedStream;
const TIMEOUT: TryOutcome = TryOutcome::Timeout;
const OVERFLOW: TryOutcome = TryOutcome::Overflow;

fn status(code: u16) -> TryOutcome {
    TryOutcome::Response {
        status: StatusCode::from_u16(code).unwrap(),
        grpc_status: None,
        rate_limited: false,
    }
}

fn grpc(code: i32) -> TryOutcome {
    TryOutcome::Response {
        status: StatusCode::OK,
        grpc_status: Some(code),
        rate_limited: false,
    }
}

fn limited(code: u16) -> TryOutcome {
    TryOutcome::Response {
        status: StatusCode::from_u16(code).unwrap(),
        grpc_status: None,
        rate_limited: true,
    }
}

#[test]
fn conditions() {
    use RetryCondition as On;
    let silence = [CONNECT, BROKEN, UNSENT, REFUSED, TIMEOUT];
    let with = |more: &[TryOutcome]| [&silence[..], more].concat();
    let all = with(&[
        OVERFLOW,
        status(200),
        status(404),
        status(409),
        status(418),
        status(429),
        status(500),
        status(502),
        status(503),
        status(504),
        status(599),
        grpc(0),
        grpc(1),
        grpc(4),
        grpc(8),
        grpc(13),
        grpc(14),
        limited(503),
        limited(429),
    ]);
    let server_errors = [status(500), status(502), status(503), status(504), status(599)];
    let table = [
        (On::ServerError, with(&server_errors)),
        (On::GatewayError, with(&[status(502), status(503), status(504)])),
        (On::Reset, with(&[])),
        (On::ResetBeforeRequest, vec![CONNECT, UNSENT]),
        (On::ConnectFailure, vec![CONNECT]),
        (On::Retriable4xx, vec![status(409)]),
        (On::RefusedStream, vec![REFUSED]),
        (On::Status(StatusCode::IM_A_TEAPOT), vec![status(418)]),
        (On::Status(StatusCode::SERVICE_UNAVAILABLE), vec![status(503)]),
        (On::GrpcCancelled, vec![grpc(1)]),
        (On::GrpcDeadlineExceeded, vec![grpc(4)]),
        (On::GrpcResourceExhausted, vec![grpc(8)]),
        (On::GrpcInternal, vec![grpc(13)]),
        (On::GrpcUnavailable, vec![grpc(14)]),
        (On::EnvoyRateLimited, vec![limited(503), limited(429)]),
    ];
    for (condition, retried) in table {
        let policy = policy(vec![condition]);
        for outcome in &all {
            assert_eq!(
                should_retry(&policy, outcome),
                retried.contains(outcome),
                "{condition:?} on {outcome:?}"
            );
        }
    }
}

#[test]
fn the_default_repeats_only_what_was_surely_not_processed() {
    let default = RetryPolicy::istio_default();
    for outcome in [CONNECT, REFUSED, grpc(14), grpc(1)] {
        assert!(should_retry(&default, &outcome), "{outcome:?}");
    }
    for outcome in [BROKEN, TIMEOUT, OVERFLOW, status(503), status(500), grpc(13)] {
        assert!(!should_retry(&default, &outcome), "{outcome:?}");
    }
    assert!(!should_retry(&policy(Vec::new()), &CONNECT));
}

#[test]
fn outcomes_of_responses() {
    let of = |name: &'static str, value: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        TryOutcome::of_response(StatusCode::SERVICE_UNAVAILABLE, &headers)
    };
    assert_eq!(of("x-other", "1"), status(503));
    assert_eq!(of("x-envoy-overloaded", "true"), TryOutcome::Overflow);
    assert_eq!(of("x-envoy-ratelimited", "true"), limited(503));
    assert!(matches!(
        of("grpc-status", "14"),
        TryOutcome::Response {
            grpc_status: Some(14),
            ..
        }
    ));
    assert!(matches!(
        of("grpc-status", "x"),
        TryOutcome::Response { grpc_status: None, .. }
    ));
}

#[test]
fn back_off_doubles_to_ten_times_the_base_with_full_jitter() {
    let policy = RetryPolicy {
        backoff: Duration::from_millis(100),
        ..RetryPolicy::istio_default()
    };
    for (retry, longest) in [
        (0, 100),
        (1, 200),
        (2, 400),
        (3, 800),
        (4, 1000),
        (31, 1000),
        (32, 1000),
        (u32::MAX, 1000),
    ] {
        assert_eq!(backoff(&policy, retry, 0), Duration::ZERO, "retry {retry}");
        let half = backoff(&policy, retry, u64::MAX / 2 + 1);
        assert_eq!(half, Duration::from_millis(longest / 2), "retry {retry}");
        let most = backoff(&policy, retry, u64::MAX);
        assert!(most < Duration::from_millis(longest), "retry {retry}");
        assert!(most > Duration::from_millis(longest - 1), "retry {retry}");
    }
    let absurd = RetryPolicy {
        backoff: Duration::MAX,
        ..policy
    };
    assert!(backoff(&absurd, 9, u64::MAX) > Duration::from_secs(3600));
}

#[test]
fn faults() {
    let wait = Duration::from_secs(5);
    let abort = Abort::Http(StatusCode::IM_A_TEAPOT);
    let half = Percentage::from_percent(50.0);
    let both = Fault {
        delay: Some((half, wait)),
        abort: Some((Percentage::from_percent(0.0001), abort)),
    };
    let decide = |fault: &Fault, delay, abort| draw_fault(fault, FaultDraws { delay, abort });
    let decision = |delay: bool, aborted: bool| FaultDecision {
        delay: delay.then_some(wait),
        abort: aborted.then_some(abort),
    };
    assert_eq!(decide(&both, 499_999, 999_999), decision(true, false));
    assert_eq!(decide(&both, 500_000, 999_999), decision(false, false));
    assert_eq!(decide(&both, 500_000, 0), decision(false, true), "one in a million");
    assert_eq!(decide(&both, 0, 0), decision(true, true), "independent of each other");
    assert_eq!(decide(&Fault::default(), 0, 0), decision(false, false));
    let all = Fault {
        delay: Some((Percentage::ALL, wait)),
        abort: Some((Percentage::default(), abort)),
    };
    assert_eq!(
        decide(&all, 999_999, 0),
        decision(true, false),
        "all of them, and none of them"
    );
}
