//! One object of any kind, and what can be asked of all of them alike.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use kube::core::{ObjectMeta, Resource};
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::{
    AuthorizationPolicy, DestinationRule, Gateway, MeshConfig, PeerAuthentication, ProxyConfig, RequestAuthentication,
    ServiceEntry, Sidecar, Telemetry, VirtualService, WorkloadEntry, WorkloadGroup,
};

/// When an object was created, as the API server says.
pub type Timestamp = k8s_openapi::jiff::Timestamp;

/// Which object is meant, whatever its version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for kinds of the whole cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

impl From<&ObjectRef> for crate::names::ObjectRef {
    fn from(reference: &ObjectRef) -> Self {
        Self::new(reference.kind.as_str(), &reference.namespace, &reference.name)
    }
}

/// What decides which of two objects goes first where only one can win: the lesser does.
///
/// The older one does. Among objects created at the same time the name decides, then the namespace, as in Istio. Those
/// that do not say when they were created, as in files, go before those that do, by namespace and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seniority<'a> {
    /// When it was created, where that is known.
    pub created: Option<Timestamp>,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
}

impl Ord for Seniority<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let names = match self.created {
            None => (self.namespace, self.name).cmp(&(other.namespace, other.name)),
            Some(_) => (self.name, self.namespace).cmp(&(other.name, other.namespace)),
        };
        self.created.cmp(&other.created).then(names)
    }
}

impl PartialOrd for Seniority<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What all objects have: who they are, what is pinned on them, when they were made.
#[derive(Clone, Debug, PartialEq)]
pub struct Meta {
    /// Group and version.
    pub api_version: String,
    /// The kind.
    pub kind: Kind,
    /// The namespace; empty for kinds of the whole cluster.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// When it was created; files rarely say.
    pub creation_timestamp: Option<Timestamp>,
}

/// Makes the enums over all kinds and the functions that only pass a question on to the variant.
macro_rules! kinds {
    ($($kind:ident),+ $(,)?) => {
        /// The kinds of policy objects.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $(#[doc = concat!("`", stringify!($kind), "`.")] $kind),+
        }

        impl Kind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$kind),+];

            /// The name as it stands in objects.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => stringify!($kind)),+ }
            }

            /// The API group.
            pub fn group(self) -> String {
                match self { $(Self::$kind => $kind::group(&()).into_owned()),+ }
            }

            /// The version that the types are written for.
            pub fn version(self) -> String {
                match self { $(Self::$kind => $kind::version(&()).into_owned()),+ }
            }

            /// The name in the API server's paths.
            pub fn plural(self) -> String {
                match self { $(Self::$kind => $kind::plural(&()).into_owned()),+ }
            }

            /// The definition as derived from the type, before `definition` adapts it to the API server.
            pub(super) fn derived_definition(self) -> super::definition::Derived {
                match self { $(Self::$kind => <$kind as kube::CustomResourceExt>::crd()),+ }
            }

            /// The schema as derived from the type.
            pub(super) fn derived_schema(self) -> Value {
                match self { $(Self::$kind => super::definition::derived_schema::<$kind>()),+ }
            }
        }

        /// One policy object.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Object {
            $(#[doc = concat!("A `", stringify!($kind), "`.")] $kind(Box<$kind>)),+
        }

        impl Object {
            /// Reads an object of a kind from JSON; a missing `spec` is an empty one. Unknown fields are passed over:
            /// the YAML reader finds them.
            pub fn from_value(kind: Kind, mut value: Value) -> Result<Self, serde_json::Error> {
                if let Some(object) = value.as_object_mut() {
                    for part in ["metadata", "spec"] {
                        object.entry(part).or_insert_with(|| Value::Object(serde_json::Map::new()));
                    }
                }
                Ok(match kind { $(Kind::$kind => Self::$kind(serde_json::from_value(value)?)),+ })
            }

            /// The object as JSON, in the version that the types are written for.
            pub fn to_value(&self) -> Result<Value, serde_json::Error> {
                match self { $(Self::$kind(object) => serde_json::to_value(object)),+ }
            }

            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind),+ }
            }

            /// Kubernetes' own metadata.
            pub fn metadata(&self) -> &ObjectMeta {
                match self { $(Self::$kind(object) => &object.metadata),+ }
            }

            /// Kubernetes' own metadata, to change.
            pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
                match self { $(Self::$kind(object) => &mut object.metadata),+ }
            }
        }

        $(impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Box::new(object))
            }
        })+
    };
}

kinds!(
    VirtualService,
    DestinationRule,
    Gateway,
    ServiceEntry,
    Sidecar,
    WorkloadEntry,
    WorkloadGroup,
    ProxyConfig,
    AuthorizationPolicy,
    PeerAuthentication,
    RequestAuthentication,
    Telemetry,
    MeshConfig,
);

impl Kind {
    /// The kind of that name, whatever its group.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == name)
    }

    /// Whether objects of the kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        self != Self::MeshConfig
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Object {
    /// Its name.
    pub fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }

    /// Its namespace; empty for kinds of the whole cluster.
    pub fn namespace(&self) -> &str {
        self.metadata().namespace.as_deref().unwrap_or_default()
    }

    /// When it was created, where that is known.
    pub fn creation_timestamp(&self) -> Option<Timestamp> {
        self.metadata().creation_timestamp.as_ref().map(|time| time.0)
    }

    /// Its place among objects of its kind where only one can win.
    pub fn seniority(&self) -> Seniority<'_> {
        Seniority {
            created: self.creation_timestamp(),
            namespace: self.namespace(),
            name: self.name(),
        }
    }

    /// Which object it is.
    pub fn reference(&self) -> ObjectRef {
        ObjectRef {
            kind: self.kind(),
            namespace: self.namespace().to_owned(),
            name: self.name().to_owned(),
        }
    }

    /// The distilled metadata.
    pub fn meta(&self) -> Meta {
        let metadata = self.metadata();
        Meta {
            api_version: format!("{}/{}", self.kind().group(), self.kind().version()),
            kind: self.kind(),
            namespace: self.namespace().to_owned(),
            name: self.name().to_owned(),
            labels: metadata.labels.clone().unwrap_or_default(),
            annotations: metadata.annotations.clone().unwrap_or_default(),
            creation_timestamp: self.creation_timestamp(),
        }
    }
}
