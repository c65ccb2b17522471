//! VirtualService: hosts and gateways, and the rules for TLS and TCP. Rules for HTTP are judged in `http_route`.

use std::collections::BTreeMap;

use super::text::{self, destination, is_label, labels, wildcard_host};
use super::{Findings, http_route};
use crate::crd::virtual_service::{RouteDestination, TcpRoute, TlsRoute, VirtualServiceSpec};
use crate::source::FieldPath;

pub(super) fn check(spec: &VirtualServiceSpec, at: &FieldPath, findings: &mut Findings) {
    hosts(spec, at, findings);
    for (index, gateway) in spec.gateways.iter().enumerate() {
        gateway_name(gateway, &at.field("gateways").index(index), findings);
    }
    if spec.http.is_empty() && spec.tls.is_empty() && spec.tcp.is_empty() {
        findings.error(at.clone(), "missing-field", "one of http, tls and tcp must have a rule");
    }
    if spec.hosts.is_empty() {
        for (name, is_empty) in [
            ("gateways", spec.gateways.is_empty()),
            ("tls", spec.tls.is_empty()),
            ("tcp", spec.tcp.is_empty()),
        ] {
            if !is_empty {
                let message = format!("{name} needs hosts, and the object has none");
                findings.error(at.field(name), "missing-field", message);
            }
        }
    }
    let in_mesh = is_in_mesh(spec);
    for (index, route) in spec.http.iter().enumerate() {
        http_route::check(route, in_mesh, &at.field("http").index(index), findings);
    }
    for (index, route) in spec.tls.iter().enumerate() {
        tls_route(route, &at.field("tls").index(index), findings);
    }
    for (index, route) in spec.tcp.iter().enumerate() {
        tcp_route(route, &at.field("tcp").index(index), findings);
    }
}

/// Whether sidecars apply the object, as opposed to gateways only.
fn is_in_mesh(spec: &VirtualServiceSpec) -> bool {
    spec.gateways.is_empty() || spec.gateways.iter().any(|gateway| gateway == "mesh")
}

fn hosts(spec: &VirtualServiceSpec, at: &FieldPath, findings: &mut Findings) {
    let at = at.field("hosts");
    for (index, host) in spec.hosts.iter().enumerate() {
        let at = at.index(index);
        if host.parse::<std::net::IpAddr>().is_err() {
            findings.test(at.clone(), wildcard_host(host));
        }
        if host == "*" && is_in_mesh(spec) {
            findings.error(
                at.clone(),
                "bad-value",
                "\"*\" alone is for gateways; sidecars need a name",
            );
        }
        if let Some(other) = spec.hosts[..index]
            .iter()
            .find(|o| text::covers(o, host) || text::covers(host, o))
        {
            findings.error(
                at,
                "bad-value",
                format!("{host:?} overlaps with {other:?} in the same object"),
            );
        }
    }
}

/// `mesh`, a name in the own namespace, or `namespace/name`.
pub(super) fn gateway_name(name: &str, at: &FieldPath, findings: &mut Findings) {
    let valid = match name.split_once('/') {
        Some((namespace, name)) => is_label(namespace) && is_label(name),
        None => text::host(name).is_ok(),
    };
    if !valid {
        findings.error(
            at.clone(),
            "bad-value",
            format!("{name:?} is no gateway; write \"mesh\" or \"namespace/name\""),
        );
    }
}

/// A match that names gateways does not look at who asks.
pub(super) fn beside_gateways(
    gateways: &[String],
    labels: &BTreeMap<String, String>,
    namespace: Option<&str>,
    at: &FieldPath,
    findings: &mut Findings,
) {
    let namespace = namespace.is_some_and(|namespace| !namespace.is_empty());
    for (name, set) in [("sourceLabels", !labels.is_empty()), ("sourceNamespace", namespace)] {
        if set && !gateways.is_empty() {
            let message = format!("{name} has no effect beside gateways, here as in Istio");
            findings.warning(at.field(name), "no-effect", message);
        }
    }
}

fn tls_route(route: &TlsRoute, at: &FieldPath, findings: &mut Findings) {
    if route.matches.is_empty() {
        findings.error(
            at.field("match"),
            "missing-field",
            "a rule for TLS needs at least one match",
        );
    }
    for (index, m) in route.matches.iter().enumerate() {
        let at = at.field("match").index(index);
        if m.sni_hosts.is_empty() {
            findings.error(
                at.field("sniHosts"),
                "missing-field",
                "a match for TLS needs at least one server name",
            );
        }
        for (index, host) in m.sni_hosts.iter().enumerate() {
            findings.test(at.field("sniHosts").index(index), wildcard_host(host));
        }
        level_4(&m.destination_subnets, m.port, &m.gateways, &at, findings);
        labels(&m.source_labels, &at.field("sourceLabels"), findings);
    }
    destinations(&route.route, at, findings);
}

fn tcp_route(route: &TcpRoute, at: &FieldPath, findings: &mut Findings) {
    for (index, m) in route.matches.iter().enumerate() {
        let at = at.field("match").index(index);
        level_4(&m.destination_subnets, m.port, &m.gateways, &at, findings);
        labels(&m.source_labels, &at.field("sourceLabels"), findings);
        beside_gateways(
            &m.gateways,
            &m.source_labels,
            m.source_namespace.as_deref(),
            &at,
            findings,
        );
        if let Some(subnet) = &m.source_subnet {
            findings.test(at.field("sourceSubnet"), text::cidr(subnet));
        }
    }
    destinations(&route.route, at, findings);
}

fn level_4(subnets: &[String], port: Option<u32>, gateways: &[String], at: &FieldPath, findings: &mut Findings) {
    for (index, subnet) in subnets.iter().enumerate() {
        findings.test(at.field("destinationSubnets").index(index), text::cidr(subnet));
    }
    if let Some(port) = port {
        findings.test(at.field("port"), text::port(port));
    }
    for (index, gateway) in gateways.iter().enumerate() {
        gateway_name(gateway, &at.field("gateways").index(index), findings);
    }
}

fn destinations(routes: &[RouteDestination], at: &FieldPath, findings: &mut Findings) {
    let at = at.field("route");
    if routes.is_empty() {
        findings.error(at.clone(), "missing-field", "the rule has no destination");
    }
    for (index, route) in routes.iter().enumerate() {
        destination(&route.destination, &at.index(index).field("destination"), findings);
    }
    weights(routes.iter().map(|route| route.weight), &at, findings);
}

/// Shares of several destinations: none negative, and not all zero.
pub(super) fn weights(weights: impl Iterator<Item = Option<i32>>, at: &FieldPath, findings: &mut Findings) {
    let (mut count, mut total) = (0, 0i64);
    for (index, weight) in weights.enumerate() {
        let weight = weight.unwrap_or(0);
        if weight < 0 {
            let message = format!("the weight {weight} is negative");
            findings.error(at.index(index).field("weight"), "bad-value", message);
        }
        count += 1;
        total += i64::from(weight);
    }
    if count > 1 && total == 0 {
        findings.error(
            at.clone(),
            "bad-value",
            "several destinations need weights, and all of these are 0",
        );
    }
}
