//! What is put on, and taken from, messages that pass.

use anyhow::ensure;
use bytes::Bytes;
use e2e::traffic::Scene;
use http::Request;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_calls_is_proven_and_not_believed() -> anyhow::Result<()> {
    let scene = Scene::meshed(&["v1"], "").await?;
    let forged =
        "By=spiffe://cluster.local/ns/default/sa/reviews;Hash=00;URI=spiffe://cluster.local/ns/default/sa/admin";
    let request = Request::get("http://reviews/")
        .header("host", "reviews")
        .header("x-forwarded-client-cert", forged)
        .header(
            "X-Forwarded-Client-Cert",
            "URI=spiffe://cluster.local/ns/default/sa/other",
        )
        .body(Bytes::new())?;
    scene.caller().send(request).await?;
    let seen = scene.backends[0].take();
    let values: Vec<_> = seen[0].headers.get_all("x-forwarded-client-cert").iter().collect();
    ensure!(values.len() == 1, "{values:?}");
    let value = seen[0].header("x-forwarded-client-cert");
    let by = "By=spiffe://cluster.local/ns/default/sa/reviews;Hash=";
    ensure!(value.starts_with(by), "{value}");
    ensure!(
        value.ends_with(";Subject=\"\";URI=spiffe://cluster.local/ns/default/sa/client"),
        "{value}"
    );

    // In plaintext nothing is proven, and what is claimed goes all the same.
    let plain = e2e::traffic::caller::Caller::new((scene.servers[0].address, 8080).into());
    let request = Request::get("/")
        .header("host", "reviews")
        .header("x-forwarded-client-cert", forged)
        .body(Bytes::new())?;
    let answer = plain.send(request).await?;
    ensure!(answer.status == 200, "{answer:?}");
    let seen = scene.backends[0].take();
    ensure!(!seen[0].headers.contains_key("x-forwarded-client-cert"), "{seen:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_have_an_identifier() -> anyhow::Result<()> {
    let scene = Scene::meshed(&["v1"], "").await?;
    let caller = scene.caller();
    caller.get("http://reviews/").await?;
    caller.get("http://reviews/").await?;
    caller.with("http://reviews/", &[("x-request-id", "mine")]).await?;
    let seen = scene.backends[0].take();
    let ids: Vec<_> = seen.iter().map(|seen| seen.header("x-request-id")).collect();
    ensure!(ids[0].len() == 36 && ids[1].len() == 36 && ids[0] != ids[1], "{ids:?}");
    ensure!(ids[2] == "mine", "{ids:?}");
    // One identifier on the whole way.
    for sidecar in [&scene.client, &scene.servers[0]] {
        e2e::traffic::logged(sidecar, "the request by its identifier", |line| {
            line["request_id"] == ids[0] && line["response_code"] == 200
        })?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_concerns_one_connection_stays_on_it() -> anyhow::Result<()> {
    let scene = Scene::meshed(&["v1"], "").await?;
    let request = Request::post("http://reviews/")
        .header("host", "reviews")
        .header("connection", "keep-alive, x-private, x-forwarded-client-cert")
        .header("x-private", "1")
        .header("keep-alive", "timeout=5")
        .header("proxy-connection", "keep-alive")
        .header("proxy-authorization", "Basic c2VjcmV0")
        .header("te", "trailers, deflate")
        .header("x-kept", "1")
        .header("x-answer-with", "keep-alive: timeout=7")
        .header("x-answer-with", "x-kept: 2")
        .header("x-answer-with", "connection: x-theirs")
        .header("x-answer-with", "x-theirs: 3")
        .body(Bytes::from_static(b"body"))?;
    let answer = scene.caller().send(request).await?;
    let seen = scene.backends[0].take();
    for name in [
        "x-private",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "te",
        "connection",
    ] {
        ensure!(
            !seen[0].headers.contains_key(name),
            "{name} reached the application: {seen:?}"
        );
    }
    ensure!(seen[0].header("x-kept") == "1", "{seen:?}");
    ensure!(
        seen[0].header("x-forwarded-client-cert").ends_with("/sa/client"),
        "what the sidecars say cannot be taken away: {seen:?}"
    );
    for name in ["keep-alive", "x-theirs", "connection"] {
        ensure!(
            !answer.headers.contains_key(name),
            "{name} reached the client: {answer:?}"
        );
    }
    ensure!(answer.header("x-kept") == "2", "{answer:?}");
    Ok(())
}
