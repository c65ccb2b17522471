//! What discovery asks of the rest of the control plane: the compiler implements [`Resources`], discovery serves it.
//!
//! An answer says what it was computed from, as [`Key`]s; a change says which keys it touched. So a stream re-resolves
//! only the subscriptions that a change can concern, and discovery needs to know nothing about policy.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use mesh_api::identity::SpiffeId;
use mesh_api::names::{ObjectRef, WorkloadId};
use mesh_api::wire::ResourceType;
use tokio::sync::broadcast;

/// An authenticated and admitted subject of discovery.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// Identity that it proved.
    pub identity: SpiffeId,
    /// Workload that it speaks for; its namespace is the identity's, and the world says that it runs as that identity.
    pub workload: WorkloadId,
}

/// What the control plane serves. Implementations answer from a current, immutable view of the world; everything here is
/// called on the control plane's async threads and must neither block nor take long.
pub trait Resources: Send + Sync + 'static {
    /// Whether an identity may speak for a workload.
    ///
    /// # Errors
    /// A message for the caller, who gets PERMISSION_DENIED: another namespace or account, or no such workload.
    fn admit(&self, identity: &SpiffeId, workload: &WorkloadId) -> Result<Client, String>;

    /// What a subscribed name means to a client now.
    fn resolve(&self, client: &Client, kind: ResourceType, name: &str) -> Resolved;

    /// How many changes there have been; 0 where nobody counts.
    fn generation(&self) -> u64 {
        0
    }

    /// Changes of the world from now on. A change is sent after `resolve` answers from the new world. A receiver that
    /// lags loses nothing: it then treats everything as touched.
    fn changes(&self) -> broadcast::Receiver<Arc<Change>>;
}

/// An answer, and what it depends on.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The answer.
    pub answer: Answer,
    /// Facts that the answer was computed from, absent ones included: a change that touches none of them leaves the answer
    /// as it is. Shared, so that an implementation can hand the same list to all clients of a view.
    pub depends: Arc<[Key]>,
    /// Policy objects that have a say in the answer.
    pub objects: Arc<[ObjectRef]>,
}

/// What a name means to a client.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A resource.
    Resource {
        /// Canonical name: the name asked for, but for destinations `<fqdn>:<port>@<view>`.
        name: Arc<str>,
        /// Version, equal for equal bytes: see [`version`].
        version: Arc<str>,
        /// The encoded message, shared by all streams.
        bytes: Bytes,
    },
    /// Not in the mesh, or not for this client's eyes.
    NotFound,
}

/// One fact of the world that answers depend on: a host name, a namespace's policies, the mesh's settings… Only a hash is
/// kept; a collision costs one needless comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(u64);

impl Key {
    /// The key of a fact of some kind: `Key::of("host", "reviews.default.svc.cluster.local")`.
    #[must_use]
    pub fn of<T: Hash + ?Sized>(kind: &'static str, fact: &T) -> Self {
        let state = foldhash::fast::FixedState::with_seed(0x6d65_7368);
        let mut hasher = state.build_hasher();
        kind.hash(&mut hasher);
        fact.hash(&mut hasher);
        Self(std::hash::Hasher::finish(&hasher))
    }
}

/// A change of the world.
#[derive(Debug)]
pub struct Change {
    /// Grows by one with each change.
    pub generation: u64,
    /// What may now resolve differently.
    pub touched: Touched,
    /// When the source noticed, for `pilot_proxy_convergence_time`.
    pub at: Instant,
}

/// What a change touches.
#[derive(Clone, Debug)]
pub enum Touched {
    /// Possibly everything.
    All,
    /// Answers that depend on one of these.
    Keys(HashSet<Key>),
}

/// The version of encoded bytes: 16 hexadecimal digits, the same in every process of one build.
#[must_use]
pub fn version(bytes: &[u8]) -> Arc<str> {
    let hash = foldhash::quality::FixedState::with_seed(0x7665_7273).hash_one(bytes);
    format!("{hash:016x}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_separate_kinds_and_facts() {
        assert_eq!(Key::of("host", "a"), Key::of("host", "a"));
        assert_ne!(Key::of("host", "a"), Key::of("host", "b"));
        assert_ne!(Key::of("host", "a"), Key::of("namespace", "a"));
    }

    #[test]
    fn versions_follow_bytes() {
        assert_eq!(version(b"one"), version(b"one"));
        assert_ne!(version(b"one"), version(b"two"));
        assert_eq!(version(b"").len(), 16);
    }
}
