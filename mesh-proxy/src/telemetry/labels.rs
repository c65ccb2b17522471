//! From the two ends of an edge to Istio's labels: their order, their names, and what stands where a fact is missing.
//!
//! The conventions are those of Istio's stats filter: `unknown` for what is not known, but `latest` for a revision; the
//! server side falls back to its own canonical service for the service; the client side reports the destination
//! workload's namespace as the service's, and never says how a connection was secured. One thing differs: Istio fills
//! `destination_service` of unknown destinations from the request's authority, which a client could use to make any number
//! of series; here it is `unknown`.

use std::fmt::Write as _;

use mesh_api::identity::SpiffeId;
use mesh_api::model::{ServiceRef, Workload};

/// Which side of the connection reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The client's sidecar.
    Source,
    /// The server's sidecar.
    Destination,
}

impl Reporter {
    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// How the connection was secured, as the server saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    /// Mutual TLS of the mesh.
    MutualTls,
    /// Plaintext, or TLS of the application's own.
    None,
    /// Not known; what a client always reports.
    Unknown,
}

/// What traffic was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EdgeService<'a> {
    /// A service of the mesh, or one that a ServiceEntry describes.
    Known(&'a ServiceRef),
    /// A destination that the mesh does not know, let through.
    Passthrough,
    /// A destination that the mesh does not know, refused.
    BlackHole,
    /// A port of this workload that no service declares.
    InboundPassthrough,
    /// None was chosen: the request failed before.
    None,
}

/// The facts that labels are made of. A missing workload or principal is not known.
#[derive(Clone, Copy, Debug)]
pub struct EdgeKey<'a> {
    /// Which side this is.
    pub reporter: Reporter,
    /// The client.
    pub source: Option<&'a Workload>,
    /// Identity in the client's certificate.
    pub source_principal: Option<&'a SpiffeId>,
    /// The server.
    pub destination: Option<&'a Workload>,
    /// Identity in the server's certificate.
    pub destination_principal: Option<&'a SpiffeId>,
    /// What the client asked for.
    pub service: EdgeService<'a>,
    /// Of the connection between them; a source reports `unknown` whatever is said here.
    pub security: Security,
}

/// Value where a fact is missing.
const UNKNOWN: &str = "unknown";
/// Value of every label of series beyond the bound.
const OTHER: &str = "_other";

impl EdgeKey<'_> {
    /// Writes the labels that all metrics of the edge share, `reporter` to `destination_cluster`.
    pub(super) fn write_labels(&self, out: &mut String) {
        let mut labels = Labels { out, first: true };
        labels.add("reporter", self.reporter.as_str());
        self.write_source(&mut labels);
        self.write_destination(&mut labels);
    }

    fn write_source(&self, labels: &mut Labels<'_>) {
        let workload = self.source;
        let namespace = match self.reporter {
            Reporter::Source => None,
            Reporter::Destination => self.source_principal.map(SpiffeId::namespace),
        };
        labels.add("source_workload", workload.map_or("", |w| &w.name));
        labels.add(
            "source_canonical_service",
            workload.map_or("", Workload::canonical_service),
        );
        labels.add(
            "source_canonical_revision",
            workload.map_or("latest", Workload::canonical_revision),
        );
        labels.add(
            "source_workload_namespace",
            namespace.or(workload.map(|w| &*w.namespace)).unwrap_or_default(),
        );
        labels.add("source_principal", self.source_principal.map_or("", SpiffeId::as_str));
        labels.add("source_app", workload.map_or("", Workload::app));
        labels.add("source_version", workload.map_or("", Workload::version));
        labels.add("source_cluster", workload.map_or("", |w| &w.cluster));
    }

    fn write_destination(&self, labels: &mut Labels<'_>) {
        let workload = self.destination;
        let canonical = workload.map_or("", Workload::canonical_service);
        let namespace = match self.reporter {
            Reporter::Source => self.destination_principal.map(SpiffeId::namespace),
            Reporter::Destination => None,
        };
        let namespace = namespace.or(workload.map(|w| &*w.namespace)).unwrap_or_default();
        let fallback = match self.reporter {
            Reporter::Source => UNKNOWN,
            Reporter::Destination => canonical,
        };
        let (service, service_name) = match self.service {
            EdgeService::Known(service) => (service.host.as_str(), &*service.name),
            EdgeService::Passthrough => (fallback, "PassthroughCluster"),
            EdgeService::BlackHole => (fallback, "BlackHoleCluster"),
            EdgeService::InboundPassthrough => (fallback, "InboundPassthroughCluster"),
            EdgeService::None => (fallback, fallback),
        };
        labels.add("destination_workload", workload.map_or("", |w| &w.name));
        labels.add("destination_workload_namespace", namespace);
        labels.add(
            "destination_principal",
            self.destination_principal.map_or("", SpiffeId::as_str),
        );
        labels.add("destination_app", workload.map_or("", Workload::app));
        labels.add("destination_version", workload.map_or("", Workload::version));
        labels.add("destination_service", service);
        labels.add("destination_canonical_service", canonical);
        labels.add(
            "destination_canonical_revision",
            workload.map_or("latest", Workload::canonical_revision),
        );
        labels.add("destination_service_name", service_name);
        labels.add("destination_service_namespace", namespace);
        labels.add("destination_cluster", workload.map_or("", |w| &w.cluster));
    }

    /// Value of `connection_security_policy`.
    pub(super) fn security_text(&self) -> &'static str {
        match (self.reporter, self.security) {
            (Reporter::Source, _) | (_, Security::Unknown) => UNKNOWN,
            (_, Security::MutualTls) => "mutual_tls",
            (_, Security::None) => "none",
        }
    }
}

/// Labels of the edge that takes what the bound keeps out.
pub(super) fn write_overflow_labels(reporter: Reporter, out: &mut String) {
    let mut labels = Labels { out, first: true };
    labels.add("reporter", reporter.as_str());
    for side in ["source", "destination"] {
        let names: &[&str] = match side {
            "source" => &[
                "workload",
                "canonical_service",
                "canonical_revision",
                "workload_namespace",
                "principal",
            ],
            _ => &["workload", "workload_namespace", "principal"],
        };
        for name in names.iter().chain(&["app", "version"]) {
            labels.add(&format!("{side}_{name}"), OTHER);
        }
        if side == "source" {
            labels.add("source_cluster", OTHER);
        }
    }
    for name in [
        "service",
        "canonical_service",
        "canonical_revision",
        "service_name",
        "service_namespace",
        "cluster",
    ] {
        labels.add(&format!("destination_{name}"), OTHER);
    }
}

/// The labels of one request's metrics that its edge does not fix.
pub(super) fn http_labels(protocol: &str, code: &str, grpc_status: &str, flags: &str, security: &str) -> Box<str> {
    format!(
        "request_protocol=\"{protocol}\",response_code=\"{code}\",grpc_response_status=\"{grpc_status}\",\
         response_flags=\"{flags}\",connection_security_policy=\"{security}\""
    )
    .into()
}

/// The labels of one connection's metrics that its edge does not fix.
pub(super) fn tcp_labels(flags: &str, security: &str) -> Box<str> {
    format!("request_protocol=\"tcp\",response_flags=\"{flags}\",connection_security_policy=\"{security}\"").into()
}

/// [`http_labels`] of the overflow.
pub(super) fn http_overflow(protocol: &str) -> Box<str> {
    http_labels(protocol, OTHER, OTHER, OTHER, OTHER)
}

/// [`tcp_labels`] of the overflow.
pub(super) fn tcp_overflow() -> Box<str> {
    tcp_labels(OTHER, OTHER)
}

struct Labels<'a> {
    out: &'a mut String,
    first: bool,
}

impl Labels<'_> {
    fn add(&mut self, name: &str, value: &str) {
        if !std::mem::take(&mut self.first) {
            self.out.push(',');
        }
        let _ = write!(self.out, "{name}=\"");
        write_escaped(self.out, if value.is_empty() { UNKNOWN } else { value });
        self.out.push('"');
    }
}

/// Escapes a label value as the exposition format asks.
pub(super) fn write_escaped(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}
