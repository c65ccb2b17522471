//! Protocols on the wire, with clients of other makes.

use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use bytes::Bytes;
use e2e::peers;
use e2e::traffic::caller::{Connection, bounded, connect};
use e2e::traffic::clients::{curl, output, websocket};
use e2e::traffic::metrics::sum;
use e2e::traffic::{Plan, Scene, strict};
use http::{Request, Version};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// HTTP by declaration, HTTP/2 by declaration, nothing declared.
const PORTS: [(u16, &str, &str, u16); 3] = [
    (80, "http", "HTTP", 8080),
    (82, "http2", "HTTP2", 8082),
    (83, "any", "", 8083),
];

const CLIENT: &str = "URI=spiffe://cluster.local/ns/default/sa/client";

async fn scene() -> anyhow::Result<Scene> {
    Scene::start(Plan {
        versions: &["v1"],
        sidecars: true,
        ports: &PORTS,
        // Only mutual TLS gets anywhere, so an answer proves it.
        policy: &strict(),
        ..Plan::default()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_speaks_http1_as_to_a_proxy() -> anyhow::Result<()> {
    let scene = scene().await?;
    let url = "http://reviews.default.svc.cluster.local/a?b=c";
    let text = curl(&["-i", "-x", &scene.client.proxy_url(), url])?;
    ensure!(
        text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nv1"),
        "{text}"
    );
    let seen = scene.backends[0].take();
    ensure!(seen.len() == 1 && seen[0].version == Version::HTTP_11, "{seen:?}");
    ensure!(seen[0].uri == "/a?b=c", "{seen:?}");
    ensure!(
        seen[0].header("host") == "reviews.default.svc.cluster.local",
        "{seen:?}"
    );
    ensure!(seen[0].header("x-forwarded-client-cert").ends_with(CLIENT), "{seen:?}");

    let page = scene.servers[0].metrics_page()?;
    let labels = [
        ("reporter", "destination"),
        ("connection_security_policy", "mutual_tls"),
        ("source_principal", "spiffe://cluster.local/ns/default/sa/client"),
        ("response_code", "200"),
    ];
    ensure!(sum(&page, "istio_requests_total", &labels) == 1.0, "{page}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_speaks_http1_in_a_captured_connection() -> anyhow::Result<()> {
    let scene = scene().await?;
    for url in ["http://reviews/", "http://reviews.default:83/"] {
        let text = curl(&["--proxytunnel", "-x", &scene.client.proxy_url(), url, "-d", "some body"])?;
        ensure!(text == "v1", "{text}");
        let seen = scene.backends[0].take();
        ensure!(seen.len() == 1 && seen[0].version == Version::HTTP_11, "{seen:?}");
        ensure!(seen[0].method == "POST" && seen[0].body == "some body", "{seen:?}");
        ensure!(seen[0].header("x-forwarded-client-cert").ends_with(CLIENT), "{seen:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_speaks_http2_with_prior_knowledge() -> anyhow::Result<()> {
    let scene = scene().await?;
    // A port declared HTTP is served HTTP/1.1, one declared HTTP2 gets HTTP/2, an undeclared one what the client speaks.
    for (url, version) in [
        ("http://reviews/", Version::HTTP_11),
        ("http://reviews:82/", Version::HTTP_2),
        ("http://reviews:83/", Version::HTTP_2),
    ] {
        let proxy = scene.client.proxy_url();
        let text = curl(&["-i", "--proxytunnel", "-x", &proxy, "--http2-prior-knowledge", url])?;
        ensure!(text.contains("HTTP/2 200") && text.ends_with("\r\n\r\nv1"), "{text}");
        let seen = scene.backends[0].take();
        ensure!(seen.len() == 1 && seen[0].version == version, "{url}: {seen:?}");
    }
    // HTTP/1.1 to the port declared HTTP2 becomes HTTP/2.
    curl(&["-x", &scene.client.proxy_url(), "http://reviews:82/"])?;
    let seen = scene.backends[0].take();
    ensure!(seen.len() == 1 && seen[0].version == Version::HTTP_2, "{seen:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nghttp2_talks_to_the_explicit_proxy() -> anyhow::Result<()> {
    let (Some(nghttp), Some(h2load)) = (peers::program("nghttp"), peers::program("h2load")) else {
        return Ok(());
    };
    let scene = scene().await?;
    let url = format!("{}/path", scene.client.proxy_url());
    let text = output(Command::new(nghttp).args(["-v", "-H", ":authority: reviews:82", &url]))?;
    ensure!(
        text.contains(":status: 200") && text.contains("x-backend: v1"),
        "{text}"
    );
    let seen = scene.backends[0].take();
    ensure!(seen.len() == 1 && seen[0].uri.path() == "/path", "{seen:?}");

    let mut load = Command::new(h2load);
    load.args(["-n", "300", "-c", "3", "-m", "20", "-H", ":authority: reviews:82", &url]);
    let text = output(&mut load)?;
    ensure!(text.contains("300 succeeded, 0 failed, 0 errored"), "{text}");
    ensure!(scene.backends[0].seen().len() == 300, "each request arrives once");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_is_carried() -> anyhow::Result<()> {
    let Some(packages) = peers::python() else { return Ok(()) };
    let scene = scene().await?;
    for port in [80, 83] {
        let url = format!("ws://reviews:{port}/chat");
        let lines = websocket(&packages, &scene.client, &url, &["one", "two", "three"])?;
        ensure!(lines == ["one", "two", "three", "closed 1000"], "{lines:?}");
        let seen = scene.backends[0].take();
        ensure!(seen.len() == 1 && seen[0].uri.path() == "/chat", "{seen:?}");
        ensure!(seen[0].header("x-forwarded-client-cert").ends_with(CLIENT), "{seen:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_upgrade_asked_of_the_explicit_proxy_is_carried() -> anyhow::Result<()> {
    let scene = scene().await?;
    let mut stream = connect(scene.client.outbound()).await?;
    // The first bytes of the new protocol come with the request.
    stream
        .write_all(
            b"GET http://reviews/up HTTP/1.1\r\nhost: reviews\r\nconnection: Upgrade, x-mine\r\nx-mine: 1\r\nupgrade: \
              echo\r\n\r\nfirst",
        )
        .await?;
    let mut text = String::new();
    while !text.ends_with("\r\n\r\nfirst") {
        text.push(char::from(bounded("the upgrade", stream.read_u8()).await??));
    }
    ensure!(text.starts_with("HTTP/1.1 101 "), "{text}");
    stream.write_all(b"and more").await?;
    stream.shutdown().await?;
    let mut rest = String::new();
    bounded("the end", stream.read_to_string(&mut rest)).await??;
    ensure!(rest == "and more", "{rest}");
    let seen = scene.backends[0].take();
    ensure!(seen.len() == 1 && seen[0].header("x-mine").is_empty(), "{seen:?}");
    ensure!(seen[0].header("upgrade") == "echo", "{seen:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_that_the_application_refuses_is_an_answer() -> anyhow::Result<()> {
    use e2e::traffic::backend::Step;
    let scene = scene().await?;
    scene.backends[0].then([Step::Status(403)]);
    let answer = scene
        .caller()
        .with("http://reviews/up", &[("connection", "upgrade"), ("upgrade", "echo")])
        .await?;
    ensure!(answer.status == 403, "{answer:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_declared_http_waits_for_its_client() -> anyhow::Result<()> {
    let scene = Scene::start(Plan {
        versions: &["v1"],
        sidecars: true,
        ports: &PORTS,
        ..Plan::default()
    })
    .await?;
    let captured = scene.caller().tunnel("reviews:80").await?;
    let plaintext = connect((scene.servers[0].address, 8080).into()).await?;
    // Longer than detection waits where nothing is declared.
    tokio::time::sleep(Duration::from_millis(1300)).await;
    for stream in [captured, plaintext] {
        let request = Request::get("/").header("host", "reviews").body(Bytes::new())?;
        let answer = Connection::http1(stream).await?.send(request).await?;
        ensure!(answer.status == 200 && answer.backend() == "v1", "{answer:?}");
    }
    let page = scene.servers[0].metrics_page()?;
    ensure!(
        sum(&page, "istio_requests_total", &[("response_code", "200")]) == 2.0,
        "{page}"
    );
    ensure!(sum(&page, "istio_tcp_connections_opened_total", &[]) == 0.0, "{page}");
    Ok(())
}
