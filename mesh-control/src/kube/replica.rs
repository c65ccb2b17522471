//! What each replica knows of its proxies, in a ConfigMap of its own, for the leader to add up: on how many of them each
//! policy object is in force.
//!
//! A replica writes when its counts have changed, at most every 5 s, and every 30 s to say that it lives. The ConfigMap
//! goes with the replica's pod; one that has not been written for 90 s is not counted.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use mesh_api::crd::ObjectRef;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::call::{CallError, call};
use super::{MANAGER, labels};
use crate::discovery::{Programmed, ProxyStatus, SyncState};

/// Marks the ConfigMaps.
pub(super) const LABEL: (&str, &str) = ("mesh.dev/status", "replica");
const KEY: &str = "counts.json";
/// Between two writes.
const PAUSE: Duration = Duration::from_secs(5);
/// A replica that has nothing new to say says so.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// A replica that says nothing is gone.
const SILENT: Duration = Duration::from_secs(90);
/// Below what the API server takes, 1 MiB.
const MAX_BYTES: usize = 900 * 1024;
/// How long the last word at the end may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// What replicas say, added up or of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Versions of control planes.
    pub versions: Vec<String>,
    /// Connected proxies.
    pub proxies: u32,
    /// Those that have acknowledged everything.
    pub in_sync: u32,
    /// By `<kind>/<namespace>/<name>`. Objects that no proxy holds anything of are not in it.
    pub objects: BTreeMap<String, Count>,
}

/// On how many proxies an object is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Proxies that hold a resource which it affects.
    pub holding: u32,
    /// Those of them that have acknowledged it.
    pub programmed: u32,
}

impl Counts {
    /// What this replica knows of its proxies.
    #[must_use]
    pub fn of(programmed: &BTreeMap<ObjectRef, Programmed>, proxies: &[ProxyStatus]) -> Self {
        let small = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let objects = programmed.iter().map(|(object, count)| {
            let count = Count {
                holding: small(count.of),
                programmed: small(count.on),
            };
            (key(object), count)
        });
        let settled = |proxy: &&ProxyStatus| {
            let mut states = proxy.types.values().map(|status| status.state);
            states.all(|state| matches!(state, SyncState::Synced | SyncState::NotSent))
        };
        Self {
            versions: vec![env!("CARGO_PKG_VERSION").to_owned()],
            proxies: small(proxies.len()),
            in_sync: small(proxies.iter().filter(settled).count()),
            objects: objects.collect(),
        }
    }

    /// What is known of an object.
    #[must_use]
    pub fn object(&self, object: &ObjectRef) -> Count {
        self.objects.get(&key(object)).cloned().unwrap_or_default()
    }

    fn add(&mut self, other: Self) {
        self.versions.extend(other.versions);
        self.versions.sort();
        self.versions.dedup();
        self.proxies += other.proxies;
        self.in_sync += other.in_sync;
        for (object, count) in other.objects {
            let sum = self.objects.entry(object).or_default();
            sum.holding += count.holding;
            sum.programmed += count.programmed;
        }
    }

    fn to_json(&self) -> String {
        let text = serde_json::to_string(self).unwrap_or_default();
        if text.len() <= MAX_BYTES {
            return text;
        }
        metrics::counter!("mesh_status_counts_truncated_total").increment(1);
        tracing::warn!(
            "counts of {} policy objects do not fit into a ConfigMap: some will be shown as not in use",
            self.objects.len()
        );
        let share = MAX_BYTES / (text.len() / self.objects.len().max(1) + 1);
        let mut shortened = self.clone();
        shortened.objects = self.objects.clone().into_iter().take(share / 2).collect();
        serde_json::to_string(&shortened).unwrap_or_default()
    }
}

fn key(object: &ObjectRef) -> String {
    format!("{}/{}/{}", object.kind, object.namespace, object.name)
}

/// Publishes the counts of this replica.
pub struct Replica {
    client: Client,
    namespace: String,
    /// Name of the pod.
    name: String,
    count: Arc<dyn Fn() -> Counts + Send + Sync>,
}

impl Replica {
    /// For the replica in the pod of that name; `count` may take a while.
    #[must_use]
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        count: impl Fn() -> Counts + Send + Sync + 'static,
    ) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            count: Arc::new(count),
        }
    }

    /// Runs until `shutdown`, then takes the ConfigMap away.
    pub async fn run(self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.publish()).await;
        let name = self.config_map_name();
        let (api, params) = (self.config_maps(), DeleteParams::default());
        let farewell = call(|| format!("deleting ConfigMap {name}"), api.delete(&name, &params));
        match tokio::time::timeout(FAREWELL, farewell).await {
            Ok(Err(error)) if !error.is_not_found() => tracing::debug!("{error}"),
            _ => {}
        }
    }

    async fn publish(&self) {
        let mut owner = None;
        let mut said: Option<(Counts, Instant)> = None;
        loop {
            let started = Instant::now();
            let count = self.count.clone();
            let counted = tokio::task::spawn_blocking(move || count()).await;
            let counts = counted.unwrap_or_default();
            let silent = said.as_ref().is_none_or(|(_, at)| at.elapsed() >= HEARTBEAT);
            if silent || said.as_ref().is_none_or(|(before, _)| *before != counts) {
                if owner.is_none() {
                    owner = self.owner().await;
                }
                match self.write(&counts, owner.clone()).await {
                    Ok(()) => said = Some((counts, Instant::now())),
                    Err(error) => tracing::warn!("{error}"),
                }
            }
            // Counting many proxies takes a while: it must not be all that is done.
            tokio::time::sleep(PAUSE.max(started.elapsed() * 5)).await;
        }
    }

    /// The pod, so that the ConfigMap goes with it. Outside a pod there is none.
    async fn owner(&self) -> Option<OwnerReference> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let pod = call(|| format!("reading Pod {}", self.name), pods.get_opt(&self.name)).await;
        let pod = pod.inspect_err(|error| tracing::warn!("{error}")).ok()??;
        Some(OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: self.name.clone(),
            uid: pod.metadata.uid?,
            ..OwnerReference::default()
        })
    }

    async fn write(&self, counts: &Counts, owner: Option<OwnerReference>) -> Result<(), CallError> {
        let name = self.config_map_name();
        let mut labels = labels();
        labels.insert(LABEL.0.to_owned(), LABEL.1.to_owned());
        let config_map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels),
                owner_references: owner.map(|owner| vec![owner]),
                annotations: Some(BTreeMap::from([(
                    "mesh.dev/written".to_owned(),
                    jiff::Timestamp::now().to_string(),
                )])),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(KEY.to_owned(), counts.to_json())])),
            ..ConfigMap::default()
        };
        let params = PatchParams::apply(MANAGER).force();
        let api = self.config_maps();
        let what = || format!("writing ConfigMap {}/{name}", self.namespace);
        call(what, api.patch(&name, &params, &Patch::Apply(&config_map))).await?;
        Ok(())
    }

    fn config_maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn config_map_name(&self) -> String {
        format!("mesh-status-{}", self.name)
    }
}

/// Reads what all replicas say.
pub struct Replicas {
    api: Api<ConfigMap>,
    /// Versions of ConfigMaps, and since when they are known.
    seen: HashMap<String, (String, Instant)>,
}

impl Replicas {
    /// In the control plane's namespace.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            seen: HashMap::new(),
        }
    }

    /// The sum of what replicas say that are alive.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn read(&mut self) -> Result<Counts, CallError> {
        let params = ListParams::default().labels(&format!("{}={}", LABEL.0, LABEL.1));
        let what = || "listing the ConfigMaps of replicas".to_owned();
        let listed = call(what, self.api.list(&params)).await?;
        let mut seen = HashMap::new();
        let mut sum = Counts::default();
        for map in listed {
            let (name, version) = (map.name_any(), map.resource_version().unwrap_or_default());
            let since = match self.seen.get(&name) {
                Some((known, since)) if *known == version => *since,
                _ => Instant::now(),
            };
            seen.insert(name.clone(), (version, since));
            if since.elapsed() >= SILENT {
                continue;
            }
            let text = map.data.and_then(|mut data| data.remove(KEY)).unwrap_or_default();
            match serde_json::from_str(&text) {
                Ok(counts) => sum.add(counts),
                Err(error) => tracing::warn!("ConfigMap {name}: {KEY}: {error}; it is not counted"),
            }
        }
        self.seen = seen;
        Ok(sum)
    }
}

#[cfg(test)]
mod tests;
