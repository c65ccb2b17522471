//! What a cluster holds, as text with positions: the API server's objects are written out and read again as files are,
//! so that findings point at a line that can be shown.

use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{DynamicObject, ListParams};
use mesh_api::crd::Kind;
use mesh_api::source::{self, Diagnostic, FieldPath, Severity};
use serde_json::{Value, json};

use super::Read;
use crate::cluster::{Access, Cluster, list};

/// Where Istio keeps what holds for its whole mesh.
const ISTIO_ROOT: &str = "istio-system";
/// Kinds that hold for the whole mesh where they stand in the root namespace.
const MESH_WIDE: [Kind; 5] = [
    Kind::PeerAuthentication,
    Kind::AuthorizationPolicy,
    Kind::RequestAuthentication,
    Kind::Telemetry,
    Kind::Sidecar,
];

/// Reads all policy of a cluster, or of one namespace of it.
pub(in crate::cmd) async fn read(access: &Access, namespace: Option<&str>) -> anyhow::Result<Read> {
    read_from(&access.connect().await?, namespace).await
}

/// Reads all policy of a cluster, or of one namespace of it.
pub(in crate::cmd) async fn read_from(cluster: &Cluster, namespace: Option<&str>) -> anyhow::Result<Read> {
    let mut read = Read::default();
    let mut root = cluster.mesh_namespace.clone();
    let mut stray = Vec::new();
    for kind in Kind::ALL {
        for object in cluster.objects(*kind, namespace).await?.unwrap_or_default() {
            let of = object.metadata.namespace.clone().unwrap_or_default();
            if *kind == Kind::MeshConfig
                && let Some(named) = object.data.pointer("/spec/rootNamespace").and_then(Value::as_str)
            {
                root = named.to_owned();
            }
            let name = title(*kind, &of, &object);
            if MESH_WIDE.contains(kind) && of == ISTIO_ROOT && !has_selector(&object) {
                stray.push((name.clone(), *kind));
            }
            read.take(&name, written(object)?.as_bytes(), &of);
        }
    }
    if root != ISTIO_ROOT {
        let of_istio = stray.into_iter().map(|(file, kind)| not_mesh_wide(&file, kind, &root));
        read.diagnostics.extend(of_istio);
    }
    for service in services(cluster, namespace).await? {
        let known = source::read("", service.to_string().as_bytes(), "");
        read.known.extend(known.objects);
    }
    Ok(read)
}

fn title(kind: Kind, namespace: &str, object: &DynamicObject) -> String {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    if namespace.is_empty() {
        format!("{kind} {name}")
    } else {
        format!("{kind} {namespace}/{name}")
    }
}

/// The object without what nobody wrote.
fn written(mut object: DynamicObject) -> anyhow::Result<String> {
    object.metadata.managed_fields = None;
    if let Some(annotations) = &mut object.metadata.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    if let Some(fields) = object.data.as_object_mut() {
        fields.shift_remove("status");
    }
    Ok(serde_saphyr::to_string(&serde_json::to_value(&object)?)?)
}

fn has_selector(object: &DynamicObject) -> bool {
    [
        "/spec/selector",
        "/spec/targetRefs",
        "/spec/targetRef",
        "/spec/workloadSelector",
    ]
    .iter()
    .any(|at| object.data.pointer(at).is_some_and(|value| !value.is_null()))
}

/// A policy that Istio would apply to the whole mesh, and this mesh to one namespace only.
fn not_mesh_wide(file: &str, kind: Kind, root: &str) -> Diagnostic {
    let (_, name) = file.split_once('/').unwrap_or(("", file));
    Diagnostic {
        severity: Severity::Error,
        file: file.into(),
        line: 1,
        column: 1,
        field: FieldPath::new("metadata").field("namespace"),
        object: Some(mesh_api::crd::ObjectRef {
            kind,
            namespace: ISTIO_ROOT.to_owned(),
            name: name.to_owned(),
        }),
        code: "not-the-root-namespace",
        message: format!(
            "under Istio this holds for the whole mesh, but the root namespace of this mesh is `{root}`: set \
             spec.rootNamespace of the MeshConfig to `{ISTIO_ROOT}`, or move the object to `{root}`"
        ),
    }
}

/// Services as ServiceEntries, so that hosts of policies are found.
async fn services(cluster: &Cluster, namespace: Option<&str>) -> anyhow::Result<Vec<Value>> {
    // All of them: a policy may name a service of another namespace.
    let api: Api<Service> = Api::all(cluster.client.clone());
    let services = match list(&api, &ListParams::default()).await {
        Ok(services) => services,
        // Who may see one namespace only gets the findings that this allows.
        Err(_) if namespace.is_some() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let entry = |service: Service| {
        let name = service.metadata.name?;
        let namespace = service.metadata.namespace?;
        let ports = service.spec?.ports.unwrap_or_default();
        let ports = ports.iter().map(|port| {
            let name = port.name.clone().unwrap_or_else(|| format!("port-{}", port.port));
            json!({ "number": port.port, "name": name })
        });
        Some(json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "ServiceEntry",
            "metadata": { "name": name, "namespace": namespace },
            "spec": {
                "hosts": [format!("{name}.{namespace}.svc.cluster.local")],
                "ports": ports.collect::<Vec<_>>(),
                "resolution": "STATIC",
            },
        }))
    };
    Ok(services.into_iter().filter_map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": { "name": "default", "namespace": "istio-system", "managedFields": [] },
            "spec": spec, "status": { "conditions": [] },
        }))
        .unwrap()
    }

    #[test]
    fn what_nobody_wrote_is_left_out() {
        let text = written(policy(json!({ "mtls": { "mode": "STRICT" } }))).unwrap();
        assert!(text.contains("mode: STRICT"), "{text}");
        assert!(!text.contains("status") && !text.contains("managedFields"), "{text}");
        let contents = source::read("PeerAuthentication istio-system/default", text.as_bytes(), "");
        assert_eq!(contents.objects.len(), 1, "{:?}", contents.diagnostics);
    }

    #[test]
    fn only_objects_without_selector_hold_for_a_mesh() {
        assert!(!has_selector(&policy(json!({}))));
        assert!(has_selector(&policy(
            json!({ "selector": { "matchLabels": { "app": "a" } } })
        )));
    }

    #[test]
    fn a_stray_policy_is_an_error_that_says_how_to_mend_it() {
        let finding = not_mesh_wide(
            "PeerAuthentication istio-system/default",
            Kind::PeerAuthentication,
            "mesh-system",
        );
        assert_eq!(finding.object.unwrap().name, "default");
        assert!(finding.message.contains("spec.rootNamespace"));
    }
}
