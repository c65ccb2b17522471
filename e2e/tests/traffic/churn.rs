//! What changes while traffic goes on: endpoints, policies, sidecars, and callers that lose their patience.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use e2e::plain::{PATIENCE, eventually};
use e2e::traffic::backend::Step;
use e2e::traffic::caller::{Answer, Connection};
use e2e::traffic::load::{Calls, Load};
use e2e::traffic::{Plan, Scene, access_log, routes, security, strict, subsets, traffic_policy};
use http::{Method, Version};
use tokio::task::JoinSet;

/// HTTP/1.1 and HTTP/2 from the application to the application; ports are the service's.
const PORTS: [(u16, &str, &str, u16); 2] = [(80, "http", "HTTP", 8080), (82, "http2", "HTTP2", 8082)];

async fn scene(versions: &[&str], policy: &str) -> anyhow::Result<Scene> {
    Scene::start(Plan {
        versions,
        sidecars: true,
        ports: &PORTS,
        policy: &(strict() + policy),
        ..Plan::default()
    })
    .await
}

/// Load in every version, with and without bodies, on requests that the pool may replay and on those that it must not.
struct Loads(Vec<(&'static str, Load)>);

impl Loads {
    fn start(scene: &Scene) -> Self {
        let loads = [
            ("GET over HTTP/1.1", "reviews:80", Version::HTTP_11, Method::GET, ""),
            (
                "POST over HTTP/1.1",
                "reviews:80",
                Version::HTTP_11,
                Method::POST,
                "pay",
            ),
            ("GET over HTTP/2", "reviews:82", Version::HTTP_2, Method::GET, ""),
            ("POST over HTTP/2", "reviews:82", Version::HTTP_2, Method::POST, "pay"),
        ];
        let start = |(what, target, version, method, body)| {
            let calls = Calls {
                target,
                version,
                method,
                body,
            };
            (what, Load::start(scene.caller(), 3, calls))
        };
        Self(loads.map(start).into())
    }

    /// Every request was answered.
    async fn stop(self) -> anyhow::Result<()> {
        for (what, load) in self.0 {
            let tally = load.stop().await?;
            let some = &tally.bad[..tally.bad.len().min(5)];
            let good = tally.answered();
            ensure!(
                some.is_empty(),
                "{what}: {} bad, {good} good: {some:?}",
                tally.bad.len()
            );
            ensure!(good > 20, "{what}: {good}");
        }
        Ok(())
    }
}

/// Waits until what was written is in force.
async fn in_force(scene: &Scene, what: &str, holds: impl Fn(&Answer) -> bool) -> anyhow::Result<()> {
    let started = Instant::now();
    while !holds(&scene.caller().get("http://reviews/").await?) {
        ensure!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_change_under_load() -> anyhow::Result<()> {
    let scene = scene(&["v1", "v2"], &subsets()).await?;
    let loads = Loads::start(&scene);
    for round in 0..12 {
        let mark = format!("round-{round}");
        let to = |subset| format!("{{destination: {{host: reviews, subset: {subset}}}, weight: 50}}");
        let legs = match round % 3 {
            0 => to("v1"),
            1 => to("v2"),
            _ => format!("{}, {}", to("v1"), to("v2")),
        };
        let mut yaml = routes(&format!(
            "[{{headers: {{response: {{set: {{x-mark: {mark}}}}}}}, route: [{legs}]}}]"
        ));
        // What is made anew with every change of it: connections, limits, balancers.
        yaml += &match round % 4 {
            0 => traffic_policy("{loadBalancer: {simple: ROUND_ROBIN}}"),
            1 => traffic_policy("{connectionPool: {tcp: {maxConnections: 50}, http: {maxRequestsPerConnection: 7}}}"),
            2 => traffic_policy("{connectionPool: {http: {idleTimeout: 1s}}, outlierDetection: {interval: 1s}}"),
            _ => String::new(),
        };
        if round % 2 == 1 {
            yaml += &security(
                "AuthorizationPolicy",
                "only-the-client",
                "{rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/client]}}]}]}",
            );
        }
        scene.mesh.write("change.yaml", &yaml)?;
        in_force(&scene, &mark, |answer| answer.header("x-mark") == mark).await?;
        let only = ["v1", "v2"].get(round % 3);
        in_force(&scene, &mark, |answer| {
            only.is_none_or(|only| answer.backend() == *only)
        })
        .await?;
    }
    scene.mesh.delete("change.yaml")?;
    in_force(&scene, "nothing", |answer| answer.header("x-mark").is_empty()).await?;
    loads.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_come_and_go_under_load() -> anyhow::Result<()> {
    let scene = scene(
        &["v1", "v2", "v3"],
        &traffic_policy("{loadBalancer: {simple: ROUND_ROBIN}}"),
    )
    .await?;
    let all = scene.objects()?;
    let loads = Loads::start(&scene);
    for round in 0..6 {
        let version = ["v1", "v2", "v3"][round % 3];
        // It runs on, but is none of the service's any more.
        let other = all.replace(
            &format!("labels: {{app: reviews, version: {version}"),
            &format!("labels: {{app: other, version: {version}"),
        );
        ensure!(other != all, "{all}");
        scene.mesh.write("objects.yaml", &other)?;
        let backend = scene.backend(version)?;
        eventually(&format!("{version} is left alone"), || {
            backend.take();
            std::thread::sleep(Duration::from_millis(100));
            backend.seen().is_empty().then_some(())
        })?;
        scene.mesh.write("objects.yaml", &all)?;
        eventually(&format!("{version} is called again"), || {
            (!backend.seen().is_empty()).then_some(())
        })?;
    }
    loads.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sidecars_are_replaced_under_load() -> anyhow::Result<()> {
    let mut scene = scene(&["v1", "v2"], "").await?;
    let loads = Loads::start(&scene);
    for index in [0, 1, 0] {
        scene.replace_server(index)?;
        scene.backends[index].take();
        let backend = &scene.backends[index];
        eventually("it is called again", || (!backend.seen().is_empty()).then_some(()))?;
    }
    loads.stop().await
}

/// Requests that are under way on one HTTP/2 connection, which is asked to end.
async fn held(scene: &Scene, count: usize) -> anyhow::Result<(Connection, JoinSet<anyhow::Result<Answer>>)> {
    let backend = &scene.backends[0];
    let calls = Calls::get("reviews:82", Version::HTTP_2);
    let mut connection = Connection::http2(scene.caller().tunnel(calls.target).await?).await?;
    ensure!(connection.send(calls.request()?).await?.status == 200);
    backend.then(vec![Step::Hold; count]);
    let Connection::Http2(sender) = &connection else {
        anyhow::bail!("not HTTP/2");
    };
    let mut answers = JoinSet::new();
    for _ in 0..count {
        let mut caller = Connection::Http2(sender.clone());
        let request = calls.request()?;
        answers.spawn(async move { caller.send(request).await });
    }
    eventually("all are there", || (backend.now() == count).then_some(()))?;
    Ok((connection, answers))
}

async fn all_good(mut answers: JoinSet<anyhow::Result<Answer>>) -> anyhow::Result<()> {
    while let Some(answer) = answers.join_next().await {
        let answer = answer??;
        ensure!(answer.status == 200, "{answer:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_server_finishes_its_streams() -> anyhow::Result<()> {
    let mut scene = scene(&["v1"], "").await?;
    let (mut connection, answers) = held(&scene, 20).await?;
    scene.servers[0].process.signal("TERM")?;
    eventually("it is not ready any more", || {
        (!scene.servers[0].is_ready()).then_some(())
    })?;
    // The client's own connection to its sidecar has nothing to do with it.
    for _ in 0..10 {
        let answer = connection
            .send(Calls::get("reviews:82", Version::HTTP_2).request()?)
            .await?;
        ensure!(answer.status == 200, "{answer:?}");
    }
    scene.backends[0].release(20);
    all_good(answers).await?;
    ensure!(scene.servers[0].process.wait()?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_client_tells_its_application() -> anyhow::Result<()> {
    let mut scene = scene(&["v1"], "").await?;
    let (mut connection, answers) = held(&scene, 20).await?;
    scene.client.process.signal("TERM")?;
    // GOAWAY: no new requests, while the others go on.
    let started = Instant::now();
    while let Ok(answer) = connection
        .send(Calls::get("reviews:82", Version::HTTP_2).request()?)
        .await
    {
        ensure!(answer.status == 200, "{answer:?}");
        ensure!(started.elapsed() < PATIENCE, "the connection takes requests on and on");
    }
    ensure!(answers.len() == 20 && scene.backends[0].now() == 20);
    scene.backends[0].release(20);
    all_good(answers).await?;
    ensure!(scene.client.process.wait()?.success());
    Ok(())
}

/// Callers that give up at random take nothing from those that wait, however many requests they call off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_give_up_harm_nobody() -> anyhow::Result<()> {
    let scene = Scene::start(Plan {
        versions: &["v1"],
        sidecars: true,
        ports: &[(80, "http2", "HTTP2", 8080)],
        policy: &(strict() + &traffic_policy("{connectionPool: {tcp: {maxConnections: 8}}}")),
        ..Plan::default()
    })
    .await?;
    scene.backends[0].always(Step::After(Duration::from_millis(5)));
    let calls = Calls::get("reviews:80", Version::HTTP_2);
    let patient = Load::start(scene.caller(), 20, calls.clone());
    let end = Instant::now() + Duration::from_secs(8);
    let mut hasty = JoinSet::new();
    for _ in 0..200 {
        let stream = scene.caller().tunnel(calls.target).await?;
        let mut connection = Connection::http2(stream).await?;
        let calls = calls.clone();
        hasty.spawn(async move {
            let (mut given_up, mut bad) = (0, Vec::new());
            let mut seed = 7_u64;
            while Instant::now() < end {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let patience = Duration::from_micros(seed >> 48);
                match tokio::time::timeout(patience, connection.send(calls.request()?)).await {
                    Err(_) => given_up += 1,
                    Ok(Ok(answer)) if answer.status == 200 => {}
                    Ok(Ok(answer)) => bad.push(format!("{} {}", answer.status, answer.text())),
                    Ok(Err(error)) => {
                        bad.push(format!("{error:#}"));
                        break;
                    }
                }
            }
            anyhow::Ok((given_up, bad))
        });
    }
    let mut given_up = 0;
    let mut bad = Vec::new();
    while let Some(result) = hasty.join_next().await {
        let (count, wrong) = result.context("a caller")??;
        given_up += count;
        bad.extend(wrong);
    }
    let tally = patient.stop().await?;
    bad.extend(tally.bad.iter().cloned());
    let failed = |sidecar| {
        let lines = access_log(sidecar).into_iter();
        lines
            .filter(|line| line["response_code"].as_u64() > Some(200))
            .take(3)
            .collect::<Vec<_>>()
    };
    ensure!(
        bad.is_empty(),
        "{} of {given_up} and {}: {:?}; {:#?} {:#?}",
        bad.len(),
        tally.answered(),
        bad.first(),
        failed(&scene.client),
        failed(&scene.servers[0])
    );
    ensure!(given_up > 1000, "{given_up}");
    Ok(())
}
