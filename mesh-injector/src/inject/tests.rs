//! The tables of injection: pods in YAML come in, decisions and the parts of the new pod that matter go out.

mod decisions;
mod offline;
mod pods;
mod probes;

use serde_json::Value;

use super::*;

/// A pod of one container, in a namespace that is in the mesh.
pub(super) const SHOP: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  generateName: shop-7d4b9-
  labels: {app: shop, version: v2, pod-template-hash: 7d4b9}
spec:
  containers:
  - name: shop
    image: shop:1
    ports: [{name: http, containerPort: 8080}]
"#;

pub(super) fn pod(yaml: &str) -> Pod {
    serde_saphyr::from_str(yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}"))
}

/// A pod with annotations.
pub(super) fn annotated(annotations: &[(&str, &str)]) -> Pod {
    let mut pod = pod(SHOP);
    pod.metadata.annotations = Some(
        annotations
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
    );
    pod
}

pub(super) fn labelled_namespace() -> Surroundings {
    Surroundings {
        namespace: "default".to_owned(),
        namespace_labels: [(ISTIO_INJECTION.to_owned(), "enabled".to_owned())].into(),
        native_sidecars: true,
        ..Surroundings::default()
    }
}

/// The pod that comes out, with its warnings; the patch is applied to what came in, as the API server does.
pub(super) fn injected(pod: &Pod, around: &Surroundings, config: &InjectorConfig) -> (Value, Vec<String>) {
    match inject(pod, around, config) {
        Ok(Outcome::Injected { patch, warnings, .. }) => {
            let mut value = serde_json::to_value(pod).unwrap();
            json_patch::patch(&mut value, &patch).unwrap();
            (value, warnings)
        }
        other => panic!("not injected: {other:?}"),
    }
}

/// As [`labelled_namespace`], where native sidecars cannot run.
pub(super) fn classic() -> Surroundings {
    Surroundings {
        native_sidecars: false,
        ..labelled_namespace()
    }
}

/// A container or init container by name.
pub(super) fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    ["initContainers", "containers"]
        .iter()
        .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
        .find(|container| container["name"] == name)
        .unwrap_or_else(|| panic!("no container {name} in {pod:#}"))
}

pub(super) fn names(list: &Value) -> Vec<&str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| item["name"].as_str())
        .collect()
}

/// A variable of the proxy.
pub(super) fn env<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    container(pod, PROXY_CONTAINER)["env"]
        .as_array()?
        .iter()
        .find(|variable| variable["name"] == name)?["value"]
        .as_str()
}
