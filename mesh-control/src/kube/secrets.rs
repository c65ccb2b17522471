//! The authority's keys and certificates in Secrets: `cacerts` where an operator plugs one in, else `mesh-ca`, which is
//! made when there is none. Of replicas that start at once one creates it and the others read that.
//!
//! Both are watched: what changes in them is taken up without a restart, after it was seen to work. What does not work,
//! or is deleted, leaves in force what was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watch_object};
use kube::{Api, Client};
use mesh_api::identity::TrustDomain;
use tokio_util::sync::CancellationToken;

use super::call::{CallError, call};
use super::{CA_SECRET, MANAGER, PLUGGED_IN_SECRET, labels};
use crate::ca::{Authority, CA_CERT, CA_KEY, CERT_CHAIN, Files, Lifetimes, MaterialError, ROOT_CERT, ROOT_KEY};

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(15);

/// Why the Secrets do not make an authority.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The API server did not do its part.
    #[error(transparent)]
    Call(#[from] CallError),
    /// What they hold does not work.
    #[error(transparent)]
    Material(#[from] MaterialError),
}

/// Where the authority is kept, and for whom it signs.
#[derive(Clone)]
pub struct CaSecrets {
    secrets: Api<Secret>,
    namespace: String,
    trust_domain: TrustDomain,
    lifetimes: Lifetimes,
}

/// An authority, and what it was read from.
pub struct Opened {
    /// The authority.
    pub authority: Arc<Authority>,
    files: Files,
}

impl CaSecrets {
    /// The Secrets in the control plane's own namespace.
    #[must_use]
    pub fn new(client: Client, namespace: &str, trust_domain: TrustDomain, lifetimes: Lifetimes) -> Self {
        Self {
            secrets: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            trust_domain,
            lifetimes,
        }
    }

    /// Reads the Secrets, and makes `mesh-ca` when there is none.
    ///
    /// # Errors
    /// When the API server does not answer, or what is there does not work; then trying again later may.
    pub async fn open(&self) -> Result<Opened, SecretError> {
        let files = self.load_or_create().await?;
        let authority = Authority::from_files(&files, &self.trust_domain, self.lifetimes)?;
        Ok(Opened { authority, files })
    }

    /// As [`Self::open`], again and again with growing pauses until it works. `None` at `shutdown`.
    pub async fn wait(&self, shutdown: &CancellationToken) -> Option<Opened> {
        let mut pause = FIRST_RETRY;
        loop {
            let error = match shutdown.run_until_cancelled(self.open()).await? {
                Ok(opened) => return Some(opened),
                Err(error) => error,
            };
            tracing::error!("{error}; trying again in {pause:?}");
            shutdown.run_until_cancelled(tokio::time::sleep(pause)).await?;
            pause = (pause * 2).min(LAST_RETRY);
        }
    }

    async fn load_or_create(&self) -> Result<Files, SecretError> {
        // A Secret that appears or goes between two calls costs a round; nobody does that for ever.
        loop {
            for name in [PLUGGED_IN_SECRET, CA_SECRET] {
                let what = || format!("reading the certificate authority's {}", self.place(name));
                if let Some(secret) = call(what, self.secrets.get_opt(name)).await? {
                    return Ok(self.files(name, secret));
                }
            }
            let files = Files::new_root(&self.place(CA_SECRET), self.trust_domain.as_str())?;
            let params = PostParams {
                field_manager: Some(MANAGER.to_owned()),
                ..PostParams::default()
            };
            let what = || format!("creating the certificate authority's {}", self.place(CA_SECRET));
            match call(what, self.secrets.create(&params, &secret(CA_SECRET, &files))).await {
                Ok(_) => {
                    tracing::info!("{} is made, with a new self-signed root", self.place(CA_SECRET));
                    return Ok(files);
                }
                Err(error) if error.already_exists() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes up changes of the Secrets until `shutdown`.
    pub async fn follow(self, opened: Opened, shutdown: CancellationToken) {
        let Opened { authority, mut files } = opened;
        let watch = |name: &'static str| watched(self.secrets.clone(), name);
        let mut changes = futures_util::stream::select(watch(PLUGGED_IN_SECRET), watch(CA_SECRET)).boxed();
        let mut plugged_in: Option<Option<Secret>> = None;
        let mut own: Option<Option<Secret>> = None;
        while let Some(Some((name, secret))) = shutdown.run_until_cancelled(changes.next()).await {
            match name {
                PLUGGED_IN_SECRET => plugged_in = Some(secret),
                _ => own = Some(secret),
            }
            // Until both are known, which comes first is not.
            let (Some(plugged_in), Some(own)) = (&plugged_in, &own) else {
                continue;
            };
            let current = match (plugged_in, own) {
                (Some(secret), _) => self.files(PLUGGED_IN_SECRET, secret.clone()),
                (None, Some(secret)) => self.files(CA_SECRET, secret.clone()),
                (None, None) => {
                    tracing::error!(
                        "{} is gone: what it held stays in force until this process ends, and the next one makes a new \
                         root; restore it",
                        self.place(CA_SECRET)
                    );
                    continue;
                }
            };
            if current == files {
                continue;
            }
            match replace(&authority, &current) {
                Ok(()) => files = current,
                Err(error) => tracing::error!("{error}; what was in force before stays"),
            }
        }
    }

    fn files(&self, name: &str, secret: Secret) -> Files {
        let known = [ROOT_CERT, ROOT_KEY, CA_CERT, CA_KEY, CERT_CHAIN];
        let content = secret.data.unwrap_or_default().into_iter();
        Files {
            place: self.place(name),
            content: content
                .filter(|(file, _)| known.contains(&file.as_str()))
                .map(|(file, ByteString(bytes))| (file, bytes))
                .collect(),
        }
    }

    fn place(&self, name: &str) -> String {
        format!("Secret {}/{name}", self.namespace)
    }
}

fn replace(authority: &Authority, files: &Files) -> Result<(), MaterialError> {
    let before = authority.fingerprint();
    let old_root = authority.roots().first().cloned();
    authority.replace(files)?;
    metrics::counter!("mesh_ca_material_changes_total").increment(1);
    tracing::info!(root = %authority.fingerprint(), "the certificate authority signs with what {} holds now", files.place);
    if authority.fingerprint() != before && !old_root.is_some_and(|old| authority.roots().contains(&old)) {
        tracing::warn!(
            "the previous root is no longer among the trusted ones in {}: proxies that renewed their certificates before \
             do not believe those that renew now; add the previous root to root-cert.pem until all have renewed",
            files.place
        );
    }
    Ok(())
}

/// States of a Secret, `None` while there is none. Disconnections and lists anew are the watcher's concern.
fn watched(api: Api<Secret>, name: &'static str) -> impl Stream<Item = (&'static str, Option<Secret>)> + Send {
    let failed = move |error: watcher::Error| tracing::warn!("watching Secret {name}: {error}");
    watch_object(api, name)
        .default_backoff()
        .filter_map(move |state| async move { state.map_err(failed).ok().map(|secret| (name, secret)) })
}

fn secret(name: &str, files: &Files) -> Secret {
    let content = files.content.iter();
    let data: BTreeMap<_, _> = content
        .map(|(file, bytes)| (file.clone(), ByteString(bytes.clone())))
        .collect();
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels()),
            ..ObjectMeta::default()
        },
        data: Some(data),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests;
