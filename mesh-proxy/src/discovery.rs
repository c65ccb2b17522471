//! The discovery client: `disconnected -> connecting -> streaming -> disconnected`, for as long as the proxy lives.
//!
//! Workers' questions and the control plane's responses come in; the [`Directory`] is what goes out. A resource that does
//! not decode is refused by name (NACK) and the last good version stays. Nothing that is held is given up because the
//! control plane is away.

mod book;
mod destinations;
mod peers;
mod store;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_api::model::MeshSettings;
use mesh_api::names::WorkloadId;
use mesh_api::wire::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_api::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use prost_types::{Value, value};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};

use crate::directory::{Directory, Questions};
use crate::identity::{ControlPlane, describe};
use crate::upstream::Upstreams;
use store::Store;

/// Largest response: the control plane sends about 1 MiB at a time, but one resource may be larger.
const MAX_RESPONSE: usize = 64 << 20;
/// How long a stream may take to open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests on their way out.
const OUTGOING: usize = 16;
/// First pause after a failure; it doubles with each further one.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// How much is held, and for how long.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A subscription that was not used for this long ends. Default 10 minutes.
    pub idle: Duration,
    /// Names of destinations held; beyond that the least recently used goes. Default 10,000.
    pub subscriptions: usize,
    /// Of these, names that are not in the mesh. Default 2,000.
    pub not_in_mesh: usize,
    /// Addresses of peers held. Default 10,000.
    pub peers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(600),
            subscriptions: 10_000,
            not_in_mesh: 2_000,
            peers: 10_000,
        }
    }
}

impl Limits {
    fn idle_millis(&self) -> u64 {
        millis(self.idle)
    }

    /// How long a question that nobody waits for any longer is kept while there is no server to answer it.
    fn unanswered_millis(&self) -> u64 {
        millis(self.idle.min(Duration::from_secs(30)))
    }

    /// How exactly time is kept.
    fn tick(&self) -> Duration {
        (self.idle / 4).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }
}

/// Responses of a stream, once it is open.
pub type Opening = Pin<Box<dyn Future<Output = Result<Streaming<DeltaDiscoveryResponse>, Status>> + Send>>;

/// Opens discovery streams.
pub trait Dial: Send + Sync + 'static {
    /// Opens a stream, on a connection of its own, that carries `requests`.
    fn open(&self, requests: ReceiverStream<DeltaDiscoveryRequest>) -> Opening;
}

/// Over TLS, with this proxy's identity.
impl Dial for Arc<ControlPlane> {
    fn open(&self, requests: ReceiverStream<DeltaDiscoveryRequest>) -> Opening {
        let control = self.clone();
        Box::pin(async move {
            let channel = control
                .channel()
                .map_err(|error| Status::unavailable(error.to_string()))?;
            let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE);
            Ok(client.delta_aggregated_resources(requests).await?.into_inner())
        })
    }
}

/// In plaintext, to a control plane that allows it.
impl Dial for Endpoint {
    fn open(&self, requests: ReceiverStream<DeltaDiscoveryRequest>) -> Opening {
        let endpoint = self.clone();
        Box::pin(async move {
            let channel = endpoint
                .connect()
                .await
                .map_err(|error| Status::unavailable(chain(&error)))?;
            let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE);
            Ok(client.delta_aggregated_resources(requests).await?.into_inner())
        })
    }
}

/// The client; runs on the administration thread.
pub struct Discovery {
    node: Node,
    dial: Box<dyn Dial>,
    limits: Limits,
    directory: Arc<Directory>,
    /// Shared with dumps; never locked across a wait.
    store: Arc<Mutex<Store>>,
    questions: Questions,
    started: Instant,
}

enum State {
    /// Waits before it tries again.
    Disconnected { until: Instant, failures: u32 },
    /// Opens a stream.
    Connecting { link: Connecting, failures: u32 },
    /// Has one.
    Streaming(Box<Link>),
    /// Told to end.
    Ended,
}

struct Connecting {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    opening: Opening,
    deadline: Instant,
}

struct Link {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    /// The first request is still to be sent: it says who we are.
    node: Option<Node>,
    failures: u32,
}

impl Discovery {
    /// A client that asks for `workload`, publishes into `directory` and answers its `questions`.
    #[must_use]
    pub fn new(
        workload: WorkloadId,
        dial: impl Dial,
        limits: Limits,
        directory: Arc<Directory>,
        questions: Questions,
        upstreams: Arc<Upstreams>,
    ) -> Self {
        let store = Store::new(directory.clone(), upstreams, &workload, limits.clone());
        let store = Arc::new(Mutex::new(store));
        let held = Arc::downgrade(&store);
        directory.set_held(move || Some(lock(&*held.upgrade()?).snapshot()));
        Self {
            store,
            node: node(&workload),
            dial: Box::new(dial),
            limits,
            directory,
            questions,
            started: Instant::now(),
        }
    }

    /// Tells the control plane where this proxy is administrated, for those who ask it.
    #[must_use]
    pub fn with_admin(mut self, admin: SocketAddr) -> Self {
        let kind = Some(value::Kind::StringValue(admin.to_string()));
        let metadata = self.node.metadata.get_or_insert_default();
        metadata.fields.insert("ADMIN".to_owned(), Value { kind });
        self
    }

    /// Has settings put in force by `take` before they are acknowledged: what cannot be in force here, such as a log that
    /// cannot be opened, is refused with the reason.
    #[must_use]
    pub fn taking_settings(self, take: impl Fn(&MeshSettings) -> Result<(), String> + Send + 'static) -> Self {
        lock(&self.store).set_take_settings(Box::new(take));
        self
    }

    /// Runs until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(self.limits.tick());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut state = self.connect(0);
        loop {
            let (connected, pending) = {
                let mut store = self.store();
                (store.connected, store.is_pending())
            };
            metrics::gauge!("mesh_discovery_connected").set(f64::from(u8::from(connected)));
            state = tokio::select! {
                () = shutdown.cancelled() => State::Ended,
                _ = ticks.tick() => {
                    self.tick();
                    state
                }
                Some(question) = self.questions.0.recv() => {
                    self.store().question(question);
                    state
                }
                // Last, since it takes the state apart; the others leave it as it is.
                event = next(&mut state, pending) => self.step(state, event),
            };
            if matches!(state, State::Ended) {
                return;
            }
        }
    }

    /// One transition.
    fn step(&mut self, state: State, event: Event) -> State {
        match (state, event) {
            (State::Disconnected { failures, .. }, _) => self.connect(failures),
            (State::Connecting { link, failures }, Event::Opened(responses)) => {
                tracing::info!("connected to the control plane");
                transition("streaming");
                self.store().restart();
                State::Streaming(Box::new(Link {
                    requests: link.requests,
                    responses: *responses,
                    node: Some(self.node.clone()),
                    failures,
                }))
            }
            (State::Streaming(mut link), Event::Writable) => {
                if let Ok(permit) = link.requests.try_reserve()
                    && let Some(mut request) = self.store().request()
                {
                    request.node = link.node.take();
                    permit.send(request);
                }
                State::Streaming(link)
            }
            (State::Streaming(mut link), Event::Response(response)) => {
                let taken = self.store().response(*response);
                match taken {
                    Ok(()) => {
                        link.failures = 0;
                        State::Streaming(link)
                    }
                    Err(error) => {
                        metrics::counter!("mesh_discovery_malformed_responses_total").increment(1);
                        self.disconnect(&Status::unknown(error), link.failures)
                    }
                }
            }
            (State::Connecting { failures, .. }, Event::Failed(status)) => self.disconnect(&status, failures),
            (State::Streaming(link), Event::Failed(status)) => self.disconnect(&status, link.failures),
            // An event that does not belong to the state cannot come.
            (state, _) => state,
        }
    }

    fn connect(&mut self, failures: u32) -> State {
        transition("connecting");
        let (requests, receiver) = mpsc::channel(OUTGOING);
        let link = Connecting {
            requests,
            opening: self.dial.open(ReceiverStream::new(receiver)),
            deadline: Instant::now() + OPEN_TIMEOUT,
        };
        State::Connecting { link, failures }
    }

    fn disconnect(&mut self, status: &Status, failures: u32) -> State {
        transition("disconnected");
        if is_malformed(status) {
            metrics::counter!("mesh_discovery_malformed_responses_total").increment(1);
        }
        let reason = describe(status);
        let full = MIN_PAUSE.saturating_mul(1 << failures.min(10)).min(MAX_PAUSE);
        let pause = full.mul_f64(0.5 + fastrand::f64() / 2.0);
        tracing::warn!("no discovery stream ({reason}); what is held stays in force; trying again in {pause:.1?}");
        self.store().disconnect(reason);
        State::Disconnected {
            until: Instant::now() + pause,
            failures: failures.saturating_add(1),
        }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    fn tick(&mut self) {
        self.directory.set_now(millis(self.started.elapsed()).max(1));
        self.store().tick();
    }
}

/// What ends the waiting of a state.
enum Event {
    Elapsed,
    Opened(Box<Streaming<DeltaDiscoveryResponse>>),
    Writable,
    Response(Box<DeltaDiscoveryResponse>),
    Failed(Status),
}

/// Waits; may be dropped and called again without loss.
async fn next(state: &mut State, pending: bool) -> Event {
    match state {
        State::Disconnected { until, .. } => {
            tokio::time::sleep_until(*until).await;
            Event::Elapsed
        }
        State::Connecting { link, .. } => match tokio::time::timeout_at(link.deadline, link.opening.as_mut()).await {
            Ok(Ok(responses)) => Event::Opened(Box::new(responses)),
            Ok(Err(status)) => Event::Failed(status),
            Err(_) => Event::Failed(Status::deadline_exceeded("the control plane does not answer")),
        },
        State::Streaming(link) => tokio::select! {
            permit = link.requests.reserve(), if pending => match permit {
                Ok(_) => Event::Writable,
                Err(_) => Event::Failed(Status::unavailable("the stream has ended")),
            },
            message = link.responses.message() => match message {
                Ok(Some(response)) => Event::Response(Box::new(response)),
                Ok(None) => Event::Failed(Status::unavailable("the control plane has ended the stream")),
                Err(status) => Event::Failed(status),
            },
        },
        State::Ended => std::future::pending().await,
    }
}

fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

fn node(workload: &WorkloadId) -> Node {
    Node {
        id: workload.to_string(),
        user_agent_name: "mesh-proxy".to_owned(),
        user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Node::default()
    }
}

/// Bytes that are no response: a broken connection has a source, a broken message has none.
fn is_malformed(status: &Status) -> bool {
    matches!(status.code(), Code::Internal | Code::OutOfRange) && std::error::Error::source(status).is_none()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}

fn transition(to: &'static str) {
    metrics::counter!("mesh_discovery_transitions_total", "to" => to).increment(1);
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
