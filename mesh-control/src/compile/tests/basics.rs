//! A destination without policy, endpoint slices, inbound, and the mesh's settings.

use mesh_api::model::{ClientTls, EndpointSource, Location, MtlsMode, OutboundPolicy, Protocol, RetryPolicy};

use super::*;

#[test]
fn a_service_without_policy_has_a_default_route_with_istios_retries() {
    let mesh = Mesh::shop("");
    let destination = mesh.destination("reviews:80");
    assert_eq!(destination.service.host.as_str(), "reviews.default.svc.cluster.local");
    assert_eq!(&*destination.service.name, "reviews");
    assert_eq!(&*destination.service.namespace, "default");
    assert_eq!(destination.protocol, Protocol::Http);
    assert_eq!(destination.location, Location::MeshInternal);
    let [route] = destination.routes.as_slice() else {
        panic!("{:?}", destination.routes);
    };
    assert_eq!(&*route.name, "default");
    assert_eq!(route.origin, None);
    assert!(route.matches.is_empty());
    assert_eq!(forward(route).retry, Some(RetryPolicy::istio_default()));
    assert_eq!(forward(route).timeout, None);
    assert_eq!(
        legs(&destination, route),
        [("outbound|80||reviews.default.svc.cluster.local".to_owned(), 1)]
    );
    assert_eq!(destination.clusters[0].tls, ClientTls::Auto);
    assert_eq!(
        mesh.endpoints(&destination.clusters[0]),
        ["127.0.1.1:9080", "127.0.1.2:9080"]
    );
}

#[test]
fn endpoints_know_their_workload() {
    let mesh = Mesh::shop("");
    let destination = mesh.destination("reviews:9080");
    let EndpointSource::Slices(names) = &destination.clusters[0].endpoints else {
        panic!("{:?}", destination.clusters);
    };
    let slice = mesh.slice(&names[0]);
    let endpoint = &slice.endpoints[0];
    assert!(endpoint.mutual_tls);
    assert_eq!(&*endpoint.workload.name, "reviews-v1");
    assert_eq!(
        endpoint.workload.identity.as_ref().unwrap().as_str(),
        "spiffe://cluster.local/ns/default/sa/reviews"
    );
    assert_eq!(endpoint.workload.version(), "v1");
    assert_eq!(&*endpoint.workload.cluster, "Kubernetes");
}

#[test]
fn inbound_has_the_ports_of_services_that_select_the_workload() {
    let mesh = Mesh::shop("");
    let inbound = mesh.inbound("reviews-v1.default");
    assert_eq!(inbound.default_mtls, MtlsMode::Permissive);
    let [port] = inbound.ports.as_slice() else {
        panic!("{:?}", inbound.ports);
    };
    assert_eq!(
        (port.port, port.protocol, port.mtls),
        (9080, Protocol::Http, MtlsMode::Permissive)
    );
    assert_eq!(&*port.services[0].name, "reviews");
    assert_eq!(port.services.len(), 1);
    assert!(inbound.authorization.is_empty());
}

#[test]
fn settings_have_istios_defaults_and_own_what_is_declared() {
    let mesh = Mesh::shop("");
    let settings = mesh.with_reader("client.default", super::super::settings);
    assert_eq!(settings.trust_domain.as_str(), "cluster.local");
    assert_eq!(settings.outbound_policy, OutboundPolicy::AllowAny);
    assert_eq!(settings.access_log, None);
    assert_eq!(settings.tracing, None);
    for host in [
        "reviews",
        "reviews.default",
        "reviews.default.svc",
        "reviews.default.svc.cluster.local",
        "reviews.default.svc.cluster.local.",
    ] {
        assert!(settings.owned.has_host(host), "{host}");
    }
    assert!(!settings.owned.has_host("example.com"));
    assert!(settings.owned.has_address("127.0.1.2".parse().unwrap()));
    assert!(!settings.owned.has_address("127.0.1.3".parse().unwrap()));
    let bytes = mesh_api::wire::encode_mesh(&settings);
    assert_eq!(mesh_api::wire::decode_mesh(&bytes).unwrap(), settings);
}
