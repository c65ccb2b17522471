//! The kinds of resource that discovery carries.

use std::fmt;

/// A resource type of the mesh; on the wire it is a type URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// `MeshSettings`, of the one name `mesh`.
    Mesh,
    /// `Inbound`, named by the workload's id.
    Inbound,
    /// `EndpointSlice`, `<fqdn>:<port>/<n>`.
    EndpointSlice,
    /// `Destination`, asked for as `<host>:<port>`, answered as `<fqdn>:<port>@<view>`.
    Destination,
    /// `Workload`, named by an IP address.
    Workload,
}

impl ResourceType {
    /// All types, in the order in which a proxy needs them: what a resource refers to comes before it.
    pub const ALL: [Self; 5] = [
        Self::Mesh,
        Self::Inbound,
        Self::EndpointSlice,
        Self::Destination,
        Self::Workload,
    ];

    /// The name of the one resource of type [`ResourceType::Mesh`].
    pub const MESH_NAME: &'static str = "mesh";

    /// The type URL.
    #[must_use]
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Mesh => "type.googleapis.com/mesh.v1.MeshSettings",
            Self::Inbound => "type.googleapis.com/mesh.v1.Inbound",
            Self::EndpointSlice => "type.googleapis.com/mesh.v1.EndpointSlice",
            Self::Destination => "type.googleapis.com/mesh.v1.Destination",
            Self::Workload => "type.googleapis.com/mesh.v1.Workload",
        }
    }

    /// The type of a type URL.
    #[must_use]
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// A short name for people, metrics and status: `mesh`, `inbound`, `endpoints`, `destinations`, `workloads`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Inbound => "inbound",
            Self::EndpointSlice => "endpoints",
            Self::Destination => "destinations",
            Self::Workload => "workloads",
        }
    }

    /// Position in [`ResourceType::ALL`], for tables with one entry per type.
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_urls_are_distinct_and_reversible() {
        for (position, kind) in ResourceType::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), position);
            assert_eq!(ResourceType::from_type_url(kind.type_url()), Some(kind));
        }
        assert_eq!(
            ResourceType::from_type_url("type.googleapis.com/envoy.config.cluster.v3.Cluster"),
            None
        );
    }
}
