//! What is said about several objects together.
#![cfg(feature = "crd")]
#![allow(clippy::unwrap_used)]

use mesh_api::source::{Severity, read};
use mesh_api::validate::analyze_set;

const SERVICE: &str = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: reviews}\n\
                       spec: {hosts: [reviews.default.svc.cluster.local], resolution: STATIC}\n";

fn virtual_service(name: &str, spec: &str) -> String {
    format!("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

fn destination_rule(name: &str, spec: &str) -> String {
    format!("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

/// The objects, one per file, and `object code field: part of the message` of each finding.
fn check(objects: &[&str], expected: &[&str]) {
    let mut loaded = Vec::new();
    for (index, text) in objects.iter().enumerate() {
        let contents = read(&format!("{index}.yaml"), text.as_bytes(), "default");
        assert_eq!(contents.diagnostics, Vec::new(), "{text}");
        loaded.extend(contents.objects);
    }
    let mut found = analyze_set(&loaded);
    for expected in expected {
        let (head, message) = expected.split_once(": ").unwrap();
        let at = found.iter().position(|d| {
            let object = d.object.as_ref().unwrap();
            head == format!("{} {} {}", object.name, d.code, d.field) && d.message.contains(message)
        });
        assert!(at.is_some(), "not found: {expected}\n{found:#?}");
        found.remove(at.unwrap());
    }
    assert!(found.is_empty(), "not expected: {found:#?}");
}

#[test]
fn hosts_and_subsets_must_exist_where_services_are_known() {
    let to = |destination: &str| {
        virtual_service(
            "a",
            &format!("{{hosts: [reviews], http: [{{route: [{{destination: {{{destination}}}}}]}}]}}"),
        )
    };
    let subsets = destination_rule("d", "{host: reviews, subsets: [{name: v1}]}");
    check(&[SERVICE, &subsets, &to("host: reviews, subset: v1")], &[]);
    check(
        &[SERVICE, &subsets, &to("host: reviews, subset: v2")],
        &["a unknown-subset spec.http[0].route[0].destination.subset: no DestinationRule"],
    );
    check(
        &[SERVICE, &to("host: ratings")],
        &["a unknown-host spec.http[0].route[0].destination.host: \"ratings.default.svc.cluster.local\""],
    );
    check(
        &[SERVICE, &destination_rule("d", "{host: ratings}")],
        &["d unknown-host spec.host: no service"],
    );
    // Without services, hosts and subsets must be known elsewhere.
    check(&[&to("host: ratings, subset: v9")], &[]);
}

#[test]
fn one_name_in_two_files_names_both() {
    let one = virtual_service("a", "{hosts: [b], http: [{route: [{destination: {host: b}}]}]}");
    check(
        &[&one, &one],
        &[
            "a duplicate-object metadata.name: VirtualService default/a is defined as well in 1.yaml:1",
            "a duplicate-object metadata.name: defined as well in 0.yaml:1",
        ],
    );
    let loaded = read("x.yaml", format!("{one}---\n{one}").as_bytes(), "default").objects;
    assert!(analyze_set(&loaded).iter().all(|d| d.severity == Severity::Error));
}

#[test]
fn two_services_for_one_host_conflict() {
    let one = |name: &str| virtual_service(name, "{hosts: [reviews], http: [{route: [{destination: {host: b}}]}]}");
    check(
        &[&one("b"), &one("a")],
        &["b conflict spec.hosts[0]: VirtualService default/a has the host"],
    );
    let at_gateway = one("a").replace("spec: {", "spec: {gateways: [gw], ");
    check(&[&one("b"), &at_gateway], &[]);
}

#[test]
fn rules_for_one_host_merge_block_by_block() {
    let retry = destination_rule("a", "{host: reviews, trafficPolicy: {retryPolicy: {attempts: 1}}}");
    let timeout = destination_rule("b", "{host: reviews, trafficPolicy: {timeout: {connectTimeout: 1s}}}");
    let both = destination_rule(
        "c",
        "{host: reviews.default.svc.cluster.local, subsets: [{name: v1}], \
         trafficPolicy: {retryPolicy: {attempts: 2}, connectionPool: {tcp: {connectTimeout: 2s}}}}",
    );
    check(&[&retry, &timeout], &[]);
    check(
        &[&both, &timeout, &retry],
        &[
            "c conflict spec.trafficPolicy.retryPolicy: DestinationRule default/a sets retryPolicy",
            "c conflict spec.trafficPolicy: connectionPool.tcp.connectTimeout, which wins",
        ],
    );
    let subset = destination_rule("d", "{host: reviews, subsets: [{name: v1}]}");
    check(
        &[&both, &subset],
        &["d conflict spec.subsets[0].name: defines the subset \"v1\""],
    );
    let port = |name: &str, number: u16| {
        let port = format!("{{port: {{number: {number}}}, loadBalancer: {{simple: RANDOM}}}}");
        destination_rule(
            name,
            &format!("{{host: reviews, trafficPolicy: {{retryBudget: {{percent: 1}}, portLevelSettings: [{port}]}}}}"),
        )
    };
    check(
        &[
            &port("e", 80),
            &port("f", 80),
            &destination_rule("g", "{host: reviews}"),
        ],
        &[
            "f conflict spec.trafficPolicy.portLevelSettings[0]: has settings for port 80",
            "f conflict spec.trafficPolicy.retryBudget: sets retryBudget",
        ],
    );
    check(
        &[&port("e", 80), &port("f", 9080)],
        &["f conflict spec.trafficPolicy.retryBudget: sets retryBudget"],
    );
}

#[test]
fn the_older_object_takes_precedence() {
    let dated = |name: &str, year: &str| {
        destination_rule(name, "{host: reviews, trafficPolicy: {tls: {mode: DISABLE}}}").replace(
            &format!("name: {name}"),
            &format!("name: {name}, creationTimestamp: '{year}-01-01T00:00:00Z'"),
        )
    };
    check(
        &[&dated("a", "2026"), &dated("b", "2025")],
        &["a conflict spec.trafficPolicy.tls: DestinationRule default/b sets tls"],
    );
}

#[test]
fn a_virtual_service_without_hosts_is_explained_unless_it_is_a_delegate() {
    let without = virtual_service("a", "{http: [{route: [{destination: {host: reviews}}]}]}");
    check(&[&without], &["a no-hosts spec.hosts: the destinations (reviews)"]);
    let root = virtual_service("root", "{hosts: [reviews], http: [{delegate: {name: a}}]}");
    check(&[&without, &root], &[]);
}

#[test]
fn one_mesh_has_one_configuration() {
    let config = |name: &str| format!("apiVersion: mesh.dev/v1\nkind: MeshConfig\nmetadata: {{name: {name}}}\n");
    check(
        &[&config("b"), &config("a")],
        &["b conflict : MeshConfig a takes precedence"],
    );
}
