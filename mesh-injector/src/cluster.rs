//! What the injector asks the cluster: the namespace of a pod at the moment the pod is made, and, kept up to date beside
//! the requests, whether Istio's injector is there and whether every node can run native sidecars.

use std::future::Future;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};

use crate::events::{Report, Reports};

/// Native sidecars are on from here: Kubernetes 1.29.
const NATIVE_SIDECARS_SINCE: u32 = 29;
/// The API server gives pods no more than 30 s.
const NAMESPACE_TIMEOUT: Duration = Duration::from_secs(4);
/// Nodes are large; they are read in parts.
const NODES_PER_PAGE: u32 = 100;

/// What is known of the cluster without asking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Whether Istio's injector is there.
    pub istio_injector: bool,
    /// Whether the API server and every node can run native sidecars.
    pub native_sidecars: bool,
}

/// The cluster as the webhooks see it.
pub trait Cluster: Send + Sync + 'static {
    /// A namespace as it is now; none where there is none of that name.
    fn namespace(&self, name: &str) -> impl Future<Output = Result<Option<Namespace>, ClusterError>> + Send;

    /// What is known without asking.
    fn facts(&self) -> Facts;

    /// Tells the users of a namespace something, in time and without being waited for.
    fn report(&self, report: Report);
}

/// Why the cluster did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The API server refused, or could not be reached.
    #[error("reading {what}: {source}")]
    Api {
        /// What was to be read.
        what: String,
        /// What was said.
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("reading {what}: no answer within {}s", NAMESPACE_TIMEOUT.as_secs())]
    Timeout {
        /// What was to be read.
        what: String,
    },
}

/// A real cluster.
#[derive(Clone)]
pub struct KubeCluster {
    client: Client,
    facts: Arc<RwLock<Facts>>,
    reports: Reports,
}

impl KubeCluster {
    /// The cluster behind a client; `reports` become its events.
    pub fn new(client: Client, reports: Reports) -> Self {
        Self {
            client,
            facts: Arc::default(),
            reports,
        }
    }

    /// The client.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Looks whether Istio's injector is there.
    pub(crate) fn observe_webhooks(&self, all: &[MutatingWebhookConfiguration]) {
        let found = all.iter().any(is_istios);
        self.update(|facts| {
            if facts.istio_injector != found {
                tracing::info!(found, "Istio's injector");
            }
            facts.istio_injector = found;
        });
    }

    /// Looks at the versions of API server and nodes.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub(crate) async fn observe_versions(&self) -> Result<(), kube::Error> {
        let version = self.client.apiserver_version().await?;
        let server = minor(&format!("{}.{}", version.major, version.minor));
        let nodes = self.oldest_node().await?;
        let native = supports_native(server) && nodes.is_none_or(|node| supports_native(Some(node)));
        self.update(|facts| {
            if facts.native_sidecars != native {
                tracing::info!(native, server = %version.git_version, "native sidecars");
            }
            facts.native_sidecars = native;
        });
        Ok(())
    }

    /// The minor version of the oldest kubelet, as far as known: one that cannot run native sidecars would refuse the
    /// pod.
    async fn oldest_node(&self) -> Result<Option<u32>, kube::Error> {
        let nodes = Api::<Node>::all(self.client.clone());
        let mut params = ListParams::default().limit(NODES_PER_PAGE);
        let mut oldest = None;
        loop {
            let page = match nodes.list(&params).await {
                Ok(page) => page,
                // Whoever runs the mesh may keep nodes to themselves: the API server's version decides alone.
                Err(kube::Error::Api(status)) if status.code == 403 => return Ok(None),
                Err(error) => return Err(error),
            };
            let versions = page
                .items
                .iter()
                .filter_map(|node| minor(&node.status.as_ref()?.node_info.as_ref()?.kubelet_version));
            oldest = oldest.into_iter().chain(versions).min();
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(oldest),
            }
        }
    }

    fn update(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts.write().unwrap_or_else(|e| e.into_inner()));
    }
}

impl Cluster for KubeCluster {
    /// Asked each time: a label that was set a moment ago counts for the pod that is made now.
    async fn namespace(&self, name: &str) -> Result<Option<Namespace>, ClusterError> {
        let what = || format!("namespace {name}");
        let namespaces = Api::<Namespace>::all(self.client.clone());
        match tokio::time::timeout(NAMESPACE_TIMEOUT, namespaces.get_opt(name)).await {
            Ok(Ok(namespace)) => Ok(namespace),
            Ok(Err(source)) => Err(ClusterError::Api {
                what: what(),
                source: Box::new(source),
            }),
            Err(_) => Err(ClusterError::Timeout { what: what() }),
        }
    }

    fn facts(&self) -> Facts {
        *self.facts.read().unwrap_or_else(|e| e.into_inner())
    }

    fn report(&self, report: Report) {
        self.reports.send(report);
    }
}

fn is_istios(webhook: &MutatingWebhookConfiguration) -> bool {
    let name = webhook.name_any();
    webhook.labels().get("app").is_some_and(|app| app == "sidecar-injector")
        || name.starts_with("istio-sidecar-injector")
        || name.starts_with("istio-revision-tag")
}

fn supports_native(minor: Option<u32>) -> bool {
    minor.is_some_and(|minor| minor >= NATIVE_SIDECARS_SINCE)
}

/// The minor version of `v1.29.3`, `1.29+` or the like. A major version of the future counts as the newest minor one.
fn minor(version: &str) -> Option<u32> {
    let (major, rest) = version.trim_start_matches('v').split_once('.')?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    match major.parse::<u32>().ok()? {
        1 => rest[..digits].parse().ok(),
        0 => Some(0),
        _ => Some(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, expected) in [
            ("v1.29.3", Some(29)),
            ("1.30+", Some(30)),
            ("v1.28.15-gke.1", Some(28)),
            ("2.0", Some(u32::MAX)),
            ("v0.9", Some(0)),
            ("", None),
            ("1.", None),
            ("abc", None),
        ] {
            assert_eq!(minor(text), expected, "{text}");
        }
        assert!(supports_native(Some(29)) && !supports_native(Some(28)) && !supports_native(None));
    }

    #[test]
    fn istios_injector() {
        let webhook = |name: &str, app: &str| -> MutatingWebhookConfiguration {
            serde_json::from_value(serde_json::json!({"metadata": {"name": name, "labels": {"app": app}}})).unwrap()
        };
        assert!(is_istios(&webhook("istio-sidecar-injector-1-30", "")));
        assert!(is_istios(&webhook("custom", "sidecar-injector")));
        assert!(is_istios(&webhook("istio-revision-tag-prod", "")));
        assert!(!is_istios(&webhook("mesh-injector", "mesh-injector")));
    }
}
