//! Puts a control plane together and runs it: sources to world to discovery, and the certificate authority beside them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::ca::{Authenticator, Authority, CertificateService, TokenStore};
use crate::compile::Resolver;
use crate::config::{self, Config};
use crate::discovery::Discovery;
use crate::grpc::Services;
use crate::kube;
use crate::kube::leader::{Elector, Timing};
use crate::kube::object_status::StatusWriter;
use crate::kube::replica::{Counts, Replica};
use crate::kube::root_cert::RootCert;
use crate::kube::secrets::CaSecrets;
use crate::kube::token_review::TokenReviewer;
use crate::objects::StatusView;
use crate::source::dir::{DirSource, Options};
use crate::source::kube::KubeSource;
use crate::source::{Event, Source};
use crate::status::{self, Pages, Stage};
use crate::telemetry;
use crate::tls::ControlTls;
use crate::world::{self, World};

/// A proxy that went without a word is noticed after this long without traffic, and as long without an answer.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long streams may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// What `mesh-control` does: runs until SIGTERM or SIGINT, or until `stop` is cancelled. To be called from a plain
/// thread.
///
/// # Errors
/// As [`run`], and when the log's filter is none.
pub fn main(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    log_to_stderr(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::spawn(stop_on_signals(stop.clone()));
        run(config, stop).await
    })
}

/// Does one thing with the cluster's API server. To be called from a plain thread.
///
/// # Errors
/// When there is no client, or as `work` says.
pub fn once(work: impl AsyncFnOnce(::kube::Client) -> anyhow::Result<()>) -> anyhow::Result<()> {
    log_to_stderr("info")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { work(kube::connect().await?).await })
}

fn log_to_stderr(filter: &str) -> anyhow::Result<()> {
    let filter: tracing_subscriber::EnvFilter = filter.parse().context("--log")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    Ok(())
}

/// Runs a control plane until `shutdown`.
///
/// # Errors
/// When a setting cannot work, the authority's directory cannot be used, or an address cannot be bound; never because
/// of what policy files say.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let origin = config.source()?;
    if let config::Source::Directories(directories) = origin {
        for directory in directories {
            anyhow::ensure!(
                directory.is_dir(),
                "--config-dir {}: not a directory",
                directory.display()
            );
        }
    }
    let lifetimes = config.lifetimes()?;
    let names = config.serving_names()?;
    let metrics = telemetry::recorder()?;
    let trust_domain = config.ca.trust_domain.clone();
    let client = match origin {
        config::Source::Directories(_) => None,
        config::Source::Kubernetes => Some(kube::connect().await?),
    };
    let authenticator = match &client {
        None => Authenticator::new(trust_domain.clone(), TokenStore::new(&config.ca.directory)),
        Some(client) => {
            let audiences = config.token_audiences.clone();
            let reviewer = TokenReviewer::new(client.clone(), audiences, trust_domain.clone());
            Authenticator::in_cluster(trust_domain.clone(), Arc::new(reviewer))
        }
    };
    // What cannot be had is said before anything is waited for.
    let listener = bind("--listen", config.listen).await?;
    let status_listener = bind("--status", config.status).await?;

    let resolver = Arc::new(Resolver::new(World::new(world::Options {
        trust_domain: trust_domain.clone(),
        root_namespace: config.root_namespace.as_str().into(),
        cluster_domain: config.cluster_domain.as_str().into(),
        cluster_ranges: config
            .pod_ranges
            .iter()
            .chain(&config.service_ranges)
            .copied()
            .collect(),
        ..world::Options::default()
    })));
    let sink = resolver.clone();
    let sink = move |events: Vec<Event>| sink.apply(&events);
    let source = match (origin, &client) {
        (config::Source::Directories(directories), _) => Source::Directories(
            DirSource::start(Options::new(directories.to_vec()), sink).context("watching policy files")?,
        ),
        (config::Source::Kubernetes, Some(client)) => {
            Source::Kubernetes(KubeSource::start(client, &config.cluster_domain, sink))
        }
        (config::Source::Kubernetes, None) => anyhow::bail!("--kubernetes: there is no client of the API server"),
    };
    let discovery = Discovery::new(
        resolver.clone(),
        Arc::new(authenticator.clone()),
        config.name.as_str(),
        shutdown.clone(),
    );

    let stage = Arc::new(watch::Sender::new(Stage::Authority));
    let pages = Arc::new(pages(&discovery, &source, metrics.clone(), stage.clone()));
    tokio::spawn(status::serve(pages, status_listener, shutdown.clone()));
    tokio::spawn(telemetry::upkeep(metrics));

    // The authority's keys are read while policy is.
    let authority = match &client {
        None => Authority::open(&config.ca.directory, &trust_domain, lifetimes)?,
        Some(client) => {
            let secrets = CaSecrets::new(client.clone(), config.own_namespace(), trust_domain, lifetimes);
            let Some(opened) = secrets.wait(&shutdown).await else {
                return Ok(());
            };
            let authority = opened.authority.clone();
            tokio::spawn(secrets.follow(opened, shutdown.clone()));
            authority
        }
    };
    let tls = ControlTls::new(authority.clone(), names)?;
    let renewal = tls.clone();
    let renewal_ends = shutdown.clone();
    tokio::spawn(async move { renewal.keep_fresh(renewal_ends).await });

    // Until all policy is known nothing is answered: half of it could let in what the other half forbids. Proxies that
    // connect meanwhile wait in the system's queue.
    stage.send_replace(Stage::Policy);
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = source.synced() => {}
    }
    stage.send_replace(Stage::Serving);
    tracing::info!(
        listen = %config.listen,
        status = %config.status,
        policy = %describe(origin),
        root = %authority.fingerprint(),
        "started"
    );
    let mut writers = JoinSet::new();
    if let (Some(client), Source::Kubernetes(source)) = (&client, &source) {
        let namespace = config.own_namespace();
        let view = StatusView::new(source, resolver.clone(), discovery.clone());
        let count = move || Counts::of(&view.programmed(), &view.proxies());
        let replica = Replica::new(client.clone(), namespace, &config.name, count);
        writers.spawn(replica.run(shutdown.clone()));
        let root_cert = RootCert::new(client.clone(), authority.clone());
        let statuses = StatusWriter::new(client.clone(), namespace, source.objects(), resolver);
        let elector = Elector::new(client.clone(), namespace, &config.name, Timing::default());
        write_as_leader(&elector, root_cert, statuses, &shutdown);
        writers.spawn(elector.run(shutdown.clone()));
    }
    let services = Services(discovery.server(), CertificateService::server(authority, authenticator));
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .serve_with_incoming_shutdown(services, tls.incoming(listener), shutdown.clone().cancelled_owned());
    let mut server = std::pin::pin!(server);
    tokio::select! {
        ended = &mut server => return ended.context("serving discovery"),
        () = shutdown.cancelled() => {}
    }
    // Streams end by themselves at shutdown; a proxy that does not read may hold its connection no longer.
    let ended = tokio::time::timeout(STOP_LIMIT, server).await;
    // The next leader need not wait for the Lease to run out, and proxies are not counted twice.
    let _ = tokio::time::timeout(STOP_LIMIT, writers.join_all()).await;
    match ended {
        Ok(ended) => ended.context("serving discovery"),
        Err(_) => Ok(()),
    }
}

/// What replicas share is written by one of them.
fn write_as_leader(elector: &Elector, root_cert: RootCert, statuses: StatusWriter, shutdown: &CancellationToken) {
    let work = move || {
        let (root_cert, statuses) = (root_cert.clone(), statuses.clone());
        async move {
            tokio::join!(root_cert.run(), statuses.run());
        }
    };
    tokio::spawn(elector.leadership().while_leading(shutdown.clone(), work));
}

fn pages(
    discovery: &Discovery,
    source: &Source,
    metrics: metrics_exporter_prometheus::PrometheusHandle,
    stage: Arc<watch::Sender<Stage>>,
) -> Pages {
    let diagnostics = source.diagnostics();
    Pages {
        discovery: discovery.clone(),
        metrics: Box::new(move || metrics.render()),
        diagnostics: Box::new(move || diagnostics.borrow().clone()),
        stage: Box::new(move || *stage.borrow()),
    }
}

async fn bind(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{flag} {address}"))
}

/// Where policy is read, for the log.
fn describe(origin: config::Source<'_>) -> String {
    match origin {
        config::Source::Directories(directories) => {
            let names: Vec<_> = directories.iter().map(|path| path.display().to_string()).collect();
            names.join(", ")
        }
        config::Source::Kubernetes => "Kubernetes".to_owned(),
    }
}

async fn stop_on_signals(stop: CancellationToken) {
    let (Ok(mut term), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return tracing::error!("signals cannot be waited for");
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    stop.cancel();
}
