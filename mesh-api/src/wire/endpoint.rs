//! [`Workload`] and [`EndpointSlice`] to and from their messages.
//!
//! Replicas of a deployment are the same workload for policy and metrics, and workloads share most of their texts:
//! a slice writes each text and each workload once and refers to them by number.

use std::collections::HashMap;
use std::sync::Arc;

use super::field::{self, FieldError, InField, each};
use super::proto::{self, endpoint::Address};
use super::text::{decode_address, encode_address};
use crate::model::{Endpoint, EndpointAddress, EndpointSlice, Health, Labels, Locality, Workload};

pub(super) fn encode_workload(workload: &Workload) -> proto::Workload {
    proto::Workload {
        name: workload.name.to_string(),
        namespace: workload.namespace.to_string(),
        identity: workload.identity.as_ref().map(ToString::to_string).unwrap_or_default(),
        labels: field::encode_labels(&workload.labels),
        cluster: workload.cluster.to_string(),
        region: workload.locality.region.to_string(),
        zone: workload.locality.zone.to_string(),
        subzone: workload.locality.subzone.to_string(),
    }
}

pub(super) fn decode_workload(workload: proto::Workload) -> Result<Workload, FieldError> {
    Ok(Workload {
        name: workload.name.into(),
        namespace: workload.namespace.into(),
        identity: match workload.identity.as_str() {
            "" => None,
            uri => Some(uri.parse().field("identity")?),
        },
        labels: field::decode_labels(workload.labels),
        cluster: workload.cluster.into(),
        locality: Locality {
            region: workload.region.into(),
            zone: workload.zone.into(),
            subzone: workload.subzone.into(),
        },
    })
}

pub(super) fn encode_slice(slice: &EndpointSlice) -> proto::EndpointSlice {
    let mut interner = Interner::default();
    let mut workloads = Vec::new();
    let mut numbers: HashMap<proto::InternedWorkload, u32> = HashMap::new();
    let endpoints = slice
        .endpoints
        .iter()
        .map(|endpoint| {
            let workload = interner.workload(&endpoint.workload);
            let number = *numbers.entry(workload).or_insert_with_key(|workload| {
                workloads.push(workload.clone());
                number_of(workloads.len()) - 1
            });
            proto::Endpoint {
                address: Some(match &endpoint.address {
                    EndpointAddress::Ip(address) => Address::Ip(encode_address(*address)),
                    EndpointAddress::Name(name) => Address::Name(name.to_string()),
                    EndpointAddress::NameRoundRobin(name) => Address::NameRoundRobin(name.to_string()),
                }),
                port: endpoint.port.into(),
                workload: number,
                weight: endpoint.weight,
                mutual_tls: endpoint.mutual_tls,
                health: match endpoint.health {
                    Health::Healthy => proto::Health::Healthy,
                    Health::Draining => proto::Health::Draining,
                    Health::Unhealthy => proto::Health::Unhealthy,
                }
                .into(),
            }
        })
        .collect();
    proto::EndpointSlice {
        strings: interner.strings,
        workloads,
        endpoints,
    }
}

pub(super) fn decode_slice(slice: proto::EndpointSlice) -> Result<EndpointSlice, FieldError> {
    let strings = Strings(field::shared_all(slice.strings));
    let workloads: Vec<Arc<Workload>> = each("workloads", slice.workloads, |workload| {
        strings.workload(&workload).map(Arc::new)
    })?;
    let endpoints = each("endpoints", slice.endpoints, |endpoint| {
        decode_endpoint(endpoint, &workloads)
    })?;
    Ok(EndpointSlice { endpoints })
}

fn decode_endpoint(endpoint: proto::Endpoint, workloads: &[Arc<Workload>]) -> Result<Endpoint, FieldError> {
    if endpoint.weight == 0 {
        return Err(FieldError::new("weight", "0: expected at least 1"));
    }
    let name = |field: &str, name: String| match name.as_str() {
        "" => Err(FieldError::new(field, "is empty")),
        name => Ok(Arc::from(name)),
    };
    Ok(Endpoint {
        address: match endpoint.address {
            Some(Address::Ip(bytes)) => EndpointAddress::Ip(decode_address("ip", &bytes)?),
            Some(Address::Name(text)) => EndpointAddress::Name(name("name", text)?),
            Some(Address::NameRoundRobin(text)) => EndpointAddress::NameRoundRobin(name("name_round_robin", text)?),
            None => return field::unspecified("address"),
        },
        port: field::port("port", endpoint.port)?,
        workload: usize::try_from(endpoint.workload)
            .ok()
            .and_then(|index| workloads.get(index))
            .ok_or_else(|| {
                let (number, count) = (endpoint.workload, workloads.len());
                FieldError::new("workload", format_args!("{number}: the slice has {count} workloads"))
            })?
            .clone(),
        weight: endpoint.weight,
        mutual_tls: endpoint.mutual_tls,
        health: match field::known("health", endpoint.health)? {
            proto::Health::Unspecified => return field::unspecified("health"),
            proto::Health::Healthy => Health::Healthy,
            proto::Health::Draining => Health::Draining,
            proto::Health::Unhealthy => Health::Unhealthy,
        },
    })
}

/// Numbers of texts, in order of first use; 0 is the empty text.
#[derive(Default)]
struct Interner {
    strings: Vec<String>,
    numbers: HashMap<String, u32>,
}

impl Interner {
    fn number(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        self.strings.push(text.to_owned());
        let number = number_of(self.strings.len());
        self.numbers.insert(text.to_owned(), number);
        number
    }

    fn workload(&mut self, workload: &Workload) -> proto::InternedWorkload {
        proto::InternedWorkload {
            name: self.number(&workload.name),
            namespace: self.number(&workload.namespace),
            identity: workload.identity.as_ref().map_or(0, |id| self.number(id.as_str())),
            labels: workload
                .labels
                .iter()
                .flat_map(|(key, value)| [self.number(key), self.number(value)])
                .collect(),
            cluster: self.number(&workload.cluster),
            region: self.number(&workload.locality.region),
            zone: self.number(&workload.locality.zone),
            subzone: self.number(&workload.locality.subzone),
        }
    }
}

/// A slice of four billion different texts is beyond any message limit.
fn number_of(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// The texts of a slice, by number.
struct Strings(Vec<Arc<str>>);

impl Strings {
    fn get(&self, field: &str, number: u32) -> Result<Arc<str>, FieldError> {
        let Some(index) = number.checked_sub(1) else {
            return Ok(Arc::default());
        };
        let text = usize::try_from(index).ok().and_then(|index| self.0.get(index));
        text.cloned().ok_or_else(|| {
            let count = self.0.len();
            FieldError::new(field, format_args!("string {number}: the slice has {count}"))
        })
    }

    fn workload(&self, workload: &proto::InternedWorkload) -> Result<Workload, FieldError> {
        let (pairs, rest) = workload.labels.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(FieldError::new("labels", "a key without a value"));
        }
        let labels = pairs
            .iter()
            .map(|[key, value]| Ok((self.get("labels", *key)?, self.get("labels", *value)?)))
            .collect::<Result<Labels, FieldError>>()?;
        let identity = self.get("identity", workload.identity)?;
        Ok(Workload {
            name: self.get("name", workload.name)?,
            namespace: self.get("namespace", workload.namespace)?,
            identity: match &*identity {
                "" => None,
                uri => Some(uri.parse().field("identity")?),
            },
            labels,
            cluster: self.get("cluster", workload.cluster)?,
            locality: Locality {
                region: self.get("region", workload.region)?,
                zone: self.get("zone", workload.zone)?,
                subzone: self.get("subzone", workload.subzone)?,
            },
        })
    }
}
