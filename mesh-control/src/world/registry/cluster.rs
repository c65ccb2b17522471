//! What Kubernetes alone knows: EndpointSlices, Nodes, and the ranges of pods and services.

use std::collections::HashSet;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_api::model::Locality;

use super::workloads::touch_member;
use super::{Id, Key, Occupant, Registry, Service, is_single, key};
use crate::source::cluster;
use crate::world::ranges::Origin as RangeOrigin;
use crate::world::service::KUBERNETES;
use crate::world::slices::{Places, Prefer, Slice, Slices};

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const SUBZONE: &str = "topology.istio.io/subzone";

impl Registry {
    /// Takes in an EndpointSlice.
    pub fn put_slice(&mut self, object: &cluster::EndpointSlice, touched: &mut HashSet<Key>) {
        let metadata = &object.metadata;
        let slice_id: Id = (metadata.namespace.as_str().into(), metadata.name.as_str().into());
        let before = self.slice_services.get(&slice_id).cloned();
        let Some(service) = object.service() else {
            return self.remove_slice(&metadata.namespace, &metadata.name, touched);
        };
        if before.is_some_and(|before| *before != *service) {
            self.remove_slice(&metadata.namespace, &metadata.name, touched);
        }
        let service: Arc<str> = service.into();
        self.slice_services.insert(slice_id.clone(), service.clone());
        let slice = Slice::distil(object);
        self.change_slices((slice_id.0, service), touched, |slices| slices.put(slice));
    }

    /// Forgets an EndpointSlice.
    pub fn remove_slice(&mut self, namespace: &str, name: &str, touched: &mut HashSet<Key>) {
        let Some(service) = self.slice_services.remove(&(namespace.into(), name.into())) else {
            return;
        };
        self.change_slices((namespace.into(), service), touched, |slices| slices.remove(name));
    }

    /// Which addresses of its pods a Service prefers.
    pub fn prefer(&mut self, service: &cluster::Service, touched: &mut HashSet<Key>) {
        let metadata = &service.metadata;
        let id: Id = (metadata.namespace.as_str().into(), metadata.name.as_str().into());
        let prefer = Prefer::of(service);
        let known = self.slices.get(&id).map(Slices::preference).unwrap_or_default();
        if known != prefer {
            self.change_slices(id, touched, |slices| slices.prefer(prefer));
        }
    }

    /// Changes the slices of a Service; what that changes for its endpoints is touched.
    fn change_slices(&mut self, id: Id, touched: &mut HashSet<Key>, change: impl FnOnce(&mut Slices) -> Places) {
        let service = self.sliced(&id.0, &id.1).cloned();
        let size = service.as_ref().map(|service| self.size(service));
        let slices = self.slices.entry(id.clone()).or_default();
        let before = change(slices);
        let after = slices.places().clone();
        if slices.is_empty() && slices.preference() == Prefer::default() {
            self.slices.remove(&id);
        }
        for (name, place) in &before {
            if after.get(name) != Some(place) {
                self.leave_place(&id, name, place, touched);
            }
        }
        for (name, place) in &after {
            if before.get(name) != Some(place) {
                self.enter_place(&id, name, place, touched);
            }
        }
        let Some((service, size)) = service.zip(size) else {
            return;
        };
        let gone = before.keys().filter(|name| !after.contains_key(*name));
        let changed = after.iter().filter(|(name, place)| before.get(*name) != Some(place));
        for name in gone.chain(changed.map(|(name, _)| name)) {
            touch_member(&service, name, touched);
        }
        self.touch_size(&service, size, touched);
    }

    fn enter_place(&mut self, id: &Id, name: &Arc<str>, place: &super::Place, touched: &mut HashSet<Key>) {
        if let Some(address) = place.unknown.as_ref().and_then(|workload| workload.ip()) {
            let occupant = Occupant::Placed(id.0.clone(), id.1.clone(), name.clone());
            self.enter(address, occupant);
            touched.insert(key::address(address));
        }
    }

    fn leave_place(&mut self, id: &Id, name: &Arc<str>, place: &super::Place, touched: &mut HashSet<Key>) {
        if let Some(address) = place.unknown.as_ref().and_then(|workload| workload.ip()) {
            self.leave(address, &Occupant::Placed(id.0.clone(), id.1.clone(), name.clone()));
            touched.insert(key::address(address));
        }
    }

    /// The Service of a namespace and name, if its endpoints are in slices.
    pub(super) fn sliced(&self, namespace: &Arc<str>, name: &Arc<str>) -> Option<&Arc<Service>> {
        let service = self.services.get(&(KUBERNETES, namespace.clone(), name.clone()))?;
        service.is_sliced().then_some(service)
    }

    /// Takes in a Node.
    pub fn put_node(&mut self, node: &cluster::Node, touched: &mut HashSet<Key>) {
        let name: Arc<str> = node.metadata.name.as_str().into();
        let label = |name: &str| -> Arc<str> { node.metadata.labels.get(name).map_or("", String::as_str).into() };
        let locality = Locality {
            region: label(REGION),
            zone: label(ZONE),
            subzone: label(SUBZONE),
        };
        if self.nodes.get(&name) != Some(&locality) {
            touched.insert(key::node(&name));
            self.nodes.insert(name.clone(), locality);
        }
        self.put_ranges(RangeOrigin::Node(name), node.pod_ranges().collect(), touched);
    }

    /// Forgets a Node.
    pub fn remove_node(&mut self, name: &str, touched: &mut HashSet<Key>) {
        if self.nodes.remove(name).is_some() {
            touched.insert(key::node(name));
        }
        self.put_ranges(RangeOrigin::Node(name.into()), Vec::new(), touched);
    }

    /// Takes in a ServiceCIDR.
    pub fn put_service_cidr(&mut self, object: &cluster::ServiceCidr, touched: &mut HashSet<Key>) {
        let ranges = object.spec.cidrs.iter().filter_map(|text| text.parse::<IpNet>().ok());
        let ranges = ranges.map(|range| range.trunc()).collect();
        let origin = RangeOrigin::ServiceCidr(object.metadata.name.as_str().into());
        self.put_ranges(origin, ranges, touched);
    }

    /// Forgets a ServiceCIDR.
    pub fn remove_service_cidr(&mut self, name: &str, touched: &mut HashSet<Key>) {
        self.put_ranges(RangeOrigin::ServiceCidr(name.into()), Vec::new(), touched);
    }

    /// Takes in the cluster's ranges as they are known from somewhere.
    pub fn put_ranges(&mut self, origin: RangeOrigin, ranges: Vec<IpNet>, touched: &mut HashSet<Key>) {
        if self.ranges.put(origin, ranges) {
            touched.insert(key::owned());
        }
    }

    /// Takes into account what is owned because of a Service: its addresses, and the names of its namespace. Whether that
    /// is more than before.
    pub(super) fn own(&mut self, service: &Service) -> bool {
        if service.age.kind != KUBERNETES {
            return false;
        }
        let count = self
            .service_namespaces
            .entry(service.age.namespace.clone())
            .or_default();
        *count += 1;
        let mut more = *count == 1;
        for range in service.addresses.iter().filter(|range| is_single(range)) {
            more |= self.ranges.enter(range.addr().to_canonical());
        }
        more
    }

    /// Undoes [`Registry::own`].
    pub(super) fn disown(&mut self, service: &Service) -> bool {
        if service.age.kind != KUBERNETES {
            return false;
        }
        let namespace = &service.age.namespace;
        let mut less = false;
        if let Some(count) = self.service_namespaces.get_mut(namespace) {
            *count -= 1;
            if *count == 0 {
                self.service_namespaces.remove(namespace);
                less = true;
            }
        }
        for range in service.addresses.iter().filter(|range| is_single(range)) {
            less |= self.ranges.leave(range.addr().to_canonical());
        }
        less
    }

    /// Suffixes of the hosts of Kubernetes' Services. Its key is [`key::owned`].
    pub fn service_namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.service_namespaces.keys()
    }
}
