//! A destination: routes, clusters and policy towards one service port, for one view of clients.

use std::sync::Arc;

use mesh_api::model::{
    Destination, EndpointSource, HeaderOps, HttpRoute, Location, Protocol, ServiceRef, WeightedCluster,
};
use smallvec::{SmallVec, smallvec};

use super::cluster::Clusters;
use super::endpoints::{Part, SliceName, credit_service};
use super::lookup::{Found, Target, reference};
use super::{Reader, matches, route, routing};
use crate::world::{VirtualService, key};

/// Compiles what a target is to the reader's client; `None` when its host is not a host name.
#[must_use]
pub fn destination(reader: &Reader<'_>, target: &Target) -> Option<Destination> {
    // The target was found by facts that are the asker's; what is compiled of it depends on the objects themselves.
    if let Target::Service(found) | Target::Workload { service: found, .. } = target {
        credit_service(reader, &found.service);
        for host in &found.service.hosts {
            reader.note(key::service(host));
        }
    }
    match target {
        Target::Service(found) => of_service(reader, found),
        Target::Rules { host, port } => of_rules(reader, host, *port),
        Target::Workload {
            workload,
            port,
            service,
            ..
        } => {
            reader.note(key::workload(&workload.id));
            let slice = SliceName {
                host: service.host.clone(),
                port: service.port.number,
                namespace: service.service.age.namespace.clone(),
                part: Part::Workload(workload.id.name.clone()),
            };
            let mut clusters = Clusters::new(reader);
            let source = EndpointSource::Slices(vec![slice.to_string().into()]);
            let cluster = clusters.of_service(service, Some(source))?;
            Some(Destination {
                service: service.reference(&reader.world.options().cluster_domain)?,
                port: *port,
                protocol: service.port.protocol,
                location: service.service.location,
                routes: http_routes(service.port.protocol, || {
                    vec![route::default_route(&mut clusters, cluster)]
                }),
                tcp: whole(cluster),
                clusters: clusters.finish(),
            })
        }
    }
}

/// The canonical name of a target without its view: `<host>:<port>`.
#[must_use]
pub fn canonical(target: &Target) -> String {
    match target {
        Target::Service(found) => format!("{}:{}", found.host, found.port.number),
        Target::Rules { host, port } => format!("{host}:{port}"),
        Target::Workload { address, port, .. } => std::net::SocketAddr::new(*address, *port).to_string(),
    }
}

fn of_service(reader: &Reader<'_>, found: &Found) -> Option<Destination> {
    let port = found.port.number;
    let mut clusters = Clusters::new(reader);
    let own = clusters.of_service(found, None)?;
    let object = routing::virtual_service(reader, &found.host);
    let routes = http_routes(found.port.protocol, || match &object {
        Some(object) if !object.http.is_empty() => route::routes(reader, object, port, &mut clusters),
        _ => vec![route::default_route(&mut clusters, own)],
    });
    let tcp = object
        .as_ref()
        .and_then(|object| tcp_legs(reader, object, port, &mut clusters))
        .unwrap_or_else(|| whole(own));
    Some(Destination {
        service: found.reference(&reader.world.options().cluster_domain)?,
        port,
        protocol: found.port.protocol,
        location: found.service.location,
        routes,
        tcp,
        clusters: clusters.finish(),
    })
}

/// A host that only a VirtualService knows.
fn of_rules(reader: &Reader<'_>, host: &str, port: u16) -> Option<Destination> {
    let object = routing::virtual_service(reader, host)?;
    let mut clusters = Clusters::new(reader);
    let routes = route::routes(reader, &object, port, &mut clusters);
    let service: ServiceRef = reference(host, &object.age.namespace, &reader.world.options().cluster_domain)?;
    Some(Destination {
        service,
        port,
        protocol: Protocol::Http,
        location: Location::MeshInternal,
        routes,
        tcp: SmallVec::new(),
        clusters: clusters.finish(),
    })
}

fn http_routes(protocol: Protocol, routes: impl FnOnce() -> Vec<HttpRoute>) -> Vec<HttpRoute> {
    match protocol {
        Protocol::Tcp | Protocol::Tls => Vec::new(),
        Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::Detect => routes(),
    }
}

fn whole(cluster: usize) -> SmallVec<[WeightedCluster; 1]> {
    smallvec![WeightedCluster {
        cluster,
        weight: 1,
        headers: HeaderOps::default(),
    }]
}

/// Where the first TCP rule for this client and port sends connections.
fn tcp_legs(
    reader: &Reader<'_>,
    object: &Arc<VirtualService>,
    port: u16,
    clusters: &mut Clusters<'_, '_>,
) -> Option<SmallVec<[WeightedCluster; 1]>> {
    let rule = object.tcp.iter().find(|rule| {
        rule.matches.is_empty()
            || rule
                .matches
                .iter()
                .any(|entry| matches::concerns_tcp(reader, entry, port))
    })?;
    let single = rule.route.len() == 1;
    let mut legs = SmallVec::new();
    for leg in &rule.route {
        let weight = leg.weight.and_then(|weight| u32::try_from(weight).ok()).unwrap_or(0);
        if single || weight > 0 {
            legs.push(WeightedCluster {
                cluster: clusters.of_destination(&leg.destination, port, &object.age.namespace)?,
                weight: if single { 1 } else { weight },
                headers: HeaderOps::default(),
            });
        }
    }
    (!legs.is_empty()).then_some(legs)
}
