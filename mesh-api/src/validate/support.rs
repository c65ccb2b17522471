//! What this release acts on, field by field. Whatever an object sets beside it is reported as not supported yet.
//!
//! The tables name what works, not what does not: a field that is new to the types is reported until it is listed.

use serde_json::Value;

use super::Findings;
use crate::crd::definition::schema;
use crate::crd::{Kind, Object};
use crate::source::FieldPath;

/// What is acted on of one kind.
enum Support {
    /// Nothing: the object has no effect.
    Nothing,
    /// These fields below `spec`, in the notation of [`fields`](crate::crd::compare::fields): `[]` stands for the entries
    /// of a list of objects, `{}` for the values of a map of objects.
    Fields(&'static [&'static str]),
    /// The fields of a DestinationRule, whose policies stand in four places.
    Policies,
}

fn support(kind: Kind) -> Support {
    match kind {
        Kind::VirtualService => Support::Fields(VIRTUAL_SERVICE),
        Kind::DestinationRule => Support::Policies,
        Kind::ServiceEntry => Support::Fields(SERVICE_ENTRY),
        Kind::WorkloadEntry => Support::Fields(WORKLOAD_ENTRY),
        Kind::PeerAuthentication => Support::Fields(PEER_AUTHENTICATION),
        Kind::MeshConfig => Support::Fields(MESH_CONFIG),
        Kind::AuthorizationPolicy => Support::Fields(AUTHORIZATION_POLICY),
        Kind::Gateway
        | Kind::Sidecar
        | Kind::WorkloadGroup
        | Kind::ProxyConfig
        | Kind::RequestAuthentication
        | Kind::Telemetry => Support::Nothing,
    }
}

/// All fields below `spec` that are acted on, in the notation of [`fields`](crate::crd::compare::fields). None for a kind
/// that has no effect.
pub(super) fn acted_on(kind: Kind) -> Vec<String> {
    let owned = |fields: &[&str]| fields.iter().map(|field| (*field).to_owned()).collect();
    match support(kind) {
        Support::Nothing => Vec::new(),
        Support::Fields(fields) => owned(fields),
        Support::Policies => {
            let mut all: Vec<String> = owned(DESTINATION_RULE);
            for at in POLICY_PLACES {
                // A port's settings have a port and no budget, those of the whole destination the reverse.
                let absent = |field: &str| match at.ends_with("[]") {
                    true => field.starts_with("retryBudget"),
                    false => field.starts_with("port."),
                };
                let here = POLICY.iter().filter(|field| !absent(field));
                all.extend(here.map(|field| format!("{at}.{field}")));
            }
            all
        }
    }
}

const VIRTUAL_SERVICE: &[&str] = &[
    "hosts",
    "gateways",
    "exportTo",
    "http[].name",
    "http[].match[].name",
    "http[].match[].uri.exact",
    "http[].match[].uri.prefix",
    "http[].match[].uri.regex",
    "http[].match[].scheme.exact",
    "http[].match[].scheme.prefix",
    "http[].match[].scheme.regex",
    "http[].match[].method.exact",
    "http[].match[].method.prefix",
    "http[].match[].method.regex",
    "http[].match[].authority.exact",
    "http[].match[].authority.prefix",
    "http[].match[].authority.regex",
    "http[].match[].headers{}.exact",
    "http[].match[].headers{}.prefix",
    "http[].match[].headers{}.regex",
    "http[].match[].withoutHeaders{}.exact",
    "http[].match[].withoutHeaders{}.prefix",
    "http[].match[].withoutHeaders{}.regex",
    "http[].match[].queryParams{}.exact",
    "http[].match[].queryParams{}.prefix",
    "http[].match[].queryParams{}.regex",
    "http[].match[].port",
    "http[].match[].sourceLabels",
    "http[].match[].sourceNamespace",
    "http[].match[].gateways",
    "http[].match[].ignoreUriCase",
    "http[].route[].destination.host",
    "http[].route[].destination.subset",
    "http[].route[].destination.port.number",
    "http[].route[].weight",
    "http[].route[].headers.request.set",
    "http[].route[].headers.request.add",
    "http[].route[].headers.request.remove",
    "http[].route[].headers.response.set",
    "http[].route[].headers.response.add",
    "http[].route[].headers.response.remove",
    "http[].redirect.uri",
    "http[].redirect.prefixRewrite",
    "http[].redirect.authority",
    "http[].redirect.port",
    "http[].redirect.derivePort",
    "http[].redirect.scheme",
    "http[].redirect.redirectCode",
    "http[].directResponse.status",
    "http[].directResponse.body.string",
    "http[].directResponse.body.bytes",
    "http[].delegate.name",
    "http[].delegate.namespace",
    "http[].rewrite.uri",
    "http[].rewrite.authority",
    "http[].rewrite.uriRegexRewrite.match",
    "http[].rewrite.uriRegexRewrite.rewrite",
    "http[].timeout",
    "http[].retries.attempts",
    "http[].retries.perTryTimeout",
    "http[].retries.retryOn",
    "http[].retries.retryIgnorePreviousHosts",
    "http[].retries.backoff",
    "http[].fault.delay.fixedDelay",
    "http[].fault.delay.percentage.value",
    "http[].fault.delay.percent",
    "http[].fault.abort.httpStatus",
    "http[].fault.abort.grpcStatus",
    "http[].fault.abort.percentage.value",
    "http[].mirror.host",
    "http[].mirror.subset",
    "http[].mirror.port.number",
    "http[].mirrorPercentage.value",
    "http[].mirrorPercent",
    "http[].mirror_percent",
    "http[].mirrors[].destination.host",
    "http[].mirrors[].destination.subset",
    "http[].mirrors[].destination.port.number",
    "http[].mirrors[].percentage.value",
    "http[].headers.request.set",
    "http[].headers.request.add",
    "http[].headers.request.remove",
    "http[].headers.response.set",
    "http[].headers.response.add",
    "http[].headers.response.remove",
    "tcp[].match[].port",
    "tcp[].match[].sourceLabels",
    "tcp[].match[].sourceNamespace",
    "tcp[].match[].gateways",
    "tcp[].route[].destination.host",
    "tcp[].route[].destination.subset",
    "tcp[].route[].destination.port.number",
    "tcp[].route[].weight",
];

const SERVICE_ENTRY: &[&str] = &[
    "hosts",
    "addresses",
    "ports[].number",
    "ports[].protocol",
    "ports[].name",
    "ports[].targetPort",
    "location",
    "resolution",
    "workloadSelector.labels",
    "exportTo",
    "subjectAltNames",
    "endpoints[].address",
    "endpoints[].ports",
    "endpoints[].labels",
    "endpoints[].weight",
    "endpoints[].serviceAccount",
];

const WORKLOAD_ENTRY: &[&str] = &["address", "ports", "labels", "weight", "serviceAccount"];

const PEER_AUTHENTICATION: &[&str] = &["selector.matchLabels", "mtls.mode", "portLevelMtls{}.mode"];

const AUTHORIZATION_POLICY: &[&str] = &[
    "selector.matchLabels",
    "action",
    "rules[].from[].source.principals",
    "rules[].from[].source.notPrincipals",
    "rules[].from[].source.namespaces",
    "rules[].from[].source.notNamespaces",
    "rules[].from[].source.serviceAccounts",
    "rules[].from[].source.notServiceAccounts",
    "rules[].from[].source.ipBlocks",
    "rules[].from[].source.notIpBlocks",
    "rules[].to[].operation.hosts",
    "rules[].to[].operation.notHosts",
    "rules[].to[].operation.ports",
    "rules[].to[].operation.notPorts",
    "rules[].to[].operation.methods",
    "rules[].to[].operation.notMethods",
    "rules[].to[].operation.paths",
    "rules[].to[].operation.notPaths",
    "rules[].when[].key",
    "rules[].when[].values",
    "rules[].when[].notValues",
];

const MESH_CONFIG: &[&str] = &[
    "trustDomain",
    "trustDomainAliases",
    "rootNamespace",
    "outboundTrafficPolicy.mode",
    "connectTimeout",
    "accessLogFile",
    "accessLogEncoding",
    "accessLogFormat",
    "tracing.otlpEndpoint",
    "tracing.samplingPercentage",
];

const DESTINATION_RULE: &[&str] = &[
    "host",
    "exportTo",
    "workloadSelector.matchLabels",
    "subsets[].name",
    "subsets[].labels",
];

/// Where policies stand in a DestinationRule.
const POLICY_PLACES: &[&str] = &[
    "trafficPolicy",
    "trafficPolicy.portLevelSettings[]",
    "subsets[].trafficPolicy",
    "subsets[].trafficPolicy.portLevelSettings[]",
];

const POLICY: &[&str] = &[
    "port.number",
    "loadBalancer.simple",
    "loadBalancer.consistentHash.httpHeaderName",
    "loadBalancer.consistentHash.httpCookie.name",
    "loadBalancer.consistentHash.httpCookie.path",
    "loadBalancer.consistentHash.httpCookie.ttl",
    "loadBalancer.consistentHash.useSourceIp",
    "loadBalancer.consistentHash.httpQueryParameterName",
    "loadBalancer.consistentHash.ringHash.minimumRingSize",
    "loadBalancer.consistentHash.minimumRingSize",
    "connectionPool.tcp.maxConnections",
    "connectionPool.tcp.connectTimeout",
    "connectionPool.tcp.tcpKeepalive.probes",
    "connectionPool.tcp.tcpKeepalive.time",
    "connectionPool.tcp.tcpKeepalive.interval",
    "connectionPool.tcp.maxConnectionDuration",
    "connectionPool.tcp.idleTimeout",
    "connectionPool.http.http1MaxPendingRequests",
    "connectionPool.http.http2MaxRequests",
    "connectionPool.http.maxRequestsPerConnection",
    "connectionPool.http.maxRetries",
    "connectionPool.http.idleTimeout",
    "connectionPool.http.h2UpgradePolicy",
    "connectionPool.http.useClientProtocol",
    "connectionPool.http.maxConcurrentStreams",
    "outlierDetection.consecutive5xxErrors",
    "outlierDetection.consecutiveGatewayErrors",
    "outlierDetection.splitExternalLocalOriginErrors",
    "outlierDetection.consecutiveLocalOriginFailures",
    "outlierDetection.interval",
    "outlierDetection.baseEjectionTime",
    "outlierDetection.maxEjectionPercent",
    "tls.mode",
    "tls.subjectAltNames",
    "tls.sni",
    "retryBudget.percent",
    "retryBudget.minRetryConcurrency",
    "retryPolicy.attempts",
    "retryPolicy.perTryTimeout",
    "retryPolicy.retryOn",
    "timeout.http",
    "timeout.connectTimeout",
];

/// Values of fields that are acted on with other values: kind, field, value.
const VALUES_NOT_YET: &[(Kind, &str, &str)] = &[
    (Kind::DestinationRule, "tls.mode", "SIMPLE"),
    (Kind::DestinationRule, "tls.mode", "MUTUAL"),
    (Kind::ServiceEntry, "resolution", "DYNAMIC_DNS"),
];

/// Fields that are not acted on and that other checks report, with what happens instead.
const JUDGED_ELSEWHERE: &[(Kind, &str)] = &[
    (Kind::AuthorizationPolicy, "targetRef"),
    (Kind::AuthorizationPolicy, "targetRefs"),
    // With the action CUSTOM, which is the only one that it may stand beside.
    (Kind::AuthorizationPolicy, "provider"),
    (Kind::AuthorizationPolicy, "rules[].from[].source.requestPrincipals"),
    (Kind::AuthorizationPolicy, "rules[].from[].source.notRequestPrincipals"),
    (Kind::AuthorizationPolicy, "rules[].from[].source.trustDomains"),
    (Kind::AuthorizationPolicy, "rules[].from[].source.notTrustDomains"),
    (Kind::AuthorizationPolicy, "rules[].from[].source.remoteIpBlocks"),
    (Kind::AuthorizationPolicy, "rules[].from[].source.notRemoteIpBlocks"),
    (Kind::DestinationRule, "outlierDetection.consecutiveErrors"),
];

/// Reports what an object sets and nothing acts on.
pub(super) fn check(object: &Object, findings: &mut Findings) {
    let kind = object.kind();
    if let Support::Nothing = support(kind) {
        let message = format!("not supported yet: kind {kind}; the object has no effect");
        return findings.warning(FieldPath::root(), "not-supported-yet", message);
    }
    let Ok(value) = object.to_value() else { return };
    let mut walk = Walk {
        kind,
        fields: acted_on(kind),
        findings,
    };
    let schema = &schema(kind)["properties"]["spec"];
    walk.children(&value["spec"], schema, "", &FieldPath::new("spec"));
}

struct Walk<'a> {
    kind: Kind,
    /// What is acted on.
    fields: Vec<String>,
    findings: &'a mut Findings,
}

impl Walk<'_> {
    /// Walks what is in an object, a map or a list. `pattern` is its path in the notation of the tables.
    fn children(&mut self, value: &Value, schema: &Value, pattern: &str, at: &FieldPath) {
        match value {
            Value::Object(fields) => {
                let of_map = schema.get("additionalProperties");
                for (name, value) in fields {
                    let at = at.field(name);
                    match of_map {
                        Some(schema) => self.children(value, schema, &format!("{pattern}{{}}"), &at),
                        None => {
                            let dot = if pattern.is_empty() { "" } else { "." };
                            let pattern = format!("{pattern}{dot}{name}");
                            self.field(value, &schema["properties"][name], &pattern, &at);
                        }
                    }
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.children(item, &schema["items"], &format!("{pattern}[]"), &at.index(index));
                }
            }
            _ => {}
        }
    }

    fn field(&mut self, value: &Value, schema: &Value, pattern: &str, at: &FieldPath) {
        // What is switched off needs nobody to act on it.
        if is_off(value) || self.is_judged_elsewhere(pattern) {
            return;
        }
        if let Some(what) = value.as_str().and_then(|text| self.value_not_yet(pattern, text)) {
            return self.report(at, &what);
        }
        if pattern.ends_with("gateways") {
            return self.gateways(value, at);
        }
        if self.fields.iter().any(|field| field == pattern) {
            return;
        }
        let holds = |field: &String| {
            let rest = field.strip_prefix(pattern);
            rest.is_some_and(|rest| rest.starts_with(['.', '[', '{']))
        };
        if self.fields.iter().any(holds) {
            self.children(value, schema, pattern, at);
        } else {
            self.report(at, at.as_str());
        }
    }

    /// Whoever names gateways other than the mesh means traffic that there is none of.
    fn gateways(&mut self, value: &Value, at: &FieldPath) {
        for (index, gateway) in value.as_array().into_iter().flatten().enumerate() {
            if let Some(gateway) = gateway.as_str().filter(|gateway| *gateway != "mesh") {
                self.report(&at.index(index), &format!("gateway {gateway:?}"));
            }
        }
    }

    fn value_not_yet(&self, pattern: &str, text: &str) -> Option<String> {
        VALUES_NOT_YET
            .iter()
            .find(|(kind, field, value)| *kind == self.kind && *value == text && ends_with_field(pattern, field))
            .map(|(_, field, value)| format!("{field} {value}"))
    }

    fn is_judged_elsewhere(&self, pattern: &str) -> bool {
        JUDGED_ELSEWHERE
            .iter()
            .any(|(kind, field)| *kind == self.kind && ends_with_field(pattern, field))
    }

    fn report(&mut self, at: &FieldPath, what: &str) {
        self.findings
            .warning(at.clone(), "not-supported-yet", format!("not supported yet: {what}"));
    }
}

fn ends_with_field(pattern: &str, field: &str) -> bool {
    pattern
        .strip_suffix(field)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// `false`, or an object that holds nothing else.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Bool(on) => !on,
        Value::Object(fields) => !fields.is_empty() && fields.values().all(is_off),
        _ => false,
    }
}
