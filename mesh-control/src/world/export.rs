//! `exportTo`: which namespaces see an object.

use std::sync::Arc;

/// The namespaces that see an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Export {
    /// All of them (`*`, and Istio's default).
    #[default]
    All,
    /// These; `.` is written out, `~` is nobody.
    Only(Vec<Arc<str>>),
}

/// How an object comes to be seen, in the order in which VirtualServices are looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Visibility {
    /// The object is of the same namespace and shown to it by name.
    Own,
    /// It is shown to this namespace by name.
    Named,
    /// It is shown to all.
    Public,
}

impl Export {
    /// Reads `exportTo` of an object of `namespace`.
    #[must_use]
    pub fn parse(list: &[String], namespace: &str) -> Self {
        if list.is_empty() || list.iter().any(|entry| entry == "*") {
            return Self::All;
        }
        Self::Only(
            list.iter()
                .filter(|entry| *entry != "~")
                .map(|entry| {
                    if entry == "." {
                        namespace.into()
                    } else {
                        entry.as_str().into()
                    }
                })
                .collect(),
        )
    }

    /// How a namespace sees an object of namespace `own`; `None` if it does not.
    #[must_use]
    pub fn visibility(&self, own: &str, namespace: &str) -> Option<Visibility> {
        match self {
            Self::All => Some(Visibility::Public),
            Self::Only(list) if list.iter().any(|entry| &**entry == namespace) => Some(if own == namespace {
                Visibility::Own
            } else {
                Visibility::Named
            }),
            Self::Only(_) => None,
        }
    }

    /// Whether a namespace sees the object.
    #[must_use]
    pub fn shows(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(list) => list.iter().any(|entry| &**entry == namespace),
        }
    }
}
