//! A namespace of a test's own.

use std::fmt;

use super::{tools, wait};

/// A namespace that goes with the value; nobody waits for that.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one with labels, `name=value`. The one of that name that an earlier run left is removed first.
    ///
    /// # Errors
    /// When the cluster does not make it.
    pub fn new(name: &str, labels: &[&str]) -> anyhow::Result<Self> {
        let name = format!("e2e-{name}");
        tools::kubectl(&["delete", "namespace", &name, "--ignore-not-found", "--timeout=110s"])?;
        tools::kubectl(&["create", "namespace", &name])?;
        let namespace = Self { name };
        if !labels.is_empty() {
            let mut args = vec!["label", "namespace", &namespace.name];
            args.extend(labels);
            tools::kubectl(&args)?;
        }
        // Pods are refused until it has its account.
        wait::eventually("the default service account", || {
            namespace.kubectl(&["get", "serviceaccount", "default"]).map(drop)
        })?;
        Ok(namespace)
    }

    /// One whose pods are injected.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn injected(name: &str) -> anyhow::Result<Self> {
        Self::new(name, &["istio-injection=enabled"])
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs kubectl in it.
    ///
    /// # Errors
    /// When it fails.
    pub fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut all = vec!["-n", &self.name];
        all.extend(args);
        tools::kubectl(&all)
    }

    /// Runs `kubectl … -o json` in it.
    ///
    /// # Errors
    /// When it fails.
    pub fn json(&self, args: &[&str]) -> anyhow::Result<serde_json::Value> {
        let mut all = vec!["-n", &self.name];
        all.extend(args);
        tools::json(&all)
    }

    /// Applies manifests in it, with strict validation.
    ///
    /// # Errors
    /// When the API server does not take them.
    pub fn apply(&self, yaml: &str) -> anyhow::Result<String> {
        self.try_apply(yaml)?.ok()
    }

    /// As [`Self::apply`], with whatever comes of it.
    ///
    /// # Errors
    /// When kubectl cannot be run.
    pub fn try_apply(&self, yaml: &str) -> anyhow::Result<tools::Outcome> {
        let args = ["-n", &self.name, "apply", "--validate=strict", "-f", "-"];
        tools::run("kubectl", &args, Some(yaml), tools::LIMIT)
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "state of {} at the failure:\n{}",
                self.name,
                wait::situation(&self.name)
            );
        }
        let _ = tools::kubectl(&["delete", "namespace", &self.name, "--wait=false", "--ignore-not-found"]);
    }
}
