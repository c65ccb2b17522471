//! Puts a proxy together and runs it: workers for traffic, this thread for everything else.

mod administration;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mesh_api::identity::SpiffeId;
use mesh_api::model::Workload;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::directory::Directory;
use crate::discovery::{Discovery, Limits};
use crate::drain::{Drain, Stage};
use crate::identity::{CertStore, ControlPlane, ControlPlaneConfig, IdentityClient, TokenSource};
use crate::logging::Logging;
use crate::telemetry::{Options, Telemetry};
use crate::tls::inbound::InboundTls;
use crate::tls::outbound::OutboundTls;
use crate::tls::verify::TrustDomains;
use crate::upstream::{SystemLookup, Upstreams};
use crate::worker::{self, Listeners, Proxy};

/// How long queued log lines and spans may take at the end.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);
/// As long as Istio's sidecars stay after the signal to end.
const POD_HOLD: Duration = Duration::from_secs(5);

/// Runs a proxy on this thread and its workers until `shutdown`, then drains it. Blocks.
///
/// # Errors
/// When the configuration cannot work or an address cannot be bound; never because of the control plane.
pub fn run(config: Config, logging: Logging, shutdown: CancellationToken) -> anyhow::Result<()> {
    config.check()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(start(config, logging, shutdown, runtime.handle().clone()))
}

async fn start(
    config: Config,
    logging: Logging,
    shutdown: CancellationToken,
    handle: tokio::runtime::Handle,
) -> anyhow::Result<()> {
    let identity = SpiffeId::new(&config.trust_domain, &config.namespace, &config.service_account)?;
    let id = config.workload_id();
    let workers = config.workers();
    let telemetry = Telemetry::new(Options {
        node: format!(
            "sidecar~{}~{id}~{}.svc.{}",
            config.address, config.namespace, config.trust_domain
        )
        .into(),
        mesh: config.trust_domain.as_str().into(),
        workload: Arc::new(Workload {
            name: id.name.clone(),
            namespace: id.namespace.clone(),
            identity: Some(identity.clone()),
            ..Workload::default()
        }),
        runtime: Some(handle),
        limits: Default::default(),
    });
    // Another proxy of the same process, in tests, has set it already; its counters then are that one's.
    let _ = metrics::set_global_recorder(telemetry.recorder());

    // Addresses are taken before anything is asked of the network, so that a second proxy fails at once.
    let listeners = Listeners::bind(&config, workers)?;

    let certificates = CertStore::new(TrustDomains::new(config.trust_domain.clone(), Vec::new()));
    let token = match (&config.token, &config.token_file) {
        (Some(token), _) => Some(TokenSource::Bootstrap(token.trim().parse().context("--token")?)),
        (None, Some(path)) => Some(TokenSource::File(path.clone())),
        (None, None) => None,
    };
    let control = ControlPlane::new(
        ControlPlaneConfig {
            address: config.control_plane.parse().context("--control-plane")?,
            identity: config.control_plane_identity()?,
            token,
            roots: config.root_cert_file.clone(),
        },
        certificates.clone(),
    );
    let (directory, questions) = Directory::new();
    let upstreams = Upstreams::new();
    let proxy = Arc::new(Proxy {
        inbound_tls: Arc::new(InboundTls::new(certificates.clone())),
        outbound_tls: Arc::new(OutboundTls::new(certificates.clone())),
        config,
        directory,
        upstreams,
        telemetry,
        certificates,
        drain: Drain::default(),
    });
    for (index, own) in listeners.into_iter().enumerate() {
        worker::spawn(index, proxy.clone(), own)?;
    }
    let stop = CancellationToken::new();
    tokio::spawn(proxy.upstreams.clone().resolve_names(SystemLookup));
    tokio::spawn(IdentityClient::new(identity, control.clone(), proxy.certificates.clone()).run(stop.child_token()));
    let discovery = Discovery::new(
        id.clone(),
        control,
        Limits::default(),
        proxy.directory.clone(),
        questions,
        proxy.upstreams.clone(),
    )
    .with_admin(proxy.config.admin)
    .taking_settings({
        let telemetry = proxy.telemetry.clone();
        move |settings| {
            let configured = telemetry.configure(settings);
            configured.map_err(|error| format!("{:#}", anyhow::Error::from(error)))
        }
    });
    tokio::spawn(discovery.run(stop.child_token()));
    tokio::spawn(follow_settings(proxy.clone(), stop.child_token()));
    administration::serve(&proxy, logging, &shutdown, &stop).await?;
    tracing::info!(workload = %id, workers, outbound = %proxy.config.outbound, admin = %proxy.config.admin, "started");

    shutdown.cancelled().await;
    let open = proxy.drain.finish(proxy.config.drain_duration, hold(&proxy)).await;
    if open > 0 {
        tracing::warn!(open, "connections are cut because the drain duration is over");
    }
    stop.cancel();
    let telemetry = proxy.telemetry.clone();
    let _ = tokio::task::spawn_blocking(move || telemetry.shutdown(FLUSH_LIMIT)).await;
    Ok(())
}

/// How long the process stays even without a connection. In a pod whose sidecar is told to end together with its
/// application, that one may still have something to say, and clients still come.
fn hold(proxy: &Proxy) -> Duration {
    let told_before = proxy.drain.stage() > Stage::Serving;
    if proxy.config.status_port.is_some() && !told_before {
        POD_HOLD
    } else {
        Duration::ZERO
    }
}

/// Puts the mesh's settings in force as they come.
async fn follow_settings(proxy: Arc<Proxy>, stop: CancellationToken) {
    let mut changes = proxy.directory.changed();
    loop {
        if let Some(settings) = proxy.directory.settings() {
            proxy.certificates.set_trust_domains(TrustDomains::new(
                settings.trust_domain.clone(),
                settings.trust_domain_aliases.clone(),
            ));
        }
        if let Some(inbound) = proxy.directory.inbound()
            && let Err(error) = proxy.telemetry.set_workload(&inbound.workload)
        {
            tracing::error!(%error, "spans do not name this workload");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// Cancels `shutdown` at SIGTERM or SIGINT.
///
/// # Errors
/// When signals cannot be waited for.
pub fn stop_on_signals(shutdown: CancellationToken) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut term), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
            else {
                return tracing::error!("signals cannot be waited for");
            };
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
            shutdown.cancel();
        });
    })?;
    Ok(())
}
