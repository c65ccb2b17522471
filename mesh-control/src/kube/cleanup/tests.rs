use serde_json::{Value, json};

use super::*;
use crate::kube::fake::FakeApi;

const STATUS: &str = "/api/v1/namespaces/mesh-system/configmaps/mesh-status-control-1";
const LEASE_PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/mesh-system/leases/mesh-control-leader";
const INJECTOR: &str = "/api/v1/namespaces/mesh-system/secrets/mesh-injector-cert";
const CA: &str = "/api/v1/namespaces/mesh-system/secrets/mesh-ca";
const MESH: &str = "/apis/mesh.dev/v1/meshconfigs/default";

fn root_cert(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps/mesh-ca-root-cert")
}

fn labelled(labels: Value) -> Value {
    json!({ "metadata": { "labels": labels } })
}

/// A cluster from which the mesh was uninstalled.
fn cluster(mesh_config: Value) -> FakeApi {
    let api = FakeApi::new();
    let ours = json!(labels());
    api.put(&root_cert("default"), labelled(ours.clone()));
    api.put(&root_cert("shop"), labelled(ours.clone()));
    api.put(&root_cert("somebody-elses"), labelled(json!({})));
    api.put(STATUS, labelled(json!({ "mesh.dev/status": "replica" })));
    api.put("/api/v1/namespaces/mesh-system/configmaps/other", labelled(json!({})));
    api.put(LEASE_PATH, labelled(ours.clone()));
    api.put(INJECTOR, labelled(ours.clone()));
    api.put(CA, labelled(ours));
    api.put(MESH, json!({ "spec": {}, "metadata": { "labels": mesh_config } }));
    api
}

fn cleanup(authority: bool) -> Cleanup {
    Cleanup {
        namespace: "mesh-system".to_owned(),
        authority,
    }
}

#[tokio::test]
async fn what_the_mesh_made_goes_and_nothing_else() {
    let api = cluster(json!({ "app.kubernetes.io/managed-by": "Helm" }));
    cleanup(false).run(&api.client()).await.unwrap();
    for gone in [root_cert("default"), root_cert("shop")] {
        assert_eq!(api.get(&gone), None, "{gone}");
    }
    for gone in [STATUS, LEASE_PATH, INJECTOR, MESH] {
        assert_eq!(api.get(gone), None, "{gone}");
    }
    let stays = [
        root_cert("somebody-elses"),
        "/api/v1/namespaces/mesh-system/configmaps/other".to_owned(),
    ];
    for stays in stays {
        assert!(api.get(&stays).is_some(), "{stays}");
    }
    assert!(api.get(CA).is_some(), "only where it is asked for");
    cleanup(true).run(&api.client()).await.unwrap();
    assert_eq!(api.get(CA), None);
}

#[tokio::test]
async fn a_mesh_config_of_somebody_else_stays() {
    let api = cluster(json!({}));
    cleanup(false).run(&api.client()).await.unwrap();
    assert!(api.get(MESH).is_some());
}

#[tokio::test]
async fn what_cannot_be_deleted_is_said_and_the_rest_goes() {
    let api = cluster(json!({ "app.kubernetes.io/managed-by": "Helm" }));
    api.forbid(&format!("DELETE {LEASE_PATH}"));
    let error = cleanup(false).run(&api.client()).await.unwrap_err().to_string();
    assert!(
        error.contains("deleting Lease mesh-system/mesh-control-leader") && error.contains("RBAC"),
        "{error}"
    );
    assert_eq!(api.get(INJECTOR), None);
    assert_eq!(api.get(MESH), None);
}

#[tokio::test(start_paused = true)]
async fn those_who_would_make_it_again_are_waited_for_but_not_for_ever() {
    let pod = "/api/v1/namespaces/mesh-system/pods/mesh-control-1";
    let api = cluster(json!({}));
    api.put(pod, labelled(json!({ "app": "mesh-control" })));
    let (client, started) = (api.client(), Instant::now());
    let task = tokio::spawn(async move { cleanup(false).run(&client).await });
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(api.get(LEASE_PATH).is_some());
    api.delete(pod);
    task.await.unwrap().unwrap();
    assert!(started.elapsed() < Duration::from_secs(25));

    let api = cluster(json!({}));
    api.put(pod, labelled(json!({ "app": "mesh-control" })));
    cleanup(false).run(&api.client()).await.unwrap();
    assert_eq!(api.get(LEASE_PATH), None);
}
