//! Services and workloads, and which serves which.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_api::names::WorkloadId;

use super::{Key, Members, Service, Workload, key};

/// Namespace and name of an object.
type Id = (Arc<str>, Arc<str>);

/// Services and workloads with their indexes.
#[derive(Debug, Default)]
pub struct Registry {
    services: HashMap<Id, Arc<Service>>,
    /// By host as written, the oldest first.
    by_host: HashMap<Arc<str>, Vec<Arc<Service>>>,
    /// By single address, the oldest first.
    by_address: HashMap<IpAddr, Vec<Arc<Service>>>,
    /// Services with ranges of addresses, the longest prefix first.
    by_range: Vec<(IpNet, Arc<Service>)>,
    /// Services that select workloads, by namespace.
    selecting: HashMap<Arc<str>, BTreeMap<Arc<str>, Arc<Service>>>,
    workloads: HashMap<WorkloadId, Arc<Workload>>,
    /// Workloads by namespace, then name.
    namespaces: HashMap<Arc<str>, BTreeMap<Arc<str>, Arc<Workload>>>,
    /// Workloads and listed endpoints at an address.
    at_address: HashMap<IpAddr, BTreeSet<Occupant>>,
    /// Workloads that a service selects.
    selected: HashMap<Id, BTreeMap<Arc<str>, Arc<Workload>>>,
}

/// Who is at an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Occupant {
    Workload(WorkloadId),
    /// Endpoint listed by a service: namespace and name of the service, and position.
    Listed(Arc<str>, Arc<str>, usize),
}

impl Registry {
    /// Takes in a service.
    pub fn put_service(&mut self, service: Service, touched: &mut HashSet<Key>) {
        let id = (service.age.namespace.clone(), service.age.name.clone());
        let old = self.services.get(&id).cloned();
        if old.as_deref() == Some(&service) {
            return;
        }
        let before = old.as_deref().map(|old| self.slice_facts(old));
        if let Some(old) = &old {
            self.unlink_service(old, touched);
        }
        let service = Arc::new(service);
        self.services.insert(id.clone(), service.clone());
        for host in &service.hosts {
            let list = self.by_host.entry(host.clone()).or_default();
            list.push(service.clone());
            list.sort_by(|a, b| a.age.cmp(&b.age));
        }
        for range in &service.addresses {
            if is_single(range) {
                let list = self.by_address.entry(range.addr().to_canonical()).or_default();
                list.push(service.clone());
                list.sort_by(|a, b| a.age.cmp(&b.age));
            } else {
                self.by_range.push((*range, service.clone()));
                self.by_range.sort_by(|a, b| {
                    b.0.prefix_len()
                        .cmp(&a.0.prefix_len())
                        .then_with(|| a.1.age.cmp(&b.1.age))
                });
            }
        }
        match &service.members {
            Members::Selected(_) => {
                self.selecting
                    .entry(id.0.clone())
                    .or_default()
                    .insert(id.1.clone(), service.clone());
                let members: BTreeMap<_, _> = self
                    .namespaces
                    .get(&id.0)
                    .into_iter()
                    .flatten()
                    .filter(|(_, workload)| service.selects(workload))
                    .map(|(name, workload)| (name.clone(), workload.clone()))
                    .collect();
                touched.extend(members.values().map(|workload| key::workload(&workload.id)));
                self.selected.insert(id, members);
            }
            Members::Listed(list) => {
                for (position, address) in list.iter().enumerate().filter_map(|(i, w)| Some((i, w.ip()?))) {
                    let occupant = Occupant::Listed(id.0.clone(), id.1.clone(), position);
                    self.at_address.entry(address).or_default().insert(occupant);
                }
            }
        }
        touch_service(&service, touched);
        if before != Some(self.slice_facts(&service)) {
            touched.insert(key::owned());
        }
    }

    /// Forgets a service.
    pub fn remove_service(&mut self, namespace: &str, name: &str, touched: &mut HashSet<Key>) {
        let id: Id = (namespace.into(), name.into());
        if let Some(service) = self.services.remove(&id) {
            self.unlink_service(&service, touched);
            touched.insert(key::owned());
        }
    }

    /// What the mesh owns because of a service.
    fn slice_facts(&self, service: &Service) -> (Vec<Arc<str>>, Vec<IpNet>, Vec<IpAddr>) {
        let listed = match &service.members {
            Members::Listed(list) => list.iter().filter_map(|workload| workload.ip()).collect(),
            Members::Selected(_) => Vec::new(),
        };
        (service.hosts.clone(), service.addresses.clone(), listed)
    }

    fn unlink_service(&mut self, service: &Arc<Service>, touched: &mut HashSet<Key>) {
        let id = (service.age.namespace.clone(), service.age.name.clone());
        let other = |candidate: &Arc<Service>| !candidate.age.is(&id.0, &id.1);
        for host in &service.hosts {
            retain(&mut self.by_host, host, other);
        }
        for range in service.addresses.iter().filter(|range| is_single(range)) {
            retain(&mut self.by_address, &range.addr().to_canonical(), other);
        }
        self.by_range.retain(|(_, candidate)| other(candidate));
        if let Some(services) = self.selecting.get_mut(&id.0) {
            services.remove(&id.1);
            if services.is_empty() {
                self.selecting.remove(&id.0);
            }
        }
        if let Members::Listed(list) = &service.members {
            for (position, address) in list.iter().enumerate().filter_map(|(i, w)| Some((i, w.ip()?))) {
                self.leave(address, &Occupant::Listed(id.0.clone(), id.1.clone(), position));
            }
        }
        let members = self.selected.remove(&id).unwrap_or_default();
        touched.extend(members.values().map(|workload| key::workload(&workload.id)));
        touch_service(service, touched);
    }

    fn leave(&mut self, address: IpAddr, occupant: &Occupant) {
        if let Some(occupants) = self.at_address.get_mut(&address) {
            occupants.remove(occupant);
            if occupants.is_empty() {
                self.at_address.remove(&address);
            }
        }
    }

    /// Takes in a workload.
    pub fn put_workload(&mut self, workload: Workload, touched: &mut HashSet<Key>) {
        let old = self.workloads.get(&workload.id).cloned();
        if old.as_deref() == Some(&workload) {
            return;
        }
        let workload = Arc::new(workload);
        if old.as_ref().and_then(|old| old.ip()) != workload.ip() {
            touched.insert(key::owned());
        }
        self.replace_workload(old.as_ref(), Some(&workload), touched);
    }

    /// Forgets a workload.
    pub fn remove_workload(&mut self, namespace: &str, name: &str, touched: &mut HashSet<Key>) {
        let id = WorkloadId {
            name: name.into(),
            namespace: namespace.into(),
        };
        if let Some(old) = self.workloads.get(&id).cloned() {
            touched.insert(key::owned());
            self.replace_workload(Some(&old), None, touched);
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
        if let Some(address) = old.and_then(|old| old.ip()) {
            self.leave(address, &Occupant::Workload(id.clone()));
            touched.insert(key::address(address));
        }
        let peers = self.namespaces.entry(id.namespace.clone()).or_default();
        if let Some(new) = new {
            peers.insert(id.name.clone(), new.clone());
            self.workloads.insert(id.clone(), new.clone());
            if let Some(address) = new.ip() {
                let occupants = self.at_address.entry(address).or_default();
                occupants.insert(Occupant::Workload(id.clone()));
                touched.insert(key::address(address));
            }
        } else {
            peers.remove(&id.name);
            if peers.is_empty() {
                self.namespaces.remove(&id.namespace);
            }
            self.workloads.remove(&id);
        }
        for service in self.selecting.get(&id.namespace).into_iter().flat_map(BTreeMap::values) {
            let was = old.is_some_and(|old| service.selects(old));
            let is = new.filter(|new| service.selects(new));
            if !was && is.is_none() {
                continue;
            }
            let service_id = (service.age.namespace.clone(), service.age.name.clone());
            let members = self.selected.entry(service_id).or_default();
            match is {
                Some(new) => members.insert(id.name.clone(), new.clone()),
                None => members.remove(&id.name),
            };
            touched.extend(service.hosts.iter().map(|host| key::members(host)));
        }
    }

    /// Services of a host exactly as written, wildcards included, the oldest first. Its key is [`key::service`].
    #[must_use]
    pub fn services(&self, host: &str) -> &[Arc<Service>] {
        self.by_host.get(host).map_or(&[], Vec::as_slice)
    }

    /// All services, in no particular order.
    pub fn all_services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All workloads of objects of their own, in no particular order.
    pub fn all_workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// Services with that very address, the oldest first, then those with ranges around it, the smallest first. Keys are
    /// [`key::address`] and [`key::ranges`].
    pub fn services_at(&self, address: IpAddr) -> impl Iterator<Item = &Arc<Service>> {
        let ranges = self.by_range.iter();
        self.by_address.get(&address).into_iter().flatten().chain(
            ranges
                .filter(move |(range, _)| range.contains(&address))
                .map(|(_, service)| service),
        )
    }

    /// A workload that has an object of its own. Its key is [`key::workload`].
    #[must_use]
    pub fn workload(&self, id: &WorkloadId) -> Option<&Arc<Workload>> {
        self.workloads.get(id)
    }

    /// Workloads at an address with the services that they serve, the oldest first: workloads with objects of their own,
    /// then endpoints that services list. Keys are [`key::address`] and each workload's.
    pub fn workloads_at(&self, address: IpAddr) -> impl Iterator<Item = (&Arc<Workload>, Vec<Arc<Service>>)> {
        let occupants = self.at_address.get(&address).into_iter().flatten();
        occupants.filter_map(|occupant| match occupant {
            Occupant::Workload(id) => {
                let workload = self.workloads.get(id)?;
                Some((workload, self.serving(workload)))
            }
            Occupant::Listed(namespace, name, position) => {
                let service = self.services.get(&(namespace.clone(), name.clone()))?;
                match &service.members {
                    Members::Listed(list) => Some((list.get(*position)?, vec![service.clone()])),
                    Members::Selected(_) => None,
                }
            }
        })
    }

    /// Workloads that serve a service. Its keys are [`key::service`] and [`key::members`] of its hosts.
    #[must_use]
    pub fn members(&self, service: &Service) -> Vec<Arc<Workload>> {
        match &service.members {
            Members::Listed(list) => list.clone(),
            Members::Selected(_) => self
                .selected
                .get(&(service.age.namespace.clone(), service.age.name.clone()))
                .into_iter()
                .flat_map(BTreeMap::values)
                .cloned()
                .collect(),
        }
    }

    /// Services that a workload serves, the oldest first. Its key is [`key::workload`].
    #[must_use]
    pub fn serving(&self, workload: &Workload) -> Vec<Arc<Service>> {
        let mut services: Vec<_> = self
            .selecting
            .get(&workload.id.namespace)
            .into_iter()
            .flat_map(BTreeMap::values)
            .filter(|service| service.selects(workload))
            .cloned()
            .collect();
        services.sort_by(|a, b| a.age.cmp(&b.age));
        services
    }
}

fn touch_service(service: &Service, touched: &mut HashSet<Key>) {
    for host in &service.hosts {
        touched.insert(key::service(host));
        touched.insert(key::members(host));
    }
    for range in &service.addresses {
        touched.insert(if is_single(range) {
            key::address(range.addr().to_canonical())
        } else {
            key::ranges()
        });
    }
    if let Members::Listed(list) = &service.members {
        touched.extend(list.iter().filter_map(|workload| workload.ip()).map(key::address));
    }
}

fn is_single(range: &IpNet) -> bool {
    range.prefix_len() == range.max_prefix_len()
}

fn retain<K: std::hash::Hash + Eq, T>(map: &mut HashMap<K, Vec<T>>, at: &K, keep: impl Fn(&T) -> bool) {
    if let Some(list) = map.get_mut(at) {
        list.retain(keep);
        if list.is_empty() {
            map.remove(at);
        }
    }
}
