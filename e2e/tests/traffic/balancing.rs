//! Load balancing.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};
use e2e::plain::eventually;
use e2e::traffic::backend::Step;
use e2e::traffic::{Scene, traffic_policy};

const URL: &str = "http://reviews/";
const VERSIONS: [&str; 3] = ["v1", "v2", "v3"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn round_robin_takes_turns() -> anyhow::Result<()> {
    let scene = Scene::bare(&VERSIONS, &traffic_policy("{loadBalancer: {simple: ROUND_ROBIN}}")).await?;
    let mut order = Vec::new();
    for _ in 0..30 {
        order.push(scene.caller().get(URL).await?.backend().to_owned());
    }
    let first: BTreeSet<_> = order[..3].iter().collect();
    ensure!(first.len() == 3, "{order:?}");
    ensure!(order.chunks(3).all(|turn| turn == &order[..3]), "{order:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hashed_header_sticks_and_survives_the_loss_of_others() -> anyhow::Result<()> {
    let scene = Scene::bare(
        &VERSIONS,
        &traffic_policy("{loadBalancer: {consistentHash: {httpHeaderName: x-user}}}"),
    )
    .await?;
    let caller = scene.caller();
    let users: Vec<String> = (0..150).map(|user| format!("user-{user}")).collect();
    let mut homes = BTreeMap::new();
    for _ in 0..2 {
        for user in &users {
            let backend = caller.with(URL, &[("x-user", user)]).await?.backend().to_owned();
            let home = homes.entry(user.clone()).or_insert_with(|| backend.clone());
            ensure!(*home == backend, "{user} moved from {home} to {backend}");
        }
    }
    let used: BTreeSet<_> = homes.values().collect();
    ensure!(used.len() == 3, "{homes:?}");

    // v3 is gone: its users move, and few others.
    let objects = scene.objects()?;
    let (before, rest) = objects
        .split_once(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: \
        reviews-v3",
        )
        .context("no entry of v3")?;
    let after = rest.find("---\n").map_or("", |at| &rest[at..]);
    scene.mesh.write("objects.yaml", &format!("{before}{after}"))?;
    let lost = homes
        .iter()
        .find(|(_, home)| *home == "v3")
        .context("v3 has no users")?
        .0;
    let started = std::time::Instant::now();
    while caller.with(URL, &[("x-user", lost)]).await?.backend() == "v3" {
        ensure!(started.elapsed() < e2e::plain::PATIENCE, "v3 stays");
    }
    let mut moved = 0;
    for (user, home) in homes.iter().filter(|(_, home)| *home != "v3") {
        moved += usize::from(caller.with(URL, &[("x-user", user)]).await?.backend() != home);
    }
    // As in Envoy, the others get more places on the ring, a sixth of it; without a ring it would be half.
    ensure!(moved < 38, "{moved} users of {homes:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hashed_cookie_is_made_and_sticks() -> anyhow::Result<()> {
    let scene = Scene::bare(
        &VERSIONS,
        &traffic_policy("{loadBalancer: {consistentHash: {httpCookie: {name: user, path: /shop, ttl: 60s}}}}"),
    )
    .await?;
    let caller = scene.caller();
    let mut used = BTreeSet::new();
    for _ in 0..20 {
        let answer = caller.get(URL).await?;
        let cookie = answer.header("set-cookie").to_owned();
        ensure!(cookie.starts_with("user="), "{answer:?}");
        ensure!(
            cookie.contains("Max-Age=60") && cookie.contains("Path=/shop"),
            "{cookie}"
        );
        let pair = cookie.split(';').next().unwrap_or_default();
        used.insert(answer.backend().to_owned());
        for _ in 0..3 {
            let again = caller.with(URL, &[("cookie", &format!("other=1; {pair}"))]).await?;
            ensure!(again.backend() == answer.backend(), "{cookie}: {again:?}");
            ensure!(again.header("set-cookie").is_empty(), "{again:?}");
        }
    }
    ensure!(used.len() == 3, "{used:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn least_request_spreads_what_is_under_way() -> anyhow::Result<()> {
    let scene = Scene::bare(&["v1", "v2"], "").await?;
    let now = || scene.backends.iter().map(|backend| backend.now()).collect::<Vec<_>>();
    for backend in &scene.backends {
        backend.always(Step::Hold);
    }
    let mut calls = tokio::task::JoinSet::new();
    let mut send = async |most: usize| {
        let caller = scene.caller();
        calls.spawn(async move { caller.get(URL).await });
        eventually("it arrives", || (now().iter().sum::<usize>() == most).then_some(()))
    };
    for sent in 1..=20 {
        send(sent).await?;
    }
    ensure!(now() == [10, 10], "{:?}", now());
    // One gets rid of its requests, and has all new ones until it has as many as the other.
    scene.backends[0].release(10);
    eventually("they are answered", || (now() == [0, 10]).then_some(()))?;
    for sent in 11..=20 {
        send(sent).await?;
    }
    ensure!(now() == [10, 10], "{:?}", now());
    for backend in &scene.backends {
        backend.release(10);
    }
    while let Some(answer) = calls.join_next().await {
        ensure!(answer??.status == 200);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_reaches_everyone() -> anyhow::Result<()> {
    let scene = Scene::bare(&VERSIONS, &traffic_policy("{loadBalancer: {simple: RANDOM}}")).await?;
    let mut counts = BTreeMap::<String, usize>::new();
    for _ in 0..300 {
        *counts
            .entry(scene.caller().get(URL).await?.backend().to_owned())
            .or_default() += 1;
    }
    // Six standard deviations.
    ensure!(
        counts.len() == 3 && counts.values().all(|count| (51..=149).contains(count)),
        "{counts:?}"
    );
    Ok(())
}
