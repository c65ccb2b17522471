//! Who is at which address: asked for on demand, kept while it is used.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::model::Workload;

use super::Limits;
use super::book::Book;
use crate::directory::{Directory, Held, LastUse, Peer, Snapshot};

pub(super) struct Peers {
    directory: Arc<Directory>,
    limits: Limits,
    entries: HashMap<IpAddr, Entry>,
    changed: Vec<(IpAddr, Option<Peer>)>,
    pub(super) book: Book,
}

struct Entry {
    name: Arc<str>,
    version: Option<Arc<str>>,
    since: u64,
    answer: Option<Peer>,
}

impl Peers {
    pub(super) fn new(directory: Arc<Directory>, limits: Limits) -> Self {
        Self {
            directory,
            limits,
            entries: HashMap::new(),
            changed: Vec::new(),
            book: Book::default(),
        }
    }

    /// A worker met an address that it does not know.
    pub(super) fn ask(&mut self, address: IpAddr, connected: bool) {
        if self.entries.contains_key(&address) || !self.make_room(connected) {
            return;
        }
        let name: Arc<str> = address.to_string().into();
        self.book.subscribe(&name);
        let entry = Entry {
            name,
            version: None,
            since: self.directory.now(),
            answer: None,
        };
        self.entries.insert(address, entry);
    }

    /// The answer for an address: a workload, or nothing of the mesh's.
    pub(super) fn set(&mut self, name: &str, found: Option<(&str, Workload)>) {
        if self.book.is_stale(name) {
            return;
        }
        let Some((address, entry)) = name
            .parse()
            .ok()
            .and_then(|address: IpAddr| Some((address, self.entries.get_mut(&address)?)))
        else {
            return;
        };
        let last_use = match &entry.answer {
            Some(known) => known.last_use.clone(),
            None => Arc::new(LastUse::default()),
        };
        let (version, workload) = found.unzip();
        entry.version = version.map(Arc::from);
        entry.answer = Some(Peer {
            workload: workload.map(Arc::new),
            last_use,
        });
        self.changed.push((address, entry.answer.clone()));
    }

    pub(super) fn tick(&mut self, connected: bool) {
        if !connected {
            return;
        }
        let idle_before = self.directory.now().saturating_sub(self.limits.idle_millis());
        let idle = self.entries.iter().filter(|(_, entry)| entry.last_use() < idle_before);
        for address in idle.map(|(address, _)| *address).collect::<Vec<_>>() {
            self.leave(address);
        }
    }

    pub(super) fn restart(&mut self) {
        let versions = self
            .entries
            .values()
            .filter_map(|entry| Some((entry.name.to_string(), entry.version.as_ref()?.to_string())));
        let versions = versions.collect();
        self.book
            .restart(self.entries.values().map(|entry| entry.name.clone()), versions);
    }

    pub(super) fn publish(&mut self) {
        if self.changed.is_empty() {
            return;
        }
        self.directory.publish_peers(std::mem::take(&mut self.changed));
        metrics::gauge!("mesh_discovery_subscriptions", "type" => "workloads").set(self.entries.len() as f64);
    }

    pub(super) fn describe(&self, snapshot: &mut Snapshot) {
        for entry in self.entries.values() {
            let workload = entry.answer.as_ref().and_then(|peer| peer.workload.clone());
            if let (Some(value), Some(version)) = (workload, &entry.version) {
                snapshot.workloads.push(Held {
                    name: entry.name.clone(),
                    version: version.clone(),
                    value,
                });
            }
        }
    }

    fn make_room(&mut self, connected: bool) -> bool {
        if self.entries.len() < self.limits.peers {
            return true;
        }
        if connected {
            let mut oldest: Vec<_> = self
                .entries
                .iter()
                .map(|(address, entry)| (entry.last_use(), *address))
                .collect();
            oldest.sort_unstable();
            for (_, address) in oldest.into_iter().take(self.limits.peers / 16 + 1) {
                self.leave(address);
            }
        }
        self.entries.len() < self.limits.peers
    }

    fn leave(&mut self, address: IpAddr) {
        if let Some(entry) = self.entries.remove(&address) {
            self.book.unsubscribe(&entry.name);
            self.changed.push((address, None));
        }
    }
}

impl Entry {
    fn last_use(&self) -> u64 {
        let used = self.answer.as_ref().map_or(0, |peer| peer.last_use.get());
        used.max(self.since)
    }
}
