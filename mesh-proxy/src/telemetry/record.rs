//! What is known of a request or connection when it has ended: the one set of facts that the access log and spans print.
//!
//! All fields are borrowed and optional, so that the hot path fills in what it has: `LogRecord { method:
//! Some(&method), ..LogRecord::default() }`. Headers that are gone by the end of a request are kept by
//! [`CapturedHeaders`], and only those that a format names.

use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use mesh_api::identity::SpiffeId;
use mesh_api::names::ObjectRef;
use smallvec::SmallVec;

use super::trace::TraceId;
use crate::flags::ResponseFlags;

/// Facts of one finished request, or of one finished TCP connection (then without method and protocol).
#[derive(Clone, Copy, Debug, Default)]
pub struct LogRecord<'a> {
    /// When the first byte came.
    pub start: jiff::Timestamp,
    /// From the first byte of the request to the last byte of the response.
    pub duration: Duration,
    /// From the start to the last byte of the request.
    pub request_duration: Option<Duration>,
    /// From the start to the first byte of the upstream's response.
    pub response_duration: Option<Duration>,
    /// How long the upstream took, as `x-envoy-upstream-service-time` says.
    pub upstream_service_time: Option<Duration>,
    /// Method.
    pub method: Option<&'a Method>,
    /// `http` or `https`.
    pub scheme: Option<&'a str>,
    /// Authority as it was sent upstream.
    pub authority: Option<&'a str>,
    /// Path and query as they were sent upstream.
    pub path: Option<&'a str>,
    /// Path and query as they came, where a rewrite changed them.
    pub original_path: Option<&'a str>,
    /// HTTP version of the downstream connection.
    pub protocol: Option<Version>,
    /// Headers of the request, or those of them that were kept.
    pub request_headers: Headers<'a>,
    /// Headers of the response, or those of them that were kept.
    pub response_headers: Headers<'a>,
    /// Trailers of the response.
    pub response_trailers: Headers<'a>,
    /// Status code; `None` when none was sent.
    pub response_code: Option<u16>,
    /// gRPC status, of gRPC calls.
    pub grpc_status: Option<i32>,
    /// Why the request went as it did.
    pub flags: ResponseFlags,
    /// Detail of the response code, such as `via_upstream`.
    pub response_code_details: Option<&'a str>,
    /// Why the connection was closed.
    pub connection_termination_details: Option<&'a str>,
    /// Why the connection to the upstream failed.
    pub upstream_transport_failure_reason: Option<&'a str>,
    /// Bytes of the request's body, or from the client of a TCP connection.
    pub bytes_received: u64,
    /// Bytes of the response's body, or to the client of a TCP connection.
    pub bytes_sent: u64,
    /// Address of the endpoint.
    pub upstream_host: Option<SocketAddr>,
    /// `outbound|9080|v1|reviews.default.svc.cluster.local`.
    pub upstream_cluster: Option<&'a str>,
    /// Our address towards the endpoint.
    pub upstream_local_address: Option<SocketAddr>,
    /// Tries, the first included.
    pub upstream_attempts: u32,
    /// Address that the client connected to.
    pub downstream_local_address: Option<SocketAddr>,
    /// The client's address, as headers of trusted proxies say if there are any.
    pub downstream_remote_address: Option<SocketAddr>,
    /// The connection's own peer, if it differs from `downstream_remote_address`.
    pub downstream_direct_remote_address: Option<SocketAddr>,
    /// Server name of the client's TLS.
    pub requested_server_name: Option<&'a str>,
    /// `TLSv1.3`.
    pub downstream_tls_version: Option<&'a str>,
    /// Name of the route.
    pub route_name: Option<&'a str>,
    /// Identity in the client's certificate.
    pub downstream_peer: Option<&'a SpiffeId>,
    /// Our identity towards the client.
    pub downstream_local: Option<&'a SpiffeId>,
    /// Identity in the endpoint's certificate.
    pub upstream_peer: Option<&'a SpiffeId>,
    /// Our identity towards the endpoint.
    pub upstream_local: Option<&'a SpiffeId>,
    /// Trace that the request belongs to.
    pub trace_id: Option<TraceId>,
    /// Policy object that decided.
    pub policy: Option<&'a ObjectRef>,
    /// Rule in it.
    pub rule: Option<&'a str>,
    /// Why, in words.
    pub reason: Option<&'a str>,
}

/// Headers to look up values in.
#[derive(Clone, Copy, Debug, Default)]
pub enum Headers<'a> {
    /// There are none.
    #[default]
    None,
    /// All of them.
    All(&'a HeaderMap),
    /// Those that were kept.
    Captured(&'a CapturedHeaders),
}

impl<'a> Headers<'a> {
    /// First value of a header.
    #[must_use]
    pub fn get(&self, name: &HeaderName) -> Option<&'a HeaderValue> {
        match self {
            Self::None => None,
            Self::All(map) => map.get(name),
            Self::Captured(captured) => captured.get(name),
        }
    }
}

/// Values of a few headers, kept until the request ends. Values are shared, not copied.
#[derive(Clone, Debug, Default)]
pub struct CapturedHeaders(SmallVec<[(HeaderName, HeaderValue); 4]>);

impl CapturedHeaders {
    /// Keeps the first values of the named headers.
    pub(super) fn capture<'n>(names: impl IntoIterator<Item = &'n HeaderName>, headers: &HeaderMap) -> Self {
        let pair = |name: &'n HeaderName| Some((name.clone(), headers.get(name)?.clone()));
        Self(names.into_iter().filter_map(pair).collect())
    }

    /// The value of a header that was kept.
    #[must_use]
    pub fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.0
            .iter()
            .find_map(|(candidate, value)| (candidate == name).then_some(value))
    }
}
