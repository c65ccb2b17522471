//! Generators of destinations, their routes and clusters.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use proptest::collection::{btree_map, vec};
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn header_ops() -> impl Strategy<Value = HeaderOps> {
    let fields = || vec((header_name(), header_value()), 0..2);
    let names = || vec(header_name(), 0..2);
    let some = (
        fields(),
        fields(),
        names(),
        fields(),
        fields(),
        names(),
        of(header_value()),
    )
        .prop_map(
            |(request_set, request_add, request_remove, response_set, response_add, response_remove, authority)| {
                HeaderOps {
                    request_set,
                    request_add,
                    request_remove,
                    response_set,
                    response_add,
                    response_remove,
                    authority,
                }
            },
        );
    prop_oneof![Just(HeaderOps::default()), some]
}

fn http_match() -> impl Strategy<Value = HttpMatch> {
    let header = || (header_name(), text_match()).prop_map(|(name, value)| HeaderMatch { name, value });
    (
        of(text_match()),
        of(text_match()),
        of(text_match()),
        of(text_match()),
        vec(header(), 0..3),
        vec(header(), 0..2),
        vec((text(), text_match()), 0..2),
    )
        .prop_map(
            |(path, scheme, method, authority, headers, without_headers, query)| HttpMatch {
                path,
                scheme,
                method,
                authority,
                headers,
                without_headers,
                query,
            },
        )
}

fn leg(clusters: usize) -> impl Strategy<Value = WeightedCluster> {
    (0..clusters, 1..=u32::MAX, header_ops()).prop_map(|(cluster, weight, headers)| WeightedCluster {
        cluster,
        weight,
        headers,
    })
}

fn retry() -> impl Strategy<Value = RetryPolicy> {
    let condition = prop_oneof![
        select(vec![
            RetryCondition::ServerError,
            RetryCondition::GatewayError,
            RetryCondition::Reset,
            RetryCondition::ResetBeforeRequest,
            RetryCondition::ConnectFailure,
            RetryCondition::Retriable4xx,
            RetryCondition::RefusedStream,
            RetryCondition::GrpcCancelled,
            RetryCondition::GrpcDeadlineExceeded,
            RetryCondition::GrpcInternal,
            RetryCondition::GrpcResourceExhausted,
            RetryCondition::GrpcUnavailable,
            RetryCondition::EnvoyRateLimited,
        ]),
        (100..1000_u16).prop_map(|status| RetryCondition::Status(StatusCode::from_u16(status).unwrap())),
    ];
    (
        any::<u32>(),
        of(duration()),
        vec(condition, 0..5),
        duration(),
        any::<bool>(),
    )
        .prop_map(
            |(attempts, per_try_timeout, retry_on, backoff, ignore_previous_hosts)| RetryPolicy {
                attempts,
                per_try_timeout,
                retry_on,
                backoff,
                ignore_previous_hosts,
            },
        )
}

fn forward(clusters: usize) -> impl Strategy<Value = Forward> {
    let regex = select(vec![("a(.)", "\\1b"), ("^/v1", "$0")])
        .prop_map(|(source, replacement)| PathRewrite::new(source, replacement).unwrap());
    let rewrite = (of(text()), of(regex), of(header_value())).prop_map(|(uri, regex, authority)| Rewrite {
        uri,
        regex,
        authority,
    });
    let mirror = (0..clusters, share()).prop_map(|(cluster, share)| Mirror { cluster, share });
    (
        vec(leg(clusters), 1..4),
        of(duration()),
        of(retry()),
        rewrite,
        vec(mirror, 0..2),
    )
        .prop_map(|(clusters, timeout, retry, rewrite, mirrors)| Forward {
            clusters: clusters.into(),
            timeout,
            retry,
            rewrite,
            mirrors,
        })
}

fn redirect() -> impl Strategy<Value = Redirect> {
    let redirect_port = prop_oneof![
        port().prop_map(RedirectPort::Number),
        Just(RedirectPort::FromProtocolDefault),
        Just(RedirectPort::FromRequestPort),
    ];
    (
        select(vec![301, 302, 303, 307, 308]),
        of(text()),
        of(text()),
        of(text()),
        of(text()),
        of(redirect_port),
    )
        .prop_map(|(status, uri, prefix_rewrite, authority, scheme, port)| Redirect {
            status: StatusCode::from_u16(status).unwrap(),
            uri,
            prefix_rewrite,
            authority,
            scheme,
            port,
        })
}

fn route(clusters: usize) -> impl Strategy<Value = HttpRoute> {
    let action = prop_oneof![
        forward(clusters).prop_map(|forward| RouteAction::Forward(Box::new(forward))),
        redirect().prop_map(|redirect| RouteAction::Redirect(Box::new(redirect))),
        (status(), vec(any::<u8>(), 0..8)).prop_map(|(status, body)| RouteAction::DirectResponse {
            status,
            body: body.into(),
        }),
    ];
    let abort = prop_oneof![status().prop_map(Abort::Http), any::<i32>().prop_map(Abort::Grpc)];
    let fault = (of((share(), duration())), of((share(), abort))).prop_map(|(delay, abort)| Fault { delay, abort });
    (
        text(),
        of((object(), text())),
        vec(http_match(), 0..3),
        action,
        header_ops(),
        of(fault),
    )
        .prop_map(|(name, origin, matches, action, headers, fault)| HttpRoute {
            name,
            origin,
            matches,
            action,
            headers,
            fault,
        })
}

fn balancer() -> impl Strategy<Value = Balancer> {
    let key = prop_oneof![
        header_name().prop_map(|name| HashKey::Header(name.as_str().into())),
        (text(), of(text()), of(duration())).prop_map(|(name, path, ttl)| HashKey::Cookie { name, path, ttl }),
        Just(HashKey::SourceIp),
        text().prop_map(HashKey::QueryParameter),
    ];
    prop_oneof![
        Just(Balancer::LeastRequest),
        Just(Balancer::RoundRobin),
        Just(Balancer::Random),
        (key, any::<u32>()).prop_map(|(key, minimum_ring_size)| Balancer::RingHash {
            hash: HashPolicy { key },
            minimum_ring_size,
        }),
    ]
}

fn pool() -> impl Strategy<Value = ConnectionPool> {
    let keepalive = (of(any::<u32>()), of(duration()), of(duration()))
        .prop_map(|(probes, time, interval)| TcpKeepalive { probes, time, interval });
    let upgrade = select(vec![H2Upgrade::Default, H2Upgrade::DoNotUpgrade, H2Upgrade::Upgrade]);
    let limits = any::<[u32; 4]>();
    let times = (duration(), of(duration()), of(duration()), duration());
    let counts = (of(any::<u32>()), of(any::<u32>()));
    (limits, times, counts, of(keepalive), upgrade, any::<bool>()).prop_map(
        |(limits, times, counts, keepalive, h2_upgrade, use_client_protocol)| ConnectionPool {
            max_connections: limits[0],
            connect_timeout: times.0,
            max_connection_duration: times.1,
            tcp_idle_timeout: times.2,
            keepalive,
            max_pending_requests: limits[1],
            max_requests: limits[2],
            max_requests_per_connection: counts.0,
            max_retries: limits[3],
            http_idle_timeout: times.3,
            max_concurrent_streams: counts.1,
            h2_upgrade,
            use_client_protocol,
        },
    )
}

fn outlier() -> impl Strategy<Value = OutlierDetection> {
    let counts = (of(any::<u32>()), of(any::<u32>()), of(any::<u32>()));
    (counts, 1..u64::MAX, duration(), 0..=100_u8).prop_map(|(counts, interval, base_ejection_time, percent)| {
        OutlierDetection {
            consecutive_5xx: counts.0,
            consecutive_gateway_errors: counts.1,
            consecutive_local_origin_failures: counts.2,
            interval: Duration::from_nanos(interval),
            base_ejection_time,
            max_ejection_percent: percent,
        }
    })
}

fn client_tls() -> impl Strategy<Value = ClientTls> {
    prop_oneof![
        Just(ClientTls::Auto),
        Just(ClientTls::Disable),
        (texts(), of(text())).prop_map(|(subject_alt_names, sni)| ClientTls::IstioMutual { subject_alt_names, sni }),
    ]
}

fn cluster() -> impl Strategy<Value = Cluster> {
    let endpoints = prop_oneof![
        texts().prop_map(EndpointSource::Slices),
        Just(EndpointSource::Passthrough),
        select(vec![Missing::Host, Missing::Port, Missing::Subset, Missing::Tls]).prop_map(EndpointSource::Missing),
    ];
    let budget = (0.0..=100.0_f64, any::<u32>()).prop_map(|(percent, min_concurrency)| RetryBudget {
        percent,
        min_concurrency,
    });
    let identity = (service(), port(), of(text()), btree_map(text(), text(), 0..3));
    let policy = (balancer(), pool(), of(outlier()), of(budget), client_tls());
    (
        identity,
        location(),
        protocol(),
        endpoints,
        policy,
        texts(),
        vec(object(), 0..2),
    )
        .prop_map(
            |(identity, location, protocol, endpoints, policy, subject_alt_names, origins)| Cluster {
                service: identity.0,
                port: identity.1,
                subset: identity.2,
                selector: identity.3,
                location,
                protocol,
                endpoints,
                balancer: policy.0,
                pool: policy.1,
                outlier: policy.2,
                retry_budget: policy.3,
                tls: policy.4,
                subject_alt_names,
                origins,
            },
        )
}

pub(in super::super) fn destination() -> impl Strategy<Value = Destination> {
    vec(cluster().prop_map(Arc::new), 1..3).prop_flat_map(|clusters| {
        let count = clusters.len();
        (
            service(),
            port(),
            protocol(),
            location(),
            vec(route(count), 0..3),
            vec(leg(count), 0..3),
        )
            .prop_map(move |(service, port, protocol, location, routes, tcp)| Destination {
                service,
                port,
                protocol,
                location,
                routes,
                tcp: tcp.into(),
                clusters: clusters.clone(),
            })
    })
}
