//! What a world of Kubernetes objects costs: bytes of resident memory for each Service and each endpoint, printed.

#![allow(clippy::unwrap_used, reason = "a test")]

use mesh_control::source::cluster::{ClusterKind, ClusterObject};
use mesh_control::world::{Event, Options, World};
use serde_json::json;

const SERVICES: usize = 1_000;
const PODS_OF_EACH: usize = 10;
/// Generous: what is promised is that whole objects are not kept (a Pod has 5 to 10 KB).
const MOST_PER_ENDPOINT: usize = 2_500;
const MOST_PER_SERVICE: usize = 4_000;

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

fn apply(world: &mut World, kind: ClusterKind, object: serde_json::Value) {
    world.apply(&Event::Observed(ClusterObject::from_value(kind, object).unwrap()));
}

fn service(world: &mut World, name: &str, i: usize) {
    let ip = format!("198.19.{}.{}", i / 250, i % 250 + 1);
    apply(
        world,
        ClusterKind::Service,
        json!({
            "metadata": { "name": name, "namespace": format!("team-{}", i % 20), "uid": "x", "managedFields": [{ "a": 1 }] },
            "spec": {
                "clusterIP": ip, "clusterIPs": [ip], "selector": { "app": name },
                "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }, { "name": "grpc", "port": 81, "targetPort": 8081 }]
            }
        }),
    );
}

fn pods(world: &mut World, service: &str, i: usize) {
    let namespace = format!("team-{}", i % 20);
    let mut endpoints = Vec::new();
    for j in 0..PODS_OF_EACH {
        let number = i * PODS_OF_EACH + j;
        let ip = format!("198.18.{}.{}", number / 250, number % 250 + 1);
        let name = format!("{service}-6c9f7d4b5-{number:05}");
        apply(
            world,
            ClusterKind::Pod,
            json!({
                "metadata": {
                    "name": name, "namespace": namespace,
                    "labels": {
                        "app": service, "version": "v1", "pod-template-hash": "6c9f7d4b5", "security.istio.io/tlsMode": "istio",
                        "service.istio.io/canonical-name": service, "service.istio.io/canonical-revision": "v1"
                    },
                    "ownerReferences": [{ "kind": "ReplicaSet", "name": format!("{service}-6c9f7d4b5"), "controller": true }]
                },
                "spec": {
                    "serviceAccountName": service, "nodeName": format!("node-{}", number % 100),
                    "containers": [{ "name": "app", "image": "x", "ports": [{ "name": "http", "containerPort": 8080 }] }]
                },
                "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "conditions": [{ "type": "Ready", "status": "True" }] }
            }),
        );
        endpoints.push(
            json!({ "addresses": [ip], "targetRef": { "kind": "Pod", "name": name }, "conditions": { "ready": true } }),
        );
    }
    apply(
        world,
        ClusterKind::EndpointSlice,
        json!({
            "metadata": { "name": format!("{service}-abcde"), "namespace": namespace, "labels": { "kubernetes.io/service-name": service } },
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{ "name": "http", "port": 8080 }, { "name": "grpc", "port": 8081 }]
        }),
    );
}

#[test]
fn memory_is_that_of_distilled_facts() {
    let mut world = World::new(Options::default());
    let names: Vec<String> = (0..SERVICES).map(|i| format!("service-{i:04}")).collect();
    let start = resident();
    names
        .iter()
        .enumerate()
        .for_each(|(i, name)| service(&mut world, name, i));
    let with_services = resident();
    names.iter().enumerate().for_each(|(i, name)| pods(&mut world, name, i));
    let with_pods = resident();

    let of_service = with_services.saturating_sub(start) / SERVICES;
    let of_endpoint = with_pods.saturating_sub(with_services) / (SERVICES * PODS_OF_EACH);
    println!("{of_service} bytes for each Service, {of_endpoint} bytes for each endpoint with its Pod");
    assert_eq!(world.registry.all_workloads().count(), SERVICES * PODS_OF_EACH);
    assert!(of_service < MOST_PER_SERVICE, "{of_service} bytes");
    assert!(of_endpoint < MOST_PER_ENDPOINT, "{of_endpoint} bytes");
}
