//! A walk through an introduction to service meshes, with its manifests and commands as they stand: install, label the
//! namespace, deploy a shop, canary, splitting, fault, authorization, metrics, traces, logs, circuit breaker, retry,
//! timeout, troubleshooting.

use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::cluster::{json, kubectl, mesh, tools, wait};
use serde_json::Value;

/// What the introduction's principals name.
const NAMESPACE: &str = "default";
/// Its longest command waits five seconds.
const COMMAND: Duration = Duration::from_secs(60);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A command line as it is printed.
fn shell(line: &str) -> anyhow::Result<String> {
    tools::run("sh", &["-c", line], None, COMMAND)?.ok()
}

/// `kubectl apply -f` of a manifest of the introduction.
fn apply(manifest: &str) -> anyhow::Result<tools::Outcome> {
    let file = root().join("mesh-api/tests/policies").join(manifest);
    let file = file.to_string_lossy();
    tools::run(
        "kubectl",
        &["apply", "--validate=strict", "-f", &file],
        None,
        tools::LIMIT,
    )
}

/// One request from a workload of the shop; status 0 is no answer.
fn get(deployment: &str, url: &str, args: &[&str]) -> anyhow::Result<Value> {
    let target = format!("deploy/{deployment}");
    let mut command = vec!["exec", &target, "-c", "app", "--", "mesh-sample", "get", url];
    command.extend(args);
    let output = kubectl(&command)?;
    Ok(serde_json::from_str(output.lines().next().unwrap_or_default())?)
}

const REVIEWS: &str = "http://reviews.default.svc.cluster.local";

/// Waits until requests with a header are answered by a version.
fn routed(url: &str, canary: &str, version: &str) -> anyhow::Result<()> {
    let header = format!("canary: {canary}");
    wait::eventually(&format!("{header} leads to {version}"), || {
        for _ in 0..10 {
            let answer = get("client", url, &["-H", &header])?;
            anyhow::ensure!(answer["body"]["version"] == version, "{answer}");
        }
        Ok(())
    })
}

/// The shop in `default`, gone with the value.
struct Shop;

impl Shop {
    fn deploy() -> anyhow::Result<Self> {
        kubectl(&[
            "label",
            "namespace",
            NAMESPACE,
            "istio-injection=enabled",
            "--overwrite",
        ])?;
        let shop = Self;
        kubectl(&["apply", "-f", &root().join("docs/samples/shop.yaml").to_string_lossy()])?;
        for deployment in json(&["get", "deployments", "-n", NAMESPACE])?["items"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let name = deployment["metadata"]["name"].as_str().unwrap_or_default();
            wait::rollout(NAMESPACE, &format!("deployment/{name}"))?;
        }
        Ok(shop)
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("state of {NAMESPACE} at the failure:\n{}", wait::situation(NAMESPACE));
        }
        let kinds = "virtualservices,destinationrules,authorizationpolicies";
        let _ = kubectl(&["delete", kinds, "--all", "-n", NAMESPACE]);
        let file = root().join("docs/samples/shop.yaml");
        let _ = kubectl(&[
            "delete",
            "--ignore-not-found",
            "--wait=false",
            "-f",
            &file.to_string_lossy(),
        ]);
        let _ = kubectl(&["label", "namespace", NAMESPACE, "istio-injection-"]);
    }
}

#[test]
#[ignore = "needs a cluster"]
fn the_introduction_works_as_printed() -> anyhow::Result<()> {
    let _mesh = mesh::shared()?;
    let _shop = Shop::deploy()?;

    // Verify installation.
    assert!(shell("kubectl get pods -n mesh-system")?.contains("Running"));
    let containers =
        shell("kubectl get deployment -n default -o jsonpath='{.items[0].spec.template.spec.containers[*].name}'")?;
    assert_eq!(containers, "app", "injection changes pods, not what users wrote");
    let identity = get("client", &format!("{REVIEWS}:9080/"), &[])?;
    assert_eq!(
        identity["body"]["caller"], "spiffe://cluster.local/ns/default/sa/client",
        "{identity}"
    );

    // Traffic splitting, in both forms.
    apply("canary-by-header.yaml")?.ok()?;
    routed(&format!("{REVIEWS}:9080/"), "true", "v2")?;
    apply("canary-with-port.yaml")?.ok()?;
    for (canary, version) in [("false", "v1"), ("true", "v2")] {
        routed(REVIEWS, canary, version)?;
        let line = format!("kubectl exec deploy/client -c app -- curl -s -H 'canary: {canary}' {REVIEWS}");
        let answer: Value = serde_json::from_str(&shell(&line)?)?;
        assert_eq!(answer["version"], version, "{answer}");
    }
    wait::eventually("the route's status", || {
        let object = json(&["get", "virtualservice", "reviews", "-n", NAMESPACE])?;
        let (status, message) = wait::condition(&object, "Accepted").unwrap_or_default();
        anyhow::ensure!(status == "True", "{message}: {}", object["status"]);
        let (status, message) = wait::condition(&object, "Programmed").unwrap_or_default();
        anyhow::ensure!(status == "True", "{message}: {}", object["status"]);
        Ok(())
    })?;

    // Mutual TLS.
    let settings = shell("kubectl get meshconfig -n istio-system -o yaml")?;
    assert!(settings.contains("trustDomain: cluster.local"), "{settings}");

    // A fault, in the same name: it takes the place of the route before.
    apply("fault-delay.yaml")?.ok()?;
    wait::eventually("half of the requests are slow", || {
        let seconds = |answer: &Value| answer["seconds"].as_f64().unwrap_or(0.0);
        let answers: Vec<f64> = (0..8)
            .map(|_| get("client", &format!("{REVIEWS}:9080/"), &[]).map(|answer| seconds(&answer)))
            .collect::<Result<_, _>>()?;
        let slow = answers.iter().filter(|seconds| **seconds >= 4.9).count();
        anyhow::ensure!((1..8).contains(&slow), "{answers:?}");
        Ok(())
    })?;
    kubectl(&["delete", "virtualservice", "reviews", "-n", NAMESPACE])?;

    // Who may read, and who may not.
    for manifest in ["authorization-read.yaml", "authorization-read-write.yaml"] {
        apply(manifest)?.ok()?;
        wait::eventually("others are refused", || {
            let answer = get("client", &format!("{REVIEWS}:9080/"), &[])?;
            anyhow::ensure!(answer["status"] == 403, "{answer}");
            Ok(())
        })?;
        let answer = get("order-service-v1", &format!("{REVIEWS}:9080/"), &[])?;
        assert_eq!(answer["status"], 200, "{answer}");
    }
    let post = get("order-service-v1", &format!("{REVIEWS}:9080/"), &["-X", "POST"])?;
    assert_eq!(post["status"], 200, "{post}");
    assert!(shell("kubectl get authorizationpolicy -n default")?.contains("reviews-authz"));

    // Metrics, traces, logs, configuration, as printed.
    let pod = "$(kubectl get pod -l app=reviews -o jsonpath='{.items[0].metadata.name}')";
    let stats = shell(&format!(
        "kubectl exec -it {pod} -c istio-proxy -- curl localhost:15090/stats"
    ))?;
    assert!(stats.lines().count() > 5, "{stats}");
    let trace = shell(&format!(
        "kubectl exec -it {pod} -c istio-proxy -- curl localhost:15000/debug/pprof/trace?seconds=5"
    ))?;
    assert!(!trace.trim().is_empty());
    shell("kubectl logs -l app=reviews -c istio-proxy")?;
    let dump = shell(&format!(
        "kubectl exec -it {pod} -c istio-proxy -- curl localhost:15000/config_dump"
    ))?;
    assert!(dump.contains("reviews-authz"), "{dump}");
    kubectl(&["delete", "authorizationpolicy", "reviews-authz", "-n", NAMESPACE])?;

    // Resilience, all three rules at once.
    for manifest in ["circuit-breaker.yaml", "retry.yaml", "timeout.yaml"] {
        apply(manifest)?.ok()?;
    }
    wait::eventually("slow answers end after 5 s", || {
        let answer = get("client", &format!("{REVIEWS}:9080/?delay=8s"), &[])?;
        anyhow::ensure!(answer["status"] == 504, "{answer}");
        Ok(())
    })?;
    wait::eventually("failures are tried again", || {
        let answers: Vec<Value> = (0..20)
            .map(|_| get("client", &format!("{REVIEWS}:9080/?fail=0.3"), &[]))
            .collect::<Result<_, _>>()?;
        let failed = answers.iter().filter(|answer| answer["status"] != 200).count();
        anyhow::ensure!(failed <= 2, "{failed} of 20 failed; without retries 6 would");
        Ok(())
    })
}
