//! Changes in any order give what a fresh start with the same objects gives, and say whatever they touch.

use std::collections::BTreeMap;

use mesh_api::crd::ObjectRef;
use mesh_api::wire::ResourceType;
use proptest::prelude::*;

use super::*;
use crate::compile::Resolver;
use crate::discovery::resources::{Answer, Client, Resolved, Resources, Touched};

/// Objects in versions: each entry is one object, each document a version of it.
const OBJECTS: &[(&str, &str, &[&str])] = &[
    (
        "ServiceEntry",
        "default/reviews",
        &[
            "{hosts: [reviews.default.svc.cluster.local], location: MESH_INTERNAL, resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 9080}], workloadSelector: {labels: {app: reviews}}}",
            "{hosts: [reviews.default.svc.cluster.local, '*.example.com'], addresses: [10.0.0.1, 10.9.0.0/16], location: MESH_INTERNAL, resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}, {number: 81, name: tcp}], workloadSelector: {labels: {app: reviews, version: v1}}}",
            "{hosts: [reviews.default.svc.cluster.local], resolution: STATIC, exportTo: ['.'], ports: [{number: 80, name: http}], endpoints: [{address: 127.0.5.1}, {address: 127.0.1.1, ports: {http: 81}}]}",
        ],
    ),
    (
        "ServiceEntry",
        "other/reviews",
        &[
            "{hosts: [reviews.default.svc.cluster.local], resolution: DNS, ports: [{number: 80, name: http}]}",
            "{hosts: ['*.default.svc.cluster.local', wide.example.com], addresses: [10.9.1.0/24], resolution: NONE, ports: [{number: 80, name: http}]}",
        ],
    ),
    (
        "ServiceEntry",
        "default/orders",
        &[
            "{hosts: [orders.default.svc.cluster.local], location: MESH_INTERNAL, resolution: STATIC, ports: [{number: 80, name: http, targetPort: 9080}], workloadSelector: {labels: {app: reviews}}}",
        ],
    ),
    (
        "WorkloadEntry",
        "default/one",
        &[
            "{address: 127.0.1.1, serviceAccount: reviews, labels: {app: reviews, version: v1}}",
            "{address: 127.0.1.2, serviceAccount: reviews, labels: {app: reviews, version: v2}, ports: {http: 7000}}",
            "{address: 127.0.1.1, labels: {app: none}}",
        ],
    ),
    (
        "WorkloadEntry",
        "default/two",
        &[
            "{address: 127.0.1.2, serviceAccount: reviews, labels: {app: reviews, version: v2}}",
            "{address: 127.0.1.2, serviceAccount: other, labels: {app: reviews}}",
        ],
    ),
    (
        "WorkloadEntry",
        "other/three",
        &["{address: 127.0.1.1, serviceAccount: x, labels: {app: reviews}}"],
    ),
    (
        "VirtualService",
        "default/routes",
        &[
            "{hosts: [reviews], http: [{match: [{sourceLabels: {tier: front}}], route: [{destination: {host: reviews, subset: v1}}]}, {route: [{destination: {host: orders}}]}]}",
            "{hosts: [reviews], exportTo: ['.'], http: [{delegate: {name: leaf}}]}",
            "{http: [{route: [{destination: {host: reviews, subset: v2}}]}], hosts: ['*.svc.cluster.local']}",
        ],
    ),
    (
        "VirtualService",
        "default/leaf",
        &[
            "{http: [{timeout: 1s, route: [{destination: {host: orders}}]}]}",
            "{http: [{timeout: 2s, route: [{destination: {host: reviews}}]}]}",
            "{hosts: [front], http: [{route: [{destination: {host: reviews}}]}]}",
        ],
    ),
    (
        "DestinationRule",
        "default/subsets",
        &[
            "{host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}",
            "{host: '*.default.svc.cluster.local', trafficPolicy: {timeout: {http: 3s}}}",
            "{host: orders, workloadSelector: {matchLabels: {tier: front}}, trafficPolicy: {timeout: {http: 3s}}}",
        ],
    ),
    (
        "DestinationRule",
        "mesh-system/pool",
        &[
            "{host: '*', trafficPolicy: {connectionPool: {tcp: {maxConnections: 3}}}}",
            "{host: reviews.default.svc.cluster.local, exportTo: [default], trafficPolicy: {tls: {mode: DISABLE}}}",
        ],
    ),
    (
        "AuthorizationPolicy",
        "default/authz",
        &[
            "{rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/b]}}]}]}",
            "{selector: {matchLabels: {app: reviews}}, action: DENY, rules: [{}]}",
        ],
    ),
    ("AuthorizationPolicy", "mesh-system/authz", &["{rules: [{}]}"]),
    (
        "PeerAuthentication",
        "default/peer",
        &[
            "{mtls: {mode: STRICT}}",
            "{selector: {matchLabels: {app: reviews}}, mtls: {mode: DISABLE}, portLevelMtls: {9080: {mode: STRICT}}}",
        ],
    ),
    ("PeerAuthentication", "mesh-system/peer", &["{mtls: {mode: DISABLE}}"]),
    (
        "MeshConfig",
        "/mesh",
        &[
            "{trustDomainAliases: [old], connectTimeout: 3s}",
            "{rootNamespace: other, outboundTrafficPolicy: {mode: REGISTRY_ONLY}}",
        ],
    ),
];

const QUESTIONS: &[(ResourceType, &str)] = &[
    (ResourceType::Mesh, "mesh"),
    (ResourceType::Inbound, "client.default"),
    (ResourceType::Inbound, "one.default"),
    (ResourceType::Destination, "reviews:80"),
    (ResourceType::Destination, "reviews.default.svc.cluster.local:81"),
    (ResourceType::Destination, "orders:80"),
    (ResourceType::Destination, "front:80"),
    (ResourceType::Destination, "a.example.com:80"),
    (ResourceType::Destination, "wide.example.com:80"),
    (ResourceType::Destination, "10.0.0.1:80"),
    (ResourceType::Destination, "10.9.1.1:80"),
    (ResourceType::Destination, "127.0.1.1:9080"),
    (ResourceType::Destination, "127.0.1.2:7000"),
    (ResourceType::Destination, "127.0.5.1:80"),
    (
        ResourceType::EndpointSlice,
        "reviews.default.svc.cluster.local:80/default/0-1",
    ),
    (
        ResourceType::EndpointSlice,
        "reviews.default.svc.cluster.local:80/other/0-1",
    ),
    (
        ResourceType::EndpointSlice,
        "orders.default.svc.cluster.local:80/default/0-1",
    ),
    (ResourceType::Workload, "127.0.1.1"),
    (ResourceType::Workload, "127.0.1.2"),
    (ResourceType::Workload, "127.0.5.1"),
];

const CLIENTS: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: client}
spec: {address: 127.0.1.9, serviceAccount: client, labels: {app: client, tier: front}}
";

fn manifest(object: usize, version: usize) -> Object {
    let (kind, name, specs) = OBJECTS[object];
    let (namespace, name) = name.split_once('/').unwrap();
    let text = format!(
        "kind: {kind}\nmetadata: {{namespace: '{namespace}', name: {name}}}\nspec: {}\n",
        specs[version]
    );
    objects(&text).remove(0)
}

fn client(name: &str, namespace: &str) -> Client {
    let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/x");
    Client {
        identity: identity.parse().unwrap(),
        workload: format!("{name}.{namespace}").parse().unwrap(),
    }
}

fn answers(resolver: &Resolver) -> Vec<(String, Resolved)> {
    let mut answers = Vec::new();
    for client in [
        client("client", "default"),
        client("one", "default"),
        client("someone", "other"),
    ] {
        for (kind, name) in QUESTIONS {
            let what = format!("{} asks for {kind} {name}", client.workload);
            answers.push((what, resolver.resolve(&client, *kind, name)));
        }
    }
    answers
}

fn version(resolved: &Resolved) -> Option<(&str, &[u8])> {
    match &resolved.answer {
        Answer::Resource { name, bytes, .. } => Some((name, bytes)),
        Answer::NotFound => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn changes_give_what_a_fresh_start_gives(
        steps in prop::collection::vec((0..OBJECTS.len(), 0..4usize), 1..24)
    ) {
        let resolver = Resolver::new(Mesh::of(CLIENTS).world);
        let mut current: BTreeMap<usize, Object> = BTreeMap::new();
        let mut before = answers(&resolver);
        for (object, version_) in steps {
            let mut changes = resolver.changes();
            let event = if version_ < OBJECTS[object].2.len() {
                let manifest = manifest(object, version_);
                current.insert(object, manifest.clone());
                Event::Applied(Arc::new(manifest))
            } else {
                current.remove(&object);
                let reference: ObjectRef = manifest(object, 0).reference();
                Event::Deleted(reference)
            };
            resolver.apply([&event]);

            let mut fresh = Mesh::of(CLIENTS);
            for object in current.values().rev() {
                fresh.world.apply(&Event::Applied(Arc::new(object.clone())));
            }
            let touched = match changes.try_recv() {
                Ok(change) => match &change.touched {
                    Touched::Keys(keys) => keys.clone(),
                    Touched::All => unreachable!("a change says what it touches"),
                },
                Err(_) => Default::default(),
            };
            let after = answers(&resolver);
            for (((what, old), (_, new)), (_, expected)) in before.iter().zip(&after).zip(&answers(&Resolver::new(fresh.world))) {
                prop_assert_eq!(version(new), version(expected), "{}: {:?}", what, event);
                if version(old) != version(new) {
                    let said = old.depends.iter().any(|key| touched.contains(key));
                    prop_assert!(said, "{} changed unsaid by {:?}", what, event);
                }
            }
            before = after;
        }
    }
}
