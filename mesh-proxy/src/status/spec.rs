//! What the injector tells the status port: the application's health checks and where its metrics are.
//!
//! Both come as JSON in Istio's form, from the pod's own specification. What a user wrote wrongly in an annotation is kept as
//! a reason to show, never a reason not to start.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

/// Health checks by the path that serves them.
#[derive(Clone, Debug, Default)]
pub struct Probers(BTreeMap<String, Probe>);

/// One health check.
#[derive(Clone, Debug)]
pub struct Probe {
    /// What is asked.
    pub action: Action,
    /// How long the answer may take.
    pub timeout: Duration,
}

/// What a health check asks.
#[derive(Clone, Debug)]
pub enum Action {
    /// A page.
    Http(HttpGet),
    /// A connection.
    Tcp(TcpSocket),
    /// `grpc.health.v1.Health/Check`.
    Grpc(Grpc),
}

/// `httpGet` of a Kubernetes probe.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpGet {
    /// Path and query.
    #[serde(default)]
    pub path: String,
    /// Port of the application.
    pub port: u16,
    /// Address or name to connect to instead of the pod's address.
    #[serde(default)]
    pub host: String,
    /// How the application is spoken to.
    #[serde(default)]
    pub scheme: Scheme,
    /// Headers of the request.
    #[serde(default)]
    pub http_headers: Vec<Header>,
}

/// `scheme` of `httpGet`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Scheme {
    /// Plaintext.
    #[default]
    Http,
    /// TLS; nobody looks at the certificate, as the kubelet does not.
    Https,
}

/// A header of `httpGet`.
#[derive(Clone, Debug, Deserialize)]
pub struct Header {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// `tcpSocket` of a Kubernetes probe.
#[derive(Clone, Debug, Deserialize)]
pub struct TcpSocket {
    /// Port of the application.
    pub port: u16,
    /// Address or name to connect to instead of the pod's address.
    #[serde(default)]
    pub host: String,
}

/// `grpc` of a Kubernetes probe.
#[derive(Clone, Debug, Deserialize)]
pub struct Grpc {
    /// Port of the application.
    pub port: u16,
    /// Service whose health is asked; the server's own when empty.
    #[serde(default)]
    pub service: Option<String>,
}

/// A probe as it is written; fields that only the kubelet acts on are its own.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    grpc: Option<Grpc>,
    #[serde(default)]
    timeout_seconds: u64,
}

/// Why text is no set of health checks.
#[derive(Debug, thiserror::Error)]
pub enum InvalidProbers {
    /// Not JSON of that form.
    #[error(
        "expected JSON like {{\"/app-health/app/livez\": {{\"httpGet\": {{\"path\": \"/\", \"port\": 8080}}}}}}: {0}"
    )]
    Json(#[from] serde_json::Error),
    /// A path that is not served.
    #[error("`{0}`: expected /app-health/<container>/ with livez, readyz or startupz")]
    Path(String),
    /// Nothing to ask, or too much.
    #[error("`{0}`: expected one of httpGet, tcpSocket and grpc")]
    Action(String),
}

impl Probers {
    /// The check that is served at a path.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Probe> {
        self.0.get(path)
    }
}

impl FromStr for Probers {
    type Err = InvalidProbers;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let written: BTreeMap<String, Written> = serde_json::from_str(text)?;
        let probes = written.into_iter().map(|(path, probe)| {
            if !is_probe_path(&path) {
                return Err(InvalidProbers::Path(path));
            }
            let action = match (probe.http_get, probe.tcp_socket, probe.grpc) {
                (Some(http), None, None) => Action::Http(http),
                (None, Some(tcp), None) => Action::Tcp(tcp),
                (None, None, Some(grpc)) => Action::Grpc(grpc),
                _ => return Err(InvalidProbers::Action(path)),
            };
            // Kubernetes' default, and its bound against nonsense.
            let timeout = Duration::from_secs(probe.timeout_seconds.clamp(1, 3600));
            Ok((path, Probe { action, timeout }))
        });
        probes.collect::<Result<_, _>>().map(Self)
    }
}

fn is_probe_path(path: &str) -> bool {
    let mut parts = path.split('/');
    let parts = [parts.next(), parts.next(), parts.next(), parts.next(), parts.next()];
    matches!(
        parts,
        [Some(""), Some("app-health"), Some(container), Some("livez" | "readyz" | "startupz"), None]
            if !container.is_empty()
    ) || matches!(
        parts,
        [Some(""), Some("app-lifecycle"), Some(container), Some("prestopz" | "poststartz"), None]
            if !container.is_empty()
    )
}

/// Where the application's metrics are, as its own annotations say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scrape {
    /// Nowhere.
    Off,
    /// At a port and path of the pod.
    At {
        /// The port.
        port: u16,
        /// The path, with its query.
        path: String,
    },
    /// The annotations make no sense; why.
    Unusable(String),
}

/// The annotations as they are written: all of them texts.
#[derive(Deserialize)]
struct Annotations {
    #[serde(default)]
    scrape: String,
    #[serde(default)]
    port: String,
    #[serde(default)]
    path: String,
}

impl FromStr for Scrape {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Annotations { scrape, port, path } = serde_json::from_str(text)?;
        if scrape == "false" {
            return Ok(Self::Off);
        }
        let path = match path.as_str() {
            "" => "/metrics".to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        };
        Ok(match port.as_str() {
            // Prometheus' own default, and Istio's.
            "" => Self::At { port: 80, path },
            text => match text.parse() {
                Ok(port) if port > 0 => Self::At { port, path },
                _ => Self::Unusable(format!("prometheus.io/port: `{text}` is not a port")),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probers_of_istios_form() {
        let probers: Probers = r#"{
            "/app-health/app/livez": {"httpGet": {"path": "live?x=1", "port": 8080, "scheme": "HTTPS",
                "httpHeaders": [{"name": "X-A", "value": "b"}]}, "timeoutSeconds": 3, "periodSeconds": 5},
            "/app-health/app/readyz": {"tcpSocket": {"port": 9000}},
            "/app-health/other/startupz": {"grpc": {"port": 9001, "service": "s"}, "timeoutSeconds": 0},
            "/app-lifecycle/app/prestopz": {"httpGet": {"port": 8080}}
        }"#
        .parse()
        .unwrap();
        let live = probers.get("/app-health/app/livez").unwrap();
        assert_eq!(live.timeout, Duration::from_secs(3));
        let Action::Http(http) = &live.action else {
            panic!("{live:?}")
        };
        assert_eq!(
            (http.path.as_str(), http.port, http.scheme),
            ("live?x=1", 8080, Scheme::Https)
        );
        assert_eq!(http.http_headers[0].name, "X-A");
        let ready = probers.get("/app-health/app/readyz").unwrap();
        assert!(matches!(&ready.action, Action::Tcp(tcp) if tcp.port == 9000));
        assert_eq!(ready.timeout, Duration::from_secs(1));
        let startup = probers.get("/app-health/other/startupz").unwrap();
        assert!(matches!(&startup.action, Action::Grpc(grpc) if grpc.service.as_deref() == Some("s")));
        assert!(probers.get("/app-health/app/startupz").is_none());
    }

    #[test]
    fn what_cannot_be_served_is_refused() {
        for text in [
            "",
            r#"{"/app-health/app/livez": {}}"#,
            r#"{"/app-health/app/livez": {"httpGet": {"port": 1}, "tcpSocket": {"port": 1}}}"#,
            r#"{"/app-health/app/livez": {"httpGet": {"port": "http"}}}"#,
            r#"{"/app-health/app/alivez": {"tcpSocket": {"port": 1}}}"#,
            r#"{"/app-health/app/livez/x": {"tcpSocket": {"port": 1}}}"#,
            r#"{"/app-health//livez": {"tcpSocket": {"port": 1}}}"#,
        ] {
            assert!(text.parse::<Probers>().is_err(), "{text}");
        }
    }

    #[test]
    fn annotations_of_prometheus() {
        let at = |port, path: &str| Scrape::At {
            port,
            path: path.to_owned(),
        };
        for (text, expected) in [
            (r#"{"scrape":"true","port":"8080","path":"/m?a=b"}"#, at(8080, "/m?a=b")),
            (r#"{"scrape":"true","path":"m"}"#, at(80, "/m")),
            ("{}", at(80, "/metrics")),
            (r#"{"scrape":"false","port":"x"}"#, Scrape::Off),
            (
                r#"{"port":"http"}"#,
                Scrape::Unusable("prometheus.io/port: `http` is not a port".to_owned()),
            ),
        ] {
            assert_eq!(text.parse::<Scrape>().unwrap(), expected, "{text}");
        }
        assert!("8080".parse::<Scrape>().is_err());
    }
}
