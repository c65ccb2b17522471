//! The directory of one run: certificate authority, bootstrap tokens, built-in objects, logs. It is gone with the demo.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use mesh_api::identity::TrustDomain;
use mesh_control::ca::{Authority, Lifetimes, create_token};
use tempfile::TempDir;

use super::shop::{self, MeshOptions, ShopWorkload};

/// A sidecar that is started again proves its identity with its token again: tokens live as long as a demo may.
const TOKEN_LIFETIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Where everything of one run is.
pub struct Place {
    directory: TempDir,
    policies: PathBuf,
}

impl Place {
    /// Makes the authority, a token for each workload, and the objects of the shop. Without `policies` there is an
    /// empty policy directory in the run's own.
    ///
    /// # Errors
    /// When something cannot be written.
    pub fn prepare(
        policies: Option<&Path>,
        trust_domain: &TrustDomain,
        workloads: &[ShopWorkload],
        options: &MeshOptions,
    ) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("mesh-demo-")
            .tempdir()
            .context("making a temporary directory")?;
        let policies = policies.map_or_else(|| directory.path().join("policies"), Path::to_owned);
        fs::create_dir_all(&policies).with_context(|| format!("--policies {}", policies.display()))?;
        let place = Self { directory, policies };
        for directory in [place.objects(), place.logs(), place.tokens()] {
            fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
        }
        fs::write(place.objects().join("shop.yaml"), shop::objects(workloads, options))?;
        let authority = Authority::open(&place.authority(), trust_domain, Lifetimes::default())?;
        for workload in workloads {
            let token = create_token(&place.authority(), &authority, &workload.identity, TOKEN_LIFETIME)?;
            let path = place.token(workload);
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            writeln!(file, "{token}")?;
        }
        Ok(place)
    }

    /// What users write policy into.
    #[must_use]
    pub fn policies(&self) -> &Path {
        &self.policies
    }

    /// The demo's own objects.
    #[must_use]
    pub fn objects(&self) -> PathBuf {
        self.directory.path().join("objects")
    }

    /// The certificate authority.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.directory.path().join("ca")
    }

    /// Standard output and error of the processes.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.directory.path().join("logs")
    }

    /// The log of one process, such as `reviews-v1.sidecar`.
    #[must_use]
    pub fn log(&self, process: &str) -> PathBuf {
        self.logs().join(format!("{process}.log"))
    }

    /// The bootstrap token of a workload.
    #[must_use]
    pub fn token(&self, workload: &ShopWorkload) -> PathBuf {
        self.tokens().join(workload.name)
    }

    fn tokens(&self) -> PathBuf {
        self.directory.path().join("tokens")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use mesh_api::source;

    use super::*;
    use crate::demo::shop::Block;

    #[test]
    fn a_run_has_all_that_its_processes_need_and_leaves_nothing() {
        let trust_domain = TrustDomain::cluster_local();
        let workloads = shop::workloads(Block::find().unwrap(), &trust_domain).unwrap();
        let options = MeshOptions {
            access_log_encoding: "TEXT",
            otlp_endpoint: Some("http://127.0.0.1:4317".to_owned()),
        };
        let place = Place::prepare(None, &trust_domain, &workloads, &options).unwrap();
        for workload in &workloads {
            let mode = fs::metadata(place.token(workload)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", workload.name);
        }
        let objects = fs::read(place.objects().join("shop.yaml")).unwrap();
        let contents = source::read("shop.yaml", &objects, "default");
        assert_eq!(contents.diagnostics, [], "the demo's own objects are right");
        let findings: Vec<_> = contents.objects.iter().flat_map(mesh_api::validate::analyze).collect();
        assert_eq!(findings, []);
        assert_eq!(mesh_api::validate::analyze_set(&contents.objects), []);
        let directory = place.directory.path().to_owned();
        assert!(place.policies().starts_with(&directory));
        drop(place);
        assert!(!directory.exists());
    }
}
