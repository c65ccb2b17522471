use serde_json::json;

use super::*;

/// A dump in the form that `mesh_proxy::admin` writes.
fn dump() -> Value {
    let cluster = |subset: &str| {
        json!({
            "name": format!("outbound|9080|{subset}|reviews.default.svc.cluster.local"),
            "host": "reviews.default.svc.cluster.local", "port": 9080, "subset": subset, "protocol": "http",
            "loadBalancer": "LEAST_REQUEST", "tls": { "mode": "auto" },
            "origins": ["DestinationRule default/reviews"],
        })
    };
    json!({
        "inbound": {
            "workload": { "name": "reviews-v1", "namespace": "default", "identity": "spiffe://cluster.local/ns/default/sa/reviews" },
            "ports": [{ "port": 9080, "protocol": "http", "mtls": "PERMISSIVE", "services": ["reviews.default.svc.cluster.local"] }],
            "defaultMtls": "STRICT",
            "authorization": [{ "action": "ALLOW", "policy": "AuthorizationPolicy default/reviews-authz", "rules": [] }],
        },
        "destinations": [
            {
                "name": "reviews:9080", "state": "FOUND",
                "destination": {
                    "routes": [{
                        "name": "default", "origin": "VirtualService default/reviews", "rule": "http[0]",
                        "match": [{ "headers": { "canary": { "exact": "true" } } }],
                        "route": [{ "cluster": "outbound|9080|v2|reviews.default.svc.cluster.local", "weight": 1 }],
                        "retries": { "attempts": 2 },
                    }],
                    "clusters": [cluster("v1"), cluster("v2")],
                },
            },
            { "name": "reviews:80", "state": "FOUND", "destination": { "routes": [], "clusters": [cluster("v1")] } },
            { "name": "example.com:80", "state": "NOT IN MESH", "destination": null },
        ],
        "endpoints": [{
            "cluster": "outbound|9080|v1|reviews.default.svc.cluster.local",
            "endpoints": [{
                "address": "127.1.1.1:9080", "inFlight": 3, "ejected": true, "ejections": 1,
                "facts": { "health": "HEALTHY", "mutualTls": true, "workload": { "name": "reviews-v1", "identity": "spiffe://x" } },
            }],
        }],
        "certificates": [{ "kind": "leaf", "identity": "spiffe://x", "serial": "01", "notBefore": "a", "notAfter": "b", "valid": true }],
    })
}

/// The words of a line that holds `needle`.
fn words(text: &str, needle: &str) -> Vec<String> {
    let line = text
        .lines()
        .find(|line| line.contains(needle))
        .unwrap_or_else(|| panic!("{needle} in {text}"));
    line.split("   ")
        .map(|cell| cell.trim().to_owned())
        .filter(|cell| !cell.is_empty())
        .collect()
}

#[test]
fn ports_and_policies() {
    let text = inbound(&dump()["inbound"]);
    assert_eq!(
        words(&text, "9080"),
        ["9080", "http", "PERMISSIVE", "reviews.default.svc.cluster.local"]
    );
    assert_eq!(words(&text, "detect"), ["*", "detect", "STRICT"]);
    assert_eq!(
        words(&text, "ALLOW"),
        ["ALLOW", "AuthorizationPolicy default/reviews-authz", "none"]
    );
    assert!(inbound(&Value::Null).contains("nothing is let in"));
}

#[test]
fn clusters_are_listed_once() {
    let text = outbound(&outbound_of(&dump()));
    assert_eq!(text.lines().count(), 3, "{text}");
    let v2 = words(&text, "v2");
    assert_eq!(v2[1..4], ["9080", "v2", "http"]);
    assert_eq!(v2.last().unwrap(), "DestinationRule default/reviews");
}

#[test]
fn routes_name_their_rule() {
    let text = routes(&dump()["destinations"]);
    let row = words(&text, "canary");
    assert_eq!(row[0], "reviews:9080");
    assert_eq!(row[2], "outbound|9080|v2|reviews.default.svc.cluster.local");
    assert_eq!(row.last().unwrap(), "VirtualService default/reviews http[0]");
    assert_eq!(words(&text, "example.com"), ["example.com:80", "NOT IN MESH"]);
}

#[test]
fn endpoints_and_certificates() {
    let text = endpoints(&dump()["endpoints"]);
    assert_eq!(
        words(&text, "127.1.1.1")[..4],
        ["127.1.1.1:9080", "EJECTED", "yes", "3"]
    );
    let text = secrets(&dump()["certificates"]);
    assert_eq!(words(&text, "leaf"), ["leaf", "spiffe://x", "01", "a", "b", "true"]);
}
