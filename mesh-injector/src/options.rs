//! Boot configuration of the injector: what is known before the configuration of injection is read.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

/// A certificate must outlive the moments in which it is exchanged.
const MIN_CERTIFICATE_TTL: Duration = Duration::from_secs(60);
const MAX_CERTIFICATE_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// The admission webhooks of one mesh.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// File with the configuration of injection; it is read again when it changes. Without it, all defaults are used.
    #[arg(long, env = "MESH_CONFIG_FILE", value_name = "FILE")]
    pub config_file: Option<PathBuf>,

    /// Where the webhooks are served, over TLS.
    #[arg(long, env = "MESH_LISTEN", default_value = "0.0.0.0:15017", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,

    /// Where readiness and metrics are served, in plaintext.
    #[arg(long, env = "MESH_STATUS", default_value = "0.0.0.0:15014", value_name = "ADDR:PORT")]
    pub status: SocketAddr,

    /// Namespace of the injector itself, with its Service and the Secret of its certificate.
    #[arg(
        long,
        env = "MESH_POD_NAMESPACE",
        default_value = "mesh-system",
        value_name = "NAMESPACE"
    )]
    pub pod_namespace: String,

    /// Name of this replica, as events and the log call it.
    #[arg(long, env = "MESH_NAME", default_value = "mesh-injector", value_name = "NAME")]
    pub name: String,

    /// Service by which the API server reaches the injector: the name in its certificate.
    #[arg(long, env = "MESH_SERVICE", default_value = "mesh-injector", value_name = "NAME")]
    pub service: String,

    /// Secret with the serving certificate; made when it is absent.
    #[arg(
        long,
        env = "MESH_CERTIFICATE_SECRET",
        default_value = "mesh-injector-cert",
        value_name = "NAME"
    )]
    pub certificate_secret: String,

    /// How long serving certificates live; they are renewed at two thirds of it.
    #[arg(long, env = "MESH_CERTIFICATE_TTL", default_value = "2160h", value_name = "DURATION", value_parser = certificate_ttl)]
    pub certificate_ttl: Duration,

    /// MutatingWebhookConfiguration that is given the certificate to trust.
    #[arg(
        long,
        env = "MESH_MUTATING_WEBHOOK",
        default_value = "mesh-injector",
        value_name = "NAME"
    )]
    pub mutating_webhook: String,

    /// ValidatingWebhookConfiguration that is given the certificate to trust.
    #[arg(
        long,
        env = "MESH_VALIDATING_WEBHOOK",
        default_value = "mesh-validator",
        value_name = "NAME"
    )]
    pub validating_webhook: String,

    /// How long requests are still taken after SIGTERM, until nobody sends any.
    #[arg(long, env = "MESH_SHUTDOWN_DELAY", default_value = "5s", value_name = "DURATION", value_parser = duration)]
    pub shutdown_delay: Duration,

    /// What is logged, in the syntax of `RUST_LOG`.
    #[arg(long, env = "MESH_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
}

impl Options {
    /// The names in the serving certificate: those of the Service.
    pub fn dns_names(&self) -> Vec<String> {
        let Self {
            service,
            pod_namespace: namespace,
            ..
        } = self;
        vec![
            format!("{service}.{namespace}.svc"),
            format!("{service}.{namespace}"),
            format!("{service}.{namespace}.svc.cluster.local"),
        ]
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<mesh_api::duration::Duration>()
        .map(Duration::from)
        .map_err(|error| error.to_string())
}

fn certificate_ttl(text: &str) -> Result<Duration, String> {
    let ttl = duration(text)?;
    if (MIN_CERTIFICATE_TTL..=MAX_CERTIFICATE_TTL).contains(&ttl) {
        Ok(ttl)
    } else {
        Err("between one minute and ten years".to_owned())
    }
}
