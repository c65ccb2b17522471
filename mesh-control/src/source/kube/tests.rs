//! Against an API server in memory: lists, watches, disconnects and relists, whatever it can do.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::kube::fake::FakeApi;

/// Generous against a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

const VIRTUAL_SERVICES: &str = "/apis/networking.istio.io/v1/namespaces/default/virtualservices";
const SERVICES: &str = "/api/v1/namespaces/default/services";

/// What is in force, by kind and name, as the events say.
type InForce = Arc<Mutex<BTreeMap<String, String>>>;

struct Cluster {
    api: FakeApi,
    source: KubeSource,
    in_force: InForce,
    synced: Arc<Mutex<bool>>,
}

impl Cluster {
    fn start(api: FakeApi) -> Self {
        let in_force = InForce::default();
        let synced = Arc::new(Mutex::new(false));
        let (sink, ready) = (in_force.clone(), synced.clone());
        let source = KubeSource::start(&api.client(), "cluster.local", move |events| {
            let mut in_force = sink.lock().unwrap();
            for event in events {
                match event {
                    Event::Applied(object) => {
                        let value = object.to_value().unwrap();
                        in_force.insert(object.reference().to_string(), value["spec"].to_string());
                    }
                    Event::Deleted(reference) => drop(in_force.remove(&reference.to_string())),
                    Event::Observed(object) => {
                        let text = format!("{:?}", object.metadata().labels);
                        in_force.insert(name_of(&object.reference()), text);
                    }
                    Event::Vanished(reference) => drop(in_force.remove(&name_of(&reference))),
                    Event::Synced => *ready.lock().unwrap() = true,
                }
            }
        });
        Self {
            api,
            source,
            in_force,
            synced,
        }
    }

    async fn synced(api: FakeApi) -> Self {
        let cluster = Self::start(api);
        tokio::time::timeout(DEADLINE, cluster.source.synced()).await.unwrap();
        assert!(*cluster.synced.lock().unwrap(), "said after what was there");
        cluster
    }

    fn names(&self) -> Vec<String> {
        self.in_force.lock().unwrap().keys().cloned().collect()
    }

    async fn until(&self, what: &str, wanted: impl Fn(&BTreeMap<String, String>) -> bool) {
        let reached = async {
            while !wanted(&self.in_force.lock().unwrap()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(DEADLINE, reached).await.is_err() {
            panic!("{what}: {:?}", self.in_force.lock().unwrap());
        }
    }

    async fn object(&self, name: &str, wanted: impl Fn(&PolicyObject) -> bool) -> PolicyObject {
        let mut objects = self.source.objects();
        let find = |objects: &Arc<[PolicyObject]>| {
            let found = objects.iter().find(|object| object.reference.name == name);
            found.filter(|object| wanted(object)).cloned()
        };
        let reached = objects.wait_for(|objects| find(objects).is_some());
        match tokio::time::timeout(DEADLINE, reached).await {
            Ok(objects) => find(&objects.unwrap()).unwrap(),
            Err(_) => panic!("{name}: {:?}", self.source.objects().borrow()),
        }
    }
}

fn name_of(reference: &ClusterRef) -> String {
    format!("{} {}/{}", reference.kind.as_str(), reference.namespace, reference.name)
}

fn service(api: &FakeApi, name: &str, version: &str) {
    let object = json!({ "metadata": { "labels": { "v": version } }, "spec": { "ports": [{ "port": 80 }] } });
    api.put(&format!("{SERVICES}/{name}"), object);
}

fn virtual_service(api: &FakeApi, name: &str, spec: &serde_json::Value) {
    let object = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": { "generation": 3, "managedFields": [{ "manager": "kubectl" }] },
        "spec": spec, "status": { "conditions": [] }
    });
    api.put(&format!("{VIRTUAL_SERVICES}/{name}"), object);
}

fn routes(host: &str) -> serde_json::Value {
    json!({ "hosts": [host], "http": [{ "route": [{ "destination": { "host": host } }] }] })
}

fn api(streaming: bool) -> FakeApi {
    let api = FakeApi::new();
    if streaming {
        api.stream_lists();
    }
    api
}

#[tokio::test]
async fn what_is_there_is_said_before_synced_and_changes_follow() {
    for streaming in [false, true] {
        let api = api(streaming);
        service(&api, "a", "1");
        virtual_service(&api, "routes", &routes("a"));
        api.put(
            "/api/v1/nodes/node-1",
            json!({ "spec": { "podCIDRs": ["198.18.0.0/24"] } }),
        );
        let cluster = Cluster::synced(api).await;
        assert_eq!(
            cluster.names(),
            ["Node /node-1", "Service default/a", "VirtualService default/routes"],
            "streaming: {streaming}"
        );
        service(&cluster.api, "a", "2");
        service(&cluster.api, "b", "1");
        cluster.api.delete(&format!("{VIRTUAL_SERVICES}/routes"));
        cluster
            .until("changes", |now| {
                now.len() == 3 && now.get("Service default/a").is_some_and(|labels| labels.contains('2'))
            })
            .await;
        assert_eq!(
            cluster.names(),
            ["Node /node-1", "Service default/a", "Service default/b"]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_connection_loses_nothing() {
    for (streaming, forget) in [(false, false), (false, true), (true, false), (true, true)] {
        let api = api(streaming);
        for name in ["a", "b", "c"] {
            service(&api, name, "1");
        }
        virtual_service(&api, "routes", &routes("a"));
        let cluster = Cluster::synced(api).await;
        cluster.api.set_away(true);
        service(&cluster.api, "a", "2");
        cluster.api.delete(&format!("{SERVICES}/b"));
        cluster.api.delete(&format!("{VIRTUAL_SERVICES}/routes"));
        service(&cluster.api, "d", "1");
        if forget {
            cluster.api.forget();
        }
        assert_eq!(cluster.names().len(), 4, "what is known stays while the server is away");
        cluster.api.set_away(false);
        cluster
            .until("all changes", |now| {
                now.keys()
                    .map(String::as_str)
                    .eq(["Service default/a", "Service default/c", "Service default/d"])
                    && now["Service default/a"].contains('2')
            })
            .await;
    }
}

#[tokio::test]
async fn a_server_that_is_away_at_the_start_is_waited_for() {
    let api = api(false);
    service(&api, "a", "1");
    api.set_away(true);
    let cluster = Cluster::start(api);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!*cluster.synced.lock().unwrap());
    cluster.api.set_away(false);
    tokio::time::timeout(DEADLINE, cluster.source.synced()).await.unwrap();
    assert_eq!(cluster.names(), ["Service default/a"]);
}

#[tokio::test(start_paused = true)]
async fn kinds_that_are_not_defined_keep_nobody_waiting_and_are_found_later() {
    let api = api(false);
    api.unserve("/apis/networking.istio.io/", true);
    api.unserve("/apis/mesh.dev/", true);
    api.unserve("/apis/networking.k8s.io/", true);
    virtual_service(&api, "routes", &routes("a"));
    let cluster = Cluster::synced(api).await;
    assert_eq!(cluster.names(), [""; 0]);
    cluster.api.unserve("/apis/networking.istio.io/", false);
    cluster.until("the definition is there", |now| now.len() == 1).await;
}

#[tokio::test]
async fn an_older_version_does_where_the_newest_is_not_served() {
    let api = api(true);
    api.unserve("/apis/networking.istio.io/v1/", true);
    virtual_service(&api, "routes", &routes("a"));
    let cluster = Cluster::synced(api).await;
    assert_eq!(cluster.names(), ["VirtualService default/routes"]);
}

#[tokio::test]
async fn a_kind_that_may_not_be_read_is_waited_for_unless_the_mesh_can_do_without() {
    let api = api(false);
    api.forbid("GET /apis/networking.k8s.io/v1/servicecidrs");
    Cluster::synced(api).await;

    let api = self::api(false);
    api.forbid("GET /apis/security.istio.io/v1/authorizationpolicies");
    let cluster = Cluster::start(api);
    let waited = tokio::time::timeout(Duration::from_millis(500), cluster.source.synced()).await;
    assert!(
        waited.is_err(),
        "without its policies the mesh would let in what they forbid"
    );
}

#[tokio::test]
async fn an_object_that_becomes_wrong_keeps_its_last_good_version() {
    let api = api(false);
    virtual_service(&api, "routes", &routes("a"));
    virtual_service(&api, "bad", &json!({ "hosts": ["b"], "http": [{ "timeout": "5" }] }));
    let cluster = Cluster::synced(api).await;
    let bad = cluster.object("bad", |_| true).await;
    assert_eq!((bad.acceptance, bad.generation), (Acceptance::Refused, 3));
    assert!(
        bad.findings
            .iter()
            .any(|finding| finding.field.as_str() == "spec.http[0].timeout")
    );
    let good = cluster.object("routes", |_| true).await;
    assert_eq!(good.acceptance, Acceptance::InForce);
    assert_eq!(&*good.api_version, "networking.istio.io/v1");

    virtual_service(
        &cluster.api,
        "routes",
        &json!({ "hosts": ["a"], "http": [{ "timeout": "5" }] }),
    );
    let kept = cluster
        .object("routes", |object| object.acceptance != Acceptance::InForce)
        .await;
    assert_eq!(kept.acceptance, Acceptance::LastGood);
    let finding = kept
        .findings
        .iter()
        .find(|finding| finding.severity == Severity::Error)
        .unwrap();
    assert!(
        finding.message.ends_with("its last good version stays in force"),
        "{finding}"
    );
    assert!(
        finding.to_string().starts_with("cluster: error: spec.http[0].timeout"),
        "{finding}"
    );
    assert_eq!(cluster.names(), ["VirtualService default/routes"]);

    virtual_service(&cluster.api, "routes", &routes("c"));
    cluster
        .object("routes", |object| object.acceptance == Acceptance::InForce)
        .await;
    assert!(cluster.in_force.lock().unwrap()["VirtualService default/routes"].contains("\"c\""));
}

#[tokio::test]
async fn an_authorization_policy_that_cannot_be_read_denies() {
    let api = api(false);
    let policy = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {},
        "spec": { "selector": { "matchLabels": { "app": "a" } }, "rules": 7 }
    });
    api.put(
        "/apis/security.istio.io/v1/namespaces/default/authorizationpolicies/p",
        policy,
    );
    let cluster = Cluster::synced(api).await;
    assert_eq!(cluster.object("p", |_| true).await.acceptance, Acceptance::Denies);
    assert_eq!(cluster.names(), ["AuthorizationPolicy default/p"]);
}

#[tokio::test]
async fn a_written_status_changes_nothing() {
    let api = api(false);
    virtual_service(&api, "routes", &routes("a"));
    let cluster = Cluster::synced(api).await;
    cluster.in_force.lock().unwrap().clear();
    let path = format!("{VIRTUAL_SERVICES}/routes");
    let mut object = cluster.api.get(&path).unwrap();
    object["status"] = json!({ "conditions": [{ "type": "Accepted" }] });
    object["metadata"]["annotations"] = json!({ "kubectl.kubernetes.io/last-applied-configuration": "{}" });
    cluster.api.put(&path, object);
    service(&cluster.api, "after", "1");
    virtual_service(&cluster.api, "other", &routes("b"));
    cluster.until("what came after", |now| now.len() == 2).await;
    assert_eq!(
        cluster.names(),
        ["Service default/after", "VirtualService default/other"]
    );
}

#[tokio::test]
async fn objects_are_judged_among_each_other_and_the_services_of_the_cluster() {
    let api = api(false);
    service(&api, "a", "1");
    virtual_service(&api, "first", &routes("a"));
    virtual_service(&api, "second", &routes("a"));
    virtual_service(&api, "lost", &routes("nobody"));
    let cluster = Cluster::synced(api).await;
    let codes = |object: &PolicyObject| object.findings.iter().map(|finding| finding.code).collect::<Vec<_>>();
    let second = cluster.object("second", |object| !object.findings.is_empty()).await;
    assert_eq!(codes(&second), ["conflict"]);
    assert_eq!(codes(&cluster.object("first", |_| true).await), [""; 0]);
    let lost = cluster.object("lost", |object| !object.findings.is_empty()).await;
    assert_eq!(codes(&lost), ["unknown-host"]);
    service(&cluster.api, "nobody", "1");
    cluster.object("lost", |object| object.findings.is_empty()).await;
}
