//! [`Destination`] and [`Cluster`] to and from their messages.

use std::sync::Arc;

use super::field::{self, FieldError, each, optional, required};
use super::proto::{self, cluster::Endpoints};
use super::{route, traffic};
use crate::model::{Cluster, Destination, EndpointSource, Location, Missing};

pub(super) fn encode(destination: &Destination) -> proto::Destination {
    proto::Destination {
        service: Some(field::encode_service(&destination.service)),
        port: destination.port.into(),
        protocol: traffic::encode_protocol(destination.protocol),
        location: encode_location(destination.location),
        routes: destination.routes.iter().map(route::encode).collect(),
        tcp: destination.tcp.iter().map(route::encode_leg).collect(),
        clusters: destination
            .clusters
            .iter()
            .map(|cluster| encode_cluster(cluster))
            .collect(),
    }
}

pub(super) fn decode(destination: proto::Destination) -> Result<Destination, FieldError> {
    let count = destination.clusters.len();
    let tcp = if destination.tcp.is_empty() {
        Default::default()
    } else {
        route::decode_legs("tcp", destination.tcp, count)?
    };
    Ok(Destination {
        service: required("service", destination.service, field::decode_service)?,
        port: field::port("port", destination.port)?,
        protocol: traffic::decode_protocol(destination.protocol)?,
        location: decode_location(destination.location)?,
        routes: each("routes", destination.routes, |route| route::decode(route, count))?,
        tcp,
        clusters: each("clusters", destination.clusters, |cluster| {
            decode_cluster(cluster).map(Arc::new)
        })?,
    })
}

fn encode_cluster(cluster: &Cluster) -> proto::Cluster {
    proto::Cluster {
        service: Some(field::encode_service(&cluster.service)),
        port: cluster.port.into(),
        subset: field::owned(cluster.subset.as_ref()),
        selector: field::encode_labels(&cluster.selector),
        location: encode_location(cluster.location),
        protocol: traffic::encode_protocol(cluster.protocol),
        endpoints: Some(match &cluster.endpoints {
            EndpointSource::Slices(names) => Endpoints::Slices(proto::SliceNames {
                names: field::strings(names),
            }),
            EndpointSource::Passthrough => Endpoints::Passthrough(true),
            EndpointSource::Missing(missing) => Endpoints::Missing(
                match missing {
                    Missing::Host => proto::Missing::Host,
                    Missing::Port => proto::Missing::Port,
                    Missing::Subset => proto::Missing::Subset,
                    Missing::Tls => proto::Missing::Tls,
                }
                .into(),
            ),
        }),
        balancer: Some(traffic::encode_balancer(&cluster.balancer)),
        pool: Some(traffic::encode_pool(&cluster.pool)),
        outlier: cluster.outlier.as_ref().map(traffic::encode_outlier),
        retry_budget: cluster.retry_budget.as_ref().map(traffic::encode_budget),
        tls: Some(traffic::encode_tls(&cluster.tls)),
        subject_alt_names: field::strings(&cluster.subject_alt_names),
        origins: cluster.origins.iter().map(field::encode_object).collect(),
    }
}

fn decode_cluster(cluster: proto::Cluster) -> Result<Cluster, FieldError> {
    let endpoints = match cluster.endpoints {
        Some(Endpoints::Slices(slices)) => EndpointSource::Slices(field::shared_all(slices.names)),
        Some(Endpoints::Passthrough(_)) => EndpointSource::Passthrough,
        Some(Endpoints::Missing(missing)) => EndpointSource::Missing(match field::known("missing", missing)? {
            proto::Missing::Unspecified => return field::unspecified("missing"),
            proto::Missing::Host => Missing::Host,
            proto::Missing::Port => Missing::Port,
            proto::Missing::Subset => Missing::Subset,
            proto::Missing::Tls => Missing::Tls,
        }),
        None => return field::unspecified("endpoints"),
    };
    // A rule may name a host that is not there without naming a port.
    let port = match (&endpoints, cluster.port) {
        (EndpointSource::Missing(_), 0) => 0,
        (_, port) => field::port("port", port)?,
    };
    Ok(Cluster {
        service: required("service", cluster.service, field::decode_service)?,
        port,
        subset: field::shared(cluster.subset),
        selector: field::decode_labels(cluster.selector),
        location: decode_location(cluster.location)?,
        protocol: traffic::decode_protocol(cluster.protocol)?,
        endpoints,
        balancer: required("balancer", cluster.balancer, traffic::decode_balancer)?,
        pool: required("pool", cluster.pool, traffic::decode_pool)?,
        outlier: optional("outlier", cluster.outlier, traffic::decode_outlier)?,
        retry_budget: optional("retry_budget", cluster.retry_budget, traffic::decode_budget)?,
        tls: required("tls", cluster.tls, traffic::decode_tls)?,
        subject_alt_names: field::shared_all(cluster.subject_alt_names),
        origins: each("origins", cluster.origins, field::decode_object)?,
    })
}

fn encode_location(location: Location) -> i32 {
    match location {
        Location::MeshInternal => proto::Location::MeshInternal,
        Location::MeshExternal => proto::Location::MeshExternal,
    }
    .into()
}

fn decode_location(location: i32) -> Result<Location, FieldError> {
    match field::known("location", location)? {
        proto::Location::Unspecified => field::unspecified("location"),
        proto::Location::MeshInternal => Ok(Location::MeshInternal),
        proto::Location::MeshExternal => Ok(Location::MeshExternal),
    }
}
