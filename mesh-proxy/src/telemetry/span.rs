//! From the facts of a request to OpenTelemetry's span, and to the collector.
//!
//! Spans are built as finished data and given to the SDK's batch processor; the SDK's tracer, with its context and
//! its clock, is left out. Attributes are those that Envoy and Istio write, with their names and as text.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use opentelemetry::trace::{self as otel, SpanContext, SpanId, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanExporter as Exporter, SpanLinks,
    SpanProcessor as _,
};
use tonic::transport::{Channel, Endpoint};

use super::propagation::{Outgoing, REQUEST_ID};
use super::record::LogRecord;
use super::recorder::ProcessMetrics;
use super::trace::{SpanFacts, SpanKind};
use crate::resolver;

/// Spans that may wait for the collector.
const QUEUE: usize = 2_048;
/// Longest that a span waits for company.
const DELAY: Duration = Duration::from_secs(1);
/// Longest that one export may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest path in `http.url`, Envoy's default.
const MAX_PATH: usize = 256;

/// Who we are, on every span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SpanOrigin {
    pub node: Arc<str>,
    pub mesh: Arc<str>,
    pub cluster: Arc<str>,
    pub namespace: Arc<str>,
    pub canonical_service: Arc<str>,
    pub canonical_revision: Arc<str>,
}

/// Takes finished spans to one collector.
pub(super) struct SpanSink {
    processor: Option<BatchSpanProcessor>,
    attributes: Vec<KeyValue>,
    scope: InstrumentationScope,
    finished: metrics::Counter,
}

impl SpanSink {
    /// Sends to an OTLP endpoint, over connections that live on the current tokio runtime.
    pub(super) fn otlp(
        endpoint: &str,
        origin: &SpanOrigin,
        metrics: &ProcessMetrics,
    ) -> Result<Self, opentelemetry_otlp::ExporterBuildError> {
        let builder = SpanExporter::builder().with_tonic().with_endpoint(endpoint);
        let builder = match plaintext_channel(endpoint) {
            Some(channel) => builder.with_channel(channel),
            None => builder,
        };
        let exporter = builder.with_timeout(TIMEOUT).build()?;
        let counting = CountingExporter {
            exporter,
            exported: metrics.counter("mesh_spans_exported_total", "Spans that the collector accepted."),
            failed: metrics.counter("mesh_spans_export_failed_total", "Spans lost because an export failed."),
        };
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_scheduled_delay(DELAY)
            .build();
        let mut processor = BatchSpanProcessor::new(counting, config);
        let service = format!("{}.{}", origin.canonical_service, origin.namespace);
        processor.set_resource(&Resource::builder_empty().with_service_name(service).build());
        Ok(Self {
            processor: Some(processor),
            attributes: origin_attributes(origin),
            scope: InstrumentationScope::builder("mesh-proxy")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
            finished: metrics.counter(
                "mesh_spans_finished_total",
                "Sampled spans; those neither exported nor failed were dropped because the queue was full.",
            ),
        })
    }

    pub(super) fn send(&self, span: &Outgoing, kind: SpanKind, facts: &SpanFacts<'_>) {
        let Some(processor) = &self.processor else { return };
        self.finished.increment(1);
        let start_time = SystemTime::from(facts.record.start);
        let mut attributes = Vec::with_capacity(self.attributes.len() + 20);
        attributes.extend_from_slice(&self.attributes);
        request_attributes(facts.record, &mut attributes);
        let status = if is_error(facts.record) {
            attributes.push(KeyValue::new("error", "true"));
            Status::error(facts.record.reason.unwrap_or_default().to_owned())
        } else {
            Status::Unset
        };
        processor.on_end(SpanData {
            span_context: SpanContext::new(
                otel::TraceId::from(span.trace_id.0),
                SpanId::from(span.span_id),
                TraceFlags::SAMPLED,
                false,
                TraceState::default(),
            ),
            parent_span_id: span.parent_span_id.map_or(SpanId::INVALID, SpanId::from),
            parent_span_is_remote: span.parent_span_id.is_some(),
            span_kind: match kind {
                SpanKind::Client => otel::SpanKind::Client,
                SpanKind::Server => otel::SpanKind::Server,
            },
            name: Cow::Owned(facts.operation.to_owned()),
            start_time,
            end_time: start_time + facts.record.duration,
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status,
            instrumentation_scope: self.scope.clone(),
        });
    }

    /// Sends what is queued and ends. Blocks, at most for `deadline`; the runtime must go on meanwhile.
    pub(super) fn shutdown(&self, deadline: Duration) {
        if let Some(Err(error)) = self.processor.as_ref().map(|p| p.shutdown_with_timeout(deadline)) {
            tracing::debug!(%error, "spans were not flushed");
        }
    }
}

impl Drop for SpanSink {
    fn drop(&mut self) {
        let Some(processor) = self.processor.take() else { return };
        // What is queued still goes out, without making whoever changed the settings wait for the collector.
        let flush = std::thread::Builder::new().name("spans-flush".to_owned());
        if let Err(error) = flush.spawn(move || processor.shutdown_with_timeout(TIMEOUT)) {
            tracing::warn!(%error, "no thread to flush spans: those queued are lost");
        }
    }
}

/// Counts what becomes of spans.
#[derive(Debug)]
struct CountingExporter<E> {
    exporter: E,
    exported: metrics::Counter,
    failed: metrics::Counter,
}

impl<E: Exporter> Exporter for CountingExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len() as u64;
        let result = self.exporter.export(batch).await;
        match &result {
            Ok(()) => self.exported.increment(count),
            Err(error) => {
                self.failed.increment(count);
                tracing::debug!(%error, count, "spans were not exported");
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Connections to an `http://` endpoint whose name this proxy resolves itself; `None` for anything else, which the exporter
/// judges.
fn plaintext_channel(endpoint: &str) -> Option<Channel> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).ok()?;
    if endpoint.uri().scheme_str() != Some("http") {
        return None;
    }
    let connector = tower::service_fn(|uri: http::Uri| async move {
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let stream = resolver::connect(host, uri.port_u16().unwrap_or(80)).await?;
        Ok::<_, std::io::Error>(TokioIo::new(stream))
    });
    Some(endpoint.timeout(TIMEOUT).connect_with_connector_lazy(connector))
}

fn origin_attributes(origin: &SpanOrigin) -> Vec<KeyValue> {
    [
        ("component", "proxy"),
        ("node_id", &*origin.node),
        ("istio.canonical_service", &*origin.canonical_service),
        ("istio.canonical_revision", &*origin.canonical_revision),
        ("istio.namespace", &*origin.namespace),
        ("istio.mesh_id", &*origin.mesh),
        ("istio.cluster_id", &*origin.cluster),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(key, value)| KeyValue::new(key, value.to_owned()))
    .collect()
}

fn request_attributes(record: &LogRecord<'_>, to: &mut Vec<KeyValue>) {
    let mut add = |key: &'static str, value: Option<String>| to.extend(value.map(|value| KeyValue::new(key, value)));
    let header = |name| {
        let value = record.request_headers.get(name)?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    add("http.method", record.method.map(ToString::to_string));
    add("http.url", url(record));
    add("http.protocol", record.protocol.map(|version| format!("{version:?}")));
    add("http.status_code", Some(record.response_code.unwrap_or(0).to_string()));
    add("grpc.status_code", record.grpc_status.map(|status| status.to_string()));
    add("request_size", Some(record.bytes_received.to_string()));
    add("response_size", Some(record.bytes_sent.to_string()));
    add("response_flags", Some(record.flags.to_string()));
    add("user_agent", header(&http::header::USER_AGENT));
    add("guid:x-request-id", header(&REQUEST_ID));
    let cluster = || record.upstream_cluster.map(str::to_owned);
    add("upstream_cluster", cluster());
    add("upstream_cluster.name", cluster());
    add(
        "upstream_address",
        record.upstream_host.map(|address| address.to_string()),
    );
    let peer = record
        .downstream_direct_remote_address
        .or(record.downstream_remote_address);
    add("peer.address", peer.map(|address| address.ip().to_string()));
    add("mesh.policy", record.policy.map(ToString::to_string));
    add("mesh.rule", record.rule.map(str::to_owned));
    add("mesh.reason", record.reason.map(str::to_owned));
}

fn url(record: &LogRecord<'_>) -> Option<String> {
    let path = record.original_path.or(record.path)?;
    let mut end = path.len().min(MAX_PATH);
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    let mut url = String::with_capacity(end + 64);
    let authority = record.authority.unwrap_or_default();
    let _ = write!(url, "{}://{authority}{}", record.scheme.unwrap_or("http"), &path[..end]);
    Some(url)
}

/// As Envoy: no response, a 5xx, or a gRPC status that is the server's fault.
fn is_error(record: &LogRecord<'_>) -> bool {
    record.response_code.is_none_or(|code| code >= 500) || matches!(record.grpc_status, Some(2 | 4 | 12..=15))
}
