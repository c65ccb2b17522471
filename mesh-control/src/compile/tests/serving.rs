//! The compiler as discovery sees it: canonical names, views, and answers that change exactly when their facts do.

use std::collections::HashSet;

use mesh_api::identity::SpiffeId;
use mesh_api::wire::{self, ResourceType};

use super::*;
use crate::compile::Resolver;
use crate::discovery::resources::{Answer, Client, Resolved, Resources, Touched};
use crate::world::Key;

struct Service {
    resolver: Resolver,
}

impl Service {
    fn shop() -> Self {
        Self {
            resolver: Resolver::new(Mesh::shop("").world),
        }
    }

    fn client(&self, workload: &str, account: &str) -> Client {
        let identity: SpiffeId = format!("spiffe://cluster.local/ns/default/sa/{account}")
            .parse()
            .unwrap();
        self.resolver.admit(&identity, &workload.parse().unwrap()).unwrap()
    }

    fn ask(&self, kind: ResourceType, name: &str) -> Resolved {
        let client = self.client("client.default", "client");
        self.resolver.resolve(&client, kind, name)
    }

    /// Applies manifests; gives the keys that they touched.
    fn apply(&self, manifests: &str) -> HashSet<Key> {
        let mut changes = self.resolver.changes();
        let events: Vec<_> = objects(manifests)
            .into_iter()
            .map(|o| Event::Applied(Arc::new(o)))
            .collect();
        self.resolver.apply(&events);
        match changes.try_recv() {
            Ok(change) => match &change.touched {
                Touched::Keys(keys) => keys.clone(),
                Touched::All => panic!("everything"),
            },
            Err(_) => HashSet::new(),
        }
    }
}

fn name(resolved: &Resolved) -> String {
    match &resolved.answer {
        Answer::Resource { name, .. } => name.to_string(),
        Answer::NotFound => "not found".into(),
    }
}

fn touches(keys: &HashSet<Key>, resolved: &Resolved) -> bool {
    resolved.depends.iter().any(|key| keys.contains(key))
}

const MORE_REVIEWS: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v3}
spec: {address: 127.0.1.3, serviceAccount: reviews, labels: {app: reviews, version: v3}}
";

const REVIEWS_BY_TIER: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{sourceLabels: {tier: front}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - route: [{destination: {host: reviews, subset: v1}}]
";

#[test]
fn every_name_of_a_service_leads_to_one_resource() {
    let service = Service::shop();
    for asked in [
        "reviews:80",
        "reviews.default:80",
        "reviews.default.svc:80",
        "reviews.default.svc.cluster.local:80",
        "Reviews.Default.svc.cluster.local.:80",
        "reviews.default.svc.cluster.local:80@0",
    ] {
        let resolved = service.ask(ResourceType::Destination, asked);
        assert_eq!(name(&resolved), "reviews.default.svc.cluster.local:80@0", "{asked}");
    }
}

#[test]
fn a_change_touches_what_depends_on_it_and_nothing_else() {
    let service = Service::shop();
    let reviews = service.ask(ResourceType::Destination, "reviews:80");
    let orders = service.ask(ResourceType::Destination, "orders:8080");
    let unknown = service.ask(ResourceType::Destination, "nobody:8080");
    let inbound = service.ask(ResourceType::Inbound, "client.default");
    let slice = service.ask(
        ResourceType::EndpointSlice,
        "reviews.default.svc.cluster.local:80/default/0-1",
    );

    let keys = service.apply(MORE_REVIEWS);
    assert!(touches(&keys, &slice));
    assert!(!touches(&keys, &orders) && !touches(&keys, &inbound) && !touches(&keys, &unknown));
    let Answer::Resource { bytes, .. } = service
        .ask(
            ResourceType::EndpointSlice,
            "reviews.default.svc.cluster.local:80/default/0-1",
        )
        .answer
    else {
        panic!("no slice");
    };
    assert_eq!(wire::decode_slice(&bytes).unwrap().endpoints.len(), 3);

    let keys = service.apply(REVIEWS_BY_TIER);
    assert!(touches(&keys, &reviews));
    assert!(!touches(&keys, &orders) && !touches(&keys, &slice) && !touches(&keys, &inbound));

    // What was not there is a fact as well.
    let keys = service.apply(
        &SHOP
            .replace("name: orders}", "name: nobody}")
            .replace("orders.default", "nobody.default"),
    );
    assert!(touches(&keys, &unknown));
    assert_ne!(
        name(&service.ask(ResourceType::Destination, "nobody:8080")),
        "not found"
    );
}

#[test]
fn the_same_object_again_is_no_change() {
    let service = Service::shop();
    assert!(service.apply(SHOP).is_empty());
}

#[test]
fn a_view_is_of_all_clients_that_rules_cannot_tell_apart() {
    let service = Service::shop();
    service.apply(REVIEWS_BY_TIER);
    let ask = |workload: &str, account: &str| {
        let client = service.client(workload, account);
        name(
            &service
                .resolver
                .resolve(&client, ResourceType::Destination, "reviews:80"),
        )
    };
    let (front, v1, v2) = (
        ask("client.default", "client"),
        ask("reviews-v1.default", "reviews"),
        ask("reviews-v2.default", "reviews"),
    );
    assert_ne!(front, v1);
    assert_eq!(v1, v2);

    // A client that changes its labels depends on them.
    let client = service.client("reviews-v1.default", "reviews");
    let before = service
        .resolver
        .resolve(&client, ResourceType::Destination, "reviews:80");
    let keys = service.apply(
        "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v1}
spec: {address: 127.0.1.1, serviceAccount: reviews, labels: {app: reviews, version: v1, tier: front}}
",
    );
    assert!(touches(&keys, &before));
    assert_eq!(ask("reviews-v1.default", "reviews"), front);
}

#[test]
fn only_the_workloads_own_identity_is_admitted_and_sees_its_inbound() {
    let service = Service::shop();
    let admit = |identity: &str, workload: &str| {
        let identity: SpiffeId = identity.parse().unwrap();
        service.resolver.admit(&identity, &workload.parse().unwrap())
    };
    assert!(admit("spiffe://cluster.local/ns/default/sa/client", "client.default").is_ok());
    for (identity, workload) in [
        ("spiffe://cluster.local/ns/default/sa/reviews", "client.default"),
        ("spiffe://cluster.local/ns/other/sa/client", "client.default"),
        ("spiffe://elsewhere/ns/default/sa/client", "client.default"),
        ("spiffe://cluster.local/ns/default/sa/client", "nobody.default"),
    ] {
        assert!(admit(identity, workload).is_err(), "{identity} {workload}");
    }
    assert_eq!(
        name(&service.ask(ResourceType::Inbound, "client.default")),
        "client.default"
    );
    assert_eq!(
        name(&service.ask(ResourceType::Inbound, "reviews-v1.default")),
        "not found"
    );
}

#[test]
fn peers_are_known_by_address() {
    let service = Service::shop();
    let Answer::Resource { bytes, .. } = service.ask(ResourceType::Workload, "127.0.1.2").answer else {
        panic!("nobody");
    };
    assert_eq!(&*wire::decode_workload(&bytes).unwrap().name, "reviews-v2");
    assert_eq!(name(&service.ask(ResourceType::Workload, "127.0.1.77")), "not found");
    assert_eq!(name(&service.ask(ResourceType::Mesh, "mesh")), "mesh");
    assert_eq!(name(&service.ask(ResourceType::Mesh, "other")), "not found");
}

#[test]
fn answers_say_which_objects_have_a_say() {
    let service = Service::shop();
    let objects = |kind: ResourceType, name: &str| -> Vec<String> {
        let resolved = service.ask(kind, name);
        resolved
            .objects
            .iter()
            .map(|object| format!("{} {}", object.kind, object.name))
            .collect()
    };
    assert_eq!(
        objects(ResourceType::Destination, "reviews:80"),
        ["DestinationRule reviews-subsets", "ServiceEntry reviews"]
    );
    assert_eq!(
        objects(ResourceType::Destination, "orders:8080"),
        ["ServiceEntry orders"]
    );
    service.apply(REVIEWS_BY_TIER);
    assert_eq!(
        objects(ResourceType::Destination, "reviews:80"),
        [
            "DestinationRule reviews-subsets",
            "ServiceEntry reviews",
            "VirtualService reviews"
        ]
    );
    assert_eq!(
        objects(
            ResourceType::EndpointSlice,
            "reviews.default.svc.cluster.local:80/default/0-1"
        ),
        [
            "ServiceEntry reviews",
            "WorkloadEntry reviews-v1",
            "WorkloadEntry reviews-v2"
        ]
    );
    service.apply(
        "kind: AuthorizationPolicy\nmetadata: {name: all}\nspec: {}\n\n---\nkind: AuthorizationPolicy\nmetadata: {name: \
         others}\nspec: {selector: {matchLabels: {app: reviews}}}\n\n---\nkind: PeerAuthentication\nmetadata: {name: \
         peer}\nspec: {mtls: {mode: STRICT}}\n",
    );
    assert_eq!(
        objects(ResourceType::Inbound, "client.default"),
        [
            "AuthorizationPolicy all",
            "PeerAuthentication peer",
            "WorkloadEntry client"
        ]
    );
}
