//! DestinationRule: which rules hold, how they merge, and what their blocks say.

use std::time::Duration;

use mesh_api::model::{
    Balancer, ClientTls, ConnectionPool, EndpointSource, H2Upgrade, HashKey, HashPolicy, Missing, OutlierDetection,
    RetryBudget, RetryCondition, RetryPolicy, TcpKeepalive,
};

use super::*;

fn rule(name: &str, meta: &str, spec: &str) -> String {
    format!(
        "\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}{meta}}}\nspec: {spec}\n"
    )
}

fn policy(policy: &str) -> Mesh {
    Mesh::shop(&rule(
        "policy",
        "",
        &format!("{{host: reviews, trafficPolicy: {policy}}}"),
    ))
}

fn cluster(mesh: &Mesh) -> Cluster {
    (*mesh.destination("reviews:80").clusters[0]).clone()
}

/// The cluster of a subset, through a VirtualService that sends everything there.
fn subset_cluster(mesh: &mut Mesh, subset: &str) -> (Cluster, Forward) {
    mesh.add(&format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: to-subset}}\nspec: {{hosts: [reviews], http: [{{route: [{{destination: {{host: reviews, subset: {subset}}}}}]}}]}}\n"
    ));
    let destination = mesh.destination("reviews:80");
    let forward = forward(&destination.routes[0]).clone();
    ((*destination.clusters[forward.clusters[0].cluster]).clone(), forward)
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn connection_pool() {
    let default = ConnectionPool::default();
    let rows = [
        ("{}", default.clone()),
        (
            "{tcp: {maxConnections: 100}, http: {http1MaxPendingRequests: 50, http2MaxRequests: 100}}",
            ConnectionPool {
                max_connections: 100,
                max_pending_requests: 50,
                max_requests: 100,
                ..default.clone()
            },
        ),
        // Zero is not set.
        (
            "{tcp: {maxConnections: 0}, http: {http1MaxPendingRequests: 0, http2MaxRequests: 0, maxRetries: 0, maxRequestsPerConnection: 0}}",
            default.clone(),
        ),
        (
            "{http: {maxRequestsPerConnection: 1, maxRetries: 7, idleTimeout: 5s, maxConcurrentStreams: 9, h2UpgradePolicy: UPGRADE, useClientProtocol: true}}",
            ConnectionPool {
                max_requests_per_connection: Some(1),
                max_retries: 7,
                http_idle_timeout: 5 * SECOND,
                max_concurrent_streams: Some(9),
                h2_upgrade: H2Upgrade::Upgrade,
                use_client_protocol: true,
                ..default.clone()
            },
        ),
        (
            "{tcp: {connectTimeout: 3s, maxConnectionDuration: 1m, idleTimeout: 2s, tcpKeepalive: {probes: 3, time: 4s, interval: 5s}}}",
            ConnectionPool {
                connect_timeout: 3 * SECOND,
                max_connection_duration: Some(60 * SECOND),
                tcp_idle_timeout: Some(2 * SECOND),
                keepalive: Some(TcpKeepalive {
                    probes: Some(3),
                    time: Some(4 * SECOND),
                    interval: Some(5 * SECOND),
                }),
                ..default.clone()
            },
        ),
        (
            "{tcp: {idleTimeout: 0s}}",
            ConnectionPool {
                tcp_idle_timeout: None,
                ..default.clone()
            },
        ),
    ];
    for (written, expected) in rows {
        assert_eq!(
            cluster(&policy(&format!("{{connectionPool: {written}}}"))).pool,
            expected,
            "{written}"
        );
    }
}

#[test]
fn outlier_detection() {
    let default = OutlierDetection {
        consecutive_5xx: Some(5),
        consecutive_gateway_errors: None,
        consecutive_local_origin_failures: None,
        interval: 10 * SECOND,
        base_ejection_time: 30 * SECOND,
        max_ejection_percent: 10,
    };
    assert_eq!(cluster(&Mesh::shop("")).outlier, None, "off unless a rule has it");
    let rows = [
        ("{}", default.clone()),
        (
            "{consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 2s, maxEjectionPercent: 50}",
            OutlierDetection {
                consecutive_5xx: Some(3),
                interval: SECOND,
                base_ejection_time: 2 * SECOND,
                max_ejection_percent: 50,
                ..default.clone()
            },
        ),
        (
            "{consecutive5xxErrors: 0, consecutiveGatewayErrors: 2}",
            OutlierDetection {
                consecutive_5xx: None,
                consecutive_gateway_errors: Some(2),
                ..default.clone()
            },
        ),
        (
            "{splitExternalLocalOriginErrors: true}",
            OutlierDetection {
                consecutive_local_origin_failures: Some(5),
                ..default.clone()
            },
        ),
        ("{consecutiveLocalOriginFailures: 2}", default.clone()),
        ("{maxEjectionPercent: 0}", default.clone()),
    ];
    for (written, expected) in rows {
        let mesh = policy(&format!("{{outlierDetection: {written}}}"));
        assert_eq!(cluster(&mesh).outlier, Some(expected), "{written}");
    }
}

#[test]
fn balancers() {
    let ring = |key, size| Balancer::RingHash {
        hash: HashPolicy { key },
        minimum_ring_size: size,
    };
    let rows = [
        ("{simple: LEAST_REQUEST}", Balancer::LeastRequest),
        ("{simple: LEAST_CONN}", Balancer::LeastRequest),
        ("{simple: UNSPECIFIED}", Balancer::LeastRequest),
        ("{simple: ROUND_ROBIN}", Balancer::RoundRobin),
        ("{simple: RANDOM}", Balancer::Random),
        (
            "{consistentHash: {httpHeaderName: X-User}}",
            ring(HashKey::Header("x-user".into()), 1024),
        ),
        (
            "{consistentHash: {httpCookie: {name: c, path: /p, ttl: 0s}, ringHash: {minimumRingSize: 16}}}",
            ring(
                HashKey::Cookie {
                    name: "c".into(),
                    path: Some("/p".into()),
                    ttl: Some(Duration::ZERO),
                },
                16,
            ),
        ),
        (
            "{consistentHash: {useSourceIp: true, minimumRingSize: 8}}",
            ring(HashKey::SourceIp, 8),
        ),
        (
            "{consistentHash: {httpQueryParameterName: q}}",
            ring(HashKey::QueryParameter("q".into()), 1024),
        ),
        ("{consistentHash: {}}", Balancer::Random),
    ];
    for (written, expected) in rows {
        assert_eq!(
            cluster(&policy(&format!("{{loadBalancer: {written}}}"))).balancer,
            expected,
            "{written}"
        );
    }
    let mesh = policy("{loadBalancer: {simple: PASSTHROUGH}}");
    assert_eq!(cluster(&mesh).endpoints, EndpointSource::Passthrough);
}

#[test]
fn tls() {
    let istio = |names: &[&str], sni: Option<&str>| ClientTls::IstioMutual {
        subject_alt_names: names.iter().map(|name| (*name).into()).collect(),
        sni: sni.map(Into::into),
    };
    for (written, expected) in [
        ("{mode: DISABLE}", ClientTls::Disable),
        ("{}", ClientTls::Disable),
        ("{mode: ISTIO_MUTUAL}", istio(&[], None)),
        (
            "{mode: ISTIO_MUTUAL, subjectAltNames: [a], sni: b}",
            istio(&["a"], Some("b")),
        ),
    ] {
        assert_eq!(
            cluster(&policy(&format!("{{tls: {written}}}"))).tls,
            expected,
            "{written}"
        );
    }
    for mode in ["SIMPLE", "MUTUAL"] {
        let cluster = cluster(&policy(&format!("{{tls: {{mode: {mode}}}}}")));
        assert_eq!(
            cluster.endpoints,
            EndpointSource::Missing(Missing::Tls),
            "never plaintext instead"
        );
    }
}

#[test]
fn retry_budget() {
    let budget = |percent, min_concurrency| {
        Some(RetryBudget {
            percent,
            min_concurrency,
        })
    };
    assert_eq!(cluster(&policy("{retryBudget: {}}")).retry_budget, budget(20.0, 3));
    assert_eq!(
        cluster(&policy("{retryBudget: {percent: 50, minRetryConcurrency: 1}}")).retry_budget,
        budget(50.0, 1)
    );
}

/// Retry and timeout of the first route, with DestinationRule and VirtualService as written.
fn resilience(rule: &str, own: &str) -> (Option<RetryPolicy>, Option<Duration>) {
    let mut mesh = policy(rule);
    if !own.is_empty() {
        mesh.add(&format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: reviews}}\nspec: {{hosts: [reviews], http: [{{route: [{{destination: {{host: reviews}}}}], {own}}}]}}\n"
        ));
    }
    let forward = forward(&mesh.destination("reviews:80").routes[0]).clone();
    (forward.retry, forward.timeout)
}

#[test]
fn a_virtual_services_retries_win_over_the_rules_and_those_over_istios() {
    let default = RetryPolicy::istio_default();
    let with = |attempts| {
        Some(RetryPolicy {
            attempts,
            ..default.clone()
        })
    };
    // (DestinationRule's, VirtualService's, expected)
    let rows = [
        ("{}", "", Some(default.clone())),
        ("{}", "match: [{uri: {prefix: /}}]", Some(default.clone())),
        ("{}", "retries: {attempts: 0}", None),
        ("{}", "retries: {attempts: 5}", with(5)),
        // As in Istio, no attempts are none.
        ("{}", "retries: {perTryTimeout: 1s}", None),
        ("{retryPolicy: {attempts: 3}}", "", with(3)),
        ("{retryPolicy: {attempts: 3}}", "match: [{uri: {prefix: /}}]", with(3)),
        ("{retryPolicy: {attempts: 3}}", "retries: {attempts: 1}", with(1)),
        ("{retryPolicy: {attempts: 3}}", "retries: {attempts: 0}", None),
        ("{retryPolicy: {attempts: 0}}", "", None),
        ("{retryPolicy: {}}", "", Some(default.clone())),
        (
            "{retryPolicy: {attempts: 3, perTryTimeout: 2s, retryOn: '5xx,connect-failure,refused-stream'}}",
            "",
            Some(RetryPolicy {
                attempts: 3,
                per_try_timeout: Some(2 * SECOND),
                retry_on: vec![
                    RetryCondition::ServerError,
                    RetryCondition::ConnectFailure,
                    RetryCondition::RefusedStream,
                ],
                ..default.clone()
            }),
        ),
        (
            "{}",
            "retries: {attempts: 1, perTryTimeout: 1s, retryOn: 'gateway-error, 429,reset,5xx,5xx,retriable-status-codes', backoff: 1s, retryIgnorePreviousHosts: false}",
            Some(RetryPolicy {
                attempts: 1,
                per_try_timeout: Some(SECOND),
                retry_on: vec![
                    RetryCondition::GatewayError,
                    RetryCondition::Status(http::StatusCode::TOO_MANY_REQUESTS),
                    RetryCondition::Reset,
                    RetryCondition::ServerError,
                ],
                backoff: SECOND,
                ignore_previous_hosts: false,
            }),
        ),
    ];
    for (rule, own, expected) in rows {
        assert_eq!(resilience(rule, own).0, expected, "{rule} {own}");
    }
}

#[test]
fn a_virtual_services_timeout_wins_over_the_rules() {
    for (rule, own, expected) in [
        ("{}", "", None),
        ("{timeout: {http: 5s}}", "", Some(5 * SECOND)),
        ("{timeout: {http: 5s}}", "match: [{uri: {prefix: /}}]", Some(5 * SECOND)),
        ("{timeout: {http: 5s}}", "timeout: 2s", Some(2 * SECOND)),
        ("{timeout: {http: 5s}}", "timeout: 0s", None),
        ("{timeout: {http: 0s}}", "", None),
        ("{timeout: {connectTimeout: 3s}}", "", None),
    ] {
        assert_eq!(resilience(rule, own).1, expected, "{rule} {own}");
    }
}

#[test]
fn the_pools_connect_timeout_wins_over_the_timeout_blocks() {
    let mesh_config =
        "\n---\napiVersion: mesh.dev/v1\nkind: MeshConfig\nmetadata: {name: mesh}\nspec: {connectTimeout: 1s}\n";
    for (written, more, expected) in [
        ("{timeout: {connectTimeout: 3s}}", "", 3),
        (
            "{timeout: {connectTimeout: 3s}, connectionPool: {tcp: {connectTimeout: 4s}}}",
            "",
            4,
        ),
        (
            "{timeout: {connectTimeout: 3s}, connectionPool: {tcp: {maxConnections: 4}}}",
            "",
            3,
        ),
        ("{}", "", 10),
        ("{}", mesh_config, 1),
        ("{timeout: {connectTimeout: 3s}}", mesh_config, 3),
    ] {
        let mut mesh = policy(written);
        mesh.add(more);
        assert_eq!(
            cluster(&mesh).pool.connect_timeout,
            expected * SECOND,
            "{written} {more}"
        );
    }
}

#[test]
fn rules_of_one_host_merge_block_by_block_from_the_oldest() {
    let mut mesh = Mesh::shop(&[
        rule("b", ", creationTimestamp: '2026-01-02T00:00:00Z'", "{host: reviews, trafficPolicy: {loadBalancer: {simple: RANDOM}, outlierDetection: {}}}"),
        rule("a", ", creationTimestamp: '2026-01-03T00:00:00Z'", "{host: reviews.default.svc.cluster.local, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}, timeout: {http: 1s}}, subsets: [{name: late, labels: {version: v2}}, {name: v1, labels: {never: seen}}]}"),
        rule("c", ", creationTimestamp: '2026-01-01T00:00:00Z'", "{host: reviews, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}, retryPolicy: {attempts: 9}}}"),
        // Not of the same namespace: it is not merged.
        rule("d", ", namespace: mesh-system", "{host: reviews.default.svc.cluster.local, trafficPolicy: {tls: {mode: DISABLE}}}"),
    ]
    .concat());
    let whole = cluster(&mesh);
    assert_eq!(whole.balancer, Balancer::Random, "of the older rule");
    assert!(whole.outlier.is_some());
    assert_eq!(whole.pool.max_connections, 1);
    assert_eq!(whole.tls, ClientTls::Auto);
    let origins: Vec<_> = whole.origins.iter().map(ToString::to_string).collect();
    assert_eq!(
        origins,
        [
            "DestinationRule default/a",
            "DestinationRule default/b",
            "DestinationRule default/c"
        ]
    );

    // The merged policy is for every subset, whichever rule defines it.
    for subset in ["v1", "late"] {
        let (of_subset, forward) = subset_cluster(&mut mesh, subset);
        assert_eq!(of_subset.balancer, Balancer::Random, "{subset}");
        assert_eq!(of_subset.pool.max_connections, 1, "{subset}");
        assert_eq!(forward.retry.unwrap().attempts, 9, "{subset}");
        assert_eq!(forward.timeout, Some(SECOND), "{subset}");
        let version = if subset == "v1" { "v1" } else { "v2" };
        assert_eq!(&*of_subset.selector["version"], version);
    }
}

#[test]
fn without_timestamps_rules_are_in_order_of_their_names() {
    let mesh = Mesh::shop(
        &[
            rule(
                "b",
                "",
                "{host: reviews, trafficPolicy: {loadBalancer: {simple: RANDOM}}}",
            ),
            rule(
                "a",
                "",
                "{host: reviews, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}",
            ),
        ]
        .concat(),
    );
    assert_eq!(cluster(&mesh).balancer, Balancer::RoundRobin);
}

#[test]
fn a_subset_overrides_per_block_and_a_port_replaces_everything() {
    let spec = "{host: reviews, trafficPolicy: {loadBalancer: {simple: RANDOM}, connectionPool: {tcp: {maxConnections: 1}}, timeout: {http: 9s}, portLevelSettings: PORTS}, subsets: [{name: own, labels: {version: v1}, trafficPolicy: {connectionPool: {tcp: {maxConnections: 2}}, portLevelSettings: SUBSET}}]}";
    let at =
        |ports: &str, subset: &str| Mesh::shop(&rule("p", "", &spec.replace("PORTS", ports).replace("SUBSET", subset)));
    let port = |number: u16, connections: u32| {
        format!("[{{port: {{number: {number}}}, connectionPool: {{tcp: {{maxConnections: {connections}}}}}}}]")
    };
    // (host's ports, subset's ports, of the host: balancer random? connections, timeout; of the subset: the same)
    let rows = [
        ("[]".to_owned(), "[]".to_owned(), (true, 1, Some(9)), (true, 2, Some(9))),
        (port(80, 3), "[]".to_owned(), (false, 3, None), (false, 2, None)),
        (port(9080, 3), "[]".to_owned(), (true, 1, Some(9)), (true, 2, Some(9))),
        ("[]".to_owned(), port(80, 4), (true, 1, Some(9)), (false, 4, None)),
        (port(80, 3), port(80, 4), (false, 3, None), (false, 4, None)),
    ];
    for (ports, subset, host, own) in rows {
        let mut mesh = at(&ports, &subset);
        let facts = |cluster: &Cluster, forward: &Forward| {
            (
                cluster.balancer == Balancer::Random,
                cluster.pool.max_connections,
                forward.timeout.map(|t| t.as_secs()),
            )
        };
        let destination = mesh.destination("reviews:80");
        assert_eq!(
            facts(&destination.clusters[0], forward(&destination.routes[0])),
            host,
            "{ports} {subset}"
        );
        let (cluster, forward) = subset_cluster(&mut mesh, "own");
        assert_eq!(facts(&cluster, &forward), own, "subset: {ports} {subset}");
    }
}

#[test]
fn rules_are_looked_up_from_the_client_to_the_root() {
    let random = "trafficPolicy: {loadBalancer: {simple: RANDOM}}";
    let robin = "trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}";
    let host = "host: reviews.default.svc.cluster.local";
    let in_ns = |namespace: &str| format!(", namespace: {namespace}");
    // (sentence, rules, balancer for client.default, for someone.other)
    let (none, r, rr) = (Balancer::LeastRequest, Balancer::Random, Balancer::RoundRobin);
    let rows: [(&str, Vec<String>, &Balancer, &Balancer); 11] = [
        (
            "of the service's namespace",
            vec![rule("p", "", &format!("{{{host}, {random}}}"))],
            &r,
            &r,
        ),
        (
            "of the client's namespace first",
            vec![
                rule("p", "", &format!("{{{host}, {random}}}")),
                rule("p", &in_ns("other"), &format!("{{{host}, {robin}}}")),
            ],
            &r,
            &rr,
        ),
        (
            "of the root namespace last",
            vec![rule("p", &in_ns("mesh-system"), &format!("{{{host}, {random}}}"))],
            &r,
            &r,
        ),
        (
            "of another namespace never",
            vec![rule("p", &in_ns("third"), &format!("{{{host}, {random}}}"))],
            &none,
            &none,
        ),
        (
            "not exported, only for its own namespace",
            vec![rule("p", "", &format!("{{{host}, exportTo: ['.'], {random}}}"))],
            &r,
            &none,
        ),
        (
            "exported by name",
            vec![rule("p", "", &format!("{{{host}, exportTo: [other], {random}}}"))],
            &none,
            &r,
        ),
        (
            "the most specific host",
            vec![
                rule("a", "", &format!("{{host: '*.svc.cluster.local', {robin}}}")),
                rule("b", "", &format!("{{host: '*.default.svc.cluster.local', {random}}}")),
            ],
            &r,
            &r,
        ),
        (
            "a namespace with any hit decides, however wide",
            vec![
                rule("a", "", &format!("{{{host}, {random}}}")),
                rule("b", &in_ns("other"), &format!("{{host: '*.cluster.local', {robin}}}")),
            ],
            &r,
            &rr,
        ),
        (
            "for workloads that it selects",
            vec![rule(
                "p",
                "",
                &format!("{{{host}, workloadSelector: {{matchLabels: {{tier: front}}}}, {random}}}"),
            )],
            &r,
            &none,
        ),
        (
            "not for others",
            vec![rule(
                "p",
                "",
                &format!("{{{host}, workloadSelector: {{matchLabels: {{tier: back}}}}, {random}}}"),
            )],
            &none,
            &none,
        ),
        (
            "a short name is of the rule's namespace",
            vec![rule("p", &in_ns("other"), &format!("{{host: reviews, {random}}}"))],
            &none,
            &none,
        ),
    ];
    for (sentence, rules, for_default, for_other) in rows {
        let mut mesh = Mesh::shop(&rules.concat());
        // The starter's rule, which only has subsets, would hide what is wider than it.
        let starter = objects(super::SHOP).pop().unwrap().reference();
        mesh.world.apply(&Event::Deleted(starter));
        for (client, expected) in [("client.default", for_default), ("someone.other", for_other)] {
            let destination = mesh.destination_for(client, "reviews.default:80").unwrap();
            assert_eq!(&destination.clusters[0].balancer, expected, "{sentence}: {client}");
        }
    }
}
