//! What holds for every proxy of the mesh.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::identity::TrustDomain;

/// The one resource that every proxy holds from its start.
#[derive(Clone, Debug, PartialEq)]
pub struct MeshSettings {
    /// Trust domain of the mesh's identities.
    pub trust_domain: TrustDomain,
    /// Further trust domains whose identities count as the mesh's.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// What the mesh owns: destinations in it never leave without an answer from the control plane.
    pub owned: Owned,
    /// What happens to traffic for destinations that the mesh does not know.
    pub outbound_policy: OutboundPolicy,
    /// Access log of every request and connection; `None` is off, Istio's default.
    pub access_log: Option<AccessLog>,
    /// Export of spans; `None` is off.
    pub tracing: Option<Tracing>,
}

/// Address ranges and host suffixes that belong to the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owned {
    /// Service and workload addresses, as ranges.
    pub ranges: Vec<IpNet>,
    /// Host names that equal an entry, or end in `.` and the entry, are the mesh's.
    pub host_suffixes: Vec<Arc<str>>,
    /// Short host names (without a dot) that are services: they are asked for like any owned name.
    pub short_names: bool,
}

impl Owned {
    /// Whether an address is the mesh's.
    #[must_use]
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(&address))
    }

    /// Whether a host name (lower case, no port) is the mesh's.
    #[must_use]
    pub fn has_host(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        if self.short_names && !host.contains('.') {
            return true;
        }
        self.host_suffixes.iter().any(|suffix| {
            host.strip_suffix(&**suffix)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
    }
}

/// `outboundTrafficPolicy.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutboundPolicy {
    /// Unknown destinations are reached as the application asked (Istio's default).
    #[default]
    AllowAny,
    /// Unknown destinations get 502, or are closed.
    RegistryOnly,
}

/// Where and how the access log is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// A path; `/dev/stdout` is standard output.
    pub path: Arc<str>,
    /// How a line looks.
    pub format: AccessLogFormat,
}

/// `accessLogEncoding`, with `accessLogFormat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// Text with Envoy's command operators; `None` is Istio's default format.
    Text(Option<Arc<str>>),
    /// One JSON object a line, Istio's keys plus `policy`, `rule` and `reason`.
    Json,
}

/// Where spans go and how many.
#[derive(Clone, Debug, PartialEq)]
pub struct Tracing {
    /// OTLP over gRPC, such as `http://127.0.0.1:4317`.
    pub endpoint: Arc<str>,
    /// Share of requests without an incoming decision that are sampled, 0 to 100 %.
    pub sampling: super::Percentage,
}
