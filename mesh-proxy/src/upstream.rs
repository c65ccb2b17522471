//! Everything between "this cluster was chosen" and "the response head of one endpoint".
//!
//! A [`Cluster`] picks an [`Endpoint`]; a worker's [`Pool`] finds or makes a connection to it and sends the request. What
//! outlives configuration is in [`Upstreams`] and shared by all workers: how loaded and how healthy endpoints are, how
//! many connections and requests a cluster has. Connections themselves never leave their worker. Nothing here decides
//! where a request goes, or whether it is tried again by policy.

mod balance;
mod clock;
mod cluster;
mod connect;
mod endpoint;
mod error;
mod hash;
mod limits;
mod outlier;
mod pool;
mod registry;
mod resolve;
mod ring;
#[cfg(test)]
pub(crate) mod testing;

pub use clock::Clock;
pub use cluster::{Cluster, NoEndpoint};
pub use connect::{ConnectionFacts, Connector, Source, UpstreamIo};
pub use endpoint::{Endpoint, EndpointState, InFlight, Lease, Security};
pub use error::{ConnectFailure, SendError, SendErrorKind};
pub use hash::{Hashed, hash_of};
pub use limits::{ClusterState, Overflow, RetryPermit};
pub use outlier::Outcome;
pub use pool::{Answer, Pool, StreamLease, TcpUpstream, UpstreamProto, may_replay};
pub use registry::Upstreams;
pub use resolve::{Lookup, SystemLookup};
