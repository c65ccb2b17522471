//! The proxy beside one workload, and what its image brings along: arguments, signals, and the library.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args as _, FromArgMatches as _, Subcommand as _};
use mesh_proxy::config::Config;
use mesh_proxy::{cmd, intercept};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What the program does instead of carrying traffic.
#[derive(clap::Subcommand)]
enum Command {
    /// Redirect the pod's connections to the proxy, with nftables; needs NET_ADMIN.
    Intercept(intercept::Options),
    Drain(cmd::Drain),
    Wait(cmd::Wait),
    /// Ask a port of this pod for a page; a program called `curl` that is this one does the same.
    #[command(disable_help_flag = true)]
    Curl {
        /// Options and URL; see `--help`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let mut arguments = std::env::args_os();
    if arguments.next().is_some_and(|name| is_curl(&name)) {
        return Ok(cmd::curl::main(arguments));
    }
    let matches = cli().get_matches();
    if matches.subcommand_name().is_none() {
        sidecar(Config::from_arg_matches(&matches)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    match Command::from_arg_matches(&matches)? {
        Command::Intercept(options) => intercept::run(&options)?,
        Command::Drain(drain) => drain.run()?,
        Command::Wait(wait) => wait.run()?,
        Command::Curl { arguments } => return Ok(cmd::curl::main(arguments)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the program was called by the other name that the image has for it.
fn is_curl(name: &OsString) -> bool {
    Path::new(name).file_name().is_some_and(|name| name == "curl")
}

/// Without a subcommand, the program is the sidecar.
fn cli() -> clap::Command {
    let sidecar = clap::Command::new("mesh-proxy")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_negates_reqs(true)
        .args_conflicts_with_subcommands(true);
    Command::augment_subcommands(Config::augment_args(sidecar))
        .about("The proxy beside one workload")
        .subcommand_required(false)
        .arg_required_else_help(false)
}

fn sidecar(config: Config) -> anyhow::Result<()> {
    let logging = mesh_proxy::logging::Logging::install(&config.log)?;
    let shutdown = CancellationToken::new();
    mesh_proxy::stop_on_signals(shutdown.clone())?;
    mesh_proxy::run(config, logging, shutdown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sidecar_is_the_default() {
        cli().debug_assert();
        let matches = cli()
            .try_get_matches_from(["mesh-proxy", "--workload", "reviews-v1"])
            .unwrap();
        assert_eq!(Config::from_arg_matches(&matches).unwrap().workload, "reviews-v1");
        assert!(cli().try_get_matches_from(["mesh-proxy"]).is_err() || std::env::var_os("MESH_WORKLOAD").is_some());
    }

    #[test]
    fn subcommands_need_nothing_of_the_sidecar() {
        let matches = cli()
            .try_get_matches_from(["mesh-proxy", "intercept", "--check"])
            .unwrap();
        let Command::Intercept(options) = Command::from_arg_matches(&matches).unwrap() else {
            panic!("not intercept");
        };
        assert!(options.check);
        for command in ["drain", "wait"] {
            assert!(cli().try_get_matches_from(["mesh-proxy", command]).is_ok(), "{command}");
        }
    }

    #[test]
    fn curl_has_options_of_its_own() {
        let typed = ["mesh-proxy", "curl", "-s", "--help", "-H", "a: b", "localhost"];
        let matches = cli().try_get_matches_from(typed).unwrap();
        let Command::Curl { arguments } = Command::from_arg_matches(&matches).unwrap() else {
            panic!("not curl");
        };
        assert_eq!(arguments, typed[2..]);
        assert!(is_curl(&"/usr/local/bin/curl".into()));
        assert!(!is_curl(&"/usr/local/bin/mesh-proxy".into()));
    }
}
