//! Workers: single-threaded runtimes that carry all traffic. Each has its own listeners and connection pool; what they
//! share is in [`Proxy`].

use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use mesh_api::identity::SpiffeId;
use mesh_api::model::{Forward, OutboundPolicy, Workload};
use tokio::task::LocalSet;

use crate::capture::{self, Side};
use crate::config::{Config, InboundMapping};
use crate::directory::Directory;
use crate::drain::Drain;
use crate::identity::CertStore;
use crate::inbound::Applications;
use crate::listener::{BindError, bind_shared};
use crate::telemetry::{SpanKind, Telemetry};
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
    /// How those to this workload's own application are made.
    to_application: Rc<Connector>,
    /// Ports of the application, as captured connections ask for them.
    pub(crate) applications: Applications,
    /// Where destinations outside the mesh are reached, and the rule that sends them there.
    passthrough: (Arc<Cluster>, Forward),
}

impl Worker {
    fn new(proxy: Arc<Proxy>) -> Self {
        let pool = Pool::new(&proxy.upstreams);
        let connector = Rc::new(Connector {
            tls: Some(proxy.outbound_tls.clone()),
            source: proxy.config.source(),
        });
        let to_application = Rc::new(Connector {
            tls: None,
            source: proxy.config.source_to_application(),
        });
        let passthrough = proxy.upstreams.cluster(Arc::new(inbound::passthrough_model()), &[]);
        Self {
            proxy,
            pool,
            connector,
            to_application,
            applications: Applications::default(),
            passthrough: (passthrough, inbound::single_leg()),
        }
    }

    /// How connections are made on behalf of who called this workload, or of this workload.
    #[must_use]
    pub(crate) fn connector_of(&self, kind: SpanKind) -> &Rc<Connector> {
        match kind {
            SpanKind::Server => &self.to_application,
            SpanKind::Client => &self.connector,
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
#[derive(Default)]
pub struct Listeners {
    /// The explicit proxy.
    pub explicit: Vec<TcpListener>,
    /// The workload's ports.
    pub mapped: Vec<(InboundMapping, TcpListener)>,
    /// Redirected connections of the application.
    pub captured_outbound: Vec<TcpListener>,
    /// Redirected connections to the application.
    pub captured_inbound: Vec<TcpListener>,
}

impl Listeners {
    /// Binds what the configuration names, for each worker.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub fn bind(config: &Config, workers: usize) -> Result<Vec<Self>, BindError> {
        let mut listeners: Vec<Self> = (0..workers.max(1)).map(|_| Self::default()).collect();
        if config.capture {
            let outbound = capture::bind(Side::Outbound, config.outbound.port(), workers)?;
            let inbound = capture::bind(Side::Inbound, config.inbound_capture_port, workers)?;
            for (own, (outbound, inbound)) in listeners.iter_mut().zip(outbound.into_iter().zip(inbound)) {
                own.captured_outbound = outbound;
                own.captured_inbound = inbound;
            }
            return Ok(listeners);
        }
        for (own, listener) in listeners
            .iter_mut()
            .zip(bind_shared(config.outbound, workers, "outbound traffic")?)
        {
            own.explicit.push(listener);
        }
        for mapping in &config.inbound {
            let bound = bind_shared(mapping.listen, workers, "inbound traffic")?;
            for (own, listener) in listeners.iter_mut().zip(bound) {
                own.mapped.push((*mapping, listener));
            }
        }
        Ok(listeners)
    }
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
    for (mapping, listener) in listeners.mapped {
        if let Some(listener) = usable(listener) {
            tasks.push(tokio::task::spawn_local(inbound::serve(
                worker.clone(),
                mapping,
                listener,
            )));
        }
    }
    for listener in listeners.captured_inbound.into_iter().filter_map(usable) {
        tasks.push(tokio::task::spawn_local(inbound::serve_captured(
            worker.clone(),
            listener,
        )));
    }
    for listener in listeners.explicit.into_iter().filter_map(usable) {
        tasks.push(tokio::task::spawn_local(outbound::serve(worker.clone(), listener)));
    }
    for listener in listeners.captured_outbound.into_iter().filter_map(usable) {
        tasks.push(tokio::task::spawn_local(outbound::serve_captured(
            worker.clone(),
            listener,
        )));
    }
    for task in tasks {
        let _ = task.await;
    }
}

fn usable(listener: TcpListener) -> Option<tokio::net::TcpListener> {
    let address = listener.local_addr().ok();
    tokio::net::TcpListener::from_std(listener)
        .inspect_err(|error| tracing::error!(%error, ?address, "a listener cannot be used"))
        .ok()
}
