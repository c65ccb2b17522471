//! The proxy beside one workload, and what its image brings along: arguments, signals, and the library.

use clap::{Args as _, FromArgMatches as _, Subcommand as _};
use mesh_proxy::config::Config;
use mesh_proxy::intercept;
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What the program does instead of carrying traffic.
#[derive(clap::Subcommand)]
enum Command {
    /// Redirect the pod's connections to the proxy, with nftables; needs NET_ADMIN.
    Intercept(intercept::Options),
}

fn main() -> anyhow::Result<()> {
    let matches = cli().get_matches();
    if matches.subcommand_name().is_none() {
        return sidecar(Config::from_arg_matches(&matches)?);
    }
    match Command::from_arg_matches(&matches)? {
        Command::Intercept(options) => Ok(intercept::run(&options)?),
    }
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
        let Command::Intercept(options) = Command::from_arg_matches(&matches).unwrap();
        assert!(options.check);
    }
}
