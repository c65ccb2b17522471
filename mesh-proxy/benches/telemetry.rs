//! What telemetry costs a request: counting on an edge, formatting a line, reading and writing trace context. The rival
//! of counting is the `metrics` facade with its labels, which the edge stands in for.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue, Method, Version};
use mesh_api::model::Workload;
use mesh_proxy::flags::ResponseFlags;
use mesh_proxy::telemetry::{
    Edge, EdgeKey, EdgeService, Headers, Limits, LogFormat, LogRecord, Options, Reporter, RequestProtocol, Security,
    SpanKind, Telemetry, TraceContext,
};

fn telemetry() -> Arc<Telemetry> {
    Telemetry::new(Options {
        node: "bench".into(),
        mesh: "bench".into(),
        workload: Arc::default(),
        runtime: None,
        limits: Limits::default(),
    })
}

fn key(workload: &Workload) -> EdgeKey<'_> {
    EdgeKey {
        reporter: Reporter::Source,
        source: Some(workload),
        source_principal: None,
        destination: Some(workload),
        destination_principal: None,
        service: EdgeService::Passthrough,
        security: Security::Unknown,
    }
}

fn count(edge: &Edge) {
    let took = black_box(Duration::from_micros(3_400));
    edge.request(
        RequestProtocol::Http,
        black_box(200),
        None,
        ResponseFlags::NONE,
        took,
        120,
        4_096,
    );
}

fn counting(c: &mut Criterion) {
    let telemetry = telemetry();
    let workload = Workload {
        name: "reviews-v1".into(),
        namespace: "default".into(),
        ..Workload::default()
    };
    let edge = telemetry.edge(key(&workload));
    c.bench_function("edge request", |b| b.iter(|| count(&edge)));
    c.bench_function("edge request, 2 threads", |b| {
        b.iter_custom(|iterations| {
            let begun = std::time::Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| (0..iterations).for_each(|_| count(&edge)));
                }
            });
            begun.elapsed()
        });
    });
    let recorder = telemetry.recorder();
    c.bench_function("metrics facade, 4 metrics with 3 labels", |b| {
        metrics::with_local_recorder(&recorder, || {
            b.iter(|| {
                let code = black_box(200_u16).to_string();
                metrics::counter!("requests", "a" => "x", "b" => "y", "code" => code.clone()).increment(1);
                metrics::histogram!("duration", "a" => "x", "b" => "y", "code" => code.clone()).record(3.4);
                metrics::histogram!("sent", "a" => "x", "b" => "y", "code" => code.clone()).record(120);
                metrics::histogram!("received", "a" => "x", "b" => "y", "code" => code).record(4_096);
            });
        });
    });
    c.bench_function("find an edge", |b| b.iter(|| telemetry.edge(key(black_box(&workload)))));
    let mut page = String::new();
    c.bench_function("render the page", |b| {
        b.iter(|| {
            page.clear();
            telemetry.render_prometheus(&mut page);
        });
    });
}

fn lines(c: &mut Criterion) {
    let mut headers = HeaderMap::new();
    headers.insert("user-agent", HeaderValue::from_static("curl/8.5.0"));
    headers.insert(
        "x-request-id",
        HeaderValue::from_static("84961386-6d84-929d-98bd-c5aee93b5c88"),
    );
    let record = LogRecord {
        start: jiff::Timestamp::now(),
        duration: Duration::from_millis(3),
        method: Some(&Method::GET),
        authority: Some("reviews.default.svc.cluster.local:9080"),
        path: Some("/reviews/1"),
        protocol: Some(Version::HTTP_11),
        request_headers: Headers::All(&headers),
        response_code: Some(200),
        response_code_details: Some("via_upstream"),
        bytes_sent: 4_096,
        upstream_host: "127.0.3.4:9080".parse().ok(),
        upstream_cluster: Some("outbound|9080|v1|reviews.default.svc.cluster.local"),
        upstream_local_address: "127.0.3.1:40001".parse().ok(),
        downstream_local_address: "127.0.3.4:9080".parse().ok(),
        downstream_remote_address: "127.0.3.1:50001".parse().ok(),
        route_name: Some("default"),
        ..LogRecord::default()
    };
    let mut line = Vec::new();
    for (name, format) in [
        ("line, Istio's text", LogFormat::text(mesh_proxy::telemetry::ISTIO_TEXT)),
        ("line, JSON", LogFormat::json()),
    ] {
        let Ok(format) = format else { continue };
        c.bench_function(name, |b| {
            b.iter(|| {
                line.clear();
                format.write(black_box(&record), &mut line);
            });
        });
    }
}

fn traces(c: &mut Criterion) {
    let telemetry = telemetry();
    let mut headers = HeaderMap::new();
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    headers.insert("traceparent", HeaderValue::from_static(parent));
    headers.insert(
        "x-request-id",
        HeaderValue::from_static("84961386-6d84-929d-98bd-c5aee93b5c88"),
    );
    c.bench_function("trace context, tracing off", |b| {
        b.iter(|| {
            let context = telemetry.tracer().begin(black_box(&headers), SpanKind::Client);
            context.inject(&mut headers);
        });
    });
    c.bench_function("x-request-id, made", |b| {
        b.iter(|| {
            headers.remove("x-request-id");
            TraceContext::none(SpanKind::Client).inject(black_box(&mut headers));
        });
    });
}

criterion_group!(benches, counting, lines, traces);
criterion_main!(benches);
