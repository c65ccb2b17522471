//! Whether a pod gets a proxy, and why. The pod, its namespace and what else is in the cluster come in; nothing is
//! looked up here. The first reason that applies decides, in the order of [`decide`].

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::config::InjectorConfig;
use crate::names::{
    DATAPLANE_MODE, INIT_CONTAINER, ISTIO_INJECTION, ISTIO_REVISION, MESH_INJECT, PROXY_CONTAINER, SIDECAR_INJECT,
    STATUS,
};
use crate::selector;

type Map = BTreeMap<String, String>;

/// What is known of the place where a pod is to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Surroundings {
    /// The namespace's name.
    pub namespace: String,
    /// The namespace's labels.
    pub namespace_labels: Map,
    /// The namespace's annotations.
    pub namespace_annotations: Map,
    /// Whether the injector of Istio is in the cluster.
    pub istio_injector: bool,
    /// Whether every node of the cluster can run native sidecars.
    pub native_sidecars: bool,
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It gets a proxy.
    Inject(Why),
    /// It stays as it is.
    Skip(WhyNot),
}

/// Why a pod gets a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its own label asks for it.
    PodLabel(&'static str),
    /// Its annotation asks for it, in a namespace that is in the mesh.
    PodAnnotation(&'static str),
    /// An entry of `alwaysInjectSelector` selects it.
    AlwaysInjectSelector(usize),
    /// The namespace's label asks for it.
    NamespaceLabel(&'static str),
    /// Namespaces without a label are injected.
    NamespacesByDefault,
}

/// Why a pod gets none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// It uses the network of its node.
    HostNetwork,
    /// Its namespace is one of the system's, or the mesh's own.
    SystemNamespace(String),
    /// It runs on Windows.
    Windows,
    /// It has the mesh's proxy already.
    AlreadyInjected,
    /// Another mesh has a proxy in it, or is going to; the text says by what that is seen.
    OtherMesh(String),
    /// The namespace's label says so.
    NamespaceOptedOut {
        /// The label.
        label: &'static str,
        /// Its value.
        value: String,
    },
    /// Its own label or annotation says so.
    PodOptedOut {
        /// The label or annotation.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// An entry of `neverInjectSelector` selects it.
    NeverInjectSelector(usize),
    /// The namespace belongs to another revision of Istio.
    OtherRevision(String),
    /// Nobody asks for it.
    NotAsked {
        /// A label of Istio's would ask for it, but Istio is in the cluster and it is Istio's.
        left_to_istio: bool,
    },
}

impl WhyNot {
    /// Whether somebody who asked for a proxy would be surprised: it is not their own word that keeps the pod out.
    pub fn is_notable(&self) -> bool {
        !matches!(
            self,
            Self::AlreadyInjected | Self::PodOptedOut { .. } | Self::NamespaceOptedOut { .. }
        )
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PodLabel(label) => write!(f, "the pod's label {label} asks for it"),
            Self::PodAnnotation(annotation) => write!(f, "the pod's annotation {annotation} asks for it"),
            Self::AlwaysInjectSelector(index) => write!(f, "alwaysInjectSelector[{index}] selects the pod"),
            Self::NamespaceLabel(label) => write!(f, "the namespace's label {label} asks for it"),
            Self::NamespacesByDefault => f.write_str("namespaces are injected by default"),
        }
    }
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostNetwork => f.write_str(
                "it uses the network of its node (hostNetwork), where redirecting connections would redirect the node's",
            ),
            Self::SystemNamespace(namespace) => write!(f, "pods of namespace {namespace} are never injected"),
            Self::Windows => f.write_str("it runs on Windows"),
            Self::AlreadyInjected => f.write_str("it has the mesh's proxy already"),
            Self::OtherMesh(sign) => write!(f, "{sign}: two meshes in one pod cannot work"),
            Self::NamespaceOptedOut { label, value } => write!(f, "the namespace's label {label}={value} says so"),
            Self::PodOptedOut { key, value } => write!(f, "the pod's {key} is {value:?}"),
            Self::NeverInjectSelector(index) => write!(f, "neverInjectSelector[{index}] selects the pod"),
            Self::OtherRevision(revision) => {
                write!(f, "the namespace belongs to revision {revision} of Istio ({ISTIO_REVISION})")
            }
            Self::NotAsked { left_to_istio: false } => {
                write!(f, "neither the namespace nor the pod asks for it ({MESH_INJECT}, {ISTIO_INJECTION})")
            }
            Self::NotAsked { left_to_istio: true } => write!(
                f,
                "Istio's injector is in the cluster, so that Istio's labels are left to it: use {MESH_INJECT}, or set \
                 istioLabels to true"
            ),
        }
    }
}

/// Decides about a pod. `pod` may be a template without name.
pub fn decide(pod: &Pod, around: &Surroundings, config: &InjectorConfig) -> Decision {
    let empty = Map::new();
    let empty_spec = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty_spec);
    let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&empty);

    if spec.host_network == Some(true) {
        return Decision::Skip(WhyNot::HostNetwork);
    }
    if around.namespace == config.mesh_namespace || config.ignored_namespaces.contains(&around.namespace) {
        return Decision::Skip(WhyNot::SystemNamespace(around.namespace.clone()));
    }
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        return Decision::Skip(WhyNot::Windows);
    }
    if is_injected(spec) {
        return Decision::Skip(WhyNot::AlreadyInjected);
    }
    if let Some(sign) = other_mesh(spec, labels, annotations, around) {
        return Decision::Skip(WhyNot::OtherMesh(sign));
    }

    let with_istio = config.istio_labels.or(!around.istio_injector);
    let namespace = namespace_choice(around, config, with_istio);
    if let Choice::No(reason) = namespace {
        return Decision::Skip(reason);
    }
    let namespace_asks = matches!(namespace, Choice::Yes(_)) || config.enable_namespaces_by_default;
    let keys: &[&'static str] = if with_istio {
        &[MESH_INJECT, SIDECAR_INJECT]
    } else {
        &[MESH_INJECT]
    };
    for key in keys {
        match labels.get(*key).filter(|value| !value.is_empty()) {
            Some(value) if is_yes(value) => return Decision::Inject(Why::PodLabel(key)),
            Some(value) => return opted_out(key, value),
            None => {}
        }
    }
    for key in keys {
        match annotations.get(*key).filter(|value| !value.is_empty()) {
            // As Istio's webhooks select: outside of the mesh's namespaces only the label asks.
            Some(value) if is_yes(value) && namespace_asks => return Decision::Inject(Why::PodAnnotation(key)),
            Some(value) if !is_yes(value) => return opted_out(key, value),
            _ => {}
        }
    }
    let selected = |selectors: &[_]| {
        selectors
            .iter()
            .position(|selector| selector::matches(selector, labels))
    };
    if let Some(index) = selected(&config.never_inject_selector) {
        return Decision::Skip(WhyNot::NeverInjectSelector(index));
    }
    if let Some(index) = selected(&config.always_inject_selector) {
        return Decision::Inject(Why::AlwaysInjectSelector(index));
    }
    match namespace {
        Choice::Yes(label) => Decision::Inject(Why::NamespaceLabel(label)),
        _ if config.enable_namespaces_by_default => Decision::Inject(Why::NamespacesByDefault),
        _ => Decision::Skip(WhyNot::NotAsked {
            left_to_istio: !with_istio && istio_would_ask(labels, around),
        }),
    }
}

/// Whether a pod, or its namespace by a label of either mesh, asks to be injected: who asked is told why it is not.
pub fn asks(pod: &Pod, around: &Surroundings) -> bool {
    let labels = pod.metadata.labels.as_ref();
    let asked = |key| {
        labels
            .and_then(|labels| labels.get(key))
            .is_some_and(|value| is_yes(value))
    };
    asked(MESH_INJECT) || asked(SIDECAR_INJECT) || enabled(around, MESH_INJECT)
}

/// Whether the mesh's proxy is in a pod.
pub fn is_injected(spec: &PodSpec) -> bool {
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let has = |containers: &[Container], name: &str| containers.iter().any(|container| container.name == name);
    has(init, INIT_CONTAINER) && (has(init, PROXY_CONTAINER) || has(&spec.containers, PROXY_CONTAINER))
}

/// What a namespace says.
enum Choice {
    Yes(&'static str),
    No(WhyNot),
    Nothing,
}

fn namespace_choice(around: &Surroundings, config: &InjectorConfig, with_istio: bool) -> Choice {
    let labels: &[&'static str] = if with_istio {
        &[MESH_INJECT, ISTIO_INJECTION]
    } else {
        &[MESH_INJECT]
    };
    for label in labels {
        match around.namespace_labels.get(*label).map(String::as_str) {
            Some("enabled" | "true") => return Choice::Yes(label),
            Some(value @ ("disabled" | "false")) => {
                return Choice::No(WhyNot::NamespaceOptedOut {
                    label,
                    value: value.to_owned(),
                });
            }
            _ => {}
        }
    }
    match around.namespace_labels.get(ISTIO_REVISION) {
        Some(revision) if with_istio && *revision == config.revision => Choice::Yes(ISTIO_REVISION),
        Some(revision) if with_istio => Choice::No(WhyNot::OtherRevision(revision.clone())),
        _ => Choice::Nothing,
    }
}

fn enabled(around: &Surroundings, label: &str) -> bool {
    around
        .namespace_labels
        .get(label)
        .is_some_and(|value| value == "enabled" || value == "true")
}

fn istio_would_ask(labels: &Map, around: &Surroundings) -> bool {
    enabled(around, ISTIO_INJECTION)
        || around.namespace_labels.contains_key(ISTIO_REVISION)
        || labels.get(SIDECAR_INJECT).is_some_and(|value| is_yes(value))
}

/// Istio's reading: every other text is a no.
fn is_yes(value: &str) -> bool {
    ["y", "yes", "true", "on", "enabled"]
        .iter()
        .any(|yes| value.eq_ignore_ascii_case(yes))
}

fn opted_out(key: &'static str, value: &str) -> Decision {
    Decision::Skip(WhyNot::PodOptedOut {
        key,
        value: value.to_owned(),
    })
}

/// Containers that other meshes add.
const FOREIGN_CONTAINERS: [(&str, &str); 6] = [
    (PROXY_CONTAINER, "Istio's"),
    ("istio-init", "Istio's"),
    ("linkerd-proxy", "Linkerd's"),
    ("consul-dataplane", "Consul's"),
    ("envoy-sidecar", "Consul's"),
    ("kuma-sidecar", "Kuma's"),
];

/// Labels and annotations by which pods and namespaces ask for another mesh, with the values that do.
const FOREIGN_MARKS: [(&str, &[&str], &str); 4] = [
    ("linkerd.io/inject", &["enabled", "ingress"], "Linkerd"),
    ("consul.hashicorp.com/connect-inject", &["true"], "Consul"),
    ("kuma.io/sidecar-injection", &["enabled", "true"], "Kuma"),
    (DATAPLANE_MODE, &["ambient"], "Istio's ambient mode"),
];

/// By what another mesh is seen in a pod, if it is.
fn other_mesh(spec: &PodSpec, labels: &Map, annotations: &Map, around: &Surroundings) -> Option<String> {
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    for container in containers {
        if let Some((name, whose)) = FOREIGN_CONTAINERS.iter().find(|(name, _)| container.name == *name) {
            if container.image.as_deref() == Some("auto") {
                return Some(format!(
                    "container {name} with image \"auto\" asks for a template of Istio's injector"
                ));
            }
            return Some(format!("container {name} is {whose} proxy"));
        }
    }
    if let Some(status) = annotations.get(STATUS)
        && !is_own_status(status)
    {
        return Some(format!("annotation {STATUS} is another mesh's"));
    }
    for (key, values, mesh) in FOREIGN_MARKS {
        let own = labels.get(key).or_else(|| annotations.get(key));
        let inherited = || {
            around
                .namespace_labels
                .get(key)
                .or_else(|| around.namespace_annotations.get(key))
        };
        // What the pod says stands before what its namespace says.
        let Some(value) = own.or_else(inherited) else { continue };
        if values.contains(&value.as_str()) {
            return Some(format!("{key}={value} asks for {mesh}"));
        }
    }
    None
}

/// Whether the status was written by this injector. A copy of it on a pod without the containers means nothing.
fn is_own_status(status: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(status).is_ok_and(|status| {
        status["initContainers"]
            .as_array()
            .is_some_and(|names| names.iter().any(|name| name == INIT_CONTAINER))
    })
}
