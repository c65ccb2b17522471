mod otlp;

use std::collections::BTreeMap;

use mesh_api::identity::SpiffeId;
use mesh_api::model::{OutboundPolicy, Owned, ServiceRef};

use super::*;
use crate::flags::ResponseFlags;

fn workload(name: &str, labels: &[(&str, &str)]) -> Workload {
    Workload {
        name: name.into(),
        namespace: "default".into(),
        labels: labels
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect(),
        cluster: "Kubernetes".into(),
        ..Workload::default()
    }
}

fn telemetry(limits: Limits) -> Arc<Telemetry> {
    Telemetry::new(Options {
        node: "sidecar~127.0.0.1~client.default~default.svc.cluster.local".into(),
        mesh: "cluster.local".into(),
        workload: Arc::new(workload("client", &[])),
        runtime: tokio::runtime::Handle::try_current().ok(),
        limits,
    })
}

fn settings() -> MeshSettings {
    MeshSettings {
        trust_domain: "cluster.local".parse().unwrap(),
        trust_domain_aliases: Vec::new(),
        owned: Owned::default(),
        outbound_policy: OutboundPolicy::AllowAny,
        access_log: None,
        tracing: None,
    }
}

fn unknown_key(reporter: Reporter) -> EdgeKey<'static> {
    EdgeKey {
        reporter,
        source: None,
        source_principal: None,
        destination: None,
        destination_principal: None,
        service: EdgeService::None,
        security: Security::Unknown,
    }
}

/// A sample of the page.
#[derive(Debug, PartialEq)]
struct Sample {
    labels: Vec<(String, String)>,
    value: f64,
}

impl Sample {
    fn label(&self, name: &str) -> &str {
        let found = self.labels.iter().find(|(key, _)| key == name);
        found.map_or("(none)", |(_, value)| value)
    }
}

/// Reads the page back as Prometheus would; fails on what it would not read.
fn parse(page: &str) -> BTreeMap<String, Vec<Sample>> {
    let mut samples = BTreeMap::<String, Vec<Sample>>::new();
    let mut types = BTreeMap::<&str, &str>::new();
    for line in page.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            if words.next() == Some("TYPE") {
                let (name, kind) = (words.next().unwrap(), words.next().unwrap());
                assert!(types.insert(name, kind).is_none(), "{name} has two types");
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, parse_labels(labels.strip_suffix('}').unwrap())),
            None => (series, Vec::new()),
        };
        let of_histogram = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix));
        assert!(
            types.contains_key(name) || of_histogram.is_some_and(|name| types[name] == "histogram"),
            "{line}"
        );
        let sample = Sample {
            labels,
            value: value.parse().unwrap(),
        };
        let family = samples.entry(name.to_owned()).or_default();
        assert!(
            family.iter().all(|other| other.labels != sample.labels),
            "twice: {line}"
        );
        family.push(sample);
    }
    samples
}

fn parse_labels(text: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    let mut chars = text.chars().peekable();
    while chars.peek().is_some() {
        let name: String = chars.by_ref().take_while(|c| *c != '=').collect();
        assert_eq!(chars.next(), Some('"'));
        let mut value = String::new();
        loop {
            match chars.next().unwrap() {
                '"' => break,
                '\\' => match chars.next().unwrap() {
                    'n' => value.push('\n'),
                    c => value.push(c),
                },
                c => value.push(c),
            }
        }
        labels.push((name, value));
        chars.next_if_eq(&',');
    }
    labels
}

fn page(telemetry: &Telemetry) -> BTreeMap<String, Vec<Sample>> {
    let mut text = String::new();
    telemetry.render_prometheus(&mut text);
    parse(&text)
}

#[test]
fn http_labels_are_istios_in_its_order() {
    let telemetry = telemetry(Limits::default());
    let client = workload("client", &[("app", "client"), ("version", "v1")]);
    let server = workload("reviews-v2", &[("app", "reviews"), ("version", "v2")]);
    let client_id: SpiffeId = "spiffe://cluster.local/ns/default/sa/client".parse().unwrap();
    let server_id: SpiffeId = "spiffe://cluster.local/ns/default/sa/reviews".parse().unwrap();
    let service = ServiceRef {
        host: "reviews.default.svc.cluster.local".parse().unwrap(),
        name: "reviews".into(),
        namespace: "default".into(),
    };
    let key = EdgeKey {
        reporter: Reporter::Destination,
        source: Some(&client),
        source_principal: Some(&client_id),
        destination: Some(&server),
        destination_principal: Some(&server_id),
        service: EdgeService::Known(&service),
        security: Security::MutualTls,
    };
    let edge = telemetry.edge(key);
    assert!(Arc::ptr_eq(&edge, &telemetry.edge(key)));
    let took = Duration::from_micros(7_250);
    edge.request(RequestProtocol::Http, 200, None, ResponseFlags::NONE, took, 100, 3_000);
    edge.request(RequestProtocol::Http, 200, None, ResponseFlags::NONE, took, 100, 3_000);
    let mut text = String::new();
    telemetry.render_prometheus(&mut text);
    let labels = "reporter=\"destination\",source_workload=\"client\",source_canonical_service=\"client\",\
        source_canonical_revision=\"v1\",source_workload_namespace=\"default\",\
        source_principal=\"spiffe://cluster.local/ns/default/sa/client\",source_app=\"client\",source_version=\"v1\",\
        source_cluster=\"Kubernetes\",destination_workload=\"reviews-v2\",destination_workload_namespace=\"default\",\
        destination_principal=\"spiffe://cluster.local/ns/default/sa/reviews\",destination_app=\"reviews\",\
        destination_version=\"v2\",destination_service=\"reviews.default.svc.cluster.local\",\
        destination_canonical_service=\"reviews\",destination_canonical_revision=\"v2\",\
        destination_service_name=\"reviews\",destination_service_namespace=\"default\",\
        destination_cluster=\"Kubernetes\",request_protocol=\"http\",response_code=\"200\",\
        grpc_response_status=\"\",response_flags=\"-\",connection_security_policy=\"mutual_tls\"";
    for line in [
        format!("# TYPE istio_requests_total counter\nistio_requests_total{{{labels}}} 2\n"),
        format!("istio_request_duration_milliseconds_bucket{{{labels},le=\"5\"}} 0\n"),
        format!("istio_request_duration_milliseconds_bucket{{{labels},le=\"10\"}} 2\n"),
        format!("istio_request_duration_milliseconds_bucket{{{labels},le=\"+Inf\"}} 2\n"),
        format!("istio_request_duration_milliseconds_sum{{{labels}}} 14.500\n"),
        format!("istio_request_duration_milliseconds_count{{{labels}}} 2\n"),
        format!("istio_request_bytes_sum{{{labels}}} 200\n"),
        format!("istio_response_bytes_bucket{{{labels},le=\"2500\"}} 0\n"),
        format!("istio_response_bytes_bucket{{{labels},le=\"5000\"}} 2\n"),
        "istio_build{component=\"proxy\",tag=\"".to_owned(),
        "process_resident_memory_bytes ".to_owned(),
        "mesh_telemetry_label_sets 2\n".to_owned(),
    ] {
        assert!(text.contains(&line), "{line} in {text}");
    }
    parse(&text);
}

#[test]
fn missing_values_are_istios() {
    let telemetry = telemetry(Limits::default());
    let count = |key| {
        let took = Duration::from_millis(1);
        telemetry
            .edge(key)
            .request(RequestProtocol::Http, 503, None, ResponseFlags::UH, took, 0, 0);
    };
    let me = workload("me", &[]);
    let peer: SpiffeId = "spiffe://td/ns/shop/sa/x".parse().unwrap();
    // A server that knows its peer by certificate only, at a port that no service declares.
    count(EdgeKey {
        destination: Some(&me),
        source_principal: Some(&peer),
        service: EdgeService::InboundPassthrough,
        security: Security::None,
        ..unknown_key(Reporter::Destination)
    });
    // A client to somewhere outside; whatever it says of security, it reports unknown.
    count(EdgeKey {
        source: Some(&me),
        service: EdgeService::Passthrough,
        security: Security::MutualTls,
        ..unknown_key(Reporter::Source)
    });
    let page = page(&telemetry);
    let of = |reporter: &str| {
        let mut samples = page["istio_requests_total"].iter();
        samples.find(|sample| sample.label("reporter") == reporter).unwrap()
    };
    for (reporter, label, value) in [
        ("destination", "source_workload", "unknown"),
        ("destination", "source_workload_namespace", "shop"),
        ("destination", "source_canonical_revision", "latest"),
        ("destination", "source_app", "unknown"),
        ("destination", "source_principal", "spiffe://td/ns/shop/sa/x"),
        ("destination", "destination_principal", "unknown"),
        ("destination", "destination_service", "me"),
        ("destination", "destination_service_name", "InboundPassthroughCluster"),
        ("destination", "destination_service_namespace", "default"),
        ("destination", "destination_canonical_service", "me"),
        ("destination", "destination_canonical_revision", "latest"),
        ("destination", "destination_version", "unknown"),
        ("destination", "connection_security_policy", "none"),
        ("destination", "response_flags", "UH"),
        ("source", "source_workload", "me"),
        ("source", "destination_workload", "unknown"),
        ("source", "destination_workload_namespace", "unknown"),
        ("source", "destination_service", "unknown"),
        ("source", "destination_service_name", "PassthroughCluster"),
        ("source", "destination_service_namespace", "unknown"),
        ("source", "destination_canonical_revision", "latest"),
        ("source", "destination_cluster", "unknown"),
        ("source", "connection_security_policy", "unknown"),
    ] {
        assert_eq!(of(reporter).label(label), value, "{reporter} {label}");
    }
}

#[test]
fn grpc_and_tcp() {
    let telemetry = telemetry(Limits::default());
    let edge = telemetry.edge(unknown_key(Reporter::Source));
    let took = Duration::from_millis(1);
    edge.request(RequestProtocol::Grpc, 200, Some(14), ResponseFlags::NONE, took, 1, 1);
    edge.request(RequestProtocol::Grpc, 200, None, ResponseFlags::DC, took, 1, 1);
    edge.grpc_messages(3, 4);
    edge.tcp_opened();
    edge.tcp_bytes(10, 20);
    edge.tcp_closed(ResponseFlags::UF);
    let page = page(&telemetry);
    let requests = &page["istio_requests_total"];
    assert_eq!(requests[0].label("request_protocol"), "grpc");
    assert_eq!(requests[0].label("grpc_response_status"), "14");
    assert_eq!(requests[1].label("grpc_response_status"), "");
    for (name, value) in [
        ("istio_request_messages_total", 3.0),
        ("istio_response_messages_total", 4.0),
        ("istio_tcp_sent_bytes_total", 10.0),
        ("istio_tcp_received_bytes_total", 20.0),
        ("istio_tcp_connections_opened_total", 1.0),
    ] {
        assert_eq!(page[name][0].value, value, "{name}");
    }
    let messages = &page["istio_request_messages_total"][0].labels;
    assert_eq!(messages.last().unwrap().0, "destination_cluster");
    let tcp: Vec<&str> = page["istio_tcp_sent_bytes_total"][0]
        .labels
        .iter()
        .map(|(name, _)| &**name)
        .collect();
    assert_eq!(
        tcp[20..],
        ["request_protocol", "response_flags", "connection_security_policy"]
    );
    let closed = &page["istio_tcp_connections_closed_total"];
    let closed: Vec<_> = closed
        .iter()
        .map(|sample| (sample.label("response_flags"), sample.value))
        .collect();
    assert_eq!(closed, [("-", 0.0), ("UF", 1.0)]);
}

#[test]
fn counts_are_exact_under_contention() {
    let telemetry = telemetry(Limits::default());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let telemetry = &telemetry;
            scope.spawn(move || {
                let edge = telemetry.edge(unknown_key(Reporter::Source));
                for number in 0..5_000_u16 {
                    let took = Duration::from_millis(2);
                    edge.request(
                        RequestProtocol::Http,
                        200 + number % 5,
                        None,
                        ResponseFlags::NONE,
                        took,
                        3,
                        7,
                    );
                }
            });
        }
    });
    let page = page(&telemetry);
    let sum = |name: &str| page[name].iter().map(|sample| sample.value).sum::<f64>();
    assert_eq!(page["istio_requests_total"].len(), 5);
    assert_eq!(sum("istio_requests_total"), 40_000.0);
    assert_eq!(sum("istio_request_duration_milliseconds_sum"), 80_000.0);
    assert_eq!(sum("istio_request_bytes_sum"), 120_000.0);
    assert_eq!(sum("istio_response_bytes_sum"), 280_000.0);
}

#[test]
fn what_the_bound_keeps_out_is_counted_as_other() {
    let limits = Limits {
        label_sets: 3,
        ..Limits::default()
    };
    let telemetry = telemetry(limits);
    let took = Duration::from_millis(1);
    let edge = telemetry.edge(unknown_key(Reporter::Source));
    for code in 200..206 {
        edge.request(RequestProtocol::Http, code, None, ResponseFlags::NONE, took, 0, 0);
    }
    let other = telemetry.edge(unknown_key(Reporter::Destination));
    other.request(RequestProtocol::Http, 200, None, ResponseFlags::NONE, took, 0, 0);
    other.grpc_messages(1, 1);
    other.tcp_opened();
    let page = page(&telemetry);
    let requests = &page["istio_requests_total"];
    let count = |reporter: &str, code: &str| {
        let matches = |sample: &&Sample| sample.label("reporter") == reporter && sample.label("response_code") == code;
        requests.iter().find(matches).map(|sample| sample.value)
    };
    assert_eq!(requests.len(), 4);
    assert_eq!(count("source", "200"), Some(1.0));
    assert_eq!(count("source", "_other"), Some(4.0));
    assert_eq!(count("destination", "_other"), Some(1.0));
    let own: Vec<&String> = requests[0].labels.iter().map(|(name, _)| name).collect();
    let overflow: Vec<&String> = requests[3].labels.iter().map(|(name, _)| name).collect();
    assert_eq!(own, overflow, "the same labels in the same order");
    assert_eq!(page["mesh_telemetry_series_dropped_total"][0].value, 6.0);
    assert_eq!(page["mesh_telemetry_label_sets"][0].value, 3.0);
    drop((edge, other));
    // A client that goes away gives its place back once it is idle.
    sweep(&mut lock(&telemetry.edges), 10, 0);
    assert_eq!(telemetry.shared.taken.load(Relaxed), 0);
}

#[test]
fn idle_series_disappear_and_come_back() {
    let telemetry = telemetry(Limits::default());
    let took = Duration::from_millis(1);
    let key = unknown_key(Reporter::Source);
    let edge = telemetry.edge(key);
    let request = |code| edge.request(RequestProtocol::Http, code, None, ResponseFlags::NONE, took, 0, 0);
    let codes = || {
        let page = page(&telemetry);
        let requests = page.get("istio_requests_total").map_or(&[][..], |samples| samples);
        requests
            .iter()
            .map(|sample| sample.label("response_code").to_owned())
            .collect::<Vec<_>>()
    };
    let sweep_at = |now| sweep(&mut lock(&telemetry.edges), now, 3_600);
    request(200);
    request(404);
    sweep_at(100);
    request(200);
    sweep_at(3_650);
    assert_eq!(codes(), ["200", "404"]);
    sweep_at(3_700);
    assert_eq!(codes(), ["200"], "404 was idle for an hour");
    sweep_at(7_250);
    assert_eq!(codes(), Vec::<String>::new());
    request(404);
    assert_eq!(codes(), ["404"], "whoever holds the edge goes on counting");
    assert!(Arc::ptr_eq(&edge, &telemetry.edge(key)), "an edge that is held is kept");
}

#[test]
fn label_values_are_escaped() {
    let telemetry = telemetry(Limits::default());
    let odd = workload("a\"b\\c\nd", &[]);
    let key = EdgeKey {
        source: Some(&odd),
        ..unknown_key(Reporter::Source)
    };
    telemetry.edge(key).tcp_opened();
    assert_eq!(
        page(&telemetry)["istio_tcp_connections_opened_total"][0].label("source_workload"),
        "a\"b\\c\nd"
    );
}

#[test]
fn settings_change_while_running_and_wrong_ones_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| Arc::<str>::from(directory.path().join(name).to_str().unwrap());
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    let telemetry = telemetry(Limits::default());
    let trace = TraceContext::none(SpanKind::Client);
    let record = LogRecord {
        bytes_sent: 5,
        ..LogRecord::default()
    };
    let configure = |path: Arc<str>, format: Option<&str>| {
        let format = AccessLogFormat::Text(format.map(Into::into));
        telemetry.configure(&MeshSettings {
            access_log: Some(model::AccessLog { path, format }),
            ..settings()
        })
    };
    telemetry.configure(&settings()).unwrap();
    assert!(!telemetry.wants_record(&trace));
    telemetry.finish(&trace, "", &record);

    configure(path("a"), Some("one %BYTES_SENT%")).unwrap();
    assert!(telemetry.wants_record(&trace));
    telemetry.finish(&trace, "", &record);
    configure(path("a"), Some("two %BYTES_SENT%")).unwrap();
    telemetry.finish(&trace, "", &record);
    telemetry.access_log().flush(Duration::from_secs(10));
    assert_eq!(read("a"), "one 5\ntwo 5\n");

    let error = configure(path("a"), Some("%NO%")).unwrap_err().to_string();
    assert!(error.contains("`%NO%`"), "{error}");
    let error = configure(path("no/such/directory"), None).unwrap_err().to_string();
    assert!(error.contains("no/such/directory"), "{error}");
    let error = telemetry.configure(&MeshSettings {
        tracing: Some(model::Tracing {
            endpoint: "https://collector:4317".into(),
            sampling: model::Percentage::ALL,
        }),
        ..settings()
    });
    assert!(error.unwrap_err().to_string().contains("https://collector:4317"));
    telemetry.finish(&trace, "", &record);
    telemetry.access_log().flush(Duration::from_secs(10));
    assert_eq!(read("a"), "one 5\ntwo 5\ntwo 5\n");

    configure(path("b"), Some("three")).unwrap();
    telemetry.finish(&trace, "", &record);
    telemetry.access_log().flush(Duration::from_secs(10));
    assert_eq!((read("a").lines().count(), read("b")), (3, "three\n".to_owned()));
}

#[test]
fn only_headers_that_are_printed_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let telemetry = telemetry(Limits::default());
    let trace = TraceContext::none(SpanKind::Client);
    let headers: HeaderMap = [("x-a", "1"), ("x-b", "2"), ("server", "s")]
        .into_iter()
        .map(|(name, value)| {
            (
                http::HeaderName::from_static(name),
                http::HeaderValue::from_static(value),
            )
        })
        .collect();
    let [a, b, server] = ["x-a", "x-b", "server"].map(http::HeaderName::from_static);
    assert!(telemetry.capture_request(&trace, &headers).get(&a).is_none());
    let format = AccessLogFormat::Text(Some("%REQ(X-A)% %RESP(SERVER)% %TRAILER(X-B)%".into()));
    let path = directory.path().join("log").to_str().unwrap().into();
    telemetry
        .configure(&MeshSettings {
            access_log: Some(model::AccessLog { path, format }),
            ..settings()
        })
        .unwrap();
    let request = telemetry.capture_request(&trace, &headers);
    assert_eq!(
        (request.get(&a).unwrap(), request.get(&b)),
        (&http::HeaderValue::from_static("1"), None)
    );
    assert!(telemetry.capture_response(&headers).get(&server).is_some());
    assert!(telemetry.capture_trailers(&headers).get(&b).is_some());
}
