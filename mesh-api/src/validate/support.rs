//! What this release acts on, field by field. Whatever an object sets beside it is reported as not supported yet.
//!
//! The tables name what works, not what does not: a field that is new to the types is reported until it is listed.

use serde_json::Value;

use super::Findings;
use crate::crd::{Kind, Object};
use crate::source::FieldPath;

/// What is acted on of one kind.
enum Support {
    /// Nothing: the object has no effect.
    Nothing,
    /// Every field, as far as this table is concerned.
    Everything,
    /// These fields below `spec`, each with all that is in it. `[]` stands for the entries of a list.
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
        Kind::PeerAuthentication | Kind::MeshConfig => Support::Everything,
        // Judged rule by rule, with what happens instead, by `authorization_policy`.
        Kind::AuthorizationPolicy => Support::Everything,
        Kind::Gateway
        | Kind::Sidecar
        | Kind::WorkloadGroup
        | Kind::ProxyConfig
        | Kind::RequestAuthentication
        | Kind::Telemetry => Support::Nothing,
    }
}

const VIRTUAL_SERVICE: &[&str] = &[
    "hosts",
    "gateways",
    "exportTo",
    "http[].name",
    "http[].match[].name",
    "http[].match[].uri",
    "http[].match[].scheme",
    "http[].match[].method",
    "http[].match[].authority",
    "http[].match[].headers",
    "http[].match[].withoutHeaders",
    "http[].match[].queryParams",
    "http[].match[].port",
    "http[].match[].sourceLabels",
    "http[].match[].sourceNamespace",
    "http[].match[].gateways",
    "http[].match[].ignoreUriCase",
    "http[].route",
    "http[].redirect",
    "http[].directResponse",
    "http[].delegate",
    "http[].rewrite",
    "http[].timeout",
    "http[].retries.attempts",
    "http[].retries.perTryTimeout",
    "http[].retries.retryOn",
    "http[].retries.retryIgnorePreviousHosts",
    "http[].retries.backoff",
    "http[].fault.delay.fixedDelay",
    "http[].fault.delay.percentage",
    "http[].fault.delay.percent",
    "http[].fault.delay.percent",
    "http[].fault.abort.httpStatus",
    "http[].fault.abort.grpcStatus",
    "http[].fault.abort.percentage",
    "http[].mirror",
    "http[].mirrorPercentage",
    "http[].mirrorPercent",
    "http[].mirror_percent",
    "http[].mirrorPercent",
    "http[].mirror_percent",
    "http[].mirrors",
    "http[].headers",
    "tcp[].match[].port",
    "tcp[].match[].sourceLabels",
    "tcp[].match[].sourceNamespace",
    "tcp[].match[].gateways",
    "tcp[].route",
];

const SERVICE_ENTRY: &[&str] = &[
    "hosts",
    "addresses",
    "ports",
    "location",
    "resolution",
    "workloadSelector",
    "exportTo",
    "subjectAltNames",
    "endpoints[].address",
    "endpoints[].ports",
    "endpoints[].labels",
    "endpoints[].locality",
    "endpoints[].weight",
    "endpoints[].serviceAccount",
];

const WORKLOAD_ENTRY: &[&str] = &["address", "ports", "labels", "locality", "weight", "serviceAccount"];

const DESTINATION_RULE: &[&str] = &[
    "host",
    "exportTo",
    "workloadSelector",
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
    "port",
    "loadBalancer.simple",
    "loadBalancer.consistentHash.httpHeaderName",
    "loadBalancer.consistentHash.httpCookie.name",
    "loadBalancer.consistentHash.httpCookie.path",
    "loadBalancer.consistentHash.httpCookie.ttl",
    "loadBalancer.consistentHash.useSourceIp",
    "loadBalancer.consistentHash.httpQueryParameterName",
    "loadBalancer.consistentHash.ringHash",
    "loadBalancer.consistentHash.minimumRingSize",
    "connectionPool.tcp",
    "connectionPool.http.http1MaxPendingRequests",
    "connectionPool.http.http2MaxRequests",
    "connectionPool.http.maxRequestsPerConnection",
    "connectionPool.http.maxRetries",
    "connectionPool.http.idleTimeout",
    "connectionPool.http.h2UpgradePolicy",
    "connectionPool.http.useClientProtocol",
    "connectionPool.http.maxConcurrentStreams",
    "outlierDetection.consecutiveErrors",
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
    "retryPolicy",
    "timeout",
];

/// Values of fields that are acted on with other values: kind, field, value.
const VALUES_NOT_YET: &[(Kind, &str, &str)] = &[
    (Kind::DestinationRule, "loadBalancer.simple", "PASSTHROUGH"),
    (Kind::DestinationRule, "tls.mode", "SIMPLE"),
    (Kind::DestinationRule, "tls.mode", "MUTUAL"),
    (Kind::ServiceEntry, "resolution", "DYNAMIC_DNS"),
];

/// Reports what an object sets and nothing acts on.
pub(super) fn check(object: &Object, findings: &mut Findings) {
    let kind = object.kind();
    let fields: Vec<String> = match support(kind) {
        Support::Nothing => {
            let message = format!("not supported yet: kind {kind}; the object has no effect");
            return findings.warning(FieldPath::root(), "not-supported-yet", message);
        }
        Support::Everything => Vec::new(),
        Support::Fields(fields) => fields.iter().map(|field| (*field).to_owned()).collect(),
        Support::Policies => {
            let within = POLICY_PLACES
                .iter()
                .flat_map(|at| POLICY.iter().map(move |field| format!("{at}.{field}")));
            DESTINATION_RULE
                .iter()
                .map(|field| (*field).to_owned())
                .chain(within)
                .collect()
        }
    };
    let Ok(value) = object.to_value() else { return };
    let mut walk = Walk {
        kind,
        fields: (!fields.is_empty()).then_some(&fields),
        findings,
    };
    walk.object(&value["spec"], "", &FieldPath::new("spec"));
}

struct Walk<'a> {
    kind: Kind,
    /// What is acted on; none where everything is.
    fields: Option<&'a [String]>,
    findings: &'a mut Findings,
}

impl Walk<'_> {
    /// Walks the fields of an object. `pattern` is its path without numbers.
    fn object(&mut self, value: &Value, pattern: &str, at: &FieldPath) {
        for (name, value) in value.as_object().into_iter().flatten() {
            // What is switched off needs nobody to act on it.
            if *value == Value::Bool(false) {
                continue;
            }
            let pattern = if pattern.is_empty() {
                name.clone()
            } else {
                format!("{pattern}.{name}")
            };
            self.field(value, &pattern, &at.field(name));
        }
    }

    fn field(&mut self, value: &Value, pattern: &str, at: &FieldPath) {
        if let Some(text) = value.as_str()
            && let Some(message) = self.value_not_yet(pattern, text)
        {
            return self.report(at, &message);
        }
        if let Some(fields) = self.fields {
            let holds = |field: &str| {
                field
                    .strip_prefix(pattern)
                    .is_some_and(|rest| rest.starts_with(['.', '[']))
            };
            let within = |field: &str| {
                pattern == field
                    || pattern
                        .strip_prefix(field)
                        .is_some_and(|rest| rest.starts_with(['.', '[']))
            };
            if !fields.iter().any(|field| within(field) || holds(field)) {
                return self.report(at, at.as_str());
            }
        }
        match value {
            Value::Array(items) => {
                let pattern = format!("{pattern}[]");
                for (index, item) in items.iter().enumerate() {
                    let at = at.index(index);
                    match item {
                        Value::String(gateway) if pattern.ends_with("gateways[]") && gateway != "mesh" => {
                            self.report(&at, &format!("gateway {gateway:?}"));
                        }
                        _ => self.object(item, &pattern, &at),
                    }
                }
            }
            Value::Object(_) => self.object(value, pattern, at),
            _ => {}
        }
    }

    fn value_not_yet(&self, pattern: &str, text: &str) -> Option<String> {
        let ends =
            |field: &str| pattern == field || pattern.strip_suffix(field).is_some_and(|rest| rest.ends_with('.'));
        VALUES_NOT_YET
            .iter()
            .find(|(kind, field, value)| *kind == self.kind && *value == text && ends(field))
            .map(|(_, field, value)| format!("{field} {value}"))
    }

    fn report(&mut self, at: &FieldPath, what: &str) {
        self.findings
            .warning(at.clone(), "not-supported-yet", format!("not supported yet: {what}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crd::compare::fields;
    use crate::crd::definition::schema;

    #[test]
    fn every_field_of_the_tables_exists() {
        let known = |kind, field: &str| fields(schema(kind)).contains_key(&format!("spec.{field}"));
        for field in VIRTUAL_SERVICE {
            assert!(known(Kind::VirtualService, field), "{field}");
        }
        for (kind, fields) in [
            (Kind::DestinationRule, DESTINATION_RULE),
            (Kind::ServiceEntry, SERVICE_ENTRY),
            (Kind::WorkloadEntry, WORKLOAD_ENTRY),
        ] {
            for field in fields {
                assert!(known(kind, field), "{kind} {field}");
            }
        }
        for place in POLICY_PLACES {
            for field in POLICY {
                // A port's settings have a port and no budget, those of the whole destination the reverse.
                let absent = |field: &str| match place.ends_with("[]") {
                    true => field.starts_with("retryBudget"),
                    false => field == "port",
                };
                assert_eq!(
                    known(Kind::DestinationRule, &format!("{place}.{field}")),
                    !absent(field),
                    "{place}.{field}"
                );
            }
        }
    }
}
