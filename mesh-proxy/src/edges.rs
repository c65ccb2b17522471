//! Which metrics an exchange or a connection counts on: the handles between this workload and another.
//!
//! A handle is looked up once for an endpoint, or once for an inbound connection, and kept; a request only follows a
//! pointer.

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use mesh_api::identity::SpiffeId;
use mesh_api::model::{InboundPort, ServiceRef, Workload};

use crate::http::exchange::{Downstream, Exchange};
use crate::telemetry::{Edge, EdgeKey, EdgeService, Reporter, Security};
use crate::upstream::{Cluster, Endpoint};
use crate::worker::Worker;

/// Notes the chosen endpoint, and where requests to it count.
pub(crate) fn note_endpoint(worker: &Worker, exchange: &mut Exchange, cluster: &Cluster, endpoint: &Endpoint) {
    exchange.notes.upstream = Some(endpoint.address);
    if endpoint.is_mutual_tls() {
        exchange
            .notes
            .upstream_peer
            .clone_from(&endpoint.facts.workload.identity);
    }
    if exchange.is_inbound() {
        return;
    }
    if let Some(edge) = to_endpoint(worker, cluster, endpoint) {
        exchange.notes.edge = Some(edge);
    }
}

/// What an endpoint keeps for this module.
struct Prepared(Arc<Edge>);

/// From this workload to an endpoint.
pub(crate) fn to_endpoint(worker: &Worker, cluster: &Cluster, endpoint: &Endpoint) -> Option<Arc<Edge>> {
    let prepare = || {
        // One lookup of labels for all requests to the endpoint.
        let known = !endpoint.facts.workload.name.is_empty();
        let service = match Arc::ptr_eq(&worker.passthrough().0.state, &cluster.state) {
            true => EdgeService::Passthrough,
            false => EdgeService::Known(&cluster.model.service),
        };
        let own = worker.workload();
        Arc::new(Prepared(
            worker.proxy.telemetry.edge(EdgeKey {
                reporter: Reporter::Source,
                source: own.as_deref(),
                source_principal: worker.identity().as_ref(),
                destination: known.then_some(&*endpoint.facts.workload),
                destination_principal: endpoint
                    .facts
                    .workload
                    .identity
                    .as_ref()
                    .filter(|_| endpoint.is_mutual_tls()),
                service,
                security: Security::Unknown,
            }),
        ))
    };
    endpoint
        .extension::<Prepared>(prepare)
        .map(|prepared| prepared.0.clone())
}

/// From this workload to a service of which no endpoint was chosen.
pub(crate) fn to_service(worker: &Worker, service: EdgeService<'_>) -> Arc<Edge> {
    let own = worker.workload();
    worker.proxy.telemetry.edge(EdgeKey {
        reporter: Reporter::Source,
        source: own.as_deref(),
        source_principal: worker.identity().as_ref(),
        destination: None,
        destination_principal: None,
        service,
        security: Security::Unknown,
    })
}

/// The client of an inbound connection as metrics name it: looked up by its address once the answer is there, and
/// believed only if the certificate says the same.
pub(crate) struct Source {
    peer: SocketAddr,
    identity: Option<SpiffeId>,
    known: OnceCell<Arc<Edge>>,
    unknown: OnceCell<Arc<Edge>>,
}

impl Source {
    pub fn new(downstream: &Downstream) -> Rc<Self> {
        Rc::new(Self {
            peer: downstream.peer,
            identity: downstream.identity.clone(),
            known: OnceCell::new(),
            unknown: OnceCell::new(),
        })
    }

    /// From the client to this workload, on a port.
    pub fn edge(&self, worker: &Worker, own: &Workload, port: Option<&InboundPort>) -> Arc<Edge> {
        if let Some(edge) = self.known.get() {
            return edge.clone();
        }
        let service = port.and_then(|port| port.services.first());
        match self.workload(worker) {
            Some(source) => self
                .known
                .get_or_init(|| self.prepare(worker, own, Some(&source), service))
                .clone(),
            // Asked for; the next request may know.
            None => self
                .unknown
                .get_or_init(|| self.prepare(worker, own, None, service))
                .clone(),
        }
    }

    fn workload(&self, worker: &Worker) -> Option<Arc<Workload>> {
        let source = worker.proxy.directory.peer(self.peer.ip().to_canonical())?;
        match &self.identity {
            Some(identity) => (source.identity.as_ref() == Some(identity)).then_some(source),
            None => Some(source),
        }
    }

    fn prepare(
        &self,
        worker: &Worker,
        own: &Workload,
        source: Option<&Workload>,
        service: Option<&ServiceRef>,
    ) -> Arc<Edge> {
        let mutual = self.identity.is_some();
        worker.proxy.telemetry.edge(EdgeKey {
            reporter: Reporter::Destination,
            source,
            source_principal: self.identity.as_ref(),
            destination: Some(own),
            destination_principal: own.identity.as_ref().filter(|_| mutual),
            service: service.map_or(EdgeService::InboundPassthrough, EdgeService::Known),
            security: if mutual { Security::MutualTls } else { Security::None },
        })
    }
}
