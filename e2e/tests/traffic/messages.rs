//! Messages of every shape, through both sidecars and mutual TLS: what is sent arrives, whole and no more, and what breaks
//! is seen to have broken on the other side.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use e2e::app::App;
use e2e::bodies::{self, Body, full};
use e2e::plain::eventually;
use e2e::traffic::caller::{Answer, Connection, bounded, collect, connect};
use e2e::traffic::{Plan, Scene, logged, strict};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Several times what any window or buffer on the way holds.
const BIG: usize = 5_000_000;
const TRAILER: &str = "x-checksum";

/// How a request travels: the version that the client speaks, and the service's port, which decides what is spoken between
/// the sidecars and to the application.
const WAYS: [(Version, u16); 4] = [
    (Version::HTTP_11, 80),
    (Version::HTTP_11, 82),
    (Version::HTTP_2, 80),
    (Version::HTTP_2, 82),
];

/// A mesh in which nothing but mutual TLS gets anywhere, with this application behind the service's sidecar.
async fn scene(app: &App) -> anyhow::Result<Scene> {
    Scene::start(Plan {
        versions: &["v1"],
        sidecars: true,
        ports: &[(80, "http", "HTTP", 8080), (82, "http2", "HTTP2", 8082)],
        inbound: &[(8080, app.address), (8082, app.address)],
        policy: &strict(),
        ..Plan::default()
    })
    .await
}

async fn connection(scene: &Scene, (version, port): (Version, u16)) -> anyhow::Result<Connection> {
    let stream = scene.caller().tunnel(&format!("reviews:{port}")).await?;
    Connection::on(stream, version).await
}

fn request(way: (Version, u16), method: Method, path: &str, body: Body) -> anyhow::Result<Request<Body>> {
    let host = format!("reviews:{}", way.1);
    let request = Request::builder().method(method);
    let request = match way.0 {
        Version::HTTP_2 => request.uri(format!("http://{host}{path}")),
        _ => request.uri(path).header("host", host),
    };
    Ok(request.body(body)?)
}

/// What of an application's doings a test waits for.
fn reports<T: Send + 'static>() -> (mpsc::UnboundedSender<T>, mpsc::UnboundedReceiver<T>) {
    mpsc::unbounded_channel()
}

async fn reported<T>(what: &str, reports: &mut mpsc::UnboundedReceiver<T>) -> anyhow::Result<T> {
    bounded(what, reports.recv()).await?.context("the application is gone")
}

/// Sends a request's body back as it comes, with the same length or without one, and its trailers.
async fn echo(request: Request<Incoming>) -> anyhow::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let mut response = Response::new(body.map_err(Into::into).boxed_unsync());
    let headers = response.headers_mut();
    for name in [http::header::CONTENT_LENGTH, http::header::TRAILER] {
        headers.extend(parts.headers.get(&name).map(|value| (name, value.clone())));
    }
    let coding = parts.headers.get(http::header::TRANSFER_ENCODING);
    headers.extend(coding.map(|value| (http::HeaderName::from_static("x-coding"), value.clone())));
    Ok(response)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn big_bodies_pass_both_ways_at_once() -> anyhow::Result<()> {
    let app = App::handler(echo)?;
    let scene = scene(&app).await?;
    let sent = bodies::pattern(BIG);
    let length = BIG.to_string();
    for way in WAYS {
        let mut connection = connection(&scene, way).await?;
        for (kind, body) in [
            ("length", full(sent.clone())),
            ("pieces", bodies::pieces(&sent, 10_007)),
        ] {
            let answer = connection.exchange(request(way, Method::POST, "/", body)?).await?;
            ensure!(answer.status == 200, "{way:?} {kind}: {}", answer.status);
            // How it was framed stays as it was, where the versions have the same ways to.
            let expected = if kind == "length" { length.as_str() } else { "" };
            ensure!(
                answer.header("content-length") == expected,
                "{way:?} {kind}: {:?}",
                answer.headers
            );
            if way.1 == 80 {
                let coding = if kind == "length" { "" } else { "chunked" };
                ensure!(
                    answer.header("x-coding") == coding,
                    "{way:?} {kind}: {:?}",
                    answer.headers
                );
            }
            ensure!(
                answer.body.len() == BIG && answer.body == sent,
                "{way:?} {kind}: other bytes came back"
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_without_a_body_end_where_they_should() -> anyhow::Result<()> {
    let app = App::handler(async |request: Request<Incoming>| {
        let status = request.uri().path().trim_start_matches('/').parse().unwrap_or(200);
        let head = request.method() == Method::HEAD;
        let body = if head || status != 200 {
            Bytes::new()
        } else {
            Bytes::from_static(b"body")
        };
        let mut response = Response::new(full(body));
        *response.status_mut() = StatusCode::from_u16(status)?;
        if head {
            // What the answer to GET would have.
            response
                .headers_mut()
                .insert(http::header::CONTENT_LENGTH, HeaderValue::from_static("4321"));
        }
        Ok(response)
    })?;
    let scene = scene(&app).await?;
    for way in WAYS {
        // All on one connection: an answer that is framed wrongly takes a part of the next.
        let mut connection = connection(&scene, way).await?;
        for (method, path, status, length) in [
            (Method::HEAD, "/200", 200, "4321"),
            (Method::GET, "/204", 204, ""),
            (Method::GET, "/304", 304, ""),
            (Method::HEAD, "/304", 304, "4321"),
            (Method::GET, "/200", 200, "4"),
        ] {
            let case = format!("{way:?} {method} {path}");
            let answer = connection
                .exchange(request(way, method, path, full(""))?)
                .await
                .context(case.clone())?;
            ensure!(answer.status == status, "{case}: {answer:?}");
            ensure!(
                answer.header("content-length") == length,
                "{case}: {:?}",
                answer.headers
            );
            ensure!(
                answer.body == if length == "4" { "body" } else { "" },
                "{case}: {answer:?}"
            );
        }
    }
    Ok(())
}

/// Reads until what came ends in `end`.
async fn read_until(stream: &mut TcpStream, end: &str) -> anyhow::Result<String> {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        let byte = bounded(end, stream.read_u8()).await?;
        read.push(byte.with_context(|| format!("{end:?} does not come after {:?}", String::from_utf8_lossy(&read)))?);
    }
    Ok(String::from_utf8(read)?)
}

async fn read_to_end(stream: &mut TcpStream) -> anyhow::Result<String> {
    let mut read = String::new();
    bounded("the end of the connection", stream.read_to_string(&mut read)).await??;
    Ok(read)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_waits_is_told_to_continue() -> anyhow::Result<()> {
    let app = App::handler(echo)?;
    let scene = scene(&app).await?;
    for port in [80, 82] {
        let mut stream = scene.caller().tunnel(&format!("reviews:{port}")).await?;
        let head = format!(
            "POST / HTTP/1.1\r\nhost: reviews:{port}\r\nexpect: 100-continue\r\ncontent-length: 10\r\nconnection: \
             close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let told = read_until(&mut stream, "\r\n\r\n").await?;
        ensure!(told.starts_with("HTTP/1.1 100 "), "{port}: {told}");
        stream.write_all(b"ten bytes!").await?;
        let answer = read_to_end(&mut stream).await?;
        ensure!(
            answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nten bytes!"),
            "{port}: {answer}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_http_1_0_are_served() -> anyhow::Result<()> {
    let app = App::handler(async |request: Request<Incoming>| {
        Ok(Response::new(match request.uri().path() {
            // Of a length that is not known beforehand.
            "/pieces" => bodies::pieces(&Bytes::from_static(b"one two three"), 4),
            _ => full("whole"),
        }))
    })?;
    let scene = scene(&app).await?;
    let head = |port: u16, path: &str, more: &str| format!("GET {path} HTTP/1.0\r\nhost: reviews:{port}\r\n{more}\r\n");
    for port in [80, 82] {
        let connect = async || scene.caller().tunnel(&format!("reviews:{port}")).await;
        // One request, and the end of the connection is the end of the answer.
        for (path, body) in [("/", "whole"), ("/pieces", "one two three")] {
            let mut stream = connect().await?;
            stream.write_all(head(port, path, "").as_bytes()).await?;
            let answer = read_to_end(&mut stream).await?.to_ascii_lowercase();
            ensure!(
                answer.starts_with("http/1.0 200 ") || answer.starts_with("http/1.1 200 "),
                "{port} {path}: {answer}"
            );
            ensure!(!answer.contains("transfer-encoding"), "{port} {path}: {answer}");
            ensure!(answer.ends_with(&format!("\r\n\r\n{body}")), "{port} {path}: {answer}");
        }
        // Kept where it asks for that, as long as the length is known.
        let mut stream = connect().await?;
        for _ in 0..3 {
            stream
                .write_all(head(port, "/", "connection: keep-alive\r\n").as_bytes())
                .await?;
            let answer = read_until(&mut stream, "\r\n\r\nwhole").await?.to_ascii_lowercase();
            ensure!(answer.contains("connection: keep-alive\r\n"), "{port}: {answer}");
            ensure!(answer.contains("content-length: 5\r\n"), "{port}: {answer}");
        }
        stream
            .write_all(head(port, "/pieces", "connection: keep-alive\r\n").as_bytes())
            .await?;
        let answer = read_to_end(&mut stream).await?;
        ensure!(answer.ends_with("\r\n\r\none two three"), "{port}: {answer}");
    }
    Ok(())
}

/// Reads a request's head from a connection.
async fn read_head(stream: &mut TcpStream) -> anyhow::Result<String> {
    read_until(stream, "\r\n\r\n").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_of_http_1_0_are_understood() -> anyhow::Result<()> {
    let app = App::raw(async |mut stream| {
        if read_head(&mut stream).await.is_ok() {
            // The end of the connection is the end of the answer.
            let _ = stream
                .write_all(b"HTTP/1.0 200 Fine\r\nx-old: yes\r\n\r\nuntil the end")
                .await;
        }
    })?;
    let scene = scene(&app).await?;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let way = (version, 80);
        let mut connection = connection(&scene, way).await?;
        for _ in 0..3 {
            let answer = connection.exchange(request(way, Method::GET, "/", full(""))?).await?;
            ensure!(answer.status == 200 && answer.header("x-old") == "yes", "{answer:?}");
            ensure!(
                answer.version == version && answer.text() == "until the end",
                "{answer:?}"
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_answered_in_order() -> anyhow::Result<()> {
    let app = App::handler(async |request: Request<Incoming>| {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await?.to_bytes();
        if path == "/1" {
            // Those behind it could overtake it.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Ok(Response::new(full(format!(
            "<{path} {}>",
            String::from_utf8_lossy(&body)
        ))))
    })?;
    let scene = scene(&app).await?;
    for port in [80, 82] {
        let mut stream = scene.caller().tunnel(&format!("reviews:{port}")).await?;
        let mut requests = String::new();
        for number in 1..=20 {
            requests += &format!("POST /{number} HTTP/1.1\r\nhost: reviews:{port}\r\ncontent-length: 2\r\n");
            requests += if number == 20 {
                "connection: close\r\n\r\n"
            } else {
                "\r\n"
            };
            requests += &format!("{number:02}");
        }
        stream.write_all(requests.as_bytes()).await?;
        let answers = read_to_end(&mut stream).await?;
        let bodies: Vec<_> = answers.split('<').skip(1).map(|rest| rest.split('>').next()).collect();
        let expected: Vec<_> = (1..=20).map(|number| format!("/{number} {number:02}")).collect();
        ensure!(
            bodies == expected.iter().map(|body| Some(body.as_str())).collect::<Vec<_>>(),
            "{port}: {answers}"
        );
        ensure!(answers.matches("HTTP/1.1 200 ").count() == 20, "{port}: {answers}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_pass_both_ways() -> anyhow::Result<()> {
    let app = App::handler(echo)?;
    let scene = scene(&app).await?;
    for way in WAYS {
        let mut connection = connection(&scene, way).await?;
        for size in [10, BIG] {
            let sent = bodies::pattern(size);
            let (feeder, body) = bodies::feed();
            let mut request = request(way, Method::POST, "/", body)?;
            // HTTP/1.1 sends no trailers that were not announced, and that nobody takes.
            request
                .headers_mut()
                .insert(http::header::TRAILER, HeaderValue::from_static(TRAILER));
            request
                .headers_mut()
                .insert(http::header::TE, HeaderValue::from_static("trailers"));
            let piece = sent.clone();
            let feeding = async move {
                for piece in piece.chunks(50_000) {
                    feeder.send(Bytes::copy_from_slice(piece)).await?;
                }
                let mut trailers = HeaderMap::new();
                trailers.insert(TRAILER, HeaderValue::from_static("ab12"));
                feeder.trailers(trailers).await
            };
            let (answer, fed) = tokio::join!(connection.exchange(request), feeding);
            fed?;
            let answer: Answer = answer?;
            ensure!(
                answer.status == 200 && answer.body == sent,
                "{way:?} {size}: {}",
                answer.status
            );
            let trailers = answer.trailers.unwrap_or_default();
            ensure!(
                trailers.get(TRAILER).is_some_and(|value| value == "ab12"),
                "{way:?} {size}: {trailers:?}"
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_may_come_before_the_body_was_read() -> anyhow::Result<()> {
    let app = App::handler(async |request: Request<Incoming>| {
        let mut response = Response::new(full("too much"));
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        if request.uri().path() == "/fine" {
            *response.status_mut() = StatusCode::OK;
        }
        Ok(response)
    })?;
    let scene = scene(&app).await?;
    for way in WAYS {
        for _ in 0..3 {
            let mut connection = connection(&scene, way).await?;
            let (feeder, body) = bodies::feed();
            feeder.send(bodies::pattern(1000)).await?;
            // More is to come, but nobody waits for it.
            let answer = connection.exchange(request(way, Method::POST, "/", body)?).await?;
            ensure!(
                answer.status == 413 && answer.text() == "too much",
                "{way:?}: {answer:?}"
            );
            drop(feeder);
            // Nobody else meets what is left of it.
            let mut other = self::connection(&scene, way).await?;
            let answer = other.exchange(request(way, Method::GET, "/fine", full(""))?).await?;
            ensure!(
                answer.status == 200 && answer.text() == "too much",
                "{way:?}: {answer:?}"
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_is_no_whole_answer() -> anyhow::Result<()> {
    // Over HTTP/1 as bytes, over HTTP/2 as a stream that is reset.
    let app1 = App::raw(async |mut stream| {
        let Ok(head) = read_head(&mut stream).await else { return };
        let answer: &[u8] = if head.starts_with("GET /length") {
            b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nonly this"
        } else if head.starts_with("GET /chunk ") {
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\nonly this"
        } else {
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nonly this\r\n"
        };
        let _ = stream.write_all(answer).await;
        // Read when it has arrived: an answer without a body is another matter.
        tokio::time::sleep(Duration::from_millis(50)).await;
        if head.contains("reset") {
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
    })?;
    let app2 = App::handler(async |request: Request<Incoming>| {
        let (feeder, body) = bodies::feed();
        let length = request.uri().path().starts_with("/length");
        tokio::spawn(async move {
            let _ = feeder.send("only this").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            feeder.break_off().await;
        });
        let mut response = Response::new(body);
        if length {
            response
                .headers_mut()
                .insert(http::header::CONTENT_LENGTH, HeaderValue::from_static("1000"));
        }
        Ok(response)
    })?;
    for (port, app) in [(80, &app1), (82, &app2)] {
        let scene = scene(app).await?;
        for version in [Version::HTTP_11, Version::HTTP_2] {
            for path in ["/length", "/length-reset", "/chunk", "/chunks", "/chunks-reset"] {
                let way = (version, port);
                let case = format!("{way:?} {path}");
                let mut connection = connection(&scene, way).await?;
                let response = connection.begin(request(way, Method::GET, path, full(""))?).await;
                let response = response.context(case.clone())?;
                ensure!(response.status() == 200, "{case}: {response:?}");
                let rest = collect(response).await;
                ensure!(rest.is_err(), "{case}: a clean end: {rest:?}");
                let what = format!("{case} broke off");
                for sidecar in [&scene.client, &scene.servers[0]] {
                    let broken = |line: &serde_json::Value| line["path"] == path && line["response_flags"] == "UC";
                    logged(sidecar, &what, broken)?;
                }
            }
        }
    }
    Ok(())
}

/// How a request ended, as the application saw it.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    Whole,
    Broken,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_application_sees_an_upload_break_off() -> anyhow::Result<()> {
    let (started, mut starts) = reports();
    let (ended, mut endings) = reports();
    let app = App::handler(move |request: Request<Incoming>| {
        let (started, ended) = (started.clone(), ended.clone());
        async move {
            let mut body = request.into_body();
            // Also when the handler is called off: then nobody is left to read it.
            let mut report = OnDrop(Some(|| ended.send(Ending::Broken).unwrap_or_default()));
            let mut first = true;
            while let Some(frame) = body.frame().await {
                frame?;
                if std::mem::take(&mut first) {
                    started.send(())?;
                }
            }
            report.0 = None;
            ended.send(Ending::Whole)?;
            Ok(Response::new(full("whole")))
        }
    })?;
    let scene = scene(&app).await?;
    for way in WAYS {
        for length in [Some("100000"), None] {
            let mut connection = connection(&scene, way).await?;
            let (feeder, body) = bodies::feed();
            feeder.send(bodies::pattern(1000)).await?;
            let mut request = request(way, Method::POST, "/", body)?;
            if let Some(length) = length {
                request
                    .headers_mut()
                    .insert(http::header::CONTENT_LENGTH, HeaderValue::from_static(length));
            }
            let call = tokio::spawn(async move { connection.begin(request).await.map(drop) });
            reported("the upload begins", &mut starts).await?;
            // The client goes away.
            call.abort();
            let _ = call.await;
            drop(feeder);
            let ending = reported(&format!("{way:?} {length:?}: the upload ends"), &mut endings).await?;
            ensure!(ending == Ending::Broken, "{way:?} {length:?}: {ending:?}");
        }
    }
    Ok(())
}

struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(act) = self.0.take() {
            act();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_application_sees_that_nobody_reads_or_waits() -> anyhow::Result<()> {
    let (began, mut begins) = reports();
    let (abandoned, mut abandons) = reports();
    let app = App::handler(move |request: Request<Incoming>| {
        let (began, abandoned) = (began.clone(), abandoned.clone());
        async move {
            if request.uri().path() == "/wait" {
                began.send("wait")?;
                let _report = OnDrop(Some(move || abandoned.send("wait").unwrap_or_default()));
                return std::future::pending().await;
            }
            let (feeder, body) = bodies::feed();
            began.send("read")?;
            tokio::spawn(async move {
                let piece = bodies::pattern(10_000);
                while feeder.send(piece.clone()).await.is_ok() {}
                let _ = abandoned.send("read");
            });
            Ok(Response::new(body))
        }
    })?;
    let scene = scene(&app).await?;
    for way in WAYS {
        let mut connection = connection(&scene, way).await?;
        let request = |path| request(way, Method::GET, path, full(""));
        let response = connection.begin(request("/read")?).await?;
        ensure!(reported("the answer begins", &mut begins).await? == "read");
        let mut body = response.into_body();
        for _ in 0..10 {
            let frame = bounded("a piece", body.frame()).await?.context("an end")??;
            ensure!(frame.is_data(), "{way:?}");
        }
        drop((body, connection));
        let what = format!("{way:?}: nobody reads");
        ensure!(reported(&what, &mut abandons).await? == "read");

        let mut connection = self::connection(&scene, way).await?;
        let request = request("/wait")?;
        let call = tokio::spawn(async move { connection.begin(request).await.map(drop) });
        ensure!(reported("the request is there", &mut begins).await? == "wait");
        call.abort();
        let _ = call.await;
        let what = format!("{way:?}: nobody waits");
        ensure!(reported(&what, &mut abandons).await? == "wait");
    }
    Ok(())
}

/// A slow reader holds the sender back: what is on the way stays within bounds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_the_sender_back() -> anyhow::Result<()> {
    let passed = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = passed.clone();
    let app = App::handler(move |_| {
        let counted = counted.clone();
        async move {
            let (feeder, body) = bodies::feed();
            tokio::spawn(async move {
                let piece = bodies::pattern(100_000);
                for _ in 0..1000 {
                    if feeder.send(piece.clone()).await.is_err() {
                        return;
                    }
                    counted.fetch_add(piece.len(), std::sync::atomic::Ordering::SeqCst);
                }
            });
            Ok(Response::new(body))
        }
    })?;
    let scene = scene(&app).await?;
    for way in WAYS {
        passed.store(0, std::sync::atomic::Ordering::SeqCst);
        let mut connection = connection(&scene, way).await?;
        let response = connection.begin(request(way, Method::GET, "/", full(""))?).await?;
        // It comes to a standstill, long before all of the 100 MB are on the way.
        let mut last = usize::MAX;
        let mut still = 0;
        eventually(&format!("{way:?}: the sender waits"), || {
            let now = passed.load(std::sync::atomic::Ordering::SeqCst);
            still = if now == last { still + 1 } else { 0 };
            last = now;
            (still == 20).then_some(())
        })?;
        ensure!(last < 60_000_000, "{way:?}: {last}");
        let answer = collect(response).await?;
        ensure!(answer.body.len() == 100_000_000, "{way:?}: {}", answer.body.len());
    }
    Ok(())
}

/// The explicit proxy takes requests of both versions as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn big_bodies_pass_the_explicit_proxy() -> anyhow::Result<()> {
    let app = App::handler(echo)?;
    let scene = scene(&app).await?;
    let sent = bodies::pattern(BIG);
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut connection = Connection::on(connect(scene.client.outbound()).await?, version).await?;
        let request = Request::post("http://reviews:80/");
        let request = match version {
            Version::HTTP_2 => request,
            _ => request.header("host", "reviews:80"),
        };
        let answer = connection
            .exchange(request.body(bodies::pieces(&sent, 30_000))?)
            .await?;
        ensure!(
            answer.status == 200 && answer.body == sent,
            "{version:?}: {}",
            answer.status
        );
    }
    Ok(())
}
