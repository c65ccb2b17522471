//! Certificates through their life, against an API server in memory and under a clock of the tests' own.

use clap::Parser as _;
use http::Method;

use super::*;
use crate::cluster::{Cluster as _, Facts};
use crate::events::Reports;
use crate::testing::{Api as FakeApi, MUTATING, SECRET, VALIDATING};

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

fn options() -> Options {
    Cli::parse_from(["mesh-injector", "--certificate-ttl", "24h"]).options
}

const TTL: Duration = Duration::from_secs(24 * 3600);

fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(3_000_000_000)
}

/// One replica of the injector.
struct Replica {
    keeper: Keeper,
    shown: Arc<Shown>,
    cluster: KubeCluster,
    ready: watch::Receiver<bool>,
}

impl Replica {
    fn new(api: &FakeApi) -> Self {
        let cluster = KubeCluster::new(api.client(), Reports::channel().0);
        let shown = Arc::new(Shown::default());
        let (sender, ready) = watch::channel(false);
        Self {
            keeper: Keeper::new(cluster.clone(), options(), shown.clone(), sender),
            shown,
            cluster,
            ready,
        }
    }

    async fn look(&mut self, now: SystemTime) -> Duration {
        self.keeper.look(now).await.unwrap()
    }

    /// The certificate that clients are shown.
    fn leaf(&self) -> Option<Vec<u8>> {
        let shown = self.shown.0.read().unwrap();
        shown.as_ref().map(|key| key.cert[0].to_vec())
    }
}

/// The bundles of all webhooks, decoded.
fn bundles(api: &FakeApi) -> Vec<String> {
    [MUTATING, VALIDATING]
        .iter()
        .flat_map(|path| api.get(path).unwrap()["webhooks"].as_array().unwrap().clone())
        .map(|webhook| {
            let bundle = webhook["clientConfig"]["caBundle"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            String::from_utf8(BASE64_STANDARD.decode(bundle).unwrap()).unwrap()
        })
        .collect()
}

fn secret(api: &FakeApi) -> Serving {
    let secret: Secret = serde_json::from_value(api.get(SECRET).unwrap()).unwrap();
    Serving::parse(&secret.data.unwrap(), &options().dns_names(), start()).unwrap()
}

#[tokio::test]
async fn the_first_look_makes_publishes_and_shows() {
    let api = FakeApi::new();
    let mut replica = Replica::new(&api);
    assert!(replica.leaf().is_none() && !*replica.ready.borrow());
    replica.look(start()).await;
    assert!(replica.leaf().is_some() && *replica.ready.borrow());
    assert_eq!(bundles(&api), vec![secret(&api).ca_pem; 3]);
    let changes = api.changes();
    replica.look(start() + Duration::from_secs(60)).await;
    assert_eq!(api.changes(), changes, "there is nothing to change");
    assert_eq!(
        replica.cluster.facts(),
        Facts {
            istio_injector: false,
            native_sidecars: true
        }
    );
}

#[tokio::test]
async fn replicas_that_start_at_once_end_with_one_certificate() {
    let api = FakeApi::new();
    let (mut a, mut b) = (Replica::new(&api), Replica::new(&api));
    let now = start();
    let (first, second) = tokio::join!(a.keeper.look(now), b.keeper.look(now));
    first.unwrap();
    second.unwrap();
    assert_eq!(a.leaf(), b.leaf());
    let made = api.changes().iter().filter(|change| change.starts_with("POST")).count();
    assert!((1..=2).contains(&made));
}

#[tokio::test]
async fn what_others_reset_is_written_again() {
    let api = FakeApi::new();
    let mut replica = Replica::new(&api);
    replica.look(start()).await;
    let leaf = replica.leaf();
    let mut reset = api.get(MUTATING).unwrap();
    reset["webhooks"][1]["clientConfig"]
        .as_object_mut()
        .unwrap()
        .remove("caBundle");
    api.put(MUTATING, reset);
    replica.look(start()).await;
    assert_eq!(bundles(&api), vec![secret(&api).ca_pem; 3]);
    api.remove(VALIDATING);
    replica.look(start()).await;
    assert_eq!(replica.leaf(), leaf);
}

#[tokio::test]
async fn rotation_publishes_first_and_shows_after_the_overlap() {
    let api = FakeApi::new();
    let (mut a, mut b) = (Replica::new(&api), Replica::new(&api));
    let now = start();
    a.look(now).await;
    b.look(now).await;
    let old = a.leaf();
    let almost = now + TTL * 2 / 3 - Duration::from_secs(10);
    assert_eq!(
        a.look(almost).await,
        Duration::from_secs(10),
        "the next look is when it is due"
    );
    assert_eq!(secret(&api).data(), secret(&api).data());

    let due = now + TTL * 2 / 3;
    let pause = a.look(due).await;
    assert_eq!(a.leaf(), old, "API servers have yet to hear of the new authority");
    assert!(pause <= OVERLAP);
    let bundle = &bundles(&api)[0];
    assert_eq!(
        bundle.matches("BEGIN CERTIFICATE").count(),
        2,
        "old and new are trusted"
    );
    b.look(due + Duration::from_secs(5)).await;
    assert_eq!(b.leaf(), old);
    a.look(due + OVERLAP).await;
    assert_ne!(a.leaf(), old);
    b.look(due + OVERLAP).await;
    assert_eq!(b.leaf(), old, "the other one counts from when it knew");
    b.look(due + OVERLAP + Duration::from_secs(5)).await;
    assert_eq!(a.leaf(), b.leaf());
    let changed = api.changes().iter().filter(|change| change.starts_with("PUT")).count();
    assert_eq!(changed, 1, "one of them rotated");
}

#[tokio::test]
async fn a_secret_of_no_use_is_replaced_and_keeps_its_labels() {
    let api = FakeApi::new();
    let labels = json!({"team": "a"});
    let broken = json!({"metadata": {"name": "mesh-injector-cert", "labels": labels}, "type": "Opaque", "data": {"tls.crt": ""}});
    api.put(SECRET, broken);
    let mut replica = Replica::new(&api);
    replica.look(start()).await;
    assert!(replica.leaf().is_some());
    let secret = api.get(SECRET).unwrap();
    assert_eq!(secret["metadata"]["labels"], labels);
    assert_eq!(secret["type"], "Opaque", "the type of a Secret cannot change");
}

#[tokio::test]
async fn nothing_is_shown_that_is_not_published() {
    let api = FakeApi::new();
    api.refuse(Method::PATCH, MUTATING);
    let mut replica = Replica::new(&api);
    let error = replica.keeper.look(start()).await.unwrap_err().to_string();
    assert!(error.starts_with("mesh-injector: "), "{error}");
    assert!(replica.leaf().is_none() && !*replica.ready.borrow());
    api.relent();
    replica.look(start()).await;
    assert!(*replica.ready.borrow());
}

#[tokio::test]
async fn the_oldest_node_decides_about_native_sidecars() {
    let api = FakeApi::new();
    api.node("old", "v1.28.9");
    let mut replica = Replica::new(&api);
    replica.look(start()).await;
    assert!(!replica.cluster.facts().native_sidecars);
    api.remove("/api/v1/nodes/old");
    replica.look(start() + VERSIONS_PERIOD).await;
    assert!(replica.cluster.facts().native_sidecars);
    api.refuse(Method::GET, "/api/v1/nodes");
    replica.look(start() + VERSIONS_PERIOD * 2).await;
    assert!(
        replica.cluster.facts().native_sidecars,
        "without nodes the API server's version decides"
    );
}

#[tokio::test]
async fn istios_injector_is_noticed_as_it_comes_and_goes() {
    let api = FakeApi::new();
    let mut replica = Replica::new(&api);
    let istio = MUTATING.replace("mesh-injector", "istio-sidecar-injector");
    api.put(&istio, json!({"metadata": {"name": "istio-sidecar-injector"}}));
    replica.look(start()).await;
    assert!(replica.cluster.facts().istio_injector);
    api.remove(&istio);
    replica.look(start()).await;
    assert!(!replica.cluster.facts().istio_injector);
}

#[test]
fn a_list_that_was_changed_meanwhile_is_not_mixed_up() {
    let mut configuration =
        json!({"webhooks": [{"name": "a", "clientConfig": {}}, {"name": "b", "clientConfig": {"caBundle": "x"}}]});
    let patch = bundle_patch(&configuration, "x").unwrap();
    configuration["webhooks"].as_array_mut().unwrap().reverse();
    assert!(json_patch::patch(&mut configuration, &patch).is_err());
    configuration["webhooks"].as_array_mut().unwrap().reverse();
    json_patch::patch(&mut configuration, &patch).unwrap();
    assert!(bundle_patch(&configuration, "x").is_none());
    assert!(bundle_patch(&json!({}), "x").is_none());
}
