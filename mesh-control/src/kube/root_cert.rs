//! ConfigMap `mesh-ca-root-cert` in every namespace of the mesh: what pods recognise the control plane by.
//!
//! A namespace is in the mesh when its label says so, or when a pod in it asks for a sidecar. The ConfigMap is made,
//! mended when it differs, and made again when it is deleted; it stays when a namespace leaves the mesh, since pods that
//! mount it may still run. Only the leader runs this.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{ObjectMeta, PartialObjectMeta, PostParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::time::{Instant, sleep_until};

use super::call::{CallError, call};
use super::{MANAGER, ROOT_CERT_CONFIG_MAP, labels};
use crate::ca::{Authority, ROOT_CERT};

/// What puts all pods of a namespace into the mesh.
const NAMESPACE_LABELS: [(&str, &str); 3] = [
    ("istio-injection", "enabled"),
    ("mesh.dev/inject", "enabled"),
    ("mesh.dev/inject", "true"),
];
/// What puts a single pod into the mesh.
const POD_SELECTORS: [&str; 3] = [
    "sidecar.istio.io/inject=true",
    "mesh.dev/inject=true",
    "mesh.dev/inject=enabled",
];
/// Changes that come together are acted on together.
const SETTLE: Duration = Duration::from_millis(50);
/// After a namespace could not be written.
const RETRY: Duration = Duration::from_secs(5);
/// Longest that a watch may keep its first answer; until then what is known is acted on.
const FIRST_LISTS: Duration = Duration::from_secs(10);

/// Keeps the ConfigMaps.
#[derive(Clone)]
pub struct RootCert {
    client: Client,
    authority: Arc<Authority>,
}

/// What is known of a namespace.
#[derive(Debug, Default)]
struct Known {
    labelled: bool,
    terminating: bool,
    /// Pods that ask for a sidecar, by the selector that found them.
    pods: BTreeSet<(usize, String)>,
    /// What its ConfigMap says.
    published: Option<String>,
}

impl Known {
    fn lacks(&self, roots: &str) -> bool {
        let in_mesh = self.labelled || !self.pods.is_empty();
        in_mesh && !self.terminating && self.published.as_deref() != Some(roots)
    }
}

/// What a watch says.
enum Seen {
    Namespace(Event<PartialObjectMeta<Namespace>>),
    Pod(usize, Event<PartialObjectMeta<Pod>>),
    ConfigMap(Event<ConfigMap>),
}

impl RootCert {
    /// Publishes the roots of `authority`.
    #[must_use]
    pub fn new(client: Client, authority: Arc<Authority>) -> Self {
        Self { client, authority }
    }

    /// Runs until it is dropped.
    pub async fn run(&self) {
        let mut roots = self.authority.changes();
        let mut seen = self.watch();
        let mut known: BTreeMap<String, Known> = BTreeMap::new();
        let mut lists = Lists::default();
        // Writing before all lists are there would write what is there already.
        let mut next = Some(Instant::now() + FIRST_LISTS);
        loop {
            let due = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(event) = seen.next() => {
                    let complete = lists.note(&event);
                    take_in(&mut known, event);
                    if complete {
                        next = Some(next.unwrap_or(Instant::now() + SETTLE).min(Instant::now() + SETTLE));
                    }
                }
                Ok(()) = roots.changed() => next = Some(Instant::now()),
                () = due => next = self.write(&mut known).await.then(|| Instant::now() + RETRY),
            }
        }
    }

    /// Writes where something lacks. Whether some of it failed.
    async fn write(&self, known: &mut BTreeMap<String, Known>) -> bool {
        let roots = self.authority.roots_pem();
        let mut failed = false;
        for (namespace, known) in known.iter_mut().filter(|(_, known)| known.lacks(&roots)) {
            match self.publish(namespace, &roots).await {
                Ok(()) => known.published = Some(roots.clone()),
                // Gone meanwhile; the watch will say so too.
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    tracing::warn!("{error}; trying again in {RETRY:?}");
                    failed = true;
                }
            }
        }
        failed
    }

    async fn publish(&self, namespace: &str, roots: &str) -> Result<(), CallError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let params = PostParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PostParams::default()
        };
        let what = || format!("writing ConfigMap {namespace}/{ROOT_CERT_CONFIG_MAP}");
        if let Some(mut present) = call(what, api.get_opt(ROOT_CERT_CONFIG_MAP)).await? {
            let data = present.data.get_or_insert_default();
            if data.get(ROOT_CERT).is_some_and(|published| published == roots) {
                return Ok(());
            }
            data.insert(ROOT_CERT.to_owned(), roots.to_owned());
            present.labels_mut().extend(labels());
            call(what, api.replace(ROOT_CERT_CONFIG_MAP, &params, &present)).await?;
        } else {
            call(what, api.create(&params, &config_map(roots))).await?;
        }
        metrics::counter!("mesh_root_cert_writes_total").increment(1);
        tracing::info!("ConfigMap {namespace}/{ROOT_CERT_CONFIG_MAP} holds the mesh's roots");
        Ok(())
    }

    fn watch(&self) -> BoxStream<'static, Seen> {
        let config = watcher::Config::default;
        let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(self.client.clone());
        let pods: Api<PartialObjectMeta<Pod>> = Api::all(self.client.clone());
        let config_maps: Api<ConfigMap> = Api::all(self.client.clone());
        let by_name = format!("metadata.name={ROOT_CERT_CONFIG_MAP}");
        let mut all: Vec<BoxStream<'static, Seen>> = vec![
            steady(
                "namespaces",
                watcher(namespaces, config()).map(|event| event.map(Seen::Namespace)),
            ),
            steady(
                "ConfigMaps",
                watcher(config_maps, config().fields(&by_name)).map(|event| event.map(Seen::ConfigMap)),
            ),
        ];
        for (index, selector) in POD_SELECTORS.iter().enumerate() {
            let events = watcher(pods.clone(), config().labels(selector));
            all.push(steady(
                "pods",
                events.map(move |event| event.map(|event| Seen::Pod(index, event))),
            ));
        }
        futures_util::stream::select_all(all).boxed()
    }
}

/// Which of the watches have said all that was there at the start.
#[derive(Default)]
struct Lists(BTreeSet<usize>);

impl Lists {
    /// Notes what an event says about that. Whether all lists are complete.
    fn note(&mut self, seen: &Seen) -> bool {
        let (list, done) = match seen {
            Seen::Namespace(event) => (0, matches!(event, Event::InitDone)),
            Seen::ConfigMap(event) => (1, matches!(event, Event::InitDone)),
            Seen::Pod(index, event) => (2 + index, matches!(event, Event::InitDone)),
        };
        if done {
            self.0.insert(list);
        }
        self.0.len() == 2 + POD_SELECTORS.len()
    }
}

/// Disconnections and lists anew are the watcher's concern.
fn steady(
    what: &'static str,
    events: impl Stream<Item = watcher::Result<Seen>> + Send + 'static,
) -> BoxStream<'static, Seen> {
    events
        .default_backoff()
        .filter_map(move |event| async move {
            event
                .map_err(|error| tracing::warn!("watching {what} for the mesh's roots: {error}"))
                .ok()
        })
        .boxed()
}

fn take_in(known: &mut BTreeMap<String, Known>, seen: Seen) {
    match seen {
        Seen::Namespace(Event::Init) => known.values_mut().for_each(|known| known.labelled = false),
        Seen::Namespace(Event::Apply(namespace) | Event::InitApply(namespace)) => {
            let known = known.entry(namespace.name_any()).or_default();
            let labels = namespace.labels();
            let has = |(name, value): &(&str, &str)| labels.get(*name).is_some_and(|is| is == value);
            known.labelled = NAMESPACE_LABELS.iter().any(has);
            known.terminating = namespace.metadata.deletion_timestamp.is_some();
        }
        Seen::Namespace(Event::Delete(namespace)) => {
            known.remove(&namespace.name_any());
        }
        Seen::Pod(by, Event::Init) => known
            .values_mut()
            .for_each(|known| known.pods.retain(|(other, _)| *other != by)),
        Seen::Pod(by, Event::Apply(pod) | Event::InitApply(pod)) => {
            let namespace = pod.namespace().unwrap_or_default();
            known.entry(namespace).or_default().pods.insert((by, pod.name_any()));
        }
        Seen::Pod(by, Event::Delete(pod)) => {
            if let Some(known) = known.get_mut(&pod.namespace().unwrap_or_default()) {
                known.pods.remove(&(by, pod.name_any()));
            }
        }
        Seen::ConfigMap(Event::Init) => known.values_mut().for_each(|known| known.published = None),
        Seen::ConfigMap(Event::Apply(map) | Event::InitApply(map)) => {
            let known = known.entry(map.namespace().unwrap_or_default()).or_default();
            known.published = map.data.and_then(|mut data| data.remove(ROOT_CERT));
        }
        Seen::ConfigMap(Event::Delete(map)) => {
            if let Some(known) = known.get_mut(&map.namespace().unwrap_or_default()) {
                known.published = None;
            }
        }
        Seen::Namespace(Event::InitDone) | Seen::Pod(_, Event::InitDone) | Seen::ConfigMap(Event::InitDone) => {}
    }
}

fn config_map(roots: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(ROOT_CERT_CONFIG_MAP.to_owned()),
            labels: Some(labels()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(ROOT_CERT.to_owned(), roots.to_owned())])),
        ..ConfigMap::default()
    }
}

#[cfg(test)]
mod tests;
