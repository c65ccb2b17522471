//! A cluster as meshctl sees it: through the kubeconfig, with the pages of pods fetched over port-forwarding, so that
//! nothing has to be exposed.

use std::path::PathBuf;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use mesh_api::crd::Kind;
use mesh_control::discovery::ProxyStatus;

use crate::fetch;

/// Port of the control plane's status pages.
pub const STATUS_PORT: u16 = 15014;
/// Port of a proxy's administration, on its pod's loopback.
pub const ADMIN_PORT: u16 = 15000;
/// Names the control plane's pods.
pub const CONTROL_PLANE: &str = "app=mesh-control";
/// Names the injector's pods.
pub const INJECTOR: &str = "app=mesh-injector";
/// The proxy's container.
pub const PROXY_CONTAINER: &str = "istio-proxy";
/// Objects in one answer of the API server.
const PAGE: u32 = 500;

/// Which cluster, and where the mesh is in it.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Access {
    /// The kubeconfig; by default what KUBECONFIG names, else ~/.kube/config, else the pod's own service account.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// The context of the kubeconfig.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,

    /// Namespace of the mesh.
    #[arg(
        short = 'i',
        long,
        env = "MESHCTL_MESH_NAMESPACE",
        default_value = "mesh-system",
        value_name = "NAMESPACE"
    )]
    pub mesh_namespace: String,
}

/// A cluster.
#[derive(Clone)]
pub struct Cluster {
    /// Client of its API server.
    pub client: Client,
    /// Namespace of the mesh.
    pub mesh_namespace: String,
}

impl Access {
    /// Whether there is a cluster to ask: a flag names one, KUBECONFIG or ~/.kube/config does, or this is a pod.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        let file = |path: &std::path::Path| path.is_file();
        let home = || std::env::home_dir().is_some_and(|home| file(&home.join(".kube/config")));
        self.kubeconfig.is_some()
            || self.context.is_some()
            || std::env::var_os("KUBECONFIG").is_some()
            || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
            || home()
    }

    async fn config(&self) -> anyhow::Result<Config> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        if let Some(path) = &self.kubeconfig {
            let kubeconfig = Kubeconfig::read_from(path)?;
            return Ok(Config::from_custom_kubeconfig(kubeconfig, &options).await?);
        }
        match (Config::from_kubeconfig(&options).await, &self.context) {
            (Ok(config), _) => Ok(config),
            (Err(error), Some(_)) => Err(error.into()),
            (Err(error), None) => Config::incluster().map_err(|_| error.into()),
        }
    }

    /// Reads the kubeconfig and makes a client of it. Nothing is asked of the cluster yet.
    ///
    /// # Errors
    /// When there is no kubeconfig, or it cannot be used.
    pub async fn connect(&self) -> anyhow::Result<Cluster> {
        let config = self.config().await.context(
            "no cluster to ask: set KUBECONFIG, or pass --kubeconfig (or --control-plane URL where the command has it)",
        )?;
        Ok(Cluster {
            client: Client::try_from(config)?,
            mesh_namespace: self.mesh_namespace.clone(),
        })
    }

    /// Arguments that make `helm` and `kubectl` use the same cluster; `context_flag` is what the tool calls it.
    #[must_use]
    pub fn arguments(&self, context_flag: &str) -> Vec<String> {
        let mut arguments = Vec::new();
        if let Some(path) = &self.kubeconfig {
            arguments.extend(["--kubeconfig".to_owned(), path.display().to_string()]);
        }
        if let Some(context) = &self.context {
            arguments.extend([context_flag.to_owned(), context.clone()]);
        }
        arguments
    }
}

impl Cluster {
    /// Pods of the namespace, or of all of them, with these labels.
    ///
    /// # Errors
    /// When the API server cannot be asked or refuses.
    pub async fn pods(&self, namespace: Option<&str>, labels: &str) -> anyhow::Result<Vec<Pod>> {
        let api: Api<Pod> = match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        list(&api, &ListParams::default().labels(labels)).await
    }

    /// All objects of a kind, in the version that the cluster serves; `None` when it does not know the kind.
    ///
    /// # Errors
    /// When the API server cannot be asked or refuses.
    pub async fn objects(&self, kind: Kind, namespace: Option<&str>) -> anyhow::Result<Option<Vec<DynamicObject>>> {
        let Some(resource) = self.resource(kind).await? else {
            return Ok(None);
        };
        let api: Api<DynamicObject> = match namespace.filter(|_| kind.is_namespaced()) {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        let mut objects = list(&api, &ListParams::default()).await?;
        for object in &mut objects {
            object.types.get_or_insert_with(|| kube::core::TypeMeta {
                api_version: resource.api_version.clone(),
                kind: resource.kind.clone(),
            });
        }
        Ok(Some(objects))
    }

    /// How the cluster serves a kind: in the version that we write it for, else in the group's preferred one.
    async fn resource(&self, kind: Kind) -> anyhow::Result<Option<ApiResource>> {
        let group = match kube::discovery::group(&self.client, &kind.group()).await {
            Ok(group) => group,
            // A group without CRDs is not there at all.
            Err(kube::Error::Discovery(_)) => return Ok(None),
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let version = kind.version();
        let exact = group
            .versioned_resources(&version)
            .into_iter()
            .find(|(resource, _)| resource.kind == kind.as_str());
        let found = exact.or_else(|| group.recommended_kind(kind.as_str()));
        Ok(found.map(|(resource, _)| resource))
    }

    /// A page of a port of a pod.
    ///
    /// # Errors
    /// When the pod cannot be reached or answers otherwise than 200.
    pub async fn page(&self, namespace: &str, pod: &str, port: u16, path: &str) -> anyhow::Result<Bytes> {
        let read = async {
            let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
            let mut forwarded = api.portforward(pod, &[port]).await?;
            let stream = forwarded
                .take_stream(port)
                .context("the API server forwards no such port")?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let connection = tokio::spawn(connection);
            let request = Request::get(path)
                .header(header::HOST, "localhost")
                .header(header::CONNECTION, "close")
                .body(Empty::<Bytes>::new())?;
            let page = fetch::body(sender.send_request(request).await?).await;
            connection.abort();
            page
        };
        fetch::in_time(read)
            .await
            .with_context(|| format!("GET {path} of port {port} of pod {namespace}/{pod}"))
    }

    /// Proxies that are connected to any replica of the control plane, by name.
    ///
    /// # Errors
    /// When no replica runs, or one cannot be asked.
    pub async fn proxies(&self) -> anyhow::Result<Vec<ProxyStatus>> {
        let mut proxies: Vec<ProxyStatus> = Vec::new();
        for replica in self.control_planes().await? {
            let page = self
                .page(&self.mesh_namespace, &replica, STATUS_PORT, "/debug/syncz")
                .await?;
            for proxy in serde_json::from_slice::<Vec<ProxyStatus>>(&page)? {
                // A proxy that has just moved from one replica to another is known to both for a moment.
                match proxies.iter_mut().find(|known| known.name == proxy.name) {
                    Some(known) if known.connected_seconds > proxy.connected_seconds => *known = proxy,
                    Some(_) => {}
                    None => proxies.push(proxy),
                }
            }
        }
        proxies.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(proxies)
    }

    /// Names of the control plane's running pods.
    ///
    /// # Errors
    /// When there are none.
    pub async fn control_planes(&self) -> anyhow::Result<Vec<String>> {
        let pods = self.pods(Some(&self.mesh_namespace), CONTROL_PLANE).await?;
        let names: Vec<_> = pods
            .into_iter()
            .filter(is_running)
            .filter_map(|pod| pod.metadata.name)
            .collect();
        anyhow::ensure!(
            !names.is_empty(),
            "no pod of the control plane runs in namespace {} (is the mesh elsewhere? see --mesh-namespace)",
            self.mesh_namespace
        );
        Ok(names)
    }
}

/// Everything of a list, page by page.
///
/// # Errors
/// When the API server cannot be asked or refuses.
pub async fn list<K>(api: &Api<K>, params: &ListParams) -> anyhow::Result<Vec<K>>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let mut items = Vec::new();
    let mut params = params.clone().limit(PAGE);
    loop {
        let page = api.list(&params).await?;
        items.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(items),
        }
    }
}

/// Whether a pod runs and is not on its way out.
#[must_use]
pub fn is_running(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}

/// Whether a pod has a sidecar of a mesh: by its container, be it a native one or not.
#[must_use]
pub fn has_sidecar(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| {
        let native = spec.init_containers.iter().flatten();
        native.chain(&spec.containers).any(|c| c.name == PROXY_CONTAINER)
    })
}

/// Whether all containers of a pod, its sidecar among them, are ready.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|list| list.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}
