//! Timeouts, retries, faults and mirrors.

use std::time::{Duration, Instant};

use anyhow::ensure;
use bytes::Bytes;
use e2e::bodies::{self, full};
use e2e::plain::eventually;
use e2e::traffic::backend::{Seen, Step};
use e2e::traffic::{Plan, Scene, logged, networking, routes, subsets, traffic_policy};
use http::{Method, Request};

const URL: &str = "http://reviews/";
const TO_REVIEWS: &str = "route: [{destination: {host: reviews}}]";

fn attempts(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|seen| seen.header("x-envoy-attempt-count")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_answers_504_and_lets_the_application_go() -> anyhow::Result<()> {
    let scene = Scene::meshed(&["v1"], &routes(&format!("[{{timeout: 300ms, {TO_REVIEWS}}}]"))).await?;
    let backend = &scene.backends[0];
    backend.then([Step::Hold]);
    let started = Instant::now();
    let answer = scene.caller().get(URL).await?;
    ensure!(
        answer.status == 504 && answer.text() == "upstream request timeout",
        "{answer:?}"
    );
    ensure!(
        started.elapsed() >= Duration::from_millis(300),
        "{:?}",
        started.elapsed()
    );
    let line = logged(&scene.client, "UT", |line| line["response_flags"] == "UT")?;
    ensure!(line["response_code_details"] == "response_timeout", "{line}");
    eventually("the request is called off on both sides", || {
        (backend.now() == 0).then_some(())
    })?;
    // The same service is as good as before.
    ensure!(scene.caller().get(URL).await?.status == 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_try_has_a_time_of_its_own() -> anyhow::Result<()> {
    let retries = "retries: {attempts: 2, perTryTimeout: 300ms, retryOn: 5xx}";
    let scene = Scene::bare(&["v1"], &routes(&format!("[{{{retries}, {TO_REVIEWS}}}]"))).await?;
    scene.backends[0].then([Step::Hold]);
    let answer = scene.caller().get(URL).await?;
    ensure!(answer.status == 200, "{answer:?}");
    let seen = scene.backends[0].take();
    ensure!(attempts(&seen) == ["1", "2"], "{seen:?}");

    scene.backends[0].then([Step::Hold; 3]);
    let answer = scene.caller().get(URL).await?;
    ensure!(answer.status == 504, "{answer:?}");
    ensure!(attempts(&scene.backends[0].take()) == ["1", "2", "3"]);
    let line = logged(&scene.client, "UT", |line| line["response_code"] == 504)?;
    ensure!(line["response_flags"] == "UT,URX", "{line}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_error_is_tried_again_as_often_as_asked() -> anyhow::Result<()> {
    let retries = "retries: {attempts: 3, retryOn: 5xx}";
    let scene = Scene::meshed(&["v1"], &routes(&format!("[{{{retries}, {TO_REVIEWS}}}]"))).await?;
    let backend = &scene.backends[0];
    backend.then([Step::Status(503), Step::Reset, Step::Status(500)]);
    let answer = scene.caller().get(URL).await?;
    ensure!(answer.status == 200, "{answer:?}");
    ensure!(attempts(&backend.take()).len() == 4);

    backend.always(Step::Status(503));
    let answer = scene.caller().get(URL).await?;
    ensure!(answer.status == 503 && answer.backend() == "v1", "{answer:?}");
    ensure!(backend.take().len() == 4);
    logged(&scene.client, "URX", |line| line["response_flags"] == "URX")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_is_an_answer_where_no_retry_is_asked_for() -> anyhow::Result<()> {
    let scene = Scene::bare(&["v1"], &routes(&format!("[{{{TO_REVIEWS}}}]"))).await?;
    scene.backends[0].then([Step::Status(503)]);
    ensure!(scene.caller().get(URL).await?.status == 503);
    ensure!(scene.backends[0].seen().len() == 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_has_the_whole_body() -> anyhow::Result<()> {
    let retries = "retries: {attempts: 3, retryOn: \"5xx\"}";
    let scene = Scene::meshed(&["v1"], &routes(&format!("[{{{retries}, {TO_REVIEWS}}}]"))).await?;
    let backend = &scene.backends[0];
    let body = Bytes::from(vec![b'x'; 40_000]);
    backend.then([Step::Status(502), Step::Status(502)]);
    let answer = scene.caller().call(Method::POST, URL, &[], body.clone()).await?;
    ensure!(answer.status == 200, "{answer:?}");
    let seen = backend.take();
    ensure!(seen.len() == 3, "{}", seen.len());
    ensure!(seen.iter().all(|seen| seen.body == body && seen.method == Method::POST));

    // What is too big to be kept is sent once.
    let body = Bytes::from(vec![b'y'; 3_000_000]);
    backend.then([Step::Status(502)]);
    let answer = scene.caller().call(Method::POST, URL, &[], body.clone()).await?;
    ensure!(answer.status == 502, "{answer:?}");
    let seen = backend.take();
    ensure!(seen.len() == 1 && seen[0].body == body, "{}", seen.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_endpoint_costs_a_retry_and_no_error() -> anyhow::Result<()> {
    let scene = Scene::bare(&["v1", "v2"], &traffic_policy("{loadBalancer: {simple: ROUND_ROBIN}}")).await?;
    scene.backend("v1")?.stop().await;
    for _ in 0..20 {
        let answer = scene.caller().call(Method::POST, URL, &[], "body").await?;
        ensure!(answer.status == 200 && answer.backend() == "v2", "{answer:?}");
    }
    let seen = scene.backend("v2")?.take();
    let retried = attempts(&seen).into_iter().filter(|attempt| *attempt == "2").count();
    ensure!(retried >= 10, "{retried} of {}", seen.len());
    ensure!(seen.iter().all(|seen| seen.body == "body"));

    // With nobody left it is an error that says why.
    scene.backend("v2")?.stop().await;
    let answer = scene.caller().get(URL).await?;
    ensure!(answer.status == 503, "{answer:?}");
    let line = logged(&scene.client, "UF", |line| line["response_code"] == 503)?;
    ensure!(line["response_flags"] == "UF,URX", "{line}");
    Ok(())
}

/// One connection to the application at a time, and nothing that hides what happens to it.
async fn one_worker_without_retries() -> anyhow::Result<Scene> {
    Scene::start(Plan {
        versions: &["v1"],
        sidecars: true,
        policy: &routes(&format!("[{{retries: {{attempts: 0}}, {TO_REVIEWS}}}]")),
        client_args: &["--concurrency", "1"],
        server_args: &["--concurrency", "1"],
        ..Plan::default()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_lost_to_a_closing_connection_is_sent_again() -> anyhow::Result<()> {
    let scene = one_worker_without_retries().await?;
    let backend = &scene.backends[0];
    for round in 0..5 {
        // The application ends its connection when the next request is already on it.
        backend.then([Step::Status(200), Step::Reset]);
        ensure!(scene.caller().get(URL).await?.status == 200);
        let answer = scene.caller().get(URL).await?;
        ensure!(answer.status == 200, "{round}: {answer:?}");
        let seen = backend.take();
        ensure!(seen.len() == 3, "{round}: {seen:?}");
        ensure!(
            seen[0].connection == seen[1].connection,
            "{round}: not the same connection"
        );
        ensure!(seen[1].connection != seen[2].connection, "{round}: the same connection");
    }
    // Nor does a body get lost, whether its length is known or not.
    let body = bodies::pattern(40_000);
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        for sent in [full(body.clone()), bodies::pieces(&body, 900)] {
            backend.then([Step::Status(200), Step::Reset]);
            ensure!(scene.caller().get(URL).await?.status == 200);
            let mut request = Request::builder().method(method.clone()).uri(URL);
            if http_body::Body::size_hint(&sent).exact().is_none() {
                // Without it, the client sends no body with GET.
                request = request.header("transfer-encoding", "chunked");
            }
            let request = request.header("host", "reviews").body(sent)?;
            let answer = scene.caller().connection().await?.exchange(request).await?;
            ensure!(answer.status == 200, "{method}: {answer:?}");
            let seen = backend.take();
            ensure!(seen.len() == 3, "{method}: {}", seen.len());
            ensure!(seen[1..].iter().all(|seen| seen.body == body), "{method}: not the body");
            ensure!(
                seen[1].connection != seen[2].connection,
                "{method}: the same connection"
            );
        }
    }
    // More than is kept cannot be sent again.
    backend.then([Step::Status(200), Step::Reset]);
    ensure!(scene.caller().get(URL).await?.status == 200);
    let big = bodies::pattern(3_000_000);
    let answer = scene.caller().call(Method::PUT, URL, &[], big).await?;
    ensure!(answer.status == 503, "{answer:?}");
    ensure!(backend.take().len() == 2);
    // A POST may have been acted upon: it is not repeated behind the client's back.
    backend.then([Step::Status(200), Step::Reset]);
    ensure!(scene.caller().get(URL).await?.status == 200);
    let answer = scene.caller().call(Method::POST, URL, &[], "pay").await?;
    ensure!(answer.status == 503, "{answer:?}");
    ensure!(backend.take().len() == 2);
    // Nor is a request that had a connection of its own: the application broke it, not the wait.
    backend.then([Step::Reset]);
    ensure!(scene.caller().get(URL).await?.status == 503);
    ensure!(backend.take().len() == 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_that_was_closed_is_not_used() -> anyhow::Result<()> {
    let scene = one_worker_without_retries().await?;
    let backend = &scene.backends[0];
    for _ in 0..5 {
        backend.then([Step::Last]);
        ensure!(scene.caller().call(Method::POST, URL, &[], "pay").await?.status == 200);
        eventually("the application has closed its connection", || {
            (backend.open() == 0).then_some(())
        })?;
        let answer = scene.caller().call(Method::POST, URL, &[], "pay").await?;
        ensure!(answer.status == 200, "{answer:?}");
    }
    ensure!(backend.take().len() == 10);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_delay_and_abort_their_share() -> anyhow::Result<()> {
    let scene = Scene::bare(
        &["v1"],
        &routes(&format!(
            "[{{match: [{{uri: {{prefix: /slow}}}}], fault: {{delay: {{percentage: {{value: 100}}, fixedDelay: 400ms}}}}, \
             timeout: 200ms, {TO_REVIEWS}}}, {{match: [{{uri: {{prefix: /half}}}}], fault: {{abort: {{percentage: {{value: \
             50}}, httpStatus: 418}}}}, {TO_REVIEWS}}}, {{fault: {{delay: {{fixedDelay: 30s}}, abort: {{httpStatus: \
             500}}}}, {TO_REVIEWS}}}]"
        )),
    )
    .await?;
    let caller = scene.caller();
    // The delay comes before the time that the application has.
    let started = Instant::now();
    let answer = caller.get("http://reviews/slow").await?;
    ensure!(answer.status == 200, "{answer:?}");
    ensure!(
        started.elapsed() >= Duration::from_millis(400),
        "{:?}",
        started.elapsed()
    );
    logged(&scene.client, "DI", |line| line["response_flags"] == "DI")?;

    let mut aborted = 0;
    let mut connection = caller.connection().await?;
    for _ in 0..600 {
        let request = Request::get("http://reviews/half")
            .header("host", "reviews")
            .body(Bytes::new())?;
        match connection.send(request).await?.status {
            418 => aborted += 1,
            200 => {}
            other => anyhow::bail!("{other}"),
        }
    }
    // Six standard deviations.
    ensure!((227..=373).contains(&aborted), "{aborted} of 600");
    logged(&scene.client, "FI", |line| line["response_flags"] == "FI")?;

    // Without a percentage there is no fault.
    ensure!(caller.get("http://reviews/other").await?.status == 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_gets_a_copy_and_has_no_say() -> anyhow::Result<()> {
    let route = |mirror: &str| {
        format!(
            "route: [{{destination: {{host: reviews, subset: v1}}}}], mirror: {{host: reviews, subset: v2}}{mirror}"
        )
    };
    let all = routes(&format!(
        "[{{match: [{{uri: {{prefix: /none}}}}], {}}}, {{{}}}]",
        route(", mirrorPercentage: {value: 0}"),
        route("")
    ));
    let scene = Scene::bare(&["v1", "v2"], &(subsets() + &all)).await?;
    let mirror = scene.backend("v2")?;
    for step in [Step::Status(503), Step::Hold, Step::Reset] {
        mirror.then([step]);
        let body = Bytes::from(vec![b'm'; 30_000]);
        let answer = scene
            .caller()
            .call(Method::POST, "http://reviews/a?b", &[("x-mine", "1")], body.clone())
            .await?;
        ensure!(answer.status == 200 && answer.backend() == "v1", "{step:?}: {answer:?}");
        eventually("the copy arrives", || (mirror.seen().len() == 1).then_some(()))?;
        for seen in [mirror.take(), scene.backend("v1")?.take()] {
            ensure!(
                seen.len() == 1 && seen[0].uri == "/a?b" && seen[0].body == body,
                "{step:?}: {seen:?}"
            );
            ensure!(seen[0].header("x-mine") == "1", "{seen:?}");
        }
    }
    // Away altogether.
    mirror.stop().await;
    ensure!(scene.caller().get(URL).await?.backend() == "v1");
    ensure!(scene.caller().get("http://reviews/none").await?.backend() == "v1");
    ensure!(mirror.seen().is_empty());
    Ok(())
}

/// Row T11: retries and timeouts without a VirtualService.
fn seed_rules() -> String {
    networking(
        "DestinationRule",
        "reviews-retry",
        "{host: reviews, trafficPolicy: {retryPolicy: {attempts: 3, perTryTimeout: 2s, retryOn: \
         \"5xx,connect-failure,refused-stream\"}}}",
    ) + &networking(
        "DestinationRule",
        "reviews-timeout",
        "{host: reviews, trafficPolicy: {timeout: {http: 500ms, connectTimeout: 3s}}}",
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn destination_rules_retry_and_time_out() -> anyhow::Result<()> {
    let scene = Scene::bare(&["v1"], &seed_rules()).await?;
    let backend = &scene.backends[0];
    backend.then([Step::Status(503); 3]);
    ensure!(scene.caller().get(URL).await?.status == 200);
    ensure!(attempts(&backend.take()) == ["1", "2", "3", "4"]);
    backend.then([Step::Hold]);
    ensure!(scene.caller().get(URL).await?.status == 504);
    ensure!(backend.take().len() == 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_virtual_services_own_setting_wins() -> anyhow::Result<()> {
    let own = routes(&format!(
        "[{{match: [{{uri: {{prefix: /own}}}}], timeout: 10s, retries: {{attempts: 1, retryOn: 5xx}}, {TO_REVIEWS}}}, \
         {{{TO_REVIEWS}}}]"
    ));
    let scene = Scene::bare(&["v1"], &(seed_rules() + &own)).await?;
    let backend = &scene.backends[0];
    backend.then([Step::Status(503), Step::Status(503)]);
    ensure!(scene.caller().get("http://reviews/own").await?.status == 503);
    ensure!(backend.take().len() == 2);
    backend.then([Step::After(Duration::from_millis(700))]);
    ensure!(scene.caller().get("http://reviews/own").await?.status == 200);
    // A route that sets nothing has the rules' settings.
    backend.then([Step::Status(503), Step::Hold]);
    backend.take();
    ensure!(scene.caller().get(URL).await?.status == 504);
    ensure!(backend.take().len() == 2);
    Ok(())
}
