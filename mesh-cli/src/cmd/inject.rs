//! `meshctl inject`: puts the proxy into manifests before they are applied, as the injector would do it.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use mesh_api::source::MAX_BYTES;
use mesh_injector::config::InjectorConfig;
use mesh_injector::inject::manifests_with_notes;

use super::Verdict;
use crate::cluster::Access;
use crate::output::print;

/// Where the injector's configuration is.
const CONFIG_MAP: &str = "mesh-injector";
const CONFIG_KEY: &str = "config.yaml";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Manifests; `-` or nothing is standard input.
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,

    /// Configuration of the injector, from a file.
    #[arg(long, value_name = "FILE", conflicts_with = "from_cluster")]
    injector_config: Option<PathBuf>,

    /// Configuration of the injector, from the cluster; otherwise its defaults are used.
    #[arg(long)]
    from_cluster: bool,

    #[command(flatten)]
    access: Access,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let config = config(args).await?;
    let text = read(&args.file).with_context(|| args.file.display().to_string())?;
    let injected = manifests_with_notes(&text, &config)?;
    for note in &injected.notes {
        eprintln!("{note}");
    }
    print(&injected.yaml)?;
    Ok(Verdict::Well)
}

async fn config(args: &Args) -> anyhow::Result<InjectorConfig> {
    if let Some(path) = &args.injector_config {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        return InjectorConfig::parse(&text).with_context(|| path.display().to_string());
    }
    if args.from_cluster {
        let cluster = args.access.connect().await?;
        let api: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &cluster.mesh_namespace);
        let map = api.get(CONFIG_MAP).await?;
        let text = map.data.and_then(|mut data| data.remove(CONFIG_KEY));
        let text = text.with_context(|| format!("ConfigMap {CONFIG_MAP} has no {CONFIG_KEY}"))?;
        return Ok(InjectorConfig::parse(&text)?);
    }
    Ok(InjectorConfig {
        mesh_namespace: args.access.mesh_namespace.clone(),
        ..InjectorConfig::default()
    })
}

fn read(path: &Path) -> anyhow::Result<String> {
    let limit = MAX_BYTES as u64;
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().take(limit + 1).read_to_end(&mut bytes)?;
    } else {
        std::fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    }
    anyhow::ensure!(bytes.len() <= MAX_BYTES, "more than {MAX_BYTES} bytes");
    String::from_utf8(bytes).context("not UTF-8")
}
