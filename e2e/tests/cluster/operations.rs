//! What operators do, and what happens to them: jobs, probes, an outage of the control plane, new certificates, pods that
//! come and go, metrics that are scraped.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::cluster::pods::{self, Client, Load, Shop};
use e2e::cluster::skip::skip;
use e2e::cluster::{Namespace, json, kubectl, mesh, tools, wait};
use serde_json::Value;

#[test]
#[ignore = "needs a cluster"]
fn a_job_completes() -> anyhow::Result<()> {
    let _mesh = mesh::shared()?;
    let namespace = Namespace::injected("job")?;
    Shop::new("web").deploy(&namespace)?;
    let image = pods::sample_image();
    namespace.apply(&format!(
        "apiVersion: batch/v1
kind: Job
metadata: {{name: once}}
spec:
  backoffLimit: 3
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: app
        image: {image}
        args: [get, 'http://web:8080/']
"
    ))?;
    namespace.kubectl(&["wait", "--for=condition=Complete", "job/once", "--timeout=110s"])?;
    let log = namespace.kubectl(&["logs", "job/once", "-c", "app"])?;
    assert!(log.contains("\"status\":200"), "{log}");
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn probes_work_where_plaintext_is_refused() -> anyhow::Result<()> {
    let _mesh = mesh::shared()?;
    let namespace = Namespace::injected("probes")?;
    namespace.apply(
        "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}",
    )?;
    let image = pods::sample_image();
    namespace.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: probed, labels: {{app: probed}}}}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: app
    image: {image}
    args: [shop, --service=probed, --version=v1, --namespace=default, '--listen=0.0.0.0:8080', --linger=0]
    ports: [{{name: web, containerPort: 8080}}]
    startupProbe: {{httpGet: {{path: /, port: web}}, periodSeconds: 1, failureThreshold: 60}}
    readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
    livenessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
"
    ))?;
    pods::ready(&namespace, "pod/probed")?;
    // Liveness would have restarted it by now.
    let until = Instant::now() + Duration::from_secs(10);
    wait::until("probes were asked for a while", wait::PATIENCE, || {
        Ok((Instant::now() > until).then_some(()))
    })?;
    let pod = namespace.json(&["get", "pod", "probed"])?;
    for status in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
        assert_eq!(status["restartCount"], 0, "{status}");
        assert_eq!(status["ready"], true, "{status}");
    }
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn an_outage_of_the_control_plane_changes_nothing() -> anyhow::Result<()> {
    let _mesh = mesh::exclusive()?;
    let namespace = Namespace::injected("outage")?;
    Shop::new("web").deploy(&namespace)?;
    let load = Load::start(&namespace, "load", "http://web:8080/", &["--rate", "50"])?;
    let control = ["-n", mesh::NAMESPACE, "scale", "deployment/mesh-control"];
    kubectl(&[&control[..], &["--replicas=0"]].concat())?;
    wait::eventually("the control plane is gone", || {
        let pods = json(&["-n", mesh::NAMESPACE, "get", "pods", "-l", "app=mesh-control"])?;
        let left = pods["items"].as_array().map_or(0, Vec::len);
        anyhow::ensure!(left == 0, "{left} pods");
        Ok(())
    })?;
    let before = load.flawless()?;
    wait::eventually("traffic goes on", || {
        let now = load.flawless()?;
        anyhow::ensure!(now > before + 250, "{before} then, {now} now");
        Ok(())
    })?;
    kubectl(&[&control[..], &["--replicas=1"]].concat())?;
    wait::rollout(mesh::NAMESPACE, "deployment/mesh-control")?;
    // Who comes now is served, and who was there is still.
    let client = Client::start(&namespace, "late")?;
    client.gets("http://web:8080/", 200)?;
    load.flawless()?;
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn certificates_are_renewed_under_traffic() -> anyhow::Result<()> {
    let _mesh = mesh::exclusive()?;
    mesh::install(&["control.certificateTtl=1m"])?;
    let namespace = Namespace::injected("renewal")?;
    Shop::new("web").deploy(&namespace)?;
    let load = Load::start(&namespace, "load", "http://web:8080/", &["--rate", "50"])?;
    let serial = || -> anyhow::Result<Value> {
        let page = pods::exec(
            &namespace,
            "load",
            "istio-proxy",
            &["curl", "-s", "localhost:15000/config_dump"],
        )?
        .ok()?;
        let dump: Value = serde_json::from_str(&page)?;
        let certificates = dump["certificates"].as_array().cloned().unwrap_or_default();
        let own = certificates
            .into_iter()
            .find(|certificate| certificate["identity"].is_string());
        own.map(|own| own["serial"].clone())
            .ok_or_else(|| anyhow::anyhow!("no certificate with an identity"))
    };
    let first = serial()?;
    wait::until("two renewals", Duration::from_secs(150), || {
        let now = serial()?;
        Ok((now != first).then_some(now))
    })
    .and_then(|second| {
        wait::until("the second renewal", Duration::from_secs(150), || {
            Ok((serial()? != second).then_some(()))
        })
    })?;
    load.flawless()?;
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn pods_may_go_at_any_time() -> anyhow::Result<()> {
    let _mesh = mesh::shared()?;
    let namespace = Namespace::injected("churn")?;
    Shop {
        replicas: 3,
        ..Shop::new("web")
    }
    .deploy(&namespace)?;
    let load = Load::start(&namespace, "load", "http://web:8080/", &["--rate", "50"])?;
    let end = Instant::now() + Duration::from_secs(120);
    let mut deleted = 0;
    while Instant::now() < end {
        let next = Instant::now() + Duration::from_secs(5);
        // One that is ready, so that others are there.
        let pods = namespace.json(&["get", "pods", "-l", "app=web", "--field-selector=status.phase=Running"])?;
        let ready = |pod: &&Value| {
            let conditions = pod["status"]["conditions"].as_array();
            let is_ready =
                conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
            is_ready && pod["metadata"]["deletionTimestamp"].is_null()
        };
        let all: Vec<&Value> = pods["items"].as_array().into_iter().flatten().filter(ready).collect();
        if let (true, Some(name)) = (
            all.len() > 1,
            all.first().and_then(|pod| pod["metadata"]["name"].as_str()),
        ) {
            namespace.kubectl(&["delete", "pod", name, "--wait=false"])?;
            deleted += 1;
        }
        wait::until("five seconds", wait::PATIENCE, || {
            Ok((Instant::now() > next).then_some(()))
        })?;
    }
    let requests = load.flawless()?;
    assert!(
        deleted >= 10 && requests > 4_000,
        "{deleted} pods deleted, {requests} requests"
    );
    Ok(())
}

/// A process that ends with the value.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs a cluster"]
fn prometheus_scrapes_sidecars() -> anyhow::Result<()> {
    if tools::run("prometheus", &["--version"], None, tools::LIMIT).is_err() {
        skip("prometheus_scrapes_sidecars", "prometheus is not on the PATH");
        return Ok(());
    }
    let _mesh = mesh::shared()?;
    let namespace = Namespace::injected("prometheus")?;
    Shop::new("web").deploy(&namespace)?;
    let load = Load::start(&namespace, "load", "http://web:8080/", &["--rate", "50"])?;
    load.flawless()?;
    let pods = namespace.json(&["get", "pods"])?;
    let targets: Vec<String> = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|pod| Some(format!("'{}:15020'", pod["status"]["podIP"].as_str()?)))
        .collect();
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("prometheus.yml");
    fs::write(
        &config,
        format!(
            "global: {{scrape_interval: 1s}}
scrape_configs:
- job_name: pods
  metrics_path: /stats/prometheus
  static_configs: [{{targets: [{}]}}]
",
            targets.join(", ")
        ),
    )?;
    // A port that is free now; the pod of the API server's own network is not among the users of loopback here.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let log = fs::File::create(directory.path().join("log"))?;
    let _prometheus = Running(
        Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.path().join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?,
    );
    let query = "sum(istio_requests_total{response_code=\"200\",connection_security_policy=\"mutual_tls\",\
                 destination_service_name=\"web\",reporter=\"destination\"})";
    wait::eventually("requests are counted", || {
        let url = format!("http://127.0.0.1:{port}/api/v1/query");
        let data = format!("query={query}");
        let args = [
            "-sS",
            "--noproxy",
            "*",
            "--max-time",
            "5",
            "--data-urlencode",
            &data,
            &url,
        ];
        let answer: Value = serde_json::from_str(&tools::run("curl", &args, None, tools::LIMIT)?.ok()?)?;
        let value = answer["data"]["result"][0]["value"][1]
            .as_str()
            .and_then(|value| value.parse::<f64>().ok());
        anyhow::ensure!(value > Some(50.0), "{answer}");
        Ok(())
    })
}
