//! What cannot run on some clusters says so, and `e2e/cluster test` counts it.

use std::fs::OpenOptions;
use std::io::Write as _;

/// Says that a test was skipped, and why.
pub fn skip(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
    let Some(file) = std::env::var_os("MESH_E2E_SKIPPED") else {
        return;
    };
    let written = OpenOptions::new()
        .append(true)
        .create(true)
        .open(file)
        .and_then(|mut file| writeln!(file, "{test}: {reason}"));
    if let Err(error) = written {
        eprintln!("it is not counted: {error}");
    }
}
