//! What can go wrong with a request, and the one place that turns it into an answer.
//!
//! A failure says whose fault it is, and maps to a status, Istio's response flags, Envoy's response code details and a
//! short body. A gRPC client gets the same as a `grpc-status` in a trailers-only response.

use std::borrow::Cow;

use http::{HeaderValue, Response, StatusCode, header};
use mesh_api::names::ObjectRef;

use crate::body::Body;
use crate::flags::ResponseFlags;

/// Body of every denial: who is denied learns no more than that.
const ACCESS_DENIED: &str = "RBAC: access denied";

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The client's: its request cannot be served as it is.
    Client,
    /// The upstream's: it is away, slow or broke off.
    Upstream,
    /// The mesh's own: its state does not permit an answer.
    Mesh,
    /// Nobody's: policy asks for it.
    Policy,
}

/// A request that gets an answer from the proxy instead of the upstream.
#[derive(Clone, Debug)]
pub enum Failure {
    /// No rule of the destination matches.
    NoRoute,
    /// The rule names a cluster that does not exist.
    ClusterNotFound,
    /// No endpoint takes traffic.
    NoHealthyEndpoint,
    /// A limit of the connection pool is reached.
    Overflow,
    /// The upstream cannot be connected; the text says why.
    ConnectFailure(Cow<'static, str>),
    /// The connection ended before a response.
    Reset(Cow<'static, str>),
    /// The upstream reset the stream.
    RemoteReset(Cow<'static, str>),
    /// The upstream's answer is not HTTP.
    UpstreamProtocol(Cow<'static, str>),
    /// The request's timeout passed.
    Timeout,
    /// The last try's timeout passed.
    PerTryTimeout,
    /// The control plane did not answer in time for a destination inside the mesh.
    DiscoveryUnavailable,
    /// This workload's own policy has not arrived.
    PolicyUnavailable,
    /// The destination is not in the mesh and the policy is `REGISTRY_ONLY`.
    BlackHole,
    /// Denied by authorization; details in Istio's form.
    Denied {
        /// `rbac_access_denied_matched_policy[…]`.
        details: String,
        /// What decided, and the rule in it.
        by: Option<(ObjectRef, usize)>,
        /// Why, where the rule itself does not say it.
        reason: Option<String>,
    },
    /// An injected abort.
    FaultAbort(StatusCode),
    /// An injected abort with a gRPC status.
    FaultAbortGrpc(i32),
    /// The request has no authority, or one that is not a host and port.
    BadAuthority,
    /// The path cannot be put into a normal form.
    BadPath,
    /// CONNECT to something that is not a host and port, or where it has no meaning.
    BadConnect,
    /// The client went away or broke the protocol while sending the request.
    ClientAborted,
}

impl Failure {
    /// Whose fault it is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::BadAuthority | Self::BadPath | Self::BadConnect | Self::ClientAborted => Fault::Client,
            Self::NoHealthyEndpoint
            | Self::ConnectFailure(_)
            | Self::Reset(_)
            | Self::RemoteReset(_)
            | Self::UpstreamProtocol(_)
            | Self::Timeout
            | Self::PerTryTimeout => Fault::Upstream,
            Self::DiscoveryUnavailable | Self::PolicyUnavailable | Self::ClusterNotFound => Fault::Mesh,
            Self::NoRoute
            | Self::Overflow
            | Self::BlackHole
            | Self::Denied { .. }
            | Self::FaultAbort(_)
            | Self::FaultAbortGrpc(_) => Fault::Policy,
        }
    }

    /// Whether the upstream surely got nothing of the request, and another one might take it.
    #[must_use]
    pub fn is_unsent(&self) -> bool {
        matches!(self, Self::ConnectFailure(_) | Self::PolicyUnavailable)
    }

    /// Status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Timeout | Self::PerTryTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::BlackHole | Self::UpstreamProtocol(_) => StatusCode::BAD_GATEWAY,
            Self::Denied { .. } => StatusCode::FORBIDDEN,
            Self::FaultAbort(status) => *status,
            Self::FaultAbortGrpc(_) => StatusCode::OK,
            Self::BadAuthority | Self::BadPath | Self::BadConnect | Self::ClientAborted => StatusCode::BAD_REQUEST,
            Self::ClusterNotFound
            | Self::NoHealthyEndpoint
            | Self::Overflow
            | Self::ConnectFailure(_)
            | Self::Reset(_)
            | Self::RemoteReset(_)
            | Self::DiscoveryUnavailable
            | Self::PolicyUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// `%RESPONSE_FLAGS%`.
    #[must_use]
    pub fn flags(&self) -> ResponseFlags {
        match self {
            Self::NoRoute => ResponseFlags::NR,
            Self::ClusterNotFound => ResponseFlags::NC,
            Self::NoHealthyEndpoint => ResponseFlags::UH,
            Self::Overflow => ResponseFlags::UO,
            Self::ConnectFailure(_) => ResponseFlags::UF,
            Self::Reset(_) => ResponseFlags::UC,
            Self::RemoteReset(_) => ResponseFlags::UR,
            Self::UpstreamProtocol(_) => ResponseFlags::UPE,
            Self::Timeout | Self::PerTryTimeout => ResponseFlags::UT,
            Self::FaultAbort(_) | Self::FaultAbortGrpc(_) => ResponseFlags::FI,
            Self::BadAuthority | Self::BadPath | Self::BadConnect => ResponseFlags::DPE,
            Self::ClientAborted => ResponseFlags::DC,
            Self::DiscoveryUnavailable | Self::PolicyUnavailable => ResponseFlags::NC,
            Self::BlackHole | Self::Denied { .. } => ResponseFlags::NONE,
        }
    }

    /// `%RESPONSE_CODE_DETAILS%`, Envoy's texts where Envoy has one.
    #[must_use]
    pub fn details(&self) -> Cow<'static, str> {
        match self {
            Self::NoRoute => "route_not_found".into(),
            Self::ClusterNotFound => "cluster_not_found".into(),
            Self::NoHealthyEndpoint => "no_healthy_upstream".into(),
            Self::Overflow => "upstream_reset_before_response_started{overflow}".into(),
            Self::ConnectFailure(_) => "upstream_reset_before_response_started{remote_connection_failure}".into(),
            Self::Reset(_) => "upstream_reset_before_response_started{connection_termination}".into(),
            Self::RemoteReset(_) => "upstream_reset_before_response_started{remote_reset}".into(),
            Self::UpstreamProtocol(_) => "upstream_reset_before_response_started{protocol_error}".into(),
            Self::Timeout => "response_timeout".into(),
            Self::PerTryTimeout => "upstream_per_try_timeout".into(),
            Self::DiscoveryUnavailable => "mesh_discovery_unavailable".into(),
            Self::PolicyUnavailable => "mesh_policy_unavailable".into(),
            Self::BlackHole => "mesh_outbound_registry_only".into(),
            Self::Denied { details, .. } => details.clone().into(),
            Self::FaultAbort(_) | Self::FaultAbortGrpc(_) => "fault_filter_abort".into(),
            Self::BadAuthority => "missing_host_header".into(),
            Self::BadPath => "path_normalization_failed".into(),
            Self::BadConnect => "mesh_bad_connect".into(),
            Self::ClientAborted => "downstream_remote_disconnect".into(),
        }
    }

    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    #[must_use]
    pub fn transport_reason(&self) -> Option<&str> {
        match self {
            Self::ConnectFailure(reason) => Some(reason),
            _ => None,
        }
    }

    /// A sentence for people: body of the answer, and `reason` in the JSON access log.
    #[must_use]
    pub fn message(&self) -> Cow<'static, str> {
        match self {
            Self::NoRoute => "no route matches the request".into(),
            Self::ClusterNotFound => "the route's destination does not exist".into(),
            Self::NoHealthyEndpoint => "no healthy upstream".into(),
            Self::Overflow => {
                "upstream connect error or disconnect/reset before headers. reset reason: overflow".into()
            }
            Self::ConnectFailure(reason) => format!(
                "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure, \
                 transport failure reason: {reason}"
            )
            .into(),
            Self::Reset(_) => {
                "upstream connect error or disconnect/reset before headers. reset reason: connection termination".into()
            }
            Self::RemoteReset(_) => {
                "upstream connect error or disconnect/reset before headers. reset reason: remote reset".into()
            }
            Self::UpstreamProtocol(_) => {
                "upstream connect error or disconnect/reset before headers. reset reason: protocol error".into()
            }
            Self::Timeout => "upstream request timeout".into(),
            Self::PerTryTimeout => "upstream request timeout of the last try".into(),
            Self::DiscoveryUnavailable => {
                "the control plane has not said where this service is; it is asked again with the next request".into()
            }
            Self::PolicyUnavailable => "this workload has not received its policy yet".into(),
            Self::BlackHole => "the destination is not in the mesh, and outboundTrafficPolicy is REGISTRY_ONLY".into(),
            Self::Denied { .. } => ACCESS_DENIED.into(),
            Self::FaultAbort(_) | Self::FaultAbortGrpc(_) => "fault filter abort".into(),
            Self::BadAuthority => "the request names no valid host".into(),
            Self::BadPath => "the path cannot be normalized".into(),
            Self::BadConnect => "CONNECT needs host:port of a destination".into(),
            Self::ClientAborted => "the client broke off its request".into(),
        }
    }

    /// The reason for logs, which may say more than the answer.
    #[must_use]
    pub fn reason(&self) -> Cow<'static, str> {
        match self {
            Self::Denied {
                reason: Some(reason), ..
            } => reason.clone().into(),
            Self::Denied { by: None, details, .. } if details.ends_with("[none]") => {
                "ALLOW policies select this workload and none of their rules matches".into()
            }
            _ => self.message(),
        }
    }

    /// The policy object that denies, and the rule in it.
    #[must_use]
    pub fn decided_by(&self) -> Option<(&ObjectRef, usize)> {
        match self {
            Self::Denied {
                by: Some((policy, rule)),
                ..
            } => Some((policy, *rule)),
            _ => None,
        }
    }

    /// gRPC status of the answer, after Envoy's mapping of HTTP statuses.
    fn grpc_status(&self) -> i32 {
        if let Self::FaultAbortGrpc(code) = self {
            return *code;
        }
        match self.status().as_u16() {
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502 | 503 | 504 => 14,
            _ => 2,
        }
    }

    /// The answer.
    #[must_use]
    pub fn response(&self, client: ClientKind) -> Response<Body> {
        let message = self.message();
        let mut response = match client {
            ClientKind::Http if matches!(self, Self::FaultAbortGrpc(_)) => self.grpc_response(&message),
            ClientKind::Grpc => self.grpc_response(&message),
            ClientKind::Http => {
                let mut response = Response::new(Body::full(message.into_owned()));
                *response.status_mut() = self.status();
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
                response
            }
        };
        if matches!(self, Self::Overflow) {
            response
                .headers_mut()
                .insert("x-envoy-overloaded", HeaderValue::from_static("true"));
        }
        response
    }

    fn grpc_response(&self, message: &str) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(self.grpc_status()));
        if let Ok(message) = HeaderValue::from_str(message) {
            headers.insert("grpc-message", message);
        }
        response
    }
}

/// What kind of answer a client understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientKind {
    /// A status and a text.
    Http,
    /// `grpc-status`.
    Grpc,
}

impl ClientKind {
    /// By the request's content type.
    #[must_use]
    pub fn of(headers: &http::HeaderMap) -> Self {
        let grpc = headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        if grpc { Self::Grpc } else { Self::Http }
    }
}
