//! Traffic policies: load balancing, connection pools, outlier detection, TLS, retries and timeouts.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Findings;
use super::text::{self, host, millisecond, not_negative, whole_percent};
use crate::crd::traffic_policy::{
    ClientTls, ClientTlsMode, ConnectionPool, ConsistentHash, H2UpgradePolicy, HttpPool, LoadBalancer,
    OutlierDetection, PortTrafficPolicy, RetryBudget, RetryPolicy, TcpPool, TimeoutPolicy, TrafficPolicy, Tunnel,
    Warmup,
};
use crate::duration::Duration;
use crate::source::FieldPath;

const MAX_MAGLEV_TABLE: u64 = 5_000_011;

/// The blocks that a policy has for the whole destination and for each port alike.
struct Blocks<'a> {
    load_balancer: Option<&'a LoadBalancer>,
    connection_pool: Option<&'a ConnectionPool>,
    outlier_detection: Option<&'a OutlierDetection>,
    tls: Option<&'a ClientTls>,
    retry_policy: Option<&'a RetryPolicy>,
    timeout: Option<&'a TimeoutPolicy>,
}

pub(super) fn check(policy: &TrafficPolicy, at: &FieldPath, findings: &mut Findings) {
    if *policy == TrafficPolicy::default() {
        findings.error(
            at.clone(),
            "missing-field",
            "the traffic policy is empty; set a field or remove it",
        );
    }
    blocks(
        &Blocks {
            load_balancer: policy.load_balancer.as_ref(),
            connection_pool: policy.connection_pool.as_ref(),
            outlier_detection: policy.outlier_detection.as_ref(),
            tls: policy.tls.as_ref(),
            retry_policy: policy.retry_policy.as_ref(),
            timeout: policy.timeout.as_ref(),
        },
        at,
        findings,
    );
    let mut ports = BTreeSet::new();
    for (index, settings) in policy.port_level_settings.iter().enumerate() {
        let at = at.field("portLevelSettings").index(index);
        port_policy(settings, &at, findings);
        if let Some(number) = settings.port.as_ref().and_then(|port| port.number)
            && !ports.insert(number)
        {
            let message = format!("there are settings for port {number} already");
            findings.error(at.field("port").field("number"), "bad-value", message);
        }
    }
    if policy.tunnel.is_some() && policy.proxy_protocol.is_some() {
        findings.error(
            at.field("proxyProtocol"),
            "one-of",
            "proxyProtocol cannot be set together with tunnel",
        );
    }
    if let Some(settings) = &policy.tunnel {
        tunnel(settings, &at.field("tunnel"), findings);
    }
    if let Some(budget) = &policy.retry_budget {
        retry_budget(budget, &at.field("retryBudget"), findings);
    }
}

fn port_policy(policy: &PortTrafficPolicy, at: &FieldPath, findings: &mut Findings) {
    match policy.port.as_ref().and_then(|port| port.number) {
        Some(number) => findings.test(at.field("port").field("number"), text::port(number)),
        None => findings.error(at.field("port"), "missing-field", "settings for a port need its number"),
    }
    if *policy
        == (PortTrafficPolicy {
            port: policy.port.clone(),
            ..PortTrafficPolicy::default()
        })
    {
        findings.error(
            at.clone(),
            "missing-field",
            "the settings are empty; set a field or remove them",
        );
    }
    blocks(
        &Blocks {
            load_balancer: policy.load_balancer.as_ref(),
            connection_pool: policy.connection_pool.as_ref(),
            outlier_detection: policy.outlier_detection.as_ref(),
            tls: policy.tls.as_ref(),
            retry_policy: policy.retry_policy.as_ref(),
            timeout: policy.timeout.as_ref(),
        },
        at,
        findings,
    );
}

fn blocks(blocks: &Blocks<'_>, at: &FieldPath, findings: &mut Findings) {
    if let Some(settings) = blocks.load_balancer {
        load_balancer(
            settings,
            blocks.outlier_detection.is_some(),
            &at.field("loadBalancer"),
            findings,
        );
    }
    if let Some(pool) = blocks.connection_pool {
        connection_pool(pool, &at.field("connectionPool"), findings);
    }
    if let Some(detection) = blocks.outlier_detection {
        outlier_detection(detection, &at.field("outlierDetection"), findings);
    }
    if let Some(settings) = blocks.tls {
        tls(settings, &at.field("tls"), findings);
    }
    if let Some(policy) = blocks.retry_policy {
        retry_policy(policy, &at.field("retryPolicy"), findings);
    }
    if let Some(timeouts) = blocks.timeout {
        let at = at.field("timeout");
        if *timeouts == TimeoutPolicy::default() {
            findings.error(
                at.clone(),
                "missing-field",
                "the timeout is empty; set http or connectTimeout",
            );
        }
        durations(
            &[("http", timeouts.http), ("connectTimeout", timeouts.connect_timeout)],
            &at,
            findings,
        );
        let pool_timeout = blocks
            .connection_pool
            .and_then(|pool| pool.tcp.as_ref())
            .and_then(|tcp| tcp.connect_timeout);
        if timeouts.connect_timeout.is_some() && pool_timeout.is_some() {
            let message = "connectionPool.tcp.connectTimeout is set as well and wins";
            findings.warning(at.field("connectTimeout"), "conflict", message);
        }
    }
}

fn durations(fields: &[(&str, Option<Duration>)], at: &FieldPath, findings: &mut Findings) {
    for (name, duration) in fields {
        if let Some(duration) = duration {
            findings.test(at.field(name), millisecond(*duration));
        }
    }
}

fn counts(fields: &[(&str, Option<i32>)], at: &FieldPath, findings: &mut Findings) {
    for (name, count) in fields {
        if let Some(count) = count {
            findings.test(at.field(name), not_negative(*count));
        }
    }
}

pub(super) fn connection_pool(pool: &ConnectionPool, at: &FieldPath, findings: &mut Findings) {
    if pool.tcp.is_none() && pool.http.is_none() {
        findings.error(
            at.clone(),
            "missing-field",
            "the connection pool is empty; set tcp or http",
        );
    }
    if let Some(tcp) = &pool.tcp {
        tcp_pool(tcp, &at.field("tcp"), findings);
    }
    if let Some(http) = &pool.http {
        http_pool(http, &at.field("http"), findings);
    }
}

fn tcp_pool(tcp: &TcpPool, at: &FieldPath, findings: &mut Findings) {
    counts(&[("maxConnections", tcp.max_connections)], at, findings);
    // An idle timeout of zero is one that never comes.
    let idle = tcp.idle_timeout.filter(|idle| !idle.is_zero());
    let fields = [
        ("connectTimeout", tcp.connect_timeout),
        ("maxConnectionDuration", tcp.max_connection_duration),
        ("idleTimeout", idle),
    ];
    durations(&fields, at, findings);
    if let Some(keepalive) = &tcp.tcp_keepalive {
        let fields = [("time", keepalive.time), ("interval", keepalive.interval)];
        durations(&fields, &at.field("tcpKeepalive"), findings);
    }
}

fn http_pool(http: &HttpPool, at: &FieldPath, findings: &mut Findings) {
    let fields = [
        ("http1MaxPendingRequests", http.http1_max_pending_requests),
        ("http2MaxRequests", http.http2_max_requests),
        ("maxRequestsPerConnection", http.max_requests_per_connection),
        ("maxRetries", http.max_retries),
        ("maxConcurrentStreams", http.max_concurrent_streams),
    ];
    counts(&fields, at, findings);
    durations(&[("idleTimeout", http.idle_timeout)], at, findings);
    if http.use_client_protocol && http.h2_upgrade_policy == Some(H2UpgradePolicy::Upgrade) {
        let message = "useClientProtocol cannot be true when h2UpgradePolicy is UPGRADE";
        findings.error(at.field("useClientProtocol"), "one-of", message);
    }
    if let Some(keepalive) = &http.http2_keep_alive {
        let at = at.field("http2KeepAlive");
        for (name, duration) in [("interval", keepalive.interval), ("timeout", keepalive.timeout)] {
            match duration {
                Some(duration) => findings.test(at.field(name), millisecond(duration)),
                None => findings.error(at.field(name), "missing-field", format!("keep-alive needs its {name}")),
            }
        }
    }
}

fn outlier_detection(detection: &OutlierDetection, at: &FieldPath, findings: &mut Findings) {
    let fields = [
        ("interval", detection.interval),
        ("baseEjectionTime", detection.base_ejection_time),
    ];
    durations(&fields, at, findings);
    for (name, percent) in [
        ("maxEjectionPercent", detection.max_ejection_percent),
        ("minHealthPercent", detection.min_health_percent),
    ] {
        if let Some(percent) = percent {
            findings.test(at.field(name), whole_percent(percent));
        }
    }
    if let Some(errors) = detection.consecutive_errors {
        findings.test(at.field("consecutiveErrors"), not_negative(errors));
        let message =
            "consecutiveErrors has no effect, here as in Istio; use consecutive5xxErrors or consecutiveGatewayErrors";
        findings.warning(at.field("consecutiveErrors"), "no-effect", message);
    }
    if !detection.split_external_local_origin_errors && detection.consecutive_local_origin_failures.unwrap_or(0) > 0 {
        let message = "consecutiveLocalOriginFailures needs splitExternalLocalOriginErrors: true";
        findings.error(at.field("consecutiveLocalOriginFailures"), "bad-value", message);
    }
    for (index, code) in detection.outlier_detection_http_error_codes.iter().enumerate() {
        if !(100..=599).contains(code) {
            let at = at.field("outlierDetectionHttpErrorCodes").index(index);
            findings.error(at, "bad-value", format!("{code} is no HTTP status"));
        }
    }
}

fn load_balancer(settings: &LoadBalancer, has_outlier_detection: bool, at: &FieldPath, findings: &mut Findings) {
    if let Some(hash) = &settings.consistent_hash {
        consistent_hash(hash, &at.field("consistentHash"), findings);
    }
    if settings.locality_lb_setting.is_some() && settings.zone_aware_lb_setting.is_some() {
        let message = "zoneAwareLbSetting cannot be set together with localityLbSetting";
        findings.error(at.field("zoneAwareLbSetting"), "one-of", message);
    }
    if let Some(locality) = &settings.locality_lb_setting {
        let at = at.field("localityLbSetting");
        if !locality.distribute.is_empty() && !locality.failover.is_empty() {
            findings.error(
                at.field("failover"),
                "one-of",
                "failover cannot be set together with distribute",
            );
        }
        for (index, share) in locality.distribute.iter().enumerate() {
            let total: u64 = share.to.values().map(|weight| u64::from(*weight)).sum();
            if total != 100 || share.to.values().any(|weight| *weight == 0) {
                let message = format!("the shares must be from 1 to 100 and add up to 100, not to {total}");
                findings.error(at.field("distribute").index(index).field("to"), "bad-value", message);
            }
        }
        let fails_over = !locality.failover.is_empty() || !locality.failover_priority.is_empty();
        if fails_over && !has_outlier_detection {
            findings.warning(at, "no-effect", "failover has no effect without outlierDetection");
        }
    }
    durations(&[("warmupDurationSecs", settings.warmup_duration_secs)], at, findings);
    if let Some(settings) = &settings.warmup {
        warmup(settings, &at.field("warmup"), findings);
    }
}

fn warmup(warmup: &Warmup, at: &FieldPath, findings: &mut Findings) {
    findings.test(at.field("duration"), millisecond(warmup.duration));
    if let Some(percent) = warmup
        .minimum_percent
        .filter(|percent| !(0.0..=100.0).contains(percent))
    {
        findings.error(
            at.field("minimumPercent"),
            "bad-value",
            format!("{percent} per cent is not from 0 to 100"),
        );
    }
    if let Some(aggression) = warmup.aggression.filter(|aggression| *aggression <= 0.0) {
        findings.error(
            at.field("aggression"),
            "bad-value",
            format!("{aggression} is not greater than 0"),
        );
    }
}

fn consistent_hash(hash: &ConsistentHash, at: &FieldPath, findings: &mut Findings) {
    let keyed = hash.http_header_name.is_some()
        || hash.http_cookie.is_some()
        || hash.use_source_ip == Some(true)
        || hash.http_query_parameter_name.is_some();
    if !keyed {
        let message =
            "there is nothing to hash by: set httpHeaderName, httpCookie, useSourceIp or httpQueryParameterName";
        findings.error(at.clone(), "missing-field", message);
    }
    if let Some(name) = hash
        .http_header_name
        .as_deref()
        .filter(|name| !super::headers::is_token(name))
    {
        findings.error(
            at.field("httpHeaderName"),
            "bad-value",
            format!("{name:?} is no header name"),
        );
    }
    if hash.http_query_parameter_name.as_deref() == Some("") {
        findings.error(
            at.field("httpQueryParameterName"),
            "bad-value",
            "the name must not be empty",
        );
    }
    if let Some(cookie) = &hash.http_cookie {
        let at = at.field("httpCookie");
        if !super::headers::is_token(&cookie.name) {
            findings.error(
                at.field("name"),
                "bad-value",
                format!("{:?} is no name of a cookie", cookie.name),
            );
        }
        let mut names = BTreeSet::new();
        for (index, attribute) in cookie.attributes.iter().enumerate() {
            if attribute.name.is_empty() || !names.insert(attribute.name.as_str()) {
                let message = "the names of attributes must be there and differ";
                findings.error(at.field("attributes").index(index).field("name"), "bad-value", message);
            }
        }
    }
    if hash.ring_hash.is_some() && hash.maglev.is_some() {
        findings.error(
            at.field("maglev"),
            "one-of",
            "maglev cannot be set together with ringHash",
        );
    }
    if hash.minimum_ring_size.is_some_and(|size| size > 0) {
        let at = at.field("minimumRingSize");
        if hash.ring_hash.is_some() || hash.maglev.is_some() {
            findings.error(
                at.clone(),
                "one-of",
                "minimumRingSize cannot be set together with ringHash or maglev",
            );
        }
        findings.warning(
            at,
            "deprecated",
            "minimumRingSize is superseded by ringHash.minimumRingSize",
        );
    }
    if let Some(maglev) = &hash.maglev {
        let size = maglev.table_size.unwrap_or(0);
        if size >= MAX_MAGLEV_TABLE || !is_prime(size) {
            let message = format!("{size} is no size of a table: a prime below {MAX_MAGLEV_TABLE} is needed");
            findings.error(at.field("maglev").field("tableSize"), "bad-value", message);
        }
    }
}

fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| !number.is_multiple_of(divisor))
}

fn tls(tls: &ClientTls, at: &FieldPath, findings: &mut Findings) {
    let set = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
    let own = [
        ("clientCertificate", set(&tls.client_certificate)),
        ("privateKey", set(&tls.private_key)),
        ("caCertificates", set(&tls.ca_certificates)),
    ];
    match tls.mode {
        Some(ClientTlsMode::Mutual) => {
            if set(&tls.credential_name) {
                for (name, _) in own.iter().filter(|(_, set)| *set) {
                    findings.error(
                        at.field(name),
                        "one-of",
                        format!("{name} cannot be set together with credentialName"),
                    );
                }
            } else {
                for (name, _) in own[..2].iter().filter(|(_, set)| !set) {
                    findings.error(
                        at.field(name),
                        "missing-field",
                        format!("mode MUTUAL needs {name} or credentialName"),
                    );
                }
            }
        }
        Some(ClientTlsMode::IstioMutual) => {
            let more = [
                ("credentialName", set(&tls.credential_name)),
                ("caCrl", set(&tls.ca_crl)),
            ];
            for (name, _) in own.iter().chain(&more).filter(|(_, set)| *set) {
                let message = format!("{name} must not be set in mode ISTIO_MUTUAL: the mesh has its own");
                findings.error(at.field(name), "bad-value", message);
            }
        }
        _ => {}
    }
    if tls.insecure_skip_verify == Some(true) && (own[2].1 || !tls.subject_alt_names.is_empty()) {
        let message = "insecureSkipVerify cannot be true together with caCertificates or subjectAltNames";
        findings.error(at.field("insecureSkipVerify"), "one-of", message);
    }
}

fn tunnel(tunnel: &Tunnel, at: &FieldPath, findings: &mut Findings) {
    if let Some(protocol) = tunnel
        .protocol
        .as_deref()
        .filter(|p| !["", "CONNECT", "POST"].contains(p))
    {
        let message = format!("{protocol:?} is no protocol of a tunnel; known are CONNECT and POST");
        findings.error(at.field("protocol"), "bad-value", message);
    }
    if tunnel.target_host.parse::<IpAddr>().is_err() {
        findings.test(at.field("targetHost"), host(&tunnel.target_host));
    }
    findings.test(at.field("targetPort"), text::port(tunnel.target_port));
}

fn retry_budget(budget: &RetryBudget, at: &FieldPath, findings: &mut Findings) {
    if let Some(percent) = budget.percent.filter(|percent| !(0.0..=100.0).contains(percent)) {
        findings.error(
            at.field("percent"),
            "bad-value",
            format!("{percent} per cent is not from 0 to 100"),
        );
    }
}

fn retry_policy(policy: &RetryPolicy, at: &FieldPath, findings: &mut Findings) {
    if *policy == RetryPolicy::default() {
        findings.error(
            at.clone(),
            "missing-field",
            "the retry policy is empty; set attempts, perTryTimeout or retryOn",
        );
    }
    counts(&[("attempts", policy.attempts)], at, findings);
    durations(&[("perTryTimeout", policy.per_try_timeout)], at, findings);
    if let Some(conditions) = policy.retry_on.as_deref().filter(|text| !text.is_empty()) {
        text::retry_on(conditions, &at.field("retryOn"), findings);
    }
}
