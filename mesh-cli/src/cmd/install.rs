//! `meshctl install` and `meshctl uninstall`: the chart that meshctl carries, through helm, and waiting until the mesh
//! is ready.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;

use super::Verdict;
use crate::chart::{Chart, helm};
use crate::cluster::{Access, Cluster};

/// Deployments that have to be available.
const DEPLOYMENTS: [&str; 2] = ["mesh-control", "mesh-injector"];
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(super) struct InstallArgs {
    /// Prints the manifests and changes nothing; no cluster is needed.
    #[arg(long)]
    dry_run: bool,

    /// A value of the chart, as helm takes it. Repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// A file with values of the chart. Repeatable.
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    values: Vec<PathBuf>,

    #[command(flatten)]
    release: Release,

    /// How long to wait until the mesh is ready; 0s does not wait.
    #[arg(long, default_value = "5m", value_name = "DURATION", value_parser = mesh_control::config::parse_duration)]
    wait: Duration,

    #[command(flatten)]
    access: Access,
}

#[derive(Debug, clap::Args)]
pub(super) struct UninstallArgs {
    #[command(flatten)]
    release: Release,

    #[command(flatten)]
    access: Access,
}

#[derive(Debug, clap::Args)]
struct Release {
    /// Name of the helm release.
    #[arg(long = "release", default_value = "mesh", value_name = "NAME")]
    name: String,
}

pub(super) async fn install(args: &InstallArgs) -> anyhow::Result<Verdict> {
    let chart = Chart::write()?;
    let command: &[&str] = if args.dry_run {
        &["template"]
    } else {
        &["upgrade", "--install"]
    };
    let mut arguments: Vec<String> = command.iter().map(|part| (*part).to_owned()).collect();
    arguments.extend([args.release.name.clone(), chart.path().display().to_string()]);
    arguments.extend(["--namespace".to_owned(), args.access.mesh_namespace.clone()]);
    if !args.dry_run {
        arguments.push("--create-namespace".to_owned());
        arguments.extend(args.access.arguments("--kube-context"));
    }
    for value in &args.set {
        arguments.extend(["--set".to_owned(), value.clone()]);
    }
    for file in &args.values {
        arguments.extend(["--values".to_owned(), file.display().to_string()]);
    }
    helm(&arguments).await?;
    if args.dry_run || args.wait.is_zero() {
        return Ok(Verdict::Well);
    }
    ready(&args.access.connect().await?, args.wait).await?;
    eprintln!("The mesh is ready. Next: kubectl label namespace default mesh.dev/inject=enabled, and meshctl check.");
    Ok(Verdict::Well)
}

pub(super) async fn uninstall(args: &UninstallArgs) -> anyhow::Result<Verdict> {
    let mut arguments = vec!["uninstall".to_owned(), args.release.name.clone()];
    arguments.extend(["--namespace".to_owned(), args.access.mesh_namespace.clone()]);
    arguments.extend(["--wait".to_owned(), "--timeout".to_owned(), "5m".to_owned()]);
    arguments.extend(args.access.arguments("--kube-context"));
    helm(&arguments).await?;
    eprintln!(
        "The mesh is gone; policy objects and their kinds are kept, and pods go on with their sidecars until they are \
         restarted."
    );
    Ok(Verdict::Well)
}

/// Waits until every deployment is available, and says how far each is.
async fn ready(cluster: &Cluster, limit: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), &cluster.mesh_namespace);
    for name in DEPLOYMENTS {
        let bar = ProgressBar::new_spinner();
        bar.set_style(ProgressStyle::with_template("{spinner} {prefix}: {msg} ({elapsed})")?);
        bar.set_prefix(name);
        bar.enable_steady_tick(PAUSE / 4);
        loop {
            let (available, wanted) = match api.get_opt(name).await? {
                Some(deployment) => replicas(&deployment),
                None => (0, 1),
            };
            bar.set_message(format!("{available} of {wanted} replicas are available"));
            if available >= wanted {
                break bar.finish();
            }
            if Instant::now() > deadline {
                bar.abandon();
                anyhow::bail!(
                    "{name} is not available after {limit:?}: `kubectl -n {} describe pods -l app={name}` and `meshctl check` say why",
                    cluster.mesh_namespace
                );
            }
            tokio::time::sleep(PAUSE).await;
        }
        if bar.is_hidden() {
            eprintln!("{name} is available");
        }
    }
    Ok(())
}

/// Available and up to date, and wanted. What the controller has not looked at yet is not available.
fn replicas(deployment: &Deployment) -> (i32, i32) {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let Some(status) = &deployment.status else {
        return (0, wanted);
    };
    if status.observed_generation < deployment.metadata.generation {
        return (0, wanted);
    }
    let available = status.available_replicas.unwrap_or(0);
    (available.min(status.updated_replicas.unwrap_or(0)), wanted)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn old_replicas_do_not_count() {
        let deployment = |generation: i64, updated: i32| -> Deployment {
            serde_json::from_value(json!({
                "metadata": { "generation": 2 },
                "spec": { "replicas": 2, "selector": {}, "template": {} },
                "status": { "observedGeneration": generation, "availableReplicas": 2, "updatedReplicas": updated },
            }))
            .unwrap()
        };
        assert_eq!(replicas(&deployment(1, 2)), (0, 2));
        assert_eq!(replicas(&deployment(2, 1)), (1, 2));
        assert_eq!(replicas(&deployment(2, 2)), (2, 2));
    }
}
