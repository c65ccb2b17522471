//! Trace context from the caller through both sidecars to the application, and a span for each hop at a collector.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use e2e::app::{App, Seen};
use e2e::client::Call;
use e2e::collector::{Collector, Received, hex};
use e2e::grpc;
use e2e::plain::{Mesh, Sidecar, SidecarOptions, eventually, service_entry, workload_entry};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

const HOST: &str = "server.default.svc.cluster.local";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

struct World {
    _mesh: Mesh,
    collector: Collector,
    http: App,
    _server: Sidecar,
    client: Sidecar,
}

fn world(sampling: &str) -> anyhow::Result<World> {
    let collector = Collector::start()?;
    let mesh = Mesh::start(|mesh| {
        [
            workload_entry("server", mesh.address(0), "server", "v1"),
            workload_entry("client", mesh.address(1), "client", "v1"),
            service_entry("server", &[(80, "http", "HTTP", 8080), (82, "grpc", "GRPC", 8082)]),
            format!(
                "---\napiVersion: mesh.dev/v1\nkind: MeshConfig\nmetadata: {{name: mesh}}\nspec: {{tracing: {{otlpEndpoint: \
                 'http://{}', samplingPercentage: {sampling}}}}}\n",
                collector.address
            ),
        ]
        .concat()
    })?;
    let http = App::http("answer")?;
    let inbound = vec![(8080, http.address), (8082, http.address)];
    let mut server = mesh.sidecar(
        "server",
        &SidecarOptions {
            inbound,
            ..Default::default()
        },
    )?;
    let mut client = mesh.sidecar(
        "client",
        &SidecarOptions {
            index: 1,
            ..Default::default()
        },
    )?;
    server.wait_ready()?;
    client.wait_ready()?;
    Ok(World {
        _mesh: mesh,
        collector,
        http,
        _server: server,
        client,
    })
}

impl World {
    fn call(&self, headers: &[(&str, &str)]) -> Seen {
        let url = format!("http://{HOST}/path?x=1");
        let mut call = Call::get(&url);
        for (name, value) in headers {
            call = call.header(name, value);
        }
        let answer = call.through(self.client.outbound()).unwrap();
        assert_eq!(answer.status, 200);
        let mut seen = self.http.take();
        assert_eq!(seen.len(), 1);
        seen.remove(0)
    }

    /// The spans of a trace: the client's sidecar's, then the server's.
    fn spans(&self, trace: &str) -> [Received; 2] {
        let spans = eventually(&format!("both spans of {trace}"), || {
            let spans = self.collector.trace(trace);
            (spans.len() >= 2).then_some(spans)
        })
        .unwrap();
        assert_eq!(spans.len(), 2, "{spans:#?}");
        let of = |kind: SpanKind| {
            spans
                .iter()
                .find(|span| span.span.kind == kind as i32)
                .cloned()
                .unwrap()
        };
        [of(SpanKind::Client), of(SpanKind::Server)]
    }
}

/// Trace, span and flags of `traceparent`.
fn traceparent(seen: &Seen) -> (String, String, String) {
    let parts: Vec<&str> = seen.header("traceparent").unwrap().split('-').collect();
    assert_eq!((parts.len(), parts[0]), (4, "00"), "{parts:?}");
    (parts[1].to_owned(), parts[2].to_owned(), parts[3].to_owned())
}

#[test]
fn every_hop_has_a_span_below_the_one_before() -> anyhow::Result<()> {
    let world = world("100")?;
    let seen = world.call(&[
        ("traceparent", &format!("00-{TRACE}-{SPAN}-01")),
        ("tracestate", "vendor=1"),
    ]);
    let (trace, parent, flags) = traceparent(&seen);
    assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "01"));
    assert_eq!(seen.header("tracestate"), Some("vendor=1"));

    let [client, server] = world.spans(TRACE);
    assert_eq!(hex(&client.span.parent_span_id), SPAN, "the caller's span");
    assert_eq!(server.span.parent_span_id, client.span.span_id);
    assert_eq!(parent, hex(&server.span.span_id), "what the application is told");
    assert_eq!(
        (client.service.as_str(), server.service.as_str()),
        ("client.default", "server.default")
    );
    let id = seen.header("x-request-id").unwrap();
    for span in [&client, &server] {
        assert_eq!(span.attribute("http.method"), Some("GET"));
        assert_eq!(span.attribute("http.status_code"), Some("200"));
        assert_eq!(
            span.attribute("http.url"),
            Some(format!("http://{HOST}/path?x=1").as_str())
        );
        assert_eq!(span.attribute("guid:x-request-id"), Some(id));
        assert!(span.span.end_time_unix_nano > span.span.start_time_unix_nano);
    }
    assert!(client.span.start_time_unix_nano <= server.span.start_time_unix_nano);
    let cluster = format!("outbound|80||{HOST}");
    assert_eq!(client.attribute("upstream_cluster"), Some(cluster.as_str()));
    assert_eq!(server.attribute("upstream_cluster"), Some("inbound|8080||"));

    // Without a caller's context the trace begins here.
    let (trace, ..) = traceparent(&world.call(&[]));
    assert_ne!(trace, TRACE);
    let [client, server] = world.spans(&trace);
    assert!(client.span.parent_span_id.is_empty(), "{client:?}");
    assert_eq!(server.span.parent_span_id, client.span.span_id);

    // A gRPC call is a request like any other; its status is on its spans.
    let outcome = grpc::call(
        world.client.outbound(),
        &format!("http://{HOST}:82/Echo/Say"),
        &[b"one"],
    )?;
    assert_eq!(outcome.grpc_status, Some(0));
    let (trace, ..) = traceparent(&world.http.take()[0]);
    for span in world.spans(&trace) {
        assert_eq!(span.attribute("grpc.status_code"), Some("0"));
    }
    Ok(())
}

#[test]
fn b3_goes_out_as_it_came_in() -> anyhow::Result<()> {
    let world = world("100")?;
    let short = "a3ce929d0e0e4736";
    let seen = world.call(&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "1")]);
    assert_eq!(seen.header("x-b3-traceid"), Some(TRACE));
    assert_eq!(seen.header("x-b3-sampled"), Some("1"));
    let [client, server] = world.spans(TRACE);
    assert_eq!(hex(&client.span.parent_span_id), SPAN);
    assert_eq!(seen.header("x-b3-spanid"), Some(hex(&server.span.span_id).as_str()));
    assert_eq!(
        seen.header("x-b3-parentspanid"),
        Some(hex(&client.span.span_id).as_str())
    );

    let seen = world.call(&[("b3", &format!("{short}-{SPAN}-1"))]);
    let single = seen.header("b3").unwrap();
    let long = format!("0000000000000000{short}");
    let [_, server] = world.spans(&long);
    assert!(single.starts_with(short) || single.starts_with(&long), "{single}");
    assert!(single.contains(&hex(&server.span.span_id)), "{single}");
    assert_eq!(seen.header("x-b3-traceid"), None, "one form, the caller's");
    Ok(())
}

#[test]
fn who_is_not_sampled_is_passed_on_and_not_exported() -> anyhow::Result<()> {
    let world = world("0")?;
    let seen = world.call(&[("traceparent", &format!("00-{TRACE}-{SPAN}-00"))]);
    let (trace, parent, flags) = traceparent(&seen);
    assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "00"));
    assert!(!parent.is_empty());
    assert!(seen.header("x-request-id").is_some());
    // A caller that decided to sample is followed, and shows that spans would have come.
    let sampled = "0af7651916cd43dd8448eb211c80319c";
    let seen = world.call(&[("traceparent", &format!("00-{sampled}-{SPAN}-01"))]);
    assert_eq!(traceparent(&seen).2, "01");
    world.spans(sampled);
    assert!(world.collector.trace(TRACE).is_empty());
    Ok(())
}
