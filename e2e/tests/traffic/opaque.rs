//! Bytes that are not HTTP, or not for us to read.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::ensure;
use e2e::app::App;
use e2e::plain::eventually;
use e2e::traffic::caller::{bounded, connect};
use e2e::traffic::clients::curl;
use e2e::traffic::metrics::sum;
use e2e::traffic::{Plan, Scene, strict};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

async fn scene(ports: &[(u16, &str, &str, u16)], application: SocketAddr, policy: &str) -> anyhow::Result<Scene> {
    let inbound: Vec<_> = ports.iter().map(|(.., port)| (*port, application)).collect();
    Scene::start(Plan {
        versions: &["v1"],
        sidecars: true,
        ports,
        inbound: &inbound,
        policy,
        ..Plan::default()
    })
    .await
}

async fn echoes<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> anyhow::Result<()> {
    let mut back = vec![0; bytes.len()];
    let (mut reader, mut writer) = tokio::io::split(stream);
    let both = async { tokio::try_join!(writer.write_all(bytes), reader.read_exact(&mut back)) };
    bounded("the echo", both).await??;
    ensure!(back == bytes, "other bytes came back");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_is_carried_both_ways_and_counted() -> anyhow::Result<()> {
    let application = App::tcp("")?;
    let scene = scene(&[(9000, "tcp", "TCP", 9000)], application.address, &strict()).await?;
    let mut stream = scene.caller().tunnel("reviews:9000").await?;
    // It looks like HTTP, and nobody looks.
    echoes(&mut stream, b"GET / HTTP/1.1\r\n\r\n").await?;
    echoes(&mut stream, &vec![7; 1_000_000]).await?;
    // One side has said all; the other still speaks.
    stream.write_all(b"last words").await?;
    stream.shutdown().await?;
    let mut rest = Vec::new();
    bounded("the end", stream.read_to_end(&mut rest)).await??;
    ensure!(rest == b"last words", "{rest:?}");

    for (sidecar, reporter, security) in [
        (&scene.client, "source", "unknown"),
        (&scene.servers[0], "destination", "mutual_tls"),
    ] {
        let labels = [("reporter", reporter), ("connection_security_policy", security)];
        eventually(&format!("the {reporter} counts the connection"), || {
            let page = sidecar.metrics_page().ok()?;
            let closed = sum(&page, "istio_tcp_connections_closed_total", &labels);
            let received = sum(&page, "istio_tcp_received_bytes_total", &labels);
            let sent = sum(&page, "istio_tcp_sent_bytes_total", &labels);
            ((closed, received, sent) == (1.0, 1_000_028.0, 1_000_028.0)).then_some(())
        })?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_speaks_first_is_heard_on_an_undeclared_port() -> anyhow::Result<()> {
    let application = App::tcp("220 mail.example\r\n")?;
    let scene = scene(&[(9025, "any", "", 9025)], application.address, "").await?;
    let captured = scene.caller().tunnel("reviews:9025").await?;
    // Without mutual TLS the inbound side has to wait for bytes as well.
    let plaintext = connect((scene.servers[0].address, 9025).into()).await?;
    for mut stream in [captured, plaintext] {
        let mut banner = [0; 18];
        bounded("the banner", stream.read_exact(&mut banner)).await??;
        ensure!(&banner == b"220 mail.example\r\n", "{banner:?}");
        echoes(&mut stream, b"HELO me\r\n").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_http_are_tcp_on_an_undeclared_port() -> anyhow::Result<()> {
    let application = App::tcp("")?;
    let scene = scene(&[(9001, "any", "", 9001)], application.address, "").await?;
    let captured = scene.caller().tunnel("reviews.default.svc.cluster.local:9001").await?;
    let plaintext = connect((scene.servers[0].address, 9001).into()).await?;
    for mut stream in [captured, plaintext] {
        echoes(&mut stream, b"*1\r\n$4\r\nPING\r\n").await?;
    }
    Ok(())
}

/// An HTTPS server of its own certificate; any path is answered with `secret`.
async fn https_application() -> anyhow::Result<SocketAddr> {
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(vec!["secure.example".to_owned()])?.self_signed(&key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                let _ = stream.read(&mut [0; 4096]).await?;
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 6\r\n\r\nsecret")
                    .await?;
                stream.shutdown().await
            });
        }
    });
    Ok(address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_of_the_applications_passes_through() -> anyhow::Result<()> {
    let application = https_application().await?;
    let ports = [(443, "https", "HTTPS", 8443), (444, "any", "", 8444)];
    let scene = scene(&ports, application, "").await?;
    let proxy = scene.client.proxy_url();
    for port in [443, 444] {
        let url = format!("https://reviews:{port}/");
        let text = curl(&["-k", "-v", "--stderr", "-", "--proxytunnel", "-x", &proxy, &url])?;
        ensure!(text.contains("secret"), "{text}");
        // Its own certificate, not the mesh's.
        ensure!(text.contains("rcgen self signed cert"), "{text}");
    }
    eventually("it travelled in mutual TLS", || {
        let page = scene.servers[0].metrics_page().ok()?;
        let labels = [
            ("connection_security_policy", "mutual_tls"),
            ("request_protocol", "tcp"),
        ];
        (sum(&page, "istio_tcp_connections_closed_total", &labels) == 2.0).then_some(())
    })?;

    // A peer without sidecar speaks TLS with the application itself.
    for port in [8443, 8444] {
        let url = format!("https://{}:{port}/", scene.servers[0].address);
        ensure!(curl(&["-k", &url])? == "secret", "{url}");
    }
    Ok(())
}
