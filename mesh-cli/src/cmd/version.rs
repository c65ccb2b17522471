//! `meshctl version`: of meshctl, and of what runs in the cluster.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Verdict;
use crate::cluster::{Access, Cluster, STATUS_PORT};
use crate::output::{Output, print};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only of meshctl itself: no cluster is asked.
    #[arg(long)]
    client: bool,

    #[command(flatten)]
    access: Access,

    #[command(flatten)]
    output: Output,
}

/// Versions that run, and how many of each.
#[derive(Default)]
struct Running {
    control_planes: BTreeMap<String, usize>,
    proxies: BTreeMap<String, usize>,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let client = env!("CARGO_PKG_VERSION");
    let mut shown = json!({ "client": client });
    let mut text = format!("meshctl {client}\n");
    if !args.client && args.access.is_configured() {
        let asked = async { running(&args.access.connect().await?).await };
        match asked.await {
            Ok(running) => {
                shown["controlPlane"] = json!(running.control_planes);
                shown["dataPlane"] = json!(running.proxies);
                text += &format!("control plane {}\n", counted(&running.control_planes, "replica"));
                text += &format!("data plane {}\n", counted(&running.proxies, "proxy"));
            }
            // Which version meshctl has must not depend on a cluster.
            Err(error) => {
                shown["error"] = Value::String(format!("{error:#}"));
                text += &format!("control plane unknown: {error:#}\n");
            }
        }
    }
    if !args.output.structured(&shown)? {
        print(&text)?;
    }
    Ok(Verdict::Well)
}

async fn running(cluster: &Cluster) -> anyhow::Result<Running> {
    let mut running = Running::default();
    for replica in cluster.control_planes().await? {
        let page = cluster
            .page(&cluster.mesh_namespace, &replica, STATUS_PORT, "/version")
            .await?;
        let version = serde_json::from_slice::<Value>(&page)?["version"]
            .as_str()
            .map(str::to_owned);
        *running.control_planes.entry(version.unwrap_or_default()).or_default() += 1;
    }
    for proxy in cluster.proxies().await? {
        *running.proxies.entry(proxy.version).or_default() += 1;
    }
    Ok(running)
}

/// `0.1.0 (2 replicas), 0.2.0 (1 replica)`.
fn counted(versions: &BTreeMap<String, usize>, noun: &str) -> String {
    if versions.is_empty() {
        return "none".to_owned();
    }
    let plural = match noun.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{noun}s"),
    };
    let each = versions.iter().map(|(version, n)| {
        let noun = if *n == 1 { noun } else { &plural };
        format!("{version} ({n} {noun})")
    });
    each.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_counted() {
        let versions = BTreeMap::from([("0.1.0".to_owned(), 2), ("0.2.0".to_owned(), 1)]);
        assert_eq!(counted(&versions, "proxy"), "0.1.0 (2 proxies), 0.2.0 (1 proxy)");
        assert_eq!(counted(&BTreeMap::new(), "replica"), "none");
    }
}
