//! The workspace's own programs, as a user would have built them: next to the test that asks, in the same profile.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const PROGRAMS: [&str; 3] = ["meshctl", "mesh-control", "mesh-proxy"];

/// `meshctl`.
#[must_use]
pub fn meshctl() -> PathBuf {
    built("meshctl")
}

/// `mesh-control`.
#[must_use]
pub fn mesh_control() -> PathBuf {
    built("mesh-control")
}

/// `mesh-proxy`.
#[must_use]
pub fn mesh_proxy() -> PathBuf {
    built("mesh-proxy")
}

/// Builds all programs, once for the process; nothing is compiled that the tests have not compiled already.
///
/// # Panics
/// When they do not build: there is nothing to test then.
fn built(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(build).join(name)
}

#[allow(clippy::expect_used, reason = "without programs there is nothing to test")]
fn build() -> PathBuf {
    let test = std::env::current_exe().expect("this test has a file");
    // target/debug/deps/test-hash, or target/debug/program
    let directory = test
        .ancestors()
        .skip(1)
        .find(|path| !path.ends_with("deps"))
        .map(Path::to_owned);
    let directory = directory.expect("a test lies in a target directory");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--workspace", "--bins", "--quiet"]);
    if directory.ends_with("release") {
        cargo.arg("--release");
    }
    cargo
        .arg("--manifest-path")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"));
    if let Some(target) = directory.parent() {
        cargo.arg("--target-dir").arg(target);
    }
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "the workspace's programs do not build");
    keep(&directory).expect("programs can be linked within the target directory")
}

/// Links the programs to a place of this checkout's own: a build that ends while tests run, of another checkout with the
/// same target directory too, must not swap the programs under test.
fn keep(built: &Path) -> std::io::Result<PathBuf> {
    let mut checkout = DefaultHasher::new();
    env!("CARGO_MANIFEST_DIR").hash(&mut checkout);
    let kept = built.join(format!("under-test-{:016x}", checkout.finish()));
    std::fs::create_dir_all(&kept)?;
    for program in PROGRAMS {
        let fresh = kept.join(format!("{program}.{}", std::process::id()));
        std::fs::hard_link(built.join(program), &fresh)?;
        std::fs::rename(&fresh, kept.join(program))?;
        // Renaming a link onto another link of the same file leaves both.
        let _ = std::fs::remove_file(&fresh);
    }
    Ok(kept)
}
