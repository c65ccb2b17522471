//! Istio's standard metrics on real traffic: what both sidecars count, with which labels, in which order.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read as _, Write as _};
use std::net::Shutdown;

use e2e::app::{App, ping};
use e2e::client::{Call, tunnel};
use e2e::exposition::{Sample, parse, sum};
use e2e::grpc;
use e2e::plain::{Mesh, Sidecar, SidecarOptions, eventually, service_entry, workload_entry};

const HOST: &str = "server.default.svc.cluster.local";
const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";
const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";

/// What Istio's dashboards and users' queries read, in Istio's order.
const LABELS: [&str; 25] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
];

struct World {
    /// Ends last.
    _mesh: Mesh,
    http: App,
    _tcp: App,
    server: Sidecar,
    client: Sidecar,
}

fn world(policy: &str) -> anyhow::Result<World> {
    let mesh = Mesh::start(|mesh| {
        [
            workload_entry("server", mesh.address(0), "server", "v1"),
            workload_entry("client", mesh.address(1), "client", "v2"),
            service_entry(
                "server",
                &[
                    (80, "http", "HTTP", 8080),
                    (82, "grpc", "GRPC", 8082),
                    (90, "tcp", "TCP", 9000),
                ],
            ),
            policy.to_owned(),
        ]
        .concat()
    })?;
    let (http, tcp) = (App::http("answer")?, App::tcp("")?);
    let inbound = vec![(8080, http.address), (8082, http.address), (9000, tcp.address)];
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
    let world = World {
        _mesh: mesh,
        http,
        _tcp: tcp,
        server,
        client,
    };
    // The server's sidecar learns who is at an address when the first request comes from there.
    eventually("the server's sidecar knows the client", || {
        world.get("/warm-up").ok().filter(|status| *status == 200)?;
        let page = world.server.metrics_page().ok()?;
        (sum(&page, "istio_requests_total", &[("source_workload", "client")]).ok()? > 0.0).then_some(())
    })?;
    let _ = world.http.take();
    Ok(world)
}

impl World {
    fn get(&self, path: &str) -> anyhow::Result<u16> {
        Ok(Call::get(&format!("http://{HOST}{path}"))
            .through(self.client.outbound())?
            .status)
    }

    fn sum(&self, sidecar: &Sidecar, name: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&sidecar.metrics_page().unwrap(), name, labels).unwrap()
    }

    /// Waits until a metric has grown to a value: an exchange is counted when its last byte is away.
    fn reaches(&self, sidecar: &Sidecar, name: &str, labels: &[(&str, &str)], value: f64) {
        let mut last = 0.0;
        eventually(&format!("{name} {labels:?} is {value}"), || {
            last = self.sum(sidecar, name, labels);
            (last >= value).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error:#}; it is {last}"));
        assert_eq!(last, value, "{name} {labels:?}");
    }
}

fn names(sample: &Sample) -> Vec<&str> {
    let labels = sample.labels.iter().map(|(name, _)| name.as_str());
    labels.filter(|name| *name != "le").collect()
}

/// Labels that both reporters agree on.
fn edge() -> Vec<(&'static str, &'static str)> {
    vec![
        ("source_workload", "client"),
        ("source_canonical_service", "client"),
        ("source_canonical_revision", "v2"),
        ("source_workload_namespace", "default"),
        ("source_principal", CLIENT),
        ("source_app", "client"),
        ("source_version", "v2"),
        ("destination_workload", "server"),
        ("destination_workload_namespace", "default"),
        ("destination_principal", SERVER),
        ("destination_app", "server"),
        ("destination_version", "v1"),
        ("destination_service", HOST),
        ("destination_canonical_service", "server"),
        ("destination_canonical_revision", "v1"),
        ("destination_service_name", "server"),
        ("destination_service_namespace", "default"),
    ]
}

#[test]
fn both_reporters_count_requests_with_istios_labels() -> anyhow::Result<()> {
    let world = world("")?;
    let before = |sidecar: &Sidecar| {
        let labels = [edge(), vec![("response_code", "200")]].concat();
        world.sum(sidecar, "istio_requests_total", &labels)
    };
    let before = [before(&world.client), before(&world.server)];
    let body = "0123456789";
    let url = format!("http://{HOST}/");
    for _ in 0..3 {
        let answer = Call::post(&url, body).through(world.client.outbound())?;
        assert_eq!((answer.status, answer.body.as_str()), (200, "answer"));
    }
    let missing = world.get("/?status=404")?;
    assert_eq!(missing, 404);

    for (sidecar, reporter, security, before) in [
        (&world.client, "source", "unknown", before[0]),
        (&world.server, "destination", "mutual_tls", before[1]),
    ] {
        let own = [
            edge(),
            vec![
                ("reporter", reporter),
                ("request_protocol", "http"),
                ("grpc_response_status", ""),
                ("response_flags", "-"),
                ("connection_security_policy", security),
            ],
        ]
        .concat();
        let with = |code| [own.clone(), vec![("response_code", code)]].concat();
        world.reaches(sidecar, "istio_requests_total", &with("200"), before + 3.0);
        world.reaches(sidecar, "istio_requests_total", &with("404"), 1.0);
        world.reaches(sidecar, "istio_request_bytes_sum", &with("200"), 30.0);
        world.reaches(sidecar, "istio_request_bytes_count", &with("200"), before + 3.0);
        let bytes = (before + 3.0) * "answer".len() as f64;
        world.reaches(sidecar, "istio_response_bytes_sum", &with("200"), bytes);
        world.reaches(
            sidecar,
            "istio_request_duration_milliseconds_count",
            &with("200"),
            before + 3.0,
        );
        let infinity = [with("200"), vec![("le", "+Inf")]].concat();
        world.reaches(
            sidecar,
            "istio_request_duration_milliseconds_bucket",
            &infinity,
            before + 3.0,
        );

        let page = sidecar.metrics_page()?;
        let http = [
            "istio_requests_total",
            "istio_request_duration_milliseconds",
            "istio_request_bytes",
            "istio_response_bytes",
        ];
        for sample in parse(&page)?
            .iter()
            .filter(|sample| http.iter().any(|name| sample.name.starts_with(name)))
        {
            assert_eq!(names(sample), LABELS, "{}", sample.name);
            assert_ne!(sample.label("source_cluster"), None);
        }
        assert!(page.contains("# TYPE istio_requests_total counter\n"));
        assert!(page.contains("# TYPE istio_request_duration_milliseconds histogram\n"));
        assert!(page.contains("istio_build{component=\"proxy\",tag=\""));
    }
    Ok(())
}

#[test]
fn grpc_calls_and_their_messages_are_counted() -> anyhow::Result<()> {
    let world = world("")?;
    let url = format!("http://{HOST}:82/Echo/Say");
    let outcome = grpc::call(world.client.outbound(), &url, &[b"one", b"", &[7; 100_000]])?;
    assert_eq!(
        (outcome.status, outcome.grpc_status, outcome.messages.len()),
        (200, Some(0), 3)
    );
    // What never reaches the application is counted as well.
    let url = format!("http://{HOST}:82/Echo/Say?reset");
    let outcome = grpc::call(world.client.outbound(), &url, &[b"one"])?;
    assert_eq!((outcome.status, outcome.grpc_status), (200, Some(14)), "{outcome:?}");

    // The server's sidecar saw the broken call three times: `unavailable` is tried again twice.
    for (sidecar, reporter, security, failures) in [
        (&world.client, "source", "unknown", 1.0),
        (&world.server, "destination", "mutual_tls", 3.0),
    ] {
        let own = [edge(), vec![("reporter", reporter)]].concat();
        let call = [
            own.clone(),
            vec![
                ("request_protocol", "grpc"),
                ("response_code", "200"),
                ("grpc_response_status", "0"),
                ("connection_security_policy", security),
            ],
        ]
        .concat();
        world.reaches(sidecar, "istio_requests_total", &call, 1.0);
        let failed = [
            own.clone(),
            vec![("request_protocol", "grpc"), ("grpc_response_status", "14")],
        ]
        .concat();
        world.reaches(sidecar, "istio_requests_total", &failed, failures);
        world.reaches(sidecar, "istio_response_messages_total", &own, 3.0);
        let requests = world.sum(sidecar, "istio_request_messages_total", &own);
        assert!(
            (3.0..=3.0 + failures).contains(&requests),
            "the broken call's may have been read: {requests}"
        );
        let page = sidecar.metrics_page()?;
        for sample in parse(&page)?
            .iter()
            .filter(|sample| sample.name.ends_with("_messages_total"))
        {
            assert_eq!(names(sample), LABELS[..20], "{}", sample.name);
        }
    }
    Ok(())
}

#[test]
fn connections_are_counted_while_they_last_and_when_they_end() -> anyhow::Result<()> {
    let world = world("")?;
    let mut stream = tunnel(world.client.outbound(), &format!("{HOST}:90"))?;
    ping(&mut stream, &[b'x'; 1000])?;
    let labels = |reporter, security| {
        [
            edge(),
            vec![
                ("reporter", reporter),
                ("request_protocol", "tcp"),
                ("response_flags", "-"),
                ("connection_security_policy", security),
            ],
        ]
        .concat()
    };
    let sides = [
        (&world.client, labels("source", "unknown")),
        (&world.server, labels("destination", "mutual_tls")),
    ];
    for (sidecar, labels) in &sides {
        world.reaches(sidecar, "istio_tcp_connections_opened_total", labels, 1.0);
        assert_eq!(world.sum(sidecar, "istio_tcp_connections_closed_total", labels), 0.0);
        // Istio reports a connection that lasts every 5 s.
        world.reaches(sidecar, "istio_tcp_received_bytes_total", labels, 1000.0);
        world.reaches(sidecar, "istio_tcp_sent_bytes_total", labels, 1000.0);
    }
    stream.write_all(b"and more")?;
    stream.shutdown(Shutdown::Write)?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest)?;
    assert_eq!(rest, b"and more");
    for (sidecar, labels) in &sides {
        world.reaches(sidecar, "istio_tcp_connections_closed_total", labels, 1.0);
        world.reaches(sidecar, "istio_tcp_received_bytes_total", labels, 1008.0);
        world.reaches(sidecar, "istio_tcp_sent_bytes_total", labels, 1008.0);
        let page = sidecar.metrics_page()?;
        let expected: Vec<_> = LABELS
            .iter()
            .filter(|name| !["response_code", "grpc_response_status"].contains(name))
            .collect();
        for sample in parse(&page)?
            .iter()
            .filter(|sample| sample.name.starts_with("istio_tcp_"))
        {
            assert_eq!(names(sample).iter().collect::<Vec<_>>(), expected, "{}", sample.name);
        }
    }
    Ok(())
}

#[test]
fn response_flags_say_why() -> anyhow::Result<()> {
    let world = world(&format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: server, namespace: default}}\n\
         spec:\n  hosts: [{HOST}]\n  http:\n  - match: [{{uri: {{prefix: /slow}}}}]\n    timeout: 100ms\n    \
         retries: {{attempts: 0}}\n    route: [{{destination: {{host: {HOST}}}}}]\n  \
         - match: [{{uri: {{prefix: /known}}}}, {{uri: {{prefix: /warm-up}}}}]\n    retries: {{attempts: 0}}\n    \
         route: [{{destination: {{host: {HOST}}}}}]\n\
         ---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: server, namespace: default}}\n\
         spec:\n  host: {HOST}\n  trafficPolicy:\n    connectionPool:\n      tcp: {{maxConnections: 1}}\n      \
         http: {{http1MaxPendingRequests: 1}}\n"
    ))?;
    let flagged = |flags, code| {
        let labels = [
            ("reporter", "source"),
            ("destination_service", HOST),
            ("response_flags", flags),
            ("response_code", code),
        ];
        world.reaches(&world.client, "istio_requests_total", &labels, 1.0);
    };
    assert_eq!(world.get("/slow?delay=2000")?, 504);
    flagged("UT", "504");
    assert_eq!(world.get("/unknown")?, 404);
    flagged("NR", "404");
    assert_eq!(world.get("/known?reset")?, 503);

    // A client that goes away.
    let url = format!("http://{HOST}/known?delay=60000");
    let leaving = Call::get(&url).begin_through(world.client.outbound())?;
    eventually("the application has the request", || {
        world
            .http
            .take()
            .iter()
            .any(|seen| seen.path.contains("60000"))
            .then_some(())
    })?;
    drop(leaving);
    flagged("DC", "0");
    let labels = [
        ("reporter", "destination"),
        ("response_flags", "DC"),
        ("response_code", "0"),
    ];
    // So it is for the server's sidecar, and so was the request that took too long.
    world.reaches(&world.server, "istio_requests_total", &labels, 2.0);

    // One is under way, one waits, the third is too many.
    let url = format!("http://{HOST}/known?delay=1000");
    let begin = || Call::get(&url).begin_through(world.client.outbound());
    let first = begin()?;
    eventually("the application has the request", || {
        world
            .http
            .take()
            .iter()
            .any(|seen| seen.path.contains("1000"))
            .then_some(())
    })?;
    let answers: Vec<_> = std::thread::scope(|scope| {
        let call = || Call::get(&url).through(world.client.outbound());
        let threads = [scope.spawn(call), scope.spawn(call)];
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect::<anyhow::Result<_>>()
    })?;
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 503]);
    let refused = answers.iter().find(|answer| answer.status == 503).unwrap();
    assert_eq!(refused.header("x-envoy-overloaded"), Some("true"));
    assert_eq!(e2e::client::read_answer(first)?.status, 200);
    flagged("UO", "503");
    Ok(())
}
