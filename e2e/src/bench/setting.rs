//! What a measurement is made of: protocol, proxies in the path, size of the load.

use clap::ValueEnum;

/// The protocol between load generator and proxy, and between proxy and backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// HTTP/1.1 with connections kept alive, one request at a time on each.
    Http1,
    /// HTTP/2 in clear text with prior knowledge.
    Http2,
}

impl Protocol {
    /// As the command line spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
        }
    }
}

/// How many proxies stand between the load generator and the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// One, on the client's side: plaintext in, plaintext out.
    Single,
    /// One on each side, with TLS 1.3 and both certificates verified between them.
    PairMtls,
}

/// One row of the benchmark.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The name in tables, in JSON and for `--only`.
    pub name: &'static str,
    /// Protocol on every hop.
    pub protocol: Protocol,
    /// Proxies in the path.
    pub topology: Topology,
    /// Bytes in each response.
    pub body_bytes: usize,
    /// Client connections.
    pub connections: usize,
    /// Requests in flight on each connection.
    pub streams: usize,
}

/// Every setting, in the order in which they are run.
///
/// A name without suffix means 1 KB, 32 connections with one request in flight on each, one worker, telemetry on.
#[must_use]
pub fn all() -> Vec<Setting> {
    let http1 = |name, topology| Setting {
        name,
        protocol: Protocol::Http1,
        topology,
        body_bytes: 1024,
        connections: 32,
        streams: 1,
    };
    let http2 = |name, topology| Setting {
        protocol: Protocol::Http2,
        ..http1(name, topology)
    };
    vec![
        http1("http1-single", Topology::Single),
        http1("http1-pair-mtls", Topology::PairMtls),
        http2("http2-single", Topology::Single),
        http2("http2-pair-mtls", Topology::PairMtls),
    ]
}
