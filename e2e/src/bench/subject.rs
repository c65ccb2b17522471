//! What can stand between load generator and backend.

use std::net::SocketAddr;
use std::path::Path;

use super::certificates::Certificates;
use super::load::Entry;
use super::process::{Launcher, Process};
use super::setting::Setting;

/// What a subject may use to start itself.
pub struct Bench<'a> {
    /// Starts processes on their cores.
    pub launcher: &'a Launcher,
    /// Certificates for both sides of a pair.
    pub certificates: &'a Certificates,
    /// A fresh directory for configuration and logs, removed after the measurement.
    pub dir: &'a Path,
}

/// A proxy, or a pair of them, or nothing, under measurement.
pub trait Subject {
    /// The name in tables, in JSON and for `--only`.
    fn name(&self) -> &'static str;

    /// Make and version, for the report's heading.
    fn version(&self) -> String;

    /// Starts its processes in front of `backend` and returns once they are ready for requests.
    ///
    /// # Errors
    /// When a process does not start or does not get ready; the error quotes its log.
    fn start(&self, bench: &Bench<'_>, setting: &Setting, backend: SocketAddr) -> anyhow::Result<Running>;
}

/// A started subject; dropping it ends its processes.
pub struct Running {
    /// How the load generator gets in.
    pub entry: Entry,
    /// The proxies, whose time and memory are the subject's figures.
    pub measured: Vec<Process>,
    /// What else it needs and nobody measures, such as a control plane.
    pub support: Vec<Process>,
}
