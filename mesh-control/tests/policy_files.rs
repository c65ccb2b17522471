//! From files to answers: what is written into a directory is what discovery serves, with nothing in between stood in for.
// What fails in a helper fails its test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::model::{Destination, Inbound, RouteAction};
use mesh_api::wire::{self, ResourceType};
use mesh_control::compile::Resolver;
use mesh_control::discovery::resources::{Answer, Client, Resources, Touched};
use mesh_control::source::dir::{DirSource, Options};
use mesh_control::world::World;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(20);

const SERVICES: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: reviews}
spec:
  hosts: [reviews.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 9080}]
  workloadSelector: {labels: {app: reviews}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v1}
spec: {address: 127.0.1.1, serviceAccount: reviews, labels: {app: reviews, version: v1}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: client}
spec: {address: 127.0.1.2, serviceAccount: client, labels: {app: client}}
";

const TIMEOUT: &str = "
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata:
  name: reviews-timeout
spec:
  host: reviews
  trafficPolicy:
    timeout:
      http: 5s
";

const UNKNOWN_KEY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: strict}
spec:
  selector: {matchLabels: {app: reviews}}
  rules:
  - when: [{key: no.such.key, values: [a]}]
";

struct Control {
    own: TempDir,
    users: TempDir,
    resolver: Arc<Resolver>,
    _source: DirSource,
}

impl Control {
    async fn start() -> Self {
        let (own, users) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(own.path().join("services.yaml"), SERVICES).unwrap();
        let resolver = Arc::new(Resolver::new(World::new(mesh_control::world::Options::default())));
        let sink = resolver.clone();
        let roots = Options::new([own.path().to_owned(), users.path().to_owned()]);
        let source = DirSource::start(roots, move |events| sink.apply(&events)).unwrap();
        source.synced().await;
        Self {
            own,
            users,
            resolver,
            _source: source,
        }
    }

    fn client(&self, workload: &str, account: &str) -> Client {
        let identity = format!("spiffe://cluster.local/ns/default/sa/{account}");
        self.resolver
            .admit(&identity.parse().unwrap(), &workload.parse().unwrap())
            .unwrap()
    }

    fn reviews(&self) -> Option<Destination> {
        let client = self.client("client.default", "client");
        match self
            .resolver
            .resolve(&client, ResourceType::Destination, "reviews:80")
            .answer
        {
            Answer::Resource { bytes, .. } => Some(wire::decode_destination(&bytes).unwrap()),
            Answer::NotFound => None,
        }
    }

    fn inbound(&self) -> Inbound {
        let client = self.client("reviews-v1.default", "reviews");
        match self
            .resolver
            .resolve(&client, ResourceType::Inbound, "reviews-v1.default")
            .answer
        {
            Answer::Resource { bytes, .. } => wire::decode_inbound(&bytes).unwrap(),
            Answer::NotFound => panic!("not found"),
        }
    }

    fn timeout(&self) -> Option<Duration> {
        match &self.reviews().unwrap().routes[0].action {
            RouteAction::Forward(forward) => forward.timeout,
            other => panic!("{other:?}"),
        }
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < DEADLINE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn files_become_answers_and_changes_say_what_they_touch() {
    let control = Control::start().await;
    assert_eq!(control.timeout(), None);
    let client = control.client("client.default", "client");
    let ask = |kind, name: &str| control.resolver.resolve(&client, kind, name);
    let destination = ask(ResourceType::Destination, "reviews:80");
    let own = ask(ResourceType::Inbound, "client.default");

    let mut changes = control.resolver.changes();
    let file = control.users.path().join("timeout.yaml");
    fs::write(&file, TIMEOUT).unwrap();
    eventually("the timeout acts", || control.timeout() == Some(Duration::from_secs(5))).await;
    let change = changes.recv().await.unwrap();
    let Touched::Keys(keys) = &change.touched else {
        panic!("everything is touched");
    };
    assert!(destination.depends.iter().any(|key| keys.contains(key)));
    assert!(!own.depends.iter().any(|key| keys.contains(key)));

    fs::write(&file, TIMEOUT.replace("5s", "5 parsecs")).unwrap();
    fs::write(control.users.path().join("authz.yaml"), UNKNOWN_KEY).unwrap();
    eventually("the faulty policy denies", || {
        !control.inbound().authorization.is_empty()
    })
    .await;
    assert!(control.inbound().authorization[0].rules[0].invalid.is_some());
    assert_eq!(control.timeout(), Some(Duration::from_secs(5)), "the last good version");

    fs::remove_file(&file).unwrap();
    eventually("the timeout is gone", || control.timeout().is_none()).await;
    fs::remove_file(control.own.path().join("services.yaml")).unwrap();
    let id = "client.default".parse().unwrap();
    eventually("the services are gone", || {
        control.resolver.admit(&client.identity, &id).is_err()
    })
    .await;
}
