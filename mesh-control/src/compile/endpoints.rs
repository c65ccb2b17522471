//! Endpoint slices and peers: where the workloads of a service port are, and who is at an address.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::crd::service_entry::Resolution;
use mesh_api::identity::SpiffeId;
use mesh_api::model::{self, Endpoint, EndpointAddress, EndpointSlice, Health, Location, MtlsMode};
use mesh_api::names::WorkloadId;

use super::Reader;
use super::inbound::mtls_mode;
use super::lookup::{Found, Hosts, services};
use crate::world::{Address, Age, KUBERNETES, Member, Origin, Service, Workload, World, key, parts};

/// The name of a slice: `<host>:<port>/<namespace>/<part>-<parts>`, and `<host>:<port>/<namespace>/=<workload>` for one
/// workload that is asked for by its own address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceName {
    /// Host of the service.
    pub host: Arc<str>,
    /// Service port.
    pub port: u16,
    /// Namespace of the service's object.
    pub namespace: Arc<str>,
    /// Which of its endpoints.
    pub part: Part,
}

/// Which endpoints of a service a slice has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Those whose name falls into one of so many parts.
    Hash {
        /// The part, from 0.
        part: usize,
        /// Number of parts.
        parts: usize,
    },
    /// One workload.
    Workload(Arc<str>),
}

impl fmt::Display for SliceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}/", self.host, self.port, self.namespace)?;
        match &self.part {
            Part::Hash { part, parts } => write!(f, "{part}-{parts}"),
            Part::Workload(name) => write!(f, "={name}"),
        }
    }
}

impl SliceName {
    /// Reads a name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (service, rest) = name.split_once('/')?;
        let (namespace, part) = rest.split_once('/')?;
        let (host, port) = service.rsplit_once(':')?;
        let part = match part.strip_prefix('=') {
            Some(name) => Part::Workload(name.into()),
            None => {
                let (part, parts) = part.split_once('-')?;
                let (part, parts) = (part.parse().ok()?, parts.parse().ok()?);
                if part >= parts {
                    return None;
                }
                Part::Hash { part, parts }
            }
        };
        Some(Self {
            host: host.into(),
            port: port.parse().ok()?,
            namespace: namespace.into(),
            part,
        })
    }
}

/// Names of the slices of a service port.
#[must_use]
pub fn slice_names(reader: &Reader<'_>, found: &Found) -> Vec<Arc<str>> {
    let mut all = services(reader, &found.host, Hosts::Covering);
    all.retain(|service| {
        service.age.namespace == found.service.age.namespace && service.port(found.port.number).is_some()
    });
    for host in all.iter().flat_map(|service| &service.hosts) {
        reader.note(key::size(host));
    }
    let count = all.iter().map(|service| reader.world.registry.size(service)).sum();
    let parts = parts::number(count);
    (0..parts)
        .map(|part| {
            let name = SliceName {
                host: found.host.clone(),
                port: found.port.number,
                namespace: found.service.age.namespace.clone(),
                part: Part::Hash { part, parts },
            };
            name.to_string().into()
        })
        .collect()
}

/// Those who serve a service and are in a slice, and whether anybody else serves it.
fn members(reader: &Reader<'_>, service: &Service, part: &Part) -> Vec<Member> {
    let registry = &reader.world.registry;
    match part {
        Part::Hash { part, parts } => {
            for host in &service.hosts {
                reader.note(key::part(host, *part, *parts));
            }
            let mut members = registry.members(service);
            members.retain(|member| parts::of(member.name(), *parts) == *part);
            members
        }
        Part::Workload(name) => {
            for host in &service.hosts {
                reader.note(key::part(host, parts::of(name, parts::MAX), parts::MAX));
            }
            reader.note(key::workload(&WorkloadId {
                name: name.clone(),
                namespace: service.age.namespace.clone(),
            }));
            registry.member(service, name).into_iter().collect()
        }
    }
}

/// Compiles a slice; `None` when there is no such service port.
#[must_use]
pub fn slice(reader: &Reader<'_>, name: &SliceName) -> Option<EndpointSlice> {
    let mut all = services(reader, &name.host, Hosts::Covering);
    all.retain(|service| service.age.namespace == name.namespace && service.port(name.port).is_some());
    if all.is_empty() {
        return None;
    }
    let mut endpoints: BTreeMap<Arc<str>, Endpoint> = BTreeMap::new();
    for service in &all {
        credit_service(reader, service);
        let mut members = members(reader, service, &name.part);
        if resolved_by_name(service) && reader.world.registry.size(service) == 0 && name.part.holds(&name.host) {
            members.push(Arc::new(Workload::outside(&service.age, &name.host)).into());
        }
        for member in &members {
            if let Some(endpoint) = endpoint(reader, service, name.port, member) {
                credit_entry(reader, &member.workload);
                endpoints.entry(member.name().clone()).or_insert(endpoint);
            }
        }
    }
    Some(EndpointSlice {
        endpoints: endpoints.into_values().collect(),
    })
}

impl Part {
    fn holds(&self, endpoint: &str) -> bool {
        match self {
            Self::Hash { part, parts } => parts::of(endpoint, *parts) == *part,
            Self::Workload(name) => **name == *endpoint,
        }
    }
}

fn resolved_by_name(service: &Service) -> bool {
    matches!(
        service.resolution,
        Resolution::Dns | Resolution::DnsRoundRobin | Resolution::DynamicDns
    )
}

fn endpoint(reader: &Reader<'_>, service: &Service, port: u16, member: &Member) -> Option<Endpoint> {
    let port = member.port(service.port(port)?)?;
    let workload = &member.workload;
    let address = match member.address()? {
        Address::Ip(address) => EndpointAddress::Ip(*address),
        Address::Name(name) if service.resolution == Resolution::DnsRoundRobin => {
            EndpointAddress::NameRoundRobin(name.clone())
        }
        Address::Name(name) => EndpointAddress::Name(name.clone()),
    };
    let mutual_tls = service.location == Location::MeshInternal
        && workload.meshed
        && mtls_mode(reader, workload, port) != MtlsMode::Disable;
    Some(Endpoint {
        address,
        port,
        workload: Arc::new(workload_facts(reader, workload)),
        weight: workload.weight,
        mutual_tls,
        health: Health::Healthy,
    })
}

/// Notes the ServiceEntry that a service is.
pub fn credit_service(reader: &Reader<'_>, service: &Service) {
    if service.age.kind != KUBERNETES {
        reader.credit(&service.age);
    }
}

/// Notes the WorkloadEntry that a workload is, if it is one.
pub fn credit_entry(reader: &Reader<'_>, workload: &Workload) {
    let known = reader.world.registry.workload(&workload.id);
    if known.is_some_and(|known| known.origin == Origin::Entry && **known == *workload) {
        reader.credit(&Age::of_workload_entry(&workload.id));
    }
}

/// What proxies hold of a workload.
#[must_use]
pub fn workload_facts(reader: &Reader<'_>, workload: &Workload) -> model::Workload {
    reader.note(key::mesh());
    if let Some(node) = &workload.node {
        reader.note(key::node(node));
    }
    model::Workload {
        name: workload.owner.clone(),
        namespace: workload.id.namespace.clone(),
        identity: identity(reader.world, workload),
        labels: workload.labels.clone(),
        cluster: reader.world.options().cluster_id.clone(),
        locality: reader.world.registry.locality(workload).clone(),
    }
}

/// The identity that a workload's certificates carry.
#[must_use]
pub fn identity(world: &World, workload: &Workload) -> Option<SpiffeId> {
    let account = workload.service_account.as_deref().filter(|_| workload.meshed)?;
    SpiffeId::new(world.trust_domain(), &workload.id.namespace, account).ok()
}

/// Compiles who is at an address; `None` when nobody is, or several are and nothing tells them apart.
#[must_use]
pub fn workload_at(reader: &Reader<'_>, address: IpAddr) -> Option<model::Workload> {
    reader.note(key::address(address));
    let mut all = reader
        .world
        .registry
        .members_at(address)
        .map(|(member, _)| member.workload);
    let first = all.next()?;
    reader.note(key::workload(&first.id));
    if all.any(|other| workload_differs(&first, &other)) {
        return None;
    }
    Some(workload_facts(reader, &first))
}

fn workload_differs(first: &Workload, other: &Workload) -> bool {
    (&first.owner, &first.id.namespace, &first.service_account)
        != (&other.owner, &other.id.namespace, &other.service_account)
}
