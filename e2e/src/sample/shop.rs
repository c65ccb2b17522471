//! A service of the shop in a pod: the application of `meshctl demo`, which calls others by their names.
//!
//! Told to end, it serves on for a while, as applications in Kubernetes have to: their address is gone everywhere only
//! some time after.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use clap::Args;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;
use mesh_cli::demo::app::{self, ServiceArgs};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::resolve;

/// Requests that have come by the end may take so long.
const LAST_REQUESTS: Duration = Duration::from_secs(10);

/// A service of the shop.
#[derive(Clone, Debug, Args)]
pub struct ShopArgs {
    /// What it is.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// Where it listens. Repeatable.
    #[arg(long, required = true)]
    pub listen: Vec<SocketAddr>,
    /// Seconds that it serves on after SIGTERM.
    #[arg(long, default_value_t = 5.0)]
    pub linger: f64,
}

/// Serves until SIGTERM.
///
/// # Errors
/// When an address cannot be bound.
pub async fn run(args: ShopArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new_with_resolver(ByName));
    let mut servers = tokio::task::JoinSet::new();
    for address in &args.listen {
        let listener = TcpListener::bind(address).await?;
        servers.spawn(app::serve(listener, args.service.clone(), client.clone(), stop.clone()));
    }
    println!(
        "{} {} serves at {:?}",
        args.service.service, args.service.version, args.listen
    );
    terminate.recv().await;
    println!("told to end; serving on for {} s", args.linger);
    tokio::time::sleep(Duration::from_secs_f64(args.linger)).await;
    stop.cancel();
    let _ = tokio::time::timeout(LAST_REQUESTS, async { while servers.join_next().await.is_some() {} }).await;
    println!("ended");
    Ok(())
}

/// Resolves as [`resolve`] does.
#[derive(Clone, Copy, Debug)]
struct ByName;

impl Service<Name> for ByName {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(async move {
            let addresses = resolve::addresses(name.as_str()).await?;
            // The connector sets the port.
            let addresses: Vec<_> = addresses
                .into_iter()
                .map(|address| SocketAddr::new(address, 0))
                .collect();
            Ok(addresses.into_iter())
        })
    }
}
