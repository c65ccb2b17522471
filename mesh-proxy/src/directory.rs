//! What the control plane has said, as workers read it: immutable snapshots, no locks, nothing allocated on a hit. The
//! discovery client writes it and answers what is not there yet.
//!
//! **Unknown is not outside.** A destination that the mesh owns is never treated as external because its answer is late:
//! it waits, and then fails. Answers stay in force while the control plane is away.

mod destination;
mod name;
mod table;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use foldhash::fast::RandomState;
use mesh_api::model::{EndpointSlice, Inbound, MeshSettings, Workload};
use mesh_api::wire::ResourceType;
use tokio::sync::{mpsc, oneshot, watch};

pub use destination::Destination;

pub(crate) use destination::LastUse;
pub(crate) use name::{AddressText, Name, Query};
use table::{Table, Write};

/// How long a destination of the mesh waits for its answer.
const OWNED_WAIT: Duration = Duration::from_secs(5);
/// How long a host that is not the mesh's waits for the answer that it is after all.
const FOREIGN_WAIT: Duration = Duration::from_secs(1);
/// Questions on their way to the discovery client; askers beyond that wait within their time.
const QUESTIONS: usize = 1024;

/// Everything held. Shared by all threads.
pub struct Directory {
    settings: ArcSwapOption<MeshSettings>,
    inbound: ArcSwapOption<Inbound>,
    changed: watch::Sender<u64>,
    names: Table<Name, Answer>,
    peers: Table<IpAddr, Peer>,
    hashing: RandomState,
    /// Milliseconds since the discovery client began, as of its last tick; never zero.
    now: AtomicU64,
    questions: mpsc::Sender<Question>,
    held: OnceLock<Describe>,
}

/// Says what the discovery client holds, while there is one.
type Describe = Box<dyn Fn() -> Option<Snapshot> + Send + Sync>;

/// An answer that is there already.
#[derive(Clone, Debug)]
pub enum Known {
    /// A service, or a workload.
    In(Arc<Destination>),
    /// The control plane says that it is not in the mesh.
    NotInMesh,
}

/// The outcome of a lookup.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// A service, or a workload.
    Found(Arc<Destination>),
    /// Outside the mesh: `outboundTrafficPolicy` decides.
    NotInMesh,
    /// The mesh's, but the control plane has not said where: the request fails (503), the connection is closed.
    Unavailable,
}

/// Everything held at one time, for configuration dumps.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Whether the discovery stream is up.
    pub connected: bool,
    /// Why the last stream or attempt failed.
    pub last_error: Option<String>,
    /// What holds for every proxy.
    pub settings: Option<Held<Arc<MeshSettings>>>,
    /// The workload's own policy.
    pub inbound: Option<Held<Arc<Inbound>>>,
    /// Destinations, by canonical name.
    pub destinations: Vec<HeldDestination>,
    /// Endpoint slices.
    pub slices: Vec<Held<Arc<EndpointSlice>>>,
    /// Peers by address; those that are no workloads are left out.
    pub workloads: Vec<Held<Arc<Workload>>>,
    /// Names that are not in the mesh.
    pub not_in_mesh: Vec<Arc<str>>,
    /// Names whose answer has not come.
    pub waiting: Vec<Arc<str>>,
    /// Resources refused: the last good version of each, if any, is in force.
    pub rejected: Vec<Rejected>,
}

/// A resource held.
#[derive(Clone, Debug)]
pub struct Held<T> {
    /// Its name.
    pub name: Arc<str>,
    /// Its version.
    pub version: Arc<str>,
    /// The resource.
    pub value: T,
}

/// A destination held.
#[derive(Clone, Debug)]
pub struct HeldDestination {
    /// Names under which it was asked for.
    pub asked: Vec<Arc<str>>,
    /// Names that only a replica of this workload has asked for.
    pub hinted: Vec<Arc<str>>,
    /// In force; `None` until its endpoints have come.
    pub current: Option<Arc<Destination>>,
    /// Version that waits for endpoints.
    pub waiting: Option<Arc<str>>,
}

/// A resource that did not decode.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// Its type.
    pub kind: ResourceType,
    /// Its name.
    pub name: Arc<str>,
    /// What is wrong with it.
    pub reason: String,
}

/// What workers ask the discovery client.
pub(crate) enum Question {
    Destination { name: Name, reply: oneshot::Sender<Lookup> },
    Peer(IpAddr),
}

/// The questions of a directory, for its discovery client.
pub struct Questions(pub(crate) mpsc::Receiver<Question>);

/// An answer as it is published.
#[derive(Clone)]
pub(crate) enum Answer {
    In(Arc<Destination>),
    NotInMesh(Arc<LastUse>),
}

/// What is known of an address.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) workload: Option<Arc<Workload>>,
    pub(crate) last_use: Arc<LastUse>,
}

impl Directory {
    /// An empty directory, and what its discovery client needs.
    #[must_use]
    pub fn new() -> (Arc<Self>, Questions) {
        let (questions, receiver) = mpsc::channel(QUESTIONS);
        let directory = Self {
            settings: ArcSwapOption::empty(),
            inbound: ArcSwapOption::empty(),
            changed: watch::Sender::new(0),
            names: Table::new(),
            peers: Table::new(),
            hashing: RandomState::default(),
            now: AtomicU64::new(1),
            questions,
            held: OnceLock::new(),
        };
        (Arc::new(directory), Questions(receiver))
    }

    /// What holds for every proxy; `None` until the control plane has said.
    #[must_use]
    pub fn settings(&self) -> Option<Arc<MeshSettings>> {
        self.settings.load_full()
    }

    /// The workload's own policy. Until it is complete, nothing may be let in.
    #[must_use]
    pub fn inbound(&self) -> Option<Arc<Inbound>> {
        self.inbound.load_full()
    }

    /// Changes whenever [`Self::settings`] or [`Self::inbound`] does: new policy holds for live connections as well.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether everything is there that a proxy must have before it is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.settings.load().is_some() && self.inbound.load().is_some()
    }

    /// What is known of an authority's host, in any spelling, and port. Never waits, never allocates.
    #[must_use]
    pub fn get(&self, host: &str, port: u16) -> Option<Known> {
        let query = Query::new(host, port);
        let answer = self.names.get(query.hash(&self.hashing), |name| query.is(name))?;
        let now = self.now.load(Ordering::Relaxed);
        Some(match answer {
            Answer::In(destination) => {
                destination.last_use.touch(now);
                Known::In(destination)
            }
            Answer::NotInMesh(last_use) => {
                last_use.touch(now);
                Known::NotInMesh
            }
        })
    }

    /// Looks an HTTP authority up. What is not known yet is asked for; a host of the mesh waits up to 5 s for the answer,
    /// any other up to 1 s.
    pub async fn lookup(&self, host: &str, port: u16) -> Lookup {
        match self.get(host, port) {
            Some(known) => known.into(),
            None => Box::pin(self.ask(host, port)).await,
        }
    }

    /// Looks the original destination of a connection up. An address that the mesh does not own is outside at once.
    pub async fn lookup_address(&self, address: IpAddr, port: u16) -> Lookup {
        let text = AddressText::new(address);
        if let Some(known) = self.get(text.as_str(), port) {
            return known.into();
        }
        let settings = self.settings.load();
        if settings
            .as_ref()
            .is_some_and(|settings| !settings.owned.has_address(address.to_canonical()))
        {
            return Lookup::NotInMesh;
        }
        drop(settings);
        Box::pin(self.ask(text.as_str(), port)).await
    }

    /// Who is at an address. What is not known yet is asked for, and there at a later call.
    #[must_use]
    pub fn peer(&self, address: IpAddr) -> Option<Arc<Workload>> {
        let address = address.to_canonical();
        if let Some(peer) = self.peers.get(self.hash_address(&address), |known| *known == address) {
            peer.last_use.touch(self.now.load(Ordering::Relaxed));
            return peer.workload;
        }
        let settings = self.settings.load();
        if settings
            .as_ref()
            .is_none_or(|settings| settings.owned.has_address(address))
            && self.questions.try_send(Question::Peer(address)).is_err()
        {
            metrics::counter!("mesh_discovery_questions_dropped_total").increment(1);
        }
        None
    }

    /// Everything held, with versions; for dumps.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.held.get().and_then(|held| held()).unwrap_or_default()
    }

    async fn ask(&self, host: &str, port: u16) -> Lookup {
        let Some(name) = Name::new(host, port) else {
            return Lookup::NotInMesh;
        };
        let (reply, answer) = oneshot::channel();
        let owned = self.owns(&name);
        let wait = if owned { OWNED_WAIT } else { FOREIGN_WAIT };
        let asking = async {
            let question = Question::Destination { name, reply };
            self.questions.send(question).await.ok()?;
            answer.await.ok()
        };
        if let Ok(Some(answer)) = tokio::time::timeout(wait, asking).await {
            return answer;
        }
        metrics::counter!("mesh_discovery_lookups_unanswered_total", "owned" => if owned { "true" } else { "false" })
            .increment(1);
        // Settings may have come while the answer did not.
        if owned { Lookup::Unavailable } else { Lookup::NotInMesh }
    }

    /// Before settings are there, everything may be the mesh's.
    fn owns(&self, name: &Name) -> bool {
        let settings = self.settings.load();
        let Some(settings) = settings.as_ref() else {
            return true;
        };
        match name.host().parse::<IpAddr>() {
            Ok(address) => settings.owned.has_address(address.to_canonical()),
            Err(_) => settings.owned.has_host(name.host()),
        }
    }

    fn hash_name(&self, name: &Name) -> u64 {
        name.query().hash(&self.hashing)
    }

    fn hash_address(&self, address: &IpAddr) -> u64 {
        use std::hash::BuildHasher as _;
        self.hashing.hash_one(address)
    }
}

/// The discovery client's side.
impl Directory {
    pub(crate) fn set_held(&self, held: impl Fn() -> Option<Snapshot> + Send + Sync + 'static) {
        // One directory has one client; a second would have no questions to answer.
        let _ = self.held.set(Box::new(held));
    }

    pub(crate) fn publish_settings(&self, settings: Arc<MeshSettings>) {
        self.settings.store(Some(settings));
        self.changed.send_modify(|changes| *changes += 1);
    }

    pub(crate) fn publish_inbound(&self, inbound: Option<Arc<Inbound>>) {
        self.inbound.store(inbound);
        self.changed.send_modify(|changes| *changes += 1);
    }

    pub(crate) fn publish_names(&self, writes: Vec<(Name, Option<Answer>)>) {
        let writes = writes.into_iter().map(|(key, value)| Write {
            hash: self.hash_name(&key),
            key,
            value,
        });
        self.names.apply(writes.collect(), |name| self.hash_name(name));
    }

    pub(crate) fn publish_peers(&self, writes: Vec<(IpAddr, Option<Peer>)>) {
        let writes = writes.into_iter().map(|(key, value)| Write {
            hash: self.hash_address(&key),
            key,
            value,
        });
        self.peers.apply(writes.collect(), |address| self.hash_address(address));
    }

    pub(crate) fn set_now(&self, now: u64) {
        self.now.store(now, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }
}

impl From<Known> for Lookup {
    fn from(known: Known) -> Self {
        match known {
            Known::In(destination) => Self::Found(destination),
            Known::NotInMesh => Self::NotInMesh,
        }
    }
}
