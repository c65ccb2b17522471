//! A pod that goes: its sidecar is told to drain, its application stops, and nobody loses a request.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use e2e::binaries;
use e2e::plain::{Sidecar, eventually};
use e2e::traffic::caller::{Connection, bounded, connect};
use e2e::traffic::metrics::sum;
use e2e::traffic::{Plan, Scene, WORKLOAD_PORT, traffic_policy};
use http::{Method, Request};
use tokio::task::JoinHandle;

const URL: &str = "http://reviews/";

/// A program that runs beside the proxy in its container, with the container's environment.
async fn beside(sidecar: &Sidecar, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(binaries::mesh_proxy());
    command
        .args(arguments)
        .env("MESH_ADMIN", sidecar.admin().to_string())
        .env("MESH_READINESS", format!("{}:15021", sidecar.address))
        // Of the proxy's own, and nothing to the others.
        .env("MESH_WORKLOAD", "reviews-v1")
        .env("MESH_STATUS_PORT", "15020")
        .env("MESH_PROMETHEUS", "{}");
    Ok(tokio::task::spawn_blocking(move || command.output()).await??)
}

fn page(output: &Output) -> anyhow::Result<String> {
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout.clone())?)
}

/// Requests without a pause, each caller on a connection that it keeps.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    callers: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Load {
    fn start(scene: &Scene, method: &Method) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let callers = (0..4).map(|_| {
            let (stop, answered, method, caller) = (stop.clone(), answered.clone(), method.clone(), scene.caller());
            tokio::spawn(async move {
                let mut connection = caller.connection().await?;
                while !stop.load(Ordering::SeqCst) {
                    let body = if method == Method::POST { "body" } else { "" };
                    let request = Request::builder().method(&method).uri(URL).header("host", "reviews");
                    let answer = connection.send(request.body(Bytes::from(body))?).await?;
                    ensure!(
                        answer.status == 200 && answer.header("x-mesh-not-sent").is_empty(),
                        "{answer:?}"
                    );
                    // The proxy of the caller's own side is not the one that goes.
                    ensure!(answer.header("connection") != "close", "{answer:?}");
                    answered.fetch_add(1, Ordering::SeqCst);
                }
                Ok(())
            })
        });
        Self {
            callers: callers.collect(),
            stop,
            answered,
        }
    }

    /// Waits for so many further answers.
    async fn more(&self, answers: usize) -> anyhow::Result<()> {
        let until = self.answered.load(Ordering::SeqCst) + answers;
        bounded("answers", async {
            while self.answered.load(Ordering::SeqCst) < until && !self.callers.iter().any(JoinHandle::is_finished) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    /// Ends; an error if a single request failed.
    async fn end(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        for caller in self.callers {
            caller.await??;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_goes_loses_no_request() -> anyhow::Result<()> {
    for protocol in ["HTTP", "HTTP2"] {
        let mut scene = Scene::start(Plan {
            versions: &["v1", "v2"],
            sidecars: true,
            ports: &[(80, "main", protocol, WORKLOAD_PORT)],
            policy: &traffic_policy("{loadBalancer: {simple: ROUND_ROBIN}}"),
            ..Plan::default()
        })
        .await?;
        let load = Load::start(&scene, &Method::GET);
        load.more(50).await?;
        // What the kubelet does at once: the sidecar's hook and the application's signal.
        let hook = ["drain", "--at-least", "300ms", "--quiet", "100ms", "--at-most", "10s"];
        let (hook, ()) = tokio::join!(beside(&scene.servers[0], &hook), scene.backend("v1")?.leave());
        page(&hook?)?;
        ensure!(scene.servers[0].is_ready(), "it still answers who comes");
        // Nobody has told the clients, who still try it.
        load.more(50).await?;
        load.end().await.with_context(|| format!("{protocol}: GET"))?;
        let load = Load::start(&scene, &Method::POST);
        load.more(50).await?;
        let refused = sum(
            &scene.servers[0].metrics_page()?,
            "istio_requests_total",
            &[("response_code", "503")],
        );
        ensure!(refused > 20.0, "{refused} requests were tried on the one that goes");
        let seen = scene.backend("v2")?.take();
        ensure!(
            seen.iter()
                .filter(|seen| seen.method == Method::POST)
                .all(|seen| seen.body == "body")
        );
        // After the application, the sidecar.
        scene.servers[0].process.signal("TERM")?;
        ensure!(scene.servers[0].process.wait()?.success());
        load.more(50).await?;
        load.end().await.with_context(|| format!("{protocol}: POST"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_is_gone_is_said_to_peers_of_the_mesh_only() -> anyhow::Result<()> {
    let scene = Scene::meshed(&["v1"], "").await?;
    scene.backend("v1")?.stop().await;
    // Tried in vain, and nothing of it is left for the application that called.
    let answer = scene.caller().get(URL).await?;
    ensure!(
        answer.status == 503 && answer.header("x-mesh-not-sent").is_empty(),
        "{answer:?}"
    );
    let address = (scene.servers[0].address, WORKLOAD_PORT).into();
    let mut plain = Connection::http1(connect(address).await?).await?;
    let answer = plain
        .send(Request::get("/").header("host", "reviews").body(Bytes::new())?)
        .await?;
    ensure!(
        answer.status == 503 && answer.header("x-mesh-not-sent").is_empty(),
        "{answer:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_application_says_of_itself_is_not_believed() -> anyhow::Result<()> {
    let scene = Scene::meshed(&["v1"], "").await?;
    let answer = scene
        .caller()
        .with(URL, &[("x-answer-with", "x-mesh-not-sent: connect-failure")])
        .await?;
    ensure!(
        answer.status == 200 && answer.header("x-mesh-not-sent").is_empty(),
        "{answer:?}"
    );
    ensure!(scene.backend("v1")?.take().len() == 1, "it was tried again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_before_the_end_is_of_inbound_connections_only() -> anyhow::Result<()> {
    let scene = Scene::meshed(&["v1"], "").await?;
    let server = &scene.servers[0];
    let inbound = (server.address, WORKLOAD_PORT).into();
    let here = || Request::get("/").header("host", "reviews").body(Bytes::new());
    let h2 = || Request::get("http://reviews/").body(Bytes::new());
    let out = || Request::get(URL).header("host", "reviews").body(Bytes::new());
    let mut kept = Connection::http1(connect(inbound).await?).await?;
    let mut kept_h2 = Connection::http2(connect(inbound).await?).await?;
    let mut own = Connection::http1(connect(server.outbound()).await?).await?;
    for (connection, request) in [(&mut kept, here()?), (&mut kept_h2, h2()?), (&mut own, out()?)] {
        let answer = connection.send(request).await?;
        ensure!(
            answer.status == 200 && answer.header("connection").is_empty(),
            "{answer:?}"
        );
    }
    // A request is under way when the drain begins.
    let backend = scene.backend("v1")?;
    backend.then([e2e::traffic::backend::Step::Hold]);
    let held = tokio::spawn(async move {
        kept.send(Request::get("/").header("host", "reviews").body(Bytes::new())?)
            .await
    });
    eventually("the request is there", || (backend.now() == 1).then_some(()))?;
    page(&beside(server, &["drain", "--at-least", "0s", "--quiet", "0s"]).await?)?;
    backend.release(1);
    let answer = held.await??;
    ensure!(
        answer.status == 200 && answer.header("connection") == "close",
        "{answer:?}"
    );
    // HTTP/2 has a GOAWAY of its own for that.
    eventually("the HTTP/2 connection ends", || match &kept_h2 {
        Connection::Http2(sender) => sender.is_closed().then_some(()),
        Connection::Http1(_) => None,
    })?;
    // Who comes anew is served, once.
    let mut late = Connection::http1(connect(inbound).await?).await?;
    let answer = late.send(here()?).await?;
    ensure!(
        answer.status == 200 && answer.header("connection") == "close",
        "{answer:?}"
    );
    let mut late = Connection::http2(connect(inbound).await?).await?;
    ensure!(late.send(h2()?).await?.status == 200);
    // The application's own connections know nothing of it.
    for _ in 0..3 {
        let answer = own.send(out()?).await?;
        ensure!(
            answer.status == 200 && answer.header("connection").is_empty(),
            "{answer:?}"
        );
    }
    ensure!(server.is_ready());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_waits_for_clients_and_for_nobody_else() -> anyhow::Result<()> {
    let scene = Scene::meshed(&["v1", "v2"], "").await?;
    // A Job has no clients, and shall be over.
    let begun = Instant::now();
    page(&beside(&scene.servers[1], &["drain", "--at-least", "30s", "--at-most", "30s"]).await?)?;
    ensure!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());

    let inbound = (scene.servers[0].address, WORKLOAD_PORT).into();
    let mut client = Connection::http1(connect(inbound).await?).await?;
    ensure!(
        client
            .send(Request::get("/").header("host", "reviews").body(Bytes::new())?)
            .await?
            .status
            == 200
    );
    let begun = Instant::now();
    page(&beside(&scene.servers[0], &["drain", "--at-least", "1500ms", "--quiet", "10ms"]).await?)?;
    ensure!(begun.elapsed() >= Duration::from_millis(1500), "{:?}", begun.elapsed());
    let nobody = beside(&scene.client, &["drain", "--admin", "127.0.0.1:1"]).await?;
    ensure!(
        !nobody.status.success() && String::from_utf8_lossy(&nobody.stderr).contains("127.0.0.1:1"),
        "{nobody:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_people_ask_in_the_container() -> anyhow::Result<()> {
    let scene = Scene::meshed(&["v1"], "").await?;
    let server = &scene.servers[0];
    page(&beside(server, &["wait", "--timeout", "5s"]).await?)?;
    let in_vain = beside(server, &["wait", "--timeout", "100ms", "--readiness", "127.0.0.1:1"]).await?;
    ensure!(!in_vain.status.success() && String::from_utf8_lossy(&in_vain.stderr).contains("not ready after 100ms"));

    let url = |port: u16, path: &str| format!("{}:{port}{path}", server.address);
    let load = Load::start(&scene, &Method::GET);
    let trace = page(&beside(server, &["curl", &url(15000, "/debug/pprof/trace?seconds=1")]).await?)?;
    load.end().await?;
    let trace: serde_json::Value = serde_json::from_str(&trace)?;
    let events = trace["traceEvents"].as_array().context("events")?;
    let request = events
        .iter()
        .find(|event| event["name"] == "GET /" && event["ph"] == "b")
        .context("a request")?;
    ensure!(
        request["cat"] == "inbound" && request["args"]["status"] == 200,
        "{request}"
    );
    ensure!(events.iter().any(|event| event["name"] == "upstream"), "{trace}");

    // As the image has it: the same program by another name.
    let curl = scene.mesh.dir().join("curl");
    std::os::unix::fs::symlink(binaries::mesh_proxy(), &curl)?;
    let curl = |arguments: &[&str]| -> anyhow::Result<Output> { Ok(Command::new(&curl).args(arguments).output()?) };
    let stats = page(&curl(&[&url(15090, "/stats")])?)?;
    ensure!(
        stats
            .lines()
            .any(|line| line.starts_with("istio_requests_total{") && line.contains("}: ")),
        "{stats}"
    );
    ensure!(page(&curl(&["-s", &url(15090, "/stats/prometheus")])?)?.contains("# TYPE istio_requests_total counter"));
    let dump = page(&curl(&["-s", &url(15000, "/config_dump")])?)?;
    ensure!(
        serde_json::from_str::<serde_json::Value>(&dump)?["inbound"].is_object(),
        "{dump}"
    );
    let file = scene.mesh.dir().join("trace.out");
    page(&curl(&[
        "-sSi",
        "-o",
        &file.display().to_string(),
        &format!("http://{}", url(15021, "/healthz/ready")),
    ])?)?;
    let written = std::fs::read_to_string(&file)?;
    ensure!(
        written.starts_with("HTTP/1.1 200 OK\r\n") && written.ends_with("\r\n\r\nready\n"),
        "{written}"
    );
    for (arguments, code, says) in [
        (vec!["-f".to_owned(), url(15000, "/nothing")], 22, "404"),
        (vec!["127.0.0.1:1".to_owned()], 7, "Failed to connect"),
        (vec!["-s".to_owned(), "127.0.0.1:1".to_owned()], 7, ""),
        (vec!["http://".to_owned()], 3, "malformed"),
        (vec!["-d".to_owned(), "x".to_owned(), url(15000, "/")], 2, "-d"),
        (vec!["http://198.18.0.1/".to_owned()], 6, "localhost"),
    ] {
        let output = curl(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(code) && error.contains(says),
            "{arguments:?}: {output:?}"
        );
        ensure!(!says.is_empty() || error.is_empty(), "{error}");
    }
    ensure!(Path::new(&file).exists());
    Ok(())
}
