//! Puts an injector together and runs it: configuration and certificate kept up to date, webhooks served beside them.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use kube::Client;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admission::Webhooks;
use crate::cluster::KubeCluster;
use crate::config::{InjectorConfig, LiveConfig};
use crate::events::{self, Reports};
use crate::keeper::{Keeper, Shown};
use crate::options::Options;
use crate::{server, status};

/// What `mesh-injector` does: runs until SIGTERM or SIGINT, or until `stop` is cancelled. To be called from a plain
/// thread.
///
/// # Errors
/// As [`run`], and when the log's filter is none or there is no cluster to be reached.
pub fn main(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    let filter: tracing_subscriber::EnvFilter = options.log.parse().context("--log")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    // Whoever was first has set the same.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::spawn(stop_on_signals(stop.clone()));
        let client = Client::try_default().await.context("finding the API server")?;
        run(options, client, stop).await
    })
}

/// Runs an injector until `shutdown`.
///
/// # Errors
/// When the configuration cannot be used, or an address cannot be bound; never because of the cluster.
pub async fn run(options: Options, client: Client, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listener = bind("--listen", options.listen).await?;
    let status_listener = bind("--status", options.status).await?;
    serve(options, client, listener, status_listener, shutdown).await
}

/// As [`run`], on listeners that are bound already.
///
/// # Errors
/// When the configuration cannot be used.
pub async fn serve(
    options: Options,
    client: Client,
    listener: TcpListener,
    status_listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let metrics = status::recorder()?;
    let config = match &options.config_file {
        None => LiveConfig::fixed(InjectorConfig::default()),
        Some(path) => {
            let (config, source) =
                LiveConfig::open(path).with_context(|| format!("--config-file {}", path.display()))?;
            tokio::spawn(source.follow(shutdown.clone()));
            config
        }
    };
    let (reports, queue) = Reports::channel();
    let events = events::send_all(client.clone(), options.name.clone(), queue);

    let cluster = KubeCluster::new(client, reports);
    let shown = Arc::new(Shown::default());
    let tls = server::tls_config(shown.clone())?;
    let (ready, is_ready) = watch::channel(false);
    // The pages outlive the webhooks: that the injector stops is to be seen.
    let stopped = CancellationToken::new();
    let _stop_pages = stopped.clone().drop_guard();
    tokio::spawn(stopped.clone().run_until_cancelled_owned(events));
    tokio::spawn(
        stopped
            .clone()
            .run_until_cancelled_owned(status::upkeep(metrics.clone())),
    );
    tokio::spawn(status::serve(metrics, is_ready.clone(), status_listener, stopped));
    let keeper = Keeper::new(cluster.clone(), options.clone(), shown, ready.clone());
    tokio::spawn(keeper.run(shutdown.clone()));

    let webhooks = Arc::new(Webhooks::new(cluster, config));
    let closing = CancellationToken::new();
    let serving = server::serve(webhooks, tls, listener, closing.clone());
    tracing::info!(listen = %options.listen, status = %options.status, "started");
    let delay = options.shutdown_delay;
    let stopping = async {
        shutdown.cancelled().await;
        ready.send_replace(false);
        // Until the Service has forgotten this replica.
        tokio::time::sleep(delay).await;
        closing.cancel();
    };
    tokio::join!(serving, stopping);
    Ok(())
}

async fn bind(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{flag} {address}"))
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
