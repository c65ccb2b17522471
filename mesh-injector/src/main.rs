//! The admission webhooks of the mesh: arguments, signals, and the library.

use std::process::ExitCode;

use clap::Parser;
use mesh_injector::options::Options;
use mesh_injector::run;
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The mesh's admission webhooks: adds the proxy to pods, validates policy objects.
#[derive(Debug, Parser)]
#[command(name = "mesh-injector", version, about)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    match run::main(Cli::parse().options, CancellationToken::new()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-injector: {error:#}");
            ExitCode::FAILURE
        }
    }
}
