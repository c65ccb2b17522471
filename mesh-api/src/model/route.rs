//! HTTP routes: VirtualService's `http`, compiled.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use smallvec::SmallVec;

use super::{PathRewrite, TextMatch};
use crate::names::ObjectRef;

/// One rule: the first in a destination's list that matches decides.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRoute {
    /// `%ROUTE_NAME%`: the rule's own name, or `default`.
    pub name: Arc<str>,
    /// Where the rule was written, with its index: `VirtualService default/reviews`, `http[0]`. `None` for a service's
    /// default route.
    pub origin: Option<(ObjectRef, Arc<str>)>,
    /// Any of these; an empty list matches everything.
    pub matches: Vec<HttpMatch>,
    /// What happens to a request.
    pub action: RouteAction,
    /// Operations on the request, and on the response of whatever action.
    pub headers: HeaderOps,
    /// Injected faults.
    pub fault: Option<Fault>,
}

/// One entry of `match`: all of it must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpMatch {
    /// Path without query.
    pub path: Option<TextMatch>,
    /// `http` or `https`.
    pub scheme: Option<TextMatch>,
    /// Request method.
    pub method: Option<TextMatch>,
    /// `Host`, as sent.
    pub authority: Option<TextMatch>,
    /// Headers that must match; one that is absent does not.
    pub headers: Vec<HeaderMatch>,
    /// Headers that must not match (`withoutHeaders`); one that is absent counts as empty.
    pub without_headers: Vec<HeaderMatch>,
    /// Query parameters that must match, case-sensitive.
    pub query: Vec<(Arc<str>, TextMatch)>,
}

/// A header and what its value must be.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatch {
    /// Header name.
    pub name: HeaderName,
    /// Condition on the value.
    pub value: TextMatch,
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq)]
pub enum RouteAction {
    /// Sends the request to a cluster.
    Forward(Box<Forward>),
    /// Answers with a redirect.
    Redirect(Box<Redirect>),
    /// Answers by itself.
    DirectResponse {
        /// Status of the answer.
        status: StatusCode,
        /// Its body.
        body: bytes::Bytes,
    },
}

/// Forwarding, with everything that applies on the way.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// At least one; weights are positive when there are several.
    pub clusters: SmallVec<[WeightedCluster; 2]>,
    /// Whole request including retries; `None` is unlimited, Istio's default.
    pub timeout: Option<Duration>,
    /// When and how often to try again; `None` never.
    pub retry: Option<RetryPolicy>,
    /// Path and authority.
    pub rewrite: Rewrite,
    /// Copies.
    pub mirrors: Vec<Mirror>,
}

/// One leg of a split.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedCluster {
    /// Index into [`Destination::clusters`](super::Destination::clusters).
    pub cluster: usize,
    /// Share is weight over the sum of weights.
    pub weight: u32,
    /// Operations of this leg.
    pub headers: HeaderOps,
}

impl Forward {
    /// Sum of the weights of all legs.
    #[must_use]
    pub fn total_weight(&self) -> u64 {
        self.clusters.iter().map(|leg| u64::from(leg.weight)).sum()
    }
}

/// `rewrite`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rewrite {
    /// Replaces the matched prefix, or the whole path when the match was exact (`rewrite.uri`).
    pub uri: Option<Arc<str>>,
    /// Replaces by expression (`uriRegexRewrite`).
    pub regex: Option<PathRewrite>,
    /// New authority.
    pub authority: Option<HostRewrite>,
}

/// A new `Host`.
pub type HostRewrite = HeaderValue;

/// `redirect`.
#[derive(Clone, Debug, PartialEq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// Replaces the whole path.
    pub uri: Option<Arc<str>>,
    /// Replaces the matched prefix.
    pub prefix_rewrite: Option<Arc<str>>,
    /// New host.
    pub authority: Option<Arc<str>>,
    /// New scheme.
    pub scheme: Option<Arc<str>>,
    /// New port.
    pub port: Option<RedirectPort>,
}

/// `redirect.port` or `derivePort`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectPort {
    /// A number.
    Number(u16),
    /// Of the scheme.
    FromProtocolDefault,
    /// Of the request.
    FromRequestPort,
}

/// Header operations of one place; order of application is remove, set, add.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderOps {
    /// Replaced in the request.
    pub request_set: Vec<(HeaderName, HeaderValue)>,
    /// Appended to the request.
    pub request_add: Vec<(HeaderName, HeaderValue)>,
    /// Removed from the request.
    pub request_remove: Vec<HeaderName>,
    /// Replaced in the response.
    pub response_set: Vec<(HeaderName, HeaderValue)>,
    /// Appended to the response.
    pub response_add: Vec<(HeaderName, HeaderValue)>,
    /// Removed from the response.
    pub response_remove: Vec<HeaderName>,
    /// `host` or `:authority` under `set` or `add`.
    pub authority: Option<HostRewrite>,
}

/// `fault`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fault {
    /// Share of requests, and how long they wait.
    pub delay: Option<(Percentage, Duration)>,
    /// Share of requests, and how they fail. Decided after the delay.
    pub abort: Option<(Percentage, Abort)>,
}

/// How an aborted request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// An HTTP status.
    Http(StatusCode),
    /// A gRPC status code in a 200 response.
    Grpc(i32),
}

/// A share with a resolution of one in a million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percentage {
    per_million: u32,
}

impl Percentage {
    /// All.
    pub const ALL: Self = Self { per_million: 1_000_000 };

    /// From per cent; clamped to 0 to 100.
    #[must_use]
    pub fn from_percent(percent: f64) -> Self {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to 0..=1e6"
        )]
        Self {
            per_million: (percent.clamp(0.0, 100.0) * 10_000.0).round() as u32,
        }
    }

    /// From parts per million; clamped.
    #[must_use]
    pub fn from_per_million(per_million: u32) -> Self {
        Self {
            per_million: per_million.min(1_000_000),
        }
    }

    /// Parts per million.
    #[must_use]
    pub fn per_million(self) -> u32 {
        self.per_million
    }

    /// Whether a number drawn evenly from `0..1_000_000` falls into the share.
    #[must_use]
    pub fn includes(self, draw: u32) -> bool {
        draw < self.per_million
    }
}

/// `mirror` or an entry of `mirrors`.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// Index into [`Destination::clusters`](super::Destination::clusters).
    pub cluster: usize,
    /// Share of requests that are copied.
    pub share: Percentage,
}

/// `retries`, or T11's `retryPolicy`.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Tries after the first.
    pub attempts: u32,
    /// Bound of each try; `None` is the request's own timeout.
    pub per_try_timeout: Option<Duration>,
    /// What is tried again.
    pub retry_on: Vec<RetryCondition>,
    /// Base of the exponential back-off, 25 ms by default; the longest is ten times the base.
    pub backoff: Duration,
    /// Whether endpoints that were tried are avoided (default true).
    pub ignore_previous_hosts: bool,
}

/// A token of `retryOn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetryCondition {
    /// Any 5xx, or no response at all (timeout, reset, connect failure).
    ServerError,
    /// 502, 503 or 504, or no response at all.
    GatewayError,
    /// No response: disconnect, reset or read timeout.
    Reset,
    /// As `Reset`, when no request byte was sent.
    ResetBeforeRequest,
    /// The connection could not be made.
    ConnectFailure,
    /// 409.
    Retriable4xx,
    /// HTTP/2 REFUSED_STREAM. What a circuit breaker sheds (`UO`) is never tried again, as in Envoy.
    RefusedStream,
    /// A status listed by number.
    Status(StatusCode),
    /// gRPC status CANCELLED.
    GrpcCancelled,
    /// gRPC status DEADLINE_EXCEEDED.
    GrpcDeadlineExceeded,
    /// gRPC status INTERNAL.
    GrpcInternal,
    /// gRPC status RESOURCE_EXHAUSTED.
    GrpcResourceExhausted,
    /// gRPC status UNAVAILABLE.
    GrpcUnavailable,
    /// `x-envoy-ratelimited` in the response.
    EnvoyRateLimited,
}

impl RetryPolicy {
    /// Istio's default: two retries of what surely was not processed.
    #[must_use]
    pub fn istio_default() -> Self {
        Self {
            attempts: 2,
            per_try_timeout: None,
            retry_on: vec![
                RetryCondition::ConnectFailure,
                RetryCondition::RefusedStream,
                RetryCondition::GrpcUnavailable,
                RetryCondition::GrpcCancelled,
            ],
            backoff: Duration::from_millis(25),
            ignore_previous_hosts: true,
        }
    }
}
