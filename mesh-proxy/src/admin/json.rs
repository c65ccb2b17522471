//! The compiled model as JSON, for people and `meshctl`. Nothing reads it back.

mod authorization;
mod destination;
mod route;

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use mesh_api::model::{
    AccessLogFormat, Inbound, InboundPort, Labels, MeshSettings, MtlsMode, OutboundPolicy, Protocol, ServiceRef,
    Workload,
};
use mesh_api::names::ObjectRef;
use serde_json::{Map, Value, json};

pub(super) use destination::{destination, endpoint};

/// What holds for every proxy.
pub(super) fn settings(settings: &MeshSettings) -> Value {
    json!({
        "trustDomain": settings.trust_domain.as_str(),
        "trustDomainAliases": strings(&settings.trust_domain_aliases),
        "owned": {
            "ranges": strings(&settings.owned.ranges),
            "hostSuffixes": strings(&settings.owned.host_suffixes),
            "shortNames": settings.owned.short_names,
        },
        "outboundTrafficPolicy": match settings.outbound_policy {
            OutboundPolicy::AllowAny => "ALLOW_ANY",
            OutboundPolicy::RegistryOnly => "REGISTRY_ONLY",
        },
        "accessLog": settings.access_log.as_ref().map(|log| json!({
            "path": &*log.path,
            "format": match &log.format {
                AccessLogFormat::Text(None) => "TEXT".to_owned(),
                AccessLogFormat::Text(Some(format)) => format.to_string(),
                AccessLogFormat::Json => "JSON".to_owned(),
            },
        })),
        "tracing": settings.tracing.as_ref().map(|tracing| json!({
            "endpoint": &*tracing.endpoint,
            "samplingPercentage": percent(tracing.sampling.per_million()),
        })),
    })
}

/// How this workload receives traffic.
pub(super) fn inbound(inbound: &Inbound) -> Value {
    json!({
        "workload": workload(&inbound.workload),
        "ports": inbound.ports.iter().map(inbound_port).collect::<Vec<_>>(),
        "defaultMtls": mtls(inbound.default_mtls),
        "authorization": inbound.authorization.iter().map(authorization::policy).collect::<Vec<_>>(),
    })
}

fn inbound_port(port: &InboundPort) -> Value {
    json!({
        "port": port.port,
        "protocol": protocol(port.protocol),
        "mtls": mtls(port.mtls),
        "services": port.services.iter().map(service).collect::<Vec<_>>(),
    })
}

/// Who a workload is.
pub(super) fn workload(workload: &Workload) -> Value {
    let locality = &workload.locality;
    let parts = [&locality.region, &locality.zone, &locality.subzone];
    let parts: Vec<&str> = parts
        .iter()
        .map(|part| &***part)
        .filter(|part| !part.is_empty())
        .collect();
    json!({
        "name": &*workload.name,
        "namespace": &*workload.namespace,
        "identity": workload.identity.as_ref().map(ToString::to_string),
        "labels": labels(&workload.labels),
        "cluster": &*workload.cluster,
        "locality": parts.join("/"),
    })
}

fn service(service: &ServiceRef) -> Value {
    Value::from(service.host.as_str())
}

/// `VirtualService default/reviews`.
fn object(object: &ObjectRef) -> Value {
    Value::from(object.to_string())
}

fn mtls(mode: MtlsMode) -> &'static str {
    match mode {
        MtlsMode::Disable => "DISABLE",
        MtlsMode::Permissive => "PERMISSIVE",
        MtlsMode::Strict => "STRICT",
    }
}

/// As service ports are named; `detect` for one that is not declared.
fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http => "http",
        Protocol::Http2 => "http2",
        Protocol::Grpc => "grpc",
        Protocol::Tcp => "tcp",
        Protocol::Tls => "tls",
        Protocol::Detect => "detect",
    }
}

/// As policy writes durations.
fn duration(duration: Duration) -> Value {
    Value::from(format!("{duration:?}"))
}

fn optional(value: Option<Duration>) -> Value {
    value.map_or(Value::Null, duration)
}

/// A limit, where the largest number means none.
fn limit(value: u32) -> Value {
    if value == u32::MAX { Value::Null } else { value.into() }
}

fn percent(per_million: u32) -> f64 {
    f64::from(per_million) / 10_000.0
}

fn strings<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

fn labels(labels: &Labels) -> Value {
    let labels = labels
        .iter()
        .map(|(name, value)| (name.to_string(), Value::from(&**value)));
    Value::Object(labels.collect())
}

fn header_value(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

fn headers(pairs: &[(HeaderName, HeaderValue)]) -> Value {
    let pairs = pairs
        .iter()
        .map(|(name, value)| (name.to_string(), Value::from(header_value(value))));
    Value::Object(pairs.collect())
}

/// Adds an entry unless it is null or empty: what is not configured is not shown.
fn put(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    let value = value.into();
    let empty = match &value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    };
    if !empty {
        map.insert(key.to_owned(), value);
    }
}
