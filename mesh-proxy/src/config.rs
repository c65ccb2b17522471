//! Boot configuration: what must be known before the control plane can be asked. Small, static, printed at start; all
//! else is discovered.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use mesh_api::identity::{SpiffeId, TrustDomain};
use mesh_api::names::WorkloadId;

use crate::capture::{TO_APPLICATION_V4, TO_APPLICATION_V6};
use crate::status::{Probers, Scrape};
use crate::upstream::Source;

/// The proxy beside one workload.
#[derive(Clone, Debug, Args)]
pub struct Config {
    /// Name of the workload, such as `reviews-v1`; the control plane knows it by this name and namespace.
    #[arg(long, env = "MESH_WORKLOAD")]
    pub workload: String,

    /// Namespace of the workload.
    #[arg(long, env = "MESH_NAMESPACE", default_value = "default")]
    pub namespace: String,

    /// Service account of the workload: with the namespace, its identity.
    #[arg(long, env = "MESH_SERVICE_ACCOUNT", default_value = "default")]
    pub service_account: String,

    /// Trust domain of the mesh.
    #[arg(long, env = "MESH_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: TrustDomain,

    /// Where the control plane serves discovery and certificates over TLS.
    #[arg(
        long,
        env = "MESH_CONTROL_PLANE",
        default_value = "127.0.0.1:15012",
        value_name = "HOST:PORT"
    )]
    pub control_plane: String,

    /// Identity of the control plane, `<namespace>/<service account>`.
    #[arg(
        long,
        env = "MESH_CONTROL_PLANE_IDENTITY",
        default_value = "mesh-system/mesh-control",
        value_name = "NS/SA"
    )]
    pub control_plane_identity: String,

    /// File with the bootstrap token; it is read again whenever the control plane has to be asked without a live
    /// certificate.
    #[arg(long, env = "MESH_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// The bootstrap token itself, where a file is not at hand.
    #[arg(long, env = "MESH_TOKEN", hide_env_values = true, conflicts_with = "token_file")]
    pub token: Option<String>,

    /// File with the mesh's root certificates in PEM; without it, the fingerprint in the bootstrap token decides.
    #[arg(long, env = "MESH_ROOT_CERT_FILE", value_name = "FILE")]
    pub root_cert_file: Option<PathBuf>,

    /// The workload's own address; connections to other workloads leave from it when it is a loopback address.
    #[arg(long, env = "MESH_ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub address: IpAddr,

    /// Where the application reaches its sidecar as an explicit HTTP proxy; loopback only.
    #[arg(
        long,
        env = "MESH_OUTBOUND",
        default_value = "127.0.0.1:15001",
        value_name = "ADDR:PORT"
    )]
    pub outbound: SocketAddr,

    /// A port of the workload: peers connect to the first address, the application listens on the second. Repeatable.
    #[arg(
        long = "inbound",
        env = "MESH_INBOUND",
        value_delimiter = ',',
        value_name = "ADDR:PORT=APP:PORT"
    )]
    pub inbound: Vec<InboundMapping>,

    /// Take the connections that `mesh-proxy intercept` redirected instead of an explicit proxy and mapped ports: outbound
    /// at the port of --outbound on loopback, inbound at --inbound-capture-port on all addresses.
    #[arg(long, env = "MESH_CAPTURE", conflicts_with = "inbound")]
    pub capture: bool,

    /// Where redirected connections to the application arrive.
    #[arg(
        long,
        env = "MESH_INBOUND_CAPTURE_PORT",
        default_value_t = 15006,
        value_name = "PORT"
    )]
    pub inbound_capture_port: u16,

    /// Administration: configuration dump, drain, log level. Loopback only.
    #[arg(
        long,
        env = "MESH_ADMIN",
        default_value = "127.0.0.1:15000",
        value_name = "ADDR:PORT"
    )]
    pub admin: SocketAddr,

    /// Metrics in Prometheus' text format, at `/stats/prometheus` and `/metrics`.
    #[arg(
        long,
        env = "MESH_METRICS",
        default_value = "127.0.0.1:15090",
        value_name = "ADDR:PORT"
    )]
    pub metrics: SocketAddr,

    /// Readiness, at `/healthz/ready`.
    #[arg(
        long,
        env = "MESH_READINESS",
        default_value = "127.0.0.1:15021",
        value_name = "ADDR:PORT"
    )]
    pub readiness: SocketAddr,

    /// Merged metrics and the application's health checks, on all addresses; for pods.
    #[arg(long, env = "MESH_STATUS_PORT", value_name = "PORT")]
    pub status_port: Option<u16>,

    /// The application's health checks that are served at `/app-health/…` of the status port, in JSON as Istio has it.
    #[arg(long, env = "MESH_APP_PROBERS", value_name = "JSON", requires = "status_port")]
    pub app_probers: Option<Probers>,

    /// Where the application's own metrics are, in JSON: `{"scrape": "true", "port": "8080", "path": "/metrics"}`; the status
    /// port merges them with the proxy's.
    #[arg(long, env = "MESH_PROMETHEUS", value_name = "JSON", requires = "status_port")]
    pub prometheus: Option<Scrape>,

    /// Data-plane workers; by default the CPU limit of the control group, else 2.
    #[arg(long, env = "MESH_CONCURRENCY", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: Option<u16>,

    /// How long connections may finish after SIGTERM; the process ends sooner when there are none.
    #[arg(long, env = "MESH_DRAIN_DURATION", default_value = "5s", value_parser = parse_duration)]
    pub drain_duration: Duration,

    /// What is logged of the proxy itself, in the syntax of `RUST_LOG`.
    #[arg(long, env = "MESH_LOG", default_value = "info")]
    pub log: String,
}

/// Where peers connect, and where the application listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboundMapping {
    /// The workload's address and port, held by the sidecar.
    pub listen: SocketAddr,
    /// The application's own.
    pub application: SocketAddr,
}

/// Why text is not an inbound mapping.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}`: expected ADDR:PORT=APP:PORT, such as 127.0.1.1:9080=127.0.0.1:8080")]
pub struct InvalidMapping(String);

impl FromStr for InboundMapping {
    type Err = InvalidMapping;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidMapping(text.to_owned());
        let (listen, application) = text.split_once('=').ok_or_else(invalid)?;
        let mapping = Self {
            listen: listen.parse().map_err(|_| invalid())?,
            application: application.parse().map_err(|_| invalid())?,
        };
        if mapping.listen == mapping.application {
            return Err(invalid());
        }
        Ok(mapping)
    }
}

pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    text.parse::<mesh_api::duration::Duration>()
        .map(Duration::from)
        .map_err(|error| error.to_string())
}

/// A setting that cannot work.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A listener that changes state or speaks for the workload would be reachable from outside.
    #[error("--{0} {1}: only a loopback address is allowed here")]
    NotLoopback(&'static str, SocketAddr),
    /// Not the two parts of an identity.
    #[error("--control-plane-identity {0}: expected <namespace>/<service account>")]
    ControlPlaneIdentity(String),
}

impl Config {
    /// The name that the control plane knows this proxy by.
    #[must_use]
    pub fn workload_id(&self) -> WorkloadId {
        WorkloadId {
            name: self.workload.as_str().into(),
            namespace: self.namespace.as_str().into(),
        }
    }

    /// Checks what the parser cannot.
    ///
    /// # Errors
    /// When the administration or the explicit proxy would listen beyond loopback.
    pub fn check(&self) -> Result<(), ConfigError> {
        for (name, address) in [("admin", self.admin), ("outbound", self.outbound)] {
            if !address.ip().is_loopback() {
                return Err(ConfigError::NotLoopback(name, address));
            }
        }
        Ok(())
    }

    /// Whom the control plane's certificate must name.
    ///
    /// # Errors
    /// When the setting is not `<namespace>/<service account>`.
    pub fn control_plane_identity(&self) -> Result<SpiffeId, ConfigError> {
        let text = &self.control_plane_identity;
        text.split_once('/')
            .and_then(|(namespace, account)| SpiffeId::new(&self.trust_domain, namespace, account).ok())
            .ok_or_else(|| ConfigError::ControlPlaneIdentity(text.clone()))
    }

    /// Source address of upstream connections, where it has to be chosen: on one machine every workload has its own
    /// loopback address, and peers recognise each other by it.
    #[must_use]
    pub fn source(&self) -> Source {
        match self.address {
            IpAddr::V4(Ipv4Addr::LOCALHOST) => Source::default(),
            address if address.is_loopback() => Source::workload(address),
            _ => Source::default(),
        }
    }

    /// Source address of connections to the application: where connections are captured, these must not be.
    #[must_use]
    pub fn source_to_application(&self) -> Source {
        if !self.capture {
            return self.source();
        }
        Source {
            v4: Some(TO_APPLICATION_V4),
            v6: Some(TO_APPLICATION_V6),
        }
    }

    /// Number of data-plane workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.concurrency.map_or_else(|| cgroup_cpus().unwrap_or(2), usize::from)
    }
}

/// The CPU limit of the process's control group, rounded up; `None` without a limit.
fn cgroup_cpus() -> Option<usize> {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<i64>().ok();
    let (quota, period) = if let Ok(line) = std::fs::read_to_string("/sys/fs/cgroup/cpu.max") {
        let (quota, period) = line.trim().split_once(' ')?;
        (quota.parse().ok()?, period.parse().ok()?)
    } else {
        (
            number("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")?,
            number("/sys/fs/cgroup/cpu/cpu.cfs_period_us")?,
        )
    };
    if quota <= 0 || period <= 0 {
        return None;
    }
    usize::try_from((quota + period - 1) / period)
        .ok()
        .map(|cpus| cpus.clamp(1, 256))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings() {
        let mapping: InboundMapping = "127.0.1.1:9080=127.0.0.1:8080".parse().unwrap();
        assert_eq!(mapping.listen.port(), 9080);
        assert_eq!(mapping.application.port(), 8080);
        for text in ["", "9080", "127.0.0.1:1=", "127.0.0.1:1=127.0.0.1:1", "a=b"] {
            assert!(text.parse::<InboundMapping>().is_err(), "{text}");
        }
    }

    #[test]
    fn administration_stays_on_loopback() {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            config: Config,
        }
        let parse =
            |admin| <Cli as clap::Parser>::parse_from(["mesh-proxy", "--workload", "a", "--admin", admin]).config;
        assert!(parse("0.0.0.0:15000").check().is_err());
        assert!(parse("127.0.0.9:15000").check().is_ok());
    }
}
