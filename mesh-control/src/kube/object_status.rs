//! Writes the status of policy objects. Only the leader runs this: it adds up what the replicas say of their proxies and
//! writes a status when it changes, at most every 10 s for an object.
//!
//! A status is read before it is written, so that what others say in it stays and what stands already is left alone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::ApiResource;
use kube::{Api, Client};
use mesh_api::crd::ObjectRef;
use mesh_api::crd::peer_authentication::MutualTlsMode;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::MANAGER;
use super::call::{CallError, call};
use super::conditions::{MeshFacts, Wanted, merged, wanted};
use super::replica::{Counts, Replicas};
use crate::compile::Resolver;
use crate::source::kube::PolicyObject;

/// Between two looks at what replicas say.
const LOOK: Duration = Duration::from_secs(5);
/// Objects that change together are looked at together.
const SETTLE: Duration = Duration::from_millis(300);
/// Between two writes of one object's status.
const PAUSE: Duration = Duration::from_secs(10);
/// Objects that are read and written at once.
const AT_ONCE: usize = 8;
/// Objects that are read and written in one round; the others follow in the next.
const ROUND: usize = 400;

/// Writes statuses.
#[derive(Clone)]
pub struct StatusWriter {
    client: Client,
    namespace: String,
    objects: watch::Receiver<Arc<[PolicyObject]>>,
    resolver: Arc<Resolver>,
}

/// What was written of an object, and when.
struct Written {
    wanted: Wanted,
    at: Instant,
    /// It has to be tried again.
    failed: bool,
}

impl StatusWriter {
    /// For the policy objects that the control plane in `namespace` knows.
    #[must_use]
    pub fn new(
        client: Client,
        namespace: &str,
        objects: watch::Receiver<Arc<[PolicyObject]>>,
        resolver: Arc<Resolver>,
    ) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            objects,
            resolver,
        }
    }

    /// Runs until it is dropped.
    pub async fn run(&self) {
        let mut objects = self.objects.clone();
        let mut replicas = Replicas::new(self.client.clone(), &self.namespace);
        let mut counts: Option<Counts> = None;
        let mut written: HashMap<ObjectRef, Written> = HashMap::new();
        let mut next_look = Instant::now();
        loop {
            if next_look <= Instant::now() {
                match replicas.read().await {
                    Ok(read) => counts = Some(read),
                    Err(error) => tracing::warn!("{error}; counts stay as they were"),
                }
                next_look = Instant::now() + LOOK;
            }
            // Without counts every object would be said not to be in use.
            if let Some(counts) = &counts {
                let current = objects.borrow_and_update().clone();
                self.round(&current, counts, &mut written).await;
            }
            tokio::select! {
                () = sleep_until(next_look) => {}
                Ok(()) = objects.changed(), if counts.is_some() => tokio::time::sleep(SETTLE).await,
            }
        }
    }

    /// Writes what has changed and may be written now.
    async fn round(&self, objects: &[PolicyObject], counts: &Counts, written: &mut HashMap<ObjectRef, Written>) {
        let facts = self.facts(counts);
        let present: HashSet<&ObjectRef> = objects.iter().map(|object| &object.reference).collect();
        written.retain(|reference, _| present.contains(reference));
        let due = objects.iter().filter_map(|object| {
            let wanted = wanted(
                object,
                &counts.object(&object.reference),
                facts.fields(object.reference.kind),
            );
            let due = written
                .get(&object.reference)
                .is_none_or(|written| (written.failed || written.wanted != wanted) && written.at.elapsed() >= PAUSE);
            due.then(|| (object.clone(), wanted))
        });
        let writes: Vec<_> = due.take(ROUND).collect();
        let outcomes = futures_util::stream::iter(writes)
            .map(|(object, wanted)| {
                let writer = self.clone();
                async move {
                    let outcome = writer.write(&object, &wanted).await;
                    (object.reference, wanted, outcome)
                }
            })
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<_>>();
        for (reference, wanted, outcome) in outcomes.await {
            let failed = match outcome {
                Ok(()) => false,
                // Deleted meanwhile, or changed by somebody else: a later round sees it as it is then.
                Err(error) if error.is_not_found() || error.is_conflict() => true,
                Err(error) => {
                    tracing::warn!("{error}");
                    true
                }
            };
            let entry = Written {
                wanted,
                at: Instant::now(),
                failed,
            };
            written.insert(reference, entry);
        }
    }

    async fn write(&self, object: &PolicyObject, wanted: &Wanted) -> Result<(), CallError> {
        let reference = &object.reference;
        let api = self.api(object);
        let present = call(|| format!("reading {reference}"), api.get(&reference.name)).await?;
        let before = present.data.get("status").cloned().unwrap_or(Value::Null);
        let after = merged(&before, wanted, Timestamp::now());
        if after == before {
            return Ok(());
        }
        let patch = Patch::Merge(json!({
            // Somebody else's words in between must not be lost.
            "metadata": { "resourceVersion": present.metadata.resource_version },
            "status": after,
        }));
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let what = || format!("writing the status of {reference}");
        call(what, api.patch_status(&reference.name, &params, &patch)).await?;
        metrics::counter!("mesh_status_writes_total").increment(1);
        Ok(())
    }

    fn api(&self, object: &PolicyObject) -> Api<DynamicObject> {
        let kind = object.reference.kind;
        let version = object.api_version.rsplit('/').next().unwrap_or_default();
        let resource = ApiResource {
            group: kind.group(),
            version: version.to_owned(),
            api_version: object.api_version.to_string(),
            kind: kind.as_str().to_owned(),
            plural: kind.plural(),
        };
        if kind.is_namespaced() {
            Api::namespaced_with(self.client.clone(), &object.reference.namespace, &resource)
        } else {
            Api::all_with(self.client.clone(), &resource)
        }
    }

    fn facts(&self, counts: &Counts) -> MeshFacts {
        let world = self.resolver.world();
        let policies = world.security.authentication(world.root_namespace());
        let mesh_wide = policies.iter().find(|policy| policy.selector.is_none());
        MeshFacts {
            mtls_mode: match mesh_wide.and_then(|policy| policy.mode) {
                Some(MutualTlsMode::Strict) => "STRICT",
                Some(MutualTlsMode::Disable) => "DISABLE",
                Some(MutualTlsMode::Permissive | MutualTlsMode::Unset) | None => "PERMISSIVE",
            },
            trust_domain: world.trust_domain().to_string(),
            versions: counts.versions.clone(),
            proxies: counts.proxies,
            in_sync: counts.in_sync,
        }
    }
}

#[cfg(test)]
mod tests;
