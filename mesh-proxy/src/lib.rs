//! The data plane: one process beside each workload.

pub mod admin;
pub mod body;
pub mod detect;
pub mod directory;
pub mod discovery;
pub mod flags;
#[doc(hidden)]
pub mod fuzzing;
pub mod identity;
pub mod io;
pub mod logging;
pub mod policy;
pub mod telemetry;
pub mod tls;
pub mod upstream;
