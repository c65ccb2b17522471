//! The chart that meshctl carries, and helm, which installs it.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::Context as _;
use rust_embed::RustEmbed;
use tempfile::TempDir;
use tokio::process::Command;

/// `charts/mesh`, as it was when meshctl was built.
#[derive(RustEmbed)]
#[folder = "../charts/mesh"]
struct Files;

/// The chart in a directory of its own, for as long as this lives.
pub struct Chart {
    directory: TempDir,
}

impl Chart {
    /// Writes the chart out.
    ///
    /// # Errors
    /// When there is no place for it.
    pub fn write() -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("meshctl-chart-").tempdir()?;
        for name in Files::iter() {
            let path = directory.path().join(&*name);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let file = Files::get(&name).with_context(|| format!("{name} is not in meshctl"))?;
            fs::write(&path, file.data).with_context(|| path.display().to_string())?;
        }
        Ok(Self { directory })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }
}

/// Runs helm with its output passed on.
///
/// # Errors
/// When there is no helm, or it fails; what it said then is on standard error already.
pub async fn helm<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> anyhow::Result<()> {
    let status = Command::new("helm")
        .args(arguments)
        .stdin(Stdio::null())
        .status()
        .await
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => anyhow::anyhow!(
                "helm is not on the PATH: install Helm 3.14 or newer (https://helm.sh/docs/intro/install/) and run this again"
            ),
            _ => anyhow::Error::from(error).context("starting helm"),
        })?;
    anyhow::ensure!(status.success(), "helm failed with {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_chart_is_carried() {
        let chart = Chart::write().unwrap();
        let there = |name: &str| chart.path().join(name).is_file();
        assert!(there("Chart.yaml") && there("values.yaml") && there("values.schema.json"));
        assert!(chart.path().join("templates").read_dir().unwrap().count() > 5);
    }
}
