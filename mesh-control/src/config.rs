//! Boot configuration of the control plane: what is known before any policy is read. All else is policy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;
use mesh_api::identity::{InvalidSpiffeId, SpiffeId, TrustDomain};

use crate::ca::Lifetimes;
use crate::tls::ServingNames;

/// Service account of the control plane itself.
const SERVICE_ACCOUNT: &str = "mesh-control";

/// The control plane of one mesh.
#[derive(Clone, Debug, Args)]
pub struct Config {
    /// Directory of YAML files with policy, services and workloads; it is watched. Repeatable.
    #[arg(
        long = "config-dir",
        env = "MESH_CONFIG_DIR",
        value_delimiter = ',',
        value_name = "DIR",
        required_unless_present = "kubernetes"
    )]
    pub config_dirs: Vec<PathBuf>,

    /// Reads policy, services and workloads from the Kubernetes cluster that this runs in (or that KUBECONFIG names)
    /// instead of directories.
    #[arg(long, env = "MESH_KUBERNETES")]
    pub kubernetes: bool,

    /// Suffix of the names of the cluster's services.
    #[arg(
        long,
        env = "MESH_CLUSTER_DOMAIN",
        default_value = "cluster.local",
        value_name = "DOMAIN"
    )]
    pub cluster_domain: String,

    /// Addresses of the cluster's pods. Where none is given, those that its nodes name, else those of the pods that are
    /// seen. Repeatable.
    #[arg(
        long = "pod-range",
        env = "MESH_POD_RANGE",
        value_delimiter = ',',
        value_name = "CIDR"
    )]
    pub pod_ranges: Vec<IpNet>,

    /// Addresses of the cluster's services. Where none is given, those that its ServiceCIDR objects name, else those of
    /// the services that are seen. Repeatable.
    #[arg(
        long = "service-range",
        env = "MESH_SERVICE_RANGE",
        value_delimiter = ',',
        value_name = "CIDR"
    )]
    pub service_ranges: Vec<IpNet>,

    /// The certificate authority and where it is kept.
    #[command(flatten)]
    pub ca: CaConfig,

    /// Where discovery and certificates are served, over TLS.
    #[arg(
        long,
        env = "MESH_LISTEN",
        default_value = "127.0.0.1:15012",
        value_name = "ADDR:PORT"
    )]
    pub listen: SocketAddr,

    /// Where metrics and the state of the proxies are served, in plaintext: keep it on loopback.
    #[arg(
        long,
        env = "MESH_STATUS",
        default_value = "127.0.0.1:15014",
        value_name = "ADDR:PORT"
    )]
    pub status: SocketAddr,

    /// Namespace whose policies hold for the whole mesh.
    #[arg(
        long,
        env = "MESH_ROOT_NAMESPACE",
        default_value = "mesh-system",
        value_name = "NAMESPACE"
    )]
    pub root_namespace: String,

    /// Namespace that this control plane runs in: of its identity, of the Secrets of the certificate authority and of the
    /// Lease. The default is the root namespace.
    #[arg(long, env = "MESH_POD_NAMESPACE", value_name = "NAMESPACE")]
    pub pod_namespace: Option<String>,

    /// Audience of service-account tokens that prove identities in a cluster. Repeatable; add `istio-ca` for istio-csr or
    /// Istio's proxies.
    #[arg(
        long = "token-audience",
        env = "MESH_TOKEN_AUDIENCE",
        value_delimiter = ',',
        default_value = "mesh-ca",
        value_name = "AUDIENCE"
    )]
    pub token_audiences: Vec<String>,

    /// Name of this replica, as `meshctl proxy-status` shows it; in a cluster the name of its pod.
    #[arg(long, env = "MESH_NAME", default_value = SERVICE_ACCOUNT, value_name = "NAME")]
    pub name: String,

    /// A host name or address under which proxies reach this control plane, for its certificate. The address of
    /// --listen is in it already. Repeatable.
    #[arg(long = "san", env = "MESH_SAN", value_delimiter = ',', value_name = "NAME|ADDR")]
    pub sans: Vec<String>,

    /// How long workload certificates live; proxies renew them at half of it.
    #[arg(long, env = "MESH_CERTIFICATE_TTL", default_value = "24h", value_name = "DURATION", value_parser = parse_duration)]
    pub certificate_ttl: Duration,

    /// What is logged, in the syntax of `RUST_LOG`.
    #[arg(long, env = "MESH_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
}

/// Where policy, services and workloads are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source<'a> {
    /// Directories of YAML files.
    Directories(&'a [PathBuf]),
    /// The API server of a Kubernetes cluster.
    Kubernetes,
}

/// Where the certificate authority is, and whose identities it signs.
#[derive(Clone, Debug, Args)]
pub struct CaConfig {
    /// Directory of the certificate authority; a self-signed root is made in it when it holds none. With --kubernetes the
    /// authority is in the Secret `cacerts` or `mesh-ca` instead.
    #[arg(
        long = "ca-dir",
        env = "MESH_CA_DIR",
        default_value = "./mesh-ca",
        value_name = "DIR"
    )]
    pub directory: PathBuf,

    /// Trust domain of the mesh.
    #[arg(
        long,
        env = "MESH_TRUST_DOMAIN",
        default_value = "cluster.local",
        value_name = "DOMAIN"
    )]
    pub trust_domain: TrustDomain,
}

/// A setting that cannot work.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The root namespace cannot be part of an identity.
    #[error("--root-namespace: {0}")]
    RootNamespace(#[from] InvalidSpiffeId),
    /// Proxies dial a workload name; it must be one.
    #[error("--certificate-ttl {0:?}: between one minute and 90 days")]
    CertificateTtl(Duration),
    /// Two sources would contradict each other.
    #[error("--kubernetes and --config-dir exclude each other")]
    TwoSources,
    /// Nothing says where policy is.
    #[error("neither --config-dir nor --kubernetes is given")]
    NoSource,
}

impl Config {
    /// Where policy is read.
    ///
    /// # Errors
    /// When none or both of the two are asked for.
    pub fn source(&self) -> Result<Source<'_>, ConfigError> {
        match (self.kubernetes, self.config_dirs.as_slice()) {
            (true, []) => Ok(Source::Kubernetes),
            (true, _) => Err(ConfigError::TwoSources),
            (false, []) => Err(ConfigError::NoSource),
            (false, directories) => Ok(Source::Directories(directories)),
        }
    }

    /// Namespace that this control plane runs in.
    #[must_use]
    pub fn own_namespace(&self) -> &str {
        self.pod_namespace.as_deref().unwrap_or(&self.root_namespace)
    }

    /// Lifetimes of workload certificates.
    ///
    /// # Errors
    /// When the lifetime asked for is too short for renewal, or longer than 90 days.
    pub fn lifetimes(&self) -> Result<Lifetimes, ConfigError> {
        let max = Lifetimes::default().max;
        if self.certificate_ttl < Duration::from_secs(60) || self.certificate_ttl > max {
            return Err(ConfigError::CertificateTtl(self.certificate_ttl));
        }
        Ok(Lifetimes {
            default: self.certificate_ttl,
            max,
        })
    }

    /// Names and addresses in the serving certificate. An unspecified listening address is every address of the
    /// machine: of those only loopback is known to be its own, the others have to be given.
    ///
    /// # Errors
    /// When the root namespace cannot be part of an identity.
    pub fn serving_names(&self) -> Result<ServingNames, ConfigError> {
        let listen = self.listen.ip();
        let mut addresses = if listen.is_unspecified() {
            vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
        } else {
            vec![listen]
        };
        let mut dns_names = Vec::new();
        if listen.is_unspecified() || listen.is_loopback() {
            dns_names.push("localhost".to_owned());
        }
        for san in &self.sans {
            match san.parse() {
                Ok(address) => addresses.push(address),
                Err(_) => dns_names.push(san.clone()),
            }
        }
        Ok(ServingNames {
            identity: SpiffeId::new(&self.ca.trust_domain, self.own_namespace(), SERVICE_ACCOUNT)?,
            dns_names,
            addresses,
        })
    }
}

/// A duration as Istio writes it.
///
/// # Errors
/// A message that says how durations are written.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    text.parse::<mesh_api::duration::Duration>()
        .map(Duration::from)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    fn parse(args: &[&str]) -> Config {
        let args = ["mesh-control", "--config-dir", "policies"].iter().chain(args);
        Cli::try_parse_from(args).unwrap().config
    }

    #[test]
    fn the_certificate_names_what_proxies_dial() {
        let names = parse(&[
            "--listen",
            "127.1.2.3:15012",
            "--san",
            "mesh.example",
            "--san",
            "198.18.0.1",
        ])
        .serving_names()
        .unwrap();
        assert_eq!(
            names.identity.as_str(),
            "spiffe://cluster.local/ns/mesh-system/sa/mesh-control"
        );
        assert_eq!(names.dns_names, ["localhost", "mesh.example"]);
        let addresses: Vec<_> = names.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["127.1.2.3", "198.18.0.1"]);
    }

    #[test]
    fn the_identity_is_of_the_namespace_that_it_runs_in() {
        let config = parse(&["--pod-namespace", "control", "--token-audience", "mesh-ca,istio-ca"]);
        let names = config.serving_names().unwrap();
        assert_eq!(
            names.identity.as_str(),
            "spiffe://cluster.local/ns/control/sa/mesh-control"
        );
        assert_eq!(config.root_namespace, "mesh-system");
        assert_eq!(config.token_audiences, ["mesh-ca", "istio-ca"]);
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        assert!(parse(&["--root-namespace", "a/b"]).serving_names().is_err());
        assert!(parse(&["--certificate-ttl", "10s"]).lifetimes().is_err());
        assert!(parse(&["--certificate-ttl", "10000h"]).lifetimes().is_err());
        assert!(Cli::try_parse_from(["mesh-control"]).is_err(), "a source is needed");
        assert!(parse(&["--kubernetes"]).source().is_err(), "but one only");
    }

    #[test]
    fn policy_is_in_directories_or_in_a_cluster() {
        assert_eq!(
            parse(&[]).source().unwrap(),
            Source::Directories(&[PathBuf::from("policies")])
        );
        let args = [
            "mesh-control",
            "--kubernetes",
            "--pod-range",
            "198.18.0.0/16,2001:db8::/64",
        ];
        let config = Cli::try_parse_from(args).unwrap().config;
        assert_eq!(config.source().unwrap(), Source::Kubernetes);
        assert_eq!(config.pod_ranges.len(), 2);
        assert_eq!(config.cluster_domain, "cluster.local");
        assert_eq!(config.token_audiences, ["mesh-ca"]);
    }
}
