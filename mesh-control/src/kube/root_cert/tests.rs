use mesh_api::identity::TrustDomain;
use serde_json::json;
use tokio::task::JoinHandle;

use super::*;
use crate::ca::{Files, Lifetimes};
use crate::kube::fake::FakeApi;

fn path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps/mesh-ca-root-cert")
}

fn namespace(api: &FakeApi, name: &str, labels: serde_json::Value) {
    let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "labels": labels } });
    api.put(&format!("/api/v1/namespaces/{name}"), object);
}

fn pod(api: &FakeApi, namespace: &str, name: &str, labels: serde_json::Value) {
    let object = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "labels": labels } });
    api.put(&format!("/api/v1/namespaces/{namespace}/pods/{name}"), object);
}

fn files() -> Files {
    Files::new_root("a test", "cluster.local").unwrap()
}

fn start(api: &FakeApi) -> (Arc<Authority>, JoinHandle<()>) {
    let authority = Authority::from_files(&files(), &TrustDomain::cluster_local(), Lifetimes::default()).unwrap();
    let root_cert = RootCert::new(api.client(), authority.clone());
    (authority, tokio::spawn(async move { root_cert.run().await }))
}

async fn published(api: &FakeApi, namespace: &str, roots: &str) {
    let holds = |map: Option<&serde_json::Value>| map.is_some_and(|map| map["data"]["root-cert.pem"] == roots);
    api.until(&path(namespace), holds).await;
}

#[tokio::test]
async fn every_namespace_in_the_mesh_has_the_roots_and_no_other() {
    let api = FakeApi::new();
    namespace(&api, "labelled", json!({ "istio-injection": "enabled" }));
    namespace(&api, "ours", json!({ "mesh.dev/inject": "enabled" }));
    namespace(&api, "off", json!({ "istio-injection": "disabled" }));
    namespace(&api, "outside", json!({}));
    namespace(&api, "one-pod", json!({}));
    pod(&api, "one-pod", "a", json!({ "sidecar.istio.io/inject": "true" }));
    pod(&api, "outside", "b", json!({ "sidecar.istio.io/inject": "false" }));
    let (authority, _task) = start(&api);
    let roots = authority.roots_pem();
    for namespace in ["labelled", "ours", "one-pod"] {
        published(&api, namespace, &roots).await;
    }

    namespace(&api, "late", json!({ "istio-injection": "enabled" }));
    published(&api, "late", &roots).await;
    pod(&api, "outside", "c", json!({ "mesh.dev/inject": "true" }));
    published(&api, "outside", &roots).await;
    assert_eq!(api.get(&path("off")), None);
}

#[tokio::test]
async fn it_is_mended_made_again_and_follows_the_authority() {
    let api = FakeApi::new();
    namespace(&api, "default", json!({ "istio-injection": "enabled" }));
    let (authority, _task) = start(&api);
    let roots = authority.roots_pem();
    published(&api, "default", &roots).await;

    let mut map = api.get(&path("default")).unwrap();
    map["data"] = json!({ "root-cert.pem": "spoilt", "other": "kept" });
    api.put(&path("default"), map);
    published(&api, "default", &roots).await;
    assert_eq!(api.get(&path("default")).unwrap()["data"]["other"], "kept");

    api.delete(&path("default"));
    published(&api, "default", &roots).await;

    authority.replace(&files()).unwrap();
    assert_ne!(authority.roots_pem(), roots);
    published(&api, "default", &authority.roots_pem()).await;
}

#[tokio::test]
async fn what_is_right_already_is_not_written() {
    let api = FakeApi::new();
    namespace(&api, "default", json!({ "istio-injection": "enabled" }));
    let (authority, task) = start(&api);
    published(&api, "default", &authority.roots_pem()).await;
    task.abort();

    api.take_writes();
    namespace(&api, "late", json!({ "istio-injection": "enabled" }));
    let root_cert = RootCert::new(api.client(), authority.clone());
    let _task = tokio::spawn(async move { root_cert.run().await });
    published(&api, "late", &authority.roots_pem()).await;
    assert_eq!(api.take_writes(), ["POST /api/v1/namespaces/late/configmaps"]);
}
