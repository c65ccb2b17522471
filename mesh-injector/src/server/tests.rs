//! The whole injector on real sockets, against an API server in memory.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Parser as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::options::Options;
use crate::testing::{Api, MUTATING};

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

struct Running {
    api: Api,
    address: SocketAddr,
    status: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

const DEADLINE: Duration = Duration::from_secs(20);

/// Asks until the answer is there.
async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let start = std::time::Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(start.elapsed() < DEADLINE, "{what} not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Running {
    async fn start() -> Self {
        let api = Api::new();
        api.put(
            "/api/v1/namespaces/shop",
            json!({"metadata": {"name": "shop", "labels": {"istio-injection": "enabled"}}}),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let status_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, status) = (listener.local_addr().unwrap(), status_listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let options = Cli::parse_from(["mesh-injector", "--shutdown-delay", "200ms"]).options;
        let task = crate::run::serve(options, api.client(), listener, status_listener, stop.clone());
        let running = Self {
            api,
            address,
            status,
            stop,
            task: tokio::spawn(task),
        };
        eventually("readiness", async || {
            running.page("/ready").await.starts_with("HTTP/1.1 200").then_some(())
        })
        .await;
        running
    }

    /// A page in plaintext, with its head.
    async fn page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.status).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// A connection as the API server makes it: by the bundle of the webhook's configuration and the Service's name.
    async fn connect(&self, protocol: &[u8]) -> TlsStream<TcpStream> {
        let webhook = self.api.get(MUTATING).unwrap();
        let bundle = webhook["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap();
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&BASE64_STANDARD.decode(bundle).unwrap()) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("mesh-injector.mesh-system.svc").unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .unwrap()
    }

    async fn post(&self, http2: bool, path: &str, body: impl Into<Bytes>) -> (StatusCode, Bytes) {
        let request = Request::post(format!("https://mesh-injector.mesh-system.svc{path}?timeout=10s"))
            .header("host", "mesh-injector.mesh-system.svc")
            .body(Full::new(body.into()))
            .unwrap();
        let response = if http2 {
            let io = TokioIo::new(self.connect(b"h2").await);
            let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                .await
                .unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        } else {
            let io = TokioIo::new(self.connect(b"http/1.1").await);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        };
        let status = response.status();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    }
}

fn question(kind: [&str; 3], object: Value) -> String {
    let [group, version, kind] = kind;
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u", "kind": {"group": group, "version": version, "kind": kind},
            "resource": {"group": group, "version": version, "resource": "r"},
            "namespace": "shop", "operation": "CREATE", "userInfo": {}, "object": object,
        },
    })
    .to_string()
}

fn pod(annotations: Value) -> String {
    let metadata = json!({"name": "a", "annotations": annotations});
    let pod = json!({"metadata": metadata, "spec": {"containers": [{"name": "app"}]}});
    question(["", "v1", "Pod"], pod)
}

#[tokio::test]
async fn pods_and_policies_over_https() {
    let running = Running::start().await;
    for http2 in [false, true] {
        let (status, body) = running.post(http2, "/inject", pod(json!({}))).await;
        assert_eq!(status, StatusCode::OK);
        let review: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(review["response"]["allowed"], true);
        assert_eq!(review["response"]["patchType"], "JSONPatch");
    }
    let policy = json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "x"},
        "spec": {"mtls": {"mode": "SOMETIMES"}}});
    let asked = question(["security.istio.io", "v1", "PeerAuthentication"], policy);
    let (_, body) = running.post(true, "/validate", asked).await;
    let review: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(review["response"]["allowed"], false);
    assert!(
        review["response"]["status"]["message"]
            .as_str()
            .unwrap()
            .starts_with("spec.mtls.mode: "),
        "{review}"
    );

    let metrics = running.page("/metrics").await;
    for name in [
        "sidecar_injection_requests_total",
        "sidecar_injection_success_total",
        "galley_validation_failed",
    ] {
        assert!(metrics.contains(name), "{name} in {metrics}");
    }
}

#[tokio::test]
async fn events_are_written() {
    let running = Running::start().await;
    let (_, body) = running
        .post(true, "/inject", pod(json!({"sidecar.istio.io/logLevel": "loud"})))
        .await;
    let review: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(review["response"]["allowed"], false);
    let event = eventually("an event", async || {
        running.api.below("/api/v1/namespaces/shop/events").pop()
    })
    .await;
    assert_eq!(event["reason"], "InjectionRefused");
    assert_eq!(event["involvedObject"]["name"], "a");
    assert!(event["message"].as_str().unwrap().contains("loud"));
}

#[tokio::test]
async fn hostile_requests_harm_nobody() {
    let running = Running::start().await;
    for (path, body, expected) in [
        ("/inject", Bytes::from_static(b"{"), StatusCode::BAD_REQUEST),
        ("/inject", Bytes::new(), StatusCode::BAD_REQUEST),
        ("/validate", Bytes::from_static(b"\xff\xff"), StatusCode::BAD_REQUEST),
        ("/else", Bytes::new(), StatusCode::NOT_FOUND),
        ("/inject", Bytes::from("[".repeat(1_000_000)), StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(running.post(true, path, body).await.0, expected, "{path}");
    }
    let (status, _) = running.post(true, "/inject", vec![b' '; MAX_BODY + 1]).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);

    // Not TLS, TLS without a word, a request that never ends.
    let mut plain = TcpStream::connect(running.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = plain.read_to_end(&mut rest).await;
    let _silent = running.connect(b"http/1.1").await;
    let mut slow = running.connect(b"http/1.1").await;
    slow.write_all(b"POST /inject HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        .await
        .unwrap();
    let mut get = running.connect(b"http/1.1").await;
    get.write_all(b"GET /inject HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    get.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");

    assert_eq!(running.post(true, "/inject", pod(json!({}))).await.0, StatusCode::OK);
}

#[tokio::test]
async fn stopping_is_seen_first_and_serves_on_for_a_while() {
    let running = Running::start().await;
    running.stop.cancel();
    eventually("the end of readiness", async || {
        running.page("/ready").await.starts_with("HTTP/1.1 503").then_some(())
    })
    .await;
    assert_eq!(running.post(true, "/inject", pod(json!({}))).await.0, StatusCode::OK);
    tokio::time::timeout(DEADLINE, running.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(running.address).await.is_err());
}
