//! `openssl s_client` at a sidecar's inbound port: what it sees of the server, and how far it gets without an identity.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use e2e::app::App;
use e2e::credentials::{Leaf, leaf};
use e2e::plain::{Mesh, SidecarOptions, service_entry, workload_entry};

const REQUEST: &str = "GET /hello HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n";

/// What `openssl s_client` says and receives.
fn s_client(address: SocketAddr, args: &[&str], input: &str) -> anyhow::Result<String> {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &address.to_string(), "-ign_eof"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("openssl")?;
    // It may have given up before it reads.
    let _ = child.stdin.take().context("stdin")?.write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// The names in the first certificate of some output.
fn names(output: &str) -> anyhow::Result<String> {
    let mut child = Command::new("openssl")
        .args(["x509", "-noout", "-ext", "subjectAltName"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("stdin")?.write_all(output.as_bytes())?;
    Ok(String::from_utf8(child.wait_with_output()?.stdout)?)
}

fn with<'a>(own: &'a Leaf, args: &[&'a str]) -> anyhow::Result<Vec<&'a str>> {
    let text = |path: &'a std::path::Path| path.to_str().context("a path that is not text");
    let own = [
        "-cert",
        text(&own.chain)?,
        "-key",
        text(&own.key)?,
        "-CAfile",
        text(&own.roots)?,
    ];
    Ok([&own[..], args].concat())
}

#[test]
fn openssl_sees_the_identity_and_gets_no_further_without_one() -> anyhow::Result<()> {
    let mesh = Mesh::start(|mesh| {
        workload_entry("server", mesh.address(0), "server", "v1")
            + &service_entry("server", &[(80, "http", "HTTP", 8080)])
    })?;
    let app = App::http("the application's answer")?;
    let mut server = mesh.sidecar(
        "server",
        &SidecarOptions {
            inbound: vec![(8080, app.address)],
            ..Default::default()
        },
    )?;
    server.wait_ready()?;
    let address = SocketAddr::new(server.address, 8080);

    // Without a certificate of its own: it learns who the server is, and no byte of the application.
    for alpn in ["istio", "istio-http/1.1", "istio-h2"] {
        let output = s_client(address, &["-alpn", alpn, "-showcerts"], REQUEST)?;
        assert!(
            names(&output)?.contains("URI:spiffe://cluster.local/ns/default/sa/server"),
            "{alpn}: {output}"
        );
        assert!(output.contains("certificate required"), "{alpn}: {output}");
        assert!(!output.contains("answer"), "{alpn}: {output}");
    }
    assert!(app.take().is_empty(), "nothing reached the application");

    // TLS that does not say that it is the mesh's is the application's own, which speaks none here.
    let output = s_client(address, &["-alpn", "http/1.1"], REQUEST)?;
    assert!(
        !output.contains("BEGIN CERTIFICATE") && !output.contains("answer"),
        "{output}"
    );

    // With one it is a peer like any other.
    let own = leaf(&mesh.ca_dir(), mesh.dir(), "caller")?;
    for version in ["-tls1_3", "-tls1_2"] {
        let args = with(&own, &["-alpn", "istio-http/1.1", version, "-verify_return_error"])?;
        let output = s_client(address, &args, REQUEST)?;
        assert!(output.contains("ALPN protocol: istio-http/1.1"), "{version}: {output}");
        assert!(output.contains("the application's answer"), "{version}: {output}");
        let seen = app.take();
        let proven = seen
            .first()
            .and_then(|request| request.header("x-forwarded-client-cert"));
        let caller = "URI=spiffe://cluster.local/ns/default/sa/caller";
        assert!(proven.is_some_and(|proven| proven.contains(caller)), "{seen:?}");
    }

    // A certificate of another authority is not of the mesh, whatever it says.
    let other = tempfile::tempdir()?;
    let stranger = leaf(&other.path().join("ca"), other.path(), "caller")?;
    let output = s_client(address, &with(&stranger, &["-alpn", "istio-http/1.1"])?, REQUEST)?;
    assert!(output.contains("alert") && !output.contains("answer"), "{output}");
    assert!(app.take().is_empty(), "nothing reached the application");

    let page = server.metrics_page()?;
    assert!(
        page.contains("mesh_inbound_connections_refused_total{reason=\"tls\"} 4"),
        "{page}"
    );
    Ok(())
}
