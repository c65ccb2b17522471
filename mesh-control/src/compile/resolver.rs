//! The compiler as discovery sees it: the world behind a lock, compiled answers kept until a fact that they depend on
//! changes.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

use bytes::Bytes;
use mesh_api::crd::ObjectRef as PolicyRef;
use mesh_api::identity::SpiffeId;
use mesh_api::names::{ObjectRef, WorkloadId};
use mesh_api::wire::{self, ResourceType};
use tokio::sync::broadcast;

use super::destination::canonical;
use super::lookup::{Target, lookup, split};
use super::reader::View;
use super::{ClientFacts, Reader, SliceName, destination, endpoints, inbound, settings, slice, workload_at};
use crate::discovery::resources::{Answer, Change, Client, Resolved, Resources, Touched, version};
use crate::source::Event;
use crate::world::{Age, Key, World, key};

/// Changes that a receiver may lag behind before it treats everything as touched.
const CHANGE_BACKLOG: usize = 256;

/// Compiled answers that are kept; when there are more, all are forgotten and compiled again as they are asked for.
const CACHE_CAPACITY: usize = 1 << 16;

/// Serves compiled resources from a world that events change.
#[derive(Debug)]
pub struct Resolver {
    world: RwLock<World>,
    cache: Mutex<Cache>,
    changes: broadcast::Sender<Arc<Change>>,
    generation: AtomicU64,
    /// The generation in which each policy object last changed.
    applied: Mutex<HashMap<PolicyRef, u64>>,
}

#[derive(Debug, Default)]
struct Cache {
    answers: HashMap<Question, Vec<Variant>>,
    dependents: HashMap<Key, HashSet<Question>>,
}

/// What is compiled: a type, and what its name means to the client.
type Question = (ResourceType, Arc<str>);

/// An answer for the clients of one view.
#[derive(Clone, Debug)]
struct Variant {
    view: View,
    depends: Arc<[Key]>,
    objects: Arc<[ObjectRef]>,
    answer: Answer,
}

impl Resolver {
    /// Serves a world.
    #[must_use]
    pub fn new(world: World) -> Self {
        Self {
            world: RwLock::new(world),
            cache: Mutex::default(),
            changes: broadcast::channel(CHANGE_BACKLOG).0,
            generation: AtomicU64::new(0),
            applied: Mutex::default(),
        }
    }

    /// Takes in events as one change: afterwards answers are of the new world, and receivers hear what was touched.
    pub fn apply<'e>(&self, events: impl IntoIterator<Item = &'e Event>) {
        let at = Instant::now();
        let mut keys = HashSet::new();
        let generation = self.generation() + 1;
        {
            let mut world = self.world.write().unwrap_or_else(PoisonError::into_inner);
            let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
            for event in events {
                match event {
                    Event::Applied(object) => {
                        applied.insert(object.reference(), generation);
                    }
                    Event::Deleted(reference) => {
                        applied.remove(reference);
                    }
                    Event::Observed(_) | Event::Vanished(_) | Event::Synced => {}
                }
                keys.extend(world.apply(event));
            }
            // Also where nothing is touched, since an object may have changed in a way that changes nothing.
            self.generation.store(generation, Ordering::Relaxed);
            if keys.is_empty() {
                return;
            }
            // Under the world's lock, so that no answer of the old world is put in afterwards.
            self.cache().invalidate(&keys);
        }
        let change = Change {
            generation,
            touched: Touched::Keys(keys),
            at,
        };
        // Without receivers nobody needs to know.
        let _ = self.changes.send(Arc::new(change));
    }

    /// The generation in which a policy object last changed, 0 for one that was never applied.
    #[must_use]
    pub fn applied(&self, object: &PolicyRef) -> u64 {
        let applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        applied.get(object).copied().unwrap_or_default()
    }

    /// The world as it is now. Do not keep it: events wait meanwhile.
    pub fn world(&self) -> RwLockReadGuard<'_, World> {
        self.world.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, world: &World, client: &ClientFacts, kind: ResourceType, name: &str) -> Resolved {
        match kind {
            ResourceType::Destination => self.destination(world, client, name),
            _ => self.cached(world, client, (kind, name.into()), |reader, _| {
                let bytes = compile(reader, kind, name)?;
                Some((name.into(), bytes))
            }),
        }
    }

    fn destination(&self, world: &World, client: &ClientFacts, name: &str) -> Resolved {
        // A proxy that resumes may ask by canonical name; its view may be another by now.
        let asked = name.split_once('@').map_or(name, |(name, _)| name);
        let reader = Reader::new(world, client);
        let target = split(asked).and_then(|(host, port)| lookup(&reader, host, port));
        let notes = reader.finish();
        let looked_up = with_client(notes.depends.into(), &notes.view, client);
        let Some(target) = target else {
            return Resolved {
                answer: Answer::NotFound,
                depends: looked_up,
                objects: Arc::default(),
            };
        };
        let canonical: Arc<str> = canonical(&target).into();
        let question = (ResourceType::Destination, question_name(&canonical, &target));
        let compiled = self.cached(world, client, question, |reader, view| {
            let destination = destination(reader, &target)?;
            Some((
                format!("{canonical}@{}", view()).into(),
                wire::encode_destination(&destination),
            ))
        });
        Resolved {
            depends: looked_up.iter().chain(&*compiled.depends).copied().collect(),
            answer: compiled.answer,
            objects: compiled.objects,
        }
    }

    fn cached(
        &self,
        world: &World,
        client: &ClientFacts,
        question: Question,
        compile: impl FnOnce(&Reader<'_>, &dyn Fn() -> String) -> Option<(Arc<str>, Bytes)>,
    ) -> Resolved {
        if let Some(variant) = self.cache().find(&question, client) {
            return variant.resolved(client);
        }
        let reader = Reader::new(world, client);
        let compiled = compile(&reader, &|| reader.view_name());
        let notes = reader.finish();
        let variant = Variant {
            view: notes.view,
            depends: notes.depends.into(),
            objects: notes.objects.into(),
            answer: match compiled {
                Some((name, bytes)) => Answer::Resource {
                    name,
                    version: version(&bytes),
                    bytes,
                },
                None => Answer::NotFound,
            },
        };
        let resolved = variant.resolved(client);
        // Names that lead nowhere are not kept: anybody can ask for any number of them.
        if matches!(variant.answer, Answer::Resource { .. }) {
            self.cache().insert(question, variant);
        }
        resolved
    }
}

/// Distinguishes targets of one canonical name: several objects may have a host or an address.
fn question_name(canonical: &Arc<str>, target: &Target) -> Arc<str> {
    let object = |age: &Age| format!("{canonical}/{}/{}/{}", age.kind, age.namespace, age.name);
    match target {
        Target::Service(found) => object(&found.service.age).into(),
        Target::Workload { workload, service, .. } => {
            format!("{}/={}", object(&service.service.age), workload.id).into()
        }
        Target::Rules { .. } => canonical.clone(),
    }
}

fn compile(reader: &Reader<'_>, kind: ResourceType, name: &str) -> Option<Bytes> {
    match kind {
        ResourceType::Mesh if name == ResourceType::MESH_NAME => Some(wire::encode_mesh(&settings(reader))),
        ResourceType::Inbound => {
            let id: WorkloadId = name.parse().ok()?;
            Some(wire::encode_inbound(&inbound(reader, &id)?))
        }
        ResourceType::EndpointSlice => Some(wire::encode_slice(&slice(reader, &SliceName::parse(name)?)?)),
        ResourceType::Workload => {
            let address: IpAddr = name.parse().ok()?;
            Some(wire::encode_workload(&workload_at(reader, address.to_canonical())?))
        }
        ResourceType::Mesh | ResourceType::Destination => None,
    }
}

/// A client whose labels were read depends on itself.
fn with_client(depends: Arc<[Key]>, view: &View, client: &ClientFacts) -> Arc<[Key]> {
    if view.reads_labels() {
        depends.iter().copied().chain([key::workload(&client.id)]).collect()
    } else {
        depends
    }
}

impl Variant {
    fn resolved(&self, client: &ClientFacts) -> Resolved {
        Resolved {
            answer: self.answer.clone(),
            depends: with_client(self.depends.clone(), &self.view, client),
            objects: self.objects.clone(),
        }
    }
}

impl Cache {
    fn find(&self, question: &Question, client: &ClientFacts) -> Option<Variant> {
        let variants = self.answers.get(question)?;
        variants.iter().find(|variant| variant.view.covers(client)).cloned()
    }

    fn insert(&mut self, question: Question, variant: Variant) {
        if self.answers.len() >= CACHE_CAPACITY {
            self.answers.clear();
            self.dependents.clear();
        }
        for key in &*variant.depends {
            self.dependents.entry(*key).or_default().insert(question.clone());
        }
        let variants = self.answers.entry(question).or_default();
        // Two streams may have compiled the same at once.
        if variants.iter().all(|known| known.view != variant.view) {
            variants.push(variant);
        }
    }

    fn invalidate(&mut self, keys: &HashSet<Key>) {
        for key in keys {
            for question in self.dependents.remove(key).into_iter().flatten() {
                for variant in self.answers.remove(&question).into_iter().flatten() {
                    for other in &*variant.depends {
                        if let Some(dependents) = self.dependents.get_mut(other) {
                            dependents.remove(&question);
                            if dependents.is_empty() {
                                self.dependents.remove(other);
                            }
                        }
                    }
                }
            }
        }
    }
}

impl Resources for Resolver {
    fn admit(&self, identity: &SpiffeId, workload: &WorkloadId) -> Result<Client, String> {
        let world = self.world();
        let Some(known) = world.registry.workload(workload) else {
            return Err(format!(
                "no Pod or WorkloadEntry {}/{} is known; one must be there before its sidecar starts",
                workload.namespace, workload.name
            ));
        };
        let expected = endpoints::identity(&world, known);
        if expected.as_ref() != Some(identity) {
            let expected = expected.map_or("no identity of the mesh".to_owned(), |identity| identity.to_string());
            return Err(format!(
                "{identity} may not speak for workload {workload}, which has {expected}"
            ));
        }
        Ok(Client {
            identity: identity.clone(),
            workload: workload.clone(),
        })
    }

    fn resolve(&self, client: &Client, kind: ResourceType, name: &str) -> Resolved {
        let world = self.world();
        // A proxy's own policy is nobody else's concern.
        if kind == ResourceType::Inbound && name != client.workload.to_string() {
            return Resolved {
                answer: Answer::NotFound,
                depends: Arc::default(),
                objects: Arc::default(),
            };
        }
        let facts = ClientFacts::of(&world, &client.workload);
        self.answer(&world, &facts, kind, name)
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    fn changes(&self) -> broadcast::Receiver<Arc<Change>> {
        self.changes.subscribe()
    }
}
