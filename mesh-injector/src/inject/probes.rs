//! Sends the kubelet's probes and lifecycle hooks through the proxy: the kubelet asks port 15020 in plaintext, the proxy
//! asks the application within the pod. Otherwise strict mutual TLS would refuse the kubelet, and connection probes
//! would succeed whatever the application does, since the proxy accepts for it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, PodSpec, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Map, Value, json};

use crate::names::{PROXY_PORTS, STATUS_PORT};

/// The longest that the proxy lets a check take.
const HOOK_TIMEOUT_SECONDS: i32 = 3600;

/// What the proxy is to ask for each path on port 15020, in the form of Istio's `ISTIO_KUBE_APP_PROBERS`.
pub type Probers = BTreeMap<String, Value>;

/// Rewrites the probes and hooks of a pod's own containers. `with_init` says whether the proxy is up before the init
/// containers are; otherwise theirs are left alone. What could not be rewritten is added to `warnings`.
pub fn rewrite(spec: &mut PodSpec, with_init: bool, warnings: &mut Vec<String>) -> Probers {
    let mut rewriter = Rewriter {
        probers: Probers::new(),
        warnings,
    };
    for container in &mut spec.containers {
        rewriter.container(container);
    }
    for container in spec.init_containers.iter_mut().flatten() {
        if container.restart_policy.as_deref() != Some("Always") {
            continue;
        }
        if with_init {
            rewriter.container(container);
        } else if has_probes(container) {
            rewriter.warnings.push(format!(
                "probes of init container {} do not go through the proxy, which starts after it: they fail under \
                 strict mutual TLS",
                container.name
            ));
        }
    }
    rewriter.probers
}

fn has_probes(container: &Container) -> bool {
    container.liveness_probe.is_some() || container.readiness_probe.is_some() || container.startup_probe.is_some()
}

struct Rewriter<'a> {
    probers: Probers,
    warnings: &'a mut Vec<String>,
}

impl Rewriter<'_> {
    fn container(&mut self, container: &mut Container) {
        let ports: BTreeMap<String, i32> = container
            .ports
            .iter()
            .flatten()
            .filter_map(|port| Some((port.name.clone()?, port.container_port)))
            .collect();
        let at = Place {
            container: container.name.clone(),
            ports,
        };
        for (probe, page) in [
            (&mut container.liveness_probe, "livez"),
            (&mut container.readiness_probe, "readyz"),
            (&mut container.startup_probe, "startupz"),
        ] {
            if let Some(probe) = probe {
                self.probe(probe, &at, page);
            }
        }
        if let Some(lifecycle) = &mut container.lifecycle {
            for (hook, page) in [
                (&mut lifecycle.post_start, "poststartz"),
                (&mut lifecycle.pre_stop, "prestopz"),
            ] {
                if let Some(hook) = hook {
                    self.hook(hook, &at, page);
                }
            }
        }
    }

    fn probe(&mut self, probe: &mut Probe, at: &Place, page: &str) {
        let path = format!("/app-health/{}/{page}", at.container);
        let mut prober = Map::new();
        if let Some(get) = &probe.http_get {
            let Some(get) = self.http_get(get, at, page) else {
                return;
            };
            prober.insert("httpGet".to_owned(), get);
        } else if let Some(socket) = &probe.tcp_socket {
            let Some(socket) = self.tcp_socket(socket, at, page) else {
                return;
            };
            prober.insert("tcpSocket".to_owned(), socket);
        } else if let Some(grpc) = &probe.grpc {
            if is_proxys(grpc.port) {
                return;
            }
            prober.insert(
                "grpc".to_owned(),
                json!({ "port": grpc.port, "service": grpc.service.clone().unwrap_or_default() }),
            );
        } else {
            return;
        }
        if let Some(timeout) = probe.timeout_seconds {
            prober.insert("timeoutSeconds".to_owned(), timeout.into());
        }
        self.probers.insert(path.clone(), Value::Object(prober));
        probe.http_get = Some(through_proxy(path));
        probe.tcp_socket = None;
        probe.grpc = None;
    }

    fn hook(&mut self, hook: &mut LifecycleHandler, at: &Place, page: &str) {
        let path = format!("/app-lifecycle/{}/{page}", at.container);
        let mut prober = Map::new();
        if let Some(get) = &hook.http_get {
            let Some(get) = self.http_get(get, at, page) else {
                return;
            };
            prober.insert("httpGet".to_owned(), get);
        } else if let Some(socket) = &hook.tcp_socket {
            let Some(socket) = self.tcp_socket(socket, at, page) else {
                return;
            };
            prober.insert("tcpSocket".to_owned(), socket);
        } else {
            return;
        }
        // The kubelet gives hooks as long as the pod has; a probe's second would cut them short.
        prober.insert("timeoutSeconds".to_owned(), HOOK_TIMEOUT_SECONDS.into());
        self.probers.insert(path.clone(), Value::Object(prober));
        hook.http_get = Some(through_proxy(path));
        hook.tcp_socket = None;
    }

    fn http_get(&mut self, get: &HTTPGetAction, at: &Place, page: &str) -> Option<Value> {
        if is_elsewhere(get.host.as_deref()) {
            return None;
        }
        let port = self.port(&get.port, at, page)?;
        let mut value = serde_json::to_value(get).ok()?;
        value["port"] = port.into();
        Some(value)
    }

    fn tcp_socket(&mut self, socket: &TCPSocketAction, at: &Place, page: &str) -> Option<Value> {
        if is_elsewhere(socket.host.as_deref()) {
            return None;
        }
        Some(json!({ "port": self.port(&socket.port, at, page)? }))
    }

    /// The port's number; none when the probe is to stay as it is.
    fn port(&mut self, port: &IntOrString, at: &Place, page: &str) -> Option<i32> {
        let number = match port {
            IntOrString::Int(number) => Some(*number),
            IntOrString::String(name) => at.ports.get(name).copied().or_else(|| name.parse().ok()),
        };
        if number.is_none() {
            self.warnings.push(format!(
                "container {} has no port {port:?} that its probe ({page}) names: the probe is left as it is",
                at.container
            ));
        }
        number.filter(|number| !is_proxys(*number))
    }
}

struct Place {
    container: String,
    /// Its ports by name.
    ports: BTreeMap<String, i32>,
}

/// The kubelet is to ask somebody else than the pod.
fn is_elsewhere(host: Option<&str>) -> bool {
    host.is_some_and(|host| !host.is_empty())
}

fn is_proxys(port: i32) -> bool {
    PROXY_PORTS.iter().any(|own| i32::from(*own) == port)
}

fn through_proxy(path: String) -> HTTPGetAction {
    HTTPGetAction {
        path: Some(path),
        port: IntOrString::Int(i32::from(STATUS_PORT)),
        scheme: Some("HTTP".to_owned()),
        ..HTTPGetAction::default()
    }
}
