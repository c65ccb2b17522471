//! VirtualServices by the hosts that they claim.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use mesh_api::crd::virtual_service::{HttpRoute, TcpRoute, VirtualServiceSpec};

use super::{Age, Export, Key, hosts, key};

/// A VirtualService, distilled to what sidecars do with it.
#[derive(Clone, Debug, PartialEq)]
pub struct VirtualService {
    /// The object.
    pub age: Age,
    /// Hosts that it names, qualified; empty for one without `hosts`.
    pub hosts: Vec<Arc<str>>,
    /// Hosts of its destinations, qualified: what a VirtualService without `hosts` applies to.
    pub destinations: Vec<Arc<str>>,
    /// Whether it is for sidecars (`gateways` is empty or has `mesh`).
    pub in_mesh: bool,
    /// Who sees it.
    pub export: Export,
    /// HTTP rules.
    pub http: Vec<HttpRoute>,
    /// TCP rules.
    pub tcp: Vec<TcpRoute>,
    /// VirtualServices that its rules hand over to: namespace and name.
    pub delegates: Vec<(Arc<str>, Arc<str>)>,
}

impl VirtualService {
    /// Keeps of a VirtualService what the compiler asks for.
    #[must_use]
    pub fn distil(age: Age, spec: &VirtualServiceSpec, domain: &str) -> Self {
        let namespace = age.namespace.clone();
        let qualify = |host: &str| hosts::qualify(host, &namespace, domain);
        let destinations: BTreeSet<Arc<str>> = spec
            .http
            .iter()
            .flat_map(|rule| &rule.route)
            .map(|leg| qualify(&leg.destination.host))
            .chain(
                spec.tcp
                    .iter()
                    .flat_map(|rule| &rule.route)
                    .map(|leg| qualify(&leg.destination.host)),
            )
            .collect();
        let delegates = spec
            .http
            .iter()
            .filter_map(|rule| rule.delegate.as_ref())
            .filter_map(|delegate| {
                let target = delegate.namespace.as_deref().filter(|text| !text.is_empty());
                Some((
                    target.map_or_else(|| namespace.clone(), Arc::from),
                    delegate.name.as_deref()?.into(),
                ))
            })
            .collect();
        Self {
            hosts: spec.hosts.iter().map(|host| qualify(host)).collect(),
            destinations: destinations.into_iter().collect(),
            in_mesh: spec.gateways.is_empty() || spec.gateways.iter().any(|gateway| gateway == "mesh"),
            export: Export::parse(&spec.export_to, &namespace),
            http: spec.http.clone(),
            tcp: spec.tcp.clone(),
            delegates,
            age,
        }
    }

    /// Hosts that it claims: its own, or those of its destinations.
    #[must_use]
    pub fn claims(&self) -> &[Arc<str>] {
        if self.hosts.is_empty() {
            &self.destinations
        } else {
            &self.hosts
        }
    }
}

/// VirtualServices with their indexes.
#[derive(Debug, Default)]
pub struct Routing {
    objects: HashMap<(Arc<str>, Arc<str>), Arc<VirtualService>>,
    /// Those for sidecars by claimed host as written, the oldest first.
    by_host: HashMap<Arc<str>, Vec<Arc<VirtualService>>>,
    /// How many rules hand over to a VirtualService.
    delegated: HashMap<(Arc<str>, Arc<str>), usize>,
}

impl Routing {
    /// Takes in a VirtualService.
    pub fn put(&mut self, object: VirtualService, touched: &mut HashSet<Key>) {
        let id = (object.age.namespace.clone(), object.age.name.clone());
        if self.objects.get(&id).is_some_and(|old| **old == object) {
            return;
        }
        self.remove(&id.0, &id.1, touched);
        let object = Arc::new(object);
        for delegate in &object.delegates {
            *self.delegated.entry(delegate.clone()).or_default() += 1;
        }
        if object.in_mesh {
            for host in object.claims() {
                let list = self.by_host.entry(host.clone()).or_default();
                list.push(object.clone());
                list.sort_by(|a, b| a.age.cmp(&b.age));
            }
        }
        self.objects.insert(id, object.clone());
        self.touch(&object, touched);
    }

    /// Forgets a VirtualService.
    pub fn remove(&mut self, namespace: &str, name: &str, touched: &mut HashSet<Key>) {
        let Some(old) = self.objects.remove(&(namespace.into(), name.into())) else {
            return;
        };
        for delegate in &old.delegates {
            if let Some(count) = self.delegated.get_mut(delegate) {
                *count -= 1;
                if *count == 0 {
                    self.delegated.remove(delegate);
                }
            }
        }
        for host in old.claims() {
            if let Some(list) = self.by_host.get_mut(host) {
                list.retain(|candidate| candidate.age != old.age);
                if list.is_empty() {
                    self.by_host.remove(host);
                }
            }
        }
        self.touch(&old, touched);
    }

    /// A VirtualService changes what happens to the hosts that it claims, and to those of whoever it hands over to or is
    /// handed over from.
    fn touch(&self, object: &VirtualService, touched: &mut HashSet<Key>) {
        touched.extend(object.claims().iter().map(|host| key::routing(host)));
        let id = (object.age.namespace.clone(), object.age.name.clone());
        let delegates = object
            .delegates
            .iter()
            .filter_map(|delegate| self.objects.get(delegate));
        let delegators = self
            .objects
            .values()
            .filter(|candidate| self.delegated.contains_key(&id) && candidate.delegates.contains(&id));
        for related in delegates.chain(delegators) {
            touched.extend(related.claims().iter().map(|host| key::routing(host)));
        }
    }

    /// VirtualServices for sidecars that claim a host exactly as written, the oldest first; those without `hosts` among
    /// them, but no mere delegates. Its key is [`key::routing`].
    pub fn claiming(&self, host: &str) -> impl Iterator<Item = &Arc<VirtualService>> {
        self.by_host
            .get(host)
            .into_iter()
            .flatten()
            .filter(|candidate| !candidate.hosts.is_empty() || !self.is_delegate(candidate))
    }

    /// Whether any other VirtualService hands over to this one.
    #[must_use]
    pub fn is_delegate(&self, object: &VirtualService) -> bool {
        self.delegated
            .contains_key(&(object.age.namespace.clone(), object.age.name.clone()))
    }

    /// The VirtualService of a namespace and name.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<VirtualService>> {
        self.objects.get(&(namespace.into(), name.into()))
    }

    /// All of them, in no particular order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<VirtualService>> {
        self.objects.values()
    }
}
