//! Changes in any order give what a fresh start with the same objects gives, and say whatever they touch.

use std::collections::BTreeMap;

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
    (
        "Service",
        "default/reviews",
        &[
            "spec: {clusterIP: 198.19.0.10, selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: http}]}",
            "spec: {clusterIP: None, ipFamilies: [IPv6], selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: 9080}, {port: 81}]}",
            "spec: {type: ExternalName, externalName: orders.default.svc.cluster.local}",
        ],
    ),
    (
        "Service",
        "other/alias",
        &[
            "spec: {type: ExternalName, externalName: reviews.default.svc.cluster.local}",
            "spec: {type: ExternalName, externalName: api.example.com, ports: [{name: http, port: 80}]}",
            "spec: {clusterIP: 198.19.0.10, ports: [{name: http, port: 80}]}",
        ],
    ),
    (
        "EndpointSlice",
        "default/reviews-1",
        &[
            "labels: reviews\naddressType: IPv4\nports: [{name: http, port: 9080}]\nendpoints: [{addresses: [198.18.2.1], hostname: one, targetRef: {kind: Pod, name: p1}}, {addresses: [198.18.2.2], targetRef: {kind: Pod, name: p2}, conditions: {ready: false, serving: true, terminating: true}}]",
            "labels: reviews\naddressType: IPv4\nports: [{name: http, port: 7000}]\nendpoints: [{addresses: [198.18.9.9]}, {addresses: [198.18.2.2], targetRef: {kind: Pod, name: p2}}]",
            "labels: alias\naddressType: IPv4\nports: [{name: http, port: 9080}]\nendpoints: [{addresses: [198.18.2.1], targetRef: {kind: Pod, name: p1}}]",
        ],
    ),
    (
        "EndpointSlice",
        "default/reviews-2",
        &[
            "labels: reviews\naddressType: IPv6\nports: [{name: http, port: 9080}]\nendpoints: [{addresses: ['2001:db8::1'], hostname: two, targetRef: {kind: Pod, name: p1}}]",
        ],
    ),
    (
        "Pod",
        "default/p1",
        &[
            "labels: reviews\nspec: {nodeName: node-1, containers: [{ports: [{name: http, containerPort: 9080}]}]}\nstatus: {phase: Running, podIP: 198.18.2.1, podIPs: [{ip: 198.18.2.1}, {ip: '2001:db8::1'}], conditions: [{type: Ready, status: 'True'}]}",
            "labels: reviews\nspec: {serviceAccountName: x, hostNetwork: true}\nstatus: {phase: Running, podIP: 198.18.2.1}",
            "labels: reviews\nspec: {}\nstatus: {phase: Failed, podIP: 198.18.2.1}",
        ],
    ),
    // Also the name of a WorkloadEntry.
    (
        "Pod",
        "default/one",
        &[
            "labels: reviews\nspec: {}\nstatus: {phase: Running, podIP: 198.18.2.2, conditions: [{type: Ready, status: 'True'}]}",
            "labels: none\nspec: {}\nstatus: {phase: Running, podIP: 127.0.1.1}",
        ],
    ),
    (
        "Node",
        "/node-1",
        &[
            "labels: z1\nspec: {podCIDRs: [198.18.2.0/24]}",
            "labels: z2\nspec: {podCIDR: 198.18.0.0/16}",
        ],
    ),
    ("ServiceCIDR", "/services", &["spec: {cidrs: [198.19.0.0/16]}"]),
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
    (ResourceType::Inbound, "p1.default"),
    (ResourceType::Destination, "198.19.0.10:80"),
    (ResourceType::Destination, "198.18.2.1:9080"),
    (ResourceType::Destination, "198.18.9.9:7000"),
    (ResourceType::Destination, "one.reviews.default:9080"),
    (ResourceType::Destination, "two.reviews:9080"),
    (ResourceType::Destination, "alias.other:80"),
    (
        ResourceType::EndpointSlice,
        "reviews.default.svc.cluster.local:80/default/=p1",
    ),
    (ResourceType::Workload, "198.18.2.1"),
    (ResourceType::Workload, "198.18.2.2"),
    (ResourceType::Workload, "198.18.9.9"),
];

const CLIENTS: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: client}
spec: {address: 127.0.1.9, serviceAccount: client, labels: {app: client, tier: front}}
";

fn manifest(object: usize, version: usize) -> Event {
    let (kind, name, texts) = OBJECTS[object];
    let (namespace, name) = name.split_once('/').unwrap();
    let text = texts[version];
    let label = text.strip_prefix("labels: ").and_then(|text| text.split_once('\n'));
    let body = match (label, ClusterKind::ALL.iter().any(|known| known.as_str() == kind)) {
        (_, false) => format!("spec: {text}"),
        (None, true) => text.to_owned(),
        (Some((_, rest)), true) => rest.to_owned(),
    };
    let label = label.map_or("none", |(label, _)| label);
    events(&format!(
        "kind: {kind}\nmetadata: {{namespace: '{namespace}', name: {name}, labels: {{app: {label}, \
         kubernetes.io/service-name: {label}, topology.kubernetes.io/zone: {label}}}}}\n{body}\n"
    ))
    .remove(0)
}

fn deletion(event: &Event) -> Event {
    match event {
        Event::Applied(object) => Event::Deleted(object.reference()),
        Event::Observed(object) => Event::Vanished(object.reference()),
        other => panic!("{other:?}"),
    }
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
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn changes_give_what_a_fresh_start_gives(
        steps in prop::collection::vec((0..OBJECTS.len(), 0..4usize), 1..24)
    ) {
        let resolver = Resolver::new(Mesh::of(CLIENTS).world);
        let mut current: BTreeMap<usize, Event> = BTreeMap::new();
        let mut before = answers(&resolver);
        for (object, version_) in steps {
            let mut changes = resolver.changes();
            let event = if version_ < OBJECTS[object].2.len() {
                let manifest = manifest(object, version_);
                current.insert(object, manifest.clone());
                manifest
            } else {
                current.remove(&object);
                deletion(&manifest(object, 0))
            };
            resolver.apply([&event]);

            let mut fresh = Mesh::of(CLIENTS);
            for event in current.values().rev() {
                fresh.world.apply(event);
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
