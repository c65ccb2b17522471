//! What every connected proxy was sent and what it said to it: `proxy-status`.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mesh_api::names::ObjectRef;
use mesh_api::wire::ResourceType;
use mesh_api::wire::discovery::Node;
use serde::{Deserialize, Serialize};

use super::resources::Client;
use super::subscriptions::Subscriptions;

/// One connected proxy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// Workload id, `reviews-v1.default`.
    pub name: String,
    /// Identity that it proved.
    pub identity: String,
    /// Version of the proxy, as it says.
    pub version: String,
    /// Where it connects from.
    pub address: Option<SocketAddr>,
    /// Where its administration listens, as it says (`ADMIN` in the node's metadata).
    #[serde(default)]
    pub admin: Option<SocketAddr>,
    /// Name of the control plane's replica.
    pub control_plane: String,
    /// Age of the stream.
    pub connected_seconds: u64,
    /// By label of the resource type.
    pub types: BTreeMap<String, TypeStatus>,
}

/// Sync state of one resource type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TypeStatus {
    /// The state.
    pub state: SyncState,
    /// Since the state began: the last acknowledgement, the unanswered response, the refusal.
    pub age_seconds: Option<u64>,
    /// Names subscribed.
    pub subscribed: usize,
    /// Nonce of the last response.
    pub nonce: Option<String>,
    /// World generation of the last response.
    pub generation: Option<u64>,
    /// What the proxy refused, and why.
    pub error: Option<String>,
}

/// Whether a proxy acts on what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncState {
    /// Everything sent is acknowledged, or was held already.
    #[serde(rename = "SYNCED")]
    Synced,
    /// A response is not answered yet.
    #[serde(rename = "STALE")]
    Stale,
    /// The proxy has asked for nothing of this type.
    #[serde(rename = "NOT SENT")]
    NotSent,
    /// The proxy refused a resource and keeps the last good one.
    #[serde(rename = "ERROR")]
    Error,
}

/// On how many proxies a policy object is programmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programmed {
    /// Those that act on all that the object has a say in, as the object is now.
    pub on: usize,
    /// Those that hold anything that the object has a say in.
    pub of: usize,
}

/// Status of all streams of this control plane.
#[derive(Default)]
pub(super) struct Registry {
    streams: Mutex<HashMap<u64, Arc<StreamStatus>>>,
}

/// Status of one stream; its stream writes, `proxy-status` reads.
pub(super) struct StreamStatus {
    /// Grows with each stream of this process.
    pub(super) id: u64,
    pub(super) client: Client,
    pub(super) version: String,
    pub(super) address: Option<SocketAddr>,
    pub(super) admin: Option<SocketAddr>,
    pub(super) since: Instant,
    types: Mutex<[TypeRecord; ResourceType::ALL.len()]>,
    subscriptions: Arc<Mutex<Subscriptions>>,
}

#[derive(Clone, Default)]
pub(super) struct TypeRecord {
    pub(super) subscribed: usize,
    /// Names of this type have their answer, sent or held.
    pub(super) answered: bool,
    pub(super) sent: Option<Sent>,
    pub(super) settled_at: Option<Instant>,
    pub(super) refused: Option<Refusal>,
}

#[derive(Clone)]
pub(super) struct Sent {
    pub(super) nonce: String,
    pub(super) generation: u64,
    pub(super) at: Instant,
    pub(super) answered: bool,
}

#[derive(Clone)]
pub(super) struct Refusal {
    /// Canonical names refused: the error stands until one of them is sent again and acknowledged.
    pub(super) names: Vec<String>,
    pub(super) message: String,
    pub(super) at: Instant,
}

impl Registry {
    pub(super) fn add(&self, status: Arc<StreamStatus>) {
        self.lock().insert(status.id, status);
    }

    pub(super) fn remove(&self, id: u64) {
        self.lock().remove(&id);
    }

    /// On how many proxies each policy object is programmed; `applied` says in which generation it last changed.
    pub(super) fn programmed(&self, applied: impl Fn(&ObjectRef) -> u64) -> HashMap<ObjectRef, Programmed> {
        let mut programmed: HashMap<ObjectRef, Programmed> = HashMap::new();
        for stream in self.newest().values() {
            let (objects, generation) = stream.objects();
            for (object, settled) in objects {
                let current = settled && applied(&object) <= generation;
                let count = programmed.entry(object).or_default();
                count.of += 1;
                count.on += usize::from(current);
            }
        }
        programmed
    }

    /// Connected proxies by name.
    pub(super) fn snapshot(&self, control_plane: &str) -> Vec<ProxyStatus> {
        let newest = self.newest().into_iter();
        newest
            .map(|(name, stream)| stream.status(name, control_plane))
            .collect()
    }

    /// Streams by workload; of several of one workload, the newest.
    fn newest(&self) -> BTreeMap<String, Arc<StreamStatus>> {
        let mut newest: BTreeMap<String, Arc<StreamStatus>> = BTreeMap::new();
        for stream in self.lock().values() {
            let known = newest
                .entry(stream.client.workload.to_string())
                .or_insert_with(|| stream.clone());
            if known.id < stream.id {
                *known = stream.clone();
            }
        }
        newest
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<StreamStatus>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StreamStatus {
    pub(super) fn new(
        id: u64,
        client: Client,
        node: &Node,
        address: Option<SocketAddr>,
        subscriptions: Arc<Mutex<Subscriptions>>,
    ) -> Self {
        Self {
            id,
            client,
            version: node.user_agent_version.clone(),
            address,
            admin: metadata(node, "ADMIN").and_then(|text| text.parse().ok()),
            since: Instant::now(),
            types: Mutex::default(),
            subscriptions,
        }
    }

    pub(super) fn update(&self, kind: ResourceType, change: impl FnOnce(&mut TypeRecord)) {
        change(&mut self.lock()[kind.index()]);
    }

    /// Policy objects that have a say in what the proxy holds, each with whether it acts on all of that, and how far the
    /// world was when that was so.
    fn objects(&self) -> (HashMap<ObjectRef, bool>, u64) {
        let types = self.lock().clone();
        let refused = |kind: ResourceType, name: &str| {
            let refused = types[kind.index()].refused.as_ref();
            refused.is_some_and(|refused| refused.names.iter().any(|other| other == name))
        };
        let subscriptions = self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
        (subscriptions.objects(refused), subscriptions.generation)
    }

    fn status(&self, name: String, control_plane: &str) -> ProxyStatus {
        let types = self.lock().clone();
        ProxyStatus {
            name,
            identity: self.client.identity.to_string(),
            version: self.version.clone(),
            address: self.address,
            admin: self.admin,
            control_plane: control_plane.to_owned(),
            connected_seconds: self.since.elapsed().as_secs(),
            types: ResourceType::ALL
                .into_iter()
                .map(|kind| (kind.label().to_owned(), types[kind.index()].status()))
                .collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, [TypeRecord; ResourceType::ALL.len()]> {
        self.types.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn metadata<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    match &node.metadata.as_ref()?.fields.get(key)?.kind {
        Some(prost_types::value::Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

impl TypeRecord {
    /// The proxy acknowledged a response that carried these resources.
    pub(super) fn acknowledge<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        self.settle();
        if let Some(refused) = &self.refused {
            let mut names = names;
            if names.any(|name| refused.names.iter().any(|refused| refused == name)) {
                self.refused = None;
            }
        }
    }

    /// The proxy refused a response that carried these resources. A message that names some of them refuses those.
    pub(super) fn refuse<'a>(&mut self, message: &str, names: impl Iterator<Item = &'a str> + Clone) {
        self.settle();
        let mut refused: Vec<String> = names
            .clone()
            .filter(|name| message.contains(name))
            .map(str::to_owned)
            .collect();
        if refused.is_empty() {
            refused = names.map(str::to_owned).collect();
        }
        self.refused = Some(Refusal {
            names: refused,
            message: message.to_owned(),
            at: Instant::now(),
        });
    }

    fn settle(&mut self) {
        self.settled_at = Some(Instant::now());
        if let Some(sent) = &mut self.sent {
            sent.answered = true;
        }
    }

    fn status(&self) -> TypeStatus {
        let unanswered = self.sent.as_ref().filter(|sent| !sent.answered);
        let (state, since) = match (&self.refused, unanswered) {
            (Some(refused), _) => (SyncState::Error, Some(refused.at)),
            (None, Some(sent)) => (SyncState::Stale, Some(sent.at)),
            (None, None) if self.answered => (SyncState::Synced, self.settled_at),
            (None, None) => (SyncState::NotSent, None),
        };
        TypeStatus {
            state,
            age_seconds: since.map(|since| since.elapsed().as_secs()),
            subscribed: self.subscribed,
            nonce: self.sent.as_ref().map(|sent| sent.nonce.clone()),
            generation: self.sent.as_ref().map(|sent| sent.generation),
            error: self.refused.as_ref().map(|refused| refused.message.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(nonce: &str) -> Option<Sent> {
        Some(Sent {
            nonce: nonce.into(),
            generation: 1,
            at: Instant::now(),
            answered: false,
        })
    }

    #[test]
    fn states_follow_the_exchange() {
        let mut record = TypeRecord::default();
        assert_eq!(record.status().state, SyncState::NotSent);
        record.sent = sent("1");
        record.answered = true;
        assert_eq!(record.status().state, SyncState::Stale);
        record.acknowledge(["a"].into_iter());
        assert_eq!(record.status().state, SyncState::Synced);

        record.sent = sent("2");
        record.refuse("a: weight is negative", ["a", "b"].into_iter());
        assert_eq!(record.status().state, SyncState::Error);
        assert_eq!(record.status().error.as_deref(), Some("a: weight is negative"));

        record.sent = sent("3");
        record.acknowledge(["b"].into_iter());
        assert_eq!(record.status().state, SyncState::Error, "b was not what was refused");
        record.sent = sent("4");
        record.acknowledge(["a"].into_iter());
        assert_eq!(record.status().state, SyncState::Synced);
    }

    #[test]
    fn states_are_written_as_istioctl_does() {
        assert_eq!(serde_json::to_string(&SyncState::NotSent).unwrap(), "\"NOT SENT\"");
    }
}
