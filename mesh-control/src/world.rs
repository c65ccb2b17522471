//! What the control plane knows: events of the sources come in, distilled facts go out to `compile`.
//!
//! Every question that the compiler asks has an index, and every fact has a [`Key`]. Taking in an object says which keys
//! it touches, so that a change costs what it touches and nothing is rebuilt as a whole. Nothing here decides what a
//! policy means.

mod age;
mod export;
pub mod hosts;
pub mod key;
pub mod parts;
mod ranges;
mod registry;
mod routing;
mod security;
mod service;
mod slices;
mod texts;
mod traffic;
mod workload;

use std::collections::HashSet;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_api::crd::mesh_config::MeshConfigSpec;
use mesh_api::crd::{Kind, Object, ObjectRef};
use mesh_api::identity::TrustDomain;

pub use crate::discovery::resources::Key;
pub use crate::source::Event;
use crate::source::cluster::{ClusterKind, ClusterObject, ClusterRef};

use texts::Texts;

pub use age::Age;
pub use export::{Export, Visibility};
pub use ranges::Origin as RangeOrigin;
pub use registry::{Member, Registry};
pub use routing::{Routing, VirtualService};
pub use security::{AuthorizationPolicy, PeerAuthentication, Security, Selected};
pub use service::{KUBERNETES, Members, Service, ServicePort, Target, parse_range};
pub use traffic::{DestinationRule, Traffic};
pub use workload::{Address, Origin, Workload};

/// What a world is told at its start and no object says.
#[derive(Clone, Debug)]
pub struct Options {
    /// Trust domain of the mesh: what its certificate authority signs for.
    pub trust_domain: TrustDomain,
    /// Namespace whose policies hold for the whole mesh, unless MeshConfig names one.
    pub root_namespace: Arc<str>,
    /// Suffix of services' names: short names are completed with `<namespace>.svc.<suffix>`.
    pub cluster_domain: Arc<str>,
    /// Cluster id in metrics.
    pub cluster_id: Arc<str>,
    /// Addresses of the cluster's pods and services, as far as they are known beforehand.
    pub cluster_ranges: Vec<IpNet>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::cluster_local(),
            root_namespace: "mesh-system".into(),
            cluster_domain: "cluster.local".into(),
            cluster_id: "Kubernetes".into(),
            cluster_ranges: Vec::new(),
        }
    }
}

/// Everything known, indexed.
#[derive(Debug)]
pub struct World {
    options: Options,
    /// Services and workloads.
    pub registry: Registry,
    /// VirtualServices.
    pub routing: Routing,
    /// DestinationRules.
    pub traffic: Traffic,
    /// AuthorizationPolicies and PeerAuthentications.
    pub security: Security,
    mesh_configs: Vec<(Age, Arc<MeshConfigSpec>)>,
    trust_domain_aliases: Vec<TrustDomain>,
    root_namespace: Arc<str>,
    texts: Texts,
}

impl World {
    /// An empty world.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let mut registry = Registry::default();
        let ranges = options.cluster_ranges.clone();
        registry.put_ranges(RangeOrigin::Settings, ranges, &mut HashSet::new());
        Self {
            registry,
            routing: Routing::default(),
            traffic: Traffic::default(),
            security: Security::default(),
            mesh_configs: Vec::new(),
            trust_domain_aliases: Vec::new(),
            texts: Texts::default(),
            root_namespace: options.root_namespace.clone(),
            options,
        }
    }

    /// Takes in an event; says which facts changed.
    pub fn apply(&mut self, event: &Event) -> HashSet<Key> {
        let mut touched = HashSet::new();
        match event {
            Event::Applied(object) => self.put(object, &mut touched),
            Event::Deleted(reference) => self.remove(reference, &mut touched),
            Event::Observed(object) => self.observe(object, &mut touched),
            Event::Vanished(reference) => self.vanish(reference, &mut touched),
            Event::Synced => {}
        }
        touched
    }

    fn put(&mut self, object: &Object, touched: &mut HashSet<Key>) {
        let age = Age::of(object);
        let domain = &self.options.cluster_domain;
        match object {
            Object::ServiceEntry(entry) => self.registry.put_service(Service::distil(age, &entry.spec), touched),
            Object::WorkloadEntry(entry) => {
                let labels = entry.metadata.labels.as_ref();
                self.registry
                    .put_workload(Workload::distil(&age, labels, &entry.spec), touched);
            }
            Object::VirtualService(object) => {
                self.routing
                    .put(VirtualService::distil(age, &object.spec, domain), touched);
            }
            Object::DestinationRule(object) => {
                self.traffic
                    .put(DestinationRule::distil(age, &object.spec, domain), touched);
            }
            Object::AuthorizationPolicy(object) => {
                let annotations = object.metadata.annotations.as_ref();
                self.security
                    .put_authorization(AuthorizationPolicy::distil(age, annotations, &object.spec), touched);
            }
            Object::PeerAuthentication(object) => {
                self.security
                    .put_authentication(PeerAuthentication::distil(age, &object.spec), touched);
            }
            Object::MeshConfig(object) => self.put_mesh_config(age, &object.spec, touched),
            // Accepted and validated, and reported as without effect by `analyze`: nothing of them is compiled.
            Object::Gateway(_)
            | Object::Sidecar(_)
            | Object::WorkloadGroup(_)
            | Object::ProxyConfig(_)
            | Object::RequestAuthentication(_)
            | Object::Telemetry(_) => {}
        }
    }

    fn observe(&mut self, object: &ClusterObject, touched: &mut HashSet<Key>) {
        match object {
            ClusterObject::Node(node) => self.registry.put_node(node, touched),
            ClusterObject::Pod(pod) => match Workload::of_pod(pod, &mut self.texts) {
                Some(workload) => self.registry.put_workload(workload, touched),
                None => self.vanish(&object.reference(), touched),
            },
            ClusterObject::Service(service) => {
                self.registry.prefer(service, touched);
                let service = Service::of_cluster(service, &self.options.cluster_domain);
                self.registry.put_service(service, touched);
            }
            ClusterObject::EndpointSlice(slice) => self.registry.put_slice(slice, touched),
            ClusterObject::ServiceCidr(object) => self.registry.put_service_cidr(object, touched),
        }
    }

    fn vanish(&mut self, reference: &ClusterRef, touched: &mut HashSet<Key>) {
        let (namespace, name) = (reference.namespace.as_str(), reference.name.as_str());
        match reference.kind {
            ClusterKind::Node => self.registry.remove_node(name, touched),
            ClusterKind::Pod => self.registry.remove_workload(Origin::Pod, namespace, name, touched),
            ClusterKind::Service => self.registry.remove_service(KUBERNETES, namespace, name, touched),
            ClusterKind::EndpointSlice => self.registry.remove_slice(namespace, name, touched),
            ClusterKind::ServiceCidr => self.registry.remove_service_cidr(name, touched),
        }
    }

    fn remove(&mut self, reference: &ObjectRef, touched: &mut HashSet<Key>) {
        let (namespace, name) = (reference.namespace.as_str(), reference.name.as_str());
        match reference.kind {
            Kind::ServiceEntry => self
                .registry
                .remove_service(Kind::ServiceEntry.as_str(), namespace, name, touched),
            Kind::WorkloadEntry => self.registry.remove_workload(Origin::Entry, namespace, name, touched),
            Kind::VirtualService => self.routing.remove(namespace, name, touched),
            Kind::DestinationRule => self.traffic.remove(namespace, name, touched),
            Kind::AuthorizationPolicy => self.security.remove_authorization(namespace, name, touched),
            Kind::PeerAuthentication => self.security.remove_authentication(namespace, name, touched),
            Kind::MeshConfig => {
                self.mesh_configs.retain(|(age, _)| &*age.name != name);
                self.settle_mesh_config(touched);
            }
            Kind::Gateway
            | Kind::Sidecar
            | Kind::WorkloadGroup
            | Kind::ProxyConfig
            | Kind::RequestAuthentication
            | Kind::Telemetry => {}
        }
    }

    fn put_mesh_config(&mut self, age: Age, spec: &MeshConfigSpec, touched: &mut HashSet<Key>) {
        self.mesh_configs.retain(|(other, _)| other.name != age.name);
        self.mesh_configs.push((age, Arc::new(spec.clone())));
        self.mesh_configs.sort_by(|a, b| a.0.cmp(&b.0));
        self.settle_mesh_config(touched);
    }

    fn settle_mesh_config(&mut self, touched: &mut HashSet<Key>) {
        touched.insert(key::mesh());
        let spec = self.mesh_configs.first().map(|(_, spec)| spec);
        if let Some(wanted) = spec.and_then(|spec| spec.trust_domain.as_deref())
            && wanted != self.options.trust_domain.as_str()
        {
            tracing::error!(
                "MeshConfig: spec.trustDomain: the certificate authority signs for {}, which stays in force; to change it \
                 to {wanted:?}, start the control plane with that trust domain",
                self.options.trust_domain
            );
        }
        self.trust_domain_aliases = spec
            .map(|spec| spec.trust_domain_aliases.iter().filter_map(|alias| alias.parse().ok()))
            .into_iter()
            .flatten()
            .collect();
        self.root_namespace = spec
            .and_then(|spec| spec.root_namespace.as_deref())
            .filter(|namespace| !namespace.is_empty())
            .map_or_else(|| self.options.root_namespace.clone(), Arc::from);
    }

    /// What the world was told at its start.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The mesh's settings: the oldest MeshConfig. Its key is [`key::mesh`].
    #[must_use]
    pub fn mesh_config(&self) -> Option<&MeshConfigSpec> {
        self.mesh_configs.first().map(|(_, spec)| &**spec)
    }

    /// The object that has the mesh's settings. Its key is [`key::mesh`].
    #[must_use]
    pub fn mesh_config_age(&self) -> Option<&Age> {
        self.mesh_configs.first().map(|(age, _)| age)
    }

    /// Trust domain of the mesh's identities; it never changes.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.options.trust_domain
    }

    /// Further trust domains of the mesh. Their key is [`key::mesh`].
    #[must_use]
    pub fn trust_domain_aliases(&self) -> &[TrustDomain] {
        &self.trust_domain_aliases
    }

    /// Namespace whose policies hold for the whole mesh. Its key is [`key::mesh`].
    #[must_use]
    pub fn root_namespace(&self) -> &Arc<str> {
        &self.root_namespace
    }
}
