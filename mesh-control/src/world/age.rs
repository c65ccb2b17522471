//! Who an object is and how old: the order that decides conflicts.

use std::cmp::Ordering;
use std::sync::Arc;

use mesh_api::crd::{Kind, Object, Seniority, Timestamp};
use mesh_api::names::{self, WorkloadId};

use crate::source::cluster::{ClusterKind, Metadata};

/// An object's identity, ordered by age as [`Seniority`] says: creation time, unknown ones first, then names.
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

    fn seniority(&self) -> Seniority<'_> {
        Seniority {
            created: self.created,
            namespace: &self.namespace,
            name: &self.name,
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
        let order = self.seniority().cmp(&other.seniority());
        order.then(self.kind.cmp(other.kind))
    }
}

impl PartialOrd for Age {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn age(created: Option<&str>, namespace: &str, name: &str) -> Age {
        Age {
            kind: "VirtualService",
            created: created.map(|time| time.parse().unwrap()),
            name: name.into(),
            namespace: namespace.into(),
        }
    }

    #[test]
    fn time_decides_then_the_name_and_without_time_the_namespace_first() {
        let (early, late) = (Some("2026-01-01T00:00:00Z"), Some("2026-01-01T00:00:01Z"));
        // Each before the next.
        let ordered = [
            age(None, "a", "y"),
            age(None, "a", "z"),
            age(None, "b", "x"),
            age(early, "z", "z"),
            age(late, "b", "x"),
            age(late, "c", "x"),
            age(late, "a", "y"),
        ];
        for (at, one) in ordered.iter().enumerate() {
            for (other_at, other) in ordered.iter().enumerate() {
                assert_eq!(one.cmp(other), at.cmp(&other_at), "{one:?} {other:?}");
            }
        }
    }
}
