//! Certificates of real sidecars: they are renewed under traffic, and bad bootstrap tokens are told.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use e2e::app::{App, ping};
use e2e::client::{Call, Traffic, tunnel};
use e2e::control::Control;
use e2e::exposition::sum;
use e2e::plain::{Mesh, Sidecar, SidecarOptions, eventually, get, service_entry, workload_entry};
use mesh_api::bootstrap::BootstrapToken;
use mesh_control::ca::Lifetimes;

const HOST: &str = "server.default.svc.cluster.local";
const URL: &str = "http://server.default.svc.cluster.local/";
const LIFETIME: Duration = Duration::from_secs(6);

fn objects(mesh: &Mesh) -> String {
    [
        workload_entry("server", mesh.address(0), "server", "v1"),
        workload_entry("client", mesh.address(1), "client", "v1"),
        service_entry("server", &[(80, "http", "HTTP", 8080), (90, "tcp", "TCP", 9000)]),
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: mesh-system}\n\
         spec: {mtls: {mode: STRICT}}\n"
            .to_owned(),
    ]
    .concat()
}

fn renewals(sidecar: &Sidecar) -> f64 {
    let page = sidecar.metrics_page().unwrap();
    sum(&page, "mesh_identity_renewals_total", &[("result", "success")]).unwrap()
}

#[test]
fn certificates_are_renewed_without_a_failed_request() -> anyhow::Result<()> {
    let mut mesh = Mesh::start(objects)?;
    mesh.control.take().unwrap().kill();
    let short = Lifetimes {
        default: LIFETIME,
        ..Lifetimes::default()
    };
    let _control = Control::start(mesh.control_address(), &mesh.ca_dir(), &mesh.config_dir(), short)?;
    let (http, tcp) = (App::http("answer")?, App::tcp("")?);
    let inbound = vec![(8080, http.address), (9000, tcp.address)];
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

    let mut lasting = tunnel(client.outbound(), &format!("{HOST}:90"))?;
    ping(&mut lasting, b"under the first certificates")?;
    let traffic = Traffic::start(client.outbound(), URL, Duration::from_millis(5));
    let begun = Instant::now();
    // Twice around, so that the first certificates of both are over; each connection here is a handshake of its own.
    let mut handshakes = 0;
    eventually("both were renewed twice", || {
        let mut fresh = tunnel(client.outbound(), &format!("{HOST}:90")).unwrap();
        ping(&mut fresh, b"a new handshake").unwrap();
        handshakes += 1;
        (renewals(&server) >= 3.0 && renewals(&client) >= 3.0).then_some(())
    })?;
    assert!(begun.elapsed() > LIFETIME / 2, "{:?}", begun.elapsed());
    let tally = traffic.stop();
    assert!(tally.bad.is_empty() && tally.good > 50, "{tally:?}");
    assert!(handshakes > 50);
    ping(
        &mut lasting,
        b"a connection outlives the certificate that it was made with",
    )?;
    for sidecar in [&server, &client] {
        let page = sidecar.metrics_page()?;
        assert_eq!(
            sum(&page, "mesh_identity_renewals_total", &[("result", "failure")])?,
            0.0
        );
        let expiry = sum(&page, "mesh_identity_expiry_timestamp_seconds", &[])?;
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs_f64();
        assert!(
            expiry > now && expiry < now + LIFETIME.as_secs_f64() + 1.0,
            "{expiry} at {now}"
        );
        assert!(sidecar.is_ready());
    }
    Ok(())
}

#[test]
fn a_bad_token_is_told_and_a_good_one_mends_it() -> anyhow::Result<()> {
    let mesh = Mesh::start(objects)?;
    let app = App::http("answer")?;
    let good: BootstrapToken = mesh.token("client", "1h")?.parse()?;
    let (expired, expires) = (mesh.token("server", "1s")?, Instant::now() + Duration::from_secs(1));
    let unknown = BootstrapToken::new(&"A".repeat(43), good.root())?.to_string();
    let other = good.to_string();
    let mut sidecar = mesh.sidecar(
        "server",
        &SidecarOptions {
            inbound: vec![(8080, app.address)],
            token: unknown,
            ..Default::default()
        },
    )?;
    let told = |text: &str| {
        eventually(&format!("the log has: {text}"), || {
            sidecar.process.output().contains(text).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", sidecar.process.output()));
    };
    told("unknown bootstrap token");
    // Of another identity: it proves somebody, but not this workload.
    std::fs::write(mesh.token_file("server"), other)?;
    told("spiffe://cluster.local/ns/default/sa/client may not have a certificate for");
    eventually("the short token is over", || (Instant::now() > expires).then_some(()))?;
    std::fs::write(mesh.token_file("server"), expired)?;
    told("expired");
    let (status, reason) = get(SocketAddr::new(sidecar.address, 15021), "/healthz/ready")?;
    assert_eq!(status, 503, "{reason}");
    assert!(
        Call::get("http://server/")
            .to(SocketAddr::new(sidecar.address, 8080))
            .is_err(),
        "nothing is let in"
    );
    let page = sidecar.metrics_page()?;
    assert!(
        sum(&page, "mesh_identity_renewals_total", &[("result", "failure")])? >= 3.0,
        "{page}"
    );

    std::fs::write(mesh.token_file("server"), mesh.token("server", "1h")?)?;
    sidecar.wait_ready()?;
    Ok(())
}

#[test]
fn a_token_of_another_mesh_is_not_shown_to_this_one() -> anyhow::Result<()> {
    let (mesh, other) = (Mesh::start(objects)?, Mesh::start(objects)?);
    let sidecar = mesh.sidecar(
        "server",
        &SidecarOptions {
            token: other.token("server", "1h")?,
            ..Default::default()
        },
    )?;
    eventually("the log says that the root is another", || {
        let output = sidecar.process.output();
        output.contains("the token is of another mesh").then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", sidecar.process.output()));
    assert!(!sidecar.is_ready());
    Ok(())
}
