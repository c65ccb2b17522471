//! Clusters: a service port, or a subset of it, with the policy towards it.

use std::sync::Arc;
use std::time::Duration;

use mesh_api::crd::common::Destination;
use mesh_api::crd::service_entry::Resolution;
use mesh_api::crd::traffic_policy as crd;
use mesh_api::model::{
    Balancer, ClientTls, Cluster, ConnectionPool, EndpointSource, H2Upgrade, HashKey, HashPolicy, Location, Missing,
    OutlierDetection, Protocol, RetryBudget, TcpKeepalive,
};

use super::Reader;
use super::endpoints::slice_names;
use super::lookup::{Found, Hosts, NotFound, reference, service_port, services};
use super::policy::{Policy, Rules};
use crate::world::{hosts, key};

/// "Never" for timers that must have an end: as good as none.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The clusters of one destination, each once.
pub struct Clusters<'r, 'w> {
    reader: &'r Reader<'w>,
    list: Vec<Entry>,
}

struct Entry {
    cluster: Arc<Cluster>,
    policy: Policy,
}

impl<'r, 'w> Clusters<'r, 'w> {
    /// None yet.
    pub fn new(reader: &'r Reader<'w>) -> Self {
        Self {
            reader,
            list: Vec::new(),
        }
    }

    /// The clusters.
    pub fn finish(self) -> Vec<Arc<Cluster>> {
        self.list.into_iter().map(|entry| entry.cluster).collect()
    }

    /// DestinationRules' policy towards a cluster.
    pub fn policy(&self, index: usize) -> &Policy {
        &self.list[index].policy
    }

    /// The cluster of a service port.
    pub fn of_service(&mut self, found: &Found, source: Option<EndpointSource>) -> Option<usize> {
        let rules = Rules::of(self.reader, &found.host, &found.service.age.namespace);
        let policy = rules.policy(found.port.number, None);
        let cluster = present(self.reader, found, None, &rules, &policy, source)?;
        Some(self.add(cluster, policy))
    }

    /// The cluster that a rule names; `asked` is the service port that the client asked for, `namespace` that of the rule.
    /// What does not exist becomes a cluster that says so.
    pub fn of_destination(&mut self, destination: &Destination, asked: u16, namespace: &Arc<str>) -> Option<usize> {
        let domain = &self.reader.world.options().cluster_domain;
        let host = hosts::qualify(&destination.host, namespace, domain);
        let number = destination.port.as_ref().and_then(|port| port.number);
        let port = match number {
            Some(number) => u16::try_from(number).ok(),
            None => match services(self.reader, &host, Hosts::Covering).as_slice() {
                [only] if only.ports.len() == 1 => only.ports.first().map(|port| port.number),
                _ => Some(asked),
            },
        };
        let subset = destination.subset.as_deref().filter(|subset| !subset.is_empty());
        let missing = |reason| {
            Some(Cluster {
                service: reference(&host, namespace, domain)?,
                port: port.unwrap_or(asked),
                subset: subset.map(Arc::from),
                endpoints: EndpointSource::Missing(reason),
                ..blank(reference(&host, namespace, domain)?)
            })
        };
        let found = match port {
            Some(port) => service_port(self.reader, &host, port, Hosts::Covering),
            None => Err(NotFound::Port),
        };
        let found = match found {
            Ok(found) => found,
            Err(reason) => {
                let reason = match reason {
                    NotFound::Host => Missing::Host,
                    NotFound::Port => Missing::Port,
                };
                return Some(self.add(missing(reason)?, Policy::default()));
            }
        };
        let rules = Rules::of(self.reader, &found.host, &found.service.age.namespace);
        if subset.is_some_and(|name| rules.subset(name).is_none()) {
            return Some(self.add(missing(Missing::Subset)?, Policy::default()));
        }
        let policy = rules.policy(found.port.number, subset);
        let cluster = present(self.reader, &found, subset, &rules, &policy, None)?;
        Some(self.add(cluster, policy))
    }

    fn add(&mut self, cluster: Cluster, policy: Policy) -> usize {
        let same = self.list.iter().position(|entry| *entry.cluster == cluster);
        same.unwrap_or_else(|| {
            self.list.push(Entry {
                cluster: Arc::new(cluster),
                policy,
            });
            self.list.len() - 1
        })
    }
}

fn present(
    reader: &Reader<'_>,
    found: &Found,
    subset: Option<&str>,
    rules: &Rules,
    policy: &Policy,
    source: Option<EndpointSource>,
) -> Option<Cluster> {
    let service = found.reference(&reader.world.options().cluster_domain)?;
    let mut origins = policy.origins();
    if let Some(origin) = subset.and_then(|name| rules.subset_origin(name))
        && !origins.contains(&origin)
    {
        origins.push(origin);
    }
    let balance = policy.load_balancer.as_ref().map(|(block, _)| block);
    let passthrough = balance.is_some_and(|block| block.simple == Some(crd::SimpleLb::Passthrough));
    let labels = subset.and_then(|name| rules.subset(name)).map(|subset| &subset.labels);
    let tls = tls(policy);
    let endpoints = match (&tls, source) {
        // TLS that this release cannot originate must not become plaintext.
        (Err(Unsupported), _) => EndpointSource::Missing(Missing::Tls),
        (Ok(_), Some(source)) => source,
        (Ok(_), None) if passthrough || found.service.resolution == Resolution::None => EndpointSource::Passthrough,
        (Ok(_), None) => EndpointSource::Slices(slice_names(reader, found)),
    };
    Some(Cluster {
        port: found.port.number,
        subset: subset.map(Arc::from),
        selector: labels
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
            .collect(),
        location: found.service.location,
        protocol: found.port.protocol,
        endpoints,
        balancer: balance.map(balancer).unwrap_or_default(),
        pool: pool(reader, policy),
        outlier: policy.outlier_detection.as_ref().map(|(block, _)| outlier(block)),
        retry_budget: policy.retry_budget.as_ref().map(|(block, _)| RetryBudget {
            percent: block.percent.unwrap_or(20.0).clamp(0.0, 100.0),
            min_concurrency: block.min_retry_concurrency.unwrap_or(3),
        }),
        tls: tls.unwrap_or_default(),
        subject_alt_names: found.service.subject_alt_names.clone(),
        origins,
        ..blank(service)
    })
}

fn blank(service: mesh_api::model::ServiceRef) -> Cluster {
    Cluster {
        service,
        port: 0,
        subset: None,
        selector: std::collections::BTreeMap::new(),
        location: Location::MeshInternal,
        protocol: Protocol::Detect,
        endpoints: EndpointSource::Missing(Missing::Host),
        balancer: Balancer::default(),
        pool: ConnectionPool::default(),
        outlier: None,
        retry_budget: None,
        tls: ClientTls::default(),
        subject_alt_names: Vec::new(),
        origins: Vec::new(),
    }
}

fn balancer(block: &crd::LoadBalancer) -> Balancer {
    if let Some(hash) = &block.consistent_hash {
        let key = if let Some(name) = &hash.http_header_name {
            HashKey::Header(name.to_ascii_lowercase().into())
        } else if let Some(cookie) = &hash.http_cookie {
            HashKey::Cookie {
                name: cookie.name.as_str().into(),
                path: cookie.path.as_deref().map(Arc::from),
                ttl: cookie.ttl.map(Into::into),
            }
        } else if let Some(name) = &hash.http_query_parameter_name {
            HashKey::QueryParameter(name.as_str().into())
        } else if hash.use_source_ip == Some(true) {
            HashKey::SourceIp
        } else {
            return Balancer::Random;
        };
        let size = hash.ring_hash.as_ref().and_then(|ring| ring.minimum_ring_size);
        let size = size.or(hash.minimum_ring_size).filter(|size| *size > 0).unwrap_or(1024);
        return Balancer::RingHash {
            hash: HashPolicy { key },
            minimum_ring_size: u32::try_from(size).unwrap_or(u32::MAX),
        };
    }
    match block.simple {
        Some(crd::SimpleLb::RoundRobin) => Balancer::RoundRobin,
        Some(crd::SimpleLb::Random) => Balancer::Random,
        Some(
            crd::SimpleLb::LeastRequest
            | crd::SimpleLb::LeastConn
            | crd::SimpleLb::Unspecified
            | crd::SimpleLb::Passthrough,
        )
        | None => Balancer::LeastRequest,
    }
}

/// Zero is "not set" in Istio's limits.
fn limit(value: Option<i32>) -> Option<u32> {
    value
        .and_then(|value| u32::try_from(value).ok())
        .filter(|value| *value > 0)
}

fn pool(reader: &Reader<'_>, policy: &Policy) -> ConnectionPool {
    reader.note(key::mesh());
    let default = ConnectionPool::default();
    let block = policy.connection_pool.as_ref().map(|(block, _)| block);
    let tcp = block.and_then(|block| block.tcp.as_ref());
    let http = block.and_then(|block| block.http.as_ref());
    let positive = |duration: Option<mesh_api::duration::Duration>| duration.filter(|duration| !duration.is_zero());
    let connect_timeout = positive(tcp.and_then(|tcp| tcp.connect_timeout))
        .or_else(|| positive(policy.timeout.as_ref().and_then(|(block, _)| block.connect_timeout)))
        .or_else(|| positive(reader.world.mesh_config().and_then(|mesh| mesh.connect_timeout)))
        .map_or(default.connect_timeout, Into::into);
    ConnectionPool {
        max_connections: limit(tcp.and_then(|tcp| tcp.max_connections)).unwrap_or(u32::MAX),
        connect_timeout,
        max_connection_duration: positive(tcp.and_then(|tcp| tcp.max_connection_duration)).map(Into::into),
        tcp_idle_timeout: match tcp.and_then(|tcp| tcp.idle_timeout) {
            Some(timeout) if timeout.is_zero() => None,
            Some(timeout) => Some(timeout.into()),
            None => default.tcp_idle_timeout,
        },
        keepalive: tcp
            .and_then(|tcp| tcp.tcp_keepalive.as_ref())
            .map(|keepalive| TcpKeepalive {
                probes: keepalive.probes.filter(|probes| *probes > 0),
                time: positive(keepalive.time).map(Into::into),
                interval: positive(keepalive.interval).map(Into::into),
            }),
        max_pending_requests: limit(http.and_then(|http| http.http1_max_pending_requests)).unwrap_or(u32::MAX),
        max_requests: limit(http.and_then(|http| http.http2_max_requests)).unwrap_or(u32::MAX),
        max_requests_per_connection: limit(http.and_then(|http| http.max_requests_per_connection)),
        max_retries: limit(http.and_then(|http| http.max_retries)).unwrap_or(u32::MAX),
        http_idle_timeout: match http.and_then(|http| http.idle_timeout) {
            Some(timeout) if timeout.is_zero() => FOREVER,
            Some(timeout) => timeout.into(),
            None => default.http_idle_timeout,
        },
        max_concurrent_streams: limit(http.and_then(|http| http.max_concurrent_streams)),
        h2_upgrade: match http.and_then(|http| http.h2_upgrade_policy) {
            Some(crd::H2UpgradePolicy::Upgrade) => H2Upgrade::Upgrade,
            Some(crd::H2UpgradePolicy::DoNotUpgrade) => H2Upgrade::DoNotUpgrade,
            Some(crd::H2UpgradePolicy::Default) | None => H2Upgrade::Default,
        },
        use_client_protocol: http.is_some_and(|http| http.use_client_protocol),
    }
}

fn outlier(block: &crd::OutlierDetection) -> OutlierDetection {
    let count = |value: u32| (value > 0).then_some(value);
    let time = |value: Option<mesh_api::duration::Duration>, default: u64| {
        value
            .filter(|value| !value.is_zero())
            .map_or(Duration::from_secs(default), Into::into)
    };
    OutlierDetection {
        consecutive_5xx: count(block.consecutive_5xx_errors.unwrap_or(5)),
        consecutive_gateway_errors: block.consecutive_gateway_errors.and_then(count),
        consecutive_local_origin_failures: block
            .split_external_local_origin_errors
            .then(|| count(block.consecutive_local_origin_failures.unwrap_or(5)))
            .flatten(),
        interval: time(block.interval, 10),
        base_ejection_time: time(block.base_ejection_time, 30),
        max_ejection_percent: limit(block.max_ejection_percent)
            .and_then(|percent| u8::try_from(percent.min(100)).ok())
            .unwrap_or(10),
    }
}

/// A TLS mode that this release does not originate.
struct Unsupported;

fn tls(policy: &Policy) -> Result<ClientTls, Unsupported> {
    let Some((block, _)) = &policy.tls else {
        return Ok(ClientTls::Auto);
    };
    match block.mode {
        Some(crd::ClientTlsMode::Disable) | None => Ok(ClientTls::Disable),
        Some(crd::ClientTlsMode::IstioMutual) => Ok(ClientTls::IstioMutual {
            subject_alt_names: block
                .subject_alt_names
                .iter()
                .map(|name| name.as_str().into())
                .collect(),
            sni: block.sni.as_deref().filter(|sni| !sni.is_empty()).map(Arc::from),
        }),
        Some(crd::ClientTlsMode::Simple | crd::ClientTlsMode::Mutual) => Err(Unsupported),
    }
}
