//! The commands of meshctl, one file each. Exit status: 0 is well, 1 found something or failed, 2 was asked wrongly.

mod analyze;
mod bug_report;
mod check;
mod completion;
mod demo;
mod inject;
mod install;
mod proxy_config;
mod proxy_status;
mod version;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs the mesh on one machine, and shows and checks what a mesh does.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the whole mesh on this machine: control plane, sidecars, and a shop of small services.
    Demo(demo::Args),
    /// Installs the mesh into a cluster, or upgrades it, and waits until it is ready.
    Install(install::InstallArgs),
    /// Removes the mesh from a cluster; policy objects stay.
    Uninstall(install::UninstallArgs),
    /// Adds the proxy to manifests, as the injector in a cluster does to pods.
    Inject(inject::Args),
    /// Checks the cluster: before the mesh is installed (--pre), and after.
    Check(check::Args),
    /// Checks policy, in files without a mesh or in a cluster: errors and warnings, with their places.
    Analyze(analyze::Args),
    /// Shows connected proxies, and whether they act on what the control plane says.
    ProxyStatus(proxy_status::Args),
    /// Shows what one proxy holds.
    ProxyConfig(proxy_config::Args),
    /// Prints the version of meshctl, the control plane and the proxies.
    Version(version::Args),
    /// Prints what a shell needs to complete commands.
    Completion(completion::Args),
    /// Gathers what is needed to understand a fault, without secrets, into one file.
    BugReport(bug_report::Args),
    /// The control plane of a demo.
    #[command(name = "__control-plane", hide = true)]
    ControlPlane(Box<mesh_control::config::Config>),
    /// A sidecar of a demo.
    #[command(name = "__sidecar", hide = true)]
    Sidecar(Box<mesh_proxy::config::Config>),
    /// An application of a demo.
    #[command(name = "__app", hide = true)]
    Application(crate::demo::app::AppArgs),
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
        Command::Demo(args) => demo::run(args),
        Command::Analyze(args) => analyze::run(&args),
        Command::ProxyStatus(args) => block_on(proxy_status::run(&args)),
        Command::ProxyConfig(args) => block_on(proxy_config::run(&args)),
        Command::Version(args) => block_on(version::run(&args)),
        Command::Install(args) => block_on(install::install(&args)),
        Command::Uninstall(args) => block_on(install::uninstall(&args)),
        Command::Inject(args) => block_on(inject::run(&args)),
        Command::Check(args) => block_on(check::run(&args)),
        Command::Completion(args) => completion::run(&args),
        Command::BugReport(args) => block_on(bug_report::run(&args)),
        Command::ControlPlane(config) => demo::control_plane(*config),
        Command::Sidecar(config) => demo::sidecar(*config),
        Command::Application(args) => demo::application(args),
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn arguments_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_application_has_a_version_of_its_own() {
        let args =
            "meshctl __app --service a --version v1 --namespace default --listen 127.0.0.1:1 --proxy 127.0.0.1:2";
        assert!(Cli::try_parse_from(args.split(' ')).is_ok());
    }
}
