//! What a pod belongs to, from what is known when it is made: the names that metrics and the proxy's log give it.

use k8s_openapi::api::core::v1::Pod;

/// The longest value of a label.
const MAX_LABEL: usize = 63;

/// The service and version that metrics name, as Istio derives them.
pub fn canonical(pod: &Pod) -> (String, String) {
    let label = |name: &str| {
        let value = pod.metadata.labels.as_ref()?.get(name)?;
        (!value.is_empty()).then(|| value.clone())
    };
    let name = label("service.istio.io/canonical-name")
        .or_else(|| label("app.kubernetes.io/name"))
        .or_else(|| label("app"))
        .unwrap_or_else(|| as_label(&workload(pod)));
    let revision = label("service.istio.io/canonical-revision")
        .or_else(|| label("app.kubernetes.io/version"))
        .or_else(|| label("version"))
        .unwrap_or_else(|| "latest".to_owned());
    (name, revision)
}

/// The Deployment, CronJob or other controller that a pod comes from; its own name where it has none.
pub fn workload(pod: &Pod) -> String {
    let metadata = &pod.metadata;
    let owner = metadata
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true));
    match owner {
        Some(owner) if owner.kind == "ReplicaSet" => {
            let hash = metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get("pod-template-hash"));
            hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'))
                .unwrap_or(&owner.name)
                .to_owned()
        }
        // The Jobs of a CronJob end in the minute they were due.
        Some(owner) if owner.kind == "Job" => match owner.name.rsplit_once('-') {
            Some((name, due)) if due.len() >= 8 && due.bytes().all(|b| b.is_ascii_digit()) => name.to_owned(),
            _ => owner.name.clone(),
        },
        Some(owner) => owner.name.clone(),
        None => metadata
            .name
            .as_deref()
            .or(metadata.generate_name.as_deref().map(|name| name.trim_end_matches('-')))
            .unwrap_or_default()
            .to_owned(),
    }
}

/// Whether a pod is meant to end by itself.
pub fn completes(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.restart_policy.as_deref())
        .is_some_and(|policy| policy != "Always")
}

fn as_label(name: &str) -> String {
    let cut: String = name.chars().take(MAX_LABEL).collect();
    cut.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}
