//! Broken, hostile and slow peers, and the end of a proxy.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use e2e::plain::{Sidecar, eventually};
use e2e::traffic::backend::Step;
use e2e::traffic::caller::{Connection, bounded, connect};
use e2e::traffic::metrics::sum;
use e2e::traffic::{Plan, Scene, traffic_policy};
use http::{Method, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const URL: &str = "http://reviews/";

/// Sends bytes and gives all that comes back until the peer ends the connection.
async fn answer_to(address: SocketAddr, bytes: &[u8]) -> anyhow::Result<String> {
    let mut stream = connect(address).await?;
    let mut answer = Vec::new();
    // The peer may end it while we still write.
    let _ = stream.write_all(bytes).await;
    let _ = bounded("the end of the connection", stream.read_to_end(&mut answer)).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn counted(sidecar: &Sidecar, name: &str, labels: &[(&str, &str)], least: f64) -> anyhow::Result<()> {
    eventually(&format!("{name} {labels:?} counts {least}"), || {
        (sum(&sidecar.metrics_page().ok()?, name, labels) >= least).then_some(())
    })
    .with_context(|| sidecar.metrics_page().unwrap_or_default())
}

const ERRORS: &str = "mesh_downstream_connection_errors_total";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_http1_ends_its_connection_only() -> anyhow::Result<()> {
    let scene = Scene::meshed(&["v1"], "").await?;
    let mut neighbour = scene.caller().connection().await?;
    let request = || Request::get(URL).header("host", "reviews").body(Bytes::new());
    let sides = [
        (scene.client.outbound(), "outbound", &scene.client),
        ((scene.servers[0].address, 8080).into(), "inbound", &scene.servers[0]),
    ];
    for (address, side, sidecar) in sides {
        let broken: [&[u8]; 7] = [
            b"GET / HTTP/1.1\r\nhost: reviews\r\nno colon here\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: reviews\r\nx\x00y: z\r\n\r\n",
            b"GET / HTTP/9.9\r\nhost: reviews\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: reviews\r\ncontent-length: ten\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: reviews\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            b"POST / HTTP/1.1\r\nhost: reviews\r\ntransfer-encoding: chunked, nonsense\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: reviews\r\nhost: other\r\nconnection: close\r\n\r\n",
        ];
        for bytes in broken {
            let answer = answer_to(address, bytes).await?;
            ensure!(
                answer.starts_with("HTTP/1.1 400 "),
                "{side} {:?}: {answer}",
                String::from_utf8_lossy(bytes)
            );
            ensure!(neighbour.send(request()?).await?.status == 200);
        }
        counted(sidecar, ERRORS, &[("side", side), ("kind", "malformed")], 6.0)?;
    }
    ensure!(
        scene.backends[0].seen().iter().all(|seen| seen.uri == "/"),
        "something broken arrived"
    );
    ensure!(scene.backends[0].seen().len() == 14);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_method_that_nobody_knows_is_http_where_http_is_declared() -> anyhow::Result<()> {
    let scene = Scene::meshed(&["v1"], "").await?;
    let request = |target: &str| format!("BREW {target} HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n");
    let answer = answer_to(scene.client.outbound(), request(URL).as_bytes()).await?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let answer = answer_to((scene.servers[0].address, 8080).into(), request("/").as_bytes()).await?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let mut stream = scene.caller().tunnel("reviews:80").await?;
    stream.write_all(request("/").as_bytes()).await?;
    let mut answer = String::new();
    bounded("the answer", stream.read_to_string(&mut answer)).await??;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let seen = scene.backends[0].take();
    ensure!(
        seen.len() == 3 && seen.iter().all(|seen| seen.method.as_str() == "BREW"),
        "{seen:?}"
    );
    // Policy had its look at each: they are requests, not bytes.
    let page = scene.servers[0].metrics_page()?;
    ensure!(
        sum(&page, "istio_requests_total", &[("response_code", "200")]) == 3.0,
        "{page}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_cannot_be_smuggled() -> anyhow::Result<()> {
    let scene = Scene::meshed(&["v1"], "").await?;
    // Both lengths: the body is chunked and ends; what follows is a request of its own, or nothing.
    let both = b"POST http://reviews/one HTTP/1.1\r\nhost: reviews\r\ncontent-length: 60\r\ntransfer-encoding: chunked\r\n\r\n\
                 0\r\n\r\nGET http://reviews/two HTTP/1.1\r\nhost: reviews\r\nx: y\r\nconnection: close\r\n\r\n";
    let _ = answer_to(scene.client.outbound(), both).await?;
    for seen in scene.backends[0].take() {
        ensure!(seen.body.is_empty(), "{seen:?}");
        ensure!(!(seen.headers.contains_key("content-length") && seen.headers.contains_key("transfer-encoding")));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_garbage_ends_its_connection_only() -> anyhow::Result<()> {
    let scene = Scene::meshed(&["v1"], "").await?;
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut neighbour = scene.caller().connection().await?;
    let sides = [
        (scene.client.outbound(), "outbound", &scene.client),
        ((scene.servers[0].address, 8080).into(), "inbound", &scene.servers[0]),
    ];
    for (address, side, sidecar) in sides {
        let frames: [&[u8]; 4] = [
            // No settings first.
            b"\x00\x00\x00\x00\x01\x00\x00\x00\x01",
            // A frame of 16 MB.
            b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\xff\xff\xff\x00\x00\x00\x00\x00\x01",
            // Settings, then headers that HPACK cannot read.
            b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x04\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff",
            // Settings on a stream.
            b"\x00\x00\x00\x04\x00\x00\x00\x00\x07",
        ];
        for frame in frames {
            answer_to(address, &[PREFACE, frame].concat()).await?;
            let request = Request::get(URL).header("host", "reviews").body(Bytes::new())?;
            ensure!(neighbour.send(request).await?.status == 200);
        }
        counted(sidecar, ERRORS, &[("side", side)], 4.0)?;
    }
    Ok(())
}

/// An HTTP/2 client that calls off each request with the frame after it (CVE-2023-44487), `burst` at a time, each time when
/// the proxy has looked at what came before. Gives how many it got rid of before the connection was ended.
async fn rapid_reset(address: SocketAddr, burst: u32) -> anyhow::Result<u32> {
    const MOST: u32 = 100_000;
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u8::try_from(payload.len()).unwrap_or(u8::MAX);
        [&[0, 0, length, kind, flags], &stream.to_be_bytes()[..], payload].concat()
    };
    // :method GET, :scheme http, :path /, :authority reviews, by the tables of HPACK.
    let head = [b"\x82\x86\x84\x41\x07".as_slice(), b"reviews"].concat();
    let (mut reader, mut writer) = connect(address).await?.into_split();
    let settings = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(4, 0, 0, b"")].concat();
    writer.write_all(&settings).await?;
    let mut sent = 0;
    while sent < MOST {
        let mut bytes = Vec::new();
        for _ in 0..burst {
            let stream = sent * 2 + 1;
            bytes.extend(frame(1, 5, stream, &head));
            // RST_STREAM, CANCEL.
            bytes.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
            sent += 1;
        }
        // PING.
        bytes.extend(frame(6, 0, 0, b"are you?"));
        if bounded("room for frames", writer.write_all(&bytes)).await?.is_err() {
            return Ok(sent);
        }
        // Until it is answered.
        loop {
            let mut head = [0; 9];
            if bounded("a frame", reader.read_exact(&mut head)).await?.is_err() {
                return Ok(sent);
            }
            let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
            let mut payload = vec![0; length];
            if bounded("a payload", reader.read_exact(&mut payload)).await?.is_err() {
                return Ok(sent);
            }
            if head[3] == 6 && head[4] == 1 && payload == b"are you?" {
                break;
            }
        }
    }
    anyhow::bail!("the proxy puts up with all of {MOST}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rapid_reset_attack_is_ended() -> anyhow::Result<()> {
    let scene = Scene::meshed(&["v1"], "").await?;
    let mut neighbour = scene.caller().connection().await?;
    let sides = [
        (scene.client.outbound(), "outbound", &scene.client),
        ((scene.servers[0].address, 8080).into(), "inbound", &scene.servers[0]),
    ];
    for (address, side, sidecar) in sides {
        // As much as it likes at once, and so little at a time that the proxy begins each request.
        for (attack, burst) in [(1.0, 20_000), (2.0, 1000)] {
            let sent = rapid_reset(address, burst)
                .await
                .with_context(|| format!("{side}, {burst} at a time"))?;
            ensure!(sent < 100_000, "{side} {burst}: {sent}");
            let request = Request::get(URL).header("host", "reviews").body(Bytes::new())?;
            ensure!(neighbour.send(request).await?.status == 200);
            counted(sidecar, ERRORS, &[("side", side), ("kind", "flood")], attack)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_garbage_ends_its_connection_only() -> anyhow::Result<()> {
    let scene = Scene::meshed(&["v1"], "").await?;
    let address = SocketAddr::new(scene.servers[0].address, 8080);
    // A ClientHello of nonsense, and one that ends early.
    let broken: [&[u8]; 2] = [
        b"\x16\x03\x01\x00\x10\x01\x00\x00\x0cnonsense!!!!",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ];
    for bytes in broken {
        let mut stream = connect(address).await?;
        stream.write_all(bytes).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        let _ = bounded("the end", stream.read_to_end(&mut answer)).await?;
        ensure!(!answer.starts_with(b"HTTP"), "{answer:?}");
        ensure!(scene.caller().get(URL).await?.status == 200);
    }
    counted(
        &scene.servers[0],
        "mesh_inbound_connections_refused_total",
        &[("reason", "malformed")],
        2.0,
    )?;
    // The explicit proxy speaks no TLS at all.
    answer_to(scene.client.outbound(), broken[0]).await?;
    counted(
        &scene.client,
        ERRORS,
        &[("side", "outbound"), ("kind", "malformed")],
        1.0,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_are_too_big_are_refused() -> anyhow::Result<()> {
    let scene = Scene::meshed(&["v1"], "").await?;
    let many: String = (0..150).map(|header| format!("x-{header}: 1\r\n")).collect();
    let heads = [
        format!(
            "GET {URL} HTTP/1.1\r\nhost: reviews\r\nx-big: {}\r\n\r\n",
            "x".repeat(70_000)
        ),
        format!("GET {URL} HTTP/1.1\r\nhost: reviews\r\n{many}\r\n"),
    ];
    for address in [scene.client.outbound(), (scene.servers[0].address, 8080).into()] {
        for head in &heads {
            let answer = answer_to(address, head.as_bytes()).await?;
            ensure!(answer.starts_with("HTTP/1.1 431 "), "{}: {answer}", &head[..60]);
        }
    }
    // Big, but not too big, all the way.
    let big = "x".repeat(40_000);
    ensure!(scene.caller().with(URL, &[("x-big", &big)]).await?.status == 200);
    ensure!(scene.backends[0].take()[0].header("x-big") == big);

    let mut connection = Connection::http2(connect(scene.client.outbound()).await?).await?;
    let request = |size: usize| Request::get(URL).header("x-big", "x".repeat(size)).body(Bytes::new());
    ensure!(connection.send(request(40_000)?).await?.status == 200);
    let refused = connection.send(request(70_000)?).await;
    ensure!(!refused.is_ok_and(|answer| answer.status == 200));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_harm_nobody() -> anyhow::Result<()> {
    let scene = Scene::meshed(&["v1"], "").await?;
    let mut slow = Vec::new();
    for bytes in [
        "G",
        "GET http://rev",
        "GET http://reviews/ HTTP/1.1\r\nhost: rev",
        "POST http://reviews/ HTTP/1.1\r\nhost: \
        reviews\r\ncontent-length: 100\r\n\r\nonly",
    ] {
        for address in [scene.client.outbound(), (scene.servers[0].address, 8080).into()] {
            for _ in 0..20 {
                let mut stream = connect(address).await?;
                stream.write_all(bytes.as_bytes()).await?;
                slow.push(stream);
            }
        }
    }
    // Half a ClientHello.
    for _ in 0..20 {
        let mut stream = connect((scene.servers[0].address, 8080).into()).await?;
        stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00").await?;
        slow.push(stream);
    }
    let started = Instant::now();
    for _ in 0..50 {
        ensure!(scene.caller().get(URL).await?.status == 200);
    }
    ensure!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    drop(slow);
    counted(&scene.client, ERRORS, &[("side", "outbound")], 60.0)?;
    counted(&scene.servers[0], ERRORS, &[("side", "inbound")], 60.0)?;
    counted(
        &scene.servers[0],
        "mesh_inbound_connections_refused_total",
        &[("reason", "malformed")],
        20.0,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_is_told_to_end_finishes_what_it_has() -> anyhow::Result<()> {
    for which in ["server", "client"] {
        let mut scene = Scene::meshed(&["v1"], "").await?;
        // A connection that is open and idle holds nobody up.
        let mut idle = scene.caller().connection().await?;
        ensure!(
            idle.send(Request::get(URL).header("host", "reviews").body(Bytes::new())?)
                .await?
                .status
                == 200
        );
        let backend = &scene.backends[0];
        backend.then([Step::After(Duration::from_secs(1))]);
        let caller = scene.caller();
        let call = tokio::spawn(async move { caller.get(URL).await });
        eventually("the request is there", || (backend.now() == 1).then_some(()))?;
        let sidecar = if which == "server" {
            &mut scene.servers[0]
        } else {
            &mut scene.client
        };
        sidecar.process.signal("TERM")?;
        eventually("it is not ready any more", || (!sidecar.is_ready()).then_some(()))?;
        let answer = call.await??;
        ensure!(answer.status == 200 && answer.backend() == "v1", "{which}: {answer:?}");
        let started = Instant::now();
        let status = sidecar.process.wait()?;
        ensure!(status.success(), "{which}: {status}");
        ensure!(
            started.elapsed() < Duration::from_secs(4),
            "{which}: {:?}",
            started.elapsed()
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_during_a_drain_is_served() -> anyhow::Result<()> {
    for protocol in ["HTTP", "HTTP2"] {
        let mut scene = Scene::start(Plan {
            versions: &["v1"],
            sidecars: true,
            ports: &[(80, "main", protocol, 8080)],
            // Each request has a connection of its own.
            policy: &traffic_policy("{connectionPool: {http: {maxRequestsPerConnection: 1}}}"),
            ..Plan::default()
        })
        .await?;
        let backend = &scene.backends[0];
        backend.then([Step::Hold]);
        let caller = scene.caller();
        let call = tokio::spawn(async move { caller.call(Method::POST, URL, &[], "held").await });
        eventually("the request is there", || (backend.now() == 1).then_some(()))?;
        scene.servers[0].process.signal("TERM")?;
        eventually("it is not ready any more", || {
            (!scene.servers[0].is_ready()).then_some(())
        })?;
        for _ in 0..10 {
            let answer = caller.call(Method::POST, URL, &[], "late").await?;
            ensure!(answer.status == 200, "{protocol}: {answer:?}");
        }
        backend.release(1);
        ensure!(call.await??.status == 200);
        ensure!(scene.servers[0].process.wait()?.success());
        // Who comes too late learns it at once.
        let answer = scene.caller().get(URL).await?;
        ensure!(answer.status == 503, "{answer:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_has_an_end() -> anyhow::Result<()> {
    let mut scene = Scene::start(Plan {
        versions: &["v1"],
        sidecars: true,
        server_args: &["--drain-duration", "500ms"],
        ..Plan::default()
    })
    .await?;
    let backend = &scene.backends[0];
    backend.then([Step::Hold]);
    let caller = scene.caller();
    let call = tokio::spawn(async move { caller.get(URL).await });
    eventually("the request is there", || (backend.now() == 1).then_some(()))?;
    scene.servers[0].process.signal("TERM")?;
    let status = scene.servers[0].process.wait()?;
    ensure!(status.success(), "{status}");
    ensure!(call.await??.status == 503);
    Ok(())
}
