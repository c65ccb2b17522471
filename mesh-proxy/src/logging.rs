//! What the proxy logs of itself: lines on standard error, with a filter that can be changed while it runs. The access
//! log is another thing: see [`telemetry`](crate::telemetry).

use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// Changes the filter of the process's log. Cheap to clone.
#[derive(Clone)]
pub struct Logging {
    handle: reload::Handle<EnvFilter, Registry>,
    current: Arc<Mutex<String>>,
}

/// A filter that is none.
#[derive(Debug, thiserror::Error)]
#[error("`{filter}` is not a log filter ({reason}); write for instance `info` or `warn,mesh_proxy=debug`")]
pub struct InvalidFilter {
    filter: String,
    reason: String,
}

impl Logging {
    /// Logs to standard error from now on, unless something else in this process logs already.
    ///
    /// # Errors
    /// When `filter` is not in the syntax of `RUST_LOG`.
    pub fn install(filter: &str) -> Result<Self, InvalidFilter> {
        let (layer, handle) = reload::Layer::new(parse(filter)?);
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(false);
        // Where a test or another part of the process logs already, that stays.
        let _ = tracing_subscriber::registry().with(layer).with(lines).try_init();
        Ok(Self {
            handle,
            current: Arc::new(Mutex::new(filter.to_owned())),
        })
    }

    /// The filter in force.
    #[must_use]
    pub fn current(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another filter in force.
    ///
    /// # Errors
    /// When `filter` is not in the syntax of `RUST_LOG`; the old one stays.
    pub fn set(&self, filter: &str) -> Result<(), InvalidFilter> {
        let parsed = parse(filter)?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let reloaded = self.handle.reload(parsed);
        reloaded.map_err(|error| InvalidFilter {
            filter: filter.to_owned(),
            reason: error.to_string(),
        })?;
        filter.clone_into(&mut current);
        Ok(())
    }
}

fn parse(filter: &str) -> Result<EnvFilter, InvalidFilter> {
    filter
        .parse()
        .map_err(|error: tracing_subscriber::filter::ParseError| InvalidFilter {
            filter: filter.to_owned(),
            reason: error.to_string(),
        })
}
