//! What `mesh-control cleanup` does once the mesh is uninstalled: takes away what control plane and injector made
//! themselves. CRDs, users' objects and running pods stay; pods keep their certificates until these end.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::{DeleteParams, ListParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt as _};
use mesh_api::crd::MeshConfig;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::call::{CallError, call};
use super::{CA_SECRET, LEASE, ROOT_CERT_CONFIG_MAP, labels, replica};

/// Where the injector keeps its serving certificate.
const INJECTOR_SECRET: &str = "mesh-injector-cert";
/// The MeshConfig that the chart makes.
const MESH_CONFIG: &str = "default";
/// Those who would make again what is deleted.
const MAKERS: &str = "app in (mesh-control,mesh-injector)";
const MAKERS_GONE: Duration = Duration::from_secs(90);
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What goes.
#[derive(Clone, Debug)]
pub struct Cleanup {
    /// Namespace of the control plane.
    pub namespace: String,
    /// Whether the certificate authority's own Secret goes too. A mesh that is installed again then has a new root, and
    /// pods of the old one have to be restarted.
    pub authority: bool,
}

/// What could not be deleted.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Leftovers(pub Vec<CallError>);

impl Cleanup {
    /// Deletes all of it; what is gone already is fine.
    ///
    /// # Errors
    /// What could not be deleted; the rest is.
    pub async fn run(&self, client: &Client) -> Result<(), Leftovers> {
        self.wait_for_makers(client).await;
        let mut failed = Vec::new();
        let mut note = |outcome: Result<(), CallError>| failed.extend(outcome.err());
        note(self.root_certs(client).await);
        note(self.replicas(client).await);
        note(self.delete::<Lease>(client, LEASE).await);
        note(self.delete::<Secret>(client, INJECTOR_SECRET).await);
        if self.authority {
            note(self.delete::<Secret>(client, CA_SECRET).await);
        }
        note(mesh_config(client).await);
        if failed.is_empty() {
            Ok(())
        } else {
            Err(Leftovers(failed))
        }
    }

    async fn wait_for_makers(&self, client: &Client) {
        let pods: Api<Pod> = Api::namespaced(client.clone(), &self.namespace);
        let params = ListParams::default().labels(MAKERS);
        let deadline = Instant::now() + MAKERS_GONE;
        loop {
            match call(|| "listing the control plane's pods".to_owned(), pods.list(&params)).await {
                Ok(list) if list.items.is_empty() => return,
                Ok(list) if Instant::now() >= deadline => {
                    let names: Vec<String> = list.iter().map(|pod| pod.name_any()).collect();
                    return tracing::warn!(
                        "still running, and may make again what is deleted: {}",
                        names.join(", ")
                    );
                }
                Ok(_) => {}
                Err(error) => return tracing::warn!("{error}; it is not waited for"),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn root_certs(&self, client: &Client) -> Result<(), CallError> {
        let all: Api<ConfigMap> = Api::all(client.clone());
        let params = ListParams::default().fields(&format!("metadata.name={ROOT_CERT_CONFIG_MAP}"));
        let what = || format!("listing ConfigMaps {ROOT_CERT_CONFIG_MAP}");
        let mut outcome = Ok(());
        for map in call(what, all.list(&params)).await? {
            let ours = labels()
                .into_iter()
                .all(|(name, value)| map.labels().get(&name) == Some(&value));
            let namespace = map.namespace().unwrap_or_default();
            if ours {
                let api: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
                let deleted = delete(&api, &namespace, ROOT_CERT_CONFIG_MAP).await;
                outcome = outcome.and(deleted);
            }
        }
        outcome
    }

    async fn replicas(&self, client: &Client) -> Result<(), CallError> {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), &self.namespace);
        let (name, value) = replica::LABEL;
        let params = ListParams::default().labels(&format!("{name}={value}"));
        let what = || "listing the ConfigMaps of replicas".to_owned();
        let mut outcome = Ok(());
        for map in call(what, api.list(&params)).await? {
            let deleted = delete(&api, &self.namespace, &map.name_any()).await;
            outcome = outcome.and(deleted);
        }
        outcome
    }

    async fn delete<K>(&self, client: &Client, name: &str) -> Result<(), CallError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(client.clone(), &self.namespace);
        delete(&api, &self.namespace, name).await
    }
}

/// The chart's MeshConfig; one that somebody else made stays.
async fn mesh_config(client: &Client) -> Result<(), CallError> {
    let api: Api<MeshConfig> = Api::all(client.clone());
    let found = match call(|| format!("reading MeshConfig {MESH_CONFIG}"), api.get_opt(MESH_CONFIG)).await {
        Err(error) if error.is_not_found() => None,
        outcome => outcome?,
    };
    let helm = |config: &MeshConfig| {
        let manager = config.labels().get("app.kubernetes.io/managed-by");
        manager.is_some_and(|manager| manager == "Helm")
    };
    match found {
        Some(config) if helm(&config) => delete(&api, "", MESH_CONFIG).await,
        _ => Ok(()),
    }
}

async fn delete<K>(api: &Api<K>, namespace: &str, name: &str) -> Result<(), CallError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let kind = K::kind(&());
    let params = DeleteParams::default();
    match call(
        || format!("deleting {kind} {namespace}/{name}"),
        api.delete(name, &params),
    )
    .await
    {
        Ok(_) => {
            tracing::info!("deleted {kind} {namespace}/{name}");
            Ok(())
        }
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
