//! What is held and what the server is told, step by step, without a network.

mod destinations;
mod own;
mod subscriptions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_api::model::{self, EndpointSlice, EndpointSource, MeshSettings, Owned, WeightedCluster};
use mesh_api::names::WorkloadId;
use mesh_api::wire::discovery::{Any, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use mesh_api::wire::{self, ResourceType};
use tokio::sync::oneshot;

use super::Limits;
use super::store::Store;
use crate::directory::{Directory, Known, Lookup, Name, Question, Questions};
use crate::upstream::Upstreams;

const DESTINATION: ResourceType = ResourceType::Destination;
const SLICE: ResourceType = ResourceType::EndpointSlice;

/// The store with a server played by the test.
struct Held {
    directory: Arc<Directory>,
    _questions: Questions,
    store: Store,
    /// Requests that the server has read, by type.
    requests: BTreeMap<ResourceType, u64>,
}

impl Held {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let (directory, questions) = Directory::new();
        let workload: WorkloadId = "client.default".parse().unwrap();
        let mut held = Self {
            store: Store::new(directory.clone(), Upstreams::new(), &workload, limits),
            directory,
            _questions: questions,
            requests: BTreeMap::new(),
        };
        held.connect();
        held
    }

    fn connect(&mut self) -> Vec<DeltaDiscoveryRequest> {
        self.requests.clear();
        self.store.restart();
        self.told()
    }

    /// What the server is told.
    fn told(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let requests: Vec<_> = std::iter::from_fn(|| self.store.request()).collect();
        for request in &requests {
            let kind = ResourceType::from_type_url(&request.type_url).unwrap();
            *self.requests.entry(kind).or_default() += 1;
        }
        requests
    }

    fn ask(&mut self, name: &str) -> oneshot::Receiver<Lookup> {
        let (reply, answer) = oneshot::channel();
        let name = Name::parse(name).unwrap();
        self.store.question(Question::Destination { name, reply });
        answer
    }

    /// The server answers having read `unread` requests fewer than were sent.
    fn response(&mut self, kind: ResourceType, resources: Vec<Resource>, removed: &[&str], unread: u64) {
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().into(),
            resources,
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
            nonce: "n".into(),
            requests_seen: self.requests.get(&kind).copied().unwrap_or_default() - unread,
            ..DeltaDiscoveryResponse::default()
        };
        self.store.response(response).unwrap();
    }

    fn send(&mut self, kind: ResourceType, resources: Vec<Resource>) {
        self.response(kind, resources, &[], 0);
    }

    fn remove(&mut self, kind: ResourceType, name: &str) {
        self.response(kind, vec![], &[name], 0);
    }

    fn version(&self, host: &str) -> Option<String> {
        match self.directory.get(host, 80)? {
            Known::In(destination) => Some(destination.version.to_string()),
            Known::NotInMesh => Some("not in mesh".into()),
        }
    }

    fn advance(&mut self, time: Duration) {
        let now = self.directory.now() + u64::try_from(time.as_millis()).unwrap();
        self.directory.set_now(now);
        self.store.tick();
    }
}

fn resource(kind: ResourceType, name: &str, version: &str, aliases: &[&str], bytes: bytes::Bytes) -> Resource {
    Resource {
        name: name.into(),
        version: version.into(),
        aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        resource: Some(Any {
            type_url: kind.type_url().into(),
            value: bytes,
        }),
        ttl: None,
    }
}

fn cluster(host: &str, slices: &[&str]) -> Arc<model::Cluster> {
    Arc::new(model::Cluster {
        service: service(host),
        port: 80,
        subset: None,
        selector: BTreeMap::new(),
        location: model::Location::MeshInternal,
        protocol: model::Protocol::Http,
        endpoints: EndpointSource::Slices(slices.iter().map(|name| (*name).into()).collect()),
        balancer: model::Balancer::default(),
        pool: model::ConnectionPool::default(),
        outlier: None,
        retry_budget: None,
        tls: model::ClientTls::default(),
        subject_alt_names: vec![],
        origins: vec![],
    })
}

fn service(host: &str) -> model::ServiceRef {
    model::ServiceRef {
        host: host.parse().unwrap(),
        name: host.into(),
        namespace: "default".into(),
    }
}

/// `<host>:80@v` in some version, asked for as `aliases`, with one cluster on `slices`.
fn destination(host: &str, version: &str, aliases: &[&str], slices: &[&str]) -> Resource {
    let model = model::Destination {
        service: service(host),
        port: 80,
        protocol: model::Protocol::Http,
        location: model::Location::MeshInternal,
        routes: vec![],
        tcp: smallvec::smallvec![WeightedCluster {
            cluster: 0,
            weight: 1,
            ..weighted()
        }],
        clusters: vec![cluster(host, slices)],
    };
    resource(
        DESTINATION,
        &format!("{host}:80@v"),
        version,
        aliases,
        wire::encode_destination(&model),
    )
}

fn slice(name: &str, version: &str, addresses: &[&str]) -> Resource {
    let endpoints = addresses.iter().map(|address| model::Endpoint {
        address: model::EndpointAddress::Ip(address.parse().unwrap()),
        port: 8080,
        workload: Arc::default(),
        weight: 1,
        mutual_tls: false,
        health: model::Health::Healthy,
    });
    let slice = EndpointSlice {
        endpoints: endpoints.collect(),
    };
    resource(SLICE, name, version, &[], wire::encode_slice(&slice))
}

fn garbage(kind: ResourceType, name: &str, aliases: &[&str]) -> Resource {
    resource(kind, name, "bad", aliases, bytes::Bytes::from_static(b"\xff\xff\xff"))
}

fn settings() -> MeshSettings {
    MeshSettings {
        trust_domain: mesh_api::identity::TrustDomain::cluster_local(),
        trust_domain_aliases: vec![],
        owned: Owned {
            ranges: vec!["127.7.0.0/16".parse().unwrap()],
            host_suffixes: vec!["cluster.local".into()],
            short_names: true,
        },
        outbound_policy: model::OutboundPolicy::AllowAny,
        access_log: None,
        tracing: None,
    }
}

/// The one request of a type among some.
fn of(kind: ResourceType, requests: &[DeltaDiscoveryRequest]) -> &DeltaDiscoveryRequest {
    let mut found = requests.iter().filter(|request| request.type_url == kind.type_url());
    let request = found
        .next()
        .unwrap_or_else(|| panic!("no request of {kind}: {requests:?}"));
    assert!(found.next().is_none(), "several requests of {kind}");
    request
}

fn weighted() -> WeightedCluster {
    WeightedCluster {
        cluster: 0,
        weight: 1,
        headers: model::HeaderOps::default(),
    }
}
