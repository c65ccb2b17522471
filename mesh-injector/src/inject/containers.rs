//! The containers and volumes that are added to a pod.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource, ExecAction, HTTPGetAction,
    Lifecycle, LifecycleHandler, ObjectFieldSelector, Pod, Probe, ProjectedVolumeSource, ResourceRequirements,
    SeccompProfile, SecurityContext, ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mesh_api::duration::Duration;

use super::Mode;
use super::probes::Probers;
use super::settings::Settings;
use crate::config::{InjectorConfig, ProbeTimes, Resources};
use crate::names::*;

const TOKEN_DIRECTORY: &str = "/var/run/secrets/tokens";
const ROOT_DIRECTORY: &str = "/var/run/secrets/mesh";
/// Kubernetes' own default.
const GRACE_PERIOD_SECONDS: i64 = 30;

/// What the proxy is told beside its settings.
pub(super) struct Told<'a> {
    /// The application's probes.
    pub probers: &'a Probers,
    /// What the application's annotations say of its metrics.
    pub prometheus: Option<String>,
    /// Native sidecar or ordinary container.
    pub mode: Mode,
}

/// The proxy's container.
pub(super) fn proxy(pod: &Pod, config: &InjectorConfig, settings: &Settings, told: &Told<'_>) -> Container {
    let mut mounts = vec![mount(TOKEN_VOLUME, TOKEN_DIRECTORY), mount(ROOT_VOLUME, ROOT_DIRECTORY)];
    mounts.extend(settings.mounts.iter().cloned());
    let native = told.mode == Mode::Native;
    let exec = |command: &str| LifecycleHandler {
        exec: Some(ExecAction {
            command: Some(vec![PROXY_BINARY.to_owned(), command.to_owned()]),
        }),
        ..LifecycleHandler::default()
    };
    Container {
        name: PROXY_CONTAINER.to_owned(),
        image: Some(settings.image.clone()),
        image_pull_policy: Some(config.image_pull_policy.clone()),
        command: Some(vec![PROXY_BINARY.to_owned()]),
        env: Some(environment(pod, config, settings, told)),
        ports: Some(vec![ContainerPort {
            name: Some("http-envoy-prom".to_owned()),
            container_port: i32::from(METRICS_PORT),
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        resources: Some(requirements(&settings.resources)),
        restart_policy: native.then(|| "Always".to_owned()),
        readiness_probe: Some(readiness(settings.readiness, 3)),
        startup_probe: native.then(|| readiness(config.proxy.startup, 1)),
        lifecycle: Some(Lifecycle {
            // An ordinary container's successors start when its hook has ended.
            post_start: (!native && settings.hold).then(|| exec("wait")),
            // An ordinary container is told to end together with the application, and stays for a while by itself.
            pre_stop: native.then(|| exec("drain")),
            ..Lifecycle::default()
        }),
        security_context: Some(unprivileged()),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

/// The init container.
pub(super) fn init(config: &InjectorConfig, settings: &Settings) -> Container {
    let mut arguments = vec!["intercept".to_owned()];
    arguments.extend(settings.capture.arguments());
    Container {
        name: INIT_CONTAINER.to_owned(),
        image: Some(settings.init_image.clone()),
        image_pull_policy: Some(config.image_pull_policy.clone()),
        command: Some(vec![PROXY_BINARY.to_owned()]),
        args: Some(arguments),
        resources: Some(requirements(&config.init.resources)),
        security_context: Some(SecurityContext {
            run_as_user: Some(0),
            run_as_group: Some(0),
            run_as_non_root: Some(false),
            capabilities: Some(Capabilities {
                add: Some(vec!["NET_ADMIN".to_owned()]),
                drop: Some(vec!["ALL".to_owned()]),
            }),
            ..unprivileged()
        }),
        ..Container::default()
    }
}

/// The volumes of token and root certificates.
pub(super) fn volumes(config: &InjectorConfig) -> Vec<Volume> {
    let token = ServiceAccountTokenProjection {
        audience: Some(config.token_audience.clone()),
        expiration_seconds: Some(config.token_expiration_seconds),
        path: TOKEN_VOLUME.to_owned(),
    };
    vec![
        Volume {
            name: TOKEN_VOLUME.to_owned(),
            projected: Some(ProjectedVolumeSource {
                sources: Some(vec![VolumeProjection {
                    service_account_token: Some(token),
                    ..VolumeProjection::default()
                }]),
                ..ProjectedVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume {
            name: ROOT_VOLUME.to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: config.root_cert_config_map.clone(),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
    ]
}

fn environment(pod: &Pod, config: &InjectorConfig, settings: &Settings, told: &Told<'_>) -> Vec<EnvVar> {
    let listen = &config.proxy.listen_address;
    let mut variables = vec![
        field("MESH_WORKLOAD", "metadata.name"),
        field("MESH_NAMESPACE", "metadata.namespace"),
        field("MESH_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        field("MESH_ADDRESS", "status.podIP"),
        text("MESH_TRUST_DOMAIN", &config.trust_domain),
        text("MESH_CONTROL_PLANE", config.control_plane_address()),
        text("MESH_CONTROL_PLANE_IDENTITY", config.control_plane_identity()),
        text("MESH_TOKEN_FILE", format!("{TOKEN_DIRECTORY}/{TOKEN_VOLUME}")),
        text("MESH_ROOT_CERT_FILE", format!("{ROOT_DIRECTORY}/root-cert.pem")),
        text("MESH_CAPTURE", "true"),
        text("MESH_METRICS", format!("{listen}:{METRICS_PORT}")),
        text("MESH_READINESS", format!("{listen}:{READINESS_PORT}")),
        text("MESH_STATUS_PORT", STATUS_PORT.to_string()),
        text("MESH_DRAIN_DURATION", drain(pod, settings).to_string()),
        text("MESH_LOG", &settings.log),
    ];
    if let Some(workers) = settings.concurrency {
        variables.push(text("MESH_CONCURRENCY", workers.to_string()));
    }
    if !told.probers.is_empty() {
        let probers = serde_json::to_string(told.probers).unwrap_or_default();
        variables.push(text("MESH_APP_PROBERS", probers));
    }
    if let Some(prometheus) = &told.prometheus {
        variables.push(text("MESH_PROMETHEUS", prometheus));
    }
    for (name, value) in &settings.env {
        variables.retain(|variable| variable.name != *name);
        variables.push(text(name, value));
    }
    variables
}

/// Connections may finish as long as the pod is given: the proxy ends sooner when there are none.
fn drain(pod: &Pod, settings: &Settings) -> Duration {
    settings.drain.unwrap_or_else(|| {
        let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        let seconds = grace.unwrap_or(GRACE_PERIOD_SECONDS).max(0);
        Duration::from_secs(u32::try_from(seconds).unwrap_or(u32::MAX))
    })
}

/// Everything that the restricted standard of pod security asks for.
fn unprivileged() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            add: None,
            drop: Some(vec!["ALL".to_owned()]),
        }),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_user: Some(PROXY_UID),
        run_as_group: Some(PROXY_UID),
        run_as_non_root: Some(true),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            ..SeccompProfile::default()
        }),
        ..SecurityContext::default()
    }
}

fn readiness(times: ProbeTimes, timeout: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some("/healthz/ready".to_owned()),
            port: IntOrString::Int(i32::from(READINESS_PORT)),
            ..HTTPGetAction::default()
        }),
        initial_delay_seconds: Some(times.initial_delay_seconds),
        period_seconds: Some(times.period_seconds),
        failure_threshold: Some(times.failure_threshold),
        timeout_seconds: Some(timeout),
        ..Probe::default()
    }
}

fn requirements(resources: &Resources) -> ResourceRequirements {
    let map = |amounts: &BTreeMap<String, String>| {
        let amounts: BTreeMap<_, _> = amounts.iter().map(|(k, v)| (k.clone(), Quantity(v.clone()))).collect();
        (!amounts.is_empty()).then_some(amounts)
    };
    ResourceRequirements {
        requests: map(&resources.requests),
        limits: map(&resources.limits),
        ..ResourceRequirements::default()
    }
}

fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    }
}

fn text(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: Some(value.into()),
        ..EnvVar::default()
    }
}

fn field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: path.to_owned(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}
