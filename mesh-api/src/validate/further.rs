//! The kinds that this mesh does not act on yet, judged as far as mistakes in them are plain, and MeshConfig.

use super::Findings;
use super::security::subject;
use super::text::{self, collector, host, is_label, labels, millisecond, namespace, not_negative, wildcard_host};
use super::traffic_policy::connection_pool;
use crate::crd::common::Port;
use crate::crd::gateway::{GatewaySpec, Server, ServerTls, ServerTlsMode};
use crate::crd::mesh_config::{AccessLogEncoding, MeshConfigSpec};
use crate::crd::proxy_config::ProxyConfigSpec;
use crate::crd::sidecar::SidecarSpec;
use crate::crd::telemetry::{TagOperation, TelemetrySpec};
use crate::crd::workload_group::WorkloadGroupSpec;
use crate::log_format;
use crate::source::FieldPath;

pub(super) fn gateway(spec: &GatewaySpec, at: &FieldPath, findings: &mut Findings) {
    if spec.servers.is_empty() {
        findings.error(
            at.field("servers"),
            "missing-field",
            "the gateway needs at least one server",
        );
    }
    for (index, server) in spec.servers.iter().enumerate() {
        gateway_server(server, &at.field("servers").index(index), findings);
    }
}

fn gateway_server(server: &Server, at: &FieldPath, findings: &mut Findings) {
    port(&server.port, &at.field("port"), findings);
    if server.hosts.is_empty() {
        findings.error(at.field("hosts"), "missing-field", "the server needs at least one host");
    }
    for (index, name) in server.hosts.iter().enumerate() {
        findings.test(at.field("hosts").index(index), scoped_host(name, Namespace::Optional));
    }
    let tls = at.field("tls");
    let encrypted = matches!(server.port.protocol.as_deref(), Some("HTTPS" | "TLS"));
    match &server.tls {
        Some(settings) => {
            if !encrypted && !settings.https_redirect {
                let message = "TLS settings need protocol HTTPS or TLS";
                findings.error(tls.clone(), "bad-value", message);
            }
            server_tls(settings, &tls, findings);
        }
        None if encrypted => findings.error(tls, "missing-field", "protocol HTTPS or TLS needs TLS settings"),
        None => {}
    }
}

fn port(port: &Port, at: &FieldPath, findings: &mut Findings) {
    findings.test(at.field("number"), text::port(port.number));
    match port.protocol.as_deref() {
        None | Some("") => findings.error(at.field("protocol"), "missing-field", "the port needs a protocol"),
        Some(protocol) => findings.test(at.field("protocol"), text::protocol(protocol)),
    }
    if port.name.is_empty() {
        findings.error(at.field("name"), "missing-field", "the port needs a name");
    }
}

fn server_tls(tls: &ServerTls, at: &FieldPath, findings: &mut Findings) {
    let named = tls.credential_name.is_some() || !tls.credential_names.is_empty();
    let set = [
        ("credentialName", tls.credential_name.is_some()),
        ("credentialNames", !tls.credential_names.is_empty()),
        ("tlsCertificates", !tls.tls_certificates.is_empty()),
    ];
    let set: Vec<&str> = set.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect();
    if let [first, second, ..] = set[..] {
        findings.error(
            at.field(second),
            "one-of",
            format!("{second} cannot be set together with {first}"),
        );
    }
    let terminates = matches!(
        tls.mode,
        Some(ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual)
    );
    if terminates && !named && tls.tls_certificates.is_empty() {
        for (name, file) in [
            ("serverCertificate", &tls.server_certificate),
            ("privateKey", &tls.private_key),
        ] {
            if file.as_deref().unwrap_or_default().is_empty() {
                findings.error(
                    at.field(name),
                    "missing-field",
                    format!("this mode needs {name} or credentialName"),
                );
            }
        }
    }
}

/// Whether the namespace before a host may be left out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Namespace {
    Optional,
    Required,
}

/// A host with a namespace before it: `namespace/host`, `./*`, `*/host`.
fn scoped_host(text: &str, namespace: Namespace) -> Result<(), String> {
    match text.split_once('/') {
        Some((scope, name)) => {
            let scope = scope.strip_prefix('~').unwrap_or(scope);
            if !(matches!(scope, "" | "*" | ".") || is_label(scope)) {
                return Err(format!("{scope:?} is no namespace"));
            }
            wildcard_host(name)
        }
        None if namespace == Namespace::Required => Err(format!("{text:?} lacks a namespace; write \"*/{text}\"")),
        None if text.parse::<std::net::IpAddr>().is_ok() => Ok(()),
        None => wildcard_host(text),
    }
}

pub(super) fn sidecar(spec: &SidecarSpec, at: &FieldPath, findings: &mut Findings) {
    if let Some(selector) = &spec.workload_selector {
        text::selector(
            &selector.labels,
            &at.field("workloadSelector").field("labels"),
            findings,
        );
    }
    for (index, listener) in spec.ingress.iter().enumerate() {
        let at = at.field("ingress").index(index);
        match listener.port.number {
            Some(number) => findings.test(at.field("port").field("number"), text::port(number)),
            None => findings.error(
                at.field("port").field("number"),
                "missing-field",
                "the port needs a number",
            ),
        }
        if let Some(pool) = &listener.connection_pool {
            connection_pool(pool, &at.field("connectionPool"), findings);
        }
        if let Some(tls) = &listener.tls {
            server_tls(tls, &at.field("tls"), findings);
        }
    }
    for (index, listener) in spec.egress.iter().enumerate() {
        let at = at.field("egress").index(index);
        if listener.hosts.is_empty() {
            findings.error(
                at.field("hosts"),
                "missing-field",
                "the listener needs at least one host",
            );
        }
        for (index, name) in listener.hosts.iter().enumerate() {
            findings.test(at.field("hosts").index(index), scoped_host(name, Namespace::Required));
        }
        if let Some(number) = listener.port.as_ref().and_then(|port| port.number) {
            findings.test(at.field("port").field("number"), text::port(number));
        }
    }
    if let Some(pool) = &spec.inbound_connection_pool {
        connection_pool(pool, &at.field("inboundConnectionPool"), findings);
    }
}

pub(super) fn proxy_config(spec: &ProxyConfigSpec, at: &FieldPath, findings: &mut Findings) {
    subject(spec.selector.as_ref(), None, &[], at, findings);
    if let Some(concurrency) = spec.concurrency {
        findings.test(at.field("concurrency"), not_negative(concurrency));
    }
}

pub(super) fn workload_group(spec: &WorkloadGroupSpec, at: &FieldPath, findings: &mut Findings) {
    if let Some(metadata) = &spec.metadata {
        labels(&metadata.labels, &at.field("metadata").field("labels"), findings);
    }
    labels(&spec.template.labels, &at.field("template").field("labels"), findings);
    for (name, number) in &spec.template.ports {
        findings.test(at.field("template").field("ports").field(name), text::port(*number));
    }
    let Some(probe) = &spec.probe else { return };
    let at = at.field("probe");
    for (name, seconds) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        findings.test(at.field(name), not_negative(seconds.unwrap_or(0)));
    }
    let ports = [
        ("httpGet", probe.http_get.as_ref().map(|probe| probe.port)),
        ("tcpSocket", probe.tcp_socket.as_ref().map(|probe| probe.port)),
        ("grpc", probe.grpc.as_ref().and_then(|probe| probe.port)),
    ];
    for (name, number) in ports {
        if let Some(number) = number {
            findings.test(at.field(name).field("port"), text::port(number));
        }
    }
    if probe.exec.as_ref().is_some_and(|exec| exec.command.is_empty()) {
        findings.error(
            at.field("exec").field("command"),
            "missing-field",
            "the command must not be empty",
        );
    }
    if probe.http_get.is_none() && probe.tcp_socket.is_none() && probe.exec.is_none() && probe.grpc.is_none() {
        findings.error(
            at,
            "missing-field",
            "the probe checks nothing: set httpGet, tcpSocket, exec or grpc",
        );
    }
}

pub(super) fn telemetry(spec: &TelemetrySpec, at: &FieldPath, findings: &mut Findings) {
    subject(
        spec.selector.as_ref(),
        spec.target_ref.as_ref(),
        &spec.target_refs,
        at,
        findings,
    );
    for (index, tracing) in spec.tracing.iter().enumerate() {
        let at = at.field("tracing").index(index);
        share(
            tracing.random_sampling_percentage,
            &at.field("randomSamplingPercentage"),
            findings,
        );
        if tracing.providers.len() > 1 {
            findings.error(at.field("providers"), "bad-value", "traces can go to one provider only");
        }
    }
    for (index, metrics) in spec.metrics.iter().enumerate() {
        let at = at.field("metrics").index(index);
        if let Some(interval) = metrics.reporting_interval {
            findings.test(at.field("reportingInterval"), millisecond(interval));
        }
        for (index, change) in metrics.overrides.iter().enumerate() {
            for (name, tag) in &change.tag_overrides {
                let at = at
                    .field("overrides")
                    .index(index)
                    .field("tagOverrides")
                    .field(name)
                    .field("value");
                let has_value = tag.value.as_deref().is_some_and(|value| !value.is_empty());
                match tag.operation {
                    Some(TagOperation::Remove) if has_value => {
                        findings.error(at, "bad-value", "a label that is removed has no value");
                    }
                    None | Some(TagOperation::Upsert) if !has_value => {
                        findings.error(at, "missing-field", "a label that is set needs a value");
                    }
                    _ => {}
                }
            }
        }
    }
}

fn share(percent: Option<f64>, at: &FieldPath, findings: &mut Findings) {
    if let Some(percent) = percent.filter(|percent| !(0.0..=100.0).contains(percent)) {
        findings.error(
            at.clone(),
            "bad-value",
            format!("{percent} per cent is not from 0 to 100"),
        );
    }
}

pub(super) fn mesh_config(spec: &MeshConfigSpec, at: &FieldPath, findings: &mut Findings) {
    if let Some(domain) = &spec.trust_domain {
        findings.test(at.field("trustDomain"), host(domain));
    }
    for (index, domain) in spec.trust_domain_aliases.iter().enumerate() {
        findings.test(at.field("trustDomainAliases").index(index), host(domain));
    }
    if let Some(root) = &spec.root_namespace {
        findings.test(at.field("rootNamespace"), namespace(root));
    }
    if let Some(timeout) = spec.connect_timeout {
        findings.test(at.field("connectTimeout"), millisecond(timeout));
    }
    let format = spec.access_log_format.as_deref().unwrap_or_default();
    if !format.is_empty() && spec.access_log_encoding == Some(AccessLogEncoding::Json) {
        let message = "accessLogFormat has no effect while accessLogEncoding is JSON";
        findings.warning(at.field("accessLogFormat"), "no-effect", message);
    }
    if let Err(error) = log_format::parse(format) {
        findings.error(at.field("accessLogFormat"), "bad-value", error.to_string());
    }
    let Some(tracing) = &spec.tracing else { return };
    let at = at.field("tracing");
    share(tracing.sampling_percentage, &at.field("samplingPercentage"), findings);
    if let Some(endpoint) = tracing.otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()) {
        findings.test(at.field("otlpEndpoint"), collector(endpoint));
    }
}
