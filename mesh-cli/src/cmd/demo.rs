//! `meshctl demo`, and the processes that it is made of.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use mesh_api::validate;
use mesh_control::config::parse_duration;
use tokio_util::sync::CancellationToken;

use super::Verdict;
use crate::demo::app::{self, AppArgs};
use crate::demo::processes::Settings;
use crate::demo::run::{self, Options, Outcome};
use crate::demo::shop::MeshOptions;
use crate::demo::supervisor::on_parent_gone;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory with policy, made if absent; it is watched. Without it the demo has one of its own.
    #[arg(long, value_name = "DIR")]
    policies: Option<PathBuf>,

    /// Namespace whose policies hold for the whole mesh.
    #[arg(long, default_value = "mesh-system", value_name = "NAMESPACE", value_parser = parse_namespace)]
    root_namespace: String,

    /// Makes so many requests a second through the shop, and shows what comes of them.
    #[arg(long, value_name = "RPS", value_parser = parse_rate)]
    traffic: Option<f64>,

    /// Ends by itself after this time, with a summary; the exit status is 1 if any request failed that policy did not
    /// ask to fail. Without --traffic, 10 requests a second are made.
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    duration: Option<Duration>,

    /// Encoding of the sidecars' access logs.
    #[arg(long, value_enum, default_value_t, value_name = "ENCODING")]
    access_log: Encoding,

    /// Sends a span for every hop to this OTLP collector over gRPC, such as http://127.0.0.1:4317.
    #[arg(long, value_name = "URL", value_parser = parse_collector)]
    otlp_endpoint: Option<String>,

    /// Data-plane workers of each sidecar; by default the CPU limit of the control group, else 2.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: Option<u16>,

    /// How results are printed: with json, a line of JSON when everything is ready and, with --for, one at the end.
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    #[default]
    Table,
    Json,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Encoding {
    #[default]
    Text,
    Json,
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 100_000.0 => Ok(rate),
        _ => Err("expected a number of requests a second above 0, at most 100000".to_owned()),
    }
}

fn parse_namespace(text: &str) -> Result<String, String> {
    validate::namespace(text).map(|()| text.to_owned())
}

fn parse_collector(text: &str) -> Result<String, String> {
    validate::collector(text).map(|()| text.to_owned())
}

pub(super) fn run(args: Args) -> anyhow::Result<Verdict> {
    let options = Options {
        policies: args.policies,
        settings: Settings {
            root_namespace: args.root_namespace,
            concurrency: args.concurrency,
        },
        mesh: MeshOptions {
            access_log_encoding: match args.access_log {
                Encoding::Text => "TEXT",
                Encoding::Json => "JSON",
            },
            otlp_endpoint: args.otlp_endpoint,
        },
        traffic: args.traffic,
        duration: args.duration,
        json: args.output == Format::Json,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    Ok(match runtime.block_on(run::run(options))? {
        Outcome::Well => Verdict::Well,
        Outcome::Failures => Verdict::Findings,
    })
}

/// The control plane of a demo.
pub(super) fn control_plane(config: mesh_control::config::Config) -> anyhow::Result<Verdict> {
    let stop = CancellationToken::new();
    let parent = stop.clone();
    on_parent_gone(move || parent.cancel());
    mesh_control::run::main(config, stop)?;
    Ok(Verdict::Well)
}

/// A sidecar of a demo.
pub(super) fn sidecar(config: mesh_proxy::config::Config) -> anyhow::Result<Verdict> {
    let logging = mesh_proxy::logging::Logging::install(&config.log)?;
    let stop = CancellationToken::new();
    let parent = stop.clone();
    on_parent_gone(move || parent.cancel());
    mesh_proxy::stop_on_signals(stop.clone())?;
    mesh_proxy::run(config, logging, stop)?;
    Ok(Verdict::Well)
}

/// An application of a demo.
pub(super) fn application(args: AppArgs) -> anyhow::Result<Verdict> {
    on_parent_gone(|| std::process::exit(0));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(app::run(args))?;
    Ok(Verdict::Well)
}
