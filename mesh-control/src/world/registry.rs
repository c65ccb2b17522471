//! Services and workloads, and which serves which.

mod cluster;
mod workloads;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_api::model::Locality;
use mesh_api::names::WorkloadId;
use smallvec::SmallVec;

use super::ranges::Ranges;
use super::service::ServiceId;
use super::slices::{Place, Slices};
use super::workload::{Address, Origin};
use super::{Key, Members, Service, ServicePort, Workload, key, parts};

/// Namespace and name of an object.
type Id = (Arc<str>, Arc<str>);

/// Services of a namespace, by kind and name.
type OfNamespace = BTreeMap<(&'static str, Arc<str>), Arc<Service>>;

/// Hosts, addresses, and addresses of endpoints that a ServiceEntry adds to what the mesh owns.
type OwnedByEntry = (Vec<Arc<str>>, Vec<IpNet>, Vec<IpAddr>);

/// Services and workloads with their indexes.
#[derive(Debug, Default)]
pub struct Registry {
    services: HashMap<ServiceId, Arc<Service>>,
    /// By host as written; Services before ServiceEntries, and of these the oldest first.
    by_host: HashMap<Arc<str>, Vec<Arc<Service>>>,
    /// By single address, in the same order.
    by_address: HashMap<IpAddr, Vec<Arc<Service>>>,
    /// Services with ranges of addresses, the longest prefix first.
    by_range: Vec<(IpNet, Arc<Service>)>,
    /// Services whose endpoints are workloads with objects of their own, by namespace.
    selecting: HashMap<Arc<str>, OfNamespace>,
    workloads: HashMap<WorkloadId, Arc<Workload>>,
    /// WorkloadEntries with the names of Pods: nobody can tell them from these, so they have to wait.
    shadowed: HashMap<WorkloadId, Arc<Workload>>,
    /// Workloads by namespace, then name.
    namespaces: HashMap<Arc<str>, BTreeMap<Arc<str>, Arc<Workload>>>,
    /// Workloads and listed endpoints at an address.
    at_address: HashMap<IpAddr, SmallVec<[Occupant; 1]>>,
    /// Workloads that are endpoints of a service because of their labels.
    selected: HashMap<ServiceId, BTreeMap<Arc<str>, Arc<Workload>>>,
    /// EndpointSlices by namespace and name of their Service.
    slices: HashMap<Id, Slices>,
    /// Name of the Service of each EndpointSlice, by namespace and name.
    slice_services: HashMap<Id, Arc<str>>,
    /// Where Nodes are.
    nodes: HashMap<Arc<str>, Locality>,
    ranges: Ranges,
    /// Services of Kubernetes by namespace: their hosts are owned by namespace.
    service_namespaces: HashMap<Arc<str>, usize>,
}

/// Who is at an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Occupant {
    Workload(WorkloadId),
    /// Endpoint listed by a service: the service, and position.
    Listed(ServiceId, usize),
    /// Endpoint that is no Pod, in a slice of a Service: namespace and name of the Service, name of the endpoint.
    Placed(Arc<str>, Arc<str>, Arc<str>),
}

/// One who serves a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// Who.
    pub workload: Arc<Workload>,
    /// Where, if an EndpointSlice says so; else at its own address.
    place: Option<Arc<Place>>,
}

impl Member {
    /// What it is called among those who serve.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        match &self.place {
            Some(place) => &place.name,
            None => &self.workload.id.name,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> Option<&Address> {
        match &self.place {
            Some(place) => Some(&place.address),
            None => self.workload.address.as_ref(),
        }
    }

    /// The port at which it serves one of the service's, if it does.
    #[must_use]
    pub fn port(&self, port: &ServicePort) -> Option<u16> {
        match &self.place {
            Some(place) => place.port(port),
            None => port.at(&self.workload),
        }
    }
}

impl From<Arc<Workload>> for Member {
    fn from(workload: Arc<Workload>) -> Self {
        Self { workload, place: None }
    }
}

impl Registry {
    /// Takes in a service.
    pub fn put_service(&mut self, service: Service, touched: &mut HashSet<Key>) {
        let id = service.id();
        let old = self.services.get(&id).cloned();
        if old.as_deref() == Some(&service) {
            return;
        }
        let before = old.as_deref().and_then(owned_by_entry);
        if let Some(old) = &old {
            self.unlink_service(old, touched);
        }
        let service = Arc::new(service);
        self.services.insert(id.clone(), service.clone());
        for host in &service.hosts {
            insert_in_order(self.by_host.entry(host.clone()).or_default(), &service);
        }
        for range in &service.addresses {
            if is_single(range) {
                let list = self.by_address.entry(range.addr().to_canonical()).or_default();
                insert_in_order(list, &service);
            } else {
                self.by_range.push((*range, service.clone()));
                self.by_range.sort_by(|a, b| {
                    b.0.prefix_len()
                        .cmp(&a.0.prefix_len())
                        .then_with(|| order(&a.1).cmp(&order(&b.1)))
                });
            }
        }
        match &service.members {
            Members::Selected(_) | Members::Sliced(_) => {
                self.selecting
                    .entry(id.1.clone())
                    .or_default()
                    .insert((id.0, id.2.clone()), service.clone());
                let of_namespace = self.namespaces.get(&id.1).into_iter().flatten();
                let mut picked = BTreeMap::new();
                for (name, workload) in of_namespace.filter(|(_, workload)| service.selects(workload)) {
                    touched.insert(key::workload(&workload.id));
                    if service.picks(workload) {
                        picked.insert(name.clone(), workload.clone());
                    }
                }
                self.selected.insert(id, picked);
            }
            Members::Listed(list) => {
                for (position, address) in list.iter().enumerate().filter_map(|(i, w)| Some((i, w.ip()?))) {
                    self.enter(address, Occupant::Listed(id.clone(), position));
                }
            }
        }
        self.touch_service(&service, touched);
        if self.own(&service) || before != owned_by_entry(&service) {
            touched.insert(key::owned());
        }
    }

    /// Forgets a service: a ServiceEntry, or a Service.
    pub fn remove_service(&mut self, kind: &'static str, namespace: &str, name: &str, touched: &mut HashSet<Key>) {
        let id: ServiceId = (kind, namespace.into(), name.into());
        if let Some(service) = self.services.remove(&id) {
            self.unlink_service(&service, touched);
            if owned_by_entry(&service).is_some() {
                touched.insert(key::owned());
            }
        }
    }

    fn unlink_service(&mut self, service: &Arc<Service>, touched: &mut HashSet<Key>) {
        let id = service.id();
        let other = |candidate: &Arc<Service>| candidate.id() != id;
        for host in &service.hosts {
            retain(&mut self.by_host, host, other);
        }
        for range in service.addresses.iter().filter(|range| is_single(range)) {
            retain(&mut self.by_address, &range.addr().to_canonical(), other);
        }
        self.by_range.retain(|(_, candidate)| other(candidate));
        if let Some(services) = self.selecting.get_mut(&id.1) {
            services.remove(&(id.0, id.2.clone()));
            if services.is_empty() {
                self.selecting.remove(&id.1);
            }
        }
        if let Members::Listed(list) = &service.members {
            for (position, address) in list.iter().enumerate().filter_map(|(i, w)| Some((i, w.ip()?))) {
                self.leave(address, &Occupant::Listed(id.clone(), position));
            }
        }
        self.selected.remove(&id);
        if service.selector().is_some() {
            let of_namespace = self.namespaces.get(&id.1).into_iter().flatten();
            let had = of_namespace.filter(|(_, workload)| service.selects(workload));
            touched.extend(had.map(|(_, workload)| key::workload(&workload.id)));
        }
        self.touch_service(service, touched);
        if self.disown(service) {
            touched.insert(key::owned());
        }
    }

    fn touch_service(&self, service: &Service, touched: &mut HashSet<Key>) {
        for host in &service.hosts {
            touched.insert(key::service(host));
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
        let places = self
            .slices_of(service)
            .into_iter()
            .flat_map(|slices| slices.places().values());
        let unknown = places.filter_map(|place| place.unknown.as_ref()?.ip());
        touched.extend(unknown.map(key::address));
    }

    /// Occupants are kept in order, so that it does not matter who came first.
    fn enter(&mut self, address: IpAddr, occupant: Occupant) {
        let occupants = self.at_address.entry(address).or_default();
        if let Err(at) = occupants.binary_search(&occupant) {
            occupants.insert(at, occupant);
        }
    }

    fn leave(&mut self, address: IpAddr, occupant: &Occupant) {
        if let Some(occupants) = self.at_address.get_mut(&address) {
            occupants.retain(|other| other != occupant);
            if occupants.is_empty() {
                self.at_address.remove(&address);
            }
        }
    }

    /// Services of a host exactly as written, wildcards included: Services, then ServiceEntries, and of these the oldest
    /// first. Its key is [`key::service`].
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

    /// Services with that very address in the order of [`Registry::services`], then those with ranges around it, the
    /// smallest first. Keys are [`key::address`] and [`key::ranges`].
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

    /// Who is at an address and nowhere shared, with the services that they serve, the oldest first: workloads with objects
    /// of their own, then endpoints that services list. Keys are [`key::address`] and each workload's.
    pub fn members_at(&self, address: IpAddr) -> impl Iterator<Item = (Member, Vec<Arc<Service>>)> {
        let occupants = self.at_address.get(&address).into_iter().flatten();
        occupants.filter_map(|occupant| match occupant {
            Occupant::Workload(id) => {
                let workload = self.workloads.get(id)?;
                Some((workload.clone().into(), self.serving(workload)))
            }
            Occupant::Listed(id, position) => {
                let service = self.services.get(id)?;
                match &service.members {
                    Members::Listed(list) => Some((list.get(*position)?.clone().into(), vec![service.clone()])),
                    Members::Selected(_) | Members::Sliced(_) => None,
                }
            }
            Occupant::Placed(namespace, service, name) => {
                let service = self.sliced(namespace, service)?;
                let place = self.slices_of(service)?.places().get(name)?;
                Some((self.at_place(service, place)?, vec![service.clone()]))
            }
        })
    }

    /// How many serve a service. Its keys are [`key::service`] and [`key::size`] of its hosts.
    #[must_use]
    pub fn size(&self, service: &Service) -> usize {
        match &service.members {
            Members::Listed(list) => list.len(),
            Members::Selected(_) => self.selected.get(&service.id()).map_or(0, BTreeMap::len),
            Members::Sliced(_) => {
                let places = self.slices_of(service).map_or(0, |slices| slices.places().len());
                places + self.selected.get(&service.id()).map_or(0, BTreeMap::len)
            }
        }
    }

    /// Those who serve a service. Its keys are [`key::service`], and [`key::part`] of its hosts for each of them.
    #[must_use]
    pub fn members(&self, service: &Service) -> Vec<Member> {
        let selected = || self.selected.get(&service.id()).into_iter().flat_map(BTreeMap::values);
        match &service.members {
            Members::Listed(list) => list.iter().cloned().map(Member::from).collect(),
            Members::Selected(_) => selected().cloned().map(Member::from).collect(),
            Members::Sliced(_) => {
                let places = self.slices_of(service).into_iter();
                let places = places.flat_map(|slices| slices.places().values());
                let placed = places.filter_map(|place| self.at_place(service, place));
                placed.chain(selected().cloned().map(Member::from)).collect()
            }
        }
    }

    /// One who serves a service, by name; a Pod of a Service also while it takes no traffic of the Service's. Its keys are
    /// [`key::service`], [`key::workload`] and [`key::part`] of the service's hosts.
    #[must_use]
    pub fn member(&self, service: &Service, name: &str) -> Option<Member> {
        if let Members::Listed(list) = &service.members {
            let listed = list.iter().find(|workload| *workload.id.name == *name);
            return listed.cloned().map(Member::from);
        }
        let place = self.slices_of(service).and_then(|slices| slices.places().get(name));
        if let Some(member) = place.and_then(|place| self.at_place(service, place)) {
            return Some(member);
        }
        let workload = self.namespaces.get(&service.age.namespace)?.get(name)?;
        service.selects(workload).then(|| workload.clone().into())
    }

    /// Who has a host name of its own under a Service. Its keys are those of all members.
    #[must_use]
    pub fn member_of_hostname(&self, service: &Service, hostname: &str) -> Option<Member> {
        let place = self.slices_of(service)?.hostname(hostname)?;
        self.at_place(service, place)
    }

    fn at_place(&self, service: &Service, place: &Arc<Place>) -> Option<Member> {
        let workload = match &place.unknown {
            Some(workload) => workload,
            // Until the Pod is known, it cannot be told how to speak to it.
            None => {
                let pod = self.namespaces.get(&service.age.namespace)?.get(&place.name)?;
                Some(pod).filter(|pod| pod.origin == Origin::Pod)?
            }
        };
        Some(Member {
            workload: workload.clone(),
            place: Some(place.clone()),
        })
    }

    fn slices_of(&self, service: &Service) -> Option<&Slices> {
        let id = (service.age.namespace.clone(), service.age.name.clone());
        self.slices.get(&id).filter(|_| service.is_sliced())
    }

    /// Services that a workload serves: Services first, then the oldest first. Its key is [`key::workload`].
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
        services.sort_by(|a, b| order(a).cmp(&order(b)));
        services
    }

    /// Where a workload runs: as it says itself, else where its Node is. Keys are [`key::workload`] and [`key::node`].
    #[must_use]
    pub fn locality<'r>(&'r self, workload: &'r Workload) -> &'r Locality {
        let of_node = || self.nodes.get(workload.node.as_ref()?);
        if workload.locality == Locality::default() {
            of_node().unwrap_or(&workload.locality)
        } else {
            &workload.locality
        }
    }

    /// Addresses of the cluster's pods and services. Its key is [`key::owned`].
    pub fn cluster_ranges(&self) -> impl Iterator<Item = IpNet> {
        self.ranges.all()
    }
}

/// What the mesh owns because of a ServiceEntry; `None` for a Service, whose hosts and addresses are owned in bulk.
fn owned_by_entry(service: &Service) -> Option<OwnedByEntry> {
    if service.age.kind == super::service::KUBERNETES {
        return None;
    }
    let listed = match &service.members {
        Members::Listed(list) => list.iter().filter_map(|workload| workload.ip()).collect(),
        Members::Selected(_) | Members::Sliced(_) => Vec::new(),
    };
    Some((service.hosts.clone(), service.addresses.clone(), listed))
}

/// Order of services where one goes before the other.
fn order(service: &Service) -> (&'static str, &super::Age) {
    (service.age.kind, &service.age)
}

fn insert_in_order(list: &mut Vec<Arc<Service>>, service: &Arc<Service>) {
    list.push(service.clone());
    list.sort_by(|a, b| order(a).cmp(&order(b)));
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
