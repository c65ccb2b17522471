//! Services: ServiceEntry, distilled.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_api::crd::service_entry::{Location as EntryLocation, Resolution, ServiceEntrySpec};
use mesh_api::model::{Labels, Location, Protocol};

use super::{Age, Export, Workload, hosts};

/// A service of one ServiceEntry, under each of its hosts.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// The object.
    pub age: Age,
    /// Names, wildcards included; lower case, no trailing dot.
    pub hosts: Vec<Arc<str>>,
    /// Virtual addresses and ranges.
    pub addresses: Vec<IpNet>,
    /// Ports, in the order in which they are written.
    pub ports: Vec<ServicePort>,
    /// Inside the mesh or not.
    pub location: Location,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// Who sees it.
    pub export: Export,
    /// Names of which an endpoint's certificate must have one.
    pub subject_alt_names: Vec<Arc<str>>,
    /// Who serves it.
    pub members: Members,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Number that clients use.
    pub number: u16,
    /// Name that workloads map to a port of theirs.
    pub name: Arc<str>,
    /// Declared protocol.
    pub protocol: Protocol,
    /// Port of endpoints that do not say otherwise.
    pub target: u16,
}

/// Who serves a service.
#[derive(Clone, Debug, PartialEq)]
pub enum Members {
    /// Workloads of the service's namespace that have these labels.
    Selected(Labels),
    /// Endpoints that the object itself lists.
    Listed(Vec<Arc<Workload>>),
}

impl Service {
    /// Keeps of a ServiceEntry what the compiler asks for. Parts that cannot be read are left out: validation names them.
    #[must_use]
    pub fn distil(age: Age, spec: &ServiceEntrySpec) -> Self {
        let members = match &spec.workload_selector {
            Some(selector) if spec.endpoints.is_empty() => Members::Selected(shared_labels(&selector.labels)),
            _ => Members::Listed(
                spec.endpoints
                    .iter()
                    .map(|endpoint| Arc::new(Workload::listed(&age, endpoint)))
                    .collect(),
            ),
        };
        Self {
            hosts: spec.hosts.iter().map(|host| hosts::normal(host).into()).collect(),
            addresses: spec.addresses.iter().filter_map(|text| parse_range(text)).collect(),
            ports: spec
                .ports
                .iter()
                .filter_map(|port| {
                    let number = u16::try_from(port.number).ok().filter(|number| *number > 0)?;
                    Some(ServicePort {
                        number,
                        name: port.name.as_str().into(),
                        protocol: declared_protocol(port.protocol.as_deref(), &port.name, number),
                        target: port
                            .target_port
                            .and_then(|target| u16::try_from(target).ok())
                            .filter(|target| *target > 0)
                            .unwrap_or(number),
                    })
                })
                .collect(),
            location: match spec.location {
                Some(EntryLocation::MeshInternal) => Location::MeshInternal,
                Some(EntryLocation::MeshExternal) | None => Location::MeshExternal,
            },
            resolution: spec.resolution.unwrap_or(Resolution::None),
            export: Export::parse(&spec.export_to, &age.namespace),
            subject_alt_names: spec.subject_alt_names.iter().map(|name| name.as_str().into()).collect(),
            members,
            age,
        }
    }

    /// The port of a number.
    #[must_use]
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// Labels of the workloads that serve it, if they are selected.
    #[must_use]
    pub fn selector(&self) -> Option<&Labels> {
        match &self.members {
            Members::Selected(labels) => Some(labels),
            Members::Listed(_) => None,
        }
    }

    /// Whether a workload of the service's namespace serves it.
    #[must_use]
    pub fn selects(&self, workload: &Workload) -> bool {
        self.age.namespace == workload.id.namespace
            && self
                .selector()
                .is_some_and(|selector| has_labels(&workload.labels, selector))
    }
}

impl ServicePort {
    /// The port at which a workload serves this one.
    #[must_use]
    pub fn at(&self, workload: &Workload) -> u16 {
        workload.ports.get(&self.name).copied().unwrap_or(self.target)
    }
}

/// Whether `labels` has every entry of `wanted`.
#[must_use]
pub fn has_labels(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// Labels with shared texts.
#[must_use]
pub fn shared_labels(labels: &BTreeMap<String, String>) -> Labels {
    labels
        .iter()
        .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
        .collect()
}

/// An address or a range; host bits are cut off.
#[must_use]
pub fn parse_range(text: &str) -> Option<IpNet> {
    match text.parse::<IpAddr>() {
        Ok(address) => Some(IpNet::from(address)),
        Err(_) => text.parse::<IpNet>().ok().map(|range| range.trunc()),
    }
}

/// Protocol of a port: what is declared, else what its name begins with (`http-web`), else TCP on the well-known ports of
/// protocols whose server speaks first, else detected.
#[must_use]
pub fn declared_protocol(declared: Option<&str>, name: &str, number: u16) -> Protocol {
    const SERVER_FIRST: [u16; 4] = [25, 53, 3306, 27017];
    let known = |text: &str| -> Option<Protocol> {
        Some(match text.to_ascii_lowercase().as_str() {
            "http" => Protocol::Http,
            "http2" | "grpc-web" => Protocol::Http2,
            "grpc" => Protocol::Grpc,
            "https" | "tls" => Protocol::Tls,
            "tcp" | "mongo" | "redis" | "mysql" => Protocol::Tcp,
            _ => return None,
        })
    };
    if let Some(declared) = declared.filter(|text| !text.is_empty()) {
        if let Some(protocol) = known(declared) {
            return protocol;
        }
    } else {
        let by_name = if name.starts_with("grpc-web") {
            Some(Protocol::Http2)
        } else {
            known(name.split('-').next().unwrap_or_default())
        };
        if let Some(protocol) = by_name {
            return protocol;
        }
    }
    if SERVER_FIRST.contains(&number) {
        Protocol::Tcp
    } else {
        Protocol::Detect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_declared_named_well_known_or_detected() {
        let rows = [
            (Some("HTTP"), "", 80, Protocol::Http),
            (Some("HTTP2"), "tcp", 80, Protocol::Http2),
            (Some("GRPC"), "", 1, Protocol::Grpc),
            (Some("HTTPS"), "", 443, Protocol::Tls),
            (Some("TLS"), "", 443, Protocol::Tls),
            (Some("MONGO"), "", 27018, Protocol::Tcp),
            (Some("TCP"), "http", 80, Protocol::Tcp),
            (None, "http-web", 80, Protocol::Http),
            (None, "http2", 80, Protocol::Http2),
            (None, "grpc-web-x", 80, Protocol::Http2),
            (None, "tcp-db", 5000, Protocol::Tcp),
            (None, "web", 80, Protocol::Detect),
            (None, "https-a", 80, Protocol::Tls),
            (Some(""), "grpc", 80, Protocol::Grpc),
            (Some("WHAT"), "http", 80, Protocol::Detect),
            (None, "mail", 25, Protocol::Tcp),
            (None, "db", 3306, Protocol::Tcp),
            (None, "db", 27017, Protocol::Tcp),
            (None, "dns", 53, Protocol::Tcp),
            (None, "http", 3306, Protocol::Http),
        ];
        for (declared, name, number, expected) in rows {
            assert_eq!(
                declared_protocol(declared, name, number),
                expected,
                "{declared:?} {name} {number}"
            );
        }
    }
}
