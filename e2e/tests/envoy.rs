//! Envoy, set up as Istio sets up its sidecars, on either end of a connection with ours.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::SocketAddr;

use anyhow::Context as _;
use e2e::app::{App, ping};
use e2e::client::{Call, connect, tunnel};
use e2e::credentials::leaf;
use e2e::envoy::{Carries, ClientPath, Envoy};
use e2e::peers;
use e2e::plain::{Mesh, SidecarOptions, eventually, service_entry, workload_entry};
use http::Version;

const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";
const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
const HOST: &str = "server.default.svc.cluster.local";

/// Ports of the service, and of the workload behind them.
const PORTS: [(u16, &str, &str, u16); 3] = [
    (80, "http", "HTTP", 8080),
    (81, "h2", "HTTP2", 8081),
    (90, "tcp", "TCP", 9000),
];

fn objects(mesh: &Mesh) -> String {
    // Only mutual TLS gets anywhere, so an answer proves it.
    [
        workload_entry("server", mesh.address(0), "server", "v1"),
        workload_entry("client", mesh.address(1), "client", "v1"),
        service_entry("server", &PORTS),
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: mesh-system}\n\
         spec: {mtls: {mode: STRICT}}\n"
            .to_owned(),
    ]
    .concat()
}

fn sni(port: u16) -> String {
    format!("outbound_.{port}_._.{HOST}")
}

#[test]
fn envoy_is_a_client_of_a_sidecar() -> anyhow::Result<()> {
    let binary = peers::envoy().context("Envoy cannot be had")?;
    let mesh = Mesh::start(objects)?;
    let (http, tcp) = (App::http("answer")?, App::tcp("")?);
    let inbound = vec![(8080, http.address), (8081, http.address), (9000, tcp.address)];
    let mut server = mesh.sidecar(
        "server",
        &SidecarOptions {
            inbound,
            ..Default::default()
        },
    )?;
    server.wait_ready()?;

    let credentials = leaf(&mesh.ca_dir(), mesh.dir(), "client")?;
    let names = [sni(80), sni(81), sni(90)];
    let kinds = [
        (Carries::Http1, 8080, &names[0]),
        (Carries::Http2, 8081, &names[1]),
        (Carries::Tcp, 9000, &names[2]),
    ];
    let labels: Vec<(String, Option<&str>)> = kinds
        .iter()
        .flat_map(|(carries, ..)| {
            [
                (format!("{carries:?}-default"), None),
                (format!("{carries:?}-13"), Some("TLSv1_3")),
            ]
        })
        .collect();
    let mut paths = Vec::new();
    for (index, (name, tls_version)) in labels.iter().enumerate() {
        let (carries, port, sni) = kinds[index / 2];
        paths.push(ClientPath {
            name,
            carries,
            alpn: carries.alpn(),
            tls_version: *tls_version,
            sni,
            upstream: SocketAddr::new(server.address, port),
            expected: SERVER,
        });
    }
    // Istio's own TCP clients offer its metadata exchange first; we must not choose it.
    paths.push(ClientPath {
        name: "exchange",
        alpn: &["istio-peer-exchange", "istio"],
        ..paths[4].clone()
    });
    paths.push(ClientPath {
        name: "impostor",
        expected: "spiffe://cluster.local/ns/default/sa/other",
        ..paths[0].clone()
    });
    let envoy = Envoy::client(
        &binary,
        mesh.dir(),
        &credentials,
        SocketAddr::new(mesh.address(1), 0),
        &paths,
    )?;

    for (name, tls_version) in &labels {
        let address = envoy.listener(name)?;
        let wanted = if tls_version.is_some() { "TLSv1.3" } else { "TLSv1.2" };
        if name.starts_with("Tcp") {
            ping(&mut connect(address)?, b"over mutual TLS").with_context(|| name.clone())?;
        } else {
            let url = format!("http://{HOST}/{name}");
            let forged = format!("By=nobody;URI={SERVER}");
            let answer = Call::get(&url).header("x-forwarded-client-cert", &forged).to(address)?;
            assert!(
                (answer.status, answer.body.as_str()) == (200, "answer"),
                "{name}: {answer:?}"
            );
            let seen = http.take();
            assert!(seen.len() == 1, "{name}: {seen:?}");
            let version = if name.starts_with("Http2") {
                Version::HTTP_2
            } else {
                Version::HTTP_11
            };
            assert!(
                seen[0].version == version,
                "{name}: the application got {:?}",
                seen[0].version
            );
            let proven = seen[0].header("x-forwarded-client-cert").unwrap_or_default();
            assert!(
                proven.contains(&format!("URI={CLIENT}")) && !proven.contains("nobody"),
                "{name}: {proven}"
            );
        }
        eventually(&format!("{name} is logged with {wanted}"), || {
            let line = envoy
                .log()
                .into_iter()
                .find(|line| line.starts_with(&format!("{name} ")))?;
            line.ends_with(&format!("{wanted} {SERVER}")).then_some(())
        })
        .with_context(|| format!("{:#?}", envoy.log()))?;
    }
    ping(&mut connect(envoy.listener("exchange")?)?, b"istio was chosen")?;

    let refused = Call::get(&format!("http://{HOST}/")).to(envoy.listener("impostor")?)?;
    assert!(refused.status == 503, "Envoy checks who answers: {refused:?}");

    // Who Envoy is, is known by its address and believed because of its certificate.
    eventually("metrics name the client", || {
        let page = server.metrics_page().ok()?;
        page.lines()
            .find(|line| {
                line.starts_with("istio_requests_total{reporter=\"destination\",source_workload=\"client\"")
                    && line.contains(&format!("source_principal=\"{CLIENT}\""))
                    && line.contains("connection_security_policy=\"mutual_tls\"")
            })
            .map(drop)
    })
}

#[test]
fn envoy_is_a_server_of_a_sidecar() -> anyhow::Result<()> {
    let binary = peers::envoy().context("Envoy cannot be had")?;
    let mesh = Mesh::start(objects)?;
    let (http, tcp) = (App::http("answer")?, App::tcp("")?);
    let credentials = leaf(&mesh.ca_dir(), mesh.dir(), "server")?;
    // The service's three ports in one listener: by what our ClientHello offers, Envoy tells HTTP from TCP.
    let mut envoys = Vec::new();
    for port in [8080, 8081, 9000] {
        let dir = mesh.dir().join(port.to_string());
        std::fs::create_dir(&dir)?;
        let address = SocketAddr::new(mesh.address(0), port);
        envoys.push(Envoy::server(
            &binary,
            &dir,
            &credentials,
            address,
            CLIENT,
            http.address,
            tcp.address,
        )?);
    }
    let mut client = mesh.sidecar(
        "client",
        &SidecarOptions {
            index: 1,
            ..Default::default()
        },
    )?;
    client.wait_ready()?;

    for (port, envoy, protocol) in [(80, &envoys[0], "HTTP/1.1"), (81, &envoys[1], "HTTP/2")] {
        let url = format!("http://{HOST}:{port}/");
        let answer = Call::get(&url).through(client.outbound())?;
        assert!(
            (answer.status, answer.body.as_str()) == (200, "answer"),
            "{url}: {answer:?}"
        );
        let seen = http.take();
        let proven = seen[0].header("x-forwarded-client-cert").unwrap_or_default();
        assert!(proven.contains(&format!("URI={CLIENT}")), "{proven}");
        let wanted = format!("http {protocol} 200 TLSv1.3 {} {CLIENT} - -", sni(port));
        eventually(&format!("Envoy logs {wanted}"), || {
            envoy.log().contains(&wanted).then_some(())
        })
        .with_context(|| format!("{:#?}", envoy.log()))?;
    }
    let mut stream = tunnel(client.outbound(), &format!("{HOST}:90"))?;
    ping(&mut stream, b"over mutual TLS")?;
    drop(stream);
    let wanted = format!("tcp - 0 TLSv1.3 {} {CLIENT} - -", sni(90));
    eventually(&format!("Envoy logs {wanted}"), || {
        envoys[2].log().contains(&wanted).then_some(())
    })
    .with_context(|| format!("{:#?}", envoys[2].log()))?;
    Ok(())
}

#[test]
fn a_sidecar_checks_who_envoy_is() -> anyhow::Result<()> {
    let binary = peers::envoy().context("Envoy cannot be had")?;
    let mesh = Mesh::start(objects)?;
    let http = App::http("answer")?;
    // A certificate of the mesh, but of somebody else.
    let credentials = leaf(&mesh.ca_dir(), mesh.dir(), "impostor")?;
    let address = SocketAddr::new(mesh.address(0), 8080);
    let envoy = Envoy::server(
        &binary,
        mesh.dir(),
        &credentials,
        address,
        CLIENT,
        http.address,
        http.address,
    )?;
    let mut client = mesh.sidecar(
        "client",
        &SidecarOptions {
            index: 1,
            ..Default::default()
        },
    )?;
    client.wait_ready()?;
    let answer = Call::get(&format!("http://{HOST}/")).through(client.outbound())?;
    assert!(answer.status == 503, "{answer:?}");
    assert!(
        answer.body.contains("impostor") && answer.body.contains(SERVER),
        "{answer:?}"
    );
    assert!(http.take().is_empty() && envoy.log().iter().all(|line| !line.contains(" 200 ")));
    Ok(())
}
