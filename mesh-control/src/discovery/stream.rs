//! One stream of one proxy: `opening -> serving -> closed`.
//!
//! At most one response of each type is unanswered at a time; whatever changes meanwhile is resolved when the answer
//! arrives, so that a slow proxy costs a set of names and never a queue.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use mesh_api::names::WorkloadId;
use mesh_api::wire::ResourceType;
use mesh_api::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use tokio::sync::{broadcast, mpsc};
use tonic::{Code, Status, Streaming};

use super::hints::{HintEvent, Leaving};
use super::resources::{Change, Client, Touched};
use super::status::{Sent, StreamStatus};
use super::subscriptions::{MAX_NAME, Origin, Subscriptions};
use super::{Authenticated, Shared};

/// How long a connected proxy may take to say who it is.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// Responses on their way out: one for each type, by construction.
pub(super) const OUTGOING: usize = ResourceType::ALL.len();

pub(super) type Outgoing = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;

/// Why a stream ended.
enum End {
    /// The proxy closed it or is gone.
    Gone,
    /// The proxy did not keep to the protocol.
    Malformed(Status),
    /// The proxy may not be served.
    Refused(Status),
    /// The control plane ends it; the proxy connects again.
    Over(&'static str),
}

/// Serves a stream until it ends.
pub(super) async fn run(
    shared: Arc<Shared>,
    subject: Authenticated,
    address: Option<SocketAddr>,
    requests: Streaming<DeltaDiscoveryRequest>,
    out: Outgoing,
) {
    let end = match open(&shared, &subject, address, requests, out.clone()).await {
        Ok(mut stream) => stream.serve(subject.expires).await,
        Err(end) => end,
    };
    let status = match end {
        End::Gone => return,
        End::Malformed(status) => {
            metrics::counter!("mesh_discovery_malformed_requests_total").increment(1);
            tracing::warn!("discovery stream of {}: {}", subject.identity, status.message());
            status
        }
        End::Refused(status) => {
            metrics::counter!("mesh_discovery_refused_streams_total").increment(1);
            tracing::warn!(
                "discovery stream of {} is refused: {}",
                subject.identity,
                status.message()
            );
            status
        }
        End::Over(reason) => Status::unavailable(reason),
    };
    let _ = out.send(Err(status)).await;
}

/// Waits for the first request and admits the client.
async fn open(
    shared: &Arc<Shared>,
    subject: &Authenticated,
    address: Option<SocketAddr>,
    mut requests: Streaming<DeltaDiscoveryRequest>,
    out: Outgoing,
) -> Result<Stream, End> {
    let first = tokio::select! {
        () = shared.shutdown.cancelled() => return Err(End::Over("the control plane shuts down")),
        first = tokio::time::timeout(FIRST_REQUEST, requests.message()) => first,
    };
    let first = first.map_err(|_| malformed("no request within 10 s of opening the stream"))?;
    let mut first = received(first)?;
    let node = first
        .node
        .take()
        .ok_or_else(|| malformed("the first request of a stream must have a node"))?;
    let workload: WorkloadId = node
        .id
        .parse()
        .map_err(|error| malformed(format!("node.id: {error}")))?;
    let client = admit(shared, subject, &workload)?;
    // Before anything is resolved, so that no change falls in between.
    let changes = shared.resources.changes();
    let generation = shared.resources.generation();
    let mut stream = Stream::new(shared.clone(), client, &node, address, changes, requests, out);
    stream.generation = generation;
    stream.subscriptions().generation = generation;
    stream.request(first)?;
    Ok(stream)
}

fn admit(shared: &Shared, subject: &Authenticated, workload: &WorkloadId) -> Result<Client, End> {
    let refused = |message: String| End::Refused(Status::permission_denied(message));
    if subject.identity.namespace() != &*workload.namespace {
        return Err(refused(format!(
            "{} may not speak for workload `{workload}` of another namespace",
            subject.identity
        )));
    }
    shared.resources.admit(&subject.identity, workload).map_err(refused)
}

struct Stream {
    shared: Arc<Shared>,
    client: Client,
    /// Shared with whoever asks what is held; locked for moments only.
    subscriptions: Arc<Mutex<Subscriptions>>,
    types: [Exchange; ResourceType::ALL.len()],
    status: Arc<StreamStatus>,
    generation: u64,
    nonce: u64,
    requests: Streaming<DeltaDiscoveryRequest>,
    changes: broadcast::Receiver<Arc<Change>>,
    hints: broadcast::Receiver<HintEvent>,
    out: Outgoing,
}

/// The exchange of one type.
#[derive(Default)]
struct Exchange {
    /// Requests read.
    requests: u64,
    in_flight: Option<InFlight>,
    /// When the oldest change that is not sent yet was noticed.
    changed_at: Option<Instant>,
}

struct InFlight {
    nonce: String,
    changed_at: Option<Instant>,
}

impl Stream {
    fn new(
        shared: Arc<Shared>,
        client: Client,
        node: &Node,
        address: Option<SocketAddr>,
        changes: broadcast::Receiver<Arc<Change>>,
        requests: Streaming<DeltaDiscoveryRequest>,
        out: Outgoing,
    ) -> Self {
        let hints = shared.hints.join(&client.identity);
        let subscriptions = Arc::new(Mutex::new(Subscriptions::default()));
        let status = StreamStatus::new(shared.next_id(), client.clone(), node, address, subscriptions.clone());
        let status = Arc::new(status);
        shared.registry.add(status.clone());
        metrics::gauge!("pilot_xds").increment(1.0);
        tracing::info!("proxy {} ({}) is connected", client.workload, client.identity);
        Self {
            shared,
            client,
            subscriptions,
            types: Default::default(),
            status,
            generation: 0,
            nonce: 0,
            requests,
            changes,
            hints,
            out,
        }
    }

    async fn serve(&mut self, expires: Option<SystemTime>) -> End {
        // A connection may outlive the proof of its identity; its stream may not.
        let remaining = expires.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        let expiry = async move {
            match remaining {
                Some(remaining) => tokio::time::sleep(remaining).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(expiry);
        let shutdown = self.shared.shutdown.clone();
        loop {
            if let Err(end) = self.flush() {
                return end;
            }
            let step = tokio::select! {
                () = shutdown.cancelled() => Err(End::Over("the control plane shuts down")),
                () = &mut expiry => Err(End::Over("the certificate of this stream has expired: connect again")),
                message = self.requests.message() => received(message).and_then(|request| self.request(request)),
                change = self.changes.recv() => self.change(change),
                hint = self.hints.recv() => self.hint(hint),
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    fn subscriptions(&self) -> MutexGuard<'_, Subscriptions> {
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), End> {
        let kind = ResourceType::from_type_url(&request.type_url)
            .ok_or_else(|| malformed(format!("unknown resource type `{}`", request.type_url)))?;
        let exchange = &mut self.types[kind.index()];
        exchange.requests += 1;
        if exchange.requests == 1 {
            self.subscriptions().retain(kind, request.initial_resource_versions);
        }
        if !request.response_nonce.is_empty() {
            let error = request.error_detail.as_ref().map(|status| &*status.message);
            self.answer(kind, &request.response_nonce, error);
        }
        let names = request.resource_names_subscribe.iter();
        if let Some(name) = names
            .chain(&request.resource_names_unsubscribe)
            .find(|name| !sensible(name))
        {
            let shown: String = name.chars().take(64).collect();
            return Err(malformed(format!(
                "`{}` is not the name of a resource",
                shown.escape_debug()
            )));
        }
        for name in &request.resource_names_unsubscribe {
            self.unsubscribe(kind, name)?;
        }
        for name in &request.resource_names_subscribe {
            self.subscribe(kind, name, Origin::Asked)?;
        }
        if kind == ResourceType::Destination && self.types[kind.index()].requests == 1 {
            self.join_siblings()?;
        }
        let subscribed = self.subscriptions().count(kind);
        self.status.update(kind, |record| record.subscribed = subscribed);
        Ok(())
    }

    /// An ACK or, with an error, a NACK. An old nonce says nothing.
    fn answer(&mut self, kind: ResourceType, nonce: &str, error: Option<&str>) {
        let exchange = &mut self.types[kind.index()];
        let Some(sent) = exchange.in_flight.take_if(|sent| sent.nonce == nonce) else {
            return;
        };
        let resources = self.subscriptions().answered(kind);
        let names = resources.iter().map(String::as_str);
        match error {
            None => {
                self.status.update(kind, |record| record.acknowledge(names));
                if let Some(at) = sent.changed_at {
                    metrics::histogram!("pilot_proxy_convergence_time").record(at.elapsed().as_secs_f64());
                }
            }
            Some(message) => {
                metrics::counter!("pilot_total_xds_rejects", "type" => kind.label()).increment(1);
                tracing::error!("proxy {} refused {kind}: {message}", self.client.workload);
                self.status.update(kind, |record| record.refuse(message, names));
            }
        }
    }

    fn subscribe(&mut self, kind: ResourceType, name: &str, origin: Origin) -> Result<(), End> {
        self.subscriptions()
            .subscribe(kind, name, origin)
            .map_err(|error| End::Refused(Status::resource_exhausted(error.to_string())))
    }

    /// Ends a subscription. What siblings still use comes back as a hint.
    fn unsubscribe(&mut self, kind: ResourceType, name: &str) -> Result<(), End> {
        if !self.subscriptions().unsubscribe(kind, name) || kind != ResourceType::Destination {
            return Ok(());
        }
        let others = self
            .shared
            .hints
            .release(&self.client.identity, name, Leaving::Unsubscribed);
        if others > 0 {
            self.subscribe(kind, name, Origin::Hinted)?;
        }
        Ok(())
    }

    fn change(&mut self, change: Result<Arc<Change>, broadcast::error::RecvError>) -> Result<(), End> {
        let (touched, at) = match &change {
            Ok(change) => {
                self.generation = change.generation;
                (&change.touched, change.at)
            }
            Err(broadcast::error::RecvError::Lagged(_)) => {
                self.generation = self.shared.resources.generation();
                (&Touched::All, Instant::now())
            }
            Err(broadcast::error::RecvError::Closed) => return Err(End::Over("the control plane shuts down")),
        };
        let any = {
            let mut subscriptions = self.subscriptions();
            subscriptions.generation = subscriptions.generation.max(self.generation);
            subscriptions.touch(touched)
        };
        if !any {
            return Ok(());
        }
        for exchange in &mut self.types {
            exchange.changed_at.get_or_insert(at);
        }
        // The change may be that this workload runs as somebody else now.
        let admitted = self
            .shared
            .resources
            .admit(&self.client.identity, &self.client.workload);
        self.client = admitted.map_err(|message| End::Refused(Status::permission_denied(message)))?;
        Ok(())
    }

    fn hint(&mut self, event: Result<HintEvent, broadcast::error::RecvError>) -> Result<(), End> {
        // Hints begin once it is known what the proxy holds.
        let started = self.types[ResourceType::Destination.index()].requests > 0;
        match event {
            Ok(_) if !started => Ok(()),
            Ok(HintEvent::Added(name)) => self.subscribe(ResourceType::Destination, &name, Origin::Hinted),
            Ok(HintEvent::Withdrawn(name)) => {
                self.subscriptions().withdraw(ResourceType::Destination, &name);
                Ok(())
            }
            Err(broadcast::error::RecvError::Lagged(_)) if started => self.join_siblings(),
            Err(broadcast::error::RecvError::Lagged(_)) => Ok(()),
            // The account was forgotten to make room for others.
            Err(broadcast::error::RecvError::Closed) => {
                self.hints = self.shared.hints.join(&self.client.identity);
                Ok(())
            }
        }
    }

    /// Adds what siblings have used to what the proxy asked for.
    fn join_siblings(&mut self) -> Result<(), End> {
        for name in self.shared.hints.names(&self.client.identity) {
            self.subscribe(ResourceType::Destination, &name, Origin::Hinted)?;
        }
        Ok(())
    }

    /// Sends what can be sent, endpoints before the destinations that need them.
    fn flush(&mut self) -> Result<(), End> {
        for kind in ResourceType::ALL {
            if self.types[kind.index()].in_flight.is_none() && self.subscriptions().is_marked(kind) {
                self.send(kind)?;
            }
        }
        Ok(())
    }

    fn send(&mut self, kind: ResourceType) -> Result<(), End> {
        let batch = self.subscriptions().batch(kind, &self.client, &*self.shared.resources);
        if kind == ResourceType::Destination {
            for name in &batch.found {
                self.shared.hints.ask(&self.client.identity, name);
            }
        }
        let (rest, subscribed, answered) = {
            let subscriptions = self.subscriptions();
            (
                subscriptions.is_marked(kind),
                subscriptions.count(kind),
                subscriptions.holds_any(kind),
            )
        };
        let exchange = &mut self.types[kind.index()];
        let changed_at = exchange.changed_at;
        if !rest {
            exchange.changed_at = None;
        }
        if batch.resources.is_empty() && batch.removed.is_empty() {
            self.status.update(kind, |record| {
                record.subscribed = subscribed;
                record.answered = answered;
                record.settled_at.get_or_insert_with(Instant::now);
            });
            return Ok(());
        }
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        exchange.in_flight = Some(InFlight {
            nonce: nonce.clone(),
            changed_at,
        });
        let sent = Sent {
            nonce: nonce.clone(),
            generation: self.generation,
            at: Instant::now(),
            answered: false,
        };
        self.status.update(kind, |record| {
            record.subscribed = subscribed;
            record.answered = answered;
            record.sent = Some(sent);
        });
        metrics::counter!("pilot_xds_pushes", "type" => kind.label()).increment(1);
        let response = DeltaDiscoveryResponse {
            system_version_info: self.generation.to_string(),
            resources: batch.resources,
            type_url: kind.type_url().to_owned(),
            nonce,
            removed_resources: batch.removed,
            requests_seen: exchange.requests,
        };
        self.out.try_send(Ok(response)).map_err(|_| End::Gone)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.registry.remove(self.status.id);
        for name in self.subscriptions().counted(ResourceType::Destination) {
            self.shared
                .hints
                .release(&self.client.identity, name, Leaving::Disconnected);
        }
        metrics::gauge!("pilot_xds").decrement(1.0);
        tracing::info!("proxy {} is disconnected", self.client.workload);
    }
}

fn sensible(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(|c| c.is_ascii_graphic())
}

fn malformed(message: impl Into<String>) -> End {
    End::Malformed(Status::invalid_argument(message))
}

/// Sorts what came in: a request, the end, or bytes that are none.
fn received(message: Result<Option<DeltaDiscoveryRequest>, Status>) -> Result<DeltaDiscoveryRequest, End> {
    match message {
        Ok(Some(request)) => Ok(request),
        Ok(None) => Err(End::Gone),
        // A broken connection has the transport's error as its source, a broken message has none.
        Err(status) if std::error::Error::source(&status).is_none() && status.code() != Code::Cancelled => {
            Err(malformed(format!("not a discovery request: {}", status.message())))
        }
        Err(_) => Err(End::Gone),
    }
}
