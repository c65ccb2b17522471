//! A client of the API server: the one of the cluster that this process runs in, else the one that kubeconfig names.

use std::time::Duration;

use kube::config::{InClusterError, KubeConfigOptions, KubeconfigError};
use kube::{Client, Config};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// In a pod, but without what a service account needs.
    #[error(
        "the API server of this cluster: {0}: the pod needs its service account's token \
         (automountServiceAccountToken must not be false)"
    )]
    InCluster(#[from] InClusterError),
    /// Not in a pod, and no usable kubeconfig.
    #[error("this is no pod (KUBERNETES_SERVICE_HOST is not set) and kubeconfig cannot be used: {0}")]
    Kubeconfig(#[from] KubeconfigError),
    /// The settings do not make a client.
    #[error("the client of the API server: {0}")]
    Client(#[from] Box<kube::Error>),
}

/// Makes a client. It connects at its first call, and its token and the cluster's root are re-read as they change.
///
/// # Errors
/// When neither a service account nor a kubeconfig can be used.
pub async fn connect() -> Result<Client, ClientError> {
    // An error means that a provider is there already: one is all that is needed.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut config = if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        Config::incluster()?
    } else {
        Config::from_kubeconfig(&KubeConfigOptions::default()).await?
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Client::try_from(config).map_err(|error| ClientError::Client(Box::new(error)))
}
