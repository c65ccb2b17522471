//! `mesh-proxy wait`: what the postStart hook of a sidecar that is an ordinary container runs, so that the containers after it
//! start when the network is there.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::bail;
use http::{Method, StatusCode};

use super::client::{ask, block_on};
use super::reachable;
use crate::config::parse_duration;

/// Between looks at the proxy.
const INTERVAL: Duration = Duration::from_millis(100);

/// Wait until the proxy is ready.
#[derive(Clone, Debug, clap::Args)]
pub struct Wait {
    /// Readiness of the proxy.
    #[arg(
        long,
        env = "MESH_READINESS",
        default_value = "127.0.0.1:15021",
        value_name = "ADDR:PORT"
    )]
    readiness: SocketAddr,

    /// How long to wait.
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    timeout: Duration,
}

impl Wait {
    /// Runs the command.
    ///
    /// # Errors
    /// When the proxy is not ready in time; says why.
    pub fn run(&self) -> anyhow::Result<()> {
        block_on(self.wait())
    }

    async fn wait(&self) -> anyhow::Result<()> {
        let address = reachable(self.readiness);
        let begun = Instant::now();
        loop {
            let why = match ask(Method::GET, address, "/healthz/ready").await {
                Ok((StatusCode::OK, _)) => return Ok(()),
                Ok((_, body)) => body.trim().to_owned(),
                Err(error) => format!("{error:#}"),
            };
            if begun.elapsed() >= self.timeout {
                bail!("the proxy at {address} is not ready after {:?}: {why}", self.timeout);
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }
}
