//! The mesh's settings: MeshConfig with its defaults, and what the mesh owns.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mesh_api::crd::mesh_config::{AccessLogEncoding, MeshConfigSpec, OutboundMode};
use mesh_api::model::{AccessLog, AccessLogFormat, MeshSettings, OutboundPolicy, Owned, Percentage, Tracing};

use super::Reader;
use crate::world::{KUBERNETES, Members, Origin, hosts, key};

/// Share of requests that are traced where MeshConfig does not say, as in Istio.
const DEFAULT_SAMPLING_PERCENT: f64 = 1.0;

/// Compiles the mesh's settings.
#[must_use]
pub fn settings(reader: &Reader<'_>) -> MeshSettings {
    reader.note(key::mesh());
    reader.note(key::owned());
    let default = MeshConfigSpec::default();
    let config = reader.world.mesh_config().unwrap_or(&default);
    if let Some(age) = reader.world.mesh_config_age() {
        reader.credit(age);
    }
    let text = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(Arc::<str>::from);
    MeshSettings {
        trust_domain: reader.world.trust_domain().clone(),
        trust_domain_aliases: reader.world.trust_domain_aliases().to_vec(),
        owned: owned(reader),
        outbound_policy: match config.outbound_traffic_policy.as_ref().and_then(|policy| policy.mode) {
            Some(OutboundMode::RegistryOnly) => OutboundPolicy::RegistryOnly,
            Some(OutboundMode::AllowAny) | None => OutboundPolicy::AllowAny,
        },
        access_log: text(&config.access_log_file).map(|path| AccessLog {
            path,
            format: match config.access_log_encoding {
                Some(AccessLogEncoding::Json) => AccessLogFormat::Json,
                Some(AccessLogEncoding::Text) | None => AccessLogFormat::Text(text(&config.access_log_format)),
            },
        }),
        tracing: config.tracing.as_ref().and_then(|tracing| {
            Some(Tracing {
                endpoint: text(&tracing.otlp_endpoint)?,
                sampling: Percentage::from_percent(tracing.sampling_percentage.unwrap_or(DEFAULT_SAMPLING_PERCENT)),
            })
        }),
    }
}

/// Addresses of services and workloads, and hosts of services. Services with Kubernetes names are owned by their
/// namespaces, so that a new service does not change what every proxy holds.
fn owned(reader: &Reader<'_>) -> Owned {
    let domain = &*reader.world.options().cluster_domain;
    let mut suffixes = BTreeSet::new();
    let mut ranges = Vec::new();
    let registry = &reader.world.registry;
    for namespace in registry.service_namespaces() {
        suffixes.insert(Arc::<str>::from(format!("svc.{domain}")));
        suffixes.insert("svc".into());
        suffixes.insert(namespace.clone());
    }
    ranges.extend(registry.cluster_ranges());
    for service in registry.all_services().filter(|service| service.age.kind != KUBERNETES) {
        for host in &service.hosts {
            match hosts::kubernetes_name(host, domain) {
                Some((_, namespace)) => {
                    suffixes.insert(Arc::<str>::from(format!("svc.{domain}")));
                    suffixes.insert("svc".into());
                    suffixes.insert(namespace.into());
                }
                None => {
                    suffixes.insert(host.strip_prefix("*.").unwrap_or(host).into());
                }
            }
        }
        ranges.extend(service.addresses.iter().copied());
        if let Members::Listed(list) = &service.members {
            ranges.extend(list.iter().filter_map(|workload| workload.ip()).map(IpNet::from));
        }
    }
    let entries = registry
        .all_workloads()
        .filter(|workload| workload.origin == Origin::Entry);
    ranges.extend(entries.filter_map(|workload| workload.ip()).map(IpNet::from));
    Owned {
        ranges: aggregate(&ranges),
        host_suffixes: suffixes.into_iter().collect(),
        short_names: true,
    }
}

/// The fewest ranges that hold the same addresses, in a fixed order.
fn aggregate(ranges: &[IpNet]) -> Vec<IpNet> {
    let v4: Vec<Ipv4Net> = ranges
        .iter()
        .filter_map(|range| match range {
            IpNet::V4(range) => Some(*range),
            IpNet::V6(_) => None,
        })
        .collect();
    let v6: Vec<Ipv6Net> = ranges
        .iter()
        .filter_map(|range| match range {
            IpNet::V6(range) => Some(*range),
            IpNet::V4(_) => None,
        })
        .collect();
    let v4 = Ipv4Net::aggregate(&v4).into_iter().map(IpNet::V4);
    let v6 = Ipv6Net::aggregate(&v6).into_iter().map(IpNet::V6);
    let mut all: Vec<IpNet> = v4.chain(v6).collect();
    all.sort();
    all
}
