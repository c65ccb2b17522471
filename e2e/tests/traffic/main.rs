//! Traffic between real processes: a client's sidecar, the sidecars of a service, and applications.

mod authorization;
mod balancing;
mod churn;
mod circuit;
mod grpc;
mod headers;
mod messages;
mod opaque;
mod protocols;
mod resilience;
mod robustness;
mod routing;
mod shutdown;
