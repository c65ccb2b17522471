//! Traffic policy towards a cluster to and from its messages.

use super::field::{self, FieldError, duration, nanos};
use super::proto::{self, balancer::Kind, client_tls::Mode, ring_hash::Key};
use crate::model::{
    Balancer, ClientTls, ConnectionPool, H2Upgrade, HashKey, HashPolicy, OutlierDetection, Protocol, RetryBudget,
    TcpKeepalive,
};

pub(super) fn encode_protocol(protocol: Protocol) -> i32 {
    match protocol {
        Protocol::Http => proto::Protocol::Http,
        Protocol::Http2 => proto::Protocol::Http2,
        Protocol::Grpc => proto::Protocol::Grpc,
        Protocol::Tcp => proto::Protocol::Tcp,
        Protocol::Tls => proto::Protocol::Tls,
        Protocol::Detect => proto::Protocol::Detect,
    }
    .into()
}

pub(super) fn decode_protocol(protocol: i32) -> Result<Protocol, FieldError> {
    match field::known("protocol", protocol)? {
        proto::Protocol::Unspecified => field::unspecified("protocol"),
        proto::Protocol::Http => Ok(Protocol::Http),
        proto::Protocol::Http2 => Ok(Protocol::Http2),
        proto::Protocol::Grpc => Ok(Protocol::Grpc),
        proto::Protocol::Tcp => Ok(Protocol::Tcp),
        proto::Protocol::Tls => Ok(Protocol::Tls),
        proto::Protocol::Detect => Ok(Protocol::Detect),
    }
}

pub(super) fn encode_balancer(balancer: &Balancer) -> proto::Balancer {
    let kind = match balancer {
        Balancer::LeastRequest => Kind::LeastRequest(true),
        Balancer::RoundRobin => Kind::RoundRobin(true),
        Balancer::Random => Kind::Random(true),
        Balancer::RingHash {
            hash,
            minimum_ring_size,
        } => Kind::RingHash(proto::RingHash {
            minimum_ring_size: *minimum_ring_size,
            key: Some(match &hash.key {
                HashKey::Header(name) => Key::Header(name.to_string()),
                HashKey::Cookie { name, path, ttl } => Key::Cookie(proto::Cookie {
                    name: name.to_string(),
                    path: field::owned(path.as_ref()),
                    ttl: ttl.map(nanos),
                }),
                HashKey::SourceIp => Key::SourceIp(true),
                HashKey::QueryParameter(name) => Key::QueryParameter(name.to_string()),
            }),
        }),
    };
    proto::Balancer { kind: Some(kind) }
}

pub(super) fn decode_balancer(balancer: proto::Balancer) -> Result<Balancer, FieldError> {
    Ok(match balancer.kind {
        Some(Kind::LeastRequest(_)) => Balancer::LeastRequest,
        Some(Kind::RoundRobin(_)) => Balancer::RoundRobin,
        Some(Kind::Random(_)) => Balancer::Random,
        Some(Kind::RingHash(ring)) => Balancer::RingHash {
            minimum_ring_size: ring.minimum_ring_size,
            hash: HashPolicy {
                key: match ring.key {
                    Some(Key::Header(name)) => {
                        HashKey::Header(super::text::header_name("ring_hash.header", &name)?.as_str().into())
                    }
                    Some(Key::Cookie(cookie)) => HashKey::Cookie {
                        name: cookie.name.into(),
                        path: field::shared(cookie.path),
                        ttl: cookie.ttl.map(duration),
                    },
                    Some(Key::SourceIp(_)) => HashKey::SourceIp,
                    Some(Key::QueryParameter(name)) => HashKey::QueryParameter(name.into()),
                    None => return field::unspecified("ring_hash.key"),
                },
            },
        },
        None => return field::unspecified("kind"),
    })
}

/// A limit that was never set is not written.
fn limit(value: u32) -> Option<u32> {
    (value != u32::MAX).then_some(value)
}

pub(super) fn encode_pool(pool: &ConnectionPool) -> proto::ConnectionPool {
    proto::ConnectionPool {
        max_connections: limit(pool.max_connections),
        connect_timeout: nanos(pool.connect_timeout),
        max_connection_duration: pool.max_connection_duration.map(nanos),
        tcp_idle_timeout: pool.tcp_idle_timeout.map(nanos),
        keepalive: pool.keepalive.map(|keepalive| proto::TcpKeepalive {
            probes: keepalive.probes,
            time: keepalive.time.map(nanos),
            interval: keepalive.interval.map(nanos),
        }),
        max_pending_requests: limit(pool.max_pending_requests),
        max_requests: limit(pool.max_requests),
        max_requests_per_connection: pool.max_requests_per_connection,
        max_retries: limit(pool.max_retries),
        http_idle_timeout: nanos(pool.http_idle_timeout),
        max_concurrent_streams: pool.max_concurrent_streams,
        h2_upgrade: match pool.h2_upgrade {
            H2Upgrade::Default => proto::H2Upgrade::Default,
            H2Upgrade::DoNotUpgrade => proto::H2Upgrade::DoNotUpgrade,
            H2Upgrade::Upgrade => proto::H2Upgrade::Upgrade,
        }
        .into(),
        use_client_protocol: pool.use_client_protocol,
    }
}

pub(super) fn decode_pool(pool: proto::ConnectionPool) -> Result<ConnectionPool, FieldError> {
    Ok(ConnectionPool {
        max_connections: pool.max_connections.unwrap_or(u32::MAX),
        connect_timeout: duration(pool.connect_timeout),
        max_connection_duration: pool.max_connection_duration.map(duration),
        tcp_idle_timeout: pool.tcp_idle_timeout.map(duration),
        keepalive: pool.keepalive.map(|keepalive| TcpKeepalive {
            probes: keepalive.probes,
            time: keepalive.time.map(duration),
            interval: keepalive.interval.map(duration),
        }),
        max_pending_requests: pool.max_pending_requests.unwrap_or(u32::MAX),
        max_requests: pool.max_requests.unwrap_or(u32::MAX),
        max_requests_per_connection: pool.max_requests_per_connection,
        max_retries: pool.max_retries.unwrap_or(u32::MAX),
        http_idle_timeout: duration(pool.http_idle_timeout),
        max_concurrent_streams: pool.max_concurrent_streams,
        h2_upgrade: match field::known("h2_upgrade", pool.h2_upgrade)? {
            proto::H2Upgrade::Unspecified => return field::unspecified("h2_upgrade"),
            proto::H2Upgrade::Default => H2Upgrade::Default,
            proto::H2Upgrade::DoNotUpgrade => H2Upgrade::DoNotUpgrade,
            proto::H2Upgrade::Upgrade => H2Upgrade::Upgrade,
        },
        use_client_protocol: pool.use_client_protocol,
    })
}

pub(super) fn encode_outlier(outlier: &OutlierDetection) -> proto::OutlierDetection {
    proto::OutlierDetection {
        consecutive_5xx: outlier.consecutive_5xx,
        consecutive_gateway_errors: outlier.consecutive_gateway_errors,
        consecutive_local_origin_failures: outlier.consecutive_local_origin_failures,
        interval: nanos(outlier.interval),
        base_ejection_time: nanos(outlier.base_ejection_time),
        max_ejection_percent: outlier.max_ejection_percent.into(),
    }
}

pub(super) fn decode_outlier(outlier: proto::OutlierDetection) -> Result<OutlierDetection, FieldError> {
    let percent = outlier.max_ejection_percent;
    if outlier.interval == 0 {
        return Err(FieldError::new("interval", "0: expected a positive duration"));
    }
    Ok(OutlierDetection {
        consecutive_5xx: outlier.consecutive_5xx,
        consecutive_gateway_errors: outlier.consecutive_gateway_errors,
        consecutive_local_origin_failures: outlier.consecutive_local_origin_failures,
        interval: duration(outlier.interval),
        base_ejection_time: duration(outlier.base_ejection_time),
        max_ejection_percent: u8::try_from(percent)
            .ok()
            .filter(|percent| *percent <= 100)
            .ok_or_else(|| FieldError::new("max_ejection_percent", format_args!("{percent}: expected 0 to 100")))?,
    })
}

pub(super) fn encode_budget(budget: &RetryBudget) -> proto::RetryBudget {
    proto::RetryBudget {
        percent: budget.percent,
        min_concurrency: budget.min_concurrency,
    }
}

pub(super) fn decode_budget(budget: proto::RetryBudget) -> Result<RetryBudget, FieldError> {
    let percent = budget.percent;
    if !(0.0..=100.0).contains(&percent) {
        return Err(FieldError::new("percent", format_args!("{percent}: expected 0 to 100")));
    }
    Ok(RetryBudget {
        percent,
        min_concurrency: budget.min_concurrency,
    })
}

pub(super) fn encode_tls(tls: &ClientTls) -> proto::ClientTls {
    let mode = match tls {
        ClientTls::Auto => Mode::Auto(true),
        ClientTls::Disable => Mode::Disable(true),
        ClientTls::IstioMutual { subject_alt_names, sni } => Mode::IstioMutual(proto::IstioMutual {
            subject_alt_names: field::strings(subject_alt_names),
            sni: field::owned(sni.as_ref()),
        }),
    };
    proto::ClientTls { mode: Some(mode) }
}

pub(super) fn decode_tls(tls: proto::ClientTls) -> Result<ClientTls, FieldError> {
    Ok(match tls.mode {
        Some(Mode::Auto(_)) => ClientTls::Auto,
        Some(Mode::Disable(_)) => ClientTls::Disable,
        Some(Mode::IstioMutual(mutual)) => ClientTls::IstioMutual {
            subject_alt_names: field::shared_all(mutual.subject_alt_names),
            sni: field::shared(mutual.sni),
        },
        None => return Err(FieldError::new("mode", "is missing, or unknown to this release")),
    })
}
