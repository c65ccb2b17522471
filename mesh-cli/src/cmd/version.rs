//! `meshctl version`.

use serde_json::json;

use super::Verdict;
use crate::output::{Output, print};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Verdict> {
    let version = env!("CARGO_PKG_VERSION");
    if !args.output.structured(&json!({ "client": version }))? {
        print(&format!("meshctl {version}\n"))?;
    }
    Ok(Verdict::Well)
}
