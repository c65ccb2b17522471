//! `mesh-proxy drain`: what a native sidecar's preStop hook runs when the pod's termination starts.
//!
//! The kubelet runs it at once, beside the application's own hooks and signal, and sends the sidecar its signal when both
//! this command and the application have ended. So the command starts the drain of inbound connections and then stays until
//! clients have heard that the pod goes: while they still come, somebody has to answer.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use http::{Method, StatusCode};

use super::client::{ask, block_on};
use crate::config::parse_duration;

/// Between looks at the proxy.
const INTERVAL: Duration = Duration::from_millis(200);

/// Start to drain inbound connections, and wait until clients have heard of it.
#[derive(Clone, Debug, clap::Args)]
pub struct Drain {
    /// Administration of the proxy.
    #[arg(
        long,
        env = "MESH_ADMIN",
        default_value = "127.0.0.1:15000",
        value_name = "ADDR:PORT"
    )]
    admin: SocketAddr,

    /// How long to stay at least, unless no client ever came.
    #[arg(long, default_value = "3s", value_parser = parse_duration)]
    at_least: Duration,

    /// No new connection for so long means that clients know.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    quiet: Duration,

    /// How long to stay at most.
    #[arg(long, default_value = "15s", value_parser = parse_duration)]
    at_most: Duration,
}

impl Drain {
    /// Runs the command.
    ///
    /// # Errors
    /// When the proxy does not answer.
    pub fn run(&self) -> anyhow::Result<()> {
        block_on(self.drain())
    }

    async fn drain(&self) -> anyhow::Result<()> {
        let asked = || format!("the proxy's administration at {}", self.admin);
        let begun = Instant::now();
        let (status, body) = ask(Method::POST, self.admin, "/drain?inboundonly")
            .await
            .with_context(asked)?;
        ensure!(
            status == StatusCode::OK,
            "{} answers {status}: {}",
            asked(),
            body.trim()
        );
        let mut seen = self.arrivals().await.with_context(asked)?;
        if seen == 0 {
            return Ok(());
        }
        let mut last = begun;
        while begun.elapsed() < self.at_most {
            tokio::time::sleep(INTERVAL).await;
            // A proxy that has ended needs no more time.
            let Ok(now) = self.arrivals().await else { return Ok(()) };
            if now != seen {
                seen = now;
                last = Instant::now();
            }
            if begun.elapsed() >= self.at_least && last.elapsed() >= self.quiet {
                break;
            }
        }
        Ok(())
    }

    /// Inbound connections that ever came.
    async fn arrivals(&self) -> anyhow::Result<u64> {
        let (_, page) = ask(Method::GET, self.admin, "/server_info").await?;
        let page: serde_json::Value = serde_json::from_str(&page)?;
        page["drain"]["inboundAccepted"]
            .as_u64()
            .context("it does not count connections")
    }
}
