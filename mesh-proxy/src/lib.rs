//! The data plane: one process beside each workload.

pub mod body;
pub mod detect;
pub mod flags;
pub mod identity;
pub mod io;
pub mod policy;
pub mod telemetry;
pub mod tls;
pub mod upstream;
