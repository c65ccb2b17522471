//! TCP without HTTP: a server that says its name and echoes, and a client that says what came back.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

use super::resolve;

/// A TCP server that speaks first.
#[derive(Clone, Debug, Args)]
pub struct TcpArgs {
    /// Where it listens.
    #[arg(long)]
    pub listen: SocketAddr,
    /// Said to whoever connects, before all that comes is sent back.
    #[arg(long)]
    pub greeting: String,
    /// Speaks only after the client did.
    #[arg(long)]
    pub quiet: bool,
}

/// A TCP client.
#[derive(Clone, Debug, Args)]
pub struct TcpCallArgs {
    /// `host:port`
    pub target: String,
    /// What is sent.
    #[arg(long, default_value = "ping")]
    pub send: String,
    /// Seconds that it may take.
    #[arg(short = 'm', long, default_value_t = 10.0)]
    pub max_time: f64,
}

/// Serves until SIGTERM.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(args: TcpArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind(args.listen).await?;
    loop {
        let mut stream = tokio::select! {
            _ = terminate.recv() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => continue,
            },
        };
        let args = args.clone();
        tokio::spawn(async move {
            if !args.quiet && stream.write_all(args.greeting.as_bytes()).await.is_err() {
                return;
            }
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
    }
}

/// Sends, ends its half, and prints all that came.
///
/// # Errors
/// When there is no connection, or no end within the time.
pub async fn call(args: TcpCallArgs) -> anyhow::Result<()> {
    let (host, port) = args.target.rsplit_once(':').context("a target is host:port")?;
    let port = port.parse().context("a target is host:port")?;
    let work = async {
        let address = *resolve::addresses(host).await?.first().context("no address")?;
        let mut stream = TcpStream::connect(SocketAddr::new(address, port)).await?;
        stream.write_all(args.send.as_bytes()).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs_f64(args.max_time), work)
        .await
        .context("no end of the answer in time")??;
    println!("{}", String::from_utf8_lossy(&answer));
    Ok(())
}
