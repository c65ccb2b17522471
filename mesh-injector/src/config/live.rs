//! The configuration as it is now: a file that changes under the injector, as ConfigMaps do. A change that cannot be
//! used is logged and counted, and the last good configuration stays in force.

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{InjectorConfig, InvalidConfig};

/// Between two looks at the file.
const PERIOD: Duration = Duration::from_secs(2);
/// A ConfigMap is no larger.
const MAX_BYTES: u64 = 1024 * 1024;

/// A configuration that may change; clones share it.
#[derive(Clone)]
pub struct LiveConfig {
    current: Arc<RwLock<Arc<InjectorConfig>>>,
}

impl LiveConfig {
    /// One that stays as it is.
    pub fn fixed(config: InjectorConfig) -> Self {
        Self {
            current: Arc::new(RwLock::new(Arc::new(config))),
        }
    }

    /// Reads `path`.
    ///
    /// # Errors
    /// When it cannot be read or used.
    pub fn open(path: &Path) -> Result<(Self, FileSource), InvalidConfig> {
        let text = read(path)?;
        let live = Self::fixed(InjectorConfig::parse(&text)?);
        let source = FileSource {
            path: path.to_owned(),
            text,
            live: live.clone(),
        };
        Ok((live, source))
    }

    /// The configuration in force.
    pub fn get(&self) -> Arc<InjectorConfig> {
        // A poisoned lock holds a whole value all the same: only a pointer is ever replaced.
        self.current.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    fn set(&self, config: InjectorConfig) {
        *self.current.write().unwrap_or_else(|e| e.into_inner()) = Arc::new(config);
    }
}

/// The file behind a [`LiveConfig`].
pub struct FileSource {
    path: PathBuf,
    /// What it held when last looked at.
    text: String,
    live: LiveConfig,
}

impl FileSource {
    /// Follows the file until `shutdown`.
    pub async fn follow(mut self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
            self.look();
        }
    }

    /// Takes a change of the file, if there is one.
    pub fn look(&mut self) {
        let outcome = match read(&self.path) {
            Ok(text) if text == self.text => return,
            Ok(text) => {
                self.text = text;
                InjectorConfig::parse(&self.text)
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(config) => {
                tracing::info!(path = %self.path.display(), "new configuration");
                metrics::counter!("injector_config_reloads_total", "result" => "success").increment(1);
                self.live.set(config);
            }
            Err(error) => {
                metrics::counter!("injector_config_reloads_total", "result" => "failure").increment(1);
                tracing::error!(
                    "{}: {error}; the configuration before it stays in force",
                    self.path.display()
                );
            }
        }
    }
}

fn read(path: &Path) -> Result<String, InvalidConfig> {
    let size = std::fs::metadata(path)?.len();
    if size > MAX_BYTES {
        return Err(InvalidConfig::Value {
            key: "file".to_owned(),
            reason: format!("{size} bytes; at most {MAX_BYTES} are read"),
        });
    }
    Ok(std::fs::read_to_string(path)?)
}
