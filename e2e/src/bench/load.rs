//! The load generator: one thread, a fixed set of connections, every response checked for status and length.
//!
//! It opens its connections, warms the path up, says `ready`, waits for a line on stdin, then makes the load and prints
//! an [`Outcome`] as one line of JSON. Whoever started it reads the clocks of other processes between those lines, when
//! no request is in flight. A single wrong or missing response ends it with an error: figures of a path that
//! loses requests mean nothing.

mod http1;
mod http2;
mod pace;

use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::setting::Protocol;
use pace::Pace;

/// How requests name their destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// `GET /path`, as to a server (RFC 9112 §3.2.1).
    Origin,
    /// `GET http://authority/path`, as to an HTTP proxy (RFC 9112 §3.2.2). HTTP/1.1 only.
    Absolute,
    /// `CONNECT authority` first on each connection, then as to a server (RFC 9110 §9.3.6).
    Connect,
}

impl Form {
    /// As the command line spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Origin => "origin",
            Self::Absolute => "absolute",
            Self::Connect => "connect",
        }
    }
}

/// How load gets into the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where to connect.
    pub address: SocketAddr,
    /// How the destination is named.
    pub form: Form,
    /// The destination, `host:port`.
    pub authority: String,
}

/// What load to make.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The way in.
    pub entry: Entry,
    /// What is spoken.
    pub protocol: Protocol,
    /// How many connections.
    pub connections: usize,
    /// Requests in flight on each connection; 1 for HTTP/1.1.
    pub streams: usize,
    /// Bytes that every response must have.
    pub body_bytes: usize,
    /// How long to make load as fast as it goes before `ready`.
    pub warm_up: Duration,
    /// How long to measure.
    pub duration: Duration,
    /// Requests per second, evenly spaced whatever the responses do (open loop); `None` for as fast as responses come
    /// back (closed loop).
    pub rate: Option<f64>,
}

/// What the load generator measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// Responses that came back right: all of them.
    pub requests: u64,
    /// From the first request to the last response.
    pub seconds: f64,
    /// Latency: from when a request was due (open loop) or sent (closed loop) to the last byte of its response.
    pub p50_us: f64,
    /// The 99th percentile of the same.
    pub p99_us: f64,
    /// The 99.9th percentile of the same.
    pub p999_us: f64,
}

/// Latencies in nanoseconds, up to a minute, to three digits.
type Latencies = Arc<Mutex<Histogram<u64>>>;

/// Runs the plan with the `ready` and `go` handshake on stdout and stdin.
///
/// # Errors
/// When the handshake is broken off or any response is missing or wrong.
pub async fn run(plan: &Plan) -> anyhow::Result<()> {
    let prepared = Prepared::new(plan).await?;
    println!("ready");
    std::io::stdout().flush()?;
    // Blocks the one thread there is: no request is in flight, and the other side counts on silence.
    if std::io::stdin().lock().read_line(&mut String::new())? == 0 {
        bail!("nobody said go");
    }
    let outcome = prepared.measure().await?;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

/// Open, warm connections.
pub struct Prepared<'a> {
    plan: &'a Plan,
    slots: Vec<Slot>,
}

impl<'a> Prepared<'a> {
    /// Connects, makes one request in each slot, then as many as the warm-up has time for.
    ///
    /// # Errors
    /// When a connection is refused or a response is wrong.
    pub async fn new(plan: &'a Plan) -> anyhow::Result<Self> {
        let mut slots = Vec::with_capacity(plan.connections * plan.streams);
        for _ in 0..plan.connections {
            match plan.protocol {
                Protocol::Http1 if plan.streams > 1 => bail!("HTTP/1.1 has one request at a time on a connection"),
                Protocol::Http1 => slots.push(Slot::Http1(http1::Connection::open(plan).await?)),
                Protocol::Http2 => {
                    let connection = http2::Connection::open(plan).await?;
                    slots.extend((0..plan.streams).map(|_| Slot::Http2(connection.clone())));
                }
            }
        }
        for slot in &mut slots {
            slot.exchange().await?;
        }
        let mut prepared = Self { plan, slots };
        if !plan.warm_up.is_zero() {
            prepared.drive(&Pace::closed(plan.warm_up)).await?;
        }
        Ok(prepared)
    }

    /// Makes the load.
    ///
    /// # Errors
    /// When any response is missing or wrong.
    pub async fn measure(mut self) -> anyhow::Result<Outcome> {
        let plan = self.plan;
        let pace = match plan.rate {
            Some(rate) => Pace::open(rate, plan.duration, self.slots.len())?,
            None => Pace::closed(plan.duration),
        };
        let started = Instant::now();
        let latencies = self.drive(&pace).await?;
        let seconds = started.elapsed().as_secs_f64();
        let percentile = |q| latencies.value_at_quantile(q) as f64 / 1000.0;
        Ok(Outcome {
            requests: latencies.len(),
            seconds,
            p50_us: percentile(0.5),
            p99_us: percentile(0.99),
            p999_us: percentile(0.999),
        })
    }

    /// Every slot takes requests from `pace` until there are no more.
    async fn drive(&mut self, pace: &Pace) -> anyhow::Result<Histogram<u64>> {
        let latencies: Latencies = Arc::new(Mutex::new(Histogram::new_with_bounds(1, 60_000_000_000, 3)?));
        let mut tasks = tokio::task::JoinSet::new();
        for slot in self.slots.drain(..) {
            tasks.spawn(keep_busy(slot, pace.clone(), Arc::clone(&latencies)));
        }
        while let Some(done) = tasks.join_next().await {
            self.slots.push(done??);
        }
        let histogram = latencies.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(histogram)
    }
}

async fn keep_busy(mut slot: Slot, pace: Pace, latencies: Latencies) -> anyhow::Result<Slot> {
    while let Some(due) = pace.next().await {
        slot.exchange().await?;
        let nanos = u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX);
        latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .saturating_record(nanos);
    }
    Ok(slot)
}

/// Room for one request in flight.
enum Slot {
    Http1(http1::Connection),
    Http2(http2::Connection),
}

impl Slot {
    async fn exchange(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Http1(connection) => connection.exchange().await,
            Self::Http2(connection) => connection.exchange().await,
        }
    }
}

/// The longest response head that is read: more than any proxy adds.
const MAX_HEAD: usize = 16 * 1024;

/// Connects, and tunnels to the destination if the plan says so.
async fn connect(entry: &Entry) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(entry.address)
        .await
        .with_context(|| format!("cannot connect to {}", entry.address))?;
    stream.set_nodelay(true)?;
    if entry.form == Form::Connect {
        let authority = &entry.authority;
        let preamble = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
        stream.write_all(preamble.as_bytes()).await?;
        let mut head = Vec::new();
        // Byte by byte: what follows the head belongs to the tunnel.
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() == MAX_HEAD {
                bail!("the answer to CONNECT {authority} does not end");
            }
            head.push(
                stream
                    .read_u8()
                    .await
                    .with_context(|| format!("no answer to CONNECT {authority}"))?,
            );
        }
        let status = http1::Head::parse(&head)
            .context("the answer to CONNECT is not HTTP/1.1")?
            .status;
        if status != 200 {
            bail!("CONNECT {authority} was answered with {status}");
        }
    }
    Ok(stream)
}

#[cfg(test)]
mod tests;
