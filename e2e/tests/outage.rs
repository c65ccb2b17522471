//! The control plane is killed, and proxies: what goes on, what fails closed, and how it comes back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Read as _;
use std::net::SocketAddr;
use std::time::Duration;

use e2e::app::{App, ping};
use e2e::client::{Call, Traffic, tunnel};
use e2e::exposition::sum;
use e2e::plain::{Mesh, Sidecar, SidecarOptions, eventually, get, service_entry, workload_entry};
use serde_json::Value;

const HOST: &str = "server.default.svc.cluster.local";
const URL: &str = "http://server.default.svc.cluster.local/";

fn objects(mesh: &Mesh) -> String {
    [
        workload_entry("server", mesh.address(0), "server", "v1"),
        workload_entry("client-1", mesh.address(1), "client", "v1"),
        workload_entry("client-2", mesh.address(2), "client", "v1"),
        workload_entry("client-3", mesh.address(3), "client", "v1"),
        workload_entry("stranger", mesh.address(4), "stranger", "v1"),
        service_entry("server", &[(80, "http", "HTTP", 8080), (90, "tcp", "TCP", 9000)]),
        "---\napiVersion: mesh.dev/v1\nkind: MeshConfig\nmetadata: {name: mesh}\nspec: {accessLogFile: /dev/stdout, \
         accessLogEncoding: JSON}\n"
            .to_owned(),
    ]
    .concat()
}

fn client(mesh: &Mesh, name: &str, index: usize, account: &str) -> anyhow::Result<Sidecar> {
    mesh.sidecar(
        name,
        &SidecarOptions {
            index,
            account: account.to_owned(),
            ..Default::default()
        },
    )
}

fn server(mesh: &Mesh, http: &App, tcp: &App) -> anyhow::Result<Sidecar> {
    let inbound = vec![(8080, http.address), (9000, tcp.address)];
    mesh.sidecar(
        "server",
        &SidecarOptions {
            inbound,
            ..Default::default()
        },
    )
}

/// Whether a sidecar holds a destination of this name.
fn holds(sidecar: &Sidecar, name: &str) -> bool {
    let Ok((200, page)) = get(sidecar.admin(), "/config_dump") else {
        return false;
    };
    let dump: Value = serde_json::from_str(&page).unwrap();
    let destinations = dump["destinations"].as_array().unwrap();
    destinations
        .iter()
        .any(|destination| destination["state"] == "FOUND" && destination["name"].as_str().unwrap().contains(name))
}

fn responses(sidecar: &Sidecar) -> f64 {
    sum(&sidecar.metrics_page().unwrap(), "mesh_discovery_responses_total", &[]).unwrap()
}

#[test]
fn traffic_goes_on_without_a_control_plane() -> anyhow::Result<()> {
    let mut mesh = Mesh::start(objects)?;
    let (http, tcp) = (App::http("answer")?, App::tcp("")?);
    let mut server = server(&mesh, &http, &tcp)?;
    let mut first = client(&mesh, "client-1", 1, "client")?;
    let mut second = client(&mesh, "client-2", 2, "client")?;
    let mut stranger = client(&mesh, "stranger", 4, "stranger")?;
    for sidecar in [&mut server, &mut first, &mut second, &mut stranger] {
        sidecar.wait_ready()?;
    }
    let mut stream = tunnel(first.outbound(), &format!("{HOST}:90"))?;
    ping(&mut stream, b"before")?;
    let traffic = Traffic::start(first.outbound(), URL, Duration::from_millis(5));
    let mut third = client(&mesh, "client-3", 3, "client")?;
    third.wait_ready()?;
    // What one replica has used is hinted to those that are there, and to those that come.
    for replica in [&second, &third] {
        eventually("a replica was told of the server", || {
            holds(replica, HOST).then_some(())
        })?;
    }
    assert!(!holds(&stranger, HOST), "hints are for the same service account");

    let mut control = mesh.control.take().unwrap();
    control.kill();
    for replica in [&second, &third] {
        let answer = Call::get(URL).through(replica.outbound())?;
        assert_eq!((answer.status, answer.body.as_str()), (200, "answer"));
    }
    ping(&mut stream, b"meanwhile")?;

    // A service of the mesh that nobody could tell the stranger of: it fails, it never leaves as plaintext.
    let _ = http.take();
    let refused = std::thread::scope(|scope| {
        let http = scope.spawn(|| Call::get(URL).through(stranger.outbound()));
        let mut tcp = tunnel(stranger.outbound(), &format!("{}:9000", server.address)).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        assert_eq!(tcp.read(&mut [0; 10]).unwrap_or(0), 0, "the connection is closed");
        http.join().unwrap()
    })?;
    assert_eq!(refused.status, 503, "{refused:?}");
    eventually("the log says why", || {
        let output = stranger.process.output();
        let line = output.lines().find(|line| line.contains("\"response_code\":503"))?;
        line.contains("\"response_code_details\":\"mesh_discovery_unavailable\"")
            .then_some(())
    })?;
    let page = stranger.metrics_page()?;
    assert!(
        sum(&page, "istio_tcp_connections_closed_total", &[("reporter", "source")])? >= 1.0,
        "{page}"
    );

    // Back again, it has nothing to say that is not known.
    let before = responses(&first);
    mesh.start_control()?;
    eventually("every proxy is in sync with the new control plane", || {
        let (_, page) = get(mesh.status_address(), "/debug/syncz").ok()?;
        let proxies: Value = serde_json::from_str(&page).ok()?;
        let proxies = proxies.as_array()?;
        let synced = proxies.iter().all(|proxy| {
            let types = proxy["types"].as_object().unwrap();
            types
                .values()
                .all(|state| ["SYNCED", "NOT SENT"].contains(&state["state"].as_str().unwrap()))
        });
        (proxies.len() == 5 && synced).then_some(())
    })?;
    eventually("the first replica asks again", || {
        let (_, page) = get(mesh.status_address(), "/debug/syncz").ok()?;
        let proxies: Value = serde_json::from_str(&page).ok()?;
        let first = proxies
            .as_array()?
            .iter()
            .find(|proxy| proxy["name"] == "client-1.default")?
            .clone();
        let types = first["types"].as_object()?.clone();
        types
            .values()
            .any(|state| state["subscribed"].as_u64() > Some(0))
            .then_some(())
    })?;
    assert_eq!(responses(&first), before, "what was held was not sent again");
    // And it answers the stranger now.
    let answer = Call::get(URL).through(stranger.outbound())?;
    assert_eq!(answer.status, 200);

    ping(&mut stream, b"after")?;
    let tally = traffic.stop();
    assert!(tally.bad.is_empty() && tally.good > 20, "{tally:?}");
    Ok(())
}

#[test]
fn a_sidecar_that_starts_alone_lets_nothing_in() -> anyhow::Result<()> {
    let mut mesh = Mesh::start(objects)?;
    let (http, tcp) = (App::http("answer")?, App::tcp("")?);
    let mut first = client(&mesh, "client-1", 1, "client")?;
    first.wait_ready()?;
    let mut control = mesh.control.take().unwrap();
    control.kill();

    let mut server = server(&mesh, &http, &tcp)?;
    eventually("it listens", || {
        get(SocketAddr::new(server.address, 15021), "/healthz/ready").ok()
    })?;
    let (status, reason) = get(SocketAddr::new(server.address, 15021), "/healthz/ready")?;
    assert_eq!(status, 503, "{reason}");
    for port in [8080, 9000] {
        let address = SocketAddr::new(server.address, port);
        assert!(
            Call::get("http://server/").to(address).is_err(),
            "port {port} is closed to plaintext"
        );
    }
    assert!(http.take().is_empty());
    assert!(!server.is_ready());
    eventually("its log says what is missing", || {
        server.process.output().contains("control plane").then_some(())
    })?;

    mesh.start_control()?;
    server.wait_ready()?;
    assert_eq!(Call::get(URL).through(first.outbound())?.status, 200);
    Ok(())
}

#[test]
fn a_killed_proxy_restarts_clean() -> anyhow::Result<()> {
    let mesh = Mesh::start(objects)?;
    let (http, tcp) = (App::http("answer")?, App::tcp("")?);
    let mut old = server(&mesh, &http, &tcp)?;
    let mut first = client(&mesh, "client-1", 1, "client")?;
    old.wait_ready()?;
    first.wait_ready()?;
    for _ in 0..3 {
        assert_eq!(Call::get(URL).through(first.outbound())?.status, 200);
    }
    let mut stream = tunnel(first.outbound(), &format!("{HOST}:90"))?;
    ping(&mut stream, b"before")?;
    old.process.kill();
    // Connections end with it; nothing hangs.
    assert_eq!(stream.read(&mut [0; 10]).unwrap_or(0), 0);
    assert_eq!(Call::get(URL).through(first.outbound())?.status, 503);

    // The same command, the same addresses, at once.
    let mut new = server(&mesh, &http, &tcp)?;
    new.wait_ready()?;
    let answer = Call::get(URL).through(first.outbound())?;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, "answer"),
        "pooled connections were given up"
    );
    ping(&mut tunnel(first.outbound(), &format!("{HOST}:90"))?, b"after")?;

    // And the client's.
    first.process.kill();
    let mut first = client(&mesh, "client-1", 1, "client")?;
    first.wait_ready()?;
    assert_eq!(Call::get(URL).through(first.outbound())?.status, 200);
    eventually("the control plane knows the new ones only", || {
        let (_, page) = get(mesh.status_address(), "/debug/syncz").ok()?;
        let proxies: Value = serde_json::from_str(&page).ok()?;
        (proxies.as_array()?.len() == 2).then_some(())
    })
}
