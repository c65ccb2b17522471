//! Gives administration its ports and its view of the running proxy.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin, ClusterView, EndpointView, Face, Found, View};
use crate::logging::Logging;
use crate::status::{self, Scrape, Status};
use crate::upstream::Cluster;
use crate::worker::Proxy;

/// Serves administration, metrics and readiness until `stop`; `shutdown` is what `/quitquitquit` cancels.
pub(super) async fn serve(
    proxy: &Arc<Proxy>,
    logging: Logging,
    shutdown: &CancellationToken,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let viewed = Arc::downgrade(proxy);
    let admin = Arc::new(Admin {
        workload: proxy.config.workload_id(),
        boot: format!("{:#?}", proxy.config),
        view: Box::new(move || viewed.upgrade().map(|proxy| view(&proxy)).unwrap_or_default()),
        telemetry: proxy.telemetry.clone(),
        certificates: proxy.certificates.clone(),
        logging,
        drain: proxy.drain.clone(),
        quit: shutdown.clone(),
        started: Instant::now(),
    });
    let faces = [
        (Face::Administration, proxy.config.admin),
        (Face::Metrics, proxy.config.metrics),
        (Face::Readiness, proxy.config.readiness),
    ];
    for (face, address) in faces {
        let listener = bind(face, address).await?;
        tokio::spawn(admin::serve(admin.clone(), face, listener, stop.clone()));
    }
    if let Some(port) = proxy.config.status_port {
        let listener =
            status::bind(port).with_context(|| format!("cannot listen on port {port} for the status port"))?;
        let scrape = proxy.config.prometheus.clone().unwrap_or(Scrape::Off);
        if let Scrape::Unusable(reason) = &scrape {
            tracing::warn!(%reason, "the application's metrics are not merged");
        }
        let status = Arc::new(Status {
            admin,
            own: proxy.config.address,
            port,
            probers: proxy.config.app_probers.clone().unwrap_or_default(),
            scrape,
        });
        tokio::spawn(status::serve(status, listener, stop.clone()));
    }
    Ok(())
}

async fn bind(face: Face, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} for {face:?}"))
}

fn view(proxy: &Proxy) -> View {
    let held = proxy.directory.snapshot();
    let mut destinations = Vec::new();
    let mut clusters: BTreeMap<String, ClusterView> = BTreeMap::new();
    for destination in &held.destinations {
        let names = destination.asked.iter().chain(&destination.hinted);
        let Some(current) = &destination.current else {
            destinations.extend(names.map(|name| (name.to_string(), Found::Waiting)));
            continue;
        };
        destinations.extend(names.map(|name| (name.to_string(), Found::Destination(current.model.clone()))));
        for cluster in &current.clusters {
            clusters
                .entry(cluster.state.name().to_string())
                .or_insert_with(|| cluster_view(cluster));
        }
    }
    destinations.extend(held.not_in_mesh.iter().map(|name| (name.to_string(), Found::Nothing)));
    destinations.extend(held.waiting.iter().map(|name| (name.to_string(), Found::Waiting)));
    View {
        settings: held.settings.map(|held| held.value),
        inbound: held.inbound.map(|held| held.value),
        destinations,
        clusters: clusters.into_values().collect(),
    }
}

fn cluster_view(cluster: &Cluster) -> ClusterView {
    let endpoints = cluster.endpoints().into_iter().map(|endpoint| EndpointView {
        address: endpoint.address,
        facts: endpoint.facts.clone(),
        in_flight: endpoint.state.in_flight(),
        ejected: cluster.is_ejected(&endpoint),
        ejections: endpoint.state.ejections(),
    });
    ClusterView {
        name: cluster.state.name().to_string(),
        endpoints: endpoints.collect(),
    }
}
