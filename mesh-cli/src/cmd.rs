//! The commands of meshctl, one file each. Exit status: 0 is well, 1 found something or failed, 2 was asked wrongly.

mod analyze;
mod proxy_config;
mod proxy_status;
mod version;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs the mesh on one machine, and shows and checks what a mesh does.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Checks policy files without a mesh: errors and warnings, with their places.
    Analyze(analyze::Args),
    /// Shows connected proxies, and whether they act on what the control plane says.
    ProxyStatus(proxy_status::Args),
    /// Shows what one proxy holds.
    ProxyConfig(proxy_config::Args),
    /// Prints the version.
    Version(version::Args),
}

/// What a command has to say at its end, when it did not fail.
enum Verdict {
    Well,
    Findings,
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

/// Runs the command that the process's arguments name. To be called from a plain thread.
#[must_use]
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Analyze(args) => analyze::run(&args),
        Command::ProxyStatus(args) => block_on(proxy_status::run(&args)),
        Command::ProxyConfig(args) => block_on(proxy_config::run(&args)),
        Command::Version(args) => version::run(&args),
    };
    match outcome {
        Ok(Verdict::Well) => ExitCode::SUCCESS,
        Ok(Verdict::Findings) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("meshctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}
