//! Where policy objects come from. A source emits events; the world takes them in. What is wrong with an object never
//! stops the others: it is said in a diagnostic, and what was last good stays in force.

pub mod cluster;
pub mod dir;
pub mod kube;

use std::sync::Arc;

use mesh_api::crd::{Object, ObjectRef};
use mesh_api::source::Diagnostic;
use tokio::sync::watch;

use self::cluster::{ClusterObject, ClusterRef};
use self::dir::DirSource;
use self::kube::KubeSource;

/// What a source says.
#[derive(Clone, Debug)]
pub enum Event {
    /// An object is there, or has changed.
    Applied(Arc<Object>),
    /// An object is gone.
    Deleted(ObjectRef),
    /// An object of Kubernetes itself is there, or has changed.
    Observed(ClusterObject),
    /// An object of Kubernetes itself is gone.
    Vanished(ClusterRef),
    /// Everything that was there at the start has been said.
    Synced,
}

/// A running source. It ends when this is dropped.
#[derive(Debug)]
pub enum Source {
    /// Directories of YAML files.
    Directories(DirSource),
    /// The API server of a Kubernetes cluster.
    Kubernetes(KubeSource),
}

impl Source {
    /// What is wrong in the source now; a new list whenever that changes.
    #[must_use]
    pub fn diagnostics(&self) -> watch::Receiver<Arc<[Diagnostic]>> {
        match self {
            Self::Directories(source) => source.diagnostics(),
            Self::Kubernetes(source) => source.diagnostics(),
        }
    }

    /// Waits until everything that was there at the start is in the world.
    pub async fn synced(&self) {
        match self {
            Self::Directories(source) => source.synced().await,
            Self::Kubernetes(source) => source.synced().await,
        }
    }
}
