//! All that a proxy holds: responses and questions come in, the directory is published, and the books say what the server
//! has to be told.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use mesh_api::model::{Inbound, MeshSettings};
use mesh_api::names::WorkloadId;
use mesh_api::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use mesh_api::wire::{self, ResourceType};

use super::Limits;
use super::book::Book;
use super::destinations::Destinations;
use super::peers::Peers;
use crate::directory::{Directory, Held, Question, Rejected, Snapshot};
use crate::upstream::Upstreams;

/// Reasons in one NACK; more are counted.
const REASONS: usize = 8;

/// Puts settings in force, or says why they cannot be.
pub(super) type TakeSettings = dyn Fn(&MeshSettings) -> Result<(), String> + Send;

pub(super) struct Store {
    directory: Arc<Directory>,
    workload: Arc<str>,
    settings: Option<Held<Arc<MeshSettings>>>,
    inbound: Option<Held<Arc<Inbound>>>,
    mesh_book: Book,
    inbound_book: Book,
    destinations: Destinations,
    peers: Peers,
    take_settings: Box<TakeSettings>,
    /// Resources whose newest version was refused.
    rejected: BTreeMap<(ResourceType, Arc<str>), String>,
    pub(super) connected: bool,
    pub(super) last_error: Option<String>,
}

impl Store {
    pub(super) fn new(
        directory: Arc<Directory>,
        upstreams: Arc<Upstreams>,
        workload: &WorkloadId,
        limits: Limits,
    ) -> Self {
        Self {
            destinations: Destinations::new(directory.clone(), upstreams, limits.clone()),
            peers: Peers::new(directory.clone(), limits),
            directory,
            workload: workload.to_string().into(),
            settings: None,
            inbound: None,
            mesh_book: Book::default(),
            inbound_book: Book::default(),
            take_settings: Box::new(|_| Ok(())),
            rejected: BTreeMap::new(),
            connected: false,
            last_error: None,
        }
    }

    pub(super) fn set_take_settings(&mut self, take: Box<TakeSettings>) {
        self.take_settings = take;
    }

    /// A worker's question.
    pub(super) fn question(&mut self, question: Question) {
        match question {
            Question::Destination { name, reply } => self.destinations.ask(name, reply, self.connected),
            Question::Peer(address) => self.peers.ask(address, self.connected),
        }
        self.publish();
    }

    /// A response of the server's. `Err` when it is none.
    pub(super) fn response(&mut self, response: DeltaDiscoveryResponse) -> Result<(), String> {
        let kind = ResourceType::from_type_url(&response.type_url)
            .ok_or_else(|| format!("a response of unknown type `{}`", response.type_url))?;
        self.book(kind).seen(response.requests_seen);
        let mut reasons = Vec::new();
        for resource in &response.resources {
            let refused = self.resource(kind, resource).err();
            let key = (kind, Arc::from(&*resource.name));
            match refused {
                None => drop(self.rejected.remove(&key)),
                Some(reason) => {
                    reasons.push(format!("{}: {reason}", resource.name));
                    self.rejected.insert(key, reason);
                }
            }
        }
        for name in &response.removed_resources {
            self.removed(kind, name);
        }
        self.publish();
        metrics::counter!("mesh_discovery_responses_total", "type" => kind.label()).increment(1);
        let error = (!reasons.is_empty()).then(|| {
            metrics::counter!("mesh_discovery_rejects_total", "type" => kind.label()).increment(1);
            let more = reasons.len().saturating_sub(REASONS);
            reasons.truncate(REASONS);
            let mut error = reasons.join("; ");
            if more > 0 {
                error.push_str(&format!("; and {more} more"));
            }
            tracing::error!("refused {kind} of the control plane, the last good version stays in force: {error}");
            error
        });
        self.book(kind).answer(response.nonce, error);
        Ok(())
    }

    /// A new stream begins.
    pub(super) fn restart(&mut self) {
        self.connected = true;
        self.last_error = None;
        // What is still wrong is sent again, since our versions say that it was not taken.
        self.rejected.clear();
        let held = |name: &str, version: Option<&Arc<str>>| {
            version
                .map(|version| HashMap::from([(name.to_owned(), version.to_string())]))
                .unwrap_or_default()
        };
        let version = self.settings.as_ref().map(|settings| &settings.version);
        let mesh: Arc<str> = ResourceType::MESH_NAME.into();
        self.mesh_book
            .restart([mesh].into_iter(), held(ResourceType::MESH_NAME, version));
        let version = self.inbound.as_ref().map(|inbound| &inbound.version);
        self.inbound_book
            .restart([self.workload.clone()].into_iter(), held(&self.workload, version));
        self.destinations.restart();
        self.peers.restart();
    }

    /// The stream has ended. Everything held stays in force.
    pub(super) fn disconnect(&mut self, reason: String) {
        self.connected = false;
        self.last_error = Some(reason);
        self.mesh_book.clear();
        self.inbound_book.clear();
        self.destinations.disconnect();
        self.peers.book.clear();
    }

    pub(super) fn tick(&mut self) {
        self.destinations.tick(self.connected);
        self.peers.tick(self.connected);
        self.publish();
    }

    pub(super) fn is_pending(&mut self) -> bool {
        ResourceType::ALL.into_iter().any(|kind| self.book(kind).is_pending())
    }

    /// The next request to send.
    pub(super) fn request(&mut self) -> Option<DeltaDiscoveryRequest> {
        let kind = ResourceType::ALL
            .into_iter()
            .find(|kind| self.book(*kind).is_pending())?;
        Some(self.book(kind).request(kind))
    }

    fn book(&mut self, kind: ResourceType) -> &mut Book {
        match kind {
            ResourceType::Mesh => &mut self.mesh_book,
            ResourceType::Inbound => &mut self.inbound_book,
            ResourceType::EndpointSlice => &mut self.destinations.slice_book,
            ResourceType::Destination => &mut self.destinations.book,
            ResourceType::Workload => &mut self.peers.book,
        }
    }

    /// Takes a resource, or says what is wrong with it.
    fn resource(&mut self, kind: ResourceType, resource: &Resource) -> Result<(), String> {
        let body = resource.resource.as_ref().ok_or("it is empty")?;
        if body.type_url != kind.type_url() {
            return Err(format!("it is a `{}`", body.type_url));
        }
        let bytes = &body.value[..];
        let text = |error: wire::WireError| error.to_string();
        let (name, version) = (&*resource.name, &*resource.version);
        match kind {
            ResourceType::Mesh => {
                let settings = Arc::new(wire::decode_mesh(bytes).map_err(text)?);
                let taken = (self.take_settings)(&settings);
                if taken.is_err() && self.directory.settings().is_some() {
                    return taken;
                }
                // Without any, those that can be in force are better than a proxy that never gets ready.
                self.directory.publish_settings(settings.clone());
                taken?;
                self.settings = Some(Held {
                    name: name.into(),
                    version: version.into(),
                    value: settings,
                });
            }
            ResourceType::Inbound => {
                if *name != *self.workload {
                    return Err(format!("this proxy is of {}", self.workload));
                }
                let inbound = Arc::new(wire::decode_inbound(bytes).map_err(text)?);
                self.directory.publish_inbound(Some(inbound.clone()));
                self.inbound = Some(Held {
                    name: name.into(),
                    version: version.into(),
                    value: inbound,
                });
            }
            ResourceType::EndpointSlice => {
                let slice = wire::decode_slice(bytes).map_err(text)?;
                self.destinations.set_slice(name, Some(version), Some(slice));
            }
            ResourceType::Destination => {
                let destination = wire::decode_destination(bytes).map_err(text)?;
                self.destinations.set(name, version, destination, &resource.aliases);
            }
            ResourceType::Workload => {
                let workload = wire::decode_workload(bytes).map_err(text)?;
                self.peers.set(name, Some((version, workload)));
            }
        }
        Ok(())
    }

    fn removed(&mut self, kind: ResourceType, name: &str) {
        self.rejected.remove(&(kind, Arc::from(name)));
        match kind {
            // Settings are never taken away: what was last said holds.
            ResourceType::Mesh => tracing::error!("the control plane has no settings of the mesh"),
            ResourceType::Inbound if *name == *self.workload => {
                tracing::error!("the control plane has no policy for {name}: nothing is let in");
                self.inbound = None;
                self.directory.publish_inbound(None);
            }
            ResourceType::Inbound => {}
            ResourceType::EndpointSlice => self.destinations.set_slice(name, None, None),
            ResourceType::Destination => self.destinations.remove(name),
            ResourceType::Workload => self.peers.set(name, None),
        }
    }

    fn publish(&mut self) {
        self.destinations.publish();
        self.peers.publish();
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let rejected = self.rejected.iter().map(|((kind, name), reason)| Rejected {
            kind: *kind,
            name: name.clone(),
            reason: reason.clone(),
        });
        let mut snapshot = Snapshot {
            connected: self.connected,
            last_error: self.last_error.clone(),
            settings: self.settings.clone(),
            inbound: self.inbound.clone(),
            rejected: rejected.collect(),
            ..Snapshot::default()
        };
        self.destinations.describe(&mut snapshot);
        self.peers.describe(&mut snapshot);
        snapshot
    }
}
