//! The facts of the world by name. An answer that was computed from a fact, even from its absence, depends on its key; an
//! object that changes the fact touches it.

use std::net::IpAddr;

use mesh_api::names::WorkloadId;

use super::Key;

/// Services of a host, or of a wildcard as it is written.
#[must_use]
pub fn service(host: &str) -> Key {
    Key::of("service", host)
}

/// VirtualServices of a host, or of a wildcard as it is written.
#[must_use]
pub fn routing(host: &str) -> Key {
    Key::of("routing", host)
}

/// DestinationRules of a host, or of a wildcard as it is written.
#[must_use]
pub fn traffic(host: &str) -> Key {
    Key::of("traffic", host)
}

/// Into how many parts the endpoints of services of that host are split.
#[must_use]
pub fn size(host: &str) -> Key {
    Key::of("size", host)
}

/// The endpoints of services of that host that are in one of so many parts.
#[must_use]
pub fn part(host: &str, part: usize, parts: usize) -> Key {
    Key::of("part", &(host, part, parts))
}

/// Where a Node is.
#[must_use]
pub fn node(name: &str) -> Key {
    Key::of("node", name)
}

/// What is at an address: services and workloads.
#[must_use]
pub fn address(address: IpAddr) -> Key {
    Key::of("address", &address)
}

/// Services whose addresses are ranges.
#[must_use]
pub fn ranges() -> Key {
    Key::of("ranges", "")
}

/// A workload, and the services that select it.
#[must_use]
pub fn workload(id: &WorkloadId) -> Key {
    Key::of("workload", &(&*id.namespace, &*id.name))
}

/// AuthorizationPolicies of a namespace.
#[must_use]
pub fn authorization(namespace: &str) -> Key {
    Key::of("authorization", namespace)
}

/// PeerAuthentications of a namespace.
#[must_use]
pub fn authentication(namespace: &str) -> Key {
    Key::of("authentication", namespace)
}

/// MeshConfig.
#[must_use]
pub fn mesh() -> Key {
    Key::of("mesh", "")
}

/// All addresses and hosts of the mesh.
#[must_use]
pub fn owned() -> Key {
    Key::of("owned", "")
}
