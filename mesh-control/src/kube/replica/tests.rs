use mesh_api::crd::Kind;
use serde_json::{Value, json};

use super::*;
use crate::kube::fake::FakeApi;

const PATH: &str = "/api/v1/namespaces/mesh-system/configmaps/mesh-status-control-1";

/// Counts of three proxies, two of them in sync; objects with `programmed` and `holding`.
fn counts(objects: &[(&str, u32, u32)]) -> Counts {
    let objects = objects.iter().map(|(name, programmed, holding)| {
        let count = Count {
            holding: *holding,
            programmed: *programmed,
        };
        (key(&object(name)), count)
    });
    Counts {
        versions: vec![env!("CARGO_PKG_VERSION").to_owned()],
        proxies: 3,
        in_sync: 2,
        objects: objects.collect(),
    }
}

#[test]
fn proxies_are_in_sync_when_nothing_is_owed_or_refused() {
    let proxy = |state: SyncState| -> ProxyStatus {
        let types = json!({ "mesh": { "state": state, "age_seconds": null, "subscribed": 1, "nonce": null,
            "generation": null, "error": null } });
        serde_json::from_value(json!({
            "name": "a.default", "identity": "", "version": "", "address": null, "control_plane": "",
            "connected_seconds": 1, "types": types,
        }))
        .unwrap()
    };
    let proxies = [
        SyncState::Synced,
        SyncState::NotSent,
        SyncState::Stale,
        SyncState::Error,
    ]
    .map(proxy);
    let programmed = BTreeMap::from([(object("a"), Programmed { on: 1, of: 2 })]);
    let counts = Counts::of(&programmed, &proxies);
    assert_eq!((counts.proxies, counts.in_sync), (4, 2));
    assert_eq!(
        counts.object(&object("a")),
        Count {
            holding: 2,
            programmed: 1
        }
    );
}

fn object(name: &str) -> ObjectRef {
    ObjectRef {
        kind: Kind::VirtualService,
        namespace: "default".to_owned(),
        name: name.to_owned(),
    }
}

fn publish(api: &FakeApi, replica: &str, counts: &Counts) {
    let path = format!("/api/v1/namespaces/mesh-system/configmaps/mesh-status-{replica}");
    let labels = json!({ "mesh.dev/status": "replica" });
    let object = json!({ "metadata": { "labels": labels }, "data": { "counts.json": counts.to_json() } });
    api.put(&path, object);
}

#[tokio::test]
async fn replicas_are_added_up() {
    let api = FakeApi::new();
    publish(&api, "control-1", &counts(&[("a", 1, 2), ("b", 1, 1)]));
    let mut second = counts(&[("b", 2, 2)]);
    second.versions = vec!["0.0.9".to_owned()];
    publish(&api, "control-2", &second);
    api.put(
        "/api/v1/namespaces/mesh-system/configmaps/mesh-status-broken",
        json!({ "metadata": { "labels": { "mesh.dev/status": "replica" } }, "data": { "counts.json": "{" } }),
    );
    api.put(
        "/api/v1/namespaces/mesh-system/configmaps/other",
        json!({ "metadata": {} }),
    );

    let sum = Replicas::new(api.client(), "mesh-system").read().await.unwrap();
    assert_eq!((sum.proxies, sum.in_sync), (6, 4));
    assert_eq!(sum.versions, ["0.0.9", env!("CARGO_PKG_VERSION")]);
    let b = sum.object(&object("b"));
    assert_eq!((b.programmed, b.holding), (3, 3));
    let a = sum.object(&object("a"));
    assert_eq!((a.programmed, a.holding), (1, 2));
    assert_eq!(sum.object(&object("c")), Count::default());
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_says_nothing_is_not_counted() {
    let api = FakeApi::new();
    publish(&api, "control-1", &counts(&[("a", 1, 1)]));
    let mut replicas = Replicas::new(api.client(), "mesh-system");
    assert_eq!(replicas.read().await.unwrap().proxies, 3);
    tokio::time::sleep(SILENT / 2).await;
    assert_eq!(replicas.read().await.unwrap().proxies, 3);
    tokio::time::sleep(SILENT / 2).await;
    assert_eq!(replicas.read().await.unwrap().proxies, 0);
    publish(&api, "control-1", &counts(&[]));
    assert_eq!(replicas.read().await.unwrap().proxies, 3, "it is back");
}

#[tokio::test(start_paused = true)]
async fn a_replica_says_what_it_knows_that_it_lives_and_farewell() {
    let api = FakeApi::new();
    api.put(
        "/api/v1/namespaces/mesh-system/pods/control-1",
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "uid": "pod-uid" } }),
    );
    let shutdown = CancellationToken::new();
    let replica = Replica::new(api.client(), "mesh-system", "control-1", || counts(&[]));
    let task = tokio::spawn(replica.run(shutdown.clone()));
    let map = api.until(PATH, |map| map.is_some()).await.unwrap();
    assert_eq!(map["metadata"]["labels"]["mesh.dev/status"], "replica");
    assert_eq!(map["metadata"]["ownerReferences"][0]["uid"], "pod-uid");
    let counts: Value = serde_json::from_str(map["data"]["counts.json"].as_str().unwrap()).unwrap();
    assert_eq!(counts["proxies"], 3);

    api.take_writes();
    tokio::time::sleep(Duration::from_secs(301)).await;
    let writes = api.take_writes().len();
    assert!((8..=10).contains(&writes), "{writes}: every 30 s");
    shutdown.cancel();
    task.await.unwrap();
    assert_eq!(api.get(PATH), None);
}

#[test]
fn what_is_published_is_bounded() {
    let names: Vec<String> = (0..30_000)
        .map(|number| format!("a-rather-long-name-{number}"))
        .collect();
    let objects: Vec<(&str, u32, u32)> = names.iter().map(|name| (name.as_str(), 1, 1)).collect();
    let text = counts(&objects).to_json();
    assert!(text.len() <= MAX_BYTES, "{}", text.len());
    let read: Counts = serde_json::from_str(&text).unwrap();
    assert!(read.objects.len() > 1000);
}
