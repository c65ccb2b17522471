//! What the injector is told: YAML of a file comes in, a checked [`InjectorConfig`] goes out. Nothing here looks at a pod.

mod check;
mod live;

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use mesh_api::duration::Duration;
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use check::InvalidConfig;
pub(crate) use check::{exceeded, is_image};
pub use live::LiveConfig;

/// Namespaces of Kubernetes' own parts, where Istio does not inject either.
pub const SYSTEM_NAMESPACES: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// All settings of injection. Every key may be left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct InjectorConfig {
    /// The images of the containers that are added.
    pub images: Images,
    /// When nodes pull them: `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: String,
    /// Secrets with registry credentials, added to injected pods.
    pub image_pull_secrets: Vec<String>,
    /// The namespace of the mesh itself: its pods are not injected.
    pub mesh_namespace: String,
    /// The trust domain of the mesh's identities.
    pub trust_domain: String,
    /// Where the proxies find the control plane.
    pub control_plane: ControlPlane,
    /// The audience of the proxies' tokens.
    pub token_audience: String,
    /// How long the proxies' tokens live, from 600 s; the kubelet renews them before.
    pub token_expiration_seconds: i64,
    /// The ConfigMap with the mesh's root certificates, in each namespace of the mesh.
    pub root_cert_config_map: String,
    /// What the status of injected pods, and `istio.io/rev` of namespaces, call this installation.
    pub revision: String,
    /// The proxy's container.
    pub proxy: ProxyDefaults,
    /// The init container.
    pub init: InitDefaults,
    /// Whether the proxy is an init container that keeps running. `auto`: where every node of the cluster can.
    pub native_sidecar: Toggle,
    /// Whether probes go through the proxy, so that they work under strict mutual TLS.
    #[serde(rename = "rewriteAppHTTPProbers")]
    pub rewrite_probes: bool,
    /// Whether metrics of applications are merged with the proxy's.
    pub enable_prometheus_merge: bool,
    /// Which connections are redirected.
    pub interception: Interception,
    /// Whether namespaces without a label are injected.
    pub enable_namespaces_by_default: bool,
    /// Whether Istio's labels count (`istio-injection`, `sidecar.istio.io/inject`, `istio.io/rev`) or only
    /// `mesh.dev/inject`. `auto`: they count unless Istio's injector is in the cluster too.
    pub istio_labels: Toggle,
    /// Pods that are injected without being asked for by a label of theirs.
    pub always_inject_selector: Vec<LabelSelector>,
    /// Pods that are not injected unless a label of theirs asks for it; before `alwaysInjectSelector`.
    pub never_inject_selector: Vec<LabelSelector>,
    /// Namespaces that are never injected, beside that of the mesh.
    pub ignored_namespaces: Vec<String>,
}

/// Images of the added containers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Images {
    /// The proxy's.
    pub proxy: String,
    /// The init container's; empty is the proxy's.
    pub init: String,
}

/// Where the control plane is, and who.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ControlPlane {
    /// Host and port of discovery and certificates; empty is the Service `mesh-control` of the mesh's namespace.
    pub address: String,
    /// `<namespace>/<service account>` of its certificate; empty is `mesh-control` of the mesh's namespace.
    pub identity: String,
}

/// Requests and limits of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// What is set aside.
    pub requests: BTreeMap<String, String>,
    /// What is allowed.
    pub limits: BTreeMap<String, String>,
}

/// Settings of the proxy where a pod says nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProxyDefaults {
    /// Requests and limits.
    pub resources: Resources,
    /// trace, debug, info, warning, error or off.
    pub log_level: String,
    /// Worker threads; absent is the CPU limit of the container.
    pub concurrency: Option<u16>,
    /// How long connections may finish after SIGTERM; absent is the pod's grace period.
    pub termination_drain_duration: Option<Duration>,
    /// The address that metrics and readiness are served on: `0.0.0.0`, or `[::]` where pods have IPv6 addresses.
    pub listen_address: String,
    /// Whether applications start after the proxy is ready, where it is no native sidecar.
    pub hold_application_until_proxy_starts: bool,
    /// The readiness probe.
    pub readiness: ProbeTimes,
    /// The startup probe of a native sidecar; the application starts when it succeeds.
    pub startup: ProbeTimes,
    /// Further environment of the proxy.
    pub env: BTreeMap<String, String>,
}

/// When a probe is made, and how often it may fail.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProbeTimes {
    /// Before the first.
    #[serde(default)]
    pub initial_delay_seconds: i32,
    /// Between two.
    pub period_seconds: i32,
    /// In a row.
    pub failure_threshold: i32,
}

/// Settings of the init container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct InitDefaults {
    /// Requests and limits.
    pub resources: Resources,
}

/// Which connections are redirected to the proxy where a pod says nothing else: lists with commas, `*` for all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Interception {
    /// Inbound ports.
    pub include_inbound_ports: String,
    /// Inbound ports that are left alone.
    pub exclude_inbound_ports: String,
    /// Outbound ports, whatever the address.
    pub include_outbound_ports: String,
    /// Outbound ports that are left alone.
    pub exclude_outbound_ports: String,
    /// Outbound address ranges.
    #[serde(rename = "includeOutboundIPRanges")]
    pub include_outbound_ranges: String,
    /// Outbound address ranges that are left alone.
    #[serde(rename = "excludeOutboundIPRanges")]
    pub exclude_outbound_ranges: String,
    /// Interfaces that are left alone.
    pub exclude_interfaces: String,
}

/// Yes, no, or as the cluster is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Toggle {
    /// As the cluster is.
    #[default]
    Auto,
    /// Yes.
    True,
    /// No.
    False,
}

impl Toggle {
    /// The answer, where the cluster says `auto`.
    pub fn or(self, auto: bool) -> bool {
        match self {
            Self::Auto => auto,
            Self::True => true,
            Self::False => false,
        }
    }
}

impl InjectorConfig {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// When the text is not YAML, has a key that does not exist, or a value that cannot work.
    pub fn parse(yaml: &str) -> Result<Self, InvalidConfig> {
        let config: Self = if yaml.trim().is_empty() {
            Self::default()
        } else {
            serde_saphyr::from_str(yaml)?
        };
        config.check()?;
        Ok(config)
    }

    /// Where the proxies find the control plane.
    pub fn control_plane_address(&self) -> String {
        match self.control_plane.address.as_str() {
            "" => format!("mesh-control.{}.svc:15012", self.mesh_namespace),
            address => address.to_owned(),
        }
    }

    /// Whom the control plane's certificate names.
    pub fn control_plane_identity(&self) -> String {
        match self.control_plane.identity.as_str() {
            "" => format!("{}/mesh-control", self.mesh_namespace),
            identity => identity.to_owned(),
        }
    }

    /// The init container's image.
    pub fn init_image(&self) -> &str {
        match self.images.init.as_str() {
            "" => &self.images.proxy,
            image => image,
        }
    }
}

impl Default for InjectorConfig {
    fn default() -> Self {
        Self {
            images: Images::default(),
            image_pull_policy: "IfNotPresent".to_owned(),
            image_pull_secrets: Vec::new(),
            mesh_namespace: "mesh-system".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            control_plane: ControlPlane::default(),
            token_audience: "mesh-ca".to_owned(),
            token_expiration_seconds: 43_200,
            root_cert_config_map: "mesh-ca-root-cert".to_owned(),
            revision: "default".to_owned(),
            proxy: ProxyDefaults::default(),
            init: InitDefaults::default(),
            native_sidecar: Toggle::Auto,
            rewrite_probes: true,
            enable_prometheus_merge: true,
            interception: Interception::default(),
            enable_namespaces_by_default: false,
            istio_labels: Toggle::Auto,
            always_inject_selector: Vec::new(),
            never_inject_selector: Vec::new(),
            ignored_namespaces: SYSTEM_NAMESPACES.map(str::to_owned).to_vec(),
        }
    }
}

impl Default for Images {
    fn default() -> Self {
        Self {
            proxy: concat!("mesh.dev/mesh-proxy:", env!("CARGO_PKG_VERSION")).to_owned(),
            init: String::new(),
        }
    }
}

impl Resources {
    /// Requests and limits of both CPU and memory, so that quotas of namespaces are met.
    fn of(request: [&str; 2], limit: [&str; 2]) -> Self {
        let map =
            |[cpu, memory]: [&str; 2]| [("cpu", cpu), ("memory", memory)].map(|(k, v)| (k.to_owned(), v.to_owned()));
        Self {
            requests: BTreeMap::from(map(request)),
            limits: BTreeMap::from(map(limit)),
        }
    }
}

impl Default for ProxyDefaults {
    fn default() -> Self {
        Self {
            resources: Resources::of(["10m", "32Mi"], ["2", "512Mi"]),
            log_level: "info".to_owned(),
            concurrency: None,
            termination_drain_duration: None,
            listen_address: "0.0.0.0".to_owned(),
            hold_application_until_proxy_starts: true,
            readiness: ProbeTimes {
                initial_delay_seconds: 0,
                period_seconds: 15,
                failure_threshold: 4,
            },
            startup: ProbeTimes {
                initial_delay_seconds: 0,
                period_seconds: 1,
                failure_threshold: 600,
            },
            env: BTreeMap::new(),
        }
    }
}

impl Default for InitDefaults {
    fn default() -> Self {
        Self {
            resources: Resources::of(["10m", "16Mi"], ["1", "64Mi"]),
        }
    }
}

impl Default for Interception {
    fn default() -> Self {
        Self {
            include_inbound_ports: "*".to_owned(),
            exclude_inbound_ports: String::new(),
            include_outbound_ports: String::new(),
            exclude_outbound_ports: String::new(),
            include_outbound_ranges: "*".to_owned(),
            exclude_outbound_ranges: String::new(),
            exclude_interfaces: String::new(),
        }
    }
}

impl Serialize for Toggle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::True => serializer.serialize_bool(true),
            Self::False => serializer.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for Toggle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Toggle;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("auto, true or false")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Toggle, E> {
                Ok(if value { Toggle::True } else { Toggle::False })
            }

            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Toggle, E> {
                match value {
                    "auto" => Ok(Toggle::Auto),
                    "true" => Ok(Toggle::True),
                    "false" => Ok(Toggle::False),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(value), &self)),
                }
            }
        }
        deserializer.deserialize_any(Reader).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests;
