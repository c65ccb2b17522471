//! ServiceEntry and WorkloadEntry: hosts, addresses, ports and endpoints.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Findings;
use super::text::{self, host, label, labels, wildcard_host};
use crate::crd::service_entry::{Resolution, ServiceEntrySpec};
use crate::crd::workload_entry::WorkloadEntrySpec;
use crate::source::FieldPath;

pub(super) fn check(spec: &ServiceEntrySpec, at: &FieldPath, findings: &mut Findings) {
    let resolution = spec.resolution.unwrap_or(Resolution::None);
    hosts(spec, resolution, at, findings);
    addresses(spec, resolution, at, findings);
    ports(spec, at, findings);
    if let Some(selector) = &spec.workload_selector {
        let at = at.field("workloadSelector");
        text::selector(&selector.labels, &at.field("labels"), findings);
        if !spec.endpoints.is_empty() {
            findings.error(
                at.clone(),
                "one-of",
                "workloadSelector cannot be set together with endpoints",
            );
        }
        if resolution == Resolution::None {
            findings.warning(
                at,
                "no-effect",
                "workloadSelector has no effect while resolution is NONE; use STATIC",
            );
        }
    }
    endpoints(spec, resolution, at, findings);
}

fn hosts(spec: &ServiceEntrySpec, resolution: Resolution, at: &FieldPath, findings: &mut Findings) {
    let at = at.field("hosts");
    if spec.hosts.is_empty() {
        findings.error(at.clone(), "missing-field", "the service needs at least one host");
    }
    for (index, name) in spec.hosts.iter().enumerate() {
        let at = at.index(index);
        if name == "*" {
            findings.error(at.clone(), "bad-value", "\"*\" alone is no service");
        } else {
            findings.test(at.clone(), wildcard_host(name));
        }
        let wildcard = name.starts_with('*');
        match resolution {
            Resolution::Dns | Resolution::DnsRoundRobin if wildcard && spec.endpoints.is_empty() => {
                findings.error(
                    at,
                    "bad-value",
                    "a wildcard cannot be resolved; name endpoints or use resolution NONE",
                );
            }
            Resolution::DynamicDns if !wildcard => {
                findings.error(at, "bad-value", "resolution DYNAMIC_DNS is for wildcards; use DNS");
            }
            _ if wildcard && name != "*" && !name.starts_with("*.") => {
                findings.warning(
                    at,
                    "bad-value",
                    "a wildcard should be a whole part of the name, as in \"*.example.com\"",
                );
            }
            _ => {}
        }
    }
    // Without HTTP or TLS nothing tells the hosts apart.
    let told_apart = |protocol: &str| {
        matches!(
            protocol.to_ascii_uppercase().as_str(),
            "HTTP" | "HTTP2" | "HTTPS" | "GRPC" | "GRPC-WEB" | "TLS" | "HTTP_PROXY" | "GRPC-WEB-TLS"
        )
    };
    if spec.hosts.len() > 1
        && resolution != Resolution::None
        && let Some(index) = spec
            .ports
            .iter()
            .position(|port| !told_apart(port.protocol.as_deref().unwrap_or_default()))
    {
        let message = "several hosts cannot share a port that is neither HTTP nor TLS: nothing tells them apart";
        findings.error(
            FieldPath::new("spec.ports").index(index).field("protocol"),
            "bad-value",
            message,
        );
    }
}

fn addresses(spec: &ServiceEntrySpec, resolution: Resolution, at: &FieldPath, findings: &mut Findings) {
    for (index, address) in spec.addresses.iter().enumerate() {
        let at = at.field("addresses").index(index);
        findings.test(at.clone(), text::cidr(address));
        if address.contains('/') && !matches!(resolution, Resolution::None | Resolution::Static) {
            findings.error(at, "bad-value", "ranges of addresses need resolution NONE or STATIC");
        }
    }
}

fn ports(spec: &ServiceEntrySpec, at: &FieldPath, findings: &mut Findings) {
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in spec.ports.iter().enumerate() {
        let at = at.field("ports").index(index);
        findings.test(at.field("number"), text::port(port.number));
        findings.test(at.field("name"), label(&port.name));
        let protocol = port.protocol.as_deref().unwrap_or_default();
        text::port_protocol(protocol, &at.field("protocol"), findings);
        if let Some(target) = port.target_port {
            findings.test(at.field("targetPort"), text::port(target));
        }
        if !numbers.insert(port.number) {
            findings.error(
                at.field("number"),
                "bad-value",
                format!("there is a port {} already", port.number),
            );
        }
        if !names.insert(port.name.as_str()) {
            findings.error(
                at.field("name"),
                "bad-value",
                format!("there is a port named {:?} already", port.name),
            );
        }
    }
}

fn endpoints(spec: &ServiceEntrySpec, resolution: Resolution, at: &FieldPath, findings: &mut Findings) {
    let at = at.field("endpoints");
    if !spec.endpoints.is_empty() && matches!(resolution, Resolution::None | Resolution::DynamicDns) {
        let message = "endpoints need resolution STATIC (addresses) or DNS (names)";
        findings.error(at.clone(), "bad-value", message);
    }
    if resolution == Resolution::DnsRoundRobin && spec.endpoints.len() > 1 {
        findings.error(
            at.index(1),
            "bad-value",
            "resolution DNS_ROUND_ROBIN takes one endpoint at most",
        );
    }
    for (index, endpoint) in spec.endpoints.iter().enumerate() {
        let at = at.index(index);
        check_workload(endpoint, &at, findings);
        let address = endpoint.address.as_deref().unwrap_or_default();
        let literal = address.is_empty() || address.starts_with("unix://") || address.parse::<IpAddr>().is_ok();
        if resolution == Resolution::Static && !literal {
            let message = format!("resolution STATIC takes IP addresses, and {address:?} is none; use DNS for names");
            findings.error(at.field("address"), "bad-value", message);
        }
        for name in endpoint
            .ports
            .keys()
            .filter(|name| spec.ports.iter().all(|port| port.name != **name))
        {
            let message = format!("the service has no port named {name:?}");
            findings.error(at.field("ports").field(name), "bad-value", message);
        }
    }
}

/// A workload, as an object of its own or as endpoint of a service.
pub(super) fn check_workload(spec: &WorkloadEntrySpec, at: &FieldPath, findings: &mut Findings) {
    let address = spec.address.as_deref().unwrap_or_default();
    if address.is_empty() {
        match spec.network.as_deref() {
            None | Some("") => findings.error(at.field("address"), "missing-field", "the workload needs an address"),
            Some(network) => {
                let message = format!("without address the workload stands for the gateway of network {network:?}");
                findings.warning(at.field("address"), "missing-field", message);
            }
        }
    } else if let Some(path) = address.strip_prefix("unix://") {
        if !(path.starts_with('/') || path.starts_with('@')) || path.ends_with('/') {
            findings.error(
                at.field("address"),
                "bad-value",
                format!("{address:?} is no absolute path of a socket"),
            );
        }
        if !spec.ports.is_empty() {
            findings.error(at.field("ports"), "bad-value", "a Unix socket has no ports");
        }
        let message = "not supported yet: a Unix socket as address; the workload gets no traffic";
        findings.warning(at.field("address"), "not-supported-yet", message);
    } else if address.parse::<IpAddr>().is_err() && host(address).is_err() {
        let message = format!("{address:?} is neither an IP address nor a host name");
        findings.error(at.field("address"), "bad-value", message);
    }
    for (name, number) in &spec.ports {
        let at = at.field("ports").field(name);
        findings.test(at.clone(), label(name));
        findings.test(at, text::port(*number));
    }
    labels(&spec.labels, &at.field("labels"), findings);
}
