//! The control plane: sources of policy, the world, the compiler, delta discovery and the certificate authority.

pub mod ca;
pub mod compile;
pub mod config;
pub mod discovery;
pub mod grpc;
pub mod hook;
pub mod kube;
pub mod objects;
pub mod run;
pub mod source;
pub mod status;
mod telemetry;
pub mod tls;
pub mod world;
