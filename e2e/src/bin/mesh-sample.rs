//! mesh-sample: what runs in pods of the tests. Called `curl`, it is one, for plain HTTP.

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use e2e::sample::{get, load, shop, tcp, wire};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Sample applications of the mesh's tests.
#[derive(Debug, Parser)]
#[command(name = "mesh-sample", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A service of the shop, which calls others.
    Shop(shop::ShopArgs),
    /// Steady traffic on connections that stay open.
    Load(load::LoadArgs),
    /// Requests whose answers are printed as JSON.
    Get(get::GetArgs),
    /// A TCP server.
    Tcp(tcp::TcpArgs),
    /// A TCP client.
    TcpCall(tcp::TcpCallArgs),
    /// Looks for texts in all that passes on the wire.
    Wire(wire::WireArgs),
    /// Waits to be told to end, for `kubectl exec`.
    Sleep,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let as_curl = Path::new(&name).file_name().is_some_and(|name| name == "curl");
    let outcome = if as_curl {
        block_on(get::curl(std::env::args_os()))
    } else {
        match Cli::parse().command {
            Command::Shop(args) => block_on(shop::run(args)),
            Command::Load(args) => block_on(load::run(args)),
            Command::Get(args) => block_on(get::run(args)),
            Command::Tcp(args) => block_on(tcp::serve(args)),
            Command::TcpCall(args) => block_on(tcp::call(args)),
            Command::Wire(args) => wire::run(&args),
            Command::Sleep => block_on(async {
                let kind = tokio::signal::unix::SignalKind::terminate();
                tokio::signal::unix::signal(kind)?.recv().await;
                Ok(())
            }),
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error:#}", if as_curl { "curl" } else { "mesh-sample" });
            ExitCode::FAILURE
        }
    }
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}
