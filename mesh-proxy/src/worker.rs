//! Workers: single-threaded runtimes that carry all traffic. Each has its own listeners and connection pool; what they
//! share is in [`Proxy`].

use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use mesh_api::identity::SpiffeId;
use mesh_api::model::{Forward, OutboundPolicy, Workload};
use tokio::task::LocalSet;

use crate::config::{Config, InboundMapping};
use crate::directory::Directory;
use crate::drain::Drain;
use crate::identity::CertStore;
use crate::telemetry::Telemetry;
use crate::tls::inbound::InboundTls;
use crate::tls::outbound::OutboundTls;
use crate::upstream::{Cluster, Connector, Pool, Upstreams};
use crate::{inbound, outbound};

/// What all workers and the administration thread share.
pub struct Proxy {
    /// Boot configuration.
    pub config: Config,
    /// What the control plane said.
    pub directory: Arc<Directory>,
    /// Clusters and the state of their endpoints.
    pub upstreams: Arc<Upstreams>,
    /// Metrics, access log, traces.
    pub telemetry: Arc<Telemetry>,
    /// This workload's certificate.
    pub certificates: Arc<CertStore>,
    /// Server side of mutual TLS.
    pub inbound_tls: Arc<InboundTls>,
    /// Client side of mutual TLS.
    pub outbound_tls: Arc<OutboundTls>,
    /// Draining, and the number of open connections.
    pub drain: Drain,
}

/// One worker's own state.
pub struct Worker {
    /// What is shared.
    pub proxy: Arc<Proxy>,
    /// Upstream connections of this worker.
    pub pool: Pool,
    /// How they are made.
    pub connector: Rc<Connector>,
    /// Where destinations outside the mesh are reached, and the rule that sends them there.
    passthrough: (Arc<Cluster>, Forward),
}

impl Worker {
    fn new(proxy: Arc<Proxy>) -> Self {
        let pool = Pool::new(&proxy.upstreams);
        let connector = Rc::new(Connector {
            tls: Some(proxy.outbound_tls.clone()),
            source: proxy.config.source_address(),
        });
        let passthrough = proxy.upstreams.cluster(Arc::new(inbound::passthrough_model()), &[]);
        Self {
            proxy,
            pool,
            connector,
            passthrough: (passthrough, inbound::single_leg()),
        }
    }

    /// What happens to destinations that the mesh does not know.
    #[must_use]
    pub fn outbound_policy(&self) -> OutboundPolicy {
        self.proxy
            .directory
            .settings()
            .map_or(OutboundPolicy::default(), |settings| settings.outbound_policy)
    }

    /// Facts of this workload, once they are known.
    #[must_use]
    pub fn workload(&self) -> Option<Arc<Workload>> {
        self.proxy.directory.inbound().map(|inbound| inbound.workload.clone())
    }

    /// Identity of this workload's certificate.
    #[must_use]
    pub fn identity(&self) -> Option<SpiffeId> {
        self.proxy
            .certificates
            .current()
            .map(|credentials| credentials.identity().clone())
    }

    /// The cluster of destinations outside the mesh, and a rule to it.
    #[must_use]
    pub fn passthrough(&self) -> (&Arc<Cluster>, &Forward) {
        (&self.passthrough.0, &self.passthrough.1)
    }
}

/// Listening sockets of one worker.
pub struct Listeners {
    /// The explicit proxy.
    pub outbound: TcpListener,
    /// The workload's ports.
    pub inbound: Vec<(InboundMapping, TcpListener)>,
}

/// Starts a worker thread. It runs until its process ends.
///
/// # Errors
/// When the thread or its runtime cannot be made.
pub fn spawn(index: usize, proxy: Arc<Proxy>, listeners: Listeners) -> std::io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || {
            let local = LocalSet::new();
            // Made inside the runtime: the pool's own tasks live there.
            local.spawn_local(async move { run(Rc::new(Worker::new(proxy)), listeners).await });
            runtime.block_on(local);
        })
}

async fn run(worker: Rc<Worker>, listeners: Listeners) {
    let mut tasks = Vec::new();
    for (mapping, listener) in listeners.inbound {
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => tasks.push(tokio::task::spawn_local(inbound::serve(
                worker.clone(),
                mapping,
                listener,
            ))),
            Err(error) => tracing::error!(%error, address = %mapping.listen, "a listener cannot be used"),
        }
    }
    match tokio::net::TcpListener::from_std(listeners.outbound) {
        Ok(listener) => tasks.push(tokio::task::spawn_local(outbound::serve(worker.clone(), listener))),
        Err(error) => tracing::error!(%error, "the outbound listener cannot be used"),
    }
    for task in tasks {
        let _ = task.await;
    }
}
