//! Destinations and the endpoint slices that they need: what was asked, what came, what is in force.
//!
//! A name leads to a canonical destination, several names perhaps to one. A version of a destination comes into force when
//! all slices that its clusters name have come; until then the version before stays. No input or output: time comes in, and
//! what has to be told to the server goes into the [`Book`]s.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use mesh_api::model::{self, EndpointSlice, EndpointSource};
use tokio::sync::oneshot;

use super::Limits;
use super::book::Book;
use crate::directory::{Answer, Destination, Directory, Held, HeldDestination, LastUse, Lookup, Name, Snapshot};
use crate::upstream::Upstreams;

pub(super) struct Destinations {
    directory: Arc<Directory>,
    upstreams: Arc<Upstreams>,
    limits: Limits,
    names: HashMap<Name, Entry>,
    canonical: HashMap<Arc<str>, Canonical>,
    slices: HashMap<Arc<str>, Slice>,
    not_in_mesh: usize,
    /// To publish at the end of the step.
    changed: BTreeSet<Name>,
    /// Subscriptions to destinations.
    pub(super) book: Book,
    /// Subscriptions to slices.
    pub(super) slice_book: Book,
}

struct Entry {
    origin: Origin,
    /// When it was asked or hinted.
    since: u64,
    state: State,
    waiters: Vec<oneshot::Sender<Lookup>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// This workload asked: subscribed.
    Asked,
    /// A replica of it asked: sent to us without subscription.
    Hinted,
}

enum State {
    Pending,
    NotInMesh(Arc<LastUse>),
    Leads(Arc<str>),
}

#[derive(Default)]
struct Canonical {
    names: HashSet<Name>,
    current: Option<Arc<Destination>>,
    /// Waits for slices.
    next: Option<Version>,
    /// Slices that `current` or `next` name.
    slices: HashSet<Arc<str>>,
    last_use: Arc<LastUse>,
}

struct Version {
    version: Arc<str>,
    model: Arc<model::Destination>,
}

#[derive(Default)]
struct Slice {
    /// `None` until it has come; one that was removed is empty.
    value: Option<Arc<EndpointSlice>>,
    version: Option<Arc<str>>,
    users: HashSet<Arc<str>>,
}

impl Destinations {
    pub(super) fn new(directory: Arc<Directory>, upstreams: Arc<Upstreams>, limits: Limits) -> Self {
        Self {
            directory,
            upstreams,
            limits,
            names: HashMap::new(),
            canonical: HashMap::new(),
            slices: HashMap::new(),
            not_in_mesh: 0,
            changed: BTreeSet::new(),
            book: Book::default(),
            slice_book: Book::default(),
        }
    }

    /// A worker asks for a name.
    pub(super) fn ask(&mut self, name: Name, reply: oneshot::Sender<Lookup>, connected: bool) {
        if !self.names.contains_key(&name) && !self.make_room(connected) {
            // Dropping the reply tells the asker at once.
            return;
        }
        let now = self.directory.now();
        let book = &mut self.book;
        let entry = self.names.entry(name).or_insert_with_key(|name| {
            book.subscribe(name.text());
            Entry {
                origin: Origin::Asked,
                since: now,
                state: State::Pending,
                waiters: Vec::new(),
            }
        });
        let known = match &entry.state {
            State::Pending => None,
            State::NotInMesh(_) => Some(Lookup::NotInMesh),
            State::Leads(canonical) => self.canonical.get(canonical).and_then(found),
        };
        match known {
            Some(known) => drop(reply.send(known)),
            None => {
                entry.waiters.retain(|waiter| !waiter.is_closed());
                entry.waiters.push(reply);
            }
        }
    }

    /// A destination has come.
    pub(super) fn set(&mut self, canonical: &str, version: &str, model: model::Destination, aliases: &[String]) {
        let canonical: Arc<str> = canonical.into();
        for alias in aliases {
            if self.book.is_stale(alias) {
                continue;
            }
            if let Some(name) = Name::parse(alias) {
                self.lead(name, &canonical);
            }
        }
        let Some(known) = self.canonical.get_mut(&canonical) else {
            // Nobody here asks for it any longer.
            return;
        };
        known.next = match &known.current {
            Some(current) if *current.version == *version => None,
            _ => Some(Version {
                version: version.into(),
                model: Arc::new(model),
            }),
        };
        self.need_slices(&canonical);
        self.complete(&canonical);
        self.wake(&canonical);
    }

    /// A name leads nowhere.
    pub(super) fn remove(&mut self, name: &str) {
        if self.book.is_stale(name) {
            return;
        }
        let Some(name) = Name::parse(name) else {
            return;
        };
        let Some(entry) = self.names.get(&name) else {
            return;
        };
        match entry.origin {
            Origin::Asked => self.not_in_mesh(name),
            // A hint that ends. One that was used meanwhile becomes our own question, and its answer stays until then.
            Origin::Hinted if self.is_used(entry) => self.promote(&name),
            Origin::Hinted => self.forget(&name),
        }
    }

    /// A slice has come, or (without value) is no more.
    pub(super) fn set_slice(&mut self, name: &str, version: Option<&str>, value: Option<EndpointSlice>) {
        if self.slice_book.is_stale(name) {
            return;
        }
        let Some(slice) = self.slices.get_mut(name) else {
            return;
        };
        slice.value = Some(Arc::new(value.unwrap_or_default()));
        slice.version = version.map(Arc::from);
        let users: Vec<_> = slice.users.iter().cloned().collect();
        for canonical in users {
            self.refresh(&canonical, name);
            self.complete(&canonical);
        }
    }

    /// Passing time: hints that are used become questions of our own, and while the server can be told, what is idle ends.
    pub(super) fn tick(&mut self, connected: bool) {
        let now = self.directory.now();
        let used: Vec<_> = self
            .names
            .iter()
            .filter(|(_, entry)| entry.origin == Origin::Hinted && self.is_used(entry))
            .map(|(name, _)| name.clone())
            .collect();
        for name in used {
            self.promote(&name);
        }
        let idle_before = now.saturating_sub(self.limits.idle_millis());
        let unanswerable_before = now.saturating_sub(self.limits.unanswered_millis());
        let ended: Vec<_> = self
            .names
            .iter()
            .filter(|(_, entry)| match (&entry.state, connected) {
                (State::Pending, false) => {
                    entry.since < unanswerable_before && entry.waiters.iter().all(oneshot::Sender::is_closed)
                }
                (_, true) => entry.origin == Origin::Asked && self.last_use(entry) < idle_before,
                (_, false) => false,
            })
            .map(|(name, _)| name.clone())
            .collect();
        if !ended.is_empty() {
            ended_metric("idle", ended.len());
        }
        for name in ended {
            self.leave(&name);
        }
    }

    /// A new stream: every name is subscribed, hinted ones as well, with the versions held.
    pub(super) fn restart(&mut self) {
        let now = self.directory.now();
        let mut versions = HashMap::new();
        for (name, entry) in &mut self.names {
            if entry.origin == Origin::Hinted {
                entry.origin = Origin::Asked;
                entry.since = now;
            }
            if let State::Leads(canonical) = &entry.state
                && let Some(version) = self.canonical.get(canonical).and_then(Canonical::version)
            {
                versions.insert(name.to_string(), version.to_string());
            }
        }
        self.book
            .restart(self.names.keys().map(|name| name.text().clone()), versions);
        let versions = self
            .slices
            .iter()
            .filter_map(|(name, slice)| Some((name.to_string(), slice.version.as_ref()?.to_string())));
        self.slice_book.restart(self.slices.keys().cloned(), versions.collect());
    }

    /// No stream.
    pub(super) fn disconnect(&mut self) {
        self.book.clear();
        self.slice_book.clear();
    }

    /// Makes this step's changes visible to workers.
    pub(super) fn publish(&mut self) {
        if self.changed.is_empty() {
            return;
        }
        let changed = std::mem::take(&mut self.changed);
        let writes = changed.into_iter().map(|name| {
            let answer = self.names.get(&name).and_then(|entry| match &entry.state {
                State::Pending => None,
                State::NotInMesh(last_use) => Some(Answer::NotInMesh(last_use.clone())),
                State::Leads(canonical) => self.canonical.get(canonical)?.current.clone().map(Answer::In),
            });
            (name, answer)
        });
        let writes = writes.collect();
        self.directory.publish_names(writes);
        metrics::gauge!("mesh_discovery_subscriptions", "type" => "destinations").set(self.names.len() as f64);
        metrics::gauge!("mesh_discovery_subscriptions", "type" => "endpoints").set(self.slices.len() as f64);
    }

    /// Adds what is held to a dump.
    pub(super) fn describe(&self, snapshot: &mut Snapshot) {
        for known in self.canonical.values() {
            let with = |origin| {
                let names = known
                    .names
                    .iter()
                    .filter(move |name| self.names.get(*name).is_some_and(|e| e.origin == origin));
                let mut names: Vec<_> = names.map(|name| name.text().clone()).collect();
                names.sort();
                names
            };
            snapshot.destinations.push(HeldDestination {
                asked: with(Origin::Asked),
                hinted: with(Origin::Hinted),
                current: known.current.clone(),
                waiting: known.next.as_ref().map(|next| next.version.clone()),
            });
        }
        for (name, slice) in &self.slices {
            if let (Some(value), Some(version)) = (&slice.value, &slice.version) {
                snapshot.slices.push(Held {
                    name: name.clone(),
                    version: version.clone(),
                    value: value.clone(),
                });
            }
        }
        for (name, entry) in &self.names {
            match entry.state {
                State::Pending => snapshot.waiting.push(name.text().clone()),
                State::NotInMesh(_) => snapshot.not_in_mesh.push(name.text().clone()),
                State::Leads(_) => {}
            }
        }
    }

    /// Lets a name lead to a destination. A name that nobody here asked for is a hint.
    fn lead(&mut self, name: Name, canonical: &Arc<str>) {
        if !self.names.contains_key(&name) {
            if self.names.len() >= self.limits.subscriptions {
                ended_metric("refused", 1);
                self.book.unsubscribe(name.text());
                return;
            }
            let entry = Entry {
                origin: Origin::Hinted,
                since: self.directory.now(),
                state: State::Pending,
                waiters: Vec::new(),
            };
            self.names.insert(name.clone(), entry);
        }
        let Some(entry) = self.names.get_mut(&name) else {
            return;
        };
        let before = std::mem::replace(&mut entry.state, State::Leads(canonical.clone()));
        match before {
            State::Leads(before) if before == *canonical => return,
            State::Leads(before) => self.release(&before, &name),
            State::NotInMesh(_) => self.not_in_mesh -= 1,
            State::Pending => {}
        }
        self.canonical
            .entry(canonical.clone())
            .or_default()
            .names
            .insert(name.clone());
        self.changed.insert(name);
    }

    fn not_in_mesh(&mut self, name: Name) {
        let Some(entry) = self.names.get_mut(&name) else {
            return;
        };
        for waiter in entry.waiters.drain(..) {
            let _ = waiter.send(Lookup::NotInMesh);
        }
        if matches!(entry.state, State::NotInMesh(_)) {
            return;
        }
        let last_use = Arc::new(LastUse::default());
        last_use.touch(self.directory.now());
        if let State::Leads(canonical) = std::mem::replace(&mut entry.state, State::NotInMesh(last_use)) {
            self.release(&canonical, &name);
        }
        self.changed.insert(name);
        self.not_in_mesh += 1;
        if self.not_in_mesh > self.limits.not_in_mesh {
            self.evict(self.limits.not_in_mesh / 16 + 1, |state| {
                matches!(state, State::NotInMesh(_))
            });
        }
    }

    /// Subscribes to the slices of all versions of a destination, and to no others.
    fn need_slices(&mut self, canonical: &Arc<str>) {
        let Some(known) = self.canonical.get_mut(canonical) else {
            return;
        };
        let mut needed = HashSet::new();
        let models = known.current.iter().map(|current| &current.model);
        for model in models.chain(known.next.iter().map(|next| &next.model)) {
            needed.extend(model.clusters.iter().flat_map(|cluster| slice_names(cluster)).cloned());
        }
        let before = std::mem::replace(&mut known.slices, needed.clone());
        for name in needed.difference(&before) {
            let slice = self.slices.entry(name.clone()).or_insert_with(|| {
                self.slice_book.subscribe(name);
                Slice::default()
            });
            slice.users.insert(canonical.clone());
        }
        for name in before.difference(&needed) {
            self.release_slice(name, canonical);
        }
    }

    fn release_slice(&mut self, name: &Arc<str>, canonical: &Arc<str>) {
        if let Some(slice) = self.slices.get_mut(name) {
            slice.users.remove(canonical);
            if slice.users.is_empty() {
                self.slices.remove(name);
                self.slice_book.unsubscribe(name);
            }
        }
    }

    /// Brings the next version into force if its slices have come.
    fn complete(&mut self, canonical: &Arc<str>) {
        let Some(known) = self.canonical.get_mut(canonical) else {
            return;
        };
        let Some(next) = &known.next else {
            return;
        };
        let mut clusters = Vec::with_capacity(next.model.clusters.len());
        let mut endpoints = Vec::with_capacity(next.model.clusters.len());
        for cluster in &next.model.clusters {
            match values(&self.slices, cluster) {
                Some(slices) => endpoints.push(slices),
                None => return,
            }
        }
        for (cluster, slices) in next.model.clusters.iter().zip(&endpoints) {
            clusters.push(self.upstreams.cluster(cluster.clone(), slices));
        }
        known.current = Some(Arc::new(Destination {
            name: canonical.clone(),
            version: next.version.clone(),
            model: next.model.clone(),
            clusters,
            last_use: known.last_use.clone(),
        }));
        known.next = None;
        self.changed.extend(known.names.iter().cloned());
        self.need_slices(canonical);
        self.wake(canonical);
    }

    /// Gives the clusters in force that use a slice its new endpoints.
    fn refresh(&mut self, canonical: &Arc<str>, slice: &str) {
        let Some(current) = self.canonical.get(canonical).and_then(|known| known.current.as_ref()) else {
            return;
        };
        for (cluster, model) in current.clusters.iter().zip(&current.model.clusters) {
            if slice_names(model).iter().any(|name| **name == *slice)
                && let Some(slices) = values(&self.slices, model)
            {
                cluster.set_endpoints(&slices);
            }
        }
    }

    /// Answers those who wait for a destination that is in force.
    fn wake(&mut self, canonical: &Arc<str>) {
        let Some(known) = self.canonical.get(canonical) else {
            return;
        };
        let Some(found) = found(known) else {
            return;
        };
        for name in &known.names {
            if let Some(entry) = self.names.get_mut(name) {
                for waiter in entry.waiters.drain(..) {
                    known.last_use.touch(self.directory.now());
                    let _ = waiter.send(found.clone());
                }
            }
        }
    }

    /// A hinted name becomes our own question.
    fn promote(&mut self, name: &Name) {
        if let Some(entry) = self.names.get_mut(name) {
            entry.origin = Origin::Asked;
            self.book.subscribe(name.text());
        }
    }

    /// Ends a subscription.
    fn leave(&mut self, name: &Name) {
        self.book.unsubscribe(name.text());
        self.forget(name);
    }

    /// Forgets a name that is not subscribed, or not any longer.
    fn forget(&mut self, name: &Name) {
        let Some(entry) = self.names.remove(name) else {
            return;
        };
        match entry.state {
            State::Leads(canonical) => self.release(&canonical, name),
            State::NotInMesh(_) => self.not_in_mesh -= 1,
            State::Pending => {}
        }
        self.changed.insert(name.clone());
    }

    /// A name does not lead to a destination any longer.
    fn release(&mut self, canonical: &Arc<str>, name: &Name) {
        let Some(known) = self.canonical.get_mut(canonical) else {
            return;
        };
        known.names.remove(name);
        if known.names.is_empty()
            && let Some(known) = self.canonical.remove(canonical)
        {
            for slice in &known.slices {
                self.release_slice(slice, canonical);
            }
        }
    }

    /// Makes room for one more name. Without a server, answers that cannot be had again are kept: then there may be none.
    fn make_room(&mut self, connected: bool) -> bool {
        if self.names.len() < self.limits.subscriptions {
            return true;
        }
        let count = self.limits.subscriptions / 16 + 1;
        self.evict(count, |state| connected || !matches!(state, State::Leads(_)));
        self.names.len() < self.limits.subscriptions
    }

    /// Ends the least valuable subscriptions: first names outside the mesh, then those not used for longest.
    fn evict(&mut self, count: usize, may_go: impl Fn(&State) -> bool) {
        let mut candidates: Vec<_> = self
            .names
            .iter()
            .filter(|(_, entry)| may_go(&entry.state) && entry.waiters.iter().all(oneshot::Sender::is_closed))
            .map(|(name, entry)| {
                (
                    (matches!(entry.state, State::Leads(_)), self.last_use(entry)),
                    name.clone(),
                )
            })
            .collect();
        candidates.sort_unstable_by_key(|(rank, _)| *rank);
        candidates.truncate(count);
        ended_metric("evicted", candidates.len());
        for (_, name) in candidates {
            self.leave(&name);
        }
    }

    fn is_used(&self, entry: &Entry) -> bool {
        matches!(&entry.state, State::Leads(canonical)
            if self.canonical.get(canonical).is_some_and(|known| known.last_use.get() > 0))
    }

    fn last_use(&self, entry: &Entry) -> u64 {
        let used = match &entry.state {
            State::Pending => 0,
            State::NotInMesh(last_use) => last_use.get(),
            State::Leads(canonical) => self.canonical.get(canonical).map_or(0, |known| known.last_use.get()),
        };
        used.max(entry.since)
    }
}

impl Canonical {
    /// The newest version that was understood.
    fn version(&self) -> Option<&Arc<str>> {
        let next = self.next.as_ref().map(|next| &next.version);
        next.or_else(|| self.current.as_ref().map(|current| &current.version))
    }
}

fn found(known: &Canonical) -> Option<Lookup> {
    known.current.clone().map(Lookup::Found)
}

fn slice_names(cluster: &model::Cluster) -> &[Arc<str>] {
    match &cluster.endpoints {
        EndpointSource::Slices(names) => names,
        EndpointSource::Passthrough | EndpointSource::Missing(_) => &[],
    }
}

/// The slices of a cluster, if all have come.
fn values(slices: &HashMap<Arc<str>, Slice>, cluster: &model::Cluster) -> Option<Vec<Arc<EndpointSlice>>> {
    slice_names(cluster)
        .iter()
        .map(|name| slices.get(name).and_then(|slice| slice.value.clone()))
        .collect()
}

fn ended_metric(reason: &'static str, count: usize) {
    metrics::counter!("mesh_discovery_subscriptions_ended_total", "reason" => reason).increment(count as u64);
}
