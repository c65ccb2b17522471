//! The data plane: one process beside each workload.
//!
//! A connection passes the stages `accept → detect → identify → authorize → route → balance → endpoint`, each a module
//! with a plain function. Workers carry traffic on single-threaded runtimes; discovery, certificates and administration
//! live on a thread of their own and publish what they learn as immutable snapshots.

pub mod admin;
pub mod body;
pub mod capture;
pub mod cmd;
pub mod config;
pub mod detect;
pub mod directory;
pub mod discovery;
pub mod drain;
mod edges;
pub mod failure;
pub mod flags;
#[doc(hidden)]
pub mod fuzzing;
mod http;
pub mod identity;
mod inbound;
pub mod intercept;
pub mod io;
pub mod listener;
pub mod logging;
mod outbound;
pub mod policy;
mod resolve;
pub mod resolver;
mod run;
pub mod status;
mod stream;
mod tcp;
pub mod telemetry;
pub mod tls;
pub mod upstream;
pub mod worker;

pub use run::{run, stop_on_signals};
