//! What the control plane's port gets that is no proxy, or a proxy that asks for what is not its own. Each such
//! connection ends by itself and is counted; everybody else goes on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod sizes;
mod strangers;

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::time::Duration;

use bytes::{Buf, BufMut};
use e2e::app::App;
use e2e::client::{Call, Traffic, connect};
use e2e::exposition::sum;
use e2e::plain::{Mesh, Sidecar, SidecarOptions, eventually, get, service_entry, workload_entry};
use mesh_api::identity::TrustDomain;
use mesh_api::wire::ResourceType;
use mesh_api::wire::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_api::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use mesh_proxy::identity::{CertStore, ControlPlane, ControlPlaneConfig, TokenSource};
use mesh_proxy::tls::verify::TrustDomains;
use tokio::runtime::Runtime;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};

const HOST: &str = "server.default.svc.cluster.local";

struct World {
    mesh: Mesh,
    _http: App,
    _server: Sidecar,
    client: Sidecar,
    runtime: Runtime,
}

fn world() -> anyhow::Result<World> {
    let mesh = Mesh::start(|mesh| {
        [
            workload_entry("server", mesh.address(0), "server", "v1"),
            workload_entry("client", mesh.address(1), "client", "v1"),
            workload_entry("other", mesh.address(2), "other", "v1"),
            service_entry("server", &[(80, "http", "HTTP", 8080)]),
        ]
        .concat()
    })?;
    let http = App::http("answer")?;
    let inbound = vec![(8080, http.address)];
    let mut server = mesh.sidecar(
        "server",
        &SidecarOptions {
            inbound,
            ..Default::default()
        },
    )?;
    let mut client = mesh.sidecar(
        "client",
        &SidecarOptions {
            index: 1,
            ..Default::default()
        },
    )?;
    server.wait_ready()?;
    client.wait_ready()?;
    Ok(World {
        mesh,
        _http: http,
        _server: server,
        client,
        runtime: tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?,
    })
}

impl World {
    fn counted(&self, name: &str) -> f64 {
        let (_, page) = get(self.mesh.status_address(), "/metrics").unwrap();
        sum(&page, name, &[]).unwrap()
    }

    /// Traffic and policy still work, over the streams that there were.
    fn goes_on(&self, traffic: Traffic) {
        let (_, page) = get(self.mesh.status_address(), "/debug/syncz").unwrap();
        assert!(
            page.contains("server.default") && page.contains("client.default"),
            "{page}"
        );
        let rule = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: server}}\nspec:\n  hosts: [{HOST}]\n  http:\n  \
             - match: [{{uri: {{prefix: /new}}}}]\n    directResponse: {{status: 299}}\n  - route: [{{destination: {{host: {HOST}}}}}]\n"
        );
        self.mesh.write("rule.yaml", &rule).unwrap();
        let url = format!("http://{HOST}/new");
        eventually("policy arrives", || {
            let answer = Call::get(&url).through(self.client.outbound()).ok()?;
            (answer.status == 299).then_some(())
        })
        .unwrap();
        let tally = traffic.stop();
        assert!(tally.bad.is_empty() && tally.good > 0, "{tally:?}");
    }

    fn traffic(&self) -> Traffic {
        Traffic::start(
            self.client.outbound(),
            &format!("http://{HOST}/"),
            Duration::from_millis(5),
        )
    }

    /// A way to the control plane that proves to be of a service account.
    fn channel(&self, account: &str) -> mesh_proxy::identity::ControlChannel {
        let _runtime = self.runtime.enter();
        let store = CertStore::new(TrustDomains::new(TrustDomain::cluster_local(), Vec::new()));
        let config = ControlPlaneConfig {
            address: self.mesh.control_address().to_string().parse().unwrap(),
            identity: "spiffe://cluster.local/ns/mesh-system/sa/mesh-control".parse().unwrap(),
            token: Some(TokenSource::Bootstrap(
                self.mesh.token(account, "1h").unwrap().parse().unwrap(),
            )),
            roots: None,
        };
        ControlPlane::new(config, store).channel().unwrap()
    }

    /// Sends requests on one stream; what comes until it ends, and how it ended. A stream that waits for more is left after
    /// the first response.
    fn stream(&self, account: &str, requests: Vec<DeltaDiscoveryRequest>) -> Result<DeltaDiscoveryResponse, Status> {
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel(account));
        self.runtime.block_on(async move {
            let asking = async move {
                let requests = tokio_stream::StreamExt::chain(tokio_stream::iter(requests), tokio_stream::pending());
                let mut responses = client.delta_aggregated_resources(requests).await?.into_inner();
                responses.message().await?.ok_or_else(|| Status::ok("the stream ended"))
            };
            let answer = tokio::time::timeout(Duration::from_secs(20), asking).await;
            answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")))
        })
    }
}

fn asking(workload: &str, kind: ResourceType, name: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(Node {
            id: workload.to_owned(),
            ..Node::default()
        }),
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: vec![name.to_owned()],
        ..DeltaDiscoveryRequest::default()
    }
}

#[test]
fn bytes_that_are_no_tls_end_their_connection_only() -> anyhow::Result<()> {
    let world = world()?;
    let traffic = world.traffic();
    let before = world.counted("mesh_control_tls_handshake_failures_total");
    // Noise that differs each time, and what looks like TLS at first.
    let mut garbage: Vec<Vec<u8>> = (0_u64..20).map(|seed| noise(seed, 3000)).collect();
    garbage.push(b"GET / HTTP/1.1\r\nhost: control\r\n\r\n".to_vec());
    garbage.push([&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &noise(99, 505)].concat());
    garbage.push([0x16, 3, 1, 0xff, 0xff].to_vec());
    let count = garbage.len();
    for bytes in garbage {
        let mut stream = connect(world.mesh.control_address())?;
        // It may be closed before all is written.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 100, "an alert at most: {answer:?}");
    }
    eventually("all of them are counted", || {
        (world.counted("mesh_control_tls_handshake_failures_total") >= before + count as f64).then_some(())
    })?;
    world.goes_on(traffic);
    Ok(())
}

#[test]
fn requests_that_make_no_sense_end_their_stream_only() -> anyhow::Result<()> {
    let world = world()?;
    let traffic = world.traffic();
    let other = |kind: ResourceType, name: &str| asking("other.default", kind, name);
    let unknown_type = DeltaDiscoveryRequest {
        type_url: "type.googleapis.com/envoy.config.listener.v3.Listener".to_owned(),
        ..other(ResourceType::Mesh, "mesh")
    };
    let without_node = DeltaDiscoveryRequest {
        node: None,
        ..other(ResourceType::Mesh, "mesh")
    };
    for (what, request) in [
        ("a type that is not served", unknown_type),
        ("no node", without_node),
        ("a node id that is none", asking("///", ResourceType::Mesh, "mesh")),
        (
            "a name without end",
            other(ResourceType::Destination, &"a".repeat(100_000)),
        ),
        (
            "a name with control characters",
            other(ResourceType::Destination, "a\n\u{1b}[31m:80"),
        ),
        ("an empty name", other(ResourceType::Destination, "")),
    ] {
        let before = world.counted("mesh_discovery_malformed_requests_total");
        let status = world.stream("other", vec![request]).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status}");
        eventually(&format!("{what} is counted"), || {
            (world.counted("mesh_discovery_malformed_requests_total") == before + 1.0).then_some(())
        })?;
    }

    // Frames of gRPC that hold no message at all.
    for bytes in [
        b"\xff\xff\xff\xff".to_vec(),
        noise(7, 5000),
        vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f],
    ] {
        let before = world.counted("mesh_discovery_malformed_requests_total");
        let channel = world.channel("other");
        let status = world.runtime.block_on(async move {
            let mut grpc = tonic::client::Grpc::new(channel);
            grpc.ready()
                .await
                .map_err(|error| Status::unavailable(error.to_string()))?;
            let path = http::uri::PathAndQuery::from_static(
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
            );
            let requests = tokio_stream::StreamExt::chain(tokio_stream::iter([bytes]), tokio_stream::pending());
            let answer = grpc.streaming(Request::new(requests), path, Raw).await;
            match answer {
                Ok(mut responses) => responses.get_mut().message().await.map(drop),
                Err(status) => Err(status),
            }
        });
        assert!(status.is_err(), "{status:?}");
        eventually("it is counted", || {
            (world.counted("mesh_discovery_malformed_requests_total") == before + 1.0).then_some(())
        })?;
    }
    world.goes_on(traffic);
    Ok(())
}

#[test]
fn a_workload_is_told_only_what_is_its_own() -> anyhow::Result<()> {
    let world = world()?;
    // In the name of another workload.
    let before = world.counted("mesh_discovery_refused_streams_total");
    let status = world
        .stream(
            "other",
            vec![asking("server.default", ResourceType::Inbound, "server.default")],
        )
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    let status = world
        .stream(
            "other",
            vec![asking("server.elsewhere", ResourceType::Inbound, "server.elsewhere")],
        )
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    eventually("both are counted", || {
        (world.counted("mesh_discovery_refused_streams_total") == before + 2.0).then_some(())
    })?;

    // In its own name it gets its own policy, and not that of another.
    let own = world.stream(
        "other",
        vec![asking("other.default", ResourceType::Inbound, "other.default")],
    )?;
    assert_eq!(
        (own.resources.len(), own.resources[0].name.as_str()),
        (1, "other.default")
    );
    match world.stream(
        "other",
        vec![asking("other.default", ResourceType::Inbound, "server.default")],
    ) {
        Ok(answer) => {
            assert!(answer.resources.is_empty(), "{answer:?}");
            assert_eq!(answer.removed_resources, ["server.default"]);
        }
        Err(status) => assert_eq!(status.code(), Code::PermissionDenied, "{status}"),
    }

    // Nor does a certificate that is none of the mesh get in: TLS lets it, nothing is said to it.
    let stranger = world.stream_without_proof();
    assert_eq!(stranger.code(), Code::Unauthenticated, "{stranger}");
    Ok(())
}

impl World {
    /// A stream over TLS by somebody without certificate or token.
    fn stream_without_proof(&self) -> Status {
        let roots = self.mesh.dir().join("roots.pem");
        let leaf = e2e::credentials::leaf(&self.mesh.ca_dir(), self.mesh.dir(), "unused").unwrap();
        std::fs::copy(leaf.roots, &roots).unwrap();
        let _runtime = self.runtime.enter();
        let config = ControlPlaneConfig {
            address: self.mesh.control_address().to_string().parse().unwrap(),
            identity: "spiffe://cluster.local/ns/mesh-system/sa/mesh-control".parse().unwrap(),
            token: None,
            roots: Some(roots),
        };
        let store = CertStore::new(TrustDomains::new(TrustDomain::cluster_local(), Vec::new()));
        let channel = ControlPlane::new(config, store).channel().unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let requests = vec![asking("other.default", ResourceType::Inbound, "other.default")];
        self.runtime.block_on(async move {
            match client.delta_aggregated_resources(tokio_stream::iter(requests)).await {
                Ok(responses) => responses.into_inner().message().await.unwrap_err(),
                Err(status) => status,
            }
        })
    }
}

/// Bytes that look random, the same for one seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

/// Sends bytes as messages as they are.
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
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
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}
