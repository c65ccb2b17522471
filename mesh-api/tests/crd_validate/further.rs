//! Findings about the kinds without effect, and MeshConfig.

use mesh_api::crd::Kind;

use super::check;

#[test]
fn kinds_without_effect_are_reported_and_still_judged() {
    let nothing = |kind: Kind| format!("not-supported-yet: not supported yet: kind {kind}; the object has no effect");
    let rows: &[(Kind, &str, &[&str])] = &[
        (
            Kind::Gateway,
            "selector: {istio: ingress}\nservers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['ns/*.a.b']}]",
            &["!missing-field spec.servers[0].tls: needs TLS settings"],
        ),
        (
            Kind::Gateway,
            "{}",
            &["!missing-field spec.servers: at least one server"],
        ),
        (
            Kind::Sidecar,
            "egress: [{hosts: [a.b, ./*]}]",
            &["!bad-value spec.egress[0].hosts[0]: lacks a namespace"],
        ),
        (Kind::ProxyConfig, "concurrency: 2", &[]),
        (
            Kind::WorkloadGroup,
            "template: {}\nprobe: {httpGet: {port: 0}, periodSeconds: -1}",
            &[
                "!bad-value spec.probe.periodSeconds: negative",
                "!bad-value spec.probe.httpGet.port: no port",
            ],
        ),
        (
            Kind::RequestAuthentication,
            "jwtRules: [{jwksUri: 'ftp://x'}]",
            &[
                "!missing-field spec.jwtRules[0].issuer: issuer",
                "!bad-value spec.jwtRules[0].jwksUri: no http",
            ],
        ),
        (
            Kind::Telemetry,
            "tracing: [{randomSamplingPercentage: 200}]",
            &["!bad-value spec.tracing[0].randomSamplingPercentage: not from 0 to 100"],
        ),
    ];
    for (kind, spec, expected) in rows {
        let whole = nothing(*kind);
        let expected: Vec<&str> = expected.iter().copied().chain([whole.as_str()]).collect();
        check(*kind, &[(spec, &expected)]);
    }
}

#[test]
fn mesh_config() {
    check(
        Kind::MeshConfig,
        &[
            (
                "trustDomain: cluster.local\nrootNamespace: mesh-system\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n\
                 accessLogFile: /dev/stdout\naccessLogEncoding: JSON\ntracing: {otlpEndpoint: 'http://c:4317', samplingPercentage: 1}",
                &[],
            ),
            (
                "trustDomain: a_b\nrootNamespace: a.b\nconnectTimeout: 0s\ntracing: {otlpEndpoint: c, samplingPercentage: 101}",
                &[
                    "!bad-value spec.trustDomain: no host name",
                    "!bad-value spec.rootNamespace: no namespace",
                    "!bad-value spec.connectTimeout: at least 1ms",
                    "!bad-value spec.tracing.otlpEndpoint: does not begin with \"http://\"",
                    "!bad-value spec.tracing.samplingPercentage: not from 0 to 100",
                ],
            ),
            (
                "accessLogFormat: '%START_TIME(%F %T)% %REQ(X-A?:PATH):9% 100%%'\ntracing: {otlpEndpoint: 'http://[::1]:4317/'}",
                &[],
            ),
            (
                "accessLogFormat: '%RESPONSE_CODE% %NO_SUCH%'",
                &["!bad-value spec.accessLogFormat: operator `%NO_SUCH%` is not known"],
            ),
            (
                "accessLogFormat: 'at 100% of it'",
                &["!bad-value spec.accessLogFormat: at byte 6 (`% of it`) has no closing `%`"],
            ),
            (
                "accessLogFormat: '%START_TIME(%Q)%'",
                &["!bad-value spec.accessLogFormat: `%Q` is not known in a time format"],
            ),
            (
                "tracing: {otlpEndpoint: 'https://c:4317'}",
                &["!bad-value spec.tracing.otlpEndpoint: TLS is not supported yet"],
            ),
            (
                "tracing: {otlpEndpoint: 'http://c'}",
                &["!bad-value spec.tracing.otlpEndpoint: names no port"],
            ),
            (
                "tracing: {otlpEndpoint: 'http://c:4317/v1/traces'}",
                &["!bad-value spec.tracing.otlpEndpoint: only a host and a port"],
            ),
            (
                "tracing: {otlpEndpoint: 'http://c_d:4317'}",
                &["!bad-value spec.tracing.otlpEndpoint: no host name"],
            ),
        ],
    );
}
