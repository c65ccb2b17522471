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
                    "!bad-value spec.tracing.otlpEndpoint: no collector",
                    "!bad-value spec.tracing.samplingPercentage: not from 0 to 100",
                ],
            ),
        ],
    );
}
