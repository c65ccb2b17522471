//! What a pod's annotations say about its proxy, over the injector's configuration. Annotations are the users' input:
//! each is checked, and one that cannot work is an error that names it and its value.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Volume, VolumeMount};
use mesh_api::duration::Duration;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::capture::{self, Capture};
use crate::config::{InjectorConfig, ProbeTimes, Resources, exceeded, is_image};
use crate::names::*;
use crate::quantity;

/// An annotation that cannot work. The pod is refused, as Istio refuses it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation {annotation}: {value:?}: {reason}")]
pub struct InvalidAnnotation {
    /// The annotation.
    pub annotation: String,
    /// Its value.
    pub value: String,
    /// What is wrong with it, or what is expected.
    pub reason: String,
}

/// The proxy of one pod.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The proxy's image.
    pub image: String,
    /// The init container's image.
    pub init_image: String,
    /// The proxy's requests and limits.
    pub resources: Resources,
    /// What the proxy logs, as a filter.
    pub log: String,
    /// Worker threads.
    pub concurrency: Option<u16>,
    /// How long connections may finish.
    pub drain: Option<Duration>,
    /// Whether applications wait for the proxy.
    pub hold: bool,
    /// What the annotation says about native sidecars.
    pub native: Option<bool>,
    /// Whether probes go through the proxy.
    pub rewrite_probes: bool,
    /// Whether metrics are merged.
    pub merge_metrics: bool,
    /// Which connections are redirected.
    pub capture: Capture,
    /// The readiness probe.
    pub readiness: ProbeTimes,
    /// Further volumes of the pod.
    pub volumes: Vec<Volume>,
    /// Further mounts of the proxy.
    pub mounts: Vec<VolumeMount>,
    /// Further environment of the proxy.
    pub env: BTreeMap<String, String>,
    /// What was written and does nothing.
    pub warnings: Vec<String>,
}

/// The part of Istio's ProxyConfig that says something here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ProxyConfigAnnotation {
    concurrency: Option<i64>,
    termination_drain_duration: Option<Duration>,
    drain_duration: Option<Duration>,
    hold_application_until_proxy_starts: Option<bool>,
    proxy_metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// Istio's levels as filters of the log; none if there is no such level.
pub fn log_filter(level: &str) -> Option<&'static str> {
    Some(match level {
        "trace" => "trace",
        "debug" => "debug",
        "info" => "info",
        "warning" | "warn" => "warn",
        "error" | "critical" => "error",
        "off" => "off",
        _ => return None,
    })
}

impl Settings {
    /// Reads a pod's annotations.
    ///
    /// # Errors
    /// At the first annotation whose value cannot work.
    pub fn read(pod: &Pod, config: &InjectorConfig) -> Result<Self, InvalidAnnotation> {
        let empty = BTreeMap::new();
        let annotations = Annotations(pod.metadata.annotations.as_ref().unwrap_or(&empty));
        let proxy = annotations.proxy_config()?;
        let mut warnings = annotations.without_effect();
        warnings.extend(
            proxy
                .others
                .keys()
                .map(|key| format!("annotation {PROXY_CONFIG}: {key} has no effect in this mesh")),
        );
        let concurrency = match proxy.concurrency {
            None => config.proxy.concurrency,
            // As in Istio: as many as the container has CPUs.
            Some(0) => None,
            Some(workers) => match u16::try_from(workers).ok().filter(|workers| *workers <= 256) {
                Some(workers) => Some(workers),
                None => return Err(annotations.invalid(PROXY_CONFIG, "concurrency: expected 0 to 256")),
            },
        };
        let (own, foreign): (BTreeMap<_, _>, BTreeMap<_, _>) = proxy
            .proxy_metadata
            .into_iter()
            .partition(|(key, _)| key.starts_with("MESH_"));
        warnings.extend(
            foreign
                .keys()
                .map(|key| format!("annotation {PROXY_CONFIG}: proxyMetadata.{key} has no effect in this mesh")),
        );
        let mut env = config.proxy.env.clone();
        env.extend(own);
        Ok(Self {
            image: annotations
                .image(PROXY_IMAGE)?
                .unwrap_or_else(|| config.images.proxy.clone()),
            init_image: config.init_image().to_owned(),
            resources: annotations.resources(&config.proxy.resources)?,
            log: annotations.log(&config.proxy.log_level)?,
            concurrency,
            drain: proxy
                .termination_drain_duration
                .or(proxy.drain_duration)
                .or(config.proxy.termination_drain_duration),
            hold: proxy
                .hold_application_until_proxy_starts
                .unwrap_or(config.proxy.hold_application_until_proxy_starts),
            native: annotations.boolean(NATIVE_SIDECAR)?,
            rewrite_probes: annotations.boolean(REWRITE_PROBES)?.unwrap_or(config.rewrite_probes),
            merge_metrics: annotations
                .boolean(MERGE_METRICS)?
                .unwrap_or(config.enable_prometheus_merge),
            capture: annotations.capture(config)?,
            readiness: annotations.readiness(config.proxy.readiness)?,
            volumes: annotations.named::<Volume>(USER_VOLUME)?,
            mounts: annotations.named::<VolumeMount>(USER_VOLUME_MOUNT)?,
            env,
            warnings,
        })
    }
}

struct Annotations<'a>(&'a BTreeMap<String, String>);

impl Annotations<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn invalid(&self, name: &str, reason: impl ToString) -> InvalidAnnotation {
        InvalidAnnotation {
            annotation: name.to_owned(),
            value: self.get(name).unwrap_or_default().to_owned(),
            reason: reason.to_string(),
        }
    }

    /// Reads one, if it is there.
    fn read<T>(&self, name: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, InvalidAnnotation> {
        self.get(name)
            .map(|value| read(value).map_err(|reason| self.invalid(name, reason)))
            .transpose()
    }

    fn boolean(&self, name: &str) -> Result<Option<bool>, InvalidAnnotation> {
        self.read(name, |value| match value {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err("expected true or false".to_owned()),
        })
    }

    fn seconds(&self, name: &str, least: i32, default: i32) -> Result<i32, InvalidAnnotation> {
        let read = |value: &str| match value.parse::<i32>() {
            Ok(number) if number >= least => Ok(number),
            _ => Err(format!("expected a whole number, {least} or more")),
        };
        Ok(self.read(name, read)?.unwrap_or(default))
    }

    fn image(&self, name: &str) -> Result<Option<String>, InvalidAnnotation> {
        self.read(name, |value| match is_image(value) {
            true => Ok(value.to_owned()),
            false => Err("expected the name of an image".to_owned()),
        })
    }

    fn log(&self, default: &str) -> Result<String, InvalidAnnotation> {
        let level = self.get(LOG_LEVEL).unwrap_or(default);
        log_filter(level)
            .map(str::to_owned)
            .ok_or_else(|| self.invalid(LOG_LEVEL, "expected trace, debug, info, warning, error or off"))
    }

    fn readiness(&self, default: ProbeTimes) -> Result<ProbeTimes, InvalidAnnotation> {
        Ok(ProbeTimes {
            initial_delay_seconds: self.seconds(READINESS_DELAY, 0, default.initial_delay_seconds)?,
            period_seconds: self.seconds(READINESS_PERIOD, 1, default.period_seconds)?,
            failure_threshold: self.seconds(READINESS_FAILURES, 1, default.failure_threshold)?,
        })
    }

    /// As in Istio: one of the four annotations replaces all of the defaults.
    fn resources(&self, default: &Resources) -> Result<Resources, InvalidAnnotation> {
        let mut resources = Resources::default();
        let mut any = false;
        for (annotation, limit, name) in [
            (PROXY_CPU, false, "cpu"),
            (PROXY_MEMORY, false, "memory"),
            (PROXY_CPU_LIMIT, true, "cpu"),
            (PROXY_MEMORY_LIMIT, true, "memory"),
        ] {
            let Some(amount) = self.get(annotation) else { continue };
            quantity::parse(amount).map_err(|e| self.invalid(annotation, e))?;
            let part = if limit {
                &mut resources.limits
            } else {
                &mut resources.requests
            };
            part.insert(name.to_owned(), amount.to_owned());
            any = true;
        }
        if let Some(name) = exceeded(&resources.requests, &resources.limits) {
            let annotation = if name == "cpu" { PROXY_CPU } else { PROXY_MEMORY };
            return Err(self.invalid(annotation, "it is more than the limit that another annotation sets"));
        }
        Ok(if any { resources } else { default.clone() })
    }

    fn capture(&self, config: &InjectorConfig) -> Result<Capture, InvalidAnnotation> {
        match self.get(INTERCEPTION_MODE) {
            None | Some("REDIRECT") => {}
            Some(_) => {
                let reason = "only REDIRECT is supported: remove the annotation, or leave the pod out of the mesh";
                return Err(self.invalid(INTERCEPTION_MODE, reason));
            }
        }
        type Read = fn(&str) -> Result<String, String>;
        let defaults = &config.interception;
        let value = |name: &str, read: Read, default: &str| -> Result<String, InvalidAnnotation> {
            Ok(self.read(name, read)?.unwrap_or_else(|| default.to_owned()))
        };
        let ranges = capture::ranges_or_all;
        Ok(Capture {
            inbound_ports: value(
                INCLUDE_INBOUND_PORTS,
                capture::ports_or_all,
                &defaults.include_inbound_ports,
            )?,
            exclude_inbound_ports: value(EXCLUDE_INBOUND_PORTS, capture::ports, &defaults.exclude_inbound_ports)?,
            outbound_ports: value(
                INCLUDE_OUTBOUND_PORTS,
                capture::ports_or_all,
                &defaults.include_outbound_ports,
            )?,
            exclude_outbound_ports: value(EXCLUDE_OUTBOUND_PORTS, capture::ports, &defaults.exclude_outbound_ports)?,
            outbound_ranges: value(INCLUDE_OUTBOUND_RANGES, ranges, &defaults.include_outbound_ranges)?,
            exclude_outbound_ranges: value(
                EXCLUDE_OUTBOUND_RANGES,
                capture::ranges,
                &defaults.exclude_outbound_ranges,
            )?,
            exclude_interfaces: value(EXCLUDE_INTERFACES, capture::interfaces, &defaults.exclude_interfaces)?,
        })
    }

    fn proxy_config(&self) -> Result<ProxyConfigAnnotation, InvalidAnnotation> {
        let read = |yaml: &str| {
            if yaml.trim().is_empty() {
                return Ok(ProxyConfigAnnotation::default());
            }
            serde_saphyr::from_str(yaml).map_err(|e| e.to_string())
        };
        Ok(self.read(PROXY_CONFIG, read)?.unwrap_or_default())
    }

    /// A JSON list of objects with names, or a JSON object of them by name.
    fn named<T: DeserializeOwned>(&self, annotation: &str) -> Result<Vec<T>, InvalidAnnotation> {
        let read = |json: &str| {
            let items = match serde_json::from_str(json).map_err(|e| e.to_string())? {
                Value::Array(items) => items,
                Value::Object(items) => items
                    .into_iter()
                    .map(|(name, mut item)| {
                        if let Some(item) = item.as_object_mut() {
                            item.insert("name".to_owned(), Value::String(name));
                        }
                        item
                    })
                    .collect(),
                _ => return Err("expected a JSON list".to_owned()),
            };
            items
                .into_iter()
                .map(|item| serde_json::from_value(item).map_err(|e| e.to_string()))
                .collect()
        };
        Ok(self.read(annotation, read)?.unwrap_or_default())
    }

    fn without_effect(&self) -> Vec<String> {
        self.0
            .keys()
            .filter(|name| WITHOUT_EFFECT.contains(&name.as_str()))
            .map(|name| format!("annotation {name} has no effect in this mesh"))
            .collect()
    }
}
