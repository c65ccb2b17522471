//! Keeps the serving certificate: in its Secret, in the webhooks' `caBundle`, and in the server, in this order. A server
//! that changes to a certificate before API servers have heard of its authority would be refused.

use std::fmt;
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::stream::{StreamExt as _, select};
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ListParams, ObjectMeta, PartialObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::certificate::{Serving, Unusable};
use crate::cluster::KubeCluster;
use crate::options::Options;

/// Between two looks when nothing is reported; lost watches are made good by it.
const PERIOD: Duration = Duration::from_secs(20);
/// After a failure.
const RETRY: Duration = Duration::from_secs(2);
/// Changes that come together are looked at together.
const SETTLE: Duration = Duration::from_millis(100);
/// Versions of nodes change rarely.
const VERSIONS_PERIOD: Duration = Duration::from_secs(120);
/// How long one look may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// Between the publication of an authority and its use; API servers follow within seconds.
const OVERLAP: Duration = Duration::from_secs(30);
const MANAGER: &str = "mesh-injector";

/// The certificate that the server shows, exchanged while it runs.
#[derive(Default)]
pub struct Shown(RwLock<Option<Arc<CertifiedKey>>>);

impl Shown {
    /// Shows another certificate from the next connection on.
    pub fn set(&self, key: Arc<CertifiedKey>) {
        *self.0.write().unwrap_or_else(|e| e.into_inner()) = Some(key);
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(|e| e.into_inner()).clone()
    }
}

/// Why a look failed; the next one tries again.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("Secret {0}: {1}")]
    Secret(String, Box<kube::Error>),
    #[error("a certificate cannot be made: {0}")]
    Issue(#[from] Unusable),
    #[error("{0}: {1}")]
    Webhook(String, Box<kube::Error>),
    #[error("versions of the cluster: {0}")]
    Versions(Box<kube::Error>),
    #[error("no answer within {}s", LOOK_TIMEOUT.as_secs())]
    Timeout,
}

/// Keeps one injector's certificate.
pub struct Keeper {
    cluster: KubeCluster,
    options: Options,
    shown: Arc<Shown>,
    rollover: Rollover,
    versions_due: SystemTime,
    ready: watch::Sender<bool>,
}

impl Keeper {
    /// A keeper for `shown`; `ready` becomes true when the webhooks can be served.
    pub fn new(cluster: KubeCluster, options: Options, shown: Arc<Shown>, ready: watch::Sender<bool>) -> Self {
        let overlap = OVERLAP.min(options.certificate_ttl / 12);
        Self {
            cluster,
            options,
            shown,
            rollover: Rollover::new(overlap),
            versions_due: SystemTime::UNIX_EPOCH,
            ready,
        }
    }

    /// Looks after everything until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let client = self.cluster.client().clone();
        let only = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
        // Of all mutating webhooks: one of them may become Istio's.
        let mutating = Api::<PartialObjectMeta<MutatingWebhookConfiguration>>::all(client.clone());
        let validating = Api::<PartialObjectMeta<ValidatingWebhookConfiguration>>::all(client);
        let mutating = watcher(mutating, watcher::Config::default()).default_backoff();
        let validating = watcher(validating, only(&self.options.validating_webhook)).default_backoff();
        let changes = select(
            mutating.map(|event| event.is_ok()),
            validating.map(|event| event.is_ok()),
        );
        let mut changes = std::pin::pin!(changes);
        loop {
            let pause = match tokio::time::timeout(LOOK_TIMEOUT, self.look(SystemTime::now())).await {
                Ok(Ok(pause)) => pause,
                outcome => {
                    let error = outcome.map_or(KeepError::Timeout, |look| look.err().unwrap_or(KeepError::Timeout));
                    metrics::counter!("injector_certificate_errors_total").increment(1);
                    tracing::error!("{error}; trying again in {}s", RETRY.as_secs());
                    RETRY
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                _ = changes.next() => {
                    // A list reports each of its objects.
                    let settled = tokio::time::sleep(SETTLE);
                    let mut settled = std::pin::pin!(settled);
                    loop {
                        tokio::select! {
                            () = &mut settled => break,
                            _ = changes.next() => {}
                        }
                    }
                }
            }
        }
    }

    /// One look at everything: the time until the next.
    async fn look(&mut self, now: SystemTime) -> Result<Duration, KeepError> {
        if now >= self.versions_due {
            match self.cluster.observe_versions().await {
                Ok(()) => self.versions_due = now + VERSIONS_PERIOD,
                // What is known already may be used on.
                Err(error) if *self.ready.borrow() => tracing::warn!("versions of the cluster: {error}"),
                Err(error) => return Err(KeepError::Versions(Box::new(error))),
            }
        }
        let store = Store::new(&self.cluster, &self.options);
        let serving = store.ensure(now).await?;
        self.publish(&serving).await?;
        let seconds = serving
            .not_after()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        metrics::gauge!("injector_certificate_expiry_timestamp").set(seconds.as_secs_f64());
        let renew_in = serving.renew_at().duration_since(now).unwrap_or_default();
        let pause = match self.rollover.published(serving, now) {
            Step::Show(serving) => {
                tracing::info!(names = %self.options.dns_names().join(", "), "serving a new certificate");
                self.shown.set(serving.key());
                self.ready.send_replace(true);
                PERIOD
            }
            Step::Wait(pause) => pause,
            Step::Keep => PERIOD,
        };
        Ok(pause.min(renew_in).clamp(SETTLE, PERIOD))
    }

    /// Gives the webhooks the authorities to trust, wherever they differ.
    async fn publish(&self, serving: &Serving) -> Result<(), KeepError> {
        let client = self.cluster.client();
        let bundle = BASE64_STANDARD.encode(&serving.ca_pem);
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error| KeepError::Webhook(what, Box::new(error))
        };
        let name = &self.options.mutating_webhook;
        let api = Api::<MutatingWebhookConfiguration>::all(client.clone());
        let all = api
            .list(&ListParams::default())
            .await
            .map_err(failed("mutating webhooks"))?;
        self.cluster.observe_webhooks(&all.items);
        if let Some(own) = all
            .items
            .iter()
            .find(|webhook| webhook.metadata.name.as_deref() == Some(name))
        {
            let patch = bundle_patch(&serde_json::to_value(own).unwrap_or_default(), &bundle);
            apply(&api, name, patch).await.map_err(failed(name))?;
        }
        let name = &self.options.validating_webhook;
        let api = Api::<ValidatingWebhookConfiguration>::all(client.clone());
        if let Some(own) = api.get_opt(name).await.map_err(failed(name))? {
            let patch = bundle_patch(&serde_json::to_value(own).unwrap_or_default(), &bundle);
            apply(&api, name, patch).await.map_err(failed(name))?;
        }
        Ok(())
    }
}

async fn apply<K>(api: &Api<K>, name: &str, patch: Option<json_patch::Patch>) -> Result<(), kube::Error>
where
    K: Clone + serde::de::DeserializeOwned + fmt::Debug,
{
    let Some(patch) = patch else { return Ok(()) };
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    match api.patch(name, &params, &Patch::<()>::Json(patch)).await {
        Ok(_) => {
            tracing::info!(webhook = name, "caBundle written");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

/// The patch that gives every webhook of a configuration the bundle; none where they have it. The names are tested, so
/// that a list that was changed meanwhile is not mixed up.
fn bundle_patch(configuration: &Value, bundle: &str) -> Option<json_patch::Patch> {
    let mut operations = Vec::new();
    let webhooks = configuration["webhooks"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    for (index, webhook) in webhooks.iter().enumerate() {
        if webhook["clientConfig"]["caBundle"] == bundle {
            continue;
        }
        operations.push(json!({"op": "test", "path": format!("/webhooks/{index}/name"), "value": webhook["name"]}));
        let path = format!("/webhooks/{index}/clientConfig/caBundle");
        operations.push(json!({"op": "add", "path": path, "value": bundle}));
    }
    if operations.is_empty() {
        return None;
    }
    serde_json::from_value(Value::Array(operations)).ok()
}

/// The Secret with the certificate.
struct Store<'a> {
    secrets: Api<Secret>,
    options: &'a Options,
    names: Vec<String>,
}

impl<'a> Store<'a> {
    fn new(cluster: &KubeCluster, options: &'a Options) -> Self {
        Self {
            secrets: Api::namespaced(cluster.client().clone(), &options.pod_namespace),
            options,
            names: options.dns_names(),
        }
    }

    /// The certificate in force: that of the Secret, or a new one when there is none, it is of no use, or two thirds of
    /// its life are over. Of two replicas that make one at once, the second takes that of the first.
    async fn ensure(&self, now: SystemTime) -> Result<Serving, KeepError> {
        let name = &self.options.certificate_secret;
        let failed = |error| KeepError::Secret(name.clone(), Box::new(error));
        let ttl = self.options.certificate_ttl;
        // Once more after somebody else was first.
        for _ in 0..2 {
            let found = self.secrets.get_opt(name).await.map_err(failed)?;
            let params = PostParams {
                field_manager: Some(MANAGER.to_owned()),
                ..PostParams::default()
            };
            let (serving, outcome) = match found {
                None => {
                    let serving = Serving::issue(&self.names, now, ttl, None)?;
                    let secret = self.secret(&serving, Secret::default());
                    let created = self.secrets.create(&params, &secret).await;
                    (serving, created)
                }
                Some(found) => {
                    let data = found.data.clone().unwrap_or_default();
                    let current = Serving::parse(&data, &self.names, now);
                    let previous = match current {
                        Ok(current) if now < current.renew_at() => return Ok(current),
                        Ok(current) => Some(current),
                        Err(unusable) => {
                            tracing::warn!(secret = name, "replaced, because it is of no use: {unusable}");
                            None
                        }
                    };
                    let serving = Serving::issue(&self.names, now, ttl, previous.as_ref())?;
                    // With its resourceVersion: whoever is second fails.
                    let secret = self.secret(&serving, found);
                    let replaced = self.secrets.replace(name, &params, &secret).await;
                    (serving, replaced)
                }
            };
            match outcome {
                Ok(_) => {
                    tracing::info!(secret = name, "new certificate");
                    metrics::counter!("injector_certificate_rotations_total").increment(1);
                    return Ok(serving);
                }
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Err(failed(kube::Error::Api(Box::new(kube::core::Status::failure(
            "others change it at the same time",
            "Conflict",
        )))))
    }

    /// The Secret with another certificate in it; what is not the injector's stays as it was.
    fn secret(&self, serving: &Serving, found: Secret) -> Secret {
        let labels = [
            ("app.kubernetes.io/part-of", "mesh"),
            ("app.kubernetes.io/component", "mesh-injector"),
        ];
        Secret {
            metadata: ObjectMeta {
                name: Some(self.options.certificate_secret.clone()),
                namespace: Some(self.options.pod_namespace.clone()),
                managed_fields: None,
                labels: found
                    .metadata
                    .labels
                    .or_else(|| Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into())),
                ..found.metadata
            },
            type_: found.type_.or_else(|| Some("kubernetes.io/tls".to_owned())),
            data: Some(serving.data()),
            ..Secret::default()
        }
    }
}

/// When to change from one certificate to the next.
struct Rollover {
    overlap: Duration,
    shown: Option<Arc<Serving>>,
    /// The next one, and since when API servers have been told of it.
    next: Option<(Arc<Serving>, SystemTime)>,
}

/// What to do about a certificate that is published.
enum Step {
    Show(Arc<Serving>),
    Wait(Duration),
    Keep,
}

impl Rollover {
    fn new(overlap: Duration) -> Self {
        Self {
            overlap,
            shown: None,
            next: None,
        }
    }

    /// Takes the certificate that the webhooks trust by now.
    fn published(&mut self, serving: Serving, now: SystemTime) -> Step {
        let Some(shown) = &self.shown else {
            return self.show(Arc::new(serving));
        };
        if shown.is_same(&serving) {
            self.next = None;
            return Step::Keep;
        }
        let (next, since) = match self.next.take() {
            Some((next, since)) if next.is_same(&serving) => (next, since),
            _ => (Arc::new(serving), now),
        };
        // One that has ended is no better than one that is not known yet.
        let until = (since + self.overlap).min(shown.not_after());
        match until.duration_since(now) {
            Ok(left) if !left.is_zero() => {
                self.next = Some((next, since));
                Step::Wait(left)
            }
            _ => self.show(next),
        }
    }

    fn show(&mut self, serving: Arc<Serving>) -> Step {
        self.next = None;
        self.shown = Some(serving.clone());
        Step::Show(serving)
    }
}

#[cfg(test)]
mod tests;
