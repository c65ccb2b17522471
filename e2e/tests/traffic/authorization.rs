//! AuthorizationPolicy and PeerAuthentication as callers meet them.

use std::time::Instant;

use anyhow::ensure;
use e2e::app::App;
use e2e::plain::{PATIENCE, Sidecar, SidecarOptions, workload_entry};
use e2e::traffic::caller::{Answer, Caller, bounded};
use e2e::traffic::metrics::sum;
use e2e::traffic::{Plan, Scene, logged, object, security, strict};
use http::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const URL: &str = "http://reviews/";

/// A policy for `reviews`.
fn policy(name: &str, rest: &str) -> String {
    security(
        "AuthorizationPolicy",
        name,
        &format!("{{selector: {{matchLabels: {{app: reviews}}}}, {rest}}}"),
    )
}

fn is_denied(answer: &Answer) -> bool {
    answer.status == 403 && answer.text() == "RBAC: access denied"
}

/// Another client, with a service account of its own.
fn other(scene: &Scene) -> anyhow::Result<Sidecar> {
    let index = 5;
    let entry = workload_entry("order-service", scene.mesh.address(index), "order-service", "v1");
    scene.mesh.write("other.yaml", &entry)?;
    let options = SidecarOptions {
        index,
        ..SidecarOptions::default()
    };
    let mut sidecar = scene.mesh.sidecar("order-service", &options)?;
    sidecar.wait_ready()?;
    Ok(sidecar)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_named_principal_may_read() -> anyhow::Result<()> {
    // As the document writes it.
    let seed = policy(
        "reviews-authz",
        "rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/order-service]}}], to: [{operation: {methods: \
         [GET]}}]}]",
    );
    let scene = Scene::meshed(&["v1"], &seed).await?;
    let order = other(&scene)?;
    let order = Caller::new(order.outbound());
    ensure!(order.get(URL).await?.status == 200);
    ensure!(is_denied(&order.call(Method::POST, URL, &[], "body").await?));
    ensure!(is_denied(&scene.caller().get(URL).await?));
    // In plaintext nobody is anybody.
    let plain = Caller::new((scene.servers[0].address, 8080).into());
    ensure!(is_denied(&plain.get(URL).await?));
    ensure!(scene.backends[0].seen().len() == 1);

    let line = logged(&scene.servers[0], "why", |line| line["response_code"] == 403)?;
    ensure!(
        line["response_code_details"] == "rbac_access_denied_matched_policy[none]",
        "{line}"
    );
    let page = scene.servers[0].metrics_page()?;
    let labels = [
        ("reporter", "destination"),
        ("response_code", "403"),
        ("source_principal", "spiffe://cluster.local/ns/default/sa/client"),
    ];
    ensure!(sum(&page, "istio_requests_total", &labels) == 1.0, "{page}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_wins_and_names_itself() -> anyhow::Result<()> {
    let policies = policy("everything", "action: ALLOW, rules: [{}]")
        + &policy(
            "a-few",
            "action: DENY, rules: [{to: [{operation: {paths: [/admin*]}}]}, {to: [{operation: {methods: [DELETE]}}], when: \
             [{key: \"request.headers[x-role]\", notValues: [admin]}]}, {when: [{key: \"request.headers[x-bad]\", \
             values: [\"*\"]}]}]",
        );
    let scene = Scene::meshed(&["v1"], &policies).await?;
    let caller = scene.caller();
    type Row<'a> = (Method, &'a str, &'a [(&'a str, &'a str)], bool);
    let rows: [Row<'_>; 9] = [
        (Method::GET, "/", &[], true),
        (Method::GET, "/admin/users", &[], false),
        // What is matched is what the application would get.
        (Method::GET, "/a/../admin", &[], false),
        (Method::GET, "/%61dmin", &[], false),
        (Method::GET, "/x/admin", &[], true),
        (Method::DELETE, "/", &[("x-role", "guest")], false),
        (Method::DELETE, "/", &[("x-role", "admin")], true),
        (Method::GET, "/", &[("x-bad", "1")], false),
        (Method::GET, "/", &[("x-good", "1")], true),
    ];
    for (method, path, headers, allowed) in rows {
        let answer = caller
            .call(method.clone(), &format!("http://reviews{path}"), headers, "")
            .await?;
        ensure!(
            if allowed {
                answer.status == 200
            } else {
                is_denied(&answer)
            },
            "{method} {path} {headers:?}: {answer:?}"
        );
    }
    let details = "rbac_access_denied_matched_policy[ns[default]-policy[a-few]-rule[2]]";
    let line = logged(&scene.servers[0], details, |line| {
        line["response_code_details"] == details
    })?;
    ensure!(
        line["policy"].as_str().is_some_and(|policy| policy.contains("a-few")),
        "{line}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_are_the_peers_own() -> anyhow::Result<()> {
    let scene = Scene::meshed(&["v1"], "").await?;
    let order = other(&scene)?;
    let order = Caller::new(order.outbound());
    let block = format!("{}/32", scene.client.address);
    scene.mesh.write(
        "policy.yaml",
        &policy(
            "blocks",
            &format!("rules: [{{from: [{{source: {{ipBlocks: [\"{block}\"]}}}}]}}]"),
        ),
    )?;
    until("the other is shut out", async || Ok(is_denied(&order.get(URL).await?))).await?;
    ensure!(scene.caller().get(URL).await?.status == 200);
    ensure!(is_denied(
        &order
            .with(URL, &[("x-forwarded-for", &scene.client.address.to_string())])
            .await?
    ));

    scene.mesh.write(
        "policy.yaml",
        &policy(
            "blocks",
            &format!("rules: [{{from: [{{source: {{notIpBlocks: [\"{block}\"]}}}}]}}]"),
        ),
    )?;
    until("it is the other way round", async || {
        Ok(order.get(URL).await?.status == 200)
    })
    .await?;
    ensure!(is_denied(&scene.caller().get(URL).await?));
    scene.mesh.delete("policy.yaml")?;
    until("nobody is shut out", async || {
        Ok(scene.caller().get(URL).await?.status == 200)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_condition_that_nobody_knows_denies_what_it_selects() -> anyhow::Result<()> {
    let scene = Scene::meshed(&["v1"], "").await?;
    ensure!(scene.caller().get(URL).await?.status == 200);
    scene.mesh.write(
        "policy.yaml",
        &policy(
            "odd",
            "action: ALLOW, rules: [{to: [{operation: {paths: [/odd]}}], when: [{key: request.moon, values: [full]}]}, {to: \
             [{operation: {paths: [/even]}}]}]",
        ),
    )?;
    until("the policy is in force", async || {
        Ok(is_denied(&scene.caller().get(URL).await?))
    })
    .await?;
    ensure!(is_denied(&scene.caller().get("http://reviews/odd").await?));
    ensure!(scene.caller().get("http://reviews/even").await?.status == 200);
    // Also where the unknown condition would have denied: it is not just dropped, nor does it widen.
    scene.mesh.write(
        "policy.yaml",
        &policy(
            "odd",
            "action: DENY, rules: [{to: [{operation: {paths: [/odd]}}], when: [{key: request.moon, values: [full]}]}]",
        ),
    )?;
    until("the policy is in force", async || {
        Ok(scene.caller().get(URL).await?.status == 200)
    })
    .await?;
    ensure!(is_denied(&scene.caller().get("http://reviews/odd").await?));
    let control = scene
        .mesh
        .control
        .as_ref()
        .map(|control| control.output())
        .unwrap_or_default();
    ensure!(
        control.contains("request.moon"),
        "the control plane says what is wrong: {control}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_policy_ends_a_live_connection() -> anyhow::Result<()> {
    let application = App::tcp("")?;
    let scene = Scene::start(Plan {
        versions: &["v1"],
        sidecars: true,
        ports: &[(9000, "tcp", "TCP", 9000), (9001, "other", "TCP", 9001)],
        inbound: &[(9000, application.address), (9001, application.address)],
        ..Plan::default()
    })
    .await?;
    let mut stream = scene.caller().tunnel("reviews:9000").await?;
    let mut other = scene.caller().tunnel("reviews:9001").await?;
    for stream in [&mut stream, &mut other] {
        stream.write_all(b"ping").await?;
        bounded("the echo", stream.read_exact(&mut [0; 4])).await??;
    }
    let deny = "action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/client]}}], to: [{operation: \
                {ports: [\"9000\"]}}]}]";
    scene.mesh.write("policy.yaml", &policy("no-tcp", deny))?;
    // Nobody sends anything: the policy alone ends it.
    let end = bounded("the end", stream.read(&mut [0; 4])).await?;
    ensure!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    other.write_all(b"pong").await?;
    bounded("the echo", other.read_exact(&mut [0; 4])).await??;
    // A new one does not get anywhere either.
    let mut again = scene.caller().tunnel("reviews:9000").await?;
    let _ = again.write_all(b"ping").await;
    let end = bounded("the end", again.read(&mut [0; 4])).await?;
    ensure!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    let page = scene.servers[0].metrics_page()?;
    let refused = |reason| sum(&page, "mesh_inbound_connections_refused_total", &[("reason", reason)]);
    ensure!(refused("rbac_changed") == 1.0 && refused("rbac") == 1.0, "{page}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_refuses_plaintext_and_permissive_takes_it() -> anyhow::Result<()> {
    let scene = Scene::meshed(&["v1"], "").await?;
    let plain = Caller::new((scene.servers[0].address, 8080).into());
    ensure!(plain.get(URL).await?.status == 200);
    let mut kept = plain.connection().await?;
    let request = || {
        let mut request = http::Request::new(bytes::Bytes::new());
        request
            .headers_mut()
            .insert("host", http::HeaderValue::from_static("reviews"));
        request
    };
    ensure!(kept.send(request()).await?.status == 200);

    scene.mesh.write("strict.yaml", &strict())?;
    until("plaintext is refused", async || Ok(plain.get(URL).await.is_err())).await?;
    // A connection from before is held to it as well.
    if let Ok(answer) = kept.send(request()).await {
        ensure!(is_denied(&answer), "{answer:?}");
    }
    ensure!(scene.caller().get(URL).await?.status == 200);

    // The port wins over the mesh.
    let port = object(
        "security.istio.io",
        "PeerAuthentication",
        "reviews",
        "default",
        "{selector: {matchLabels: {app: reviews}}, portLevelMtls: {8080: {mode: PERMISSIVE}}}",
    );
    scene.mesh.write("port.yaml", &port)?;
    until("plaintext is taken", async || Ok(plain.get(URL).await.is_ok())).await?;
    let page = scene.servers[0].metrics_page()?;
    ensure!(
        sum(
            &page,
            "mesh_inbound_connections_refused_total",
            &[("reason", "plaintext_under_strict")]
        ) >= 1.0,
        "{page}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disable_speaks_plaintext_both_ways() -> anyhow::Result<()> {
    let disable = object(
        "security.istio.io",
        "PeerAuthentication",
        "reviews",
        "default",
        "{selector: {matchLabels: {app: reviews}}, mtls: {mode: DISABLE}}",
    );
    let scene = Scene::meshed(&["v1"], &disable).await?;
    ensure!(scene.caller().get(URL).await?.status == 200);
    let seen = scene.backends[0].take();
    ensure!(!seen[0].headers.contains_key("x-forwarded-client-cert"), "{seen:?}");
    let page = scene.servers[0].metrics_page()?;
    ensure!(
        sum(&page, "istio_requests_total", &[("connection_security_policy", "none")]) == 1.0,
        "{page}"
    );
    Ok(())
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let started = Instant::now();
    while !holds().await? {
        ensure!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    Ok(())
}
