//! Every field that validation says is acted on, each with a value that changes what proxies get.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_api::crd::{Kind, Object};
use mesh_api::validate::acted_on;
use serde_json::{Value, json};

use super::{Mesh, SHOP};
use crate::source::Event;

/// A field, the spec that it is set in, and its value, both as flow YAML.
type Row = (&'static str, &'static str, &'static str);

/// More to be governed: a second mesh host, a TCP port, a delegate, and a way to a subset.
const MORE: &str = r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db}
spec:
  hosts: [db.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - {number: 5432, name: tcp, protocol: TCP}
  - {number: 5433, name: tcp-old, protocol: TCP}
  workloadSelector: {labels: {app: orders}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: orders-1}
spec: {address: 127.0.1.5, serviceAccount: orders, labels: {app: orders, version: v1}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: delegate}
spec: {http: [{name: of-default, route: [{destination: {host: orders}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: delegate, namespace: other}
spec: {http: [{name: of-other, route: [{destination: {host: orders.default.svc.cluster.local}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: orders}
spec: {hosts: [orders], http: [{match: [{port: 8080}], route: [{destination: {host: orders, subset: own}, weight: 1}, {destination: {host: orders}, weight: 1}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: roots}
spec: {}
"#;

/// What proxies get, all of it: as the client, as a workload of another namespace, and as servers.
fn outcome(mesh: &Mesh) -> String {
    let mut text = String::new();
    for client in ["client.default", "stranger.other"] {
        for name in [
            "reviews.default.svc.cluster.local:80",
            "reviews.default.svc.cluster.local:9080",
            "orders.default.svc.cluster.local:8080",
            "db.default.svc.cluster.local:5432",
            "db.default.svc.cluster.local:5433",
            "new.example.com:80",
            "new.example.com:81",
            "198.18.7.7:80",
        ] {
            let destination = mesh.destination_for(client, name);
            text += &format!("{client} {name} {destination:#?}\n");
            for cluster in destination.iter().flat_map(|destination| &destination.clusters) {
                if matches!(cluster.endpoints, mesh_api::model::EndpointSource::Slices(_)) {
                    text += &format!("{:?}\n", mesh.slices(cluster));
                }
            }
        }
    }
    for workload in ["reviews-v1.default", "orders-1.default"] {
        text += &format!("{:#?}\n", mesh.inbound(workload));
    }
    text += &mesh.with_reader("client.default", |reader| {
        format!("{:#?}\n", super::super::settings(reader))
    });
    text
}

/// The outcome with one more object.
fn with(kind: Kind, spec: &Value) -> String {
    let mut mesh = Mesh::of(SHOP);
    mesh.add(MORE);
    let object = json!({ "metadata": { "name": "new", "namespace": "default" }, "spec": spec });
    let object = Object::from_value(kind, object).unwrap_or_else(|error| panic!("{kind} {spec}: {error}"));
    mesh.world.apply(&Event::Applied(Arc::new(object)));
    outcome(&mesh)
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Sets a field, in the notation of the tables: `[]` is the first entry of a list, `{}` that of a map.
fn set(spec: &mut Value, field: &str, value: Value) {
    let mut at = spec;
    for step in field.split('.') {
        let name = step.trim_end_matches(['[', ']', '{', '}']);
        at = &mut at[name];
        if step.ends_with("[]") {
            if at.is_null() {
                *at = json!([{}]);
            }
            at = &mut at[0];
        } else if step.ends_with("{}") {
            let key = at.as_object().and_then(|map| map.keys().next().cloned());
            at = &mut at[key.unwrap_or_default().as_str()];
        }
    }
    *at = value;
}

fn check(kind: Kind, rows: &[Row]) {
    let mut missing: BTreeSet<String> = acted_on(kind).into_iter().collect();
    if kind == Kind::MeshConfig {
        // Compared with the authority's, and an error in the log where it differs: proxies get nothing else of it.
        assert!(missing.remove("trustDomain"));
    }
    let mut silent = Vec::new();
    for (field, base, value) in rows {
        assert!(
            missing.remove(*field),
            "{kind} {field} is not listed as acting, or twice here"
        );
        let without = yaml(base);
        let mut spec = without.clone();
        set(&mut spec, field, yaml(value));
        if with(kind, &without) == with(kind, &spec) {
            silent.push(*field);
        }
    }
    assert!(silent.is_empty(), "{kind}: these change nothing: {silent:#?}");
    assert!(
        missing.is_empty(),
        "{kind}: listed as acting and not shown here: {missing:#?}"
    );
}

const ROUTE: &str = "{hosts: [reviews], http: [{match: [{}], route: [{destination: {host: reviews}}]}, {directResponse: {status: 299}}]}";
const TWO_LEGS: &str = "{hosts: [reviews], http: [{route: [{destination: {host: reviews}, weight: 1}, {destination: {host: orders}, weight: 1}]}]}";
const BY_HEADER: &str = "{hosts: [reviews], http: [{match: [{headers: {x: {}}}], route: [{destination: {host: reviews}}]}, {directResponse: {status: 299}}]}";
const BY_NO_HEADER: &str = "{hosts: [reviews], http: [{match: [{withoutHeaders: {x: {}}}], route: [{destination: {host: reviews}}]}, {directResponse: {status: 299}}]}";
const BY_QUERY: &str = "{hosts: [reviews], http: [{match: [{queryParams: {x: {}}}], route: [{destination: {host: reviews}}]}, {directResponse: {status: 299}}]}";
const BY_URI: &str = "{hosts: [reviews], http: [{match: [{uri: {prefix: /a}}], route: [{destination: {host: reviews}}]}, {directResponse: {status: 299}}]}";
const REDIRECT: &str = "{hosts: [reviews], http: [{match: [{uri: {prefix: /a}}], redirect: {}}]}";
const RESPONSE: &str = "{hosts: [reviews], http: [{directResponse: {status: 200}}]}";
const DELEGATE: &str = "{hosts: [reviews], http: [{delegate: {name: delegate}}]}";
const RETRIES: &str = "{hosts: [reviews], http: [{route: [{destination: {host: reviews}}], retries: {attempts: 7}}]}";
const DELAY: &str = "{hosts: [reviews], http: [{route: [{destination: {host: reviews}}], fault: {delay: {fixedDelay: 1s, percentage: {value: 9}}}}]}";
const DELAY_NONE: &str =
    "{hosts: [reviews], http: [{route: [{destination: {host: reviews}}], fault: {delay: {fixedDelay: 1s}}}]}";
const DELAY_SHARE: &str =
    "{hosts: [reviews], http: [{route: [{destination: {host: reviews}}], fault: {delay: {percentage: {value: 9}}}}]}";
const ABORT: &str =
    "{hosts: [reviews], http: [{route: [{destination: {host: reviews}}], fault: {abort: {percentage: {value: 9}}}}]}";
const ABORT_NONE: &str =
    "{hosts: [reviews], http: [{route: [{destination: {host: reviews}}], fault: {abort: {httpStatus: 418}}}]}";
const MIRROR: &str = "{hosts: [reviews], http: [{route: [{destination: {host: reviews}}], mirror: {host: orders}}]}";
const NO_MIRROR: &str = "{hosts: [reviews], http: [{route: [{destination: {host: reviews}}]}]}";
const MIRRORS: &str =
    "{hosts: [reviews], http: [{route: [{destination: {host: reviews}}], mirrors: [{destination: {host: orders}}]}]}";
const REGEX_REWRITE: &str = "{hosts: [reviews], http: [{route: [{destination: {host: reviews}}], rewrite: {uriRegexRewrite: {match: /a, rewrite: /b}}}]}";
const TCP: &str = "{hosts: [db], tcp: [{match: [{}], route: [{destination: {host: orders, port: {number: 8080}}}]}]}";
const TCP_PLAIN: &str = "{hosts: [db], tcp: [{route: [{destination: {host: db}}]}]}";
const TCP_LEGS: &str = "{hosts: [db], tcp: [{route: [{destination: {host: db}, weight: 1}, {destination: {host: orders, port: {number: 8080}}, weight: 1}]}]}";

#[test]
fn virtual_service() {
    let rows: &[Row] = &[
        ("hosts", ROUTE, "[orders]"),
        ("gateways", ROUTE, "[elsewhere]"),
        ("exportTo", ROUTE, "[.]"),
        ("http[].name", ROUTE, "named"),
        ("http[].match[].name", ROUTE, "named"),
        ("http[].match[].uri.exact", ROUTE, "/a"),
        ("http[].match[].uri.prefix", ROUTE, "/a"),
        ("http[].match[].uri.regex", ROUTE, "/a"),
        ("http[].match[].scheme.exact", ROUTE, "http"),
        ("http[].match[].scheme.prefix", ROUTE, "http"),
        ("http[].match[].scheme.regex", ROUTE, "http"),
        ("http[].match[].method.exact", ROUTE, "GET"),
        ("http[].match[].method.prefix", ROUTE, "GET"),
        ("http[].match[].method.regex", ROUTE, "GET"),
        ("http[].match[].authority.exact", ROUTE, "a"),
        ("http[].match[].authority.prefix", ROUTE, "a"),
        ("http[].match[].authority.regex", ROUTE, "a"),
        ("http[].match[].headers{}.exact", BY_HEADER, "a"),
        ("http[].match[].headers{}.prefix", BY_HEADER, "a"),
        ("http[].match[].headers{}.regex", BY_HEADER, "a"),
        ("http[].match[].withoutHeaders{}.exact", BY_NO_HEADER, "a"),
        ("http[].match[].withoutHeaders{}.prefix", BY_NO_HEADER, "a"),
        ("http[].match[].withoutHeaders{}.regex", BY_NO_HEADER, "a"),
        ("http[].match[].queryParams{}.exact", BY_QUERY, "a"),
        ("http[].match[].queryParams{}.prefix", BY_QUERY, "a"),
        ("http[].match[].queryParams{}.regex", BY_QUERY, "a"),
        ("http[].match[].port", ROUTE, "9080"),
        ("http[].match[].sourceLabels", ROUTE, "{app: somebody}"),
        ("http[].match[].sourceNamespace", ROUTE, "other"),
        ("http[].match[].gateways", ROUTE, "[elsewhere]"),
        ("http[].match[].ignoreUriCase", BY_URI, "true"),
        ("http[].route[].destination.host", ROUTE, "orders"),
        ("http[].route[].destination.subset", ROUTE, "v1"),
        ("http[].route[].destination.port.number", ROUTE, "9080"),
        ("http[].route[].weight", TWO_LEGS, "3"),
        ("http[].route[].headers.request.set", ROUTE, "{a: b}"),
        ("http[].route[].headers.request.add", ROUTE, "{a: b}"),
        ("http[].route[].headers.request.remove", ROUTE, "[a]"),
        ("http[].route[].headers.response.set", ROUTE, "{a: b}"),
        ("http[].route[].headers.response.add", ROUTE, "{a: b}"),
        ("http[].route[].headers.response.remove", ROUTE, "[a]"),
        ("http[].redirect.uri", REDIRECT, "/b"),
        ("http[].redirect.prefixRewrite", REDIRECT, "/b"),
        ("http[].redirect.authority", REDIRECT, "b"),
        ("http[].redirect.port", REDIRECT, "81"),
        ("http[].redirect.derivePort", REDIRECT, "FROM_REQUEST_PORT"),
        ("http[].redirect.scheme", REDIRECT, "https"),
        ("http[].redirect.redirectCode", REDIRECT, "308"),
        ("http[].directResponse.status", RESPONSE, "418"),
        ("http[].directResponse.body.string", RESPONSE, "a"),
        ("http[].directResponse.body.bytes", RESPONSE, "aGk="),
        ("http[].delegate.name", DELEGATE, "nobody"),
        ("http[].delegate.namespace", DELEGATE, "other"),
        ("http[].rewrite.uri", ROUTE, "/b"),
        ("http[].rewrite.authority", ROUTE, "b"),
        ("http[].rewrite.uriRegexRewrite.match", REGEX_REWRITE, "/c"),
        ("http[].rewrite.uriRegexRewrite.rewrite", REGEX_REWRITE, "/c"),
        ("http[].timeout", ROUTE, "7s"),
        ("http[].retries.attempts", ROUTE, "7"),
        ("http[].retries.perTryTimeout", RETRIES, "7s"),
        ("http[].retries.retryOn", RETRIES, "5xx"),
        ("http[].retries.retryIgnorePreviousHosts", RETRIES, "false"),
        ("http[].retries.backoff", RETRIES, "7s"),
        ("http[].fault.delay.fixedDelay", DELAY_SHARE, "7s"),
        ("http[].fault.delay.percentage.value", DELAY, "7"),
        ("http[].fault.delay.percent", DELAY_NONE, "7"),
        ("http[].fault.abort.httpStatus", ABORT, "418"),
        ("http[].fault.abort.grpcStatus", ABORT, "NOT_FOUND"),
        ("http[].fault.abort.percentage.value", ABORT_NONE, "7"),
        ("http[].mirror.host", NO_MIRROR, "orders"),
        ("http[].mirror.subset", MIRROR, "v9"),
        ("http[].mirror.port.number", MIRROR, "81"),
        ("http[].mirrorPercentage.value", MIRROR, "7"),
        ("http[].mirrorPercent", MIRROR, "7"),
        ("http[].mirror_percent", MIRROR, "7"),
        ("http[].mirrors[].destination.host", NO_MIRROR, "orders"),
        ("http[].mirrors[].destination.subset", MIRRORS, "v9"),
        ("http[].mirrors[].destination.port.number", MIRRORS, "81"),
        ("http[].mirrors[].percentage.value", MIRRORS, "7"),
        ("http[].headers.request.set", ROUTE, "{a: b}"),
        ("http[].headers.request.add", ROUTE, "{a: b}"),
        ("http[].headers.request.remove", ROUTE, "[a]"),
        ("http[].headers.response.set", ROUTE, "{a: b}"),
        ("http[].headers.response.add", ROUTE, "{a: b}"),
        ("http[].headers.response.remove", ROUTE, "[a]"),
        ("tcp[].match[].port", TCP, "5433"),
        ("tcp[].match[].sourceLabels", TCP, "{app: somebody}"),
        ("tcp[].match[].sourceNamespace", TCP, "other"),
        ("tcp[].match[].gateways", TCP, "[elsewhere]"),
        ("tcp[].route[].destination.host", TCP_PLAIN, "orders"),
        ("tcp[].route[].destination.subset", TCP_PLAIN, "v9"),
        ("tcp[].route[].destination.port.number", TCP_PLAIN, "5433"),
        ("tcp[].route[].weight", TCP_LEGS, "3"),
    ];
    check(Kind::VirtualService, rows);
}

const ENTRY: &str = "{hosts: [new.example.com], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], \
                     endpoints: [{address: 127.0.9.1}]}";
const SELECTS: &str =
    "{hosts: [new.example.com], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}]}";

#[test]
fn service_entry() {
    let rows: &[Row] = &[
        ("hosts", ENTRY, "[other.example.com]"),
        ("addresses", ENTRY, "[198.18.7.7]"),
        ("ports[].number", ENTRY, "81"),
        ("ports[].protocol", ENTRY, "TCP"),
        (
            "ports[].name",
            "{hosts: [new.example.com], resolution: STATIC, ports: [{number: 80, name: web}], endpoints: [{address: 127.0.9.1}]}",
            "grpc",
        ),
        ("ports[].targetPort", ENTRY, "8080"),
        ("location", ENTRY, "MESH_INTERNAL"),
        ("resolution", SELECTS, "NONE"),
        ("workloadSelector.labels", SELECTS, "{app: reviews}"),
        ("exportTo", ENTRY, "[.]"),
        ("subjectAltNames", ENTRY, "[spiffe://cluster.local/ns/a/sa/b]"),
        ("endpoints[].address", ENTRY, "127.0.9.2"),
        ("endpoints[].ports", ENTRY, "{http: 81}"),
        ("endpoints[].labels", ENTRY, "{a: b}"),
        ("endpoints[].weight", ENTRY, "7"),
        ("endpoints[].serviceAccount", ENTRY, "a"),
    ];
    check(Kind::ServiceEntry, rows);
}

#[test]
fn workload_entry() {
    let workload = "{address: 127.0.9.1, labels: {app: reviews}}";
    let rows: &[Row] = &[
        ("address", workload, "127.0.9.2"),
        ("ports", workload, "{http: 81}"),
        ("labels", workload, "{app: orders}"),
        ("weight", workload, "7"),
        ("serviceAccount", workload, "a"),
    ];
    check(Kind::WorkloadEntry, rows);
}

#[test]
fn peer_authentication() {
    let rows: &[Row] = &[
        ("selector.matchLabels", "{mtls: {mode: STRICT}}", "{app: nobody}"),
        ("mtls.mode", "{}", "STRICT"),
        (
            "portLevelMtls{}.mode",
            "{selector: {matchLabels: {app: reviews}}, portLevelMtls: {'9080': {}}}",
            "DISABLE",
        ),
    ];
    check(Kind::PeerAuthentication, rows);
}

#[test]
fn authorization_policy() {
    const FROM: &str = "{rules: [{from: [{source: {principals: [a]}}]}]}";
    const FROM_ACCOUNT: &str = "{rules: [{from: [{source: {serviceAccounts: [a]}}]}]}";
    const TO: &str = "{rules: [{to: [{operation: {methods: [GET]}}]}]}";
    const WHEN: &str = "{rules: [{when: [{key: source.principal, values: [a]}]}]}";
    let rows: &[Row] = &[
        ("selector.matchLabels", FROM, "{app: nobody}"),
        ("action", FROM, "DENY"),
        ("rules[].from[].source.principals", FROM, "[b]"),
        ("rules[].from[].source.notPrincipals", FROM, "[b]"),
        ("rules[].from[].source.namespaces", FROM, "[b]"),
        ("rules[].from[].source.notNamespaces", FROM, "[b]"),
        ("rules[].from[].source.serviceAccounts", FROM_ACCOUNT, "[b]"),
        ("rules[].from[].source.notServiceAccounts", FROM_ACCOUNT, "[b]"),
        ("rules[].from[].source.ipBlocks", FROM, "[127.0.0.0/8]"),
        ("rules[].from[].source.notIpBlocks", FROM, "[127.0.0.0/8]"),
        ("rules[].to[].operation.hosts", TO, "[b]"),
        ("rules[].to[].operation.notHosts", TO, "[b]"),
        ("rules[].to[].operation.ports", TO, "['80']"),
        ("rules[].to[].operation.notPorts", TO, "['80']"),
        ("rules[].to[].operation.methods", TO, "[PUT]"),
        ("rules[].to[].operation.notMethods", TO, "[PUT]"),
        ("rules[].to[].operation.paths", TO, "[/b]"),
        ("rules[].to[].operation.notPaths", TO, "[/b]"),
        ("rules[].when[].key", WHEN, "source.namespace"),
        ("rules[].when[].values", WHEN, "[b]"),
        ("rules[].when[].notValues", WHEN, "[b]"),
    ];
    check(Kind::AuthorizationPolicy, rows);
}

#[test]
fn mesh_config() {
    const LOG: &str = "{accessLogFile: /dev/stdout}";
    const TRACES: &str = "{tracing: {otlpEndpoint: 'http://a:1'}}";
    let rows: &[Row] = &[
        ("trustDomainAliases", "{}", "[example.com]"),
        ("rootNamespace", "{}", "roots"),
        ("outboundTrafficPolicy.mode", "{}", "REGISTRY_ONLY"),
        ("connectTimeout", "{}", "7s"),
        ("accessLogFile", "{}", "/dev/stdout"),
        ("accessLogEncoding", LOG, "JSON"),
        ("accessLogFormat", LOG, "'%PROTOCOL%'"),
        ("tracing.otlpEndpoint", "{}", "'http://a:1'"),
        ("tracing.samplingPercentage", TRACES, "7"),
    ];
    check(Kind::MeshConfig, rows);
}

/// The fields of a policy: what else is in the policy, and the value.
const POLICY: &[Row] = &[
    ("loadBalancer.simple", "{}", "ROUND_ROBIN"),
    ("loadBalancer.consistentHash.httpHeaderName", "{}", "x"),
    (
        "loadBalancer.consistentHash.httpCookie.name",
        "{loadBalancer: {consistentHash: {httpCookie: {name: a}}}}",
        "b",
    ),
    (
        "loadBalancer.consistentHash.httpCookie.path",
        "{loadBalancer: {consistentHash: {httpCookie: {name: a}}}}",
        "/b",
    ),
    (
        "loadBalancer.consistentHash.httpCookie.ttl",
        "{loadBalancer: {consistentHash: {httpCookie: {name: a}}}}",
        "7s",
    ),
    ("loadBalancer.consistentHash.useSourceIp", "{}", "true"),
    ("loadBalancer.consistentHash.httpQueryParameterName", "{}", "q"),
    (
        "loadBalancer.consistentHash.ringHash.minimumRingSize",
        "{loadBalancer: {consistentHash: {useSourceIp: true}}}",
        "7",
    ),
    (
        "loadBalancer.consistentHash.minimumRingSize",
        "{loadBalancer: {consistentHash: {useSourceIp: true}}}",
        "7",
    ),
    ("connectionPool.tcp.maxConnections", "{}", "7"),
    ("connectionPool.tcp.connectTimeout", "{}", "7s"),
    (
        "connectionPool.tcp.tcpKeepalive.probes",
        "{connectionPool: {tcp: {tcpKeepalive: {}}}}",
        "7",
    ),
    (
        "connectionPool.tcp.tcpKeepalive.time",
        "{connectionPool: {tcp: {tcpKeepalive: {}}}}",
        "7s",
    ),
    (
        "connectionPool.tcp.tcpKeepalive.interval",
        "{connectionPool: {tcp: {tcpKeepalive: {}}}}",
        "7s",
    ),
    ("connectionPool.tcp.maxConnectionDuration", "{}", "7s"),
    ("connectionPool.tcp.idleTimeout", "{}", "7s"),
    ("connectionPool.http.http1MaxPendingRequests", "{}", "7"),
    ("connectionPool.http.http2MaxRequests", "{}", "7"),
    ("connectionPool.http.maxRequestsPerConnection", "{}", "7"),
    ("connectionPool.http.maxRetries", "{}", "7"),
    ("connectionPool.http.idleTimeout", "{}", "7s"),
    ("connectionPool.http.h2UpgradePolicy", "{}", "UPGRADE"),
    ("connectionPool.http.useClientProtocol", "{}", "true"),
    ("connectionPool.http.maxConcurrentStreams", "{}", "7"),
    ("outlierDetection.consecutive5xxErrors", "{outlierDetection: {}}", "7"),
    (
        "outlierDetection.consecutiveGatewayErrors",
        "{outlierDetection: {}}",
        "7",
    ),
    (
        "outlierDetection.splitExternalLocalOriginErrors",
        "{outlierDetection: {}}",
        "true",
    ),
    (
        "outlierDetection.consecutiveLocalOriginFailures",
        "{outlierDetection: {splitExternalLocalOriginErrors: true}}",
        "7",
    ),
    ("outlierDetection.interval", "{outlierDetection: {}}", "7s"),
    ("outlierDetection.baseEjectionTime", "{outlierDetection: {}}", "7s"),
    ("outlierDetection.maxEjectionPercent", "{outlierDetection: {}}", "7"),
    ("tls.mode", "{}", "DISABLE"),
    ("tls.subjectAltNames", "{tls: {mode: ISTIO_MUTUAL}}", "[a]"),
    ("tls.sni", "{tls: {mode: ISTIO_MUTUAL}}", "a"),
    ("retryBudget.percent", "{retryBudget: {}}", "7"),
    ("retryBudget.minRetryConcurrency", "{retryBudget: {}}", "7"),
    ("retryPolicy.attempts", "{}", "7"),
    ("retryPolicy.perTryTimeout", "{}", "7s"),
    ("retryPolicy.retryOn", "{}", "5xx"),
    ("timeout.http", "{}", "7s"),
    ("timeout.connectTimeout", "{}", "7s"),
];

#[test]
fn destination_rule() {
    const RULE: &str =
        "{host: orders, subsets: [{name: own, labels: {version: v1}}], trafficPolicy: {retryPolicy: {attempts: 9}}}";
    let mut missing: BTreeSet<String> = acted_on(Kind::DestinationRule).into_iter().collect();
    let mut silent = Vec::new();
    let mut row = |field: String, without: &Value, value: &str| {
        assert!(missing.remove(&field), "{field} is not listed as acting, or twice here");
        let mut spec = without.clone();
        set(&mut spec, &field, yaml(value));
        if with(Kind::DestinationRule, without) == with(Kind::DestinationRule, &spec) {
            silent.push(field);
        }
    };
    for (field, value) in [
        ("host", "reviews"),
        ("exportTo", "[.]"),
        ("workloadSelector.matchLabels", "{app: somebody}"),
        ("subsets[].name", "another"),
        ("subsets[].labels", "{version: v7}"),
    ] {
        row(field.to_owned(), &yaml(RULE), value);
    }
    for place in [
        "trafficPolicy",
        "trafficPolicy.portLevelSettings[]",
        "subsets[].trafficPolicy",
        "subsets[].trafficPolicy.portLevelSettings[]",
    ] {
        let of_port = place.ends_with("[]");
        let policy = |written: &str| {
            let mut policy = yaml(written);
            if of_port {
                policy["port"] = json!({ "number": 8080 });
            }
            let mut spec = yaml(RULE);
            set(&mut spec, place, policy);
            spec
        };
        if of_port {
            row(format!("{place}.port.number"), &policy("{timeout: {http: 7s}}"), "1");
        }
        for (field, written, value) in POLICY {
            if !(of_port && field.starts_with("retryBudget")) {
                row(format!("{place}.{field}"), &policy(written), value);
            }
        }
    }
    assert!(silent.is_empty(), "these change nothing: {silent:#?}");
    assert!(missing.is_empty(), "listed as acting and not shown here: {missing:#?}");
}
