//! `meshctl bug-report`: what is needed to understand a fault, in one archive. Secrets are never read, and what policy
//! says stays as its authors wrote it.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Namespace, Pod};
use kube::Api;
use kube::api::{ListParams, LogParams};
use mesh_api::crd::Kind;
use serde::Serialize;

use super::Verdict;
use crate::cluster::{ADMIN_PORT, Access, Cluster, PROXY_CONTAINER, STATUS_PORT, has_sidecar, is_running, list};
use crate::output::print;

/// Of each container's log.
const LOG_LINES: i64 = 5_000;
/// Of each container's log.
const LOG_BYTES: i64 = 4 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The archive; by default bug-report-TIME.tar.gz here.
    #[arg(short = 'f', long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Only proxies of this namespace.
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// At most so many proxies are asked for their configuration and logs.
    #[arg(long, default_value_t = 50, value_name = "N")]
    proxies: usize,

    #[command(flatten)]
    access: Access,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let cluster = args.access.connect().await?;
    let version = cluster
        .client
        .apiserver_version()
        .await
        .context("asking the API server")?;
    let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let path = args
        .file
        .clone()
        .unwrap_or_else(|| format!("bug-report-{now}.tar.gz").into());
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    let mut archive = Archive {
        tar: tar::Builder::new(GzEncoder::new(file, Compression::default())),
        root: format!("bug-report-{now}"),
        missing: Vec::new(),
    };
    archive.json(
        "versions.json",
        Ok(serde_json::json!({ "meshctl": env!("CARGO_PKG_VERSION"), "kubernetes": version })),
    )?;
    archive.json("proxies.json", cluster.proxies().await)?;
    resources(&cluster, &mut archive).await?;
    mesh_pods(&cluster, &mut archive).await?;
    sidecars(&cluster, args, &mut archive).await?;
    let missing = archive.missing.join("\n");
    archive.add("missing.txt", missing.as_bytes())?;
    let missing = archive.missing.len();
    archive.tar.into_inner()?.finish()?.sync_all()?;
    print(&format!("{}\n", path.display()))?;
    if missing > 0 {
        eprintln!("{missing} parts could not be had: missing.txt in the archive says which, and why");
    }
    Ok(Verdict::Well)
}

/// The archive, and what could not be put into it.
struct Archive<W: Write> {
    tar: tar::Builder<W>,
    root: String,
    missing: Vec<String>,
}

impl<W: Write> Archive<W> {
    fn add(&mut self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0));
        self.tar
            .append_data(&mut header, format!("{}/{name}", self.root), content)
            .with_context(|| format!("writing {name}"))
    }

    fn json<T: Serialize>(&mut self, name: &str, value: anyhow::Result<T>) -> anyhow::Result<()> {
        self.bytes(name, value.and_then(|value| Ok(serde_json::to_vec_pretty(&value)?)))
    }

    fn bytes(&mut self, name: &str, content: anyhow::Result<impl AsRef<[u8]>>) -> anyhow::Result<()> {
        match content {
            Ok(content) => self.add(name, content.as_ref()),
            Err(error) => {
                self.missing.push(format!("{name}: {error:#}"));
                Ok(())
            }
        }
    }
}

/// Objects of the mesh and around it.
async fn resources<W: Write>(cluster: &Cluster, archive: &mut Archive<W>) -> anyhow::Result<()> {
    for kind in Kind::ALL {
        let objects = cluster.objects(*kind, None).await;
        archive.json(&format!("policy/{kind}.json"), objects.map(Option::unwrap_or_default))?;
    }
    let client = || cluster.client.clone();
    let all = ListParams::default();
    let of = &cluster.mesh_namespace;
    let namespaces: Api<Namespace> = Api::all(client());
    archive.json("cluster/namespaces.json", list(&namespaces, &all).await)?;
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client());
    archive.json("cluster/mutating-webhooks.json", list(&mutating, &all).await)?;
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client());
    archive.json("cluster/validating-webhooks.json", list(&validating, &all).await)?;
    let deployments: Api<Deployment> = Api::namespaced(client(), of);
    archive.json("mesh/deployments.json", list(&deployments, &all).await)?;
    let events: Api<Event> = Api::namespaced(client(), of);
    archive.json("mesh/events.json", list(&events, &all).await)
}

/// The control plane and the injector: their pods, logs and pages.
async fn mesh_pods<W: Write>(cluster: &Cluster, archive: &mut Archive<W>) -> anyhow::Result<()> {
    let of = &cluster.mesh_namespace;
    let pods = match cluster.pods(Some(of), "").await {
        Ok(pods) => pods,
        Err(error) => return archive.json::<()>("mesh/pods.json", Err(error)),
    };
    archive.json("mesh/pods.json", Ok(&pods))?;
    for pod in &pods {
        logs(cluster, pod, None, "mesh/logs", archive).await?;
    }
    let Ok(replicas) = cluster.control_planes().await else {
        return Ok(());
    };
    for replica in replicas {
        for page in ["/debug/syncz", "/debug/diagnostics", "/metrics"] {
            let name = page.rsplit('/').next().unwrap_or_default();
            let content = cluster.page(of, &replica, STATUS_PORT, page).await;
            archive.bytes(&format!("mesh/{replica}/{name}"), content)?;
        }
    }
    Ok(())
}

/// Proxies: what they hold and what they logged.
async fn sidecars<W: Write>(cluster: &Cluster, args: &Args, archive: &mut Archive<W>) -> anyhow::Result<()> {
    let pods = match cluster.pods(args.namespace.as_deref(), "").await {
        Ok(pods) => pods,
        Err(error) => return archive.json::<()>("proxies", Err(error)),
    };
    let meshed: Vec<_> = pods.iter().filter(|pod| has_sidecar(pod)).collect();
    if meshed.len() > args.proxies {
        archive.missing.push(format!(
            "{} of {} proxies are left out: see --namespace and --proxies",
            meshed.len() - args.proxies,
            meshed.len()
        ));
    }
    for pod in meshed.into_iter().take(args.proxies) {
        let (Some(name), Some(namespace)) = (&pod.metadata.name, &pod.metadata.namespace) else {
            continue;
        };
        let under = format!("proxies/{namespace}/{name}");
        archive.json(&format!("{under}/pod.json"), Ok(pod))?;
        if is_running(pod) {
            for page in ["/config_dump", "/stats/prometheus"] {
                let content = cluster.page(namespace, name, ADMIN_PORT, page).await;
                archive.bytes(
                    &format!("{under}/{}", page.trim_start_matches('/').replace('/', "-")),
                    content,
                )?;
            }
        }
        logs(cluster, pod, Some(PROXY_CONTAINER), &under, archive).await?;
    }
    Ok(())
}

async fn logs<W: Write>(
    cluster: &Cluster,
    pod: &Pod,
    only: Option<&str>,
    under: &str,
    archive: &mut Archive<W>,
) -> anyhow::Result<()> {
    let (Some(name), Some(namespace), Some(spec)) = (&pod.metadata.name, &pod.metadata.namespace, &pod.spec) else {
        return Ok(());
    };
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    for container in containers.filter(|container| only.is_none_or(|only| container.name == only)) {
        let params = LogParams {
            container: Some(container.name.clone()),
            tail_lines: Some(LOG_LINES),
            limit_bytes: Some(LOG_BYTES),
            timestamps: true,
            ..LogParams::default()
        };
        let content = api.logs(name, &params).await.map_err(Into::into);
        archive.bytes(&format!("{under}/{name}-{}.log", container.name), content)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn what_cannot_be_had_is_said_and_the_rest_is_kept() {
        let mut archive = Archive {
            tar: tar::Builder::new(Vec::new()),
            root: "r".to_owned(),
            missing: Vec::new(),
        };
        archive.json("a.json", Ok(1)).unwrap();
        archive.json::<()>("b.json", Err(anyhow::anyhow!("forbidden"))).unwrap();
        assert_eq!(archive.missing, ["b.json: forbidden"]);
        let bytes = archive.tar.into_inner().unwrap();
        let mut read = tar::Archive::new(&bytes[..]);
        let mut entry = read.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.path().unwrap().to_str(), Some("r/a.json"));
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        assert_eq!(text, "1");
    }
}
