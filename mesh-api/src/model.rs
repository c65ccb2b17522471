//! The compiled, proxy-facing model: what the control plane computes from policy objects and a proxy acts on.
//!
//! Names are resolved, defaults applied and regular expressions compiled, so that nothing is validated again on the way
//! of a request. Five resources make up everything that a proxy ever holds:
//!
//! | resource | name | what it says |
//! |---|---|---|
//! | [`MeshSettings`] | `mesh` | what the mesh owns, and what holds for every proxy |
//! | [`Inbound`] | the workload's id | how traffic to this workload is received and authorized |
//! | [`Destination`] | `host:port`, asked for on first use | routes, clusters and policy towards one service port |
//! | [`EndpointSlice`] | named by clusters | where the workloads of a service port are |
//! | [`Workload`] | an IP address | who a peer is |

mod authorization;
mod destination;
mod endpoint;
mod inbound;
mod route;
mod settings;
mod text;
mod traffic;

pub use authorization::{Action, AuthorizationPolicy, Condition, ConditionKey, Operation, Rule, Source, Terms};
pub use destination::{Cluster, Destination, EndpointSource, Location, Missing, ServiceRef};
pub use endpoint::{Endpoint, EndpointAddress, EndpointSlice, Health, Labels, Locality, Workload};
pub use inbound::{Inbound, InboundPort, MtlsMode};
pub use route::{
    Abort, Fault, Forward, HeaderMatch, HeaderOps, HostRewrite, HttpMatch, HttpRoute, Mirror, Percentage, Redirect,
    RedirectPort, RetryCondition, RetryPolicy, Rewrite, RouteAction, WeightedCluster,
};
pub use settings::{AccessLog, AccessLogFormat, MeshSettings, OutboundPolicy, Owned, Tracing};
pub use text::{FullRegex, IpBlocks, PathRewrite, TermMatch, TextMatch};
pub use traffic::{
    Balancer, ClientTls, ConnectionPool, H2Upgrade, HashKey, HashPolicy, OutlierDetection, Protocol, RetryBudget,
    TcpKeepalive,
};
