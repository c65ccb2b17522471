//! The sample image in pods: manifests, commands in them, their logs.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use super::{Namespace, tools, wait};

/// The image of the samples; `MESH_E2E_HUB` says where it comes from where it is not loaded into the cluster.
#[must_use]
pub fn sample_image() -> String {
    let hub = std::env::var("MESH_E2E_HUB").unwrap_or_else(|_| "mesh.dev".to_owned());
    format!("{hub}/mesh-sample:{}", env!("CARGO_PKG_VERSION"))
}

/// A Deployment of one service of the shop, its Service and its service account.
#[derive(Clone, Debug)]
pub struct Shop<'a> {
    /// Service name; also label `app` and the service account.
    pub service: &'a str,
    /// Label `version`; the Deployment is `service-version`.
    pub version: &'a str,
    /// Pods.
    pub replicas: u32,
    /// Port of the container.
    pub port: u16,
    /// Ports of the Service with their names, all to the container's.
    pub ports: &'a [(&'a str, u16)],
    /// URLs that it calls for each request.
    pub calls: &'a [&'a str],
    /// Annotations of the pods, `name: value`.
    pub annotations: &'a [&'a str],
    /// Seconds that it serves on after SIGTERM.
    pub linger: f64,
}

impl<'a> Shop<'a> {
    /// One pod, version v1, at port 8080.
    #[must_use]
    pub fn new(service: &'a str) -> Self {
        Self {
            service,
            version: "v1",
            replicas: 1,
            port: 8080,
            ports: &[("http", 8080)],
            calls: &[],
            annotations: &[],
            linger: 5.0,
        }
    }

    /// Its manifests, for a namespace.
    #[must_use]
    pub fn manifest(&self, namespace: &Namespace) -> String {
        let Self {
            service,
            version,
            replicas,
            port,
            linger,
            ..
        } = self;
        let image = sample_image();
        let mut ports = String::new();
        for (name, number) in self.ports {
            let _ = write!(ports, "\n  - {{name: {name}, port: {number}, targetPort: {port}}}");
        }
        let calls: String = self.calls.iter().fold(String::new(), |mut all, call| {
            let _ = write!(all, ", --call={call}");
            all
        });
        let annotations = self.annotations.join(", ");
        format!(
            "apiVersion: v1
kind: ServiceAccount
metadata: {{name: {service}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {service}, labels: {{app: {service}}}}}
spec:
  selector: {{app: {service}}}
  ports:{ports}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {service}-{version}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {service}, version: {version}}}}}
  template:
    metadata:
      labels: {{app: {service}, version: {version}}}
      annotations: {{{annotations}}}
    spec:
      serviceAccountName: {service}
      containers:
      - name: app
        image: {image}
        args: [shop, --service={service}, --version={version}, --namespace={namespace}, '--listen=0.0.0.0:{port}', --linger={linger}{calls}]
        ports: [{{containerPort: {port}}}]
        readinessProbe: {{httpGet: {{path: /, port: {port}}}, periodSeconds: 1}}
        resources: {{requests: {{cpu: 1m, memory: 4Mi}}}}
"
        )
    }

    /// Applies it and waits for its pods.
    ///
    /// # Errors
    /// When they do not become ready.
    pub fn deploy(&self, namespace: &Namespace) -> anyhow::Result<()> {
        namespace.apply(&self.manifest(namespace))?;
        wait::rollout(
            namespace.name(),
            &format!("deployment/{}-{}", self.service, self.version),
        )
    }
}

/// The manifest of a pod that runs a command of the sample image.
#[must_use]
pub fn pod(name: &str, metadata: &str, args: &[&str]) -> String {
    let image = sample_image();
    let args = serde_json::to_string(args).unwrap_or_default();
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, {metadata}}}
spec:
  terminationGracePeriodSeconds: 5
  containers:
  - name: app
    image: {image}
    args: {args}
    resources: {{requests: {{cpu: 1m, memory: 4Mi}}}}
"
    )
}

/// A pod that waits for commands.
#[derive(Debug)]
pub struct Client<'a> {
    namespace: &'a Namespace,
    name: String,
}

impl<'a> Client<'a> {
    /// Starts one, labelled `app: NAME`, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start(namespace: &'a Namespace, name: &str) -> anyhow::Result<Self> {
        Self::start_with(namespace, name, &format!("labels: {{app: {name}}}"))
    }

    /// The same with metadata of the caller's choice, in YAML's flow style.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_with(namespace: &'a Namespace, name: &str, metadata: &str) -> anyhow::Result<Self> {
        namespace.apply(&pod(name, metadata, &["sleep"]))?;
        ready(namespace, &format!("pod/{name}"))?;
        Ok(Self {
            namespace,
            name: name.to_owned(),
        })
    }

    /// Runs a command of the sample image in its first container.
    ///
    /// # Errors
    /// When kubectl cannot be run.
    pub fn exec(&self, command: &[&str]) -> anyhow::Result<tools::Outcome> {
        exec(self.namespace, &self.name, "app", command)
    }

    /// One GET; see `mesh-sample get` for further arguments. Status 0 is none.
    ///
    /// # Errors
    /// When the command does not run.
    pub fn get(&self, url: &str, args: &[&str]) -> anyhow::Result<Value> {
        let answers = self.answers(url, args)?;
        answers.into_iter().next().context("no line of output")
    }

    /// Several GETs, with `-n COUNT` among the arguments.
    ///
    /// # Errors
    /// When the command does not run.
    pub fn answers(&self, url: &str, args: &[&str]) -> anyhow::Result<Vec<Value>> {
        let mut command = vec!["mesh-sample", "get", url];
        command.extend(args);
        let output = self.exec(&command)?.ok()?;
        output.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// Waits until a GET is answered with this status.
    ///
    /// # Errors
    /// When it is not.
    pub fn gets(&self, url: &str, status: u16) -> anyhow::Result<Value> {
        wait::until(&format!("GET {url}: {status}"), wait::PATIENCE, || {
            let answer = self.get(url, &[])?;
            anyhow::ensure!(answer["status"] == status, "it answered {answer}");
            Ok(Some(answer))
        })
    }
}

/// Runs a command in a container.
///
/// # Errors
/// When kubectl cannot be run.
pub fn exec(namespace: &Namespace, pod: &str, container: &str, command: &[&str]) -> anyhow::Result<tools::Outcome> {
    let mut args = vec!["-n", namespace.name(), "exec", pod, "-c", container, "--"];
    args.extend(command);
    tools::run("kubectl", &args, None, tools::LIMIT)
}

/// Waits until an object's pods are ready: `pod/NAME`, `pod -l app=x`.
///
/// # Errors
/// When they do not, with the state of the namespace.
pub fn ready(namespace: &Namespace, what: &str) -> anyhow::Result<()> {
    let seconds = format!("--timeout={}s", wait::PATIENCE.as_secs());
    let mut args = vec!["-n", namespace.name(), "wait", "--for=condition=Ready", &seconds];
    args.extend(what.split(' '));
    let outcome = tools::run("kubectl", &args, None, wait::PATIENCE + Duration::from_secs(30))?;
    outcome
        .ok()
        .map(drop)
        .with_context(|| wait::situation(namespace.name()))
}

/// The names of pods with a label.
///
/// # Errors
/// When kubectl fails.
pub fn names(namespace: &Namespace, label: &str) -> anyhow::Result<Vec<String>> {
    let pods = namespace.json(&["get", "pods", "-l", label])?;
    let items = pods["items"].as_array().context("a list has items")?;
    Ok(items
        .iter()
        .filter_map(|pod| Some(pod["metadata"]["name"].as_str()?.to_owned()))
        .collect())
}

/// Steady traffic from a pod of its own, until it is asked for its result.
#[derive(Debug)]
pub struct Load<'a> {
    namespace: &'a Namespace,
    name: String,
}

impl<'a> Load<'a> {
    /// Starts traffic and waits for its first answers; see `mesh-sample load` for arguments.
    ///
    /// # Errors
    /// When none come.
    pub fn start(namespace: &'a Namespace, name: &str, url: &str, args: &[&str]) -> anyhow::Result<Self> {
        let mut command = vec!["load", url];
        command.extend(args);
        namespace.apply(&pod(name, &format!("labels: {{app: {name}}}"), &command))?;
        ready(namespace, &format!("pod/{name}"))?;
        let load = Self {
            namespace,
            name: name.to_owned(),
        };
        wait::eventually("first answers", || {
            anyhow::ensure!(load.report()?["requests"].as_u64() > Some(20), "too few yet");
            Ok(())
        })?;
        Ok(load)
    }

    /// What it has counted so far.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn report(&self) -> anyhow::Result<Value> {
        let log = self.namespace.kubectl(&["logs", &self.name, "-c", "app", "--tail=1"])?;
        Ok(serde_json::from_str(log.trim())?)
    }

    /// That no request has failed so far; their number.
    ///
    /// # Errors
    /// When one has, with all that is told of the failures.
    pub fn flawless(&self) -> anyhow::Result<u64> {
        let report = self.report()?;
        anyhow::ensure!(report["failed"] == 0, "requests failed: {report}");
        report["requests"].as_u64().context("a report has requests")
    }
}
