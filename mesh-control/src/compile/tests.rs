//! Semantics as tables: manifests in, compiled model out, one row per sentence of the specification.

mod acting;
mod basics;
mod cluster;
mod delegate;
mod incremental;
mod lookup;
mod policy;
mod routing;
mod security;
mod seed;
mod serving;

use std::sync::Arc;

use mesh_api::crd::{Kind, Object};
use mesh_api::model::{Cluster, Destination, EndpointSlice, EndpointSource, Forward, HttpRoute, Inbound, RouteAction};
use mesh_api::names::WorkloadId;
use serde_json::Value;

use super::{ClientFacts, Reader, SliceName};
use crate::source::Event;
use crate::source::cluster::{ClusterKind, ClusterObject};
use crate::world::{Options, World};

/// The demo's services in short: `reviews` in three versions on two ports, `orders`, and a client of it.
pub(super) const SHOP: &str = r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: reviews}
spec:
  hosts: [reviews.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - {number: 80, name: http, protocol: HTTP, targetPort: 9080}
  - {number: 9080, name: http-old, protocol: HTTP}
  workloadSelector: {labels: {app: reviews}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v1}
spec: {address: 127.0.1.1, serviceAccount: reviews, labels: {app: reviews, version: v1}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v2}
spec: {address: 127.0.1.2, serviceAccount: reviews, labels: {app: reviews, version: v2}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: orders}
spec:
  hosts: [orders.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - {number: 8080, name: http, protocol: HTTP}
  workloadSelector: {labels: {app: orders}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: client}
spec: {address: 127.0.1.9, serviceAccount: client, labels: {app: client, tier: front}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews-subsets}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
  - {name: v3, labels: {version: v3}}
"#;

/// A world to ask, with the demo's services and more.
pub(super) struct Mesh {
    pub world: World,
}

impl Mesh {
    /// The shop and further manifests.
    pub fn shop(more: &str) -> Self {
        let mut mesh = Self::of(SHOP);
        mesh.add(more);
        mesh
    }

    /// Only these manifests.
    pub fn of(manifests: &str) -> Self {
        let mut mesh = Self {
            world: World::new(Options::default()),
        };
        mesh.add(manifests);
        mesh
    }

    pub fn add(&mut self, manifests: &str) {
        for event in events(manifests) {
            self.world.apply(&event);
        }
    }

    pub fn with_reader<T>(&self, client: &str, ask: impl FnOnce(&Reader<'_>) -> T) -> T {
        let id: WorkloadId = client.parse().unwrap();
        let facts = ClientFacts::of(&self.world, &id);
        ask(&Reader::new(&self.world, &facts))
    }

    pub fn destination_for(&self, client: &str, name: &str) -> Option<Destination> {
        self.with_reader(client, |reader| {
            let (host, port) = super::lookup::split(name)?;
            let destination = super::destination(reader, &super::lookup(reader, host, port)?)?;
            // What is compiled must survive the way to the proxy.
            let bytes = mesh_api::wire::encode_destination(&destination);
            assert_eq!(mesh_api::wire::decode_destination(&bytes).unwrap(), destination);
            Some(destination)
        })
    }

    pub fn destination(&self, name: &str) -> Destination {
        self.destination_for("client.default", name)
            .unwrap_or_else(|| panic!("{name} is not found"))
    }

    pub fn slice(&self, name: &str) -> EndpointSlice {
        self.with_reader("client.default", |reader| {
            let slice = super::slice(reader, &SliceName::parse(name).unwrap()).unwrap();
            let bytes = mesh_api::wire::encode_slice(&slice);
            assert_eq!(mesh_api::wire::decode_slice(&bytes).unwrap(), slice);
            slice
        })
    }

    /// A cluster's slices.
    pub fn slices(&self, cluster: &Cluster) -> Vec<EndpointSlice> {
        let EndpointSource::Slices(names) = &cluster.endpoints else {
            panic!("{:?}", cluster.endpoints);
        };
        names.iter().map(|name| self.slice(name)).collect()
    }

    /// Addresses with ports of a cluster's endpoints, of whatever subset.
    pub fn endpoints(&self, cluster: &Cluster) -> Vec<String> {
        let mut all: Vec<String> = self
            .slices(cluster)
            .into_iter()
            .flat_map(|slice| slice.endpoints)
            .map(|endpoint| match endpoint.address {
                mesh_api::model::EndpointAddress::Ip(address) => format!("{address}:{}", endpoint.port),
                other => format!("{other:?}:{}", endpoint.port),
            })
            .collect();
        all.sort();
        all
    }

    pub fn inbound(&self, id: &str) -> Inbound {
        self.with_reader(id, |reader| {
            let inbound = super::inbound(reader, &id.parse().unwrap()).unwrap();
            let bytes = mesh_api::wire::encode_inbound(&inbound);
            assert_eq!(mesh_api::wire::decode_inbound(&bytes).unwrap(), inbound);
            inbound
        })
    }
}

/// Reads manifests as a source does; namespace `default` where none is written.
pub(super) fn events(manifests: &str) -> Vec<Event> {
    let documents = manifests
        .split("\n---\n")
        .filter(|document| !document.trim().is_empty());
    documents.map(event).collect()
}

fn event(document: &str) -> Event {
    let mut value: Value = serde_saphyr::from_str(document).unwrap_or_else(|error| panic!("{error}:\n{document}"));
    let name = value["kind"].as_str().unwrap().to_owned();
    if let Some(kind) = ClusterKind::ALL.into_iter().find(|kind| kind.as_str() == name) {
        let namespaced = !matches!(kind, ClusterKind::Node | ClusterKind::ServiceCidr);
        if namespaced && value["metadata"]["namespace"].is_null() {
            value["metadata"]["namespace"] = "default".into();
        }
        let object = ClusterObject::from_value(kind, value);
        return Event::Observed(object.unwrap_or_else(|error| panic!("{error}:\n{document}")));
    }
    let kind = Kind::from_name(&name).unwrap();
    let mut object = Object::from_value(kind, value).unwrap_or_else(|error| panic!("{error}:\n{document}"));
    if kind.is_namespaced() && object.namespace().is_empty() {
        object.metadata_mut().namespace = Some("default".into());
    }
    Event::Applied(Arc::new(object))
}

/// As [`events`], of policy kinds only.
pub(super) fn objects(manifests: &str) -> Vec<Object> {
    let all = events(manifests).into_iter().map(|event| match event {
        Event::Applied(object) => Arc::unwrap_or_clone(object),
        other => panic!("{other:?}"),
    });
    all.collect()
}

pub(super) fn forward(route: &HttpRoute) -> &Forward {
    match &route.action {
        RouteAction::Forward(forward) => forward,
        other => panic!("{other:?}"),
    }
}

/// Where a route sends requests: names of clusters with weights.
pub(super) fn legs(destination: &Destination, route: &HttpRoute) -> Vec<(String, u32)> {
    forward(route)
        .clusters
        .iter()
        .map(|leg| (destination.clusters[leg.cluster].name(), leg.weight))
        .collect()
}
