//! Whether the mesh can be installed: may we make what it consists of, and who else is there.

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{ListParams, PostParams};
use mesh_api::crd::Kind;
use mesh_api::crd::definition::definition;
use serde_json::Value;

use super::outcome::{Outcome, hint};
use crate::cluster::{CONTROL_PLANE, Cluster, list};

/// What the chart consists of: group, resource, whether it is in the mesh's namespace.
const NEEDED: [(&str, &str, bool); 14] = [
    ("", "namespaces", false),
    ("apiextensions.k8s.io", "customresourcedefinitions", false),
    ("rbac.authorization.k8s.io", "clusterroles", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", false),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", false),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations", false),
    ("mesh.dev", "meshconfigs", false),
    ("rbac.authorization.k8s.io", "roles", true),
    ("rbac.authorization.k8s.io", "rolebindings", true),
    ("", "serviceaccounts", true),
    ("", "services", true),
    ("", "configmaps", true),
    ("", "secrets", true),
    ("apps", "deployments", true),
];

/// Whether the user may make what the chart consists of, and no mesh of ours is there yet.
pub(super) async fn permissions(cluster: &Cluster) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let installed = "no control plane of this mesh is installed yet";
    outcomes.push(match cluster.pods(None, CONTROL_PLANE).await {
        Ok(pods) if pods.is_empty() => Outcome::passed(installed),
        Ok(pods) => {
            let namespace = pods[0].metadata.namespace.as_deref().unwrap_or_default();
            Outcome::warning(
                installed,
                format!("one runs in namespace {namespace}: `helm upgrade` and `meshctl install` would upgrade it"),
                hint::INSTALLED,
            )
        }
        Err(error) => Outcome::failed(installed, format!("{error:#}"), hint::API),
    });
    let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    for (group, resource, namespaced) in NEEDED {
        let description = format!("can create {resource}");
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: Some(group.to_owned()),
                    resource: Some(resource.to_owned()),
                    namespace: namespaced.then(|| cluster.mesh_namespace.clone()),
                    verb: Some("create".to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        outcomes.push(match api.create(&PostParams::default(), &review).await {
            Ok(answer) if answer.status.as_ref().is_some_and(|status| status.allowed) => Outcome::passed(description),
            Ok(answer) => {
                let reason = answer.status.and_then(|status| status.reason).filter(|r| !r.is_empty());
                let reason = reason.unwrap_or_else(|| format!("you may not create {resource}"));
                Outcome::failed(description, reason, hint::PERMISSIONS)
            }
            Err(error) => Outcome::failed(description, error, hint::PERMISSIONS),
        });
    }
    outcomes.push(pod_security(cluster).await);
    outcomes
}

/// Namespaces that are to be injected must let an init container have NET_ADMIN.
async fn pod_security(cluster: &Cluster) -> Outcome {
    let description = "namespaces of the mesh allow NET_ADMIN for the init container";
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    match list(&api, &ListParams::default()).await {
        Ok(namespaces) => {
            let forbidding: Vec<_> = namespaces.iter().filter_map(forbids_net_admin).collect();
            Outcome::none_doubtful(description, &forbidding, hint::POD_SECURITY)
        }
        Err(error) => Outcome::failed(description, format!("{error:#}"), hint::API),
    }
}

fn forbids_net_admin(namespace: &Namespace) -> Option<String> {
    let labels = namespace.metadata.labels.as_ref()?;
    let injected = super::data_plane::is_labelled(labels);
    let level = labels.get("pod-security.kubernetes.io/enforce")?;
    let name = namespace.metadata.name.as_deref()?;
    (injected && matches!(level.as_str(), "baseline" | "restricted"))
        .then(|| format!("namespace {name} enforces pod security `{level}`, which refuses injected pods"))
}

/// What Istio or another mesh in the cluster means for this one.
pub(super) async fn other_meshes(cluster: &Cluster) -> Vec<Outcome> {
    vec![istio_webhook(cluster).await, foreign_crds(cluster).await]
}

async fn istio_webhook(cluster: &Cluster) -> Outcome {
    let description = "no other mesh injects sidecars";
    let api: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let webhooks = match list(&api, &ListParams::default()).await {
        Ok(webhooks) => webhooks,
        Err(error) => return Outcome::failed(description, format!("{error:#}"), hint::API),
    };
    let others: Vec<_> = webhooks
        .iter()
        .filter_map(|webhook| webhook.metadata.name.as_deref())
        .filter_map(|name| {
            if name.starts_with("istio-sidecar-injector") || name.starts_with("istio-revision-tag") {
                Some(format!(
                    "{name} is Istio's: beside it only `mesh.dev/inject=enabled` injects, not `istio-injection`"
                ))
            } else if name.starts_with("linkerd-proxy-injector") {
                Some(format!("{name} is Linkerd's: pods with its proxy are left alone"))
            } else {
                None
            }
        })
        .collect();
    Outcome::none_doubtful(description, &others, hint::OTHER_MESH)
}

/// CRDs that another mesh owns are left alone; fields of ours that they lack are dropped by the API server.
pub(super) async fn foreign_crds(cluster: &Cluster) -> Outcome {
    let description = "policy kinds have all fields of this mesh";
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let found = match list(&api, &ListParams::default()).await {
        Ok(found) => found,
        Err(error) => return Outcome::failed(description, format!("{error:#}"), hint::API),
    };
    let mut missing = Vec::new();
    for kind in Kind::ALL {
        let ours = definition(*kind);
        let Some(name) = ours.pointer("/metadata/name").and_then(Value::as_str) else {
            continue;
        };
        let Some(theirs) = found.iter().find(|crd| crd.metadata.name.as_deref() == Some(name)) else {
            continue;
        };
        let Ok(theirs) = serde_json::to_value(theirs) else {
            continue;
        };
        let fields = missing_fields(&ours, &theirs);
        if !fields.is_empty() {
            missing.push(format!("{name} lacks {}", fields.join(", ")));
        }
    }
    Outcome::none_doubtful(description, &missing, hint::ISTIO_CRDS)
}

/// Fields of our schema of the first version that no version of theirs has.
fn missing_fields(ours: &Value, theirs: &Value) -> Vec<String> {
    const SPEC: &str = "/schema/openAPIV3Schema/properties/spec";
    let versions = |crd: &Value| crd.pointer("/spec/versions").and_then(Value::as_array).cloned();
    let Some(spec) = versions(ours).and_then(|list| list.first()?.pointer(SPEC).cloned()) else {
        return Vec::new();
    };
    let theirs: Vec<_> = versions(theirs)
        .into_iter()
        .flatten()
        .filter_map(|version| version.pointer(SPEC).cloned())
        .collect();
    let mut missing = Vec::new();
    compare(&spec, &theirs.iter().collect::<Vec<_>>(), "spec", &mut missing);
    missing
}

fn compare(ours: &Value, theirs: &[&Value], path: &str, missing: &mut Vec<String>) {
    let open = |schema: &&Value| schema["x-kubernetes-preserve-unknown-fields"] == true;
    if theirs.iter().any(open) {
        return;
    }
    if let Some(items) = ours.get("items") {
        let theirs: Vec<_> = theirs.iter().filter_map(|schema| schema.get("items")).collect();
        compare(items, &theirs, &format!("{path}[]"), missing);
    }
    for (name, field) in ours["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let theirs: Vec<_> = theirs
            .iter()
            .filter_map(|schema| schema["properties"].get(name))
            .collect();
        if theirs.is_empty() {
            missing.push(path);
        } else {
            compare(field, &theirs, &path, missing);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_that_a_foreign_definition_lacks_are_named() {
        let ours = definition(Kind::DestinationRule);
        assert_eq!(missing_fields(&ours, &ours), Vec::<String>::new());
        let mut theirs = ours.clone();
        for version in theirs["spec"]["versions"].as_array_mut().unwrap() {
            let spec = &mut version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
            let policy = spec["trafficPolicy"]["properties"].as_object_mut().unwrap();
            assert!(policy.shift_remove("retryPolicy").is_some());
        }
        assert_eq!(missing_fields(&ours, &theirs), ["spec.trafficPolicy.retryPolicy"]);
    }

    #[test]
    fn namespaces_that_refuse_injected_pods_are_named() {
        let namespace = |labels: Value| {
            serde_json::from_value::<Namespace>(json!({ "metadata": { "name": "shop", "labels": labels } })).unwrap()
        };
        let enforced = "pod-security.kubernetes.io/enforce";
        let both = namespace(json!({ "istio-injection": "enabled", enforced: "restricted" }));
        assert!(forbids_net_admin(&both).is_some());
        assert!(forbids_net_admin(&namespace(json!({ enforced: "restricted" }))).is_none());
        assert!(
            forbids_net_admin(&namespace(
                json!({ "mesh.dev/inject": "enabled", enforced: "privileged" })
            ))
            .is_none()
        );
    }
}
