//! Whether pods that should have a proxy have one, and whether proxies act on what the control plane says.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use kube::api::ListParams;
use mesh_api::source::Severity;
use mesh_control::discovery::SyncState;

use super::outcome::{Outcome, hint};
use crate::cluster::{Cluster, has_sidecar, is_ready, is_running, list};
use crate::cmd::analyze;

/// Whether a namespace asks for sidecars.
pub(super) fn is_labelled(labels: &BTreeMap<String, String>) -> bool {
    let is = |label: &str| labels.get(label).is_some_and(|value| value == "enabled");
    is("istio-injection") || is("mesh.dev/inject")
}

/// Whether a pod asks for none.
fn opted_out(pod: &Pod) -> bool {
    const NAMES: [&str; 2] = ["sidecar.istio.io/inject", "mesh.dev/inject"];
    let says_no = |map: &Option<BTreeMap<String, String>>| {
        let map = map.iter().flatten();
        map.into_iter()
            .any(|(name, value)| NAMES.contains(&name.as_str()) && matches!(value.as_str(), "false" | "disabled"))
    };
    let host_network = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    host_network || says_no(&pod.metadata.labels) || says_no(&pod.metadata.annotations)
}

fn name_of(pod: &Pod) -> String {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}.{}", part(&pod.metadata.name), part(&pod.metadata.namespace))
}

/// Pods and their proxies.
pub(super) async fn proxies(cluster: &Cluster) -> Vec<Outcome> {
    let (labelled, pods) = match read(cluster).await {
        Ok(read) => read,
        Err(error) => return vec![Outcome::failed("pods can be listed", format!("{error:#}"), hint::API)],
    };
    let running: Vec<_> = pods.iter().filter(|pod| is_running(pod)).collect();
    let bare: Vec<_> = running
        .iter()
        .filter(|pod| pod.metadata.namespace.as_ref().is_some_and(|of| labelled.contains(of)))
        .filter(|pod| !has_sidecar(pod) && !opted_out(pod))
        .map(|pod| format!("{} has no sidecar: restart it", name_of(pod)))
        .collect();
    let meshed: Vec<_> = running.iter().filter(|pod| has_sidecar(pod)).collect();
    let unready: Vec<_> = meshed
        .iter()
        .filter(|pod| !is_ready(pod))
        .map(|pod| name_of(pod))
        .collect();
    let mut outcomes = vec![
        Outcome::none_doubtful("pods of injected namespaces have a sidecar", &bare, hint::NOT_INJECTED),
        Outcome::none_wrong("pods with a sidecar are ready", &unready, hint::PROXIES),
    ];
    let connected = match cluster.proxies().await {
        Ok(connected) => connected,
        Err(error) => {
            let reason = format!("{error:#}");
            outcomes.push(Outcome::failed(
                "proxies are connected to the control plane",
                reason,
                hint::NOT_SYNCED,
            ));
            return outcomes;
        }
    };
    let names: BTreeSet<_> = connected.iter().map(|proxy| proxy.name.as_str()).collect();
    let missing: Vec<_> = meshed
        .iter()
        .map(|pod| name_of(pod))
        .filter(|name| !names.contains(name.as_str()))
        .map(|name| format!("{name} is not connected: it acts on what it was last told"))
        .collect();
    let described = "proxies are connected to the control plane";
    outcomes.push(Outcome::none_wrong(described, &missing, hint::NOT_SYNCED));
    let refused: Vec<_> = connected
        .iter()
        .flat_map(|proxy| {
            proxy
                .types
                .iter()
                .map(move |(kind, status)| (&proxy.name, kind, status))
        })
        .filter(|(_, _, status)| status.state == SyncState::Error)
        .map(|(name, kind, status)| format!("{name} refused {kind}: {}", status.error.as_deref().unwrap_or("")))
        .collect();
    outcomes.push(Outcome::none_wrong(
        "proxies accept what they are told",
        &refused,
        hint::NOT_SYNCED,
    ));
    let own = env!("CARGO_PKG_VERSION");
    let old: Vec<_> = connected
        .iter()
        .filter(|proxy| proxy.version != own)
        .map(|proxy| {
            format!(
                "{} is {}, meshctl is {own}: restart it after an upgrade",
                proxy.name, proxy.version
            )
        })
        .collect();
    outcomes.push(Outcome::none_doubtful(
        "proxies are of this version",
        &old,
        hint::VERSIONS,
    ));
    outcomes
}

async fn read(cluster: &Cluster) -> anyhow::Result<(BTreeSet<String>, Vec<Pod>)> {
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let labelled = list(&namespaces, &ListParams::default())
        .await?
        .into_iter()
        .filter(|namespace| namespace.metadata.labels.as_ref().is_some_and(is_labelled))
        .filter_map(|namespace| namespace.metadata.name)
        .collect();
    Ok((labelled, cluster.pods(None, "").await?))
}

/// What `meshctl analyze` finds.
pub(super) async fn policy(cluster: &Cluster) -> Vec<Outcome> {
    let description = "policy has no errors";
    match analyze::of_cluster(cluster).await {
        Ok(diagnostics) => {
            let lines = |severity| -> Vec<String> {
                let found = diagnostics.iter().filter(|d| d.severity == severity);
                found
                    .map(|d| format!("{}: {}: {}", d.file, d.field, d.message))
                    .collect()
            };
            let warnings = lines(Severity::Warning);
            vec![
                Outcome::none_wrong(description, &lines(Severity::Error), hint::POLICY),
                Outcome::none_doubtful("policy has no warnings", &warnings, hint::POLICY),
            ]
        }
        Err(error) => vec![Outcome::failed(description, format!("{error:#}"), hint::API)],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_and_annotations_say_who_is_in_the_mesh() {
        let labels = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        assert!(is_labelled(&labels("istio-injection", "enabled")));
        assert!(is_labelled(&labels("mesh.dev/inject", "enabled")));
        assert!(!is_labelled(&labels("istio-injection", "disabled")));
        let pod = |metadata: serde_json::Value, spec: serde_json::Value| -> Pod {
            serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
        };
        let plain = json!({ "containers": [] });
        assert!(opted_out(&pod(
            json!({ "labels": { "sidecar.istio.io/inject": "false" } }),
            plain.clone()
        )));
        assert!(opted_out(&pod(
            json!({}),
            json!({ "containers": [], "hostNetwork": true })
        )));
        assert!(!opted_out(&pod(json!({}), plain)));
    }
}
