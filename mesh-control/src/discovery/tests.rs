//! The server against a bare client of the protocol, over loopback TCP.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes};
use mesh_api::names::{ObjectRef, WorkloadId};
use mesh_api::wire::ResourceType;
use mesh_api::wire::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_api::wire::discovery::{Node, Status as RpcStatus};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Server};

use super::resources::{Answer, Change, Client, Key, Resolved, Touched, version};
use super::*;

const DEADLINE: Duration = Duration::from_secs(10);
const DESTINATION: ResourceType = ResourceType::Destination;

/// A world of named byte strings. Destinations are canonical under `<name without -alias>@view`.
struct World {
    resources: Mutex<HashMap<(ResourceType, String), Bytes>>,
    resolved: Mutex<BTreeMap<String, usize>>,
    changes: broadcast::Sender<Arc<Change>>,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            resources: Mutex::default(),
            resolved: Mutex::default(),
            changes: broadcast::channel(16).0,
        })
    }

    fn set(&self, kind: ResourceType, name: &str, bytes: Option<&'static str>) {
        let mut resources = self.resources.lock().unwrap();
        match bytes {
            Some(bytes) => resources.insert((kind, name.to_owned()), Bytes::from_static(bytes.as_bytes())),
            None => resources.remove(&(kind, name.to_owned())),
        };
        drop(resources);
        let _ = self.changes.send(Arc::new(Change {
            generation: 1,
            touched: Touched::Keys(HashSet::from([Key::of("name", name)])),
            at: Instant::now(),
        }));
    }

    fn resolved(&self, name: &str) -> usize {
        self.resolved.lock().unwrap().get(name).copied().unwrap_or_default()
    }
}

impl Resources for World {
    fn admit(&self, identity: &SpiffeId, workload: &WorkloadId) -> Result<Client, String> {
        if workload.name.starts_with(identity.service_account()) {
            return Ok(Client {
                identity: identity.clone(),
                workload: workload.clone(),
            });
        }
        Err(format!("workload `{workload}` does not run as {identity}"))
    }

    fn resolve(&self, _: &Client, kind: ResourceType, name: &str) -> Resolved {
        *self.resolved.lock().unwrap().entry(name.to_owned()).or_default() += 1;
        let base = name.trim_end_matches("-alias");
        let answer = match self.resources.lock().unwrap().get(&(kind, base.to_owned())) {
            None => Answer::NotFound,
            Some(bytes) => Answer::Resource {
                name: match kind {
                    DESTINATION => format!("{base}@view").into(),
                    _ => name.into(),
                },
                version: version(bytes),
                bytes: bytes.clone(),
            },
        };
        Resolved {
            answer,
            objects: Arc::new([ObjectRef::new("VirtualService", "default", base)]),
            depends: Arc::new([Key::of("name", base)]),
        }
    }

    fn changes(&self) -> broadcast::Receiver<Arc<Change>> {
        self.changes.subscribe()
    }
}

/// Takes the identity from a header.
struct ByHeader;

impl Authenticate for ByHeader {
    fn authenticate(&self, request: &Request<Streaming<DeltaDiscoveryRequest>>) -> Authenticating {
        let identity = request.metadata().get("identity");
        let subject = identity.map(|identity| Authenticated {
            identity: identity.to_str().unwrap().parse().unwrap(),
            expires: None,
        });
        Box::pin(async { subject.ok_or_else(|| Status::unauthenticated("nobody")) })
    }
}

async fn serve(world: Arc<World>) -> (Discovery, SocketAddr) {
    let discovery = Discovery::new(world, Arc::new(ByHeader), "control-1", CancellationToken::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder().serve_with_incoming(discovery.server(), TcpListenerStream::new(listener));
    tokio::spawn(server);
    (discovery, address)
}

struct Proxy {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Proxy {
    /// Opens a stream for workload `<workload>.default` of service account `account` with a first request.
    async fn open(address: SocketAddr, account: &str, workload: &str, mut first: DeltaDiscoveryRequest) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        first.node = Some(Node {
            id: format!("{workload}.default"),
            user_agent_version: "1.2.3".into(),
            ..Node::default()
        });
        requests.send(first).await.unwrap();
        let mut request = Request::new(ReceiverStream::new(receiver));
        let identity = format!("spiffe://cluster.local/ns/default/sa/{account}");
        request.metadata_mut().insert("identity", identity.parse().unwrap());
        let mut client = AggregatedDiscoveryServiceClient::connect(format!("http://{address}"))
            .await
            .unwrap();
        let responses = client.delta_aggregated_resources(request).await.unwrap().into_inner();
        Self { requests, responses }
    }

    async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let message = tokio::time::timeout(DEADLINE, self.responses.message())
            .await
            .expect("a response in time")?;
        Ok(message.expect("a response before the end"))
    }

    async fn acked(&mut self) -> DeltaDiscoveryResponse {
        let response = self.next().await.unwrap();
        self.send(ack(&response)).await;
        response
    }
}

fn ask(kind: ResourceType, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().into(),
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn leave(kind: ResourceType, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().into(),
        resource_names_unsubscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn nack(response: &DeltaDiscoveryResponse, message: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        error_detail: Some(RpcStatus {
            code: 3,
            message: message.into(),
        }),
        ..ack(response)
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<(&str, Vec<&str>)> {
    response
        .resources
        .iter()
        .map(|resource| (&*resource.name, resource.aliases.iter().map(|alias| &**alias).collect()))
        .collect()
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn state(discovery: &Discovery, proxy: &str, kind: ResourceType) -> Option<SyncState> {
    let status = discovery.status().into_iter().find(|status| status.name == proxy)?;
    Some(status.types[kind.label()].state)
}

#[tokio::test]
async fn names_that_mean_the_same_share_one_resource() {
    let world = World::new();
    world.set(DESTINATION, "reviews:80", Some("one"));
    let (_, address) = serve(world.clone()).await;
    let mut proxy = Proxy::open(
        address,
        "a",
        "a-1",
        ask(DESTINATION, &["reviews:80", "reviews:80-alias", "nowhere:80"]),
    )
    .await;
    let response = proxy.acked().await;
    assert_eq!(
        names(&response),
        [("reviews:80@view", vec!["reviews:80", "reviews:80-alias"])]
    );
    assert_eq!(response.removed_resources, ["nowhere:80"]);
    assert_eq!(response.requests_seen, 1);
    assert_eq!(&*response.resources[0].resource.as_ref().unwrap().value, b"one");

    world.set(DESTINATION, "nowhere:80", Some("now it is"));
    let response = proxy.acked().await;
    assert_eq!(names(&response), [("nowhere:80@view", vec!["nowhere:80"])]);
    world.set(DESTINATION, "nowhere:80", None);
    assert_eq!(proxy.acked().await.removed_resources, ["nowhere:80"]);
}

#[tokio::test]
async fn only_what_a_change_touches_is_resolved_and_sent() {
    let world = World::new();
    world.set(DESTINATION, "a:80", Some("a1"));
    world.set(DESTINATION, "b:80", Some("b1"));
    let (_, address) = serve(world.clone()).await;
    let mut proxy = Proxy::open(address, "a", "a-1", ask(DESTINATION, &["a:80", "b:80"])).await;
    proxy.acked().await;
    let resolved = world.resolved("b:80");
    world.set(DESTINATION, "a:80", Some("a1"));
    world.set(DESTINATION, "a:80", Some("a2"));
    let response = proxy.acked().await;
    assert_eq!(names(&response), [("a:80@view", vec!["a:80"])]);
    assert_eq!(&*response.resources[0].resource.as_ref().unwrap().value, b"a2");
    assert_eq!(world.resolved("b:80"), resolved);
}

#[tokio::test]
async fn changes_coalesce_while_a_response_is_unanswered() {
    let world = World::new();
    world.set(DESTINATION, "a:80", Some("a1"));
    let (discovery, address) = serve(world.clone()).await;
    let mut proxy = Proxy::open(address, "a", "a-1", ask(DESTINATION, &["a:80"])).await;
    let first = proxy.next().await.unwrap();
    assert_eq!(state(&discovery, "a-1.default", DESTINATION), Some(SyncState::Stale));
    for bytes in ["a2", "a3", "a4"] {
        world.set(DESTINATION, "a:80", Some(bytes));
    }
    proxy.send(ack(&first)).await;
    let second = proxy.acked().await;
    assert_eq!(&*second.resources[0].resource.as_ref().unwrap().value, b"a4");
    eventually("synced", || {
        state(&discovery, "a-1.default", DESTINATION) == Some(SyncState::Synced)
    })
    .await;
    assert_eq!(
        state(&discovery, "a-1.default", ResourceType::Workload),
        Some(SyncState::NotSent)
    );
}

#[tokio::test]
async fn a_refusal_shows_until_the_refused_resource_is_accepted() {
    let world = World::new();
    world.set(DESTINATION, "a:80", Some("bad"));
    world.set(DESTINATION, "b:80", Some("good"));
    let (discovery, address) = serve(world.clone()).await;
    let mut proxy = Proxy::open(address, "a", "a-1", ask(DESTINATION, &["a:80", "b:80"])).await;
    let first = proxy.next().await.unwrap();
    proxy.send(nack(&first, "a:80@view: routes[0]: no such cluster")).await;
    eventually("error", || {
        state(&discovery, "a-1.default", DESTINATION) == Some(SyncState::Error)
    })
    .await;
    let status = &discovery.status()[0];
    assert!(
        status.types["destinations"]
            .error
            .as_ref()
            .unwrap()
            .contains("no such cluster")
    );
    assert_eq!((&*status.version, &*status.control_plane), ("1.2.3", "control-1"));

    world.set(DESTINATION, "b:80", Some("better"));
    assert_eq!(names(&proxy.acked().await), [("b:80@view", vec!["b:80"])]);
    assert_eq!(state(&discovery, "a-1.default", DESTINATION), Some(SyncState::Error));
    world.set(DESTINATION, "a:80", Some("mended"));
    proxy.acked().await;
    eventually("synced", || {
        state(&discovery, "a-1.default", DESTINATION) == Some(SyncState::Synced)
    })
    .await;
}

#[tokio::test]
async fn an_object_is_programmed_where_all_that_it_has_a_say_in_is_acknowledged() {
    let world = World::new();
    world.set(DESTINATION, "a:80", Some("a1"));
    let (discovery, address) = serve(world.clone()).await;
    let count = |generation: u64, name: &str| {
        let programmed = discovery.programmed(|_| generation);
        let count = programmed.get(&ObjectRef::new("VirtualService", "default", name));
        count.map(|count| (count.on, count.of))
    };
    let mut one = Proxy::open(address, "a", "a-1", ask(DESTINATION, &["a:80", "a:80-alias"])).await;
    one.acked().await;
    eventually("acknowledged", || count(0, "a:80") == Some((1, 1))).await;
    assert_eq!(count(0, "b:80"), None, "nobody holds it");
    assert_eq!(count(7, "a:80"), Some((0, 1)), "it has changed since");

    let mut two = Proxy::open(address, "b", "b-1", ask(DESTINATION, &["a:80"])).await;
    let first = two.next().await.unwrap();
    assert_eq!(count(0, "a:80"), Some((1, 2)), "not acknowledged yet");
    two.send(nack(&first, "no")).await;
    eventually("refused", || {
        state(&discovery, "b-1.default", DESTINATION) == Some(SyncState::Error)
    })
    .await;
    assert_eq!(count(0, "a:80"), Some((1, 2)));

    world.set(DESTINATION, "a:80", Some("a2"));
    one.next().await.unwrap();
    two.acked().await;
    eventually("the other one", || count(0, "a:80") == Some((1, 2))).await;
    drop(one);
    eventually("disconnected", || count(0, "a:80") == Some((1, 1))).await;
}

#[tokio::test]
async fn what_a_reconnecting_proxy_holds_is_not_sent_again() {
    let world = World::new();
    world.set(DESTINATION, "a:80", Some("a1"));
    world.set(DESTINATION, "b:80", Some("b1"));
    let (discovery, address) = serve(world.clone()).await;
    let mut first = ask(DESTINATION, &["a:80", "b:80"]);
    first.initial_resource_versions = HashMap::from([
        ("a:80".into(), version(b"a1").to_string()),
        ("b:80".into(), version(b"b0").to_string()),
    ]);
    let mut proxy = Proxy::open(address, "a", "a-1", first).await;
    assert_eq!(names(&proxy.acked().await), [("b:80@view", vec!["b:80"])]);
    world.set(DESTINATION, "a:80", Some("a2"));
    assert_eq!(names(&proxy.acked().await), [("a:80@view", vec!["a:80"])]);
    eventually("synced", || {
        state(&discovery, "a-1.default", DESTINATION) == Some(SyncState::Synced)
    })
    .await;
}

#[tokio::test]
async fn siblings_are_sent_what_a_replica_uses() {
    let world = World::new();
    world.set(DESTINATION, "a:80", Some("a1"));
    let (_, address) = serve(world.clone()).await;
    let mut idle = Proxy::open(address, "a", "a-1", ask(DESTINATION, &[])).await;
    let mut busy = Proxy::open(address, "a", "a-2", ask(DESTINATION, &["a:80", "nowhere:80"])).await;
    busy.acked().await;
    assert_eq!(
        names(&idle.acked().await),
        [("a:80@view", vec!["a:80"])],
        "connected siblings"
    );
    let mut late = Proxy::open(address, "a", "a-3", ask(DESTINATION, &[])).await;
    assert_eq!(
        names(&late.acked().await),
        [("a:80@view", vec!["a:80"])],
        "siblings that come later"
    );

    world.set(DESTINATION, "a:80", Some("a2"));
    for proxy in [&mut idle, &mut busy, &mut late] {
        assert_eq!(names(&proxy.acked().await), [("a:80@view", vec!["a:80"])]);
    }
    busy.send(leave(DESTINATION, &["a:80"])).await;
    assert_eq!(idle.acked().await.removed_resources, ["a:80"], "nobody asks any longer");
}

#[tokio::test]
async fn a_replica_that_stops_asking_keeps_what_a_sibling_asks_for() {
    let world = World::new();
    world.set(DESTINATION, "a:80", Some("a1"));
    let (_, address) = serve(world.clone()).await;
    let mut one = Proxy::open(address, "a", "a-1", ask(DESTINATION, &["a:80"])).await;
    one.acked().await;
    let mut two = Proxy::open(address, "a", "a-2", ask(DESTINATION, &["a:80"])).await;
    two.acked().await;
    one.send(leave(DESTINATION, &["a:80"])).await;
    let response = one.acked().await;
    assert_eq!(names(&response), [("a:80@view", vec!["a:80"])], "as a hint");
    assert_eq!(response.requests_seen, 3);
}

#[tokio::test]
async fn another_account_gets_no_hints() {
    let world = World::new();
    world.set(DESTINATION, "a:80", Some("a1"));
    world.set(DESTINATION, "z:80", Some("z1"));
    let (_, address) = serve(world.clone()).await;
    let mut other = Proxy::open(address, "b", "b-1", ask(DESTINATION, &[])).await;
    let mut busy = Proxy::open(address, "a", "a-1", ask(DESTINATION, &["a:80"])).await;
    busy.acked().await;
    other.send(ask(DESTINATION, &["z:80"])).await;
    assert_eq!(names(&other.acked().await), [("z:80@view", vec!["z:80"])]);
}

#[tokio::test]
async fn endpoints_go_before_the_destinations_that_need_them() {
    let world = World::new();
    world.set(ResourceType::EndpointSlice, "a:80/0", Some("slice"));
    world.set(DESTINATION, "a:80", Some("a1"));
    let (_, address) = serve(world.clone()).await;
    let mut proxy = Proxy::open(address, "a", "a-1", ask(DESTINATION, &["a:80"])).await;
    let destination = proxy.next().await.unwrap();
    proxy.send(ask(ResourceType::EndpointSlice, &["a:80/0"])).await;
    let slice = proxy.next().await.unwrap();
    // Both change while both are unanswered; the answers come in the unhelpful order.
    world.set(DESTINATION, "a:80", Some("a2"));
    world.set(ResourceType::EndpointSlice, "a:80/0", Some("slice2"));
    proxy.send(ack(&slice)).await;
    assert_eq!(
        proxy.next().await.unwrap().type_url,
        ResourceType::EndpointSlice.type_url()
    );
    proxy.send(ack(&destination)).await;
    assert_eq!(proxy.next().await.unwrap().type_url, DESTINATION.type_url());
}

#[tokio::test]
async fn strangers_are_refused() {
    let (discovery, address) = serve(World::new()).await;
    let mut stranger = Proxy::open(address, "a", "b-1", ask(ResourceType::Inbound, &["b-1.default"])).await;
    assert_eq!(stranger.next().await.unwrap_err().code(), tonic::Code::PermissionDenied);

    let mut client = AggregatedDiscoveryServiceClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    let anonymous = client.delta_aggregated_resources(tokio_stream::iter([])).await;
    assert_eq!(anonymous.unwrap_err().code(), tonic::Code::Unauthenticated);
    eventually("nobody is connected", || discovery.status().is_empty()).await;
}

#[tokio::test]
async fn a_malformed_request_ends_its_stream_and_no_other() {
    let world = World::new();
    world.set(DESTINATION, "a:80", Some("a1"));
    let (_, address) = serve(world.clone()).await;
    let mut good = Proxy::open(address, "a", "a-1", ask(DESTINATION, &["a:80"])).await;
    good.acked().await;
    let long = "x".repeat(600);
    let mut unknown = ask(DESTINATION, &[]);
    unknown.type_url = "type.googleapis.com/mesh.v1.Nothing".into();
    for request in [
        unknown,
        ask(DESTINATION, &[""]),
        ask(DESTINATION, &[&long]),
        ask(DESTINATION, &["a\u{0}b"]),
    ] {
        let mut bad = Proxy::open(address, "a", "a-2", request).await;
        assert_eq!(bad.next().await.unwrap_err().code(), tonic::Code::InvalidArgument);
    }
    world.set(DESTINATION, "a:80", Some("a2"));
    good.acked().await;
}

/// Sends bytes as they are.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;
    fn decode(&mut self, _: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        Ok(None)
    }
}

#[tokio::test]
async fn bytes_that_are_no_request_end_their_stream() {
    let (_, address) = serve(World::new()).await;
    let channel = Channel::from_shared(format!("http://{address}"))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let mut request = Request::new(tokio_stream::iter([Bytes::from_static(
        b"\x12\xff\xff\xff\xff\x0fgarbage",
    )]));
    request
        .metadata_mut()
        .insert("identity", "spiffe://cluster.local/ns/default/sa/a".parse().unwrap());
    let path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
        .parse()
        .unwrap();
    let mut responses = client.streaming(request, path, Raw).await.unwrap().into_inner();
    let end = tokio::time::timeout(DEADLINE, responses.message()).await.unwrap();
    assert_eq!(end.unwrap_err().code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn shutdown_ends_streams() {
    let world = World::new();
    let (discovery, address) = serve(world).await;
    let mut proxy = Proxy::open(address, "a", "a-1", ask(DESTINATION, &["a:80"])).await;
    proxy.acked().await;
    discovery.shared.shutdown.cancel();
    assert_eq!(proxy.next().await.unwrap_err().code(), tonic::Code::Unavailable);
}
