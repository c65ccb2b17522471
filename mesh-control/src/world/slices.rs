//! EndpointSlices: who serves a Kubernetes Service, joined over all slices of the Service.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::workload::{Address, parse_address};
use super::{Age, ServicePort, Workload};
use crate::source::cluster::{self, ClusterKind};

/// One who serves a Service, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// What it is called among those who serve: the Pod's name, else its address.
    pub name: Arc<str>,
    /// What is known of it, where it is no Pod.
    pub unknown: Option<Arc<Workload>>,
    /// Where it is.
    pub address: Address,
    /// Its ports by the names of the Service's.
    pub ports: Ports,
    /// Its name under the Service's.
    pub hostname: Option<Arc<str>>,
    condition: Condition,
}

/// Port numbers by the names of a Service's ports.
pub type Ports = Arc<[(Arc<str>, u16)]>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    /// It takes traffic.
    Ready,
    /// It takes traffic until it ends, if nobody else does.
    Ending,
}

/// An EndpointSlice, distilled: those of its endpoints that take traffic.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// Name of the slice.
    pub name: Arc<str>,
    family: Family,
    places: Vec<Arc<Place>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
    Names,
}

/// Which addresses a Service prefers, where its pods have two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefer {
    /// IPv4.
    #[default]
    V4,
    /// IPv6.
    V6,
}

impl Prefer {
    /// The first of a Service's families.
    #[must_use]
    pub fn of(service: &cluster::Service) -> Self {
        let named = service.spec.ip_families.first().map(String::as_str);
        match named {
            Some("IPv6") => Self::V6,
            None if service
                .spec
                .cluster_ip
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_ipv6()) =>
            {
                Self::V6
            }
            Some(_) | None => Self::V4,
        }
    }
}

impl Slice {
    /// Keeps of an EndpointSlice what the compiler asks for.
    #[must_use]
    pub fn distil(object: &cluster::EndpointSlice) -> Self {
        let slice = Age::of_cluster(ClusterKind::EndpointSlice, &object.metadata);
        let service = Age {
            name: object.service().unwrap_or_default().into(),
            ..slice.clone()
        };
        let ports: Ports = object
            .ports
            .iter()
            .flatten()
            .filter(|port| matches!(port.protocol.as_deref(), None | Some("" | "TCP")))
            .filter_map(|port| {
                let number = port.port.filter(|number| *number > 0)?;
                Some((port.name.as_deref().unwrap_or_default().into(), number))
            })
            .collect();
        let endpoints = object.endpoints.iter().flatten();
        Self {
            name: slice.name.clone(),
            family: match object.address_type.as_str() {
                "IPv6" => Family::V6,
                "FQDN" => Family::Names,
                _ => Family::V4,
            },
            places: endpoints
                .filter_map(|endpoint| Place::distil(&service, endpoint, &ports))
                .map(Arc::new)
                .collect(),
        }
    }
}

impl Place {
    fn distil(service: &Age, endpoint: &cluster::Endpoint, ports: &Ports) -> Option<Self> {
        let ready = endpoint.conditions.ready.unwrap_or(true);
        let ending = endpoint.conditions.serving.unwrap_or(ready) && endpoint.conditions.terminating == Some(true);
        let condition = match (ready, ending) {
            (true, _) => Condition::Ready,
            (false, true) => Condition::Ending,
            (false, false) => return None,
        };
        let text = endpoint.addresses.first()?;
        let address = parse_address(text)?;
        let pod = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod");
        let (name, unknown): (Arc<str>, _) = match pod {
            Some(pod) => (pod.name.as_str().into(), None),
            None => {
                let name: Arc<str> = text.as_str().into();
                let unknown = Workload::unknown(service, name.clone(), address.clone(), endpoint.zone.as_deref());
                (name, Some(Arc::new(unknown)))
            }
        };
        Some(Self {
            name,
            unknown,
            address,
            ports: ports.clone(),
            hostname: endpoint.hostname.as_deref().map(Arc::from),
            condition,
        })
    }

    /// The port at which it serves one of the Service's.
    #[must_use]
    pub fn port(&self, port: &ServicePort) -> Option<u16> {
        let named = self.ports.iter().find(|(name, _)| *name == port.name);
        named.map(|(_, number)| *number)
    }
}

/// All slices of a Service, and what they say together.
#[derive(Clone, Debug, Default)]
pub struct Slices {
    slices: BTreeMap<Arc<str>, Slice>,
    prefer: Prefer,
    places: Places,
}

/// Those who serve, by name.
pub type Places = BTreeMap<Arc<str>, Arc<Place>>;

impl Slices {
    /// Takes in a slice; gives back who served before.
    pub fn put(&mut self, slice: Slice) -> Places {
        self.slices.insert(slice.name.clone(), slice);
        self.settle()
    }

    /// Forgets a slice; gives back who served before.
    pub fn remove(&mut self, name: &str) -> Places {
        self.slices.remove(name);
        self.settle()
    }

    /// Which addresses count where there are two; gives back who served before.
    pub fn prefer(&mut self, prefer: Prefer) -> Places {
        self.prefer = prefer;
        self.settle()
    }

    /// Which addresses count where there are two.
    #[must_use]
    pub fn preference(&self) -> Prefer {
        self.prefer
    }

    /// Whether there is no slice.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// Those who serve: who is ready, else who is about to end.
    #[must_use]
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// One that has a host name of its own.
    #[must_use]
    pub fn hostname(&self, hostname: &str) -> Option<&Arc<Place>> {
        let is = |place: &&Arc<Place>| place.hostname.as_deref() == Some(hostname);
        // Pods of a StatefulSet are called as their hosts are.
        let likely = self.places.get(hostname).filter(is);
        likely.or_else(|| self.places.values().find(is))
    }

    fn settle(&mut self) -> Places {
        let mut slices: Vec<&Slice> = self.slices.values().collect();
        slices.sort_by_key(|slice| match (slice.family, self.prefer) {
            (Family::V4, Prefer::V4) | (Family::V6, Prefer::V6) => 0,
            (Family::V4 | Family::V6, _) => 1,
            (Family::Names, _) => 2,
        });
        let of = |condition: Condition| {
            let mut places = Places::new();
            let all = slices.iter().flat_map(|slice| &slice.places);
            for place in all.filter(|place| place.condition == condition) {
                places.entry(place.name.clone()).or_insert_with(|| place.clone());
            }
            places
        };
        let mut places = of(Condition::Ready);
        if places.is_empty() {
            places = of(Condition::Ending);
        }
        std::mem::replace(&mut self.places, places)
    }
}
