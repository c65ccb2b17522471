//! `meshctl proxy-status`: which proxies are connected, and whether they act on what they should.

use http::Uri;
use mesh_api::wire::ResourceType;
use mesh_control::discovery::{ProxyStatus, SyncState, TypeStatus};

use super::Verdict;
use crate::cluster::{Access, Cluster};
use crate::fetch::Pages;
use crate::output::{Output, age, print, rendered, table};

/// Columns, in the order in which people look for them.
const TYPES: [ResourceType; 5] = [
    ResourceType::Mesh,
    ResourceType::Inbound,
    ResourceType::Destination,
    ResourceType::EndpointSlice,
    ResourceType::Workload,
];

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this proxy, such as `reviews-v1.default`.
    #[arg(value_name = "WORKLOAD")]
    workload: Option<String>,

    #[command(flatten)]
    control_plane: ControlPlane,

    #[command(flatten)]
    output: Output,
}

/// Where the control plane is asked.
#[derive(Debug, clap::Args)]
pub(super) struct ControlPlane {
    /// Status address of a control plane outside a cluster; without it every replica in the cluster is asked, and where
    /// there is no kubeconfig http://127.0.0.1:15014.
    #[arg(long, env = "MESH_STATUS_URL", value_name = "URL")]
    control_plane: Option<Uri>,

    #[command(flatten)]
    access: Access,
}

/// Who is asked.
pub(super) enum Asked {
    /// One control plane, by address.
    Address(Uri),
    /// Every replica of a cluster.
    Cluster(Cluster),
}

impl ControlPlane {
    /// Finds out who is to be asked.
    pub(super) async fn reach(&self) -> anyhow::Result<Asked> {
        match &self.control_plane {
            Some(address) => Ok(Asked::Address(address.clone())),
            None if self.access.is_configured() => Ok(Asked::Cluster(self.access.connect().await?)),
            None => Ok(Asked::Address(Uri::from_static("http://127.0.0.1:15014"))),
        }
    }
}

impl Asked {
    /// Connected proxies, by name.
    pub(super) async fn proxies(&self, pages: &Pages) -> anyhow::Result<Vec<ProxyStatus>> {
        match self {
            Self::Address(address) => Ok(serde_json::from_slice(&pages.get(address, "/debug/syncz").await?)?),
            Self::Cluster(cluster) => cluster.proxies().await,
        }
    }
}

pub(super) async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let mut proxies = args.control_plane.reach().await?.proxies(&Pages::default()).await?;
    if let Some(workload) = &args.workload {
        let chosen = choose(&proxies, workload)?.clone();
        proxies = vec![chosen];
    }
    if !args.output.structured(&proxies)? {
        print(&report(&proxies))?;
    }
    Ok(Verdict::Well)
}

/// The proxy of a workload given as `name.namespace`, or by its name alone where that is enough.
pub(super) fn choose<'a>(proxies: &'a [ProxyStatus], workload: &str) -> anyhow::Result<&'a ProxyStatus> {
    if let Some(exact) = proxies.iter().find(|proxy| proxy.name == workload) {
        return Ok(exact);
    }
    let by_name = |proxy: &&ProxyStatus| proxy.name.rsplit_once('.').is_some_and(|(name, _)| name == workload);
    let mut found = proxies.iter().filter(by_name);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (Some(one), Some(other)) => {
            anyhow::bail!("`{workload}` may be {} or {}: name its namespace", one.name, other.name)
        }
        (None, _) => {
            let names: Vec<_> = proxies.iter().map(|proxy| proxy.name.as_str()).collect();
            anyhow::bail!(
                "no proxy of `{workload}` is connected; connected are: {}",
                names.join(", ")
            )
        }
    }
}

fn report(proxies: &[ProxyStatus]) -> String {
    let mut header = vec!["NAME".to_owned(), "VERSION".to_owned()];
    header.extend(TYPES.iter().map(|kind| kind.label().to_uppercase()));
    header.push("CONTROL PLANE".to_owned());
    let mut rows = table(header);
    let mut errors = String::new();
    for proxy in proxies {
        let mut row = vec![proxy.name.clone(), proxy.version.clone()];
        for kind in TYPES {
            let status = proxy.types.get(kind.label());
            row.push(status.map_or_else(|| "NOT SENT".to_owned(), cell));
            if let Some(error) = status.and_then(|status| status.error.as_deref()) {
                errors += &format!("\n{} refused {}: {error}\n", proxy.name, kind.label());
            }
        }
        row.push(proxy.control_plane.clone());
        rows.add_row(row);
    }
    rendered(&rows) + &errors
}

/// `SYNCED (3m)`.
fn cell(status: &TypeStatus) -> String {
    let state = match status.state {
        SyncState::Synced => "SYNCED",
        SyncState::Stale => "STALE",
        SyncState::NotSent => "NOT SENT",
        SyncState::Error => "ERROR",
    };
    match status.age_seconds {
        Some(seconds) => format!("{state} ({})", age(seconds)),
        None => state.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn proxy(name: &str) -> ProxyStatus {
        let status = |state, error: Option<&str>| TypeStatus {
            state,
            age_seconds: Some(180),
            subscribed: 1,
            nonce: None,
            generation: None,
            error: error.map(str::to_owned),
        };
        ProxyStatus {
            name: name.to_owned(),
            identity: "spiffe://cluster.local/ns/default/sa/a".to_owned(),
            version: "0.1.0".to_owned(),
            address: None,
            admin: None,
            control_plane: "mesh-control".to_owned(),
            connected_seconds: 5,
            types: BTreeMap::from([
                ("mesh".to_owned(), status(SyncState::Synced, None)),
                (
                    "inbound".to_owned(),
                    status(SyncState::Error, Some("weight is negative")),
                ),
            ]),
        }
    }

    #[test]
    fn states_and_refusals_are_shown() {
        let report = report(&[proxy("reviews-v1.default")]);
        let words: Vec<_> = report.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(
            words,
            [
                "NAME",
                "VERSION",
                "MESH",
                "INBOUND",
                "DESTINATIONS",
                "ENDPOINTS",
                "WORKLOADS",
                "CONTROL",
                "PLANE"
            ]
        );
        assert!(report.contains("SYNCED (3m)   ERROR (3m)   NOT SENT"), "{report}");
        assert!(
            report.ends_with("reviews-v1.default refused inbound: weight is negative\n"),
            "{report}"
        );
    }

    #[test]
    fn a_workload_may_be_named_without_namespace() {
        let proxies = [proxy("a.one"), proxy("a.two"), proxy("b.one")];
        assert_eq!(choose(&proxies, "b").unwrap().name, "b.one");
        assert_eq!(choose(&proxies, "a.two").unwrap().name, "a.two");
        assert!(
            choose(&proxies, "a")
                .unwrap_err()
                .to_string()
                .contains("a.one or a.two")
        );
        assert!(choose(&proxies, "c").unwrap_err().to_string().contains("b.one"));
    }
}
