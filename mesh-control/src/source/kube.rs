//! Policy, services and workloads from the API server of a Kubernetes cluster, watched.
//!
//! Objects come in over one watch for each kind, events and diagnostics go out, as from directories. A kind that the
//! cluster does not have is waited for and keeps nobody waiting; an API server that goes away changes nothing until it is
//! back. Only what is read of an object is ever in memory. Nothing here writes to the cluster.

mod ignored;
mod policy;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use mesh_api::crd::{Kind, ObjectRef, definition};
use mesh_api::source::{Diagnostic, Severity};
use serde_json::Value;
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::policy::Policies;
use self::watch::{Notice, Resource, Watch, Watched};
use super::Event;
use super::cluster::{
    ClusterKind, ClusterObject, ClusterRef, EndpointSlice, Metadata, Node, Pod, Service, ServiceCidr,
};

pub use self::policy::{Acceptance, PolicyObject};

/// Notices on their way to the world; watches wait while it is full.
const NOTICES: usize = 4096;
/// Policy objects are looked at together at most so often.
const REVIEW: Duration = Duration::from_secs(1);

/// The running source. It ends when this is dropped.
#[derive(Debug)]
pub struct KubeSource {
    diagnostics: channel::Receiver<Arc<[Diagnostic]>>,
    objects: channel::Receiver<Arc<[PolicyObject]>>,
    synced: channel::Receiver<bool>,
    _tasks: JoinSet<()>,
}

impl KubeSource {
    /// Starts to list and to watch; `domain` is the suffix of services' names. `sink` gets the events that came together
    /// at once; after those of the first complete listing comes [`Event::Synced`]. To be called on a runtime.
    #[must_use]
    pub fn start(client: &Client, domain: &str, sink: impl FnMut(Vec<Event>) + Send + 'static) -> Self {
        let (notices, incoming) = mpsc::channel(NOTICES);
        let (publish_diagnostics, diagnostics) = channel::channel(Arc::from([]));
        let (publish_objects, objects) = channel::channel(Arc::from([]));
        let (sync, synced) = channel::channel(false);
        let mut tasks = JoinSet::new();
        for kind in Kind::ALL {
            let resource = policy_resource(*kind);
            spawn::<PolicyValue>(&mut tasks, client, Watching::Policy(*kind), resource, &notices);
        }
        for kind in ClusterKind::ALL {
            let (watching, resource) = (Watching::Cluster(kind), cluster_resource(kind));
            match kind {
                ClusterKind::Node => spawn::<Box<Node>>(&mut tasks, client, watching, resource, &notices),
                ClusterKind::Pod => spawn::<Box<Pod>>(&mut tasks, client, watching, resource, &notices),
                ClusterKind::Service => spawn::<Box<Service>>(&mut tasks, client, watching, resource, &notices),
                ClusterKind::EndpointSlice => {
                    spawn::<Box<EndpointSlice>>(&mut tasks, client, watching, resource, &notices);
                }
                ClusterKind::ServiceCidr => {
                    spawn::<Box<ServiceCidr>>(&mut tasks, client, watching, resource, &notices);
                }
            }
        }
        let collector = Collector {
            sink,
            domain: domain.to_owned(),
            policies: Policies::default(),
            present: HashMap::new(),
            waiting: kinds().collect(),
            services: BTreeSet::new(),
            ignored: BTreeMap::new(),
            troubles: HashMap::new(),
            publish_diagnostics,
            publish_objects,
            sync,
            printed: HashSet::new(),
        };
        tasks.spawn(collector.run(incoming));
        Self {
            diagnostics,
            objects,
            synced,
            _tasks: tasks,
        }
    }

    /// What is wrong in the cluster's policy now; a new list whenever that changes.
    #[must_use]
    pub fn diagnostics(&self) -> channel::Receiver<Arc<[Diagnostic]>> {
        self.diagnostics.clone()
    }

    /// All policy objects and what became of them; a new list whenever that changes.
    #[must_use]
    pub fn objects(&self) -> channel::Receiver<Arc<[PolicyObject]>> {
        self.objects.clone()
    }

    /// Waits until every kind that the cluster has is listed and in the world.
    pub async fn synced(&self) {
        let mut synced = self.synced.clone();
        // An error means that the collector is gone, which happens only when this is dropped.
        let _ = synced.wait_for(|synced| *synced).await;
    }
}

fn kinds() -> impl Iterator<Item = Watching> {
    let policy = Kind::ALL.iter().map(|kind| Watching::Policy(*kind));
    policy.chain(ClusterKind::ALL.map(Watching::Cluster))
}

/// A kind that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Watching {
    Policy(Kind),
    Cluster(ClusterKind),
}

impl Watching {
    /// Whether the control plane can do without the kind where it may not read it.
    fn is_optional(self) -> bool {
        matches!(self, Self::Cluster(ClusterKind::ServiceCidr | ClusterKind::Node))
    }
}

fn policy_resource(kind: Kind) -> Resource {
    Resource {
        group: kind.group(),
        versions: definition::served_versions(kind),
        plural: kind.plural(),
    }
}

fn cluster_resource(kind: ClusterKind) -> Resource {
    let (group, versions, plural): (&str, &[&str], &str) = match kind {
        ClusterKind::Node => ("", &["v1"], "nodes"),
        ClusterKind::Pod => ("", &["v1"], "pods"),
        ClusterKind::Service => ("", &["v1"], "services"),
        ClusterKind::EndpointSlice => ("discovery.k8s.io", &["v1"], "endpointslices"),
        ClusterKind::ServiceCidr => ("networking.k8s.io", &["v1", "v1beta1"], "servicecidrs"),
    };
    Resource {
        group: group.to_owned(),
        versions: versions.iter().map(|version| (*version).to_owned()).collect(),
        plural: plural.to_owned(),
    }
}

fn spawn<T: Watched>(
    tasks: &mut JoinSet<()>,
    client: &Client,
    watching: Watching,
    resource: Resource,
    out: &mpsc::Sender<(Watching, Notice<Item>)>,
) where
    Item: From<T>,
{
    let watch = Watch::<T>::new(client.clone(), resource);
    let out = out.clone();
    tasks.spawn(watch.run(out, move |notice| (watching, notice.map(Item::from))));
}

/// An object of any kind.
#[derive(Debug)]
enum Item {
    Policy(Value),
    Cluster(ClusterObject),
}

/// A policy object as it came.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(transparent)]
struct PolicyValue(Value);

impl Watched for PolicyValue {
    fn version(&self) -> &str {
        let version = self.0.pointer("/metadata/resourceVersion");
        version.and_then(Value::as_str).unwrap_or_default()
    }
}

impl From<PolicyValue> for Item {
    fn from(value: PolicyValue) -> Self {
        Self::Policy(value.0)
    }
}

macro_rules! watched {
    ($($kind:ident),+) => {$(
        impl Watched for Box<$kind> {
            fn version(&self) -> &str {
                &self.metadata.resource_version
            }
        }

        impl From<Box<$kind>> for Item {
            fn from(object: Box<$kind>) -> Self {
                Self::Cluster(ClusterObject::$kind(object))
            }
        }
    )+};
}

watched!(Node, Pod, Service, EndpointSlice, ServiceCidr);

impl Item {
    fn id(&self) -> (String, String) {
        match self {
            Self::Policy(value) => {
                let text = |name: &str| value["metadata"][name].as_str().unwrap_or_default().to_owned();
                (text("namespace"), text("name"))
            }
            Self::Cluster(object) => {
                let metadata: &Metadata = object.metadata();
                (metadata.namespace.clone(), metadata.name.clone())
            }
        }
    }
}

/// Objects of a kind that are there, by namespace and name, with the listing that they were last in.
#[derive(Debug, Default)]
struct Present {
    listing: u32,
    seen: HashMap<(String, String), u32>,
}

/// Turns notices into events.
struct Collector<S> {
    sink: S,
    domain: String,
    policies: Policies,
    present: HashMap<Watching, Present>,
    /// Kinds of which it is not known yet what there is.
    waiting: HashSet<Watching>,
    /// Hosts of the cluster's Services.
    services: BTreeSet<String>,
    /// What the mesh does not act on, by host of the Service.
    ignored: BTreeMap<String, Vec<Diagnostic>>,
    /// What keeps a kind from being read.
    troubles: HashMap<Watching, String>,
    publish_diagnostics: channel::Sender<Arc<[Diagnostic]>>,
    publish_objects: channel::Sender<Arc<[PolicyObject]>>,
    sync: channel::Sender<bool>,
    /// Diagnostics that hold and have been logged.
    printed: HashSet<String>,
}

impl<S: FnMut(Vec<Event>)> Collector<S> {
    async fn run(mut self, mut incoming: mpsc::Receiver<(Watching, Notice<Item>)>) {
        let mut notices = Vec::new();
        let mut stale = false;
        let mut due = Instant::now();
        loop {
            let received = tokio::select! {
                received = incoming.recv_many(&mut notices, NOTICES) => received,
                () = tokio::time::sleep_until(due), if stale => {
                    let begun = Instant::now();
                    self.review();
                    stale = false;
                    // In a large cluster this takes its time: nine tenths are left for everything else.
                    due = Instant::now() + REVIEW.max(begun.elapsed() * 9);
                    continue;
                }
            };
            if received == 0 {
                return;
            }
            let mut events = Vec::new();
            for (watching, notice) in notices.drain(..) {
                stale |= self.take(watching, notice, &mut events);
            }
            let synced = self.waiting.is_empty() && !*self.sync.borrow();
            if synced {
                events.push(Event::Synced);
            }
            if !events.is_empty() {
                (self.sink)(events);
            }
            if synced {
                self.review();
                self.sync.send_replace(true);
            }
        }
    }

    /// Takes a notice; whether policy has to be reviewed.
    fn take(&mut self, watching: Watching, notice: Notice<Item>, events: &mut Vec<Event>) -> bool {
        match notice {
            Notice::Begin => {
                let present = self.present.entry(watching).or_default();
                present.listing += 1;
                false
            }
            Notice::Present(item) | Notice::Changed(item) => {
                let present = self.present.entry(watching).or_default();
                present.seen.insert(item.id(), present.listing);
                self.apply(watching, item, events)
            }
            Notice::Gone(item) => {
                let id = item.id();
                self.present.entry(watching).or_default().seen.remove(&id);
                self.remove(watching, id, events)
            }
            Notice::Complete => {
                let present = self.present.entry(watching).or_default();
                let listing = present.listing;
                let gone: Vec<_> = present.seen.extract_if(|_, seen| *seen != listing).collect();
                let mut stale = self.troubles.remove(&watching).is_some();
                for (id, _) in gone {
                    stale |= self.remove(watching, id, events);
                }
                self.waiting.remove(&watching);
                stale
            }
            Notice::Absent => {
                let gone = self.present.remove(&watching).unwrap_or_default().seen;
                let mut stale = false;
                for (id, _) in gone {
                    stale |= self.remove(watching, id, events);
                }
                self.waiting.remove(&watching);
                stale
            }
            Notice::Trouble(message) => {
                if watching.is_optional() {
                    self.waiting.remove(&watching);
                }
                if self.troubles.insert(watching, message.clone()).as_ref() != Some(&message) {
                    tracing::warn!("reading the cluster: {message}");
                }
                false
            }
        }
    }

    fn apply(&mut self, watching: Watching, item: Item, events: &mut Vec<Event>) -> bool {
        match (watching, item) {
            (Watching::Policy(kind), Item::Policy(value)) => {
                let taken = self.policies.take(kind, value);
                let stale = taken.is_some();
                events.extend(taken.flatten());
                stale
            }
            (_, Item::Cluster(object)) => {
                let mut stale = false;
                if let ClusterObject::Service(service) = &object {
                    let host = self.host(&service.metadata.namespace, &service.metadata.name);
                    let ignored = ignored::of_service(service);
                    stale = if ignored.is_empty() {
                        self.ignored.remove(&host).is_some()
                    } else {
                        self.ignored.insert(host.clone(), ignored.clone()) != Some(ignored)
                    };
                    stale |= self.services.insert(host);
                }
                events.push(Event::Observed(object));
                stale
            }
            (Watching::Cluster(_), Item::Policy(_)) => false,
        }
    }

    fn remove(&mut self, watching: Watching, id: (String, String), events: &mut Vec<Event>) -> bool {
        let (namespace, name) = id;
        match watching {
            Watching::Policy(kind) => {
                events.extend(self.policies.remove(&ObjectRef { kind, namespace, name }));
                true
            }
            Watching::Cluster(kind) => {
                let host = self.host(&namespace, &name);
                let mut stale = false;
                if kind == ClusterKind::Service {
                    stale = self.services.remove(&host) | self.ignored.remove(&host).is_some();
                }
                events.push(Event::Vanished(ClusterRef { kind, namespace, name }));
                stale
            }
        }
    }

    fn host(&self, namespace: &str, name: &str) -> String {
        format!("{name}.{namespace}.svc.{}", self.domain)
    }

    /// Looks at all policy together, logs what is new, and publishes.
    fn review(&mut self) {
        let objects = self.policies.review(&self.services, &self.domain);
        let of_policy = objects.iter().flat_map(|object| &object.findings);
        let all = of_policy.chain(self.ignored.values().flatten());
        let diagnostics: Vec<Diagnostic> = all.cloned().collect();
        let mut holding = HashSet::with_capacity(diagnostics.len());
        for diagnostic in &diagnostics {
            let text = diagnostic.to_string();
            if !self.printed.contains(&text) && !holding.contains(&text) {
                match diagnostic.severity {
                    Severity::Error => tracing::error!("{text}"),
                    Severity::Warning => tracing::warn!("{text}"),
                }
            }
            holding.insert(text);
        }
        self.printed = holding;
        self.publish_diagnostics
            .send_if_modified(|before| replace(before, diagnostics));
        self.publish_objects.send_if_modified(|before| replace(before, objects));
    }
}

/// Whether the new list is another one.
fn replace<T: PartialEq>(before: &mut Arc<[T]>, now: Vec<T>) -> bool {
    let changed = **before != *now;
    if changed {
        *before = now.into();
    }
    changed
}
