//! What is at an authority or address, asked by a client: short names, wildcards, virtual addresses, workloads.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::model::ServiceRef;

use super::{Reader, routing};
use crate::world::{Address, Member, Service, ServicePort, Workload, hosts, key};

/// How many other names in a row may stand for one another.
const MAX_ALIASES: usize = 8;

/// What a name leads to.
#[derive(Clone, Debug)]
pub enum Target {
    /// A port of a service.
    Service(Found),
    /// No service, but a VirtualService claims the host. Istio lets it answer on port 80.
    Rules {
        /// The host.
        host: Arc<str>,
        /// The port that was asked for.
        port: u16,
    },
    /// One workload, by its own address: no rules of a service apply, and nobody else is balanced to.
    Workload {
        /// Who.
        workload: Arc<Workload>,
        /// Its address.
        address: IpAddr,
        /// Its port.
        port: u16,
        /// The service that it serves on that port, with the service's policy and protocol.
        service: Found,
    },
}

/// A service found under a host.
#[derive(Clone, Debug)]
pub struct Found {
    /// The host: the one asked for, where the service's is a wildcard.
    pub host: Arc<str>,
    /// The port.
    pub port: ServicePort,
    /// The service.
    pub service: Arc<Service>,
}

impl Found {
    /// The service as metrics and logs name it. A host that is not one cannot have been asked for.
    #[must_use]
    pub fn reference(&self, domain: &str) -> Option<ServiceRef> {
        reference(&self.host, &self.service.age.namespace, domain)
    }
}

/// A service's host as metrics and logs name it: Kubernetes names by their parts, others as a whole in the namespace of
/// their object.
#[must_use]
pub fn reference(host: &str, namespace: &Arc<str>, domain: &str) -> Option<ServiceRef> {
    let (name, namespace) = match hosts::kubernetes_name(host, domain) {
        Some((name, namespace)) => (name.into(), namespace.into()),
        None => (host.into(), namespace.clone()),
    };
    Some(ServiceRef {
        host: host.parse().ok()?,
        name,
        namespace,
    })
}

/// Why a host and port lead nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotFound {
    /// No such service that the client sees.
    Host,
    /// The service has no such port.
    Port,
}

/// Splits `host:port`; IPv6 addresses stand in brackets.
#[must_use]
pub fn split(name: &str) -> Option<(&str, u16)> {
    let (host, port) = name.rsplit_once(':')?;
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let port = port.parse().ok().filter(|port| *port > 0)?;
    (!host.is_empty()).then_some((host, port))
}

/// Finds what a client means by `host:port`.
#[must_use]
pub fn lookup(reader: &Reader<'_>, host: &str, port: u16) -> Option<Target> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return at_address(reader, address.to_canonical(), port);
    }
    let domain = &reader.world.options().cluster_domain;
    let short = host.split('.').count() < 2;
    // Only a name without a dot depends on who asks.
    let namespace: &str = if short { reader.client_namespace() } else { "" };
    let candidates = hosts::candidates(host, namespace, domain);
    for candidate in &candidates {
        if let Ok(found) = service_port(reader, candidate, port, Hosts::Exact) {
            return Some(Target::Service(found));
        }
    }
    if let Some(target) = of_hostname(reader, host, port) {
        return Some(target);
    }
    let full = candidates.last().map_or(host, String::as_str);
    if let Ok(found) = service_port(reader, full, port, Hosts::Covering) {
        return Some(Target::Service(found));
    }
    let host = candidates
        .iter()
        .rev()
        .find(|candidate| port == 80 && routing::virtual_service(reader, candidate).is_some())?;
    Some(Target::Rules {
        host: host.as_str().into(),
        port,
    })
}

/// Whether wildcard hosts count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// Only a service of that very host.
    Exact,
    /// Wildcards as well, the most specific first.
    Covering,
}

/// Finds a port of the service at a host that the client sees.
///
/// # Errors
/// When there is no such service, or it has no such port.
pub fn service_port(reader: &Reader<'_>, host: &str, port: u16, wildcards: Hosts) -> Result<Found, NotFound> {
    let mut host: Arc<str> = host.into();
    for _ in 0..MAX_ALIASES {
        let all = services(reader, &host, wildcards);
        if all.is_empty() {
            return Err(NotFound::Host);
        }
        // Another name for a service of the mesh is that service; for anything else it is a service outside.
        let alias = all.iter().find_map(|service| service.alias.clone());
        let alias = alias.filter(|alias| *alias != host && !services(reader, alias, Hosts::Exact).is_empty());
        let Some(alias) = alias else {
            let found = all.iter().find_map(|service| {
                Some(Found {
                    host: host.clone(),
                    port: service.port(port)?.clone(),
                    service: service.clone(),
                })
            });
            return found.ok_or(NotFound::Port);
        };
        host = alias;
    }
    Err(NotFound::Host)
}

/// The pod that has a host name of its own under a headless Service, on a port of the pod's.
fn of_hostname(reader: &Reader<'_>, host: &str, port: u16) -> Option<Target> {
    let (hostname, name, namespace) = hosts::pod_name(host, &reader.world.options().cluster_domain)?;
    let namespace = match &namespace {
        Some(namespace) => namespace,
        None => &**reader.client_namespace(),
    };
    let host = format!("{name}.{namespace}.svc.{}", reader.world.options().cluster_domain);
    services(reader, &host, Hosts::Exact).into_iter().find_map(|service| {
        reader.note(key::part(&host, 0, 1));
        let member = reader.world.registry.member_of_hostname(&service, &hostname)?;
        reader.note(key::workload(&member.workload.id));
        let Some(Address::Ip(address)) = member.address() else {
            return None;
        };
        let found = service
            .ports
            .iter()
            .find(|candidate| member.port(candidate) == Some(port))?;
        Some(Target::Workload {
            address: *address,
            port,
            service: Found {
                host: host.as_str().into(),
                port: found.clone(),
                service: service.clone(),
            },
            workload: member.workload,
        })
    })
}

/// Services at a host that the client sees, of one namespace: the client's own if it has one, else that of the oldest.
#[must_use]
pub fn services(reader: &Reader<'_>, host: &str, wildcards: Hosts) -> Vec<Arc<Service>> {
    for pattern in hosts::covering(host) {
        reader.note(key::service(&pattern));
        let all = reader.world.registry.services(&pattern);
        let visible = visible(reader, all);
        if !visible.is_empty() {
            return visible;
        }
        if wildcards == Hosts::Exact {
            break;
        }
    }
    Vec::new()
}

fn visible(reader: &Reader<'_>, all: &[Arc<Service>]) -> Vec<Arc<Service>> {
    let [first, rest @ ..] = all else {
        return Vec::new();
    };
    let one_namespace = rest.iter().all(|other| other.age.namespace == first.age.namespace);
    if one_namespace && all.iter().all(|service| service.export == crate::world::Export::All) {
        return all.to_vec();
    }
    let client = reader.client_namespace();
    let seen = |service: &&Arc<Service>| service.export.shows(client);
    let chosen = all
        .iter()
        .filter(seen)
        .find(|service| service.age.namespace == *client)
        .or_else(|| all.iter().find(seen));
    let Some(chosen) = chosen else {
        return Vec::new();
    };
    all.iter()
        .filter(seen)
        .filter(|service| service.age.namespace == chosen.age.namespace)
        .cloned()
        .collect()
}

fn at_address(reader: &Reader<'_>, address: IpAddr, port: u16) -> Option<Target> {
    reader.note(key::address(address));
    reader.note(key::ranges());
    let at: Vec<Arc<Service>> = reader.world.registry.services_at(address).cloned().collect();
    for service in &at {
        if service.export != crate::world::Export::All && !service.export.shows(reader.client_namespace()) {
            continue;
        }
        let (Some(port), Some(first)) = (service.port(port), service.hosts.first()) else {
            continue;
        };
        let named = service.hosts.iter().find(|host| !host.contains('*'));
        reader.note(key::service(named.unwrap_or(first)));
        return Some(Target::Service(Found {
            // Under a wildcard nobody said which host is meant: the address has to do.
            host: named.map_or_else(|| address.to_string().into(), Arc::clone),
            port: port.clone(),
            service: service.clone(),
        }));
    }
    reader
        .world
        .registry
        .members_at(address)
        .find_map(|(member, services)| {
            reader.note(key::workload(&member.workload.id));
            let service = serving(reader, &member, &services, port)?;
            Some(Target::Workload {
                workload: member.workload,
                address,
                port,
                service,
            })
        })
}

/// The oldest of the services that a workload serves at one of its own ports.
fn serving(reader: &Reader<'_>, member: &Member, services: &[Arc<Service>], port: u16) -> Option<Found> {
    services.iter().find_map(|service| {
        let found = service
            .ports
            .iter()
            .find(|candidate| member.port(candidate) == Some(port))?;
        let host = service.hosts.iter().find(|host| !host.contains('*'))?;
        reader.note(key::service(host));
        Some(Found {
            host: host.clone(),
            port: found.clone(),
            service: service.clone(),
        })
    })
}
