//! Limits of the connection pool, and outlier detection.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use e2e::plain::{PATIENCE, eventually};
use e2e::traffic::backend::Step;
use e2e::traffic::caller::{Answer, Connection};
use e2e::traffic::metrics::sum;
use e2e::traffic::{Plan, Scene, logged, routes, traffic_policy};
use http::Request;
use tokio::task::JoinSet;

const URL: &str = "http://reviews/";

fn request() -> Request<Bytes> {
    let mut request = Request::new(Bytes::new());
    *request.uri_mut() = http::Uri::from_static(URL);
    request
        .headers_mut()
        .insert("host", http::HeaderValue::from_static("reviews"));
    request
}

/// The document's limits, as it writes them.
fn document() -> String {
    traffic_policy(
        "{connectionPool: {tcp: {maxConnections: 100}, http: {http1MaxPendingRequests: 50, http2MaxRequests: 100}}, \
         outlierDetection: {consecutive5xxErrors: 5, interval: 30s, baseEjectionTime: 30s, maxEjectionPercent: 50}}",
    )
}

/// 300 requests at once, each on a connection of its own, to an application that takes two seconds.
async fn a_crowd(client_args: &[&str], sidecars: bool) -> anyhow::Result<()> {
    let scene = Scene::start(Plan {
        versions: &["v1"],
        sidecars,
        policy: &document(),
        client_args,
        ..Plan::default()
    })
    .await?;
    let backend = &scene.backends[0];
    // The policy is known before the crowd comes.
    ensure!(scene.caller().get(URL).await?.status == 200);
    let mut callers = Vec::new();
    for _ in 0..300 {
        callers.push(scene.caller().connection().await?);
    }
    backend.always(Step::Hold);
    let started = Instant::now();
    let mut answers: JoinSet<anyhow::Result<Answer>> = JoinSet::new();
    for mut caller in callers {
        answers.spawn(async move { caller.send(request()).await });
    }
    // 100 are served, 50 wait, 150 are refused, and nobody has to wait for that.
    let mut refused = Vec::new();
    while refused.len() < 150 {
        let answer = answers.join_next().await.context("no answer is left")???;
        ensure!(answer.status == 503, "{answer:?}");
        refused.push(answer);
    }
    eventually("the application has its hundred", || {
        (backend.now() == 100).then_some(())
    })?;
    ensure!(backend.most() == 100, "{} at once", backend.most());
    for answer in &refused {
        ensure!(answer.header("x-envoy-overloaded") == "true", "{answer:?}");
    }
    let page = scene.client.metrics_page()?;
    let labels = [
        ("response_code", "503"),
        ("response_flags", "UO"),
        ("reporter", "source"),
    ];
    ensure!(sum(&page, "istio_requests_total", &labels) == 150.0, "{page}");
    logged(&scene.client, "UO", |line| line["response_flags"] == "UO")?;

    tokio::time::sleep_until((started + Duration::from_secs(2)).into()).await;
    ensure!(backend.most() == 100, "{} at once", backend.most());
    ensure!(answers.len() == 150, "somebody who waits was sent away");
    backend.release(300);
    while let Some(answer) = answers.join_next().await {
        let answer = answer??;
        ensure!(answer.status == 200, "{answer:?}");
    }
    ensure!(backend.most() == 100, "{} at once", backend.most());
    ensure!(backend.seen().len() == 151, "{}", backend.seen().len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_meets_the_documents_limits_with_one_worker() -> anyhow::Result<()> {
    a_crowd(&["--concurrency", "1"], true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_meets_the_documents_limits_with_two_workers() -> anyhow::Result<()> {
    a_crowd(&["--concurrency", "2"], true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_beyond_the_limit_are_refused_at_once() -> anyhow::Result<()> {
    let scene = Scene::start(Plan {
        versions: &["v1"],
        sidecars: true,
        ports: &[(80, "http2", "HTTP2", 8080)],
        policy: &traffic_policy("{connectionPool: {http: {http2MaxRequests: 20}}}"),
        ..Plan::default()
    })
    .await?;
    let backend = &scene.backends[0];
    ensure!(scene.caller().get(URL).await?.status == 200);
    backend.always(Step::Hold);
    let Connection::Http2(sender) = Connection::http2(scene.caller().tunnel("reviews:80").await?).await? else {
        anyhow::bail!("not HTTP/2");
    };
    let mut answers = JoinSet::new();
    for _ in 0..50 {
        let mut caller = Connection::Http2(sender.clone());
        answers.spawn(async move { caller.send(request()).await });
    }
    for _ in 0..30 {
        let answer = answers.join_next().await.context("no answer is left")???;
        ensure!(
            answer.status == 503 && answer.header("x-envoy-overloaded") == "true",
            "{answer:?}"
        );
    }
    eventually("the application has its twenty", || (backend.now() == 20).then_some(()))?;
    backend.release(20);
    while let Some(answer) = answers.join_next().await {
        ensure!(answer??.status == 200);
    }
    ensure!(backend.most() == 20, "{}", backend.most());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_connection_waits_no_longer_than_its_timeout() -> anyhow::Result<()> {
    let policy = traffic_policy("{connectionPool: {tcp: {maxConnections: 1}}}")
        + &routes("[{timeout: 400ms, route: [{destination: {host: reviews}}]}]");
    let scene = Scene::bare(&["v1"], &policy).await?;
    let backend = &scene.backends[0];
    backend.then([Step::Hold]);
    let caller = scene.caller();
    let (first, second) = tokio::join!(caller.get(URL), caller.get(URL));
    let (first, second) = (first?, second?);
    ensure!(first.status == 504 && second.status == 504, "{first:?} {second:?}");
    eventually("the place is free again", || (backend.now() == 0).then_some(()))?;
    ensure!(caller.get(URL).await?.status == 200);
    ensure!(backend.most() == 1);
    Ok(())
}

const OUTLIER: &str = "{loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {consecutive5xxErrors: 3, interval: 1s, \
                       baseEjectionTime: 2s, maxEjectionPercent: 50}}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_fails_is_left_alone_whatever_is_pushed() -> anyhow::Result<()> {
    let pushed = |mark: &str| {
        routes(&format!(
            "[{{headers: {{response: {{set: {{x-push: {mark}}}}}}}, route: [{{destination: {{host: reviews}}}}]}}]"
        ))
    };
    let scene = Scene::bare(&["v1", "v2"], &traffic_policy(OUTLIER)).await?;
    scene.mesh.write("push.yaml", &pushed("first"))?;
    let caller = scene.caller();
    let (bad, good) = (scene.backend("v1")?, scene.backend("v2")?);
    eventually_async("the first push", async || {
        Ok(caller.get(URL).await?.header("x-push") == "first")
    })
    .await?;
    bad.always(Step::Status(500));
    good.take();
    for ejection in 1..=2 {
        // The request that found it back had failed already.
        let fatal = if ejection == 1 { 3 } else { 2 };
        bad.take();
        while bad.seen().len() < fatal {
            caller.get(URL).await?;
        }
        let ejected = Instant::now();
        // Both an unrelated field of a route and one of the rule itself change.
        let mark = format!("push-{ejection}");
        scene.mesh.write("push.yaml", &pushed(&mark))?;
        let yaml = traffic_policy(&OUTLIER.replace("interval: 1s", "interval: 1100ms"));
        scene.mesh.write("policy.yaml", &yaml)?;
        let mut seen_push = false;
        while bad.seen().len() == fatal {
            let answer = caller.get(URL).await?;
            seen_push |= answer.header("x-push") == mark && answer.status == 200;
            ensure!(ejected.elapsed() < PATIENCE, "it is never tried again");
        }
        let away = ejected.elapsed();
        ensure!(seen_push, "the push did not come in {away:?}");
        // A base time, times the number of ejections in a row.
        let least = Duration::from_secs(2) * ejection - Duration::from_millis(100);
        ensure!(away >= least, "ejection {ejection} lasted {away:?}");
    }
    let page = scene.client.metrics_page()?;
    ensure!(sum(&page, "mesh_upstream_ejections_total", &[]) >= 2.0, "{page}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_endpoints_are_ejected_than_allowed() -> anyhow::Result<()> {
    let scene = Scene::bare(&["v1", "v2", "v3"], &traffic_policy(&OUTLIER.replace("2s", "60s"))).await?;
    for backend in &scene.backends {
        backend.always(Step::Status(503));
    }
    for _ in 0..60 {
        ensure!(scene.caller().get(URL).await?.status == 503);
    }
    // Half of three, rounded down.
    let mut counts: Vec<_> = scene.backends.iter().map(|backend| backend.seen().len()).collect();
    counts.sort_unstable();
    ensure!(counts[0] == 3 && counts[1] > 20 && counts[2] > 20, "{counts:?}");
    Ok(())
}

async fn eventually_async(what: &str, mut holds: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let started = Instant::now();
    while !holds().await? {
        ensure!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
    }
    Ok(())
}
