//! A destination as the request path uses it: the model with the runtime of its clusters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh_api::model;

use crate::upstream::Cluster;

/// Where requests and connections for one service port go.
#[derive(Debug)]
pub struct Destination {
    /// Canonical name, `<fqdn>:<port>@<view>`.
    pub name: Arc<str>,
    /// Version of the resource.
    pub version: Arc<str>,
    /// Routes and policy.
    pub model: Arc<model::Destination>,
    /// Runtime of the model's clusters, by the same index.
    pub clusters: Vec<Arc<Cluster>>,
    pub(crate) last_use: Arc<LastUse>,
}

/// When an answer was last used, in milliseconds of the directory's clock; zero is never.
#[derive(Debug, Default)]
pub(crate) struct LastUse(AtomicU64);

impl LastUse {
    /// Notes a use. The clock ticks seldom, so that workers do not fight for the cache line.
    pub(crate) fn touch(&self, now: u64) {
        if self.0.load(Ordering::Relaxed) != now {
            self.0.store(now, Ordering::Relaxed);
        }
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
