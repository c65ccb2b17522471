use mesh_api::crd::{Kind, Object};
use tokio::task::JoinHandle;

use super::*;
use crate::kube::fake::FakeApi;
use crate::source::Event;
use crate::source::kube::Acceptance;
use crate::world::{self, World};

const PATH: &str = "/apis/networking.istio.io/v1/namespaces/default/virtualservices/reviews";
const MESH: &str = "/apis/mesh.dev/v1/meshconfigs/default";

fn object(kind: Kind, namespace: &str, name: &str) -> PolicyObject {
    PolicyObject {
        reference: ObjectRef {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        },
        api_version: format!("{}/v1", kind.group()).into(),
        uid: "uid-1".into(),
        generation: 1,
        acceptance: Acceptance::InForce,
        findings: Vec::new(),
    }
}

fn publish(api: &FakeApi, programmed: u32, holding: u32) {
    let objects = json!({ "VirtualService/default/reviews": { "programmed": programmed, "holding": holding } });
    let counts = json!({ "versions": ["0.1.0"], "proxies": holding, "in_sync": programmed, "objects": objects });
    api.put(
        "/api/v1/namespaces/mesh-system/configmaps/mesh-status-control-1",
        json!({ "metadata": { "labels": { "mesh.dev/status": "replica" } }, "data": { "counts.json": counts.to_string() } }),
    );
}

struct Running {
    api: FakeApi,
    objects: watch::Sender<Arc<[PolicyObject]>>,
    resolver: Arc<Resolver>,
    writer: StatusWriter,
    task: JoinHandle<()>,
}

fn start(api: FakeApi, objects: Vec<PolicyObject>) -> Running {
    let resolver = Arc::new(Resolver::new(World::new(world::Options::default())));
    let (sender, receiver) = watch::channel(Arc::from(objects));
    let writer = StatusWriter::new(api.client(), "mesh-system", receiver, resolver.clone());
    let running = writer.clone();
    Running {
        api,
        objects: sender,
        resolver,
        writer,
        task: tokio::spawn(async move { running.run().await }),
    }
}

impl Running {
    /// Waits until the reason of a condition is so.
    async fn reason(&self, kind: &str, reason: &str) -> Value {
        let holds = |object: Option<&Value>| {
            let conditions = object.and_then(|object| object["status"]["conditions"].as_array());
            let mut found = conditions.into_iter().flatten();
            found.any(|condition| condition["type"] == kind && condition["reason"] == reason)
        };
        self.api.until(PATH, holds).await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn statuses_follow_objects_and_counts_and_others_words_stay() {
    let api = FakeApi::new();
    api.put(
        PATH,
        json!({ "status": { "conditions": [{ "type": "Reconciled", "status": "True" }] } }),
    );
    let running = start(api.clone(), vec![object(Kind::VirtualService, "default", "reviews")]);
    let status = running.reason("Programmed", "NotInUse").await;
    assert_eq!(status["status"]["conditions"][0]["type"], "Reconciled");

    publish(&api, 1, 2);
    running.reason("Programmed", "Pending").await;
    publish(&api, 2, 2);
    running.reason("Programmed", "Programmed").await;

    let mut changed = object(Kind::VirtualService, "default", "reviews");
    changed.generation = 2;
    changed.acceptance = Acceptance::LastGood;
    running.objects.send_replace(Arc::from(vec![changed]));
    let status = running.reason("Accepted", "Invalid").await;
    assert_eq!(status["status"]["observedGeneration"], 2);
}

#[tokio::test(start_paused = true)]
async fn writes_are_throttled_and_nothing_is_written_twice() {
    let api = FakeApi::new();
    api.put(PATH, json!({}));
    let running = start(api.clone(), vec![object(Kind::VirtualService, "default", "reviews")]);
    running.reason("Programmed", "NotInUse").await;
    api.take_writes();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(api.take_writes().is_empty(), "nothing has changed");

    for count in 1..=60 {
        publish(&api, count, count + 1);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let writes = api.take_writes().len();
    assert!((3..=7).contains(&writes), "{writes} in 60 s");

    running.task.abort();
    let writer = running.writer.clone();
    let next_leader = tokio::spawn(async move { writer.run().await });
    tokio::time::sleep(Duration::from_secs(60)).await;
    let writes = api.take_writes();
    assert!(writes.len() <= 1, "the next leader finds it written: {writes:?}");
    next_leader.abort();
}

#[tokio::test(start_paused = true)]
async fn a_write_that_failed_is_tried_again() {
    let api = FakeApi::new();
    // Not there yet.
    let running = start(api.clone(), vec![object(Kind::VirtualService, "default", "reviews")]);
    tokio::time::sleep(Duration::from_secs(7)).await;
    api.set_away(true);
    api.put(PATH, json!({}));
    tokio::time::sleep(Duration::from_secs(30)).await;
    api.set_away(false);
    running.reason("Accepted", "Accepted").await;
}

#[tokio::test(start_paused = true)]
async fn the_mesh_config_shows_the_mesh() {
    let api = FakeApi::new();
    api.put(MESH, json!({}));
    publish(&api, 4, 5);
    let running = start(api.clone(), vec![object(Kind::MeshConfig, "", "default")]);
    let shows = |mode: &'static str| {
        let api = api.clone();
        async move {
            let shown = api
                .until(MESH, |mesh| mesh.is_some_and(|mesh| mesh["status"]["mtlsMode"] == mode))
                .await;
            shown.unwrap()["status"].clone()
        }
    };
    let status = shows("PERMISSIVE").await;
    assert_eq!(status["proxiesInSync"], "4/5");
    assert_eq!(status["controlPlaneVersion"], "0.1.0");
    assert_eq!(status["trustDomain"], "cluster.local");

    let strict = json!({
        "metadata": { "name": "default", "namespace": "mesh-system" },
        "spec": { "mtls": { "mode": "STRICT" } },
    });
    let strict = Object::from_value(Kind::PeerAuthentication, strict).unwrap();
    running.resolver.apply(&[Event::Applied(Arc::new(strict))]);
    shows("STRICT").await;
}
