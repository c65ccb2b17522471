//! The proxy beside one workload: arguments, signals, and the library.

use clap::Parser as _;
use mesh_proxy::config::Config;
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The proxy beside one workload.
#[derive(clap::Parser)]
#[command(name = "mesh-proxy", version)]
struct Cli {
    #[command(flatten)]
    config: Config,
}

fn main() -> anyhow::Result<()> {
    let Cli { config } = Cli::parse();
    let logging = mesh_proxy::logging::Logging::install(&config.log)?;
    let shutdown = CancellationToken::new();
    mesh_proxy::stop_on_signals(shutdown.clone())?;
    mesh_proxy::run(config, logging, shutdown)
}
