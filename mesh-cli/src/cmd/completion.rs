//! `meshctl completion`: what a shell needs to complete meshctl's commands and flags.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Verdict;
use crate::output::print;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell. For bash: `source <(meshctl completion bash)`.
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Verdict> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "meshctl", &mut script);
    print(&String::from_utf8(script)?)?;
    Ok(Verdict::Well)
}
