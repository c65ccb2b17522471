//! What one stream subscribes to, what it was told, and what it still has to be told. No input or output: requests and
//! changes mark names, a batch resolves the marked ones and compares them with what the client already has.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use mesh_api::names::ObjectRef;
use mesh_api::wire::ResourceType;
use mesh_api::wire::discovery::{Any, Resource};

use super::resources::{Answer, Client, Key, Resources, Touched};

/// Names that one stream may hold of one type; proxies hold at most half as many.
pub(super) const MAX_SUBSCRIPTIONS: usize = 20_000;
/// Longest name: a host name of 253 bytes with a port, and room.
pub(super) const MAX_NAME: usize = 512;
/// A batch ends after so many resources…
const MAX_BATCH: usize = 1_000;
/// …or so many bytes of them; the rest follows after the acknowledgement.
const MAX_BATCH_BYTES: usize = 1 << 20;

/// Why a stream holds a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The client asked.
    Asked,
    /// A sibling asked.
    Hinted,
}

/// Subscriptions of a stream.
#[derive(Default)]
pub(super) struct Subscriptions {
    types: [TypeSubscriptions; ResourceType::ALL.len()],
    /// How far the world was when the last change was looked at.
    pub(super) generation: u64,
    /// Which subscriptions depend on a fact.
    index: HashMap<Key, Vec<(ResourceType, Arc<str>)>>,
}

#[derive(Default)]
struct TypeSubscriptions {
    names: HashMap<Arc<str>, Subscription>,
    /// Names to resolve.
    marked: BTreeSet<Arc<str>>,
    /// Hints that were sent and have ended.
    withdrawn: BTreeSet<Arc<str>>,
    /// What the client brought from an earlier stream, asked name to version, until the name is first resolved.
    retained: HashMap<String, String>,
    /// Canonical names of the response that is not answered yet.
    unanswered: Vec<String>,
}

struct Subscription {
    origin: Origin,
    /// The client just asked: it gets an answer even when that is what it was told before.
    answer_due: bool,
    /// It exists and its account's hints know of it.
    counted: bool,
    depends: Arc<[Key]>,
    objects: Arc<[ObjectRef]>,
    told: Told,
}

#[derive(PartialEq, Eq)]
enum Told {
    Nothing,
    NotFound,
    Resource { name: Arc<str>, version: Arc<str> },
}

/// What goes into one response.
#[derive(Default)]
pub(super) struct Batch {
    /// New and changed resources.
    pub(super) resources: Vec<Resource>,
    /// Asked names that lead nowhere.
    pub(super) removed: Vec<String>,
    /// Names that this client asked for and that were found for the first time.
    pub(super) found: Vec<Arc<str>>,
}

impl Subscriptions {
    /// Adds or renews a subscription. `Err` when there are too many.
    pub(super) fn subscribe(&mut self, kind: ResourceType, name: &str, origin: Origin) -> Result<(), TooMany> {
        let of = &mut self.types[kind.index()];
        let name: Arc<str> = match of.names.get_key_value(name) {
            Some(_) if origin == Origin::Hinted => return Ok(()),
            Some((name, _)) => name.clone(),
            None if of.names.len() >= MAX_SUBSCRIPTIONS => return Err(TooMany(kind)),
            None => name.into(),
        };
        let subscription = of.names.entry(name.clone()).or_insert_with(|| Subscription {
            origin,
            answer_due: false,
            counted: false,
            depends: Arc::new([]),
            objects: Arc::new([]),
            told: Told::Nothing,
        });
        if origin == Origin::Asked {
            subscription.origin = Origin::Asked;
            subscription.answer_due = true;
        }
        of.withdrawn.remove(&name);
        of.marked.insert(name);
        Ok(())
    }

    /// Ends a subscription. Whether the account's hints counted it.
    pub(super) fn unsubscribe(&mut self, kind: ResourceType, name: &str) -> bool {
        let of = &mut self.types[kind.index()];
        of.marked.remove(name);
        let Some((name, subscription)) = of.names.remove_entry(name) else {
            return false;
        };
        self.forget(&subscription.depends, kind, &name);
        subscription.counted
    }

    /// Ends a subscription that only a hint made, and has the client told if it was sent.
    pub(super) fn withdraw(&mut self, kind: ResourceType, name: &str) {
        let of = &mut self.types[kind.index()];
        let told = match of.names.get_key_value(name) {
            Some((name, subscription)) if subscription.origin == Origin::Hinted => {
                matches!(subscription.told, Told::Resource { .. }).then(|| name.clone())
            }
            _ => return,
        };
        of.withdrawn.extend(told);
        self.unsubscribe(kind, name);
    }

    /// Notes what the client still holds from an earlier stream.
    pub(super) fn retain(&mut self, kind: ResourceType, versions: HashMap<String, String>) {
        self.types[kind.index()].retained = versions;
    }

    /// Marks what a change may concern. Whether that is anything.
    pub(super) fn touch(&mut self, touched: &Touched) -> bool {
        let mut any = false;
        match touched {
            Touched::All => {
                for of in &mut self.types {
                    of.marked.extend(of.names.keys().cloned());
                    any |= !of.names.is_empty();
                }
            }
            Touched::Keys(keys) => {
                for (kind, name) in keys.iter().filter_map(|key| self.index.get(key)).flatten() {
                    self.types[kind.index()].marked.insert(name.clone());
                    any = true;
                }
            }
        }
        any
    }

    /// Resolves marked names of a type, up to the size of a response; the rest stays marked.
    pub(super) fn batch(&mut self, kind: ResourceType, client: &Client, resources: &dyn Resources) -> Batch {
        let withdrawn = std::mem::take(&mut self.types[kind.index()].withdrawn);
        let mut batch = Batch {
            removed: withdrawn.iter().map(|name| name.to_string()).collect(),
            ..Batch::default()
        };
        let mut position: HashMap<Arc<str>, usize> = HashMap::new();
        let mut bytes_sent = 0;
        while batch.resources.len() + batch.removed.len() < MAX_BATCH && bytes_sent < MAX_BATCH_BYTES {
            let of = &mut self.types[kind.index()];
            let Some(name) = of.marked.pop_first() else {
                break;
            };
            let retained = of.retained.remove(&*name);
            let resolved = resources.resolve(client, kind, &name);
            self.depend(kind, &name, &resolved.depends);
            let Some(subscription) = self.types[kind.index()].names.get_mut(&name) else {
                continue;
            };
            subscription.objects = resolved.objects;
            let due = std::mem::take(&mut subscription.answer_due);
            match resolved.answer {
                Answer::Resource {
                    name: canonical,
                    version,
                    bytes,
                } => {
                    if subscription.origin == Origin::Asked && !subscription.counted {
                        subscription.counted = true;
                        batch.found.push(name.clone());
                    }
                    let resumed = subscription.told == Told::Nothing && retained.as_deref() == Some(&*version);
                    let told = Told::Resource {
                        name: canonical.clone(),
                        version: version.clone(),
                    };
                    let unchanged = subscription.told == told;
                    subscription.told = told;
                    if resumed || (unchanged && !due) {
                        continue;
                    }
                    let at = *position.entry(canonical.clone()).or_insert_with(|| {
                        bytes_sent += bytes.len();
                        batch.resources.push(Resource {
                            version: version.to_string(),
                            resource: Some(Any {
                                type_url: kind.type_url().to_owned(),
                                value: bytes,
                            }),
                            name: canonical.to_string(),
                            aliases: Vec::new(),
                            ttl: None,
                        });
                        batch.resources.len() - 1
                    });
                    if canonical != name {
                        batch.resources[at].aliases.push(name.to_string());
                    }
                }
                Answer::NotFound => {
                    let told_before = std::mem::replace(&mut subscription.told, Told::NotFound);
                    let tell = match subscription.origin {
                        Origin::Asked => due || told_before != Told::NotFound,
                        Origin::Hinted => matches!(told_before, Told::Resource { .. }),
                    };
                    if tell {
                        batch.removed.push(name.to_string());
                    }
                }
            }
        }
        let of = &mut self.types[kind.index()];
        if of.marked.is_empty() {
            of.retained = HashMap::new();
        }
        of.unanswered = batch.resources.iter().map(|resource| resource.name.clone()).collect();
        batch
    }

    /// The last response of a type is answered; gives the canonical names that it carried.
    pub(super) fn answered(&mut self, kind: ResourceType) -> Vec<String> {
        std::mem::take(&mut self.types[kind.index()].unanswered)
    }

    /// Policy objects that have a say in what the client holds, each with whether it acts on all of that: nothing is on
    /// its way, and nothing was refused (`refused` are canonical names).
    pub(super) fn objects(&self, refused: impl Fn(ResourceType, &str) -> bool) -> HashMap<ObjectRef, bool> {
        let mut objects = HashMap::new();
        for kind in ResourceType::ALL {
            let of = &self.types[kind.index()];
            for (name, subscription) in &of.names {
                let Told::Resource { name: canonical, .. } = &subscription.told else {
                    continue;
                };
                let settled = !of.marked.contains(name)
                    && !of.unanswered.iter().any(|sent| **sent == **canonical)
                    && !refused(kind, canonical);
                for object in subscription.objects.iter() {
                    *objects.entry(object.clone()).or_insert(true) &= settled;
                }
            }
        }
        objects
    }

    /// Whether a type has names to resolve or to end.
    pub(super) fn is_marked(&self, kind: ResourceType) -> bool {
        let of = &self.types[kind.index()];
        !of.marked.is_empty() || !of.withdrawn.is_empty()
    }

    /// Names held of a type.
    pub(super) fn count(&self, kind: ResourceType) -> usize {
        self.types[kind.index()].names.len()
    }

    /// Names that the account's hints counted for this stream.
    pub(super) fn counted(&self, kind: ResourceType) -> impl Iterator<Item = &Arc<str>> {
        let names = self.types[kind.index()].names.iter();
        names
            .filter(|(_, subscription)| subscription.counted)
            .map(|(name, _)| name)
    }

    /// Whether some name of a type leads to something that the client has, or was sent.
    pub(super) fn holds_any(&self, kind: ResourceType) -> bool {
        self.types[kind.index()]
            .names
            .values()
            .any(|subscription| subscription.told != Told::Nothing)
    }

    fn depend(&mut self, kind: ResourceType, name: &Arc<str>, depends: &Arc<[Key]>) {
        let Some(subscription) = self.types[kind.index()].names.get_mut(name) else {
            return;
        };
        if subscription.depends == *depends {
            return;
        }
        let before = std::mem::replace(&mut subscription.depends, depends.clone());
        self.forget(&before, kind, name);
        for key in depends.iter() {
            self.index.entry(*key).or_default().push((kind, name.clone()));
        }
    }

    fn forget(&mut self, depends: &[Key], kind: ResourceType, name: &str) {
        for key in depends {
            if let Some(entries) = self.index.get_mut(key) {
                entries.retain(|(of, known)| *of != kind || &**known != name);
                if entries.is_empty() {
                    self.index.remove(key);
                }
            }
        }
    }
}

/// More names of a type than a stream may hold.
#[derive(Debug, thiserror::Error)]
#[error("more than {MAX_SUBSCRIPTIONS} {0} subscribed on one stream")]
pub(super) struct TooMany(ResourceType);
