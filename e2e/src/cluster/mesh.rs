//! The mesh's chart on the cluster: installed once for all tests that only use it, and again for those that need it alone.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use super::{tools, wait};

/// The release, and its namespace.
pub const RELEASE: &str = "mesh";
/// The release's namespace.
pub const NAMESPACE: &str = "mesh-system";

/// Whoever uses the mesh reads, whoever takes it down or changes it writes.
static USE: RwLock<()> = RwLock::new(());
/// Whether it is installed as tests expect it.
static INSTALLED: Mutex<bool> = Mutex::new(false);

/// The mesh, in use together with other tests.
pub struct Shared {
    _use: RwLockReadGuard<'static, ()>,
}

/// The mesh, for one test alone. The next test finds it installed anew.
pub struct Exclusive {
    _use: RwLockWriteGuard<'static, ()>,
}

/// Uses the mesh as it is, installing it first where it is not.
///
/// # Errors
/// When it does not become ready.
pub fn shared() -> anyhow::Result<Shared> {
    let held = USE.read().unwrap_or_else(PoisonError::into_inner);
    ensure(&mut installed())?;
    Ok(Shared { _use: held })
}

/// Waits until no other test uses the mesh, and gives it to this one, installed.
///
/// # Errors
/// When it does not become ready.
pub fn exclusive() -> anyhow::Result<Exclusive> {
    let held = USE.write().unwrap_or_else(PoisonError::into_inner);
    let mut installed = installed();
    ensure(&mut installed)?;
    *installed = false;
    Ok(Exclusive { _use: held })
}

/// As [`exclusive`], but with nothing installed.
///
/// # Errors
/// When what is installed cannot be removed.
pub fn absent() -> anyhow::Result<Exclusive> {
    let held = USE.write().unwrap_or_else(PoisonError::into_inner);
    *installed() = false;
    uninstall()?;
    Ok(Exclusive { _use: held })
}

fn installed() -> MutexGuard<'static, bool> {
    INSTALLED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ensure(installed: &mut bool) -> anyhow::Result<()> {
    if !*installed {
        install(&[])?;
        *installed = true;
    }
    Ok(())
}

/// The chart's directory.
#[must_use]
pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/mesh")
}

/// Installs the mesh or changes its values, `key=value`, and waits until it is ready. Returns how long it took.
///
/// # Errors
/// When it does not become ready.
pub fn install(values: &[&str]) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let chart = chart().to_string_lossy().into_owned();
    let mut args = vec![
        "upgrade",
        "--install",
        RELEASE,
        &chart,
        "--namespace",
        NAMESPACE,
        "--create-namespace",
        "--wait",
        "--timeout=180s",
    ];
    let hub = std::env::var("MESH_E2E_HUB").map(|hub| format!("image.hub={hub}")).ok();
    for value in hub.as_deref().into_iter().chain(values.iter().copied()) {
        args.extend(["--set", value]);
    }
    let outcome = tools::run("helm", &args, None, Duration::from_secs(240))?;
    anyhow::ensure!(
        outcome.success,
        "{}{}\n{}",
        outcome.stderr,
        outcome.stdout,
        wait::situation(NAMESPACE)
    );
    // Ready pods may be a moment ahead of the addresses of their Service.
    wait::eventually("the webhook's certificate is in place", || {
        let configuration = tools::json(&["get", "mutatingwebhookconfiguration", "mesh-injector"])?;
        let webhooks = configuration["webhooks"].as_array().cloned().unwrap_or_default();
        let all = webhooks
            .iter()
            .all(|webhook| webhook["clientConfig"]["caBundle"].is_string());
        anyhow::ensure!(all && !webhooks.is_empty(), "caBundle is missing");
        Ok(())
    })?;
    Ok(start.elapsed())
}

/// Removes the mesh, where it is.
///
/// # Errors
/// When helm fails.
pub fn uninstall() -> anyhow::Result<()> {
    let args = [
        "uninstall",
        RELEASE,
        "-n",
        NAMESPACE,
        "--ignore-not-found",
        "--wait",
        "--timeout=120s",
    ];
    tools::helm(&args).map(drop)
}
