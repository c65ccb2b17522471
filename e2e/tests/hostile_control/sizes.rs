//! Messages, headers and requests for certificates beyond all measure: refused at their bound, whoever sends them.

use std::time::Duration;

use bytes::Bytes;
use e2e::plain::eventually;
use futures_util::StreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_api::wire::ResourceType;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tonic::Code;

use super::{World, asking, strangers, world};

const DISCOVERY: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const CERTIFICATES: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// Most that the control plane may ever have held through all this, in bytes.
const MOST_MEMORY: u64 = 256 << 20;

/// What became of a request by a workload of the mesh, in terms of gRPC; none where its stream or connection was reset, or
/// the answer is not gRPC's.
fn ended(world: &World, path: &str, header: Option<(&str, String)>, body: Vec<Bytes>) -> Option<Code> {
    let config = strangers::of_the_mesh(world);
    let address = world.mesh.control_address();
    let talk = async move {
        let tcp = TcpStream::connect(address).await?;
        let name = ServerName::from(address.ip());
        let tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await?;
        tokio::spawn(connection);
        let mut request = http::Request::post(format!("https://control{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        // The stream stays open: who waits for the rest waits for ever.
        let frames = futures_util::stream::iter(body).chain(futures_util::stream::pending());
        let body = StreamBody::new(frames.map(|bytes| Ok::<_, std::convert::Infallible>(Frame::data(bytes))));
        let response = sender.send_request(request.body(body)?).await?;
        let (head, body) = response.into_parts();
        let trailers = body.collect().await?.trailers().cloned().unwrap_or_default();
        let status = head.headers.get("grpc-status").or(trailers.get("grpc-status")).cloned();
        anyhow::Ok(status)
    };
    let outcome = world
        .runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(20), talk).await });
    let outcome = outcome.unwrap_or_else(|_| panic!("{path}: nothing happens"));
    let code = outcome.ok().flatten()?;
    Some(Code::from_bytes(code.as_bytes()))
}

/// The head of a message of gRPC that is so long.
fn announced(length: u32) -> Bytes {
    [&[0][..], &length.to_be_bytes()].concat().into()
}

#[test]
fn what_is_too_large_is_refused_at_its_bound() -> anyhow::Result<()> {
    let world = world()?;
    let traffic = world.traffic();
    let mebibyte = || Bytes::from(vec![b'a'; 1 << 20]);
    let malformed = || world.counted("mesh_discovery_malformed_requests_total");

    // A message is refused by what its head says, before it is there.
    let before = malformed();
    let code = ended(&world, DISCOVERY, None, vec![announced(u32::MAX)]);
    assert_eq!(code, Some(Code::InvalidArgument), "a message of 4 GiB");
    eventually("it is counted", || (malformed() == before + 1.0).then_some(()))?;

    // Names without number, in a message that fits: as many as may be subscribed to, and no more.
    let mut request = asking("other.default", ResourceType::Destination, "x");
    request.resource_names_subscribe = (0..400_000)
        .map(|index| format!("host-{index}.example.com:80"))
        .collect();
    let status = world.stream("other", vec![request]).unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");

    let huge = [vec![announced(64 << 20)], vec![mebibyte(); 64]].concat();
    let code = ended(&world, CERTIFICATES, None, huge);
    assert!(
        !matches!(code, Some(Code::Ok)),
        "a request for a certificate of 64 MiB: {code:?}"
    );

    let code = ended(&world, DISCOVERY, Some(("x-long", "a".repeat(1 << 20))), vec![]);
    assert!(!matches!(code, Some(Code::Ok)), "a header of a mebibyte: {code:?}");

    // Streams that begin and say nothing do not keep their place.
    let code = ended(&world, DISCOVERY, None, vec![]);
    assert!(!matches!(code, Some(Code::Ok)), "{code:?}");

    let pid = world.mesh.control.as_ref().unwrap().pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    assert!(kilobytes * 1024 < MOST_MEMORY, "{kilobytes} kB were held");
    world.goes_on(traffic);
    Ok(())
}
