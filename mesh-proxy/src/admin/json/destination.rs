//! Destinations, their clusters and endpoints, with the words of DestinationRule.

use mesh_api::model::{
    Balancer, ClientTls, Cluster, ConnectionPool, Destination, EndpointAddress, EndpointSource, H2Upgrade, HashKey,
    Health, Location, Missing, OutlierDetection,
};
use serde_json::{Map, Value, json};

use super::{duration, labels, limit, object, optional, protocol, put, route, service, strings, workload};

/// What is at one authority and port.
pub(in crate::admin) fn destination(destination: &Destination) -> Value {
    let clusters = &destination.clusters;
    json!({
        "host": service(&destination.service),
        "port": destination.port,
        "protocol": protocol(destination.protocol),
        "location": location(destination.location),
        "routes": destination.routes.iter().map(|each| route::route(each, clusters)).collect::<Vec<_>>(),
        "tcp": destination.tcp.iter().map(|each| route::leg(each, clusters)).collect::<Vec<_>>(),
        "clusters": clusters.iter().map(|each| cluster(each)).collect::<Vec<_>>(),
    })
}

fn cluster(cluster: &Cluster) -> Value {
    let mut map = Map::new();
    put(&mut map, "name", cluster.name());
    put(&mut map, "host", service(&cluster.service));
    put(&mut map, "port", cluster.port);
    put(&mut map, "subset", cluster.subset.as_deref());
    put(&mut map, "labels", labels(&cluster.selector));
    put(&mut map, "protocol", protocol(cluster.protocol));
    put(&mut map, "location", location(cluster.location));
    match &cluster.endpoints {
        EndpointSource::Slices(names) => put(&mut map, "endpointSlices", strings(names)),
        EndpointSource::Passthrough => put(&mut map, "passthrough", true),
        EndpointSource::Missing(missing) => put(
            &mut map,
            "missing",
            match missing {
                Missing::Host => "no such service",
                Missing::Port => "the service has no such port",
                Missing::Subset => "no DestinationRule defines the subset",
                Missing::Tls => "its DestinationRule asks for TLS that this release does not originate",
            },
        ),
    }
    put(&mut map, "loadBalancer", balancer(&cluster.balancer));
    put(&mut map, "connectionPool", pool(&cluster.pool));
    put(&mut map, "outlierDetection", cluster.outlier.as_ref().map(outlier));
    if let Some(budget) = &cluster.retry_budget {
        put(
            &mut map,
            "retryBudget",
            json!({ "percent": budget.percent, "minRetryConcurrency": budget.min_concurrency }),
        );
    }
    put(&mut map, "tls", tls(&cluster.tls));
    put(&mut map, "subjectAltNames", strings(&cluster.subject_alt_names));
    put(
        &mut map,
        "origins",
        cluster.origins.iter().map(object).collect::<Vec<_>>(),
    );
    Value::Object(map)
}

fn location(location: Location) -> &'static str {
    match location {
        Location::MeshInternal => "MESH_INTERNAL",
        Location::MeshExternal => "MESH_EXTERNAL",
    }
}

fn balancer(balancer: &Balancer) -> Value {
    match balancer {
        Balancer::LeastRequest => json!("LEAST_REQUEST"),
        Balancer::RoundRobin => json!("ROUND_ROBIN"),
        Balancer::Random => json!("RANDOM"),
        Balancer::RingHash {
            hash,
            minimum_ring_size,
        } => {
            let key = match &hash.key {
                HashKey::Header(name) => json!({ "httpHeaderName": &**name }),
                HashKey::Cookie { name, path, ttl } => {
                    json!({ "httpCookie": { "name": &**name, "path": path.as_deref(), "ttl": optional(*ttl) } })
                }
                HashKey::SourceIp => json!({ "useSourceIp": true }),
                HashKey::QueryParameter(name) => json!({ "httpQueryParameterName": &**name }),
            };
            json!({ "consistentHash": key, "minimumRingSize": minimum_ring_size })
        }
    }
}

fn pool(pool: &ConnectionPool) -> Value {
    let mut tcp = Map::new();
    put(&mut tcp, "maxConnections", limit(pool.max_connections));
    put(&mut tcp, "connectTimeout", duration(pool.connect_timeout));
    put(
        &mut tcp,
        "maxConnectionDuration",
        optional(pool.max_connection_duration),
    );
    put(&mut tcp, "idleTimeout", optional(pool.tcp_idle_timeout));
    if let Some(keepalive) = &pool.keepalive {
        put(
            &mut tcp,
            "tcpKeepalive",
            json!({
                "probes": keepalive.probes,
                "time": optional(keepalive.time),
                "interval": optional(keepalive.interval),
            }),
        );
    }
    let mut http = Map::new();
    put(&mut http, "http1MaxPendingRequests", limit(pool.max_pending_requests));
    put(&mut http, "http2MaxRequests", limit(pool.max_requests));
    put(&mut http, "maxRequestsPerConnection", pool.max_requests_per_connection);
    put(&mut http, "maxRetries", limit(pool.max_retries));
    put(&mut http, "idleTimeout", duration(pool.http_idle_timeout));
    put(&mut http, "maxConcurrentStreams", pool.max_concurrent_streams);
    put(
        &mut http,
        "h2UpgradePolicy",
        match pool.h2_upgrade {
            H2Upgrade::Default => Value::Null,
            H2Upgrade::DoNotUpgrade => json!("DO_NOT_UPGRADE"),
            H2Upgrade::Upgrade => json!("UPGRADE"),
        },
    );
    put(
        &mut http,
        "useClientProtocol",
        if pool.use_client_protocol {
            json!(true)
        } else {
            Value::Null
        },
    );
    json!({ "tcp": tcp, "http": http })
}

fn outlier(outlier: &OutlierDetection) -> Value {
    let mut map = Map::new();
    put(&mut map, "consecutive5xxErrors", outlier.consecutive_5xx);
    put(&mut map, "consecutiveGatewayErrors", outlier.consecutive_gateway_errors);
    put(
        &mut map,
        "consecutiveLocalOriginFailures",
        outlier.consecutive_local_origin_failures,
    );
    put(&mut map, "interval", duration(outlier.interval));
    put(&mut map, "baseEjectionTime", duration(outlier.base_ejection_time));
    put(&mut map, "maxEjectionPercent", outlier.max_ejection_percent);
    Value::Object(map)
}

fn tls(tls: &ClientTls) -> Value {
    match tls {
        ClientTls::Auto => json!({ "mode": "auto" }),
        ClientTls::Disable => json!({ "mode": "DISABLE" }),
        ClientTls::IstioMutual { subject_alt_names, sni } => {
            json!({ "mode": "ISTIO_MUTUAL", "subjectAltNames": strings(subject_alt_names), "sni": sni.as_deref() })
        }
    }
}

/// What the control plane says of one endpoint.
pub(in crate::admin) fn endpoint(endpoint: &mesh_api::model::Endpoint) -> Value {
    let (kind, address) = match &endpoint.address {
        EndpointAddress::Ip(address) => ("address", address.to_string()),
        EndpointAddress::Name(name) => ("name", name.to_string()),
        EndpointAddress::NameRoundRobin(name) => ("roundRobinName", name.to_string()),
    };
    json!({
        kind: address,
        "port": endpoint.port,
        "weight": endpoint.weight,
        "mutualTls": endpoint.mutual_tls,
        "health": match endpoint.health {
            Health::Healthy => "HEALTHY",
            Health::Draining => "DRAINING",
            Health::Unhealthy => "UNHEALTHY",
        },
        "workload": workload(&endpoint.workload),
    })
}
