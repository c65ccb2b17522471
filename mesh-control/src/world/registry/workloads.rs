//! Workloads come, change and go.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use mesh_api::names::WorkloadId;

use super::{Key, Occupant, Origin, Registry, Service, Workload, key, parts};

impl Registry {
    /// Takes in a workload. A WorkloadEntry with the name of a Pod waits until that is gone.
    pub fn put_workload(&mut self, workload: Workload, touched: &mut HashSet<Key>) {
        let old = self.workloads.get(&workload.id).cloned();
        let workload = Arc::new(workload);
        match (old.as_ref().map(|old| old.origin), workload.origin) {
            (Some(Origin::Pod), Origin::Entry) => {
                self.shadowed.insert(workload.id.clone(), workload);
                return;
            }
            (Some(Origin::Entry), Origin::Pod) => {
                self.shadowed.extend(old.clone().map(|old| (old.id.clone(), old)));
            }
            _ => {}
        }
        if old.as_ref() == Some(&workload) {
            return;
        }
        self.replace_workload(old.as_ref(), Some(&workload), touched);
    }

    /// Forgets a workload of an object of that kind.
    pub fn remove_workload(&mut self, origin: Origin, namespace: &str, name: &str, touched: &mut HashSet<Key>) {
        let id = WorkloadId {
            name: name.into(),
            namespace: namespace.into(),
        };
        let Some(old) = self.workloads.get(&id).cloned() else {
            return;
        };
        if old.origin == origin {
            let next = self.shadowed.remove(&id);
            self.replace_workload(Some(&old), next.as_ref(), touched);
        } else {
            self.shadowed.remove(&id);
        }
    }

    fn replace_workload(
        &mut self,
        old: Option<&Arc<Workload>>,
        new: Option<&Arc<Workload>>,
        touched: &mut HashSet<Key>,
    ) {
        let Some(id) = old.or(new).map(|workload| workload.id.clone()) else {
            return;
        };
        touched.insert(key::workload(&id));
        for (workload, there) in [(old, false), (new, true)] {
            for address in workload.iter().flat_map(|workload| workload.own_addresses()) {
                if there {
                    self.enter(address, Occupant::Workload(id.clone()));
                } else {
                    self.leave(address, &Occupant::Workload(id.clone()));
                }
                touched.insert(key::address(address));
            }
        }
        if self.own_workload(old, new) {
            touched.insert(key::owned());
        }
        let peers = self.namespaces.entry(id.namespace.clone()).or_default();
        if let Some(new) = new {
            peers.insert(id.name.clone(), new.clone());
            self.workloads.insert(id.clone(), new.clone());
        } else {
            peers.remove(&id.name);
            if peers.is_empty() {
                self.namespaces.remove(&id.namespace);
            }
            self.workloads.remove(&id);
        }
        let services = self.selecting.get(&id.namespace);
        let services: Vec<Arc<Service>> = services.into_iter().flat_map(BTreeMap::values).cloned().collect();
        for service in services {
            let placed = self
                .slices_of(&service)
                .is_some_and(|slices| slices.places().contains_key(&id.name));
            let was = old.is_some_and(|old| service.picks(old));
            let is = new.filter(|new| service.picks(new));
            let before = self.size(&service);
            if was || is.is_some() {
                let members = self.selected.entry(service.id()).or_default();
                match is {
                    Some(new) => members.insert(id.name.clone(), new.clone()),
                    None => members.remove(&id.name),
                };
            } else if !placed {
                continue;
            }
            touch_member(&service, &id.name, touched);
            self.touch_size(&service, before, touched);
        }
    }

    /// What every proxy holds changes with WorkloadEntries' addresses, but for Pods only with their ranges.
    fn own_workload(&mut self, old: Option<&Arc<Workload>>, new: Option<&Arc<Workload>>) -> bool {
        let mut changed = false;
        let of = |origin: Origin, workload: Option<&Arc<Workload>>| -> Vec<_> {
            let workload = workload.filter(|workload| workload.origin == origin);
            workload.iter().flat_map(|workload| workload.own_addresses()).collect()
        };
        let (before, after) = (of(Origin::Pod, old), of(Origin::Pod, new));
        if before != after {
            // Entered first, so that a block which both are in stays.
            let entered = after.iter().filter(|address| self.ranges.enter(**address)).count();
            let left = before.iter().filter(|address| self.ranges.leave(**address)).count();
            changed |= entered + left > 0;
        }
        changed | (of(Origin::Entry, old) != of(Origin::Entry, new))
    }

    /// Where one more or one less endpoint changes into how many parts they are split, the parts have other names.
    pub(super) fn touch_size(&self, service: &Service, before: usize, touched: &mut HashSet<Key>) {
        let after = self.size(service);
        for host in &service.hosts {
            // Services with the same host share the parts.
            let shared = self.services(host).len() > 1;
            if before != after && (shared || parts::number(before) != parts::number(after)) {
                touched.insert(key::size(host));
            }
        }
    }
}

/// An endpoint of a service has changed, come or gone.
pub(super) fn touch_member(service: &Service, name: &str, touched: &mut HashSet<Key>) {
    for host in &service.hosts {
        touched.extend(parts::all(name).map(|(parts, part)| key::part(host, part, parts)));
    }
}
