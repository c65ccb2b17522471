//! Traffic between pods: injected, encrypted, authenticated, routed.

use std::time::{Duration, Instant};

use e2e::cluster::pods::{self, Client, Load, Shop};
use e2e::cluster::{Namespace, mesh, wait};
use serde_json::Value;

/// How long pods are deleted, and how often: this is the pace of the test, not a wait for anything.
const DELETIONS: Duration = Duration::from_secs(120);
const BETWEEN: Duration = Duration::from_secs(5);

/// Adds the version v2 of a service to its v1.
fn versions(namespace: &Namespace, service: &str) -> anyhow::Result<()> {
    for version in ["v1", "v2"] {
        Shop {
            version,
            ..Shop::new(service)
        }
        .deploy(namespace)?;
    }
    namespace.apply(&format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {service}}}
spec:
  host: {service}
  subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]"
    ))?;
    Ok(())
}

fn answered_by(answer: &Value) -> &str {
    answer["body"]["version"].as_str().unwrap_or_default()
}

#[test]
#[ignore = "needs a cluster"]
fn pods_get_a_proxy() -> anyhow::Result<()> {
    let _mesh = mesh::shared()?;
    let namespace = Namespace::injected("injected")?;
    let _client = Client::start(&namespace, "client")?;
    let pod = namespace.json(&["get", "pod", "client"])?;
    let names = |list: &Value| -> Vec<String> {
        let all = list.as_array().cloned().unwrap_or_default();
        all.iter()
            .filter_map(|container| Some(container["name"].as_str()?.to_owned()))
            .collect()
    };
    let mut all = names(&pod["spec"]["initContainers"]);
    assert_eq!(all.first().map(String::as_str), Some("mesh-init"), "{all:?}");
    all.extend(names(&pod["spec"]["containers"]));
    assert!(all.contains(&"istio-proxy".to_owned()), "{all:?}");
    assert_eq!(
        pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"],
        "app"
    );
    assert_eq!(pod["metadata"]["labels"]["security.istio.io/tlsMode"], "istio");

    // Who asks not to be touched is not.
    let metadata = "labels: {app: plain, sidecar.istio.io/inject: 'false'}";
    let _plain = Client::start_with(&namespace, "plain", metadata)?;
    let pod = namespace.json(&["get", "pod", "plain"])?;
    assert_eq!(pod["spec"]["initContainers"], Value::Null);
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn traffic_is_mutual_tls() -> anyhow::Result<()> {
    let _mesh = mesh::shared()?;
    let namespace = Namespace::injected("mtls")?;
    let outside = Namespace::new("mtls-outside", &[])?;
    Shop::new("web").deploy(&namespace)?;
    let client = Client::start(&namespace, "client")?;
    let answer = client.gets("http://web:8080/", 200)?;
    let caller = format!("spiffe://cluster.local/ns/{namespace}/sa/default");
    assert_eq!(answer["body"]["caller"], caller.as_str(), "{answer}");

    // The node sees frames of all its pods; the marker is in a header of each request, and in the
    // answer to it.
    outside.kubectl(&[
        "label",
        "namespace",
        outside.name(),
        "pod-security.kubernetes.io/enforce=privileged",
    ])?;
    let marker = "mesh-marker-2b7e1516";
    let args = [
        "wire",
        "--text",
        marker,
        "--text",
        "HTTP/1.1 200 OK",
        "--port",
        "8080",
        "--for",
        "20",
    ];
    let sniffer = pods::pod("sniffer", "labels: {app: sniffer}", &args)
        .replace("spec:\n", "spec:\n  hostNetwork: true\n  restartPolicy: Never\n")
        .replace(
            "    resources:",
            "    securityContext: {runAsUser: 0, capabilities: {drop: [ALL], add: [NET_RAW]}}\n    resources:",
        );
    let node = namespace.kubectl(&["get", "pod", "client", "-o", "jsonpath={.spec.nodeName}"])?;
    outside.apply(&sniffer.replace("spec:\n", &format!("spec:\n  nodeName: {node}\n")))?;
    let log = || outside.kubectl(&["logs", "sniffer"]);
    wait::eventually("the wire is listened to", || {
        anyhow::ensure!(log()?.contains("listening"), "not yet");
        Ok(())
    })?;
    let header = format!("x-marker: {marker}");
    for answer in client.answers("http://web:8080/", &["-n", "50", "-H", &header])? {
        assert_eq!(answer["status"], 200, "{answer}");
        assert_eq!(answer["body"]["headers"]["x-marker"], marker);
    }
    let seen: Value = wait::until("the sniffer ends", wait::PATIENCE, || {
        let last = log()?.lines().last().map(str::to_owned).unwrap_or_default();
        let report: Value = serde_json::from_str(&last)?;
        Ok(report["frames"].is_u64().then_some(report))
    })?;
    assert!(seen["frames"].as_u64() > Some(100), "{seen}");
    assert_eq!(seen["found"], serde_json::json!({ marker: 0 }), "{seen}");

    // Plaintext from outside is let in until mutual TLS is demanded.
    let stranger = Client::start(&outside, "stranger")?;
    let url = format!("http://web.{namespace}:8080/");
    stranger.gets(&url, 200)?;
    namespace.apply(
        "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}",
    )?;
    stranger.gets(&url, 0)?;
    client.gets("http://web:8080/", 200)?;
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn a_canary_is_routed() -> anyhow::Result<()> {
    let _mesh = mesh::shared()?;
    let namespace = Namespace::injected("canary")?;
    versions(&namespace, "reviews")?;
    let client = Client::start(&namespace, "client")?;
    client.gets("http://reviews:8080/", 200)?;
    namespace.apply(
        "apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {canary: {exact: 'true'}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 90}
    - {destination: {host: reviews, subset: v2}, weight: 10}",
    )?;
    let ask = |args: &[&str]| {
        let mut all = vec!["-n", "200"];
        all.extend(args);
        client.answers("http://reviews:8080/", &all)
    };
    wait::eventually("the canary header counts", || {
        let answers = ask(&["-H", "canary: true"])?;
        anyhow::ensure!(
            answers.iter().all(|answer| answered_by(answer) == "v2"),
            "others answer too"
        );
        Ok(())
    })?;
    let answers = ask(&[])?;
    let canary = answers.iter().filter(|answer| answered_by(answer) == "v2").count();
    assert!((5..=40).contains(&canary), "{canary} of 200 at 10 %");
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn a_rolling_restart_loses_nothing() -> anyhow::Result<()> {
    let _mesh = mesh::shared()?;
    let namespace = Namespace::injected("rolling")?;
    Shop {
        replicas: 2,
        ..Shop::new("web")
    }
    .deploy(&namespace)?;
    let load = Load::start(&namespace, "load", "http://web:8080/", &["--rate", "50"])?;
    namespace.kubectl(&["rollout", "restart", "deployment/web-v1"])?;
    wait::rollout(namespace.name(), "deployment/web-v1")?;
    // Old pods are gone only when they are not listed any more.
    wait::eventually("old pods are gone", || {
        let left = pods::names(&namespace, "app=web")?;
        anyhow::ensure!(left.len() == 2, "{left:?}");
        Ok(())
    })?;
    let requests = load.flawless()?;
    assert!(requests > 100, "{requests}");
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn pods_that_are_deleted_under_load_lose_nothing() -> anyhow::Result<()> {
    let _mesh = mesh::shared()?;
    let namespace = Namespace::injected("deleted")?;
    Shop {
        replicas: 3,
        ..Shop::new("web")
    }
    .deploy(&namespace)?;
    let load = Load::start(&namespace, "load", "http://web:8080/", &["--rate", "50"])?;
    let http2 = ["--rate", "20", "--connections", "2", "--http2"];
    let load2 = Load::start(&namespace, "load2", "http://web:8080/", &http2)?;
    let end = Instant::now() + DELETIONS;
    let mut deleted = 0;
    while Instant::now() < end {
        let turn = Instant::now();
        // What is deleted must leave two that serve, as a PodDisruptionBudget would have it.
        let oldest = wait::until("three pods serve", wait::PATIENCE, || {
            let pods = namespace.json(&["get", "pods", "-l", "app=web", "--sort-by=.metadata.creationTimestamp"])?;
            let ready: Vec<&str> = pods["items"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
                .filter(|pod| wait::condition(pod, "Ready").is_some_and(|(status, _)| status == "True"))
                .filter_map(|pod| pod["metadata"]["name"].as_str())
                .collect();
            Ok((ready.len() >= 3).then(|| ready[0].to_owned()))
        })?;
        namespace.kubectl(&["delete", "pod", &oldest, "--wait=false"])?;
        deleted += 1;
        std::thread::sleep(BETWEEN.saturating_sub(turn.elapsed()));
    }
    assert!(deleted >= 5, "only {deleted} pods were deleted");
    let requests = load.flawless()? + load2.flawless()?;
    assert!(requests > 1000, "{requests}");
    Ok(())
}
