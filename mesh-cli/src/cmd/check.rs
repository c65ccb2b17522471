//! `meshctl check`: whether a cluster can take the mesh, and whether the mesh in it is well. In categories, each check
//! with a reason and a hint where it fails, as users of Linkerd know it.

mod control_plane;
mod data_plane;
mod kubernetes;
mod outcome;
mod setup;

use std::time::{Duration, Instant};

use clap::ValueEnum;

use self::outcome::{Category, Level, Outcome};
use super::Verdict;
use crate::cluster::{Access, Cluster};
use crate::output::{is_colourful, print};

/// Between two looks at something that is not there yet.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Checks whether the mesh can be installed.
    #[arg(long)]
    pre: bool,

    /// How long to wait for what is not ready yet.
    #[arg(long, default_value = "1m", value_name = "DURATION", value_parser = mesh_control::config::parse_duration)]
    wait: Duration,

    /// How the result is printed.
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,

    #[command(flatten)]
    access: Access,
}

/// A format of the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Everything, in categories.
    #[default]
    Table,
    /// Only what is not well.
    Short,
    /// One JSON value.
    Json,
}

/// What is looked at, one after the other: later ones make little sense when an earlier one fails.
#[derive(Clone, Copy)]
enum Stage {
    PreSetup,
    PreIstio,
    ControlPlane,
    Identity,
    Webhooks,
    DataPlane,
    Policy,
}

impl Stage {
    const BEFORE: [Self; 2] = [Self::PreSetup, Self::PreIstio];
    const AFTER: [Self; 5] = [
        Self::ControlPlane,
        Self::Identity,
        Self::Webhooks,
        Self::DataPlane,
        Self::Policy,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::PreSetup => "pre-kubernetes-setup",
            Self::PreIstio => "pre-other-meshes",
            Self::ControlPlane => "mesh-control-plane",
            Self::Identity => "mesh-identity",
            Self::Webhooks => "mesh-webhooks",
            Self::DataPlane => "mesh-data-plane",
            Self::Policy => "mesh-policy",
        }
    }

    async fn look(self, cluster: &Cluster) -> Vec<Outcome> {
        match self {
            Self::PreSetup => setup::permissions(cluster).await,
            Self::PreIstio => setup::other_meshes(cluster).await,
            Self::ControlPlane => control_plane::existence(cluster).await,
            Self::Identity => control_plane::identity(cluster).await,
            Self::Webhooks => control_plane::webhooks(cluster).await,
            Self::DataPlane => data_plane::proxies(cluster).await,
            Self::Policy => data_plane::policy(cluster).await,
        }
    }
}

pub(super) async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let deadline = Instant::now() + args.wait;
    let mut report = Report {
        format: args.format,
        colourful: is_colourful(),
        categories: Vec::new(),
    };
    let (cluster, first) = kubernetes::api(&args.access).await;
    report.add("kubernetes-api", first)?;
    if let Some(cluster) = cluster {
        let stages: &[Stage] = if args.pre { &Stage::BEFORE } else { &Stage::AFTER };
        for stage in stages {
            let mut outcomes = stage.look(&cluster).await;
            while Level::worst(&outcomes) == Level::Failed && Instant::now() + PAUSE < deadline {
                tokio::time::sleep(PAUSE).await;
                outcomes = stage.look(&cluster).await;
            }
            let go_on = Level::worst(&outcomes) != Level::Failed || !matches!(stage, Stage::ControlPlane);
            report.add(stage.name(), outcomes)?;
            if !go_on {
                break;
            }
        }
    }
    report.end()
}

/// Prints categories as they come.
struct Report {
    format: Format,
    colourful: bool,
    categories: Vec<Category>,
}

impl Report {
    fn add(&mut self, name: &'static str, outcomes: Vec<Outcome>) -> anyhow::Result<()> {
        let category = Category { name, outcomes };
        match self.format {
            Format::Table => print(&category.shown(self.colourful, true))?,
            Format::Short => print(&category.shown(self.colourful, false))?,
            Format::Json => {}
        }
        self.categories.push(category);
        Ok(())
    }

    fn end(self) -> anyhow::Result<Verdict> {
        let outcomes = self.categories.iter().flat_map(|category| &category.outcomes);
        let failed = outcomes.clone().any(|outcome| outcome.level == Level::Failed);
        let verdict = if failed { Level::Failed } else { Level::Passed };
        if self.format == Format::Json {
            let value = serde_json::json!({ "success": !failed, "categories": self.categories });
            print(&(serde_json::to_string_pretty(&value)? + "\n"))?;
        } else {
            print(&format!("Status check results are {}\n", verdict.sign(self.colourful)))?;
        }
        Ok(if failed { Verdict::Findings } else { Verdict::Well })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hint_leads_to_a_heading_of_the_troubleshooting_guide() {
        let guide = include_str!("../../../docs/troubleshooting.md");
        for hint in outcome::HINTS {
            assert!(
                guide.contains(&format!("<a id=\"{hint}\">")),
                "{hint} is not in docs/troubleshooting.md"
            );
        }
    }
}
