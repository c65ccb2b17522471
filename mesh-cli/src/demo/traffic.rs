//! Steady traffic from the client through the shop: an open loop, in which slow answers do not slow requests down.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::app::failure_of;
use super::proxied::ViaProxy;

/// A request that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Requests in flight; those beyond count as failed and are not sent.
const MAX_IN_FLIGHT: usize = 4_096;
/// Of an answer; the shop's are a few kilobytes.
const MAX_ANSWER: usize = 4 << 20;

/// Traffic that is on.
pub struct Traffic {
    totals: Arc<Totals>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Counts of all requests so far.
#[derive(Debug, Default)]
pub struct Totals {
    requests: AtomicU64,
    failed: AtomicU64,
    asked_for: AtomicU64,
}

impl Totals {
    /// Requests that have ended.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Those that failed though no policy asked for it.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Those that failed because policy asked for it.
    #[must_use]
    pub fn asked_for(&self) -> u64 {
        self.asked_for.load(Ordering::Relaxed)
    }

    fn count(&self, failure: Option<&str>) {
        match failure {
            None => {}
            Some("policy") => {
                self.asked_for.fetch_add(1, Ordering::Relaxed);
            }
            Some(_) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
    }
}

impl Traffic {
    /// Sends so many requests a second for `url` through `proxy`.
    #[must_use]
    pub fn start(proxy: SocketAddr, url: Uri, rate: f64) -> Self {
        let totals = Arc::new(Totals::default());
        let stop = CancellationToken::new();
        let client = Client::builder(TokioExecutor::new()).build(ViaProxy::new(proxy));
        let task = tokio::spawn(generate(client, url, rate, totals.clone(), stop.clone()));
        Self { totals, stop, task }
    }

    /// Counts, as they go on.
    #[must_use]
    pub fn totals(&self) -> Arc<Totals> {
        self.totals.clone()
    }

    /// Sends no more, and waits for the answers that are due.
    pub async fn finish(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

async fn generate(
    client: Client<ViaProxy, Full<Bytes>>,
    url: Uri,
    rate: f64,
    totals: Arc<Totals>,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
    let start = Instant::now();
    let mut sent = 0_u32;
    loop {
        let due = start + Duration::from_secs_f64(f64::from(sent) / rate);
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep_until(due) => {}
        }
        sent = sent.saturating_add(1);
        let Ok(place) = places.clone().try_acquire_owned() else {
            totals.count(Some("mesh"));
            continue;
        };
        let (client, url, totals) = (client.clone(), url.clone(), totals.clone());
        tokio::spawn(async move {
            let outcome = tokio::time::timeout(TIMEOUT, request(&client, url)).await;
            totals.count(outcome.unwrap_or(Some("mesh")));
            drop(place);
        });
    }
    // All places are free when the last answer has come.
    let all = u32::try_from(MAX_IN_FLIGHT).unwrap_or(u32::MAX);
    let _ = places.acquire_many(all).await;
}

/// Whether a request failed, and who asked for it.
async fn request(client: &Client<ViaProxy, Full<Bytes>>, url: Uri) -> Option<&'static str> {
    let Ok(response) = client.get(url).await else {
        return Some("mesh");
    };
    let (parts, body) = response.into_parts();
    match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(body) => failure_of(parts.status, &parts.headers, &body.to_bytes()),
        Err(_) => Some("mesh"),
    }
}
