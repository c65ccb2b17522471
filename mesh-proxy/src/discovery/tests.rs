//! What is held and what the server is told, step by step, without a network.

use std::collections::BTreeMap;
use std::net::IpAddr;
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

#[test]
fn a_stream_begins_with_settings_own_policy_and_hints() {
    let mut held = Held::new();
    let told = held.connect();
    assert_eq!(of(ResourceType::Mesh, &told).resource_names_subscribe, ["mesh"]);
    assert_eq!(
        of(ResourceType::Inbound, &told).resource_names_subscribe,
        ["client.default"]
    );
    assert!(of(DESTINATION, &told).resource_names_subscribe.is_empty());
}

#[test]
fn a_destination_is_visible_when_its_endpoints_have_come() {
    let mut held = Held::new();
    let mut answer = held.ask("a:80");
    assert_eq!(of(DESTINATION, &held.told()).resource_names_subscribe, ["a:80"]);
    held.send(
        DESTINATION,
        vec![destination("a.x", "1", &["a:80"], &["a.x:80/0", "a.x:80/1"])],
    );
    assert_eq!(
        of(SLICE, &held.told()).resource_names_subscribe,
        ["a.x:80/0", "a.x:80/1"]
    );
    held.send(SLICE, vec![slice("a.x:80/0", "1", &["127.7.0.1"])]);
    assert_eq!(held.version("a"), None);
    assert!(answer.try_recv().is_err());
    held.remove(SLICE, "a.x:80/1");
    assert_eq!(held.version("A."), Some("1".into()));
    let Ok(Lookup::Found(found)) = answer.try_recv() else {
        panic!("not found");
    };
    assert_eq!(found.clusters[0].endpoints().len(), 1);

    // A new version with a slice that is not here: the old one stays until then.
    held.send(
        DESTINATION,
        vec![destination("a.x", "2", &["a:80"], &["a.x:80/0", "a.x:80/2"])],
    );
    assert_eq!(held.version("a"), Some("1".into()));
    let told = held.told();
    assert_eq!(of(SLICE, &told).resource_names_subscribe, ["a.x:80/2"]);
    assert!(of(SLICE, &told).resource_names_unsubscribe.is_empty());
    held.send(SLICE, vec![slice("a.x:80/2", "1", &["127.7.0.3", "127.7.0.4"])]);
    assert_eq!(held.version("a"), Some("2".into()));
    assert_eq!(of(SLICE, &held.told()).resource_names_unsubscribe, ["a.x:80/1"]);
}

#[test]
fn endpoints_reach_the_clusters_in_force() {
    let mut held = Held::new();
    drop(held.ask("a:80"));
    held.told();
    held.send(DESTINATION, vec![destination("a.x", "1", &["a:80"], &["s"])]);
    held.told();
    held.send(SLICE, vec![slice("s", "1", &["127.7.0.1"])]);
    let Some(Known::In(before)) = held.directory.get("a", 80) else {
        panic!("not there");
    };
    held.send(SLICE, vec![slice("s", "2", &["127.7.0.1", "127.7.0.2"])]);
    assert_eq!(before.clusters[0].endpoints().len(), 2);
}

#[test]
fn what_does_not_decode_is_refused_by_name_and_the_last_good_stays() {
    let mut held = Held::new();
    drop(held.ask("a:80"));
    drop(held.ask("b:80"));
    held.told();
    held.send(DESTINATION, vec![destination("a.x", "1", &["a:80"], &[])]);
    assert_eq!(of(DESTINATION, &held.told()).error_detail, None);
    held.send(
        DESTINATION,
        vec![
            garbage(DESTINATION, "a.x:80@v", &["a:80"]),
            destination("b.x", "1", &["b:80"], &[]),
        ],
    );
    let told = held.told();
    let error = of(DESTINATION, &told).error_detail.clone().unwrap();
    assert!(error.message.starts_with("a.x:80@v: "), "{}", error.message);
    assert_eq!(of(DESTINATION, &told).response_nonce, "n");
    assert_eq!(
        (held.version("a"), held.version("b")),
        (Some("1".into()), Some("1".into()))
    );
    assert_eq!(
        held.directory.snapshot().rejected.len(),
        0,
        "no client is attached in this test"
    );
    assert_eq!(held.store.snapshot().rejected.len(), 1);
    held.send(DESTINATION, vec![destination("a.x", "2", &["a:80"], &[])]);
    assert!(held.store.snapshot().rejected.is_empty());
    assert_eq!(held.version("a"), Some("2".into()));
}

#[test]
fn inbound_is_closed_until_it_is_there_and_when_it_is_gone() {
    let mut held = Held::new();
    let changed = held.directory.changed();
    let inbound = model::Inbound {
        workload: Arc::default(),
        ports: vec![],
        default_mtls: model::MtlsMode::Strict,
        authorization: vec![],
    };
    held.send(
        ResourceType::Inbound,
        vec![garbage(ResourceType::Inbound, "client.default", &[])],
    );
    assert!(held.directory.inbound().is_none());
    let bytes = wire::encode_inbound(&inbound);
    let other = resource(ResourceType::Inbound, "other.default", "1", &[], bytes.clone());
    held.send(ResourceType::Inbound, vec![other]);
    assert!(held.directory.inbound().is_none(), "of another workload");
    let own = resource(ResourceType::Inbound, "client.default", "1", &[], bytes);
    held.send(ResourceType::Inbound, vec![own]);
    assert_eq!(held.directory.inbound().as_deref(), Some(&inbound));
    assert!(changed.has_changed().unwrap());
    held.store.disconnect("away".into());
    assert!(held.directory.inbound().is_some());
    held.connect();
    held.remove(ResourceType::Inbound, "client.default");
    assert!(held.directory.inbound().is_none());
}

#[test]
fn unknown_is_not_in_mesh_until_the_name_appears() {
    let mut held = Held::new();
    let mut answer = held.ask("later:80");
    held.told();
    held.remove(DESTINATION, "later:80");
    assert!(matches!(answer.try_recv(), Ok(Lookup::NotInMesh)));
    assert_eq!(held.version("later"), Some("not in mesh".into()));
    held.send(DESTINATION, vec![destination("later.x", "1", &["later:80"], &[])]);
    assert_eq!(held.version("later"), Some("1".into()));
    held.remove(DESTINATION, "later:80");
    assert_eq!(held.version("later"), Some("not in mesh".into()));
}

#[test]
fn names_share_a_destination_and_may_move_to_another() {
    let mut held = Held::new();
    drop(held.ask("a:80"));
    drop(held.ask("a.default:80"));
    held.told();
    held.send(
        DESTINATION,
        vec![destination("a.x", "1", &["a:80", "a.default:80"], &["s"])],
    );
    held.told();
    held.send(SLICE, vec![slice("s", "1", &[])]);
    let (Some(Known::In(one)), Some(Known::In(other))) =
        (held.directory.get("a", 80), held.directory.get("a.default", 80))
    else {
        panic!("not there");
    };
    assert!(Arc::ptr_eq(&one, &other));
    held.send(
        DESTINATION,
        vec![destination("b.x", "9", &["a:80", "a.default:80"], &[])],
    );
    assert_eq!(held.version("a"), Some("9".into()));
    assert_eq!(
        of(SLICE, &held.told()).resource_names_unsubscribe,
        ["s"],
        "nothing leads to a.x any longer"
    );
}

#[test]
fn a_new_stream_says_what_is_held() {
    let mut held = Held::new();
    drop(held.ask("a:80"));
    drop(held.ask("b:80"));
    held.told();
    held.send(
        DESTINATION,
        vec![
            destination("a.x", "1", &["a:80"], &["s"]),
            destination("hint.x", "4", &["hint:80"], &[]),
        ],
    );
    held.told();
    held.send(SLICE, vec![slice("s", "7", &[])]);
    held.store.disconnect("gone".into());
    assert_eq!(held.version("a"), Some("1".into()), "answers stay in force");
    drop(held.ask("c:80"));
    let told = held.connect();
    let request = of(DESTINATION, &told);
    assert_eq!(request.resource_names_subscribe, ["a:80", "b:80", "c:80", "hint:80"]);
    let held_versions: BTreeMap<_, _> = request.initial_resource_versions.iter().collect();
    let expected = [
        ("a:80".to_owned(), "1".to_owned()),
        ("hint:80".to_owned(), "4".to_owned()),
    ];
    assert_eq!(
        held_versions,
        expected.iter().map(|(name, version)| (name, version)).collect()
    );
    assert_eq!(of(SLICE, &told).initial_resource_versions["s"], "7");
}

#[test]
fn idle_subscriptions_end_but_not_during_an_outage() {
    let mut held = Held::new();
    for name in ["used:80", "idle:80", "nowhere:80"] {
        drop(held.ask(name));
    }
    held.told();
    held.send(
        DESTINATION,
        vec![
            destination("used.x", "1", &["used:80"], &["u"]),
            destination("idle.x", "1", &["idle:80"], &["i"]),
        ],
    );
    held.remove(DESTINATION, "nowhere:80");
    held.told();
    held.send(SLICE, vec![slice("u", "1", &[]), slice("i", "1", &[])]);
    held.told();
    held.store.disconnect("gone".into());
    held.advance(Duration::from_secs(3600));
    assert_eq!(held.store.snapshot().destinations.len(), 2, "kept, however idle");
    held.connect();
    assert!(held.version("used").is_some() && held.version("nowhere").is_some());
    held.advance(Duration::from_secs(1));
    let told = held.told();
    assert_eq!(of(DESTINATION, &told).resource_names_unsubscribe, ["idle:80"]);
    assert_eq!(of(SLICE, &told).resource_names_unsubscribe, ["i"]);
    assert_eq!(held.version("idle"), None);
    held.advance(Duration::from_secs(599));
    assert!(held.version("used").is_some());
}

#[test]
fn hints_are_held_without_asking_while_a_replica_uses_them() {
    let mut held = Held::new();
    held.send(DESTINATION, vec![destination("h.x", "1", &["h:80"], &["s"])]);
    assert_eq!(of(SLICE, &held.told()).resource_names_subscribe, ["s"]);
    held.send(SLICE, vec![slice("s", "1", &[])]);
    held.told();
    held.advance(Duration::from_secs(3600));
    assert!(held.told().is_empty(), "hints do not end by themselves");

    held.remove(DESTINATION, "h:80");
    assert!(
        held.directory.get("h", 80).is_none(),
        "forgotten, and not said to be outside"
    );
    assert_eq!(of(SLICE, &held.told()).resource_names_unsubscribe, ["s"]);

    held.send(DESTINATION, vec![destination("h.x", "1", &["h:80"], &[])]);
    held.told();
    assert!(held.version("h").is_some());
    held.remove(DESTINATION, "h:80");
    assert!(held.version("h").is_some(), "used: our own question now");
    assert_eq!(of(DESTINATION, &held.told()).resource_names_subscribe, ["h:80"]);
    held.remove(DESTINATION, "h:80");
    assert_eq!(held.version("h"), Some("not in mesh".into()));
}

#[test]
fn a_used_hint_becomes_a_subscription() {
    let mut held = Held::new();
    held.send(DESTINATION, vec![destination("h.x", "1", &["h:80"], &[])]);
    held.told();
    assert!(held.version("h").is_some());
    held.advance(Duration::from_secs(1));
    assert_eq!(of(DESTINATION, &held.told()).resource_names_subscribe, ["h:80"]);
}

#[test]
fn what_was_sent_before_the_server_knew_is_ignored() {
    let mut held = Held::new();
    drop(held.ask("a:80"));
    held.told();
    held.send(DESTINATION, vec![destination("a.x", "1", &["a:80"], &[])]);
    held.told();
    held.advance(Duration::from_secs(601));
    assert_eq!(of(DESTINATION, &held.told()).resource_names_unsubscribe, ["a:80"]);
    held.response(DESTINATION, vec![destination("a.x", "2", &["a:80"], &[])], &[], 1);
    assert!(
        held.directory.get("a", 80).is_none(),
        "an update that crossed our farewell is no hint"
    );
    held.send(DESTINATION, vec![destination("a.x", "2", &["a:80"], &[])]);
    assert_eq!(held.version("a"), Some("2".into()), "a hint is");
}

#[test]
fn subscriptions_are_bounded() {
    let limits = Limits {
        subscriptions: 32,
        not_in_mesh: 8,
        ..Limits::default()
    };
    let mut held = Held::with(limits);
    drop(held.ask("kept:80"));
    held.told();
    held.send(DESTINATION, vec![destination("kept.x", "1", &["kept:80"], &[])]);
    for i in 0..100 {
        let name = format!("nowhere-{i}:80");
        drop(held.ask(&name));
        held.told();
        held.remove(DESTINATION, &name);
        assert!(held.store.snapshot().not_in_mesh.len() <= 8);
    }
    for i in 0..100 {
        held.advance(Duration::from_millis(1));
        let (name, alias) = (format!("a{i}.x"), format!("a{i}:80"));
        drop(held.ask(&alias));
        held.told();
        held.send(DESTINATION, vec![destination(&name, "1", &[&alias], &[])]);
        assert!(held.version("kept").is_some(), "used all the time");
        assert!(held.store.snapshot().destinations.len() <= 32);
    }
    assert!(held.directory.get("a0", 80).is_none());
    held.store.disconnect("gone".into());
    for i in 0..100 {
        drop(held.ask(&format!("outage-{i}:80")));
    }
    assert!(
        held.version("a99").is_some() && held.version("kept").is_some(),
        "nothing known is given up in an outage"
    );
    assert!(held.store.snapshot().waiting.len() <= 32);
}

#[test]
fn a_hint_beyond_the_bound_is_refused() {
    let limits = Limits {
        subscriptions: 1,
        ..Limits::default()
    };
    let mut held = Held::with(limits);
    drop(held.ask("a:80"));
    held.told();
    held.send(
        DESTINATION,
        vec![
            destination("a.x", "1", &["a:80"], &[]),
            destination("h.x", "1", &["h:80"], &["s"]),
        ],
    );
    let told = held.told();
    assert_eq!(of(DESTINATION, &told).resource_names_unsubscribe, ["h:80"]);
    assert!(told.iter().all(|request| request.type_url != SLICE.type_url()));
}

#[test]
fn peers_are_known_after_the_first_question() {
    let mut held = Held::new();
    let address: IpAddr = "127.7.0.1".parse().unwrap();
    held.store.question(Question::Peer(address));
    held.store.question(Question::Peer(address));
    assert_eq!(
        of(ResourceType::Workload, &held.told()).resource_names_subscribe,
        ["127.7.0.1"]
    );
    let workload = model::Workload {
        name: "reviews-v1".into(),
        ..model::Workload::default()
    };
    let bytes = wire::encode_workload(&workload);
    held.send(
        ResourceType::Workload,
        vec![resource(ResourceType::Workload, "127.7.0.1", "1", &[], bytes)],
    );
    assert_eq!(
        held.directory.peer("::ffff:127.7.0.1".parse().unwrap()).as_deref(),
        Some(&workload)
    );
    held.told();
    held.remove(ResourceType::Workload, "127.7.0.1");
    assert_eq!(held.directory.peer(address), None);
    held.told();
    held.advance(Duration::from_secs(601));
    held.advance(Duration::from_secs(601));
    assert_eq!(
        of(ResourceType::Workload, &held.told()).resource_names_unsubscribe,
        ["127.7.0.1"]
    );
}

#[test]
fn settings_are_never_taken_away() {
    let mut held = Held::new();
    let bytes = wire::encode_mesh(&settings());
    held.send(
        ResourceType::Mesh,
        vec![resource(ResourceType::Mesh, "mesh", "1", &[], bytes)],
    );
    held.remove(ResourceType::Mesh, "mesh");
    assert_eq!(held.directory.settings().as_deref(), Some(&settings()));
}

#[test]
fn settings_that_cannot_be_in_force_are_refused() {
    let mesh = |version: &str, policy| {
        let settings = MeshSettings {
            outbound_policy: policy,
            ..settings()
        };
        let bytes = wire::encode_mesh(&settings);
        vec![resource(ResourceType::Mesh, "mesh", version, &[], bytes)]
    };
    let (wrong, right) = (model::OutboundPolicy::RegistryOnly, model::OutboundPolicy::AllowAny);
    let take = move |settings: &MeshSettings| match settings.outbound_policy == wrong {
        true => Err("it cannot be".to_owned()),
        false => Ok(()),
    };
    let mut held = Held::new();
    held.store.set_take_settings(Box::new(take));
    let refused = |held: &mut Held| {
        let told = held.told();
        let error = of(ResourceType::Mesh, &told).error_detail.clone();
        error.map(|error| error.message)
    };
    let policy = |held: &Held| held.directory.settings().unwrap().outbound_policy;

    held.send(ResourceType::Mesh, mesh("1", wrong));
    assert_eq!(refused(&mut held).as_deref(), Some("mesh: it cannot be"));
    assert_eq!(
        policy(&held),
        wrong,
        "without any settings, these are in force as far as they can"
    );
    held.send(ResourceType::Mesh, mesh("2", right));
    assert_eq!(refused(&mut held), None);
    held.send(ResourceType::Mesh, mesh("3", wrong));
    assert_eq!(refused(&mut held).as_deref(), Some("mesh: it cannot be"));
    assert_eq!(policy(&held), right, "the last good ones stay");
}
