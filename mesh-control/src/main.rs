//! mesh-control: serves a mesh's configuration and certificates; or makes bootstrap tokens for its proxies, or cleans
//! a cluster up.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use mesh_api::identity::SpiffeId;
use mesh_control::ca::{Authority, Lifetimes, create_token};
use mesh_control::config::{CaConfig, Config, parse_duration};
use mesh_control::kube::cleanup::Cleanup;
use mesh_control::{hook, run};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The mesh's control plane.
#[derive(Debug, Parser)]
#[command(
    name = "mesh-control",
    version,
    about,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Cli {
    #[command(flatten)]
    config: Config,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Deletes what control plane and injector made in the cluster: their Lease, ConfigMaps and Secret, and the chart's
    /// MeshConfig. For the chart's use after uninstallation. CRDs, users' objects and running pods stay.
    Cleanup(CleanupArgs),
    /// Bootstrap tokens: how proxies outside Kubernetes prove, once, who they are.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Applies the object of a file to the cluster that it runs in; the chart's jobs do.
    #[command(hide = true)]
    Apply(ApplyArgs),
    /// Asks URLs until they answer with success; the chart's test does.
    #[command(hide = true)]
    Probe(ProbeArgs),
}

#[derive(Debug, Args)]
struct ApplyArgs {
    /// A YAML file with one object.
    #[arg(long)]
    file: PathBuf,

    /// How long to wait until the API server takes it.
    #[arg(long, default_value = "60s", value_name = "DURATION", value_parser = parse_duration)]
    timeout: Duration,
}

#[derive(Debug, Args)]
struct ProbeArgs {
    /// `http://address:port/path`
    #[arg(required = true)]
    urls: Vec<http::Uri>,

    /// How long to wait for each.
    #[arg(long, default_value = "60s", value_name = "DURATION", value_parser = parse_duration)]
    timeout: Duration,
}

#[derive(Debug, Args)]
struct CleanupArgs {
    /// Namespace of the control plane.
    #[arg(
        long,
        env = "MESH_POD_NAMESPACE",
        default_value = "mesh-system",
        value_name = "NAMESPACE"
    )]
    namespace: String,

    /// Deletes Secret mesh-ca too, the certificate authority's keys. A mesh installed later has a new root then: pods that
    /// still run on certificates of the old one have to be restarted. A plugged-in Secret cacerts always stays.
    #[arg(long, env = "MESH_CLEANUP_CA")]
    ca: bool,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Makes a token and prints it. The control plane need not run, and needs no restart.
    Create(TokenArgs),
}

#[derive(Debug, Args)]
struct TokenArgs {
    #[command(flatten)]
    ca: CaConfig,

    /// The identity that the token gives: `<namespace>/<service account>`, or the whole SPIFFE ID.
    #[arg(long, value_name = "NS/SA|SPIFFE-ID")]
    identity: String,

    /// How long it may be used.
    #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = parse_duration)]
    ttl: Duration,

    /// Writes it to this file, readable by its owner only, instead of standard output.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.command {
        Some(Command::Token(TokenCommand::Create(args))) => create(args),
        Some(Command::Apply(args)) => block_on(hook::apply(&args.file, args.timeout)),
        Some(Command::Probe(args)) => block_on(hook::probe(&args.urls, args.timeout)),
        Some(Command::Cleanup(args)) => run::once(async |client| {
            let cleanup = Cleanup {
                namespace: args.namespace.clone(),
                authority: args.ca,
            };
            Ok(cleanup.run(&client).await?)
        }),
        None => run::main(cli.config, CancellationToken::new()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-control: {error:#}");
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

fn create(args: &TokenArgs) -> anyhow::Result<()> {
    let identity = identity(args)?;
    let authority = Authority::open(&args.ca.directory, &args.ca.trust_domain, Lifetimes::default())?;
    let token = create_token(&args.ca.directory, &authority, &identity, args.ttl)?;
    match &args.output {
        Some(path) => write_secret(path, &format!("{token}\n")).with_context(|| format!("writing {}", path.display())),
        None => {
            println!("{token}");
            Ok(())
        }
    }
}

fn identity(args: &TokenArgs) -> anyhow::Result<SpiffeId> {
    if args.identity.starts_with("spiffe://") {
        return Ok(args.identity.parse()?);
    }
    let (namespace, account) = args.identity.split_once('/').with_context(|| {
        format!(
            "--identity {}: expected <namespace>/<service account> or spiffe://…",
            args.identity
        )
    })?;
    Ok(SpiffeId::new(&args.ca.trust_domain, namespace, account)?)
}

/// Replaces a file by one that only its owner can read, at no moment readable by others.
fn write_secret(path: &Path, content: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // What is left over holds a token.
        let _ = std::fs::remove_file(&temporary);
    }
    Ok(written?)
}
