//! Discovery from end to end: the control plane's server and the proxy's client in one process, over loopback TCP. What
//! is served is the test's own; who may ask, what is sent when, and what stays in force is the real thing.
// What fails in a helper fails its test.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_api::bootstrap::BootstrapToken;
use mesh_api::identity::{SpiffeId, TrustDomain};
use mesh_api::model;
use mesh_api::names::WorkloadId;
use mesh_api::wire::discovery::DeltaDiscoveryRequest;
use mesh_api::wire::{self, ResourceType};
use mesh_control::ca::{Authenticator, Authority, CertificateService, Lifetimes, TokenStore, create_token};
use mesh_control::discovery::resources::{Answer, Change, Client, Key, Resolved, Resources, Touched, version};
use mesh_control::discovery::{self as server, Authenticate, Authenticated, SyncState};
use mesh_control::grpc::Services;
use mesh_control::tls::{ControlTls, ServingNames};
use mesh_proxy::directory::{Directory, Known, Lookup};
use mesh_proxy::discovery::{self as client, Limits};
use mesh_proxy::identity::{CertStore, ControlPlane, ControlPlaneConfig, TokenSource};
use mesh_proxy::tls::verify::TrustDomains;
use mesh_proxy::upstream::Upstreams;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Streaming};

const DEADLINE: Duration = Duration::from_secs(20);
const DESTINATIONS: &str = "destinations";

/// What the control plane serves: services by host, on port 80.
struct World {
    resources: Mutex<HashMap<(ResourceType, String), Bytes>>,
    changes: broadcast::Sender<Arc<Change>>,
}

impl World {
    fn new() -> Arc<Self> {
        let world = Arc::new(Self {
            resources: Mutex::default(),
            changes: broadcast::channel(64).0,
        });
        let settings = model::MeshSettings {
            trust_domain: TrustDomain::cluster_local(),
            trust_domain_aliases: vec![],
            owned: model::Owned {
                ranges: vec!["127.0.0.0/8".parse().unwrap()],
                host_suffixes: vec!["mesh".into()],
                short_names: true,
            },
            outbound_policy: model::OutboundPolicy::AllowAny,
            access_log: None,
            tracing: None,
        };
        world.set(ResourceType::Mesh, "mesh", wire::encode_mesh(&settings));
        world.set_inbound(model::MtlsMode::Permissive);
        world
    }

    fn set_inbound(&self, default_mtls: model::MtlsMode) {
        let inbound = model::Inbound {
            workload: Arc::default(),
            ports: vec![],
            default_mtls,
            authorization: vec![],
        };
        self.set(ResourceType::Inbound, "inbound", wire::encode_inbound(&inbound));
    }

    /// A service with endpoints at these addresses, in one slice.
    fn set_service(&self, host: &str, addresses: &[&str]) {
        let endpoints = addresses.iter().map(|address| model::Endpoint {
            address: model::EndpointAddress::Ip(address.parse().unwrap()),
            port: 8080,
            workload: Arc::default(),
            weight: 1,
            mutual_tls: true,
            health: model::Health::Healthy,
        });
        let endpoints = endpoints.collect();
        let slice = format!("{host}:80/0");
        self.set(
            ResourceType::EndpointSlice,
            &slice,
            wire::encode_slice(&model::EndpointSlice { endpoints }),
        );
        let service = model::ServiceRef {
            host: host.parse().unwrap(),
            name: host.into(),
            namespace: "default".into(),
        };
        let cluster = model::Cluster {
            service: service.clone(),
            port: 80,
            subset: None,
            selector: BTreeMap::new(),
            location: model::Location::MeshInternal,
            protocol: model::Protocol::Http,
            endpoints: model::EndpointSource::Slices(vec![slice.into()]),
            balancer: model::Balancer::default(),
            pool: model::ConnectionPool::default(),
            outlier: None,
            retry_budget: None,
            tls: model::ClientTls::default(),
            subject_alt_names: vec![],
            origins: vec![],
        };
        let destination = model::Destination {
            service,
            port: 80,
            protocol: model::Protocol::Http,
            location: model::Location::MeshInternal,
            routes: vec![],
            tcp: std::iter::empty().collect(),
            clusters: vec![Arc::new(cluster)],
        };
        self.set(
            ResourceType::Destination,
            &format!("{host}:80"),
            wire::encode_destination(&destination),
        );
    }

    fn set(&self, kind: ResourceType, name: &str, bytes: Bytes) {
        self.resources.lock().unwrap().insert((kind, name.to_owned()), bytes);
        self.changed(kind, name);
    }

    fn remove(&self, kind: ResourceType, name: &str) {
        self.resources.lock().unwrap().remove(&(kind, name.to_owned()));
        self.changed(kind, name);
    }

    fn changed(&self, kind: ResourceType, name: &str) {
        let _ = self.changes.send(Arc::new(Change {
            generation: 1,
            touched: Touched::Keys(HashSet::from([Key::of(kind.label(), name)])),
            at: Instant::now(),
        }));
    }
}

impl Resources for World {
    fn admit(&self, identity: &SpiffeId, workload: &WorkloadId) -> Result<Client, String> {
        if !workload.name.starts_with(identity.service_account()) {
            return Err(format!("{workload} does not run as {identity}"));
        }
        Ok(Client {
            identity: identity.clone(),
            workload: workload.clone(),
        })
    }

    fn resolve(&self, client: &Client, kind: ResourceType, name: &str) -> Resolved {
        // Short names are of the domain `mesh`; a workload's own policy is the same for all.
        let meant = match kind {
            ResourceType::Destination if !name.contains('.') => name.replacen(':', ".mesh:", 1),
            ResourceType::Inbound if *name == *client.workload.to_string() => "inbound".to_owned(),
            _ => name.to_owned(),
        };
        let answer = match self.resources.lock().unwrap().get(&(kind, meant.clone())) {
            None => Answer::NotFound,
            Some(bytes) => Answer::Resource {
                name: match kind {
                    ResourceType::Destination => format!("{meant}@view").into(),
                    _ => name.into(),
                },
                version: version(bytes),
                bytes: bytes.clone(),
            },
        };
        Resolved {
            answer,
            objects: Arc::default(),
            depends: Arc::new([Key::of(kind.label(), &*meant)]),
        }
    }

    fn changes(&self) -> broadcast::Receiver<Arc<Change>> {
        self.changes.subscribe()
    }
}

/// Everybody runs as service account `client`.
struct Anybody;

impl Authenticate for Anybody {
    fn authenticate(&self, _: &Request<Streaming<DeltaDiscoveryRequest>>) -> server::Authenticating {
        let subject = Authenticated {
            identity: "spiffe://cluster.local/ns/default/sa/client".parse().unwrap(),
            expires: None,
        };
        Box::pin(async { Ok(subject) })
    }
}

struct Control {
    discovery: server::Discovery,
    address: SocketAddr,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

impl Control {
    async fn start(world: Arc<World>) -> Self {
        Self::start_at(world, "127.0.0.1:0".parse().unwrap()).await
    }

    async fn start_at(world: Arc<World>, address: SocketAddr) -> Self {
        let shutdown = CancellationToken::new();
        let discovery = server::Discovery::new(world, Arc::new(Anybody), "control-1", shutdown.clone());
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = Server::builder().serve_with_incoming_shutdown(
            discovery.server(),
            TcpListenerStream::new(listener),
            shutdown.clone().cancelled_owned(),
        );
        Self {
            discovery,
            address,
            shutdown,
            serving: tokio::spawn(async move { serving.await.unwrap() }),
        }
    }

    /// Ends it; its address is free afterwards.
    async fn stop(self) -> SocketAddr {
        self.shutdown.cancel();
        soon("the server ends", self.serving).await.unwrap();
        self.address
    }

    /// State of a proxy's type, and the nonce of what was sent last.
    fn state(&self, proxy: &str, kind: &str) -> Option<(SyncState, Option<String>)> {
        let status = self
            .discovery
            .status()
            .into_iter()
            .find(|status| status.name == proxy)?;
        Some((status.types[kind].state, status.types[kind].nonce.clone()))
    }

    fn subscribed(&self, proxy: &str, kind: &str) -> Option<usize> {
        let status = self
            .discovery
            .status()
            .into_iter()
            .find(|status| status.name == proxy)?;
        Some(status.types[kind].subscribed)
    }
}

/// A proxy's discovery; ends when dropped.
struct Proxy {
    directory: Arc<Directory>,
    shutdown: CancellationToken,
}

impl Proxy {
    fn start(workload: &str, address: SocketAddr, limits: Limits) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        Self::dialling(workload, endpoint, limits)
    }

    fn dialling(workload: &str, dial: impl client::Dial, limits: Limits) -> Self {
        let (directory, questions) = Directory::new();
        let workload = workload.parse().unwrap();
        let discovery = client::Discovery::new(workload, dial, limits, directory.clone(), questions, Upstreams::new());
        let shutdown = CancellationToken::new();
        tokio::spawn(discovery.run(shutdown.clone()));
        Self { directory, shutdown }
    }

    async fn ready(self) -> Self {
        eventually("the proxy is ready", || self.directory.is_ready()).await;
        self
    }

    /// Addresses of a destination's endpoints that are in force, without asking for it.
    fn endpoints(&self, host: &str) -> Option<usize> {
        match self.directory.get(host, 80)? {
            Known::In(destination) => Some(destination.clusters[0].endpoints().len()),
            Known::NotInMesh => None,
        }
    }

    async fn found(&self, host: &str) -> usize {
        match soon("an answer", self.directory.lookup(host, 80)).await {
            Lookup::Found(destination) => destination.clusters[0].endpoints().len(),
            other => panic!("{host}: {other:?}"),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let outcome = tokio::time::timeout(DEADLINE, future).await;
    outcome.unwrap_or_else(|_| panic!("not in time: {what}"))
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(what, waiting).await;
}

#[tokio::test]
async fn destinations_are_asked_for_on_demand_and_followed() {
    let world = World::new();
    world.set_service("reviews.mesh", &["127.0.0.1", "127.0.0.2"]);
    let control = Control::start(world.clone()).await;
    let proxy = Proxy::start("client-1.default", control.address, Limits::default())
        .ready()
        .await;
    assert!(proxy.directory.get("reviews", 80).is_none());
    assert_eq!(proxy.found("Reviews.").await, 2);
    assert_eq!(proxy.found("reviews.mesh").await, 2);
    let (Some(Known::In(short)), Some(Known::In(full))) = (
        proxy.directory.get("reviews", 80),
        proxy.directory.get("reviews.mesh", 80),
    ) else {
        panic!("not held");
    };
    assert!(Arc::ptr_eq(&short, &full), "two names of one resource");

    world.set_service("reviews.mesh", &["127.0.0.1"]);
    eventually("endpoints follow", || proxy.endpoints("reviews") == Some(1)).await;
    let synced = || {
        matches!(
            control.state("client-1.default", DESTINATIONS),
            Some((SyncState::Synced, _))
        )
    };
    eventually("synced", synced).await;
    assert_eq!(control.subscribed("client-1.default", "endpoints"), Some(1));
}

#[tokio::test]
async fn what_is_not_in_the_mesh_may_come_into_it() {
    let world = World::new();
    let control = Control::start(world.clone()).await;
    let proxy = Proxy::start("client-1.default", control.address, Limits::default())
        .ready()
        .await;
    let outcome = soon("an answer", proxy.directory.lookup("later", 80)).await;
    assert!(matches!(outcome, Lookup::NotInMesh), "{outcome:?}");
    world.set_service("later.mesh", &["127.0.0.1"]);
    eventually("it appears", || proxy.endpoints("later") == Some(1)).await;
    world.remove(ResourceType::Destination, "later.mesh:80");
    eventually("it is gone", || {
        matches!(proxy.directory.get("later", 80), Some(Known::NotInMesh))
    })
    .await;
}

#[tokio::test]
async fn a_policy_change_reaches_live_connections() {
    let world = World::new();
    let control = Control::start(world.clone()).await;
    let proxy = Proxy::start("client-1.default", control.address, Limits::default())
        .ready()
        .await;
    let mut changed = proxy.directory.changed();
    changed.mark_unchanged();
    world.set_inbound(model::MtlsMode::Strict);
    soon("a change", changed.changed()).await.unwrap();
    assert_eq!(proxy.directory.inbound().unwrap().default_mtls, model::MtlsMode::Strict);
}

#[tokio::test]
async fn a_bad_resource_is_refused_and_the_last_good_one_stays() {
    let world = World::new();
    world.set_service("a.mesh", &["127.0.0.1"]);
    let control = Control::start(world.clone()).await;
    let proxy = Proxy::start("client-1.default", control.address, Limits::default())
        .ready()
        .await;
    proxy.found("a").await;
    world.set(
        ResourceType::Destination,
        "a.mesh:80",
        Bytes::from_static(b"\xff\xff no message"),
    );
    let failed = || {
        matches!(
            control.state("client-1.default", DESTINATIONS),
            Some((SyncState::Error, _))
        )
    };
    eventually("an error", failed).await;
    let status = &control.discovery.status()[0].types[DESTINATIONS];
    assert!(
        status.error.as_ref().unwrap().starts_with("a.mesh:80@view: "),
        "{:?}",
        status.error
    );
    assert_eq!(proxy.endpoints("a"), Some(1));
    assert_eq!(proxy.directory.snapshot().rejected.len(), 1);

    world.set_service("a.mesh", &["127.0.0.1", "127.0.0.2"]);
    eventually("mended", || proxy.endpoints("a") == Some(2)).await;
    let synced = || {
        matches!(
            control.state("client-1.default", DESTINATIONS),
            Some((SyncState::Synced, _))
        )
    };
    eventually("synced", synced).await;
    assert!(proxy.directory.snapshot().rejected.is_empty());
}

#[tokio::test]
async fn an_outage_changes_nothing_and_its_end_sends_only_what_changed() {
    let world = World::new();
    for host in ["a.mesh", "b.mesh"] {
        world.set_service(host, &["127.0.0.1"]);
    }
    let control = Control::start(world.clone()).await;
    let proxy = Proxy::start("client-1.default", control.address, Limits::default())
        .ready()
        .await;
    proxy.found("a").await;
    proxy.found("b").await;
    let address = control.stop().await;
    eventually("the outage is noticed", || !proxy.directory.snapshot().connected).await;
    assert_eq!(proxy.found("a").await, 1);
    assert!(proxy.directory.is_ready());

    // Only endpoints change: destinations, settings and own policy are as they were.
    world.set_service("b.mesh", &["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
    let control = Control::start_at(world, address).await;
    eventually("what changed arrives", || proxy.endpoints("b") == Some(3)).await;
    for kind in ["mesh", "inbound", DESTINATIONS] {
        eventually(kind, || {
            control.state("client-1.default", kind) == Some((SyncState::Synced, None))
        })
        .await;
    }
}

#[tokio::test]
async fn a_question_during_an_outage_is_answered_at_its_end() {
    let world = World::new();
    world.set_service("a.mesh", &["127.0.0.1"]);
    let control = Control::start(world.clone()).await;
    let proxy = Proxy::start("client-1.default", control.address, Limits::default())
        .ready()
        .await;
    let address = control.stop().await;
    eventually("the outage is noticed", || !proxy.directory.snapshot().connected).await;
    let directory = proxy.directory.clone();
    let asking = tokio::spawn(async move { directory.lookup("a", 80).await });
    eventually("the question is held", || proxy.directory.snapshot().waiting.len() == 1).await;
    let _control = Control::start_at(world, address).await;
    let outcome = soon("an answer", asking).await.unwrap();
    assert!(matches!(outcome, Lookup::Found(_)), "{outcome:?}");
}

#[tokio::test]
async fn a_replica_reaches_in_an_outage_what_only_its_sibling_has_called() {
    let world = World::new();
    world.set_service("a.mesh", &["127.0.0.1"]);
    let control = Control::start(world.clone()).await;
    let limits = Limits {
        idle: Duration::from_millis(400),
        ..Limits::default()
    };
    let quiet = Proxy::start("client-1.default", control.address, limits).ready().await;
    let busy = Proxy::start("client-2.default", control.address, Limits::default())
        .ready()
        .await;
    busy.found("a").await;
    let held = |proxy: &Proxy| {
        let snapshot = proxy.directory.snapshot();
        snapshot.destinations.iter().any(|held| held.current.is_some())
    };
    eventually("the hint arrives", || held(&quiet)).await;
    let late = Proxy::start("client-3.default", control.address, Limits::default())
        .ready()
        .await;
    eventually("late comers get it as well", || held(&late)).await;

    // Held for as long as the sibling asks, well beyond the time after which idle subscriptions end.
    let since = Instant::now();
    eventually("time passes", || {
        assert!(held(&quiet));
        since.elapsed() > Duration::from_millis(1200)
    })
    .await;
    control.stop().await;
    eventually("the outage is noticed", || !quiet.directory.snapshot().connected).await;
    assert_eq!(quiet.found("a").await, 1);
    assert_eq!(late.found("a").await, 1);
}

#[tokio::test]
async fn idle_subscriptions_end_and_unused_hints_with_them() {
    let world = World::new();
    world.set_service("a.mesh", &["127.0.0.1"]);
    let control = Control::start(world.clone()).await;
    let limits = Limits {
        idle: Duration::from_millis(300),
        ..Limits::default()
    };
    let sibling = Proxy::start("client-2.default", control.address, Limits::default())
        .ready()
        .await;
    let proxy = Proxy::start("client-1.default", control.address, limits).ready().await;
    proxy.found("a").await;
    eventually("the hint arrives", || {
        !sibling.directory.snapshot().destinations.is_empty()
    })
    .await;
    eventually("it ends", || {
        control.subscribed("client-1.default", DESTINATIONS) == Some(0)
    })
    .await;
    eventually("its endpoints, too", || {
        control.subscribed("client-1.default", "endpoints") == Some(0)
    })
    .await;
    eventually("the hint ends", || sibling.directory.snapshot().destinations.is_empty()).await;
    assert_eq!(proxy.found("a").await, 1, "and is asked for again when needed");
}

#[tokio::test]
async fn a_server_that_talks_nonsense_is_left_and_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let proxy = Proxy::start("client-1.default", address, Limits::default());
    for nonsense in [&b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..], &[0xff; 4096]] {
        let (mut stream, _) = soon("a connection", listener.accept()).await.unwrap();
        stream.write_all(nonsense).await.unwrap();
        let mut rest = Vec::new();
        let _ = soon("the proxy leaves", stream.read_to_end(&mut rest)).await;
    }
    drop(listener);
    assert!(!proxy.directory.is_ready());
    let control = Control::start_at(World::new(), address).await;
    let proxy = proxy.ready().await;
    drop((proxy, control));
}

#[tokio::test]
async fn over_tls_a_proxy_is_who_its_token_says() {
    let directory = tempfile::tempdir().unwrap();
    let trust_domain = TrustDomain::cluster_local();
    let authority = Authority::open(directory.path(), &trust_domain, Lifetimes::default()).unwrap();
    let names = ServingNames {
        identity: "spiffe://cluster.local/ns/mesh-system/sa/mesh-control".parse().unwrap(),
        dns_names: vec![],
        addresses: vec![],
    };
    let tls = ControlTls::new(authority.clone(), names.clone()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let authenticator = Authenticator::new(trust_domain, TokenStore::new(directory.path()));
    let shutdown = CancellationToken::new();
    let authenticate = Arc::new(authenticator.clone());
    let discovery = server::Discovery::new(World::new(), authenticate, "control-1", shutdown.clone());
    let services = Services(
        CertificateService::server(authority.clone(), authenticator),
        discovery.server(),
    );
    let serving = Server::builder().serve_with_incoming(services, tls.incoming(listener));
    let serving = tokio::spawn(serving);

    let dial = |account: &str| {
        let identity: SpiffeId = format!("spiffe://cluster.local/ns/default/sa/{account}")
            .parse()
            .unwrap();
        let hour = Duration::from_secs(3600);
        let token: BootstrapToken = create_token(directory.path(), &authority, &identity, hour).unwrap();
        let config = ControlPlaneConfig {
            address: address.to_string().parse().unwrap(),
            identity: names.identity.clone(),
            token: Some(TokenSource::Bootstrap(token)),
            roots: None,
        };
        ControlPlane::new(
            config,
            CertStore::new(TrustDomains::new(TrustDomain::cluster_local(), Vec::new())),
        )
    };
    let proxy = Proxy::dialling("client-1.default", dial("client"), Limits::default())
        .ready()
        .await;
    let status = discovery.status();
    assert_eq!(status[0].identity, "spiffe://cluster.local/ns/default/sa/client");
    assert!(status[0].address.is_some());

    let impostor = Proxy::dialling("client-1.default", dial("somebody-else"), Limits::default());
    let refused = || {
        let error = impostor.directory.snapshot().last_error;
        error.is_some_and(|error| error.contains("does not run as"))
    };
    eventually("the impostor is told", refused).await;
    assert!(impostor.directory.inbound().is_none());
    drop((proxy, impostor));
    serving.abort();
}
