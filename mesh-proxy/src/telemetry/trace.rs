//! Spans: one per hop and direction, made from the facts of a finished request and handed to OpenTelemetry's batch
//! processor, which sends them over OTLP from a thread of its own.
//!
//! [`Tracer::begin`] reads the caller's context and decides on sampling: the caller's decision stands, else a share of
//! requests is drawn. [`TraceContext::inject`] writes what the next hop has to know. A request that is not sampled costs
//! the reading of headers, and a header value where a trace begins; without a tracing provider not even that. Nothing here
//! blocks: when the collector is slow, spans are dropped and counted.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::{HeaderMap, HeaderName};
use mesh_api::model::Percentage;

pub use super::propagation::TraceId;
use super::propagation::{self, B3Style, Incoming, Origin, Outgoing, REQUEST_ID, TRACEPARENT, TRACESTATE};
use super::record::LogRecord;
use super::span::SpanSink;

/// Side of the hop that a span describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// The client's sidecar: outbound.
    Client,
    /// The server's sidecar: inbound.
    Server,
}

/// What a span says.
#[derive(Clone, Copy, Debug)]
pub struct SpanFacts<'a> {
    /// The span's name; Istio's is `reviews.default.svc.cluster.local:9080/*`.
    pub operation: &'a str,
    /// The facts, the same that the access log prints.
    pub record: &'a LogRecord<'a>,
}

/// Begins and finishes spans. What it does is replaced as a whole when the mesh's settings change.
pub struct Tracer {
    active: ArcSwapOption<Active>,
}

/// Tracing as it is configured.
pub(super) struct Active {
    pub sampling: Percentage,
    pub sink: SpanSink,
}

impl Tracer {
    pub(super) const fn off() -> Self {
        Self {
            active: ArcSwapOption::const_empty(),
        }
    }

    pub(super) fn replace(&self, active: Option<Arc<Active>>) {
        self.active.store(active);
    }

    /// Sends what is queued, waiting for it at most for `deadline`, and ends.
    pub(super) fn shutdown(&self, deadline: Duration) {
        if let Some(active) = self.active.load_full() {
            active.sink.shutdown(deadline);
        }
    }

    /// Reads the context of a request that came in on this hop.
    #[must_use]
    pub fn begin(&self, headers: &HeaderMap, kind: SpanKind) -> TraceContext {
        let hop = self.active.load().as_ref().map(|active| {
            let incoming = propagation::extract(headers);
            let drawn = || fastrand::u32(0..1_000_000) < active.sampling.per_million();
            Hop::new(incoming, incoming.sampled.unwrap_or_else(drawn))
        });
        TraceContext { kind, hop }
    }

    /// Hands the span of a finished request to the exporter, if it was sampled.
    pub fn finish(&self, context: &TraceContext, facts: &SpanFacts<'_>) {
        let Some(hop) = context.hop.as_ref().filter(|hop| hop.out.sampled) else {
            return;
        };
        if let Some(active) = self.active.load().as_ref() {
            active.sink.send(&hop.out, context.kind, facts);
        }
    }
}

/// A request's place in its trace.
#[derive(Clone, Debug)]
pub struct TraceContext {
    kind: SpanKind,
    /// `None` when tracing is off: then headers pass as they are.
    hop: Option<Hop>,
}

#[derive(Clone, Debug)]
struct Hop {
    incoming: Incoming,
    out: Outgoing,
}

impl Hop {
    fn new(incoming: Incoming, sampled: bool) -> Self {
        let parent = incoming.parent;
        // Who does not record a span does not stand in the chain: the next hop's parent is then the caller's span.
        let span_id = match parent {
            Some(parent) if !sampled => parent.span_id,
            _ => propagation::new_span_id(),
        };
        Self {
            incoming,
            out: Outgoing {
                trace_id: parent.map_or_else(propagation::new_trace_id, |parent| parent.trace_id),
                span_id,
                parent_span_id: parent.filter(|_| sampled).map(|parent| parent.span_id),
                sampled,
                debug: incoming.debug,
            },
        }
    }
}

impl TraceContext {
    /// Which side of the request this proxy is on.
    #[must_use]
    pub const fn kind(&self) -> SpanKind {
        self.kind
    }

    /// A request outside any trace.
    #[must_use]
    pub const fn none(kind: SpanKind) -> Self {
        Self { kind, hop: None }
    }

    /// Whether a span will be exported, so that [`Tracer::finish`] wants the facts.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.hop.as_ref().is_some_and(|hop| hop.out.sampled)
    }

    /// The trace, for logs.
    #[must_use]
    pub fn trace_id(&self) -> Option<TraceId> {
        self.hop.as_ref().map(|hop| hop.out.trace_id)
    }

    /// Writes the headers of the next hop: trace context where this hop changes it, and `x-request-id` if there is none.
    pub fn inject(&self, headers: &mut HeaderMap) {
        if !headers.contains_key(REQUEST_ID) {
            headers.insert(REQUEST_ID, propagation::request_id());
        }
        let Some(Hop { incoming, out }) = &self.hop else { return };
        let w3c = matches!(&incoming.parent, Some(parent) if parent.origin == Origin::W3c);
        if !w3c {
            // A state without its `traceparent` means nothing (Trace Context, section 4.3).
            headers.remove(TRACESTATE);
            headers.remove(TRACEPARENT);
        }
        if out.sampled || !w3c {
            propagation::inject_w3c(out, headers);
        }
        let decided_here = incoming.sampled.is_none();
        if incoming.b3 != B3Style::None && (out.sampled || w3c || decided_here) {
            propagation::inject_b3(out, incoming.b3, headers);
        }
    }

    /// Request headers that a span of this context prints.
    pub(super) fn wanted_headers(&self) -> &'static [HeaderName] {
        static WANTED: [HeaderName; 2] = [REQUEST_ID, http::header::USER_AGENT];
        if self.is_sampled() { &WANTED } else { &[] }
    }
}

#[cfg(test)]
mod tests;
