//! Clients of other makes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::plain::{Running, Sidecar, eventually};

/// Runs curl and gives what it printed; a failed transfer is an error, a failed request is not.
///
/// # Errors
/// When there is no transfer.
pub fn curl(args: &[&str]) -> anyhow::Result<String> {
    output(Command::new("curl").args(["-sS", "--max-time", "20"]).args(args))
}

/// Runs a command and gives what it printed.
///
/// # Errors
/// When it cannot be run or says that it failed.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {errors}{text}", output.status);
    }
    Ok(text)
}

fn script(packages: &Path, name: &str) -> Command {
    let mut command = Command::new("python3");
    command
        .arg(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients").join(name))
        .env("PYTHONPATH", packages)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// A gRPC server; gives its port as well.
///
/// # Errors
/// When it does not start.
pub fn grpc_server(packages: &Path, dir: &Path) -> anyhow::Result<(Running, u16)> {
    let server = Running::start("grpc-server", dir, script(packages, "grpc_server.py"))?;
    let port = eventually("the gRPC server listens", || {
        server.output().trim().strip_prefix("port ")?.parse().ok()
    });
    let port = port.with_context(|| server.output())?;
    Ok((server, port))
}

/// Calls a method of that server, through a sidecar.
///
/// # Errors
/// When the client does not run; a failed call is not an error.
pub fn grpc(packages: &Path, client: &Sidecar, target: &str, method: &str, messages: &[&str]) -> anyhow::Result<Value> {
    let mut command = script(packages, "grpc_client.py");
    command.args([target, method]).args(messages);
    command.env("grpc_proxy", client.proxy_url());
    Ok(serde_json::from_str(output(&mut command)?.trim())?)
}

/// Sends messages over a WebSocket, through a sidecar; gives the lines that came back.
///
/// # Errors
/// When the client fails.
pub fn websocket(packages: &Path, client: &Sidecar, url: &str, messages: &[&str]) -> anyhow::Result<Vec<String>> {
    let mut command = script(packages, "websocket_client.py");
    command.args([&client.proxy_url(), url]).args(messages);
    Ok(output(&mut command)?.lines().map(str::to_owned).collect())
}
