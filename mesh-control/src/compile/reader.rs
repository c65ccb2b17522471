//! Reading the world while taking notes.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};
use std::hash::BuildHasher;
use std::sync::Arc;

use mesh_api::model::Labels;
use mesh_api::names::{ObjectRef, WorkloadId};

use crate::world::{Age, Key, World, key};

/// What rules may ask of the workload whose traffic they are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFacts {
    /// The workload.
    pub id: WorkloadId,
    /// Its labels.
    pub labels: Labels,
}

impl ClientFacts {
    /// Of a workload; one that the world does not know has no labels.
    #[must_use]
    pub fn of(world: &World, id: &WorkloadId) -> Self {
        Self {
            id: id.clone(),
            labels: world
                .registry
                .workload(id)
                .map(|workload| workload.labels.clone())
                .unwrap_or_default(),
        }
    }

    /// The answer to a question that a rule asked.
    #[must_use]
    pub fn fact(&self, question: &Question) -> Option<Arc<str>> {
        match question {
            Question::Namespace => Some(self.id.namespace.clone()),
            Question::Label(name) => self.labels.get(name).cloned(),
        }
    }
}

/// A fact of the client that a rule may read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Question {
    /// Its namespace.
    Namespace,
    /// A label.
    Label(Arc<str>),
}

/// What was learnt of the client, in the order of asking. Clients that agree in all of it get the same answer, since
/// nothing else of them was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View(Vec<(Question, Option<Arc<str>>)>);

impl View {
    /// Whether a client is of this view.
    #[must_use]
    pub fn covers(&self, client: &ClientFacts) -> bool {
        self.0.iter().all(|(question, answer)| client.fact(question) == *answer)
    }

    /// Whether a label was read, so that a change of the client's labels may move it to another view.
    #[must_use]
    pub fn reads_labels(&self) -> bool {
        self.0
            .iter()
            .any(|(question, _)| matches!(question, Question::Label(_)))
    }

    /// Hash of the facts: the view's name. Clients of which nothing was read share the name `0`.
    #[must_use]
    pub fn name(&self) -> String {
        if self.0.is_empty() {
            return "0".to_owned();
        }
        let hash = foldhash::quality::FixedState::with_seed(0x7669_6577).hash_one(&self.0);
        format!("{:012x}", hash >> 16)
    }
}

/// A reader of the world on behalf of one client.
#[derive(Debug)]
pub struct Reader<'w> {
    /// The world, for what has been noted with [`Reader::note`].
    pub world: &'w World,
    client: &'w ClientFacts,
    keys: RefCell<HashSet<Key>>,
    view: RefCell<View>,
    objects: RefCell<BTreeSet<ObjectRef>>,
}

/// What a reader noted.
#[derive(Debug)]
pub struct Notes {
    /// Facts of the world.
    pub depends: Vec<Key>,
    /// Facts of the client.
    pub view: View,
    /// Policy objects that had a say.
    pub objects: Vec<ObjectRef>,
}

impl<'w> Reader<'w> {
    /// A reader without notes.
    #[must_use]
    pub fn new(world: &'w World, client: &'w ClientFacts) -> Self {
        Self {
            world,
            client,
            keys: RefCell::default(),
            view: RefCell::default(),
            objects: RefCell::default(),
        }
    }

    /// Notes that the answer depends on a fact.
    pub fn note(&self, key: Key) {
        self.keys.borrow_mut().insert(key);
    }

    /// The client's namespace.
    #[must_use]
    pub fn client_namespace(&self) -> &'w Arc<str> {
        self.ask(Question::Namespace);
        &self.client.id.namespace
    }

    /// Whether the client has all of these labels.
    #[must_use]
    pub fn client_has_labels<'l>(&self, wanted: impl IntoIterator<Item = (&'l str, &'l str)>) -> bool {
        // No short cut: that would make the view depend on the order of labels.
        wanted.into_iter().fold(true, |all, (name, value)| {
            self.ask(Question::Label(name.into()));
            all & (self.client.labels.get(name).map(|have| &**have) == Some(value))
        })
    }

    fn ask(&self, question: Question) {
        let mut view = self.view.borrow_mut();
        if view.0.iter().all(|(asked, _)| *asked != question) {
            let answer = self.client.fact(&question);
            view.0.push((question, answer));
        }
    }

    /// Name of the client's view so far.
    #[must_use]
    pub fn view_name(&self) -> String {
        self.view.borrow().name()
    }

    /// Notes that a policy object has a say in what is compiled.
    pub fn credit(&self, object: &Age) {
        self.objects.borrow_mut().insert(object.origin());
    }

    /// The notes.
    #[must_use]
    pub fn finish(self) -> Notes {
        Notes {
            depends: self.keys.into_inner().into_iter().collect(),
            view: self.view.into_inner(),
            objects: self.objects.into_inner().into_iter().collect(),
        }
    }

    /// The mesh's root namespace.
    #[must_use]
    pub fn root_namespace(&self) -> &'w Arc<str> {
        self.note(key::mesh());
        self.world.root_namespace()
    }
}
