//! How a workload receives traffic: its ports, mutual TLS, and the policies that select it.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_api::crd::peer_authentication::MutualTlsMode;
use mesh_api::model::{Inbound, InboundPort, MtlsMode, Protocol};
use mesh_api::names::WorkloadId;

use super::endpoints::{credit_entry, credit_service, workload_facts};
use super::lookup::reference;
use super::{Reader, authorization};
use crate::world::{PeerAuthentication, Selected, Workload, key};

/// Compiles the server side of a workload's sidecar; `None` when there is no such workload.
#[must_use]
pub fn inbound(reader: &Reader<'_>, id: &WorkloadId) -> Option<Inbound> {
    reader.note(key::workload(id));
    let workload = reader.world.registry.workload(id)?;
    let authentication = Authentication::of(reader, workload);
    let domain = &reader.world.options().cluster_domain;
    let mut ports: BTreeMap<u16, InboundPort> = authentication
        .ports
        .keys()
        .map(|port| (*port, declared(*port, Protocol::Detect, &authentication)))
        .collect();
    let mut undeclared: Vec<u16> = ports.keys().copied().collect();
    credit_entry(reader, workload);
    for service in reader.world.registry.serving(workload) {
        credit_service(reader, &service);
        for service_port in &service.ports {
            let Some(number) = service_port.at(workload) else {
                continue;
            };
            let port = ports
                .entry(number)
                .or_insert_with(|| declared(number, service_port.protocol, &authentication));
            // The oldest service decides what is spoken on a port that several lead to.
            if let Some(at) = undeclared.iter().position(|undeclared| *undeclared == number) {
                undeclared.remove(at);
                port.protocol = service_port.protocol;
            }
            let named = service.hosts.iter().filter(|host| !host.contains('*'));
            for service in named.filter_map(|host| reference(host, &service.age.namespace, domain)) {
                if !port.services.contains(&service) {
                    port.services.push(service);
                }
            }
        }
    }
    Some(Inbound {
        workload: Arc::new(workload_facts(reader, workload)),
        ports: ports.into_values().collect(),
        default_mtls: authentication.mode,
        authorization: authorization::policies(reader, workload),
    })
}

fn declared(port: u16, protocol: Protocol, authentication: &Authentication) -> InboundPort {
    InboundPort {
        port,
        protocol,
        mtls: authentication.at(port),
        services: Vec::new(),
    }
}

/// Whether a workload takes mutual TLS on a port.
#[must_use]
pub fn mtls_mode(reader: &Reader<'_>, workload: &Workload, port: u16) -> MtlsMode {
    Authentication::of(reader, workload).at(port)
}

/// PeerAuthentication as it holds for one workload: port, then workload, then namespace, then mesh, and the oldest object
/// of each. What does not say is inherited.
struct Authentication {
    mode: MtlsMode,
    ports: BTreeMap<u16, MtlsMode>,
}

impl Authentication {
    fn of(reader: &Reader<'_>, workload: &Workload) -> Self {
        let namespace = &workload.id.namespace;
        let root = reader.root_namespace();
        reader.note(key::authentication(namespace));
        reader.note(key::authentication(root));
        let security = &reader.world.security;
        let of_root = security.authentication(root);
        let of_namespace = if namespace == root {
            &[]
        } else {
            security.authentication(namespace)
        };
        let general = |list: &'_ [Arc<PeerAuthentication>]| {
            let policy = list.iter().find(|policy| policy.selector.is_none())?;
            reader.credit(&policy.age);
            policy.mode
        };
        let specific = of_root
            .iter()
            .chain(of_namespace)
            .filter(|policy| policy.selector.is_some() && policy.selects(&workload.labels))
            .min_by(|a, b| a.age.cmp(&b.age))
            .inspect(|policy| reader.credit(&policy.age));
        let mode = specific
            .and_then(|policy| policy.mode)
            .or_else(|| general(of_namespace))
            .or_else(|| general(of_root))
            .map_or(MtlsMode::Permissive, mtls);
        Self {
            mode,
            ports: specific
                .into_iter()
                .flat_map(|policy| &policy.ports)
                .map(|(port, own)| (*port, own.map_or(mode, mtls)))
                .collect(),
        }
    }

    fn at(&self, port: u16) -> MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.mode)
    }
}

fn mtls(mode: MutualTlsMode) -> MtlsMode {
    match mode {
        MutualTlsMode::Disable => MtlsMode::Disable,
        MutualTlsMode::Permissive | MutualTlsMode::Unset => MtlsMode::Permissive,
        MutualTlsMode::Strict => MtlsMode::Strict,
    }
}
