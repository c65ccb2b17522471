//! Who an object is and how old: the order that decides conflicts.

use std::cmp::Ordering;
use std::sync::Arc;

use mesh_api::crd::{Kind, Object, Timestamp};
use mesh_api::names::{self, WorkloadId};

use crate::source::cluster::{ClusterKind, Metadata};

/// An object's identity, ordered by age: creation time (unknown ones first), then name, then namespace, as Istio does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Age {
    /// Kind of the object.
    pub kind: &'static str,
    /// When it was created, where that is known.
    pub created: Option<Timestamp>,
    /// Its name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
}

impl Age {
    /// Of an object.
    #[must_use]
    pub fn of(object: &Object) -> Self {
        Self {
            kind: object.kind().as_str(),
            created: object.creation_timestamp(),
            name: object.name().into(),
            namespace: object.namespace().into(),
        }
    }

    /// Of an object of Kubernetes.
    #[must_use]
    pub fn of_cluster(kind: ClusterKind, metadata: &Metadata) -> Self {
        Self {
            kind: kind.as_str(),
            created: metadata.creation_timestamp.as_ref().map(|time| time.0),
            name: metadata.name.as_str().into(),
            namespace: metadata.namespace.as_str().into(),
        }
    }

    /// Of a WorkloadEntry whose age does not matter.
    #[must_use]
    pub fn of_workload_entry(id: &WorkloadId) -> Self {
        Self {
            kind: Kind::WorkloadEntry.as_str(),
            created: None,
            name: id.name.clone(),
            namespace: id.namespace.clone(),
        }
    }

    /// The object, as the model refers to it.
    #[must_use]
    pub fn origin(&self) -> names::ObjectRef {
        names::ObjectRef {
            kind: self.kind.into(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }

    /// Whether it is the object of that namespace and name.
    #[must_use]
    pub fn is(&self, namespace: &str, name: &str) -> bool {
        &*self.namespace == namespace && &*self.name == name
    }
}

impl Ord for Age {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.created, &self.name, &self.namespace, self.kind).cmp(&(
            other.created,
            &other.name,
            &other.namespace,
            other.kind,
        ))
    }
}

impl PartialOrd for Age {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
