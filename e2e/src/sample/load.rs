//! Steady traffic on connections that stay open, with every failure counted and the first of them told.
//!
//! Each second, and at the end, a line of JSON with the totals. A request that was never written, because the
//! connection had ended before, is sent again on a new one, as any client does; every other one that gets no answer, or
//! one from 500, has failed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use hdrhistogram::Histogram;
use http::{HeaderMap, Method, Uri};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::http::{Answer, Call, Connection};

/// Failures that are told one by one.
const TOLD: usize = 20;
/// Kinds of answers that are counted apart.
const KINDS: usize = 50;
/// Longer ones are counted as this long.
const MAX_MICROS: u64 = 120_000_000;

/// Steady traffic.
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// `http://host:port/path`
    pub url: Uri,
    /// Requests in a second, over all connections.
    #[arg(long, default_value_t = 50.0)]
    pub rate: f64,
    /// Connections, each with one request at a time.
    #[arg(long, default_value_t = 10)]
    pub connections: u32,
    /// Seconds until it ends; without, it ends at SIGTERM.
    #[arg(long = "for")]
    pub duration: Option<f64>,
    /// Seconds that a request may take.
    #[arg(short = 'm', long, default_value_t = 10.0)]
    pub max_time: f64,
    /// HTTP/2 from the first byte.
    #[arg(long)]
    pub http2: bool,
}

/// Makes traffic until its time is over or SIGTERM comes.
///
/// # Errors
/// When signals cannot be had.
pub async fn run(args: LoadArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let totals = Arc::new(Mutex::new(Totals::new()?));
    let call = Arc::new(Call {
        method: Method::GET,
        url: args.url.clone(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        http2: args.http2,
    });
    let interval = Duration::from_secs_f64(f64::from(args.connections) / args.rate);
    let mut workers = tokio::task::JoinSet::new();
    for n in 0..args.connections {
        let worker = Worker {
            call: call.clone(),
            limit: Duration::from_secs_f64(args.max_time),
            interval,
            first: Instant::now() + interval.mul_f64(f64::from(n) / f64::from(args.connections)),
            totals: totals.clone(),
            stop: stop.clone(),
        };
        workers.spawn(worker.run());
    }
    let end = args
        .duration
        .map(|seconds| Instant::now() + Duration::from_secs_f64(seconds));
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            () = until(end) => break,
            _ = tick.tick() => println!("{}", lock(&totals).report(false)),
        }
    }
    stop.cancel();
    while workers.join_next().await.is_some() {}
    println!("{}", lock(&totals).report(true));
    Ok(())
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

struct Worker {
    call: Arc<Call>,
    limit: Duration,
    interval: Duration,
    first: Instant,
    totals: Arc<Mutex<Totals>>,
    stop: CancellationToken,
}

impl Worker {
    async fn run(self) {
        let mut due = self.first;
        let mut connection = None;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep_until(due) => {}
            }
            // After a slow answer the pace goes on from there, without a burst.
            due = (due + self.interval).max(Instant::now());
            let start = Instant::now();
            let outcome = tokio::time::timeout(self.limit, self.request(&mut connection)).await;
            let outcome = outcome.unwrap_or_else(|_| Err(format!("no answer within {} s", self.limit.as_secs_f64())));
            if outcome.is_err() {
                connection = None;
            }
            lock(&self.totals).count(&outcome, start.elapsed());
        }
    }

    async fn request(&self, connection: &mut Option<Connection>) -> Result<Answer, String> {
        loop {
            let kept = match connection.take() {
                Some(mut open) => open.ready().await.then_some(open),
                None => None,
            };
            let mut open = match kept {
                Some(open) => open,
                None => {
                    lock(&self.totals).connections += 1;
                    let mut fresh = self
                        .call
                        .connect(self.limit)
                        .await
                        .map_err(|error| format!("{error:#}"))?;
                    fresh.ready().await;
                    fresh
                }
            };
            match open.send(&self.call).await {
                Ok(answer) => {
                    *connection = Some(open);
                    return Ok(answer);
                }
                Err(error) if error.unsent => lock(&self.totals).unsent += 1,
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

struct Totals {
    started: Instant,
    requests: u64,
    failed: u64,
    connections: u64,
    unsent: u64,
    kinds: BTreeMap<String, u64>,
    told: Vec<Value>,
    times: Histogram<u64>,
}

impl Totals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            started: Instant::now(),
            requests: 0,
            failed: 0,
            connections: 0,
            unsent: 0,
            kinds: BTreeMap::new(),
            told: Vec::new(),
            times: Histogram::new_with_bounds(1, MAX_MICROS, 3)?,
        })
    }

    fn count(&mut self, outcome: &Result<Answer, String>, time: Duration) {
        self.requests += 1;
        let micros = u64::try_from(time.as_micros()).unwrap_or(MAX_MICROS);
        self.times.saturating_record(micros.clamp(1, MAX_MICROS));
        let (kind, detail) = match outcome {
            Ok(answer) => (
                answer.status.as_u16().to_string(),
                answer
                    .status
                    .is_server_error()
                    .then(|| String::from_utf8_lossy(&answer.body).into_owned()),
            ),
            Err(error) => ("error".to_owned(), Some(error.clone())),
        };
        if let Some(detail) = detail {
            self.failed += 1;
            if self.told.len() < TOLD {
                let detail: String = detail.chars().take(200).collect();
                let at = self.started.elapsed().as_secs_f64();
                self.told
                    .push(json!({ "at": at, "seconds": time.as_secs_f64(), "kind": kind, "detail": detail }));
            }
        }
        if self.kinds.len() < KINDS || self.kinds.contains_key(&kind) {
            *self.kinds.entry(kind).or_default() += 1;
        }
    }

    fn report(&self, done: bool) -> Value {
        let milliseconds = |quantile| {
            #[allow(clippy::cast_precision_loss, reason = "microseconds of requests")]
            let micros = self.times.value_at_quantile(quantile) as f64;
            micros / 1000.0
        };
        json!({
            "done": done,
            "seconds": self.started.elapsed().as_secs_f64(),
            "requests": self.requests,
            "failed": self.failed,
            "connections": self.connections,
            "unsent": self.unsent,
            "answers": self.kinds,
            "p50_ms": milliseconds(0.5),
            "p99_ms": milliseconds(0.99),
            "failures": self.told,
        })
    }
}

fn lock(totals: &Mutex<Totals>) -> std::sync::MutexGuard<'_, Totals> {
    totals.lock().unwrap_or_else(PoisonError::into_inner)
}
