//! How a workload receives traffic.

use std::sync::Arc;

use super::{AuthorizationPolicy, Protocol, ServiceRef, Workload};

/// All that the server side of a sidecar acts on. Until a proxy holds it, nothing is let in.
#[derive(Clone, Debug, PartialEq)]
pub struct Inbound {
    /// The workload itself.
    pub workload: Arc<Workload>,
    /// Ports that services declare.
    pub ports: Vec<InboundPort>,
    /// Mutual TLS on any other port.
    pub default_mtls: MtlsMode,
    /// Policies that select this workload, in no particular order: deny before allow is the engine's concern.
    pub authorization: Vec<AuthorizationPolicy>,
}

/// One port of the workload.
#[derive(Clone, Debug, PartialEq)]
pub struct InboundPort {
    /// Workload port (target port).
    pub port: u16,
    /// Declared protocol.
    pub protocol: Protocol,
    /// Plaintext or mutual TLS.
    pub mtls: MtlsMode,
    /// Services that lead to it, the oldest first.
    pub services: Vec<ServiceRef>,
}

impl Inbound {
    /// The settings of a port.
    #[must_use]
    pub fn port(&self, port: u16) -> Option<&InboundPort> {
        self.ports.iter().find(|candidate| candidate.port == port)
    }

    /// Plaintext or mutual TLS on a port, declared or not.
    #[must_use]
    pub fn mtls(&self, port: u16) -> MtlsMode {
        self.port(port).map_or(self.default_mtls, |port| port.mtls)
    }
}

/// PeerAuthentication's `mode`, resolved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MtlsMode {
    /// Plaintext only: TLS belongs to the application.
    Disable,
    /// Both (Istio's default).
    #[default]
    Permissive,
    /// Mutual TLS of the mesh only.
    Strict,
}
