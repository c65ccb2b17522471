//! The status port against small applications of every kind, over real sockets.

use std::convert::Infallible;
use std::sync::Mutex;

use http::Response;
use http_body_util::BodyExt as _;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_api::identity::TrustDomain;
use mesh_api::model::Workload;

use super::*;
use crate::admin::View;
use crate::drain::Drain;
use crate::identity::CertStore;
use crate::telemetry::Telemetry;
use crate::tls::verify::TrustDomains;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn admin() -> Arc<Admin> {
    Arc::new(Admin {
        workload: "reviews-v1.default".parse().unwrap(),
        boot: String::new(),
        view: Box::new(View::default),
        telemetry: Telemetry::new(crate::telemetry::Options {
            node: "node".into(),
            mesh: "mesh".into(),
            workload: Arc::new(Workload::default()),
            runtime: None,
            limits: crate::telemetry::Limits::default(),
        }),
        certificates: CertStore::new(TrustDomains::new(TrustDomain::cluster_local(), Vec::new())),
        logging: crate::admin::tests::logging(),
        drain: Drain::default(),
        quit: CancellationToken::new(),
        started: std::time::Instant::now(),
    })
}

/// A status port, and what it would ask the application at.
async fn start(probers: &str, scrape: Scrape) -> (SocketAddr, Arc<Admin>) {
    let listener = bind(0).unwrap();
    let port = listener.local_addr().unwrap().port();
    let admin = admin();
    let status = Arc::new(Status {
        admin: admin.clone(),
        own: HERE,
        port,
        probers: probers.parse().unwrap(),
        scrape,
    });
    tokio::spawn(serve(status, listener, CancellationToken::new()));
    (SocketAddr::new(HERE, port), admin)
}

/// What an application saw of a request.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    target: String,
    headers: HeaderMap,
}

type Log = Arc<Mutex<Vec<Seen>>>;

/// An application that answers by a function of the path.
async fn application(
    answer: impl Fn(&str) -> Response<Full<Bytes>> + Clone + Send + Sync + 'static,
    tls: Option<Arc<rustls::ServerConfig>>,
) -> (u16, Log) {
    let listener = TcpListener::bind((HERE, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let log = Log::default();
    let seen = log.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (answer, seen, tls) = (answer.clone(), seen.clone(), tls.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    seen.lock().unwrap().push(Seen {
                        target: request.uri().to_string(),
                        headers: request.headers().clone(),
                    });
                    let answer = answer(request.uri().path());
                    async move { Ok::<_, Infallible>(answer) }
                });
                match tls {
                    None => {
                        let server = hyper::server::conn::http1::Builder::new();
                        let _ = server.serve_connection(TokioIo::new(stream), service).await;
                    }
                    Some(config) => {
                        let stream = tokio_rustls::TlsAcceptor::from(config).accept(stream).await.unwrap();
                        let io = TokioIo::new(stream);
                        if io.inner().get_ref().1.alpn_protocol() == Some(b"h2") {
                            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                            let _ = server.serve_connection(io, service).await;
                        } else {
                            let server = hyper::server::conn::http1::Builder::new();
                            let _ = server.serve_connection(io, service).await;
                        }
                    }
                }
            });
        }
    });
    (port, log)
}

fn answer(status: u16, body: &'static str, headers: &[(&'static str, String)]) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        response.headers_mut().insert(*name, value.parse().unwrap());
    }
    response
}

/// Asks the status port as the kubelet or Prometheus does.
async fn ask(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> client::Reply {
    send(address, Method::GET, path, headers).await
}

async fn send(address: SocketAddr, method: Method, path: &str, headers: &[(&str, &str)]) -> client::Reply {
    let mut request = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", address.to_string());
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = request.body(Full::default()).unwrap();
    client::exchange(Box::new(stream), Version::Http1, request, 64 * 1024 * 1024)
        .await
        .unwrap()
}

fn http_prober(port: u16, more: &str) -> String {
    format!(r#"{{"/app-health/app/livez": {{"httpGet": {{"port": {port}{more}}}, "timeoutSeconds": 1}}}}"#)
}

#[tokio::test]
async fn a_page_is_asked_for_as_the_kubelet_would() {
    let (port, log) = application(|_| answer(202, "fine", &[]), None).await;
    let more = r#", "path": "/live?x=1", "httpHeaders": [{"name": "X-Probe", "value": "b"}]"#;
    let (status, _) = start(&http_prober(port, more), Scrape::Off).await;
    let reply = ask(
        status,
        "/app-health/app/livez",
        &[("user-agent", "kube-probe/1.35"), ("x-probe", "a")],
    )
    .await;
    assert_eq!((reply.status.as_u16(), &reply.body[..]), (202, b"fine".as_slice()));
    let seen = log.lock().unwrap().pop().unwrap();
    assert_eq!(seen.target, "/live?x=1");
    assert_eq!(seen.headers["host"], format!("127.0.0.1:{port}"));
    assert_eq!(seen.headers["user-agent"], "kube-probe/1.35");
    assert_eq!(seen.headers.get_all("x-probe").iter().collect::<Vec<_>>(), ["b"]);

    // The Host that a probe's own headers give goes through.
    ask(status, "/app-health/app/livez", &[("host", "shop.example")]).await;
    assert_eq!(log.lock().unwrap().pop().unwrap().headers["host"], "shop.example");
    assert_eq!(ask(status, "/app-health/app/readyz", &[]).await.status, 404);
}

#[tokio::test]
async fn what_the_application_says_is_passed_on() {
    let (port, _) = application(|_| answer(503, "down", &[]), None).await;
    let (status, _) = start(&http_prober(port, ""), Scrape::Off).await;
    let reply = ask(status, "/app-health/app/livez", &[]).await;
    assert_eq!((reply.status.as_u16(), &reply.body[..]), (503, b"down".as_slice()));

    let long: &'static str = "x".repeat(100_000).leak();
    let (port, _) = application(move |_| answer(200, long, &[]), None).await;
    let (status, _) = start(&http_prober(port, ""), Scrape::Off).await;
    let reply = ask(status, "/app-health/app/livez", &[]).await;
    assert_eq!((reply.status.as_u16(), reply.body.len()), (200, 10 * 1024));
}

#[tokio::test]
async fn nobody_or_silence_is_a_failure() {
    let silent = TcpListener::bind((HERE, 0)).await.unwrap();
    let (status, _) = start(&http_prober(silent.local_addr().unwrap().port(), ""), Scrape::Off).await;
    let reply = ask(status, "/app-health/app/livez", &[]).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.body[..]),
        (500, b"no answer within 1s\n".as_slice())
    );

    let gone = TcpListener::bind((HERE, 0)).await.unwrap().local_addr().unwrap().port();
    let (status, _) = start(&http_prober(gone, ""), Scrape::Off).await;
    let reply = ask(status, "/app-health/app/livez", &[]).await;
    assert_eq!(reply.status.as_u16(), 500);
    assert!(
        String::from_utf8_lossy(&reply.body).contains("cannot connect"),
        "{reply:?}"
    );
}

#[tokio::test]
async fn redirects_go_as_the_kubelets() {
    for (to, status, asked) in [
        ("/two", 200, 2),
        ("two?a=b", 200, 2),
        ("http://127.0.0.1:PORT/two", 200, 2),
        // Another host: alive, and no business of ours.
        ("https://shop.example/", 200, 1),
        ("/one", 500, 11),
        ("/sick", 503, 2),
    ] {
        let own = Arc::new(std::sync::OnceLock::new());
        let known = own.clone();
        let (port, log) = application(
            move |path| match path {
                "/one" => {
                    let port: &u16 = known.wait();
                    answer(302, "", &[("location", to.replace("PORT", &port.to_string()))])
                }
                "/two" => answer(200, "", &[]),
                _ => answer(503, "", &[]),
            },
            None,
        )
        .await;
        own.set(port).unwrap();
        let (address, _) = start(&http_prober(port, r#", "path": "/one""#), Scrape::Off).await;
        assert_eq!(ask(address, "/app-health/app/livez", &[]).await.status, status, "{to}");
        assert_eq!(log.lock().unwrap().len(), asked, "{to}");
    }
}

#[tokio::test]
async fn https_takes_any_certificate_and_both_versions() {
    let key = rcgen::generate_simple_self_signed(["nobody.example".to_owned()]).unwrap();
    for alpn in [Vec::new(), vec![b"h2".to_vec()]] {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![key.cert.der().clone()],
                rustls::pki_types::PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into()),
            )
            .unwrap();
        config.alpn_protocols = alpn;
        let (port, log) = application(|_| answer(200, "", &[]), Some(Arc::new(config))).await;
        let more = r#", "path": "live", "scheme": "HTTPS", "host": "localhost""#;
        let (status, _) = start(&http_prober(port, more), Scrape::Off).await;
        assert_eq!(ask(status, "/app-health/app/livez", &[]).await.status, 200);
        assert!(log.lock().unwrap().pop().unwrap().target.ends_with("/live"));
    }
}

#[tokio::test]
async fn a_connection_is_enough_for_tcp() {
    let open = TcpListener::bind((HERE, 0)).await.unwrap();
    let port = open.local_addr().unwrap().port();
    let probers = format!(r#"{{"/app-health/app/readyz": {{"tcpSocket": {{"port": {port}}}}}}}"#);
    let (status, _) = start(&probers, Scrape::Off).await;
    assert_eq!(ask(status, "/app-health/app/readyz", &[]).await.status, 200);
    // Interception tells by this address that the connection is the proxy's to its own application.
    assert_eq!(open.accept().await.unwrap().1.ip(), IpAddr::from([127, 0, 0, 6]));
    drop(open);
    assert_eq!(ask(status, "/app-health/app/readyz", &[]).await.status, 500);
}

#[tokio::test]
async fn grpc_health() {
    for (service, message, code, status) in [
        ("good", &b"\0\0\0\0\x02\x08\x01"[..], "0", 200),
        ("bad", b"\0\0\0\0\x02\x08\x02", "0", 500),
        ("unknown", b"", "5", 500),
        ("", b"", "12", 500),
    ] {
        let listener = TcpListener::bind((HERE, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let service = service_fn(move |request: Request<Incoming>| async move {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let asked = request.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(&asked[asked.len() - service.len()..], service.as_bytes());
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static(code));
                let body = Full::new(Bytes::from_static(message)).with_trailers(async move { Some(Ok(trailers)) });
                Ok::<_, Infallible>(
                    Response::builder()
                        .header("content-type", "application/grpc")
                        .body(body)
                        .unwrap(),
                )
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
        let probers = format!(r#"{{"/app-health/app/livez": {{"grpc": {{"port": {port}, "service": "{service}"}}}}}}"#);
        let (address, _) = start(&probers, Scrape::Off).await;
        let reply = ask(address, "/app-health/app/livez", &[]).await;
        assert_eq!(reply.status, status, "{service}: {reply:?}");
    }
}

fn at(port: u16) -> Scrape {
    Scrape::At {
        port,
        path: "/metrics?a=b".to_owned(),
    }
}

#[tokio::test]
async fn metrics_are_merged() {
    let kind = ("content-type", "text/plain; version=0.0.4".to_owned());
    let (port, log) = application(move |_| answer(200, "app_total 1", std::slice::from_ref(&kind)), None).await;
    let (status, _) = start("{}", at(port)).await;
    let accept = ("accept", "application/vnd.google.protobuf, text/plain");
    let timeout = (SCRAPE_TIMEOUT_HEADER, "2");
    let reply = ask(
        status,
        "/stats/prometheus",
        &[accept, timeout, ("accept-encoding", "gzip")],
    )
    .await;
    let page = String::from_utf8(reply.body.into()).unwrap();
    assert!(
        page.contains("istio_build{") && page.ends_with("\napp_total 1\n"),
        "{page}"
    );
    assert_eq!(
        reply.headers["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let seen = log.lock().unwrap().pop().unwrap();
    assert_eq!(seen.target, "/metrics?a=b");
    assert_eq!(seen.headers["accept"], "text/plain;version=0.0.4");
    assert_eq!(seen.headers[SCRAPE_TIMEOUT_HEADER], "1.8");
    assert!(!seen.headers.contains_key("accept-encoding"));
}

#[tokio::test]
async fn the_whole_page_is_open_metrics_when_the_applications_is() {
    let kind = (
        "content-type",
        "application/openmetrics-text; version=1.0.0; charset=utf-8".to_owned(),
    );
    let (port, log) = application(
        move |_| answer(200, "app_total 1\n# EOF\n", std::slice::from_ref(&kind)),
        None,
    )
    .await;
    let (status, _) = start("{}", at(port)).await;
    let reply = ask(
        status,
        "/metrics",
        &[("accept", "application/openmetrics-text;version=1.0.0")],
    )
    .await;
    let page = String::from_utf8(reply.body.into()).unwrap();
    assert!(
        page.ends_with("\napp_total 1\n# EOF\n") && page.matches("# EOF").count() == 1,
        "{page}"
    );
    assert!(
        page.contains("# TYPE mesh_proxy_process_cpu_seconds counter\n"),
        "{page}"
    );
    assert!(
        reply.headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("application/openmetrics-text; version=1.0.0")
    );
    assert!(
        log.lock().unwrap()[0].headers["accept"]
            .to_str()
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
}

#[tokio::test]
async fn an_application_that_fails_takes_nothing_with_it() {
    let (broken, _) = application(|_| answer(500, "app_total 1", &[]), None).await;
    let (html, _) = application(
        |_| answer(200, "<p>", &[("content-type", "text/html".to_owned())]),
        None,
    )
    .await;
    let (garbage, _) = application(|_| answer(200, "hello\n", &[]), None).await;
    let (packed, _) = application(|_| answer(200, "x", &[("content-encoding", "gzip".to_owned())]), None).await;
    let silent = TcpListener::bind((HERE, 0)).await.unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let gone = TcpListener::bind((HERE, 0)).await.unwrap().local_addr().unwrap().port();
    for (scrape, reason) in [
        (at(broken), "status 500"),
        (at(html), "content type text/html"),
        (at(garbage), "line 1 is no metric: `hello`"),
        (at(packed), "compressed"),
        (at(silent_port), "no answer within 90ms"),
        (at(gone), "cannot connect"),
        (
            Scrape::Unusable("prometheus.io/port: x".to_owned()),
            "prometheus.io/port: x",
        ),
    ] {
        let (status, _) = start("{}", scrape).await;
        let reply = ask(status, "/stats/prometheus", &[(SCRAPE_TIMEOUT_HEADER, "0.1")]).await;
        let page = String::from_utf8(reply.body.into()).unwrap();
        assert_eq!(reply.status, 200);
        assert!(
            page.contains("istio_build{") && page.lines().last().unwrap().contains(reason),
            "{reason}: {page}"
        );
    }
}

#[tokio::test]
async fn the_port_ends_the_proxy_for_its_own_pod_only() {
    let (status, admin) = start("{}", Scrape::Off).await;
    assert_eq!(ask(status, "/healthz/ready", &[]).await.status, 503);
    assert_eq!(ask(status, "/quitquitquit", &[]).await.status, 405);
    assert_eq!(send(status, Method::POST, "/drain", &[]).await.status, 405);
    let origin = [("origin", "http://evil.example")];
    assert_eq!(send(status, Method::POST, "/quitquitquit", &origin).await.status, 403);
    assert!(!admin.quit.is_cancelled());
    assert_eq!(send(status, Method::POST, "/quitquitquit", &[]).await.status, 200);
    assert!(admin.quit.is_cancelled());
}
