//! Why a request has no response: whose fault, whether any of it was sent, and the text for the access log.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::io;

use http::Request;

use super::limits::Overflow;
use super::outlier::Outcome;
use crate::body::Body;

/// A request that got no response head.
#[derive(Debug, thiserror::Error)]
#[error("{kind}: {detail}")]
pub struct SendError {
    /// What happened.
    pub kind: SendErrorKind,
    /// The reason in words (`UPSTREAM_TRANSPORT_FAILURE_REASON` for connection failures).
    pub detail: Cow<'static, str>,
    /// The request, where it can surely be sent again as it stands.
    pub request: Option<Box<Request<Body>>>,
}

/// The kinds of failure, each with its response flag of Envoy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendErrorKind {
    /// No connection (`UF`).
    #[error("connecting failed")]
    Connect(ConnectFailure),
    /// TLS could not be agreed on (`UF`).
    #[error("TLS failed")]
    Tls,
    /// The connection broke before a response (`UC`).
    #[error("the connection was closed")]
    ConnectionClosed {
        /// Whether any byte of the request may have reached the endpoint.
        request_started: bool,
    },
    /// The endpoint reset the HTTP/2 stream (`UR`).
    #[error("the stream was reset")]
    StreamReset,
    /// The endpoint refused the HTTP/2 stream before it looked at it (`UR`); always safe to send again.
    #[error("the stream was refused")]
    RefusedStream,
    /// A limit of the cluster (`UO`).
    #[error("{0}")]
    Overflow(Overflow),
    /// The answer is not HTTP, or beyond the bounds of it (`UPE`).
    #[error("the response is malformed")]
    Protocol,
    /// The request's own body failed: the client went away (`DC`).
    #[error("the request body failed")]
    RequestBody,
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectFailure {
    /// Nobody listens.
    Refused,
    /// Not within `connectTimeout`.
    Timeout,
    /// No route there.
    Unreachable,
    /// Anything else, among it a lack of resources of our own.
    Other,
}

impl SendError {
    pub(super) fn new(kind: SendErrorKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            request: None,
        }
    }

    pub(super) fn with_request(mut self, request: Request<Body>) -> Self {
        self.request = Some(Box::new(request));
        self
    }

    /// What outlier detection should hear of it; nothing when the endpoint had no part in it.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        match self.kind {
            SendErrorKind::Connect(ConnectFailure::Timeout) => Some(Outcome::Timeout),
            SendErrorKind::Connect(_) | SendErrorKind::Tls => Some(Outcome::ConnectFailure),
            SendErrorKind::ConnectionClosed { .. }
            | SendErrorKind::StreamReset
            | SendErrorKind::RefusedStream
            | SendErrorKind::Protocol => Some(Outcome::Reset),
            SendErrorKind::Overflow(_) | SendErrorKind::RequestBody => None,
        }
    }

    /// Whether the endpoint surely did nothing with the request.
    #[must_use]
    pub fn is_unsent(&self) -> bool {
        match self.kind {
            SendErrorKind::Connect(_)
            | SendErrorKind::Tls
            | SendErrorKind::RefusedStream
            | SendErrorKind::Overflow(_) => true,
            SendErrorKind::ConnectionClosed { request_started } => !request_started,
            SendErrorKind::StreamReset | SendErrorKind::Protocol | SendErrorKind::RequestBody => false,
        }
    }
}

impl From<Overflow> for SendError {
    fn from(overflow: Overflow) -> Self {
        Self::new(SendErrorKind::Overflow(overflow), overflow.detail())
    }
}

/// The kind and text of a failure to connect.
pub(super) fn connect_error(error: &io::Error) -> SendError {
    let reason = match error.kind() {
        io::ErrorKind::ConnectionRefused => ConnectFailure::Refused,
        io::ErrorKind::TimedOut => ConnectFailure::Timeout,
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkDown => {
            ConnectFailure::Unreachable
        }
        _ => ConnectFailure::Other,
    };
    SendError::new(
        SendErrorKind::Connect(reason),
        format!("delayed_connect_error: {error}"),
    )
}

/// The kind and text of hyper's error after a request was handed to it.
pub(super) fn exchange_error(error: &hyper::Error, request_started: bool) -> SendError {
    let mut source: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = source {
        if cause.is::<crate::body::BodyError>() {
            return SendError::new(SendErrorKind::RequestBody, chain(error));
        }
        if let Some(h2) = cause.downcast_ref::<h2::Error>() {
            return SendError::new(h2_kind(h2, request_started), chain(error));
        }
        source = cause.source();
    }
    let kind = if error.is_parse() {
        SendErrorKind::Protocol
    } else {
        SendErrorKind::ConnectionClosed { request_started }
    };
    SendError::new(kind, chain(error))
}

fn h2_kind(error: &h2::Error, request_started: bool) -> SendErrorKind {
    if error.is_io() {
        return SendErrorKind::ConnectionClosed { request_started };
    }
    // Streams that a GOAWAY fails are those beyond its last stream: not looked at, whatever its reason (RFC 9113 §6.8).
    let unseen = error.is_go_away() && error.is_remote();
    match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => SendErrorKind::RefusedStream,
        _ if unseen => SendErrorKind::RefusedStream,
        _ if error.is_remote() => SendErrorKind::StreamReset,
        _ => SendErrorKind::Protocol,
    }
}

fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
