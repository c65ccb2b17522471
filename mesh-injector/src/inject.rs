//! What a pod becomes: a pod, what surrounds it and the configuration come in; the pod with a proxy beside it, or the
//! reason why it stays as it is, goes out. Pure functions: nothing is looked up, sent or kept here.

pub mod capture;
mod containers;
mod decision;
mod manifests;
mod patch;
mod probes;
mod prometheus;
mod settings;
mod workload;

use std::collections::BTreeMap;

use json_patch::Patch;
use k8s_openapi::api::core::v1::{LocalObjectReference, Pod, PodSecurityContext, PodSpec, SecurityContext};
use serde_json::json;

use crate::config::{InjectorConfig, Toggle};
use crate::names::*;
use containers::Told;
use settings::Settings;

pub use decision::{Decision, Surroundings, Why, WhyNot, asks, decide, is_injected};
pub use manifests::{ManifestError, Manifests, Reason, manifests, manifests_with_notes};
pub use settings::{InvalidAnnotation, log_filter};
pub(crate) use workload::workload as workload_of;

/// Labels of a namespace with the standard that its pods are held to.
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";

/// What became of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It gets a proxy.
    Injected {
        /// Why.
        why: Why,
        /// What makes the new pod out of the old.
        patch: Patch,
        /// What the user should know: settings without effect, and what will not work as it may have been meant.
        warnings: Vec<String>,
    },
    /// It stays as it is.
    Skipped {
        /// Why.
        why: WhyNot,
        /// Whether whoever made it asked for a proxy, and should be told.
        asked: bool,
    },
}

/// Why a pod that is to get a proxy cannot have one, and is refused as Istio refuses it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An annotation cannot work.
    #[error(transparent)]
    Annotation(#[from] InvalidAnnotation),
    /// The pod has a volume of the mesh's name.
    #[error("spec.volumes: {0:?} is a volume that the mesh adds: give the pod's own another name")]
    Volume(String),
    /// The pod has a container of the mesh's name.
    #[error("container {0:?} has the name of one that the mesh adds: give the pod's own another name")]
    Container(String),
}

/// How the proxy runs in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As an init container that keeps running: it starts before the others and ends after them.
    Native,
    /// As an ordinary container.
    Classic,
}

/// Decides about a pod and makes the patch. A pod that has its proxy already gets none: to be asked again is harmless.
///
/// # Errors
/// When the pod is to have a proxy and cannot.
pub fn inject(pod: &Pod, around: &Surroundings, config: &InjectorConfig) -> Result<Outcome, Refusal> {
    let why = match decide(pod, around, config) {
        Decision::Inject(why) => why,
        Decision::Skip(why) => {
            let asked = asks(pod, around);
            return Ok(Outcome::Skipped { why, asked });
        }
    };
    let (injected, warnings) = add_proxy(pod, around, config)?;
    // Both from the same types: what these do not know of a pod is in neither, and stays in the pod.
    let value = |pod: &Pod| serde_json::to_value(pod).unwrap_or_default();
    Ok(Outcome::Injected {
        why,
        patch: patch::between(&value(pod), &value(&injected)),
        warnings,
    })
}

/// The pod with its proxy, and what is to be said about it.
fn add_proxy(pod: &Pod, around: &Surroundings, config: &InjectorConfig) -> Result<(Pod, Vec<String>), Refusal> {
    let settings = Settings::read(pod, config)?;
    let mut warnings = settings.warnings.clone();
    let mut injected = pod.clone();
    let spec = injected.spec.get_or_insert_default();
    refuse_names(spec, &settings)?;
    let mode = mode(&settings, around, config, &mut warnings);
    warn(pod, spec, around, config, mode, &mut warnings);

    let probers = match settings.rewrite_probes {
        true => probes::rewrite(spec, mode == Mode::Native, &mut warnings),
        false => probes::Probers::new(),
    };
    let annotations = injected.metadata.annotations.get_or_insert_default();
    let prometheus = match settings.merge_metrics {
        true => prometheus::merge(annotations, &mut warnings),
        false => None,
    };
    let default_container = spec.containers.first().map(|container| container.name.clone());
    if let Some(container) = default_container {
        annotations.entry(DEFAULT_CONTAINER.to_owned()).or_insert(container);
    }
    let volumes = containers::volumes(config).into_iter().chain(settings.volumes.clone());
    let volumes: Vec<_> = volumes.collect();
    annotations.insert(STATUS.to_owned(), status(mode, &volumes, config));
    spec.volumes.get_or_insert_default().extend(volumes);

    let told = Told {
        probers: &probers,
        prometheus,
        mode,
    };
    let proxy = containers::proxy(pod, config, &settings, &told);
    let init = containers::init(config, &settings);
    let inits = spec.init_containers.get_or_insert_default();
    match mode {
        Mode::Native => {
            inits.insert(0, init);
            inits.insert(1, proxy);
        }
        Mode::Classic => {
            // Last: the proxy that the pod's own init containers would be redirected to does not run yet.
            inits.push(init);
            let at = if settings.hold { 0 } else { spec.containers.len() };
            spec.containers.insert(at, proxy);
        }
    }
    pull_secrets(spec, config);
    label(&mut injected);
    Ok((injected, warnings))
}

fn mode(settings: &Settings, around: &Surroundings, config: &InjectorConfig, warnings: &mut Vec<String>) -> Mode {
    let possible = around.native_sidecars || config.native_sidecar == Toggle::True;
    match settings.native.unwrap_or_else(|| config.native_sidecar.or(possible)) {
        true if possible => Mode::Native,
        true => {
            warnings.push(format!(
                "annotation {NATIVE_SIDECAR}: not every node of the cluster can run native sidecars; the proxy is an \
                 ordinary container"
            ));
            Mode::Classic
        }
        false => Mode::Classic,
    }
}

fn refuse_names(spec: &PodSpec, settings: &Settings) -> Result<(), Refusal> {
    let added = settings.volumes.iter().map(|volume| volume.name.as_str());
    let added: Vec<&str> = added.chain([TOKEN_VOLUME, ROOT_VOLUME]).collect();
    let own = spec.volumes.iter().flatten();
    if let Some(volume) = own.into_iter().find(|volume| added.contains(&volume.name.as_str())) {
        return Err(Refusal::Volume(volume.name.clone()));
    }
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    match all.into_iter().find(|container| container.name == INIT_CONTAINER) {
        Some(container) => Err(Refusal::Container(container.name.clone())),
        None => Ok(()),
    }
}

/// Says what will not work in the injected pod as it may have been meant.
fn warn(
    pod: &Pod,
    spec: &PodSpec,
    around: &Surroundings,
    config: &InjectorConfig,
    mode: Mode,
    warnings: &mut Vec<String>,
) {
    if let Some(standard @ ("baseline" | "restricted")) = around.namespace_labels.get(POD_SECURITY).map(String::as_str)
    {
        warnings.push(format!(
            "namespace {} enforces pod security {standard:?}, which refuses NET_ADMIN of init container \
             {INIT_CONTAINER}: label the namespace {POD_SECURITY}=privileged, or leave the pod out of the mesh",
            around.namespace
        ));
    }
    if is_proxys(spec.security_context.as_ref().map(of_pod)) {
        warnings.push(uid_warning("the pod"));
    }
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        if is_proxys(container.security_context.as_ref().map(of_container)) {
            warnings.push(uid_warning(&format!("container {}", container.name)));
        }
        for port in container.ports.iter().flatten() {
            if PROXY_PORTS.iter().any(|own| i32::from(*own) == port.container_port) {
                warnings.push(format!(
                    "container {} has port {}, which is the proxy's: one of the two cannot listen",
                    container.name, port.container_port
                ));
            }
        }
    }
    if mode == Mode::Classic && workload::completes(pod) {
        warnings.push(
            "the pod is meant to end, but its proxy is an ordinary container and keeps it running: use Kubernetes \
             1.29 or newer for native sidecars, or end with POST http://127.0.0.1:15000/quitquitquit"
                .to_owned(),
        );
    }
    if let Some(policy @ ("Default" | "None")) = spec.dns_policy.as_deref() {
        warnings.push(format!(
            "dnsPolicy {policy}: the proxy has to resolve {} by the pod's own DNS settings",
            config.control_plane_address()
        ));
    }
}

type User = (Option<i64>, Option<i64>);

fn of_pod(context: &PodSecurityContext) -> User {
    (context.run_as_user, context.run_as_group)
}

fn of_container(context: &SecurityContext) -> User {
    (context.run_as_user, context.run_as_group)
}

fn is_proxys(user: Option<User>) -> bool {
    user.is_some_and(|(user, group)| user == Some(PROXY_UID) || group == Some(PROXY_UID))
}

fn uid_warning(what: &str) -> String {
    format!(
        "{what} runs as user or group {PROXY_UID}, which is the proxy's: its outbound connections are not redirected \
         and go without mutual TLS and policy; use another user and group"
    )
}

/// Istio's form, read by its tools and by this injector when it is asked again.
fn status(mode: Mode, volumes: &[k8s_openapi::api::core::v1::Volume], config: &InjectorConfig) -> String {
    let (init, containers) = match mode {
        Mode::Native => (json!([INIT_CONTAINER, PROXY_CONTAINER]), json!(null)),
        Mode::Classic => (json!([INIT_CONTAINER]), json!([PROXY_CONTAINER])),
    };
    let names: Vec<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
    let secrets = &config.image_pull_secrets;
    json!({
        "initContainers": init,
        "containers": containers,
        "volumes": names,
        "imagePullSecrets": if secrets.is_empty() { json!(null) } else { json!(secrets) },
        "revision": config.revision,
    })
    .to_string()
}

fn pull_secrets(spec: &mut PodSpec, config: &InjectorConfig) {
    for name in &config.image_pull_secrets {
        let secrets = spec.image_pull_secrets.get_or_insert_default();
        if !secrets.iter().any(|secret| secret.name == *name) {
            secrets.push(LocalObjectReference { name: name.clone() });
        }
    }
}

fn label(pod: &mut Pod) {
    let (name, revision) = workload::canonical(pod);
    let labels: &mut BTreeMap<String, String> = pod.metadata.labels.get_or_insert_default();
    for (key, value) in [
        (TLS_MODE, "istio".to_owned()),
        (CANONICAL_NAME, name),
        (CANONICAL_REVISION, revision),
    ] {
        labels.entry(key.to_owned()).or_insert(value);
    }
}

#[cfg(test)]
mod tests;
