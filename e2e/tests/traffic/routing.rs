//! Routing as the service's clients see it.

use std::collections::BTreeMap;

use anyhow::ensure;
use bytes::Bytes;
use e2e::plain::eventually;
use e2e::traffic::metrics::sum;
use e2e::traffic::{Scene, logged, routes, subsets};
use http::{Method, Request};

const URL: &str = "http://reviews/";
const VERSIONS: [&str; 3] = ["v1", "v2", "v3"];

/// Three versions without sidecars, the subsets, and these routes.
async fn scene(http: &str) -> anyhow::Result<Scene> {
    Scene::bare(&VERSIONS, &(subsets() + &routes(http))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_canary_header_chooses_the_version() -> anyhow::Result<()> {
    let scene = scene(
        "[{match: [{headers: {canary: {exact: \"true\"}}}], route: [{destination: {host: reviews, subset: v2}}]}, \
         {route: [{destination: {host: reviews, subset: v1}}]}]",
    )
    .await?;
    let caller = scene.caller();
    for _ in 0..10 {
        let answer = caller.with(URL, &[("canary", "true")]).await?;
        ensure!(
            answer.backend() == "v2",
            "{answer:?}\n{:?}",
            e2e::traffic::access_log(&scene.client)
        );
        ensure!(caller.with(URL, &[("canary", "false")]).await?.backend() == "v1");
        ensure!(
            caller
                .get("http://reviews.default.svc.cluster.local:9080/")
                .await?
                .backend()
                == "v1"
        );
    }
    ensure!(scene.backend("v3")?.seen().is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_split_requests() -> anyhow::Result<()> {
    let scene = scene(
        "[{route: [{destination: {host: reviews, subset: v1}, weight: 70}, {destination: {host: reviews, subset: v2}, \
         weight: 30}, {destination: {host: reviews, subset: v3}, weight: 0}]}]",
    )
    .await?;
    let mut connection = scene.caller().connection().await?;
    let mut counts = BTreeMap::<String, usize>::new();
    for _ in 0..1000 {
        let request = Request::get(URL).header("host", "reviews").body(Bytes::new())?;
        let answer = connection.send(request).await?;
        *counts.entry(answer.backend().to_owned()).or_default() += 1;
    }
    // Six standard deviations.
    ensure!((613..=787).contains(&counts["v1"]), "{counts:?}");
    ensure!(counts["v1"] + counts["v2"] == 1000, "{counts:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_routes_takes_effect_while_requests_run() -> anyhow::Result<()> {
    let scene = scene("[{route: [{destination: {host: reviews, subset: v1}}]}]").await?;
    let mut connection = scene.caller().connection().await?;
    let request = || Request::get(URL).header("host", "reviews").body(Bytes::new());
    ensure!(connection.send(request()?).await?.backend() == "v1");
    for (version, other) in [("v2", "v1"), ("v3", "v2")] {
        let yaml = routes(&format!(
            "[{{route: [{{destination: {{host: reviews, subset: {version}}}}}]}}]"
        ));
        scene.mesh.write("routes.yaml", &yaml)?;
        // The later file of one name wins, on the connection that is open.
        let started = std::time::Instant::now();
        loop {
            let answer = connection.send(request()?).await?;
            ensure!(answer.status == 200, "{answer:?}");
            if answer.backend() == version {
                break;
            }
            ensure!(answer.backend() == other, "{answer:?}");
            ensure!(started.elapsed() < e2e::plain::PATIENCE, "{version} is never chosen");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_name_the_place() -> anyhow::Result<()> {
    let scene = scene(
        "[{match: [{uri: {prefix: /old}}], redirect: {uri: /new, authority: other.example, redirectCode: 302}}, \
         {match: [{uri: {prefix: /tls}}], redirect: {scheme: https}}]",
    )
    .await?;
    let caller = scene.caller();
    let answer = caller.get("http://reviews/old/x?q=1").await?;
    ensure!(answer.status == 302, "{answer:?}");
    ensure!(
        answer.header("location") == "http://other.example/new?q=1",
        "{answer:?}"
    );
    let answer = caller.get("http://reviews/tls/x").await?;
    ensure!(
        answer.status == 301 && answer.header("location") == "https://reviews/tls/x",
        "{answer:?}"
    );
    ensure!(scene.backends.iter().all(|backend| backend.seen().is_empty()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rewrites_change_what_the_application_gets() -> anyhow::Result<()> {
    let to = "route: [{destination: {host: reviews, subset: v1}}]";
    let scene = scene(&format!(
        "[{{match: [{{uri: {{prefix: /api/}}}}], rewrite: {{uri: /v1/, authority: inner.example}}, {to}}}, \
         {{match: [{{uri: {{exact: /one}}}}], rewrite: {{uri: /two}}, {to}}}, \
         {{match: [{{uri: {{prefix: /users}}}}], rewrite: {{uriRegexRewrite: {{match: \"^/users/([0-9]+)/(.*)$\", \
         rewrite: \"/\\\\2/of/\\\\1\"}}}}, {to}}}]"
    ))
    .await?;
    for (path, rewritten, host) in [
        ("/api/list?q=1", "/v1/list?q=1", "inner.example"),
        ("/one?q=1", "/two?q=1", "reviews"),
        ("/users/7/posts?q=1", "/posts/of/7?q=1", "reviews"),
    ] {
        let answer = scene.caller().get(&format!("http://reviews{path}")).await?;
        ensure!(answer.status == 200, "{path}: {answer:?}");
        let seen = scene.backends[0].take();
        ensure!(
            seen[0].uri == rewritten && seen[0].header("host") == host,
            "{path}: {seen:?}"
        );
        ensure!(seen[0].header("x-envoy-original-path") == path, "{path}: {seen:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_direct_response_needs_no_application() -> anyhow::Result<()> {
    let scene = scene(
        "[{match: [{uri: {exact: /maintenance}}], directResponse: {status: 503, body: {string: back soon}}, headers: \
         {response: {set: {retry-after: \"60\"}}}}]",
    )
    .await?;
    let answer = scene.caller().get("http://reviews/maintenance").await?;
    ensure!(answer.status == 503 && answer.text() == "back soon", "{answer:?}");
    ensure!(answer.header("retry-after") == "60", "{answer:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_are_set_added_and_removed_both_ways() -> anyhow::Result<()> {
    let scene = scene(
        "[{headers: {request: {set: {x-set: route}, add: {x-add: route}, remove: [x-drop]}, response: {set: {x-set: \
         route}, add: {x-add: route}, remove: [x-drop]}}, route: [{destination: {host: reviews, subset: v1}, headers: \
         {request: {add: {x-add: leg}}, response: {add: {x-leg: leg}}}}]}]",
    )
    .await?;
    let sent = [
        ("x-set", "client"),
        ("x-add", "client"),
        ("x-drop", "client"),
        ("x-answer-with", "x-set: application"),
        ("x-answer-with", "x-add: application"),
        ("x-answer-with", "x-drop: application"),
    ];
    let answer = scene.caller().with(URL, &sent).await?;
    let seen = scene.backends[0].take();
    let all = |headers: &http::HeaderMap, name: &str| {
        let values = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?"));
        let mut values: Vec<String> = values.map(str::to_owned).collect();
        values.sort();
        values
    };
    let request = &seen[0].headers;
    ensure!(all(request, "x-set") == ["route"], "{request:?}");
    ensure!(all(request, "x-add") == ["client", "leg", "route"], "{request:?}");
    ensure!(all(request, "x-drop").is_empty(), "{request:?}");
    let response = &answer.headers;
    ensure!(all(response, "x-set") == ["route"], "{response:?}");
    ensure!(all(response, "x-add") == ["application", "route"], "{response:?}");
    ensure!(all(response, "x-leg") == ["leg"], "{response:?}");
    ensure!(all(response, "x-drop").is_empty(), "{response:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_rule_matches_there_is_nothing() -> anyhow::Result<()> {
    let scene =
        scene("[{match: [{uri: {prefix: /known}}], route: [{destination: {host: reviews, subset: v1}}]}]").await?;
    let answer = scene.caller().get("http://reviews/unknown").await?;
    ensure!(answer.status == 404 && answer.backend().is_empty(), "{answer:?}");
    let line = logged(&scene.client, "NR", |line| line["response_flags"] == "NR")?;
    ensure!(line["response_code"] == 404 && line["path"] == "/unknown", "{line}");
    ensure!(line["response_code_details"] == "route_not_found", "{line}");
    eventually("it is counted", || {
        let page = scene.client.metrics_page().ok()?;
        let labels = [
            ("response_code", "404"),
            ("response_flags", "NR"),
            ("destination_service", "reviews.default.svc.cluster.local"),
        ];
        (sum(&page, "istio_requests_total", &labels) == 1.0).then_some(())
    })?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subset_that_nobody_defines_is_unavailable() -> anyhow::Result<()> {
    let scene = scene("[{route: [{destination: {host: reviews, subset: v9}}]}]").await?;
    let answer = scene.caller().get(URL).await?;
    ensure!(answer.status == 503, "{answer:?}");
    let line = logged(&scene.client, "a flag", |line| line["response_code"] == 503)?;
    ensure!(line["response_flags"] == "NC", "{line}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subset_without_workloads_has_no_healthy_upstream() -> anyhow::Result<()> {
    let scene = Scene::bare(
        &["v1"],
        &(subsets() + &routes("[{route: [{destination: {host: reviews, subset: v3}}]}]")),
    )
    .await?;
    let answer = scene.caller().get(URL).await?;
    ensure!(
        answer.status == 503 && answer.text() == "no healthy upstream",
        "{answer:?}"
    );
    logged(&scene.client, "UH", |line| line["response_flags"] == "UH")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn query_method_authority_and_absent_headers_match() -> anyhow::Result<()> {
    let to = |version: &str| format!("route: [{{destination: {{host: reviews, subset: {version}}}}}]");
    let scene = scene(&format!(
        "[{{match: [{{queryParams: {{v: {{exact: \"2\"}}}}}}], {v2}}}, {{match: [{{method: {{exact: DELETE}}}}], {v3}}}, \
         {{match: [{{authority: {{prefix: \"reviews.default.\"}}}}], {v3}}}, {{match: [{{withoutHeaders: {{x-known: \
         {{}}}}}}], {v1}}}, {{match: [{{headers: {{x-known: {{regex: \"a+\"}}}}, uri: {{regex: \"/p[0-9]+\"}}}}, {{uri: \
         {{prefix: /OTHER}}, ignoreUriCase: true}}], {v2}}}]",
        v1 = to("v1"),
        v2 = to("v2"),
        v3 = to("v3"),
    ))
    .await?;
    let caller = scene.caller();
    let known = [("x-known", "aaa")];
    type Row<'a> = (Method, &'a str, &'a [(&'a str, &'a str)], &'a str);
    let rows: [Row<'_>; 10] = [
        (Method::GET, "http://reviews/?v=2", &[], "v2"),
        (Method::GET, "http://reviews/?w=2&v=2", &[], "v2"),
        (Method::GET, "http://reviews/?v=21", &[], "v1"),
        (Method::DELETE, "http://reviews/", &[], "v3"),
        (Method::GET, "http://reviews.default.svc.cluster.local/", &known, "v3"),
        (Method::GET, "http://reviews/", &[], "v1"),
        (Method::GET, "http://reviews/p12?x=y", &known, "v2"),
        (Method::GET, "http://reviews/p12/more", &known, ""),
        (Method::GET, "http://reviews/other/x", &known, "v2"),
        (Method::GET, "http://reviews/", &[("x-known", "b")], ""),
    ];
    for (method, url, headers, backend) in rows {
        let answer = caller.call(method.clone(), url, headers, "").await?;
        ensure!(answer.backend() == backend, "{method} {url} {headers:?}: {answer:?}");
        ensure!(
            answer.status == if backend.is_empty() { 404 } else { 200 },
            "{url}: {answer:?}"
        );
    }
    Ok(())
}
