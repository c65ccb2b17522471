//! Spans, seen by a collector that speaks OTLP over gRPC.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use mesh_api::model::{Percentage, Tracing};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;

use super::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let _ = self.0.send(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector on a port of the system's choice.
struct Received {
    address: SocketAddr,
    requests: mpsc::UnboundedReceiver<ExportTraceServiceRequest>,
}

impl Received {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, requests) = mpsc::unbounded_channel();
        let server = tonic::transport::Server::builder().serve_with_incoming(
            TraceServiceServer::new(Collector(sender)),
            TcpListenerStream::new(listener),
        );
        tokio::spawn(server);
        Self { address, requests }
    }

    fn settings(&self, percent: f64) -> MeshSettings {
        MeshSettings {
            tracing: Some(Tracing {
                endpoint: format!("http://{}", self.address).into(),
                sampling: Percentage::from_percent(percent),
            }),
            ..settings()
        }
    }

    /// The next export: attributes of its resource, and its spans.
    async fn next(&mut self) -> (Vec<KeyValue>, Vec<Span>) {
        let deadline = Duration::from_secs(20);
        let request = tokio::time::timeout(deadline, self.requests.recv())
            .await
            .unwrap()
            .unwrap();
        let resource = request.resource_spans.into_iter().next().unwrap();
        let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans).collect();
        (resource.resource.unwrap().attributes, spans)
    }
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> &'a str {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text,
        _ => "(none)",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_of_both_sides_reach_the_collector() {
    let mut collector = Received::start().await;
    let telemetry = telemetry(Limits::default());
    telemetry.configure(&collector.settings(100.0)).unwrap();
    telemetry
        .set_workload(&Arc::new(workload(
            "reviews-v2",
            &[("app", "reviews"), ("version", "v2")],
        )))
        .unwrap();

    // The client's side begins at the application's context, the server's at the client's.
    let mut headers: HeaderMap = [
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("user-agent", "curl/8"),
        ("x-request-id", "request-1"),
    ]
    .into_iter()
    .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
    .collect();
    let client = telemetry.tracer().begin(&headers, SpanKind::Client);
    client.inject(&mut headers);
    let server = telemetry.tracer().begin(&headers, SpanKind::Server);
    server.inject(&mut headers);
    assert!(client.is_sampled() && server.is_sampled());
    assert_eq!(server.trace_id().unwrap().to_string(), TRACE);

    let kept = telemetry.capture_request(&client, &headers);
    let record = LogRecord {
        start: "2026-11-25T21:26:18Z".parse().unwrap(),
        duration: Duration::from_millis(5),
        method: Some(&Method::GET),
        authority: Some("reviews:9080"),
        path: Some("/reviews/1?q=2"),
        protocol: Some(Version::HTTP_2),
        request_headers: Headers::Captured(&kept),
        response_code: Some(200),
        upstream_cluster: Some("outbound|9080||reviews.default.svc.cluster.local"),
        upstream_host: Some("127.0.0.3:9080".parse().unwrap()),
        downstream_remote_address: Some("127.0.0.2:40000".parse().unwrap()),
        ..LogRecord::default()
    };
    telemetry.finish(&client, "reviews.default.svc.cluster.local:9080/*", &record);
    let failed = LogRecord {
        response_code: Some(503),
        flags: ResponseFlags::UF,
        reason: Some("connection refused"),
        ..record
    };
    telemetry.finish(&server, "inbound|9080||", &failed);

    let (resource, mut spans) = collector.next().await;
    if spans.len() < 2 {
        spans.extend(collector.next().await.1);
    }
    assert_eq!(value(&resource, "service.name"), "reviews.default");
    let [client, server] = &spans[..] else {
        panic!("{spans:?}")
    };
    for span in [client, server] {
        assert_eq!(hex(&span.trace_id), TRACE);
        assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 5_000_000);
        assert_eq!(span.start_time_unix_nano, 1_795_641_978_000_000_000);
    }
    assert_eq!(hex(&client.parent_span_id), "00f067aa0ba902b7");
    assert_eq!(server.parent_span_id, client.span_id);
    assert_eq!(
        (client.kind, server.kind),
        (3, 2),
        "client and server in OTLP's numbers"
    );
    assert_eq!(client.name, "reviews.default.svc.cluster.local:9080/*");
    for (key, expected) in [
        ("component", "proxy"),
        ("node_id", "sidecar~127.0.0.1~client.default~default.svc.cluster.local"),
        ("istio.canonical_service", "reviews"),
        ("istio.canonical_revision", "v2"),
        ("istio.namespace", "default"),
        ("istio.mesh_id", "cluster.local"),
        ("istio.cluster_id", "Kubernetes"),
        ("http.method", "GET"),
        ("http.url", "http://reviews:9080/reviews/1?q=2"),
        ("http.protocol", "HTTP/2.0"),
        ("http.status_code", "200"),
        ("response_flags", "-"),
        ("user_agent", "curl/8"),
        ("guid:x-request-id", "request-1"),
        ("upstream_cluster", "outbound|9080||reviews.default.svc.cluster.local"),
        ("upstream_address", "127.0.0.3:9080"),
        ("peer.address", "127.0.0.2"),
        ("error", "(none)"),
    ] {
        assert_eq!(value(&client.attributes, key), expected, "{key}");
    }
    assert_eq!(value(&server.attributes, "error"), "true");
    assert_eq!(value(&server.attributes, "response_flags"), "UF");
    assert_eq!(server.status.as_ref().unwrap().message, "connection refused");

    let ending = Arc::clone(&telemetry);
    tokio::task::spawn_blocking(move || ending.shutdown(Duration::from_secs(5)))
        .await
        .unwrap();
    let page = page(&telemetry);
    assert_eq!(page["mesh_spans_finished_total"][0].value, 2.0);
    assert_eq!(page["mesh_spans_exported_total"][0].value, 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sampling_follows_the_caller_and_else_the_share() {
    let collector = Received::start().await;
    let telemetry = telemetry(Limits::default());
    let sampled = |lines: &[(&'static str, &'static str)]| {
        let headers: HeaderMap = lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        telemetry.tracer().begin(&headers, SpanKind::Server).is_sampled()
    };
    let yes = [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")];
    let no = [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")];
    assert!(!sampled(&yes), "off");
    telemetry.configure(&collector.settings(0.0)).unwrap();
    assert!(sampled(&yes) && !sampled(&no) && !sampled(&[]));
    telemetry.configure(&collector.settings(100.0)).unwrap();
    assert!(sampled(&yes) && !sampled(&no) && sampled(&[]));
    telemetry.configure(&collector.settings(25.0)).unwrap();
    let share = (0..10_000).filter(|_| sampled(&[])).count();
    assert!((2_000..3_000).contains(&share), "{share}");
    telemetry.configure(&settings()).unwrap();
    assert!(!sampled(&yes), "off again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_costs_spans_only() {
    let address = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let telemetry = telemetry(Limits::default());
    let tracing = Some(Tracing {
        endpoint: format!("http://{address}").into(),
        sampling: Percentage::ALL,
    });
    telemetry.configure(&MeshSettings { tracing, ..settings() }).unwrap();
    let begun = Instant::now();
    for _ in 0..5_000 {
        let context = telemetry.tracer().begin(&HeaderMap::new(), SpanKind::Client);
        telemetry.finish(&context, "away", &LogRecord::default());
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "finishing never waits");
    let end = Instant::now() + Duration::from_secs(20);
    while page(&telemetry)["mesh_spans_export_failed_total"][0].value == 0.0 {
        assert!(Instant::now() < end, "no export failed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(page(&telemetry)["mesh_spans_finished_total"][0].value, 5_000.0);
}
