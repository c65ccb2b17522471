//! One request and its response: what is noted on the way, and recorded once at the end.
//!
//! An exchange is made when a request's head has come. Stages note on it what they decide. It then travels as the
//! observer of the response's body and, when that ends or is dropped, counts metrics, writes the access log line and
//! closes the span. If the client goes away before, dropping the exchange does the same.

use std::borrow::Cow;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version};
use mesh_api::identity::SpiffeId;
use mesh_api::names::ObjectRef;

use super::grpc::MessageCounter;
use super::headers::{NOT_SENT, UPSTREAM_SERVICE_TIME};
use crate::body::{Body, End, Observer};
use crate::failure::{ClientKind, Failure};
use crate::flags::ResponseFlags;
use crate::telemetry::{CapturedHeaders, Edge, Headers, LogRecord, RequestProtocol, SpanKind, Telemetry, TraceContext};
use crate::upstream::StreamLease;

/// Facts of the downstream connection that every request on it shares.
#[derive(Clone, Debug)]
pub(crate) struct Downstream {
    /// The client's address.
    pub peer: SocketAddr,
    /// The address that it connected to.
    pub local: SocketAddr,
    /// Identity that it proved, if any.
    pub identity: Option<SpiffeId>,
    /// Our identity towards it.
    pub local_identity: Option<SpiffeId>,
    /// Server name of its TLS.
    pub server_name: Option<Arc<str>>,
    /// `x-forwarded-client-cert` for requests on it.
    pub client_cert: Option<HeaderValue>,
}

impl Downstream {
    /// Of a connection that proves nothing.
    pub fn plaintext(peer: SocketAddr, local: SocketAddr) -> Self {
        Self {
            peer,
            local,
            identity: None,
            local_identity: None,
            server_name: None,
            client_cert: None,
        }
    }
}

/// What the stages decided.
#[derive(Default)]
pub(crate) struct Notes {
    /// Where it counts; `None` counts nowhere (administration of the proxy itself).
    pub edge: Option<Arc<Edge>>,
    pub flags: ResponseFlags,
    pub details: Option<Cow<'static, str>>,
    pub route: Option<Arc<str>>,
    pub cluster: Option<Arc<str>>,
    pub upstream: Option<SocketAddr>,
    pub upstream_local: Option<SocketAddr>,
    pub upstream_peer: Option<SpiffeId>,
    pub attempts: u32,
    pub transport_failure: Option<Cow<'static, str>>,
    pub policy: Option<ObjectRef>,
    pub rule: Option<Arc<str>>,
    pub reason: Option<Cow<'static, str>>,
    /// Path and query after a rewrite.
    pub rewritten_path: Option<Arc<str>>,
    /// From the start to the response head of the upstream.
    pub response_started: Option<Duration>,
    /// The upstream's part of it.
    pub service_time: Option<Duration>,
}

/// See the module.
pub(crate) struct Exchange {
    telemetry: Arc<Telemetry>,
    downstream: Rc<Downstream>,
    kind: SpanKind,
    started: Instant,
    start: jiff::Timestamp,
    client: ClientKind,
    method: Method,
    uri: Uri,
    /// As it is sent upstream.
    pub authority: Option<HeaderValue>,
    version: Version,
    captured: CapturedHeaders,
    captured_response: CapturedHeaders,
    request_passed: Option<Rc<RequestPassed>>,
    response_messages: MessageCounter,
    status: u16,
    grpc_status: Option<i32>,
    recorded: bool,
    trace: TraceContext,
    pub notes: Notes,
    /// Held by a connection that is upgraded.
    pub tunnel: Option<StreamLease>,
}

impl Exchange {
    /// Begins with a request's head, and gives the request the identifiers that follow it.
    pub fn begin<B>(
        telemetry: &Arc<Telemetry>,
        downstream: &Rc<Downstream>,
        kind: SpanKind,
        request: &mut Request<B>,
    ) -> Box<Self> {
        let trace = telemetry.tracer().begin(request.headers(), kind);
        trace.inject(request.headers_mut());
        Box::new(Self {
            telemetry: telemetry.clone(),
            downstream: downstream.clone(),
            kind,
            started: Instant::now(),
            start: jiff::Timestamp::now(),
            client: ClientKind::of(request.headers()),
            method: request.method().clone(),
            uri: request.uri().clone(),
            authority: None,
            version: request.version(),
            captured: telemetry.capture_request(&trace, request.headers()),
            captured_response: CapturedHeaders::default(),
            request_passed: None,
            response_messages: MessageCounter::default(),
            status: 0,
            grpc_status: None,
            recorded: false,
            trace,
            notes: Notes::default(),
            tunnel: None,
        })
    }

    /// What kind of answer the client understands.
    pub fn client(&self) -> ClientKind {
        self.client
    }

    /// Whether this side receives the request or makes it.
    pub fn kind(&self) -> SpanKind {
        self.kind
    }

    /// Whether the request came to this workload rather than from it.
    pub fn is_inbound(&self) -> bool {
        self.kind == SpanKind::Server
    }

    /// The client's address.
    pub fn peer_address(&self) -> std::net::IpAddr {
        self.downstream.peer.ip()
    }

    /// Counts the bytes of the request's body, and the messages of a gRPC call.
    pub fn count_request(&mut self, body: Body) -> Body {
        if body.is_empty() {
            return body;
        }
        let passed = Rc::new(RequestPassed::default());
        self.request_passed = Some(passed.clone());
        let messages = (self.client == ClientKind::Grpc).then(MessageCounter::default);
        body.observed(Box::new(RequestObserver { passed, messages }))
    }

    /// Notes the head of an upstream's response.
    pub fn response_head(&mut self, headers: &mut HeaderMap, tried_at: Instant) {
        let now = Instant::now();
        let service_time = now - tried_at;
        self.notes.response_started = Some(now - self.started);
        self.notes.service_time = Some(service_time);
        self.notes.details = Some(Cow::Borrowed("via_upstream"));
        let millis = u64::try_from(service_time.as_millis()).unwrap_or(u64::MAX);
        headers.insert(UPSTREAM_SERVICE_TIME, number(millis));
    }

    /// Notes a failure and makes its answer.
    pub fn fail(&mut self, failure: &Failure) -> Response<Body> {
        let notes = &mut self.notes;
        notes.flags |= failure.flags();
        notes.details = Some(failure.details());
        notes.reason = Some(failure.reason());
        if let Some(reason) = failure.transport_reason() {
            notes.transport_failure = Some(Cow::Owned(reason.to_owned()));
        }
        if let Some((origin, rule)) = failure.decided_by() {
            notes.policy = Some(origin.clone());
            notes.rule = Some(format!("rules[{rule}]").into());
        }
        let mut response = failure.response(self.client);
        if self.is_inbound() && self.downstream.identity.is_some() && failure.is_unsent() {
            let why = HeaderValue::from_static("connect-failure");
            response.headers_mut().insert(NOT_SENT, why);
        }
        response
    }

    /// Sends the response off: the exchange ends with its body.
    pub fn complete(mut self: Box<Self>, response: Response<Body>) -> Response<Body> {
        self.status = response.status().as_u16();
        self.grpc_status = grpc_status(response.headers());
        self.captured_response = self.telemetry.capture_response(response.headers());
        let (mut parts, body) = response.into_parts();
        // Each connection has a version of its own (RFC 9110 §2.5): the upstream's is not the client's concern.
        parts.version = if self.version == Version::HTTP_2 {
            Version::HTTP_2
        } else {
            Version::HTTP_11
        };
        if self.method == Method::HEAD || parts.status == http::StatusCode::SWITCHING_PROTOCOLS {
            // No body follows, whatever the headers say; hyper may never poll it.
            self.record(End::Complete, 0);
            return Response::from_parts(parts, body);
        }
        Response::from_parts(parts, body.observed(self))
    }

    fn record(&mut self, end: End, response_bytes: u64) {
        if std::mem::replace(&mut self.recorded, true) {
            return;
        }
        if end != End::Complete {
            self.notes.flags |= match end {
                End::TimedOut => ResponseFlags::UT,
                End::Failed => ResponseFlags::UC,
                End::Dropped | End::Complete => ResponseFlags::DC,
            };
            if self.status == 0 {
                self.notes.details = Some(Cow::Borrowed("downstream_remote_disconnect"));
            }
        }
        let duration = self.started.elapsed();
        let request_bytes = self.request_passed.as_ref().map_or(0, |passed| passed.bytes.get());
        let protocol = match self.client {
            ClientKind::Http => RequestProtocol::Http,
            ClientKind::Grpc => RequestProtocol::Grpc,
        };
        self.count_messages(0);
        if let Some(edge) = &self.notes.edge {
            let grpc = match self.client {
                ClientKind::Grpc => self.grpc_status,
                ClientKind::Http => None,
            };
            edge.request(
                protocol,
                self.status,
                grpc,
                self.notes.flags,
                duration,
                request_bytes,
                response_bytes,
            );
        }
        if self.telemetry.wants_record(&self.trace) {
            let record = self.log_record(duration, request_bytes, response_bytes);
            let operation = record.authority.unwrap_or("unknown");
            self.telemetry.finish(&self.trace, operation, &record);
        }
    }

    /// Counts messages of a gRPC call as they pass, so that a long call shows while it lasts.
    fn count_messages(&self, responses: u64) {
        let requests = self.request_passed.as_ref().map_or(0, |passed| passed.messages.take());
        if requests + responses > 0
            && let Some(edge) = &self.notes.edge
        {
            edge.grpc_messages(requests, responses);
        }
    }

    fn log_record(&self, duration: Duration, bytes_received: u64, bytes_sent: u64) -> LogRecord<'_> {
        let notes = &self.notes;
        let original = self.uri.path_and_query().map(|path| path.as_str());
        LogRecord {
            start: self.start,
            duration,
            response_duration: notes.response_started,
            upstream_service_time: notes.service_time,
            method: Some(&self.method),
            authority: self.authority.as_ref().and_then(|authority| authority.to_str().ok()),
            trace_id: self.trace.trace_id(),
            path: notes.rewritten_path.as_deref().or(original),
            original_path: notes.rewritten_path.as_ref().and(original),
            protocol: Some(self.version),
            request_headers: Headers::Captured(&self.captured),
            response_headers: Headers::Captured(&self.captured_response),
            response_code: (self.status != 0).then_some(self.status),
            grpc_status: self.grpc_status,
            flags: notes.flags,
            response_code_details: notes.details.as_deref(),
            upstream_transport_failure_reason: notes.transport_failure.as_deref(),
            bytes_received,
            bytes_sent,
            upstream_host: notes.upstream,
            upstream_cluster: notes.cluster.as_deref(),
            upstream_local_address: notes.upstream_local,
            upstream_attempts: notes.attempts,
            downstream_local_address: Some(self.downstream.local),
            downstream_remote_address: Some(self.downstream.peer),
            requested_server_name: self.downstream.server_name.as_deref(),
            route_name: notes.route.as_deref(),
            downstream_peer: self.downstream.identity.as_ref(),
            downstream_local: self.downstream.local_identity.as_ref(),
            upstream_peer: notes.upstream_peer.as_ref(),
            policy: notes.policy.as_ref(),
            rule: notes.rule.as_deref(),
            reason: notes.reason.as_deref(),
            ..LogRecord::default()
        }
    }
}

impl Observer for Exchange {
    fn data(&mut self, piece: &Bytes) {
        if self.client == ClientKind::Grpc {
            let messages = self.response_messages.feed(piece);
            self.count_messages(messages);
        }
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(status) = grpc_status(trailers) {
            self.grpc_status = Some(status);
        }
    }

    fn end(mut self: Box<Self>, end: End, bytes: u64) {
        self.record(end, bytes);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.record(End::Dropped, 0);
    }
}

/// What of a request's body has passed.
#[derive(Default)]
struct RequestPassed {
    bytes: Cell<u64>,
    /// Messages of a gRPC call that are not counted on the edge yet.
    messages: Cell<u64>,
}

struct RequestObserver {
    passed: Rc<RequestPassed>,
    messages: Option<MessageCounter>,
}

impl Observer for RequestObserver {
    fn data(&mut self, piece: &Bytes) {
        let passed = &self.passed;
        passed.bytes.set(passed.bytes.get() + piece.len() as u64);
        if let Some(messages) = &mut self.messages {
            passed.messages.set(passed.messages.get() + messages.feed(piece));
        }
    }

    fn end(self: Box<Self>, _: End, _: u64) {}
}

fn grpc_status(headers: &HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// A number as a header value; the usual ones need no memory.
fn number(value: u64) -> http::HeaderValue {
    const SMALL: [&str; 16] = [
        "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15",
    ];
    match usize::try_from(value).ok().and_then(|index| SMALL.get(index)) {
        Some(text) => http::HeaderValue::from_static(text),
        None => http::HeaderValue::from(value),
    }
}
