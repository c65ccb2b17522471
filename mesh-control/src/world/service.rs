//! Services: Kubernetes' Service and Istio's ServiceEntry, distilled.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_api::crd::service_entry::{Location as EntryLocation, Resolution, ServiceEntrySpec};
use mesh_api::model::{Labels, Location, Protocol};

use super::workload::Origin;
use super::{Age, Export, Workload, hosts};
use crate::source::cluster::{self, ClusterKind};

/// Kind of Kubernetes' own services, as it stands in [`ServiceId`].
pub const KUBERNETES: &str = "Service";

/// Annotation of Services: who sees them.
const EXPORT_TO: &str = "networking.istio.io/exportTo";

/// A service of one object, under each of its hosts.
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
    /// The host that it is another name for, as ExternalName says.
    pub alias: Option<Arc<str>>,
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
    /// Port of the workloads.
    pub target: Target,
}

/// The port at which workloads serve a service's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The one that the workload has under the name of the service's port, else this number: ServiceEntry.
    NamedOr(u16),
    /// This number: Service.
    Number(u16),
    /// The one that the workload has under this name, or none: Service.
    Name(Arc<str>),
}

/// Which service is meant: an object's kind, namespace and name. A Service goes before a ServiceEntry.
pub type ServiceId = (&'static str, Arc<str>, Arc<str>);

/// Who serves a service.
#[derive(Clone, Debug, PartialEq)]
pub enum Members {
    /// Workloads of the service's namespace that have these labels.
    Selected(Labels),
    /// Endpoints that the object itself lists.
    Listed(Vec<Arc<Workload>>),
    /// Whom the Service's EndpointSlices name, and WorkloadEntries with the labels of its selector. Without selector none.
    Sliced(Labels),
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
                        target: Target::NamedOr(
                            port.target_port
                                .and_then(|target| u16::try_from(target).ok())
                                .filter(|target| *target > 0)
                                .unwrap_or(number),
                        ),
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
            alias: None,
            age,
        }
    }

    /// Keeps of a Service what the compiler asks for.
    #[must_use]
    pub fn of_cluster(object: &cluster::Service, domain: &str) -> Self {
        let age = Age::of_cluster(ClusterKind::Service, &object.metadata);
        let spec = &object.spec;
        let external = (spec.kind == "ExternalName").then(|| Arc::<str>::from(hosts::normal(&spec.external_name)));
        let addresses = spec.cluster_ips.iter().chain([&spec.cluster_ip]);
        let mut addresses: Vec<IpNet> = addresses.filter_map(|text| parse_range(text)).collect();
        addresses.sort();
        addresses.dedup();
        let export = object.metadata.annotations.get(EXPORT_TO).map_or("", String::as_str);
        let export: Vec<String> = export.split(',').map(|entry| entry.trim().to_owned()).collect();
        let export: Vec<String> = export.into_iter().filter(|entry| !entry.is_empty()).collect();
        Self {
            hosts: vec![format!("{}.{}.svc.{domain}", age.name, age.namespace).into()],
            addresses,
            ports: spec.ports.iter().filter_map(ServicePort::of_cluster).collect(),
            location: match external {
                Some(_) => Location::MeshExternal,
                None => Location::MeshInternal,
            },
            resolution: match external {
                Some(_) => Resolution::Dns,
                None => Resolution::Static,
            },
            export: Export::parse(&export, &age.namespace),
            subject_alt_names: Vec::new(),
            members: match &external {
                Some(name) => Members::Listed(vec![Arc::new(Workload::outside(&age, name))]),
                None => Members::Sliced(shared_labels(&spec.selector)),
            },
            alias: external,
            age,
        }
    }

    /// Which service it is.
    #[must_use]
    pub fn id(&self) -> ServiceId {
        (self.age.kind, self.age.namespace.clone(), self.age.name.clone())
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
            Members::Sliced(labels) if !labels.is_empty() => Some(labels),
            Members::Sliced(_) | Members::Listed(_) => None,
        }
    }

    /// Whether its endpoints are those that EndpointSlices name.
    #[must_use]
    pub fn is_sliced(&self) -> bool {
        matches!(self.members, Members::Sliced(_))
    }

    /// Whether a workload is an endpoint because of its labels: pods of a Service are endpoints because of slices.
    #[must_use]
    pub fn picks(&self, workload: &Workload) -> bool {
        let wanted = match workload.origin {
            Origin::Pod => workload.ready && !self.is_sliced(),
            Origin::Entry => true,
        };
        wanted && self.selects(workload)
    }

    /// Whether a workload of the service's namespace has the labels of those who serve it.
    #[must_use]
    pub fn selects(&self, workload: &Workload) -> bool {
        self.age.namespace == workload.id.namespace
            && self
                .selector()
                .is_some_and(|selector| has_labels(&workload.labels, selector))
    }
}

impl ServicePort {
    /// Ports that are not TCP are not the mesh's.
    fn of_cluster(port: &cluster::ServicePort) -> Option<Self> {
        if !matches!(port.protocol.as_str(), "" | "TCP") || port.port == 0 {
            return None;
        }
        Some(Self {
            number: port.port,
            name: port.name.as_str().into(),
            protocol: declared_protocol(port.app_protocol.as_deref(), &port.name, port.port),
            target: match &port.target_port {
                Some(cluster::TargetPort::Name(name)) => Target::Name(name.as_str().into()),
                Some(cluster::TargetPort::Number(number)) if *number > 0 => Target::Number(*number),
                Some(cluster::TargetPort::Number(_)) | None => Target::Number(port.port),
            },
        })
    }

    /// The port at which a workload serves this one, if it does.
    #[must_use]
    pub fn at(&self, workload: &Workload) -> Option<u16> {
        match &self.target {
            Target::NamedOr(number) => Some(workload.port(&self.name).unwrap_or(*number)),
            Target::Number(number) => Some(*number),
            Target::Name(name) => workload.port(name),
        }
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
            "http" | "kubernetes.io/ws" => Protocol::Http,
            "http2" | "grpc-web" | "kubernetes.io/h2c" => Protocol::Http2,
            "grpc" => Protocol::Grpc,
            "https" | "tls" | "kubernetes.io/wss" => Protocol::Tls,
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
            (Some("kubernetes.io/h2c"), "tcp", 80, Protocol::Http2),
            (Some("kubernetes.io/ws"), "", 80, Protocol::Http),
            (Some("kubernetes.io/wss"), "", 443, Protocol::Tls),
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
