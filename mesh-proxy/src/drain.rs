//! Draining: from the news that this workload goes until its last connection is done.
//!
//! First inbound connections end after what they are doing, while new ones are still accepted, since not everybody knows
//! yet that this workload goes; a pod's native sidecar is told so when the pod's termination starts. The application's own
//! connections are left alone until the proxy itself is to end, which there is after the application. Then, when no
//! connection is left, or half of the time is over, inbound listeners take in who already knocked, and close; who comes
//! later is refused at once and can go elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

/// Shared by everything that holds connections. Cheap to clone.
#[derive(Clone)]
pub struct Drain {
    shared: Arc<Shared>,
    /// From which stage on the connections of this handle's side are to end.
    from: Stage,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// No drain.
    Serving,
    /// Inbound connections end after what they are doing.
    Draining,
    /// The process is about to end: outbound connections too.
    Ending,
    /// Inbound listeners close.
    Closing,
}

struct Shared {
    stage: watch::Sender<Stage>,
    connections: AtomicUsize,
    /// Inbound connections that were ever accepted.
    arrivals: AtomicU64,
    listeners: AtomicUsize,
    /// One of the counts has become zero.
    idle: Notify,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            shared: Arc::new(Shared {
                stage: watch::Sender::new(Stage::Serving),
                connections: AtomicUsize::new(0),
                arrivals: AtomicU64::new(0),
                listeners: AtomicUsize::new(0),
                idle: Notify::new(),
            }),
            from: Stage::Draining,
        }
    }
}

impl Drain {
    /// The same drain as the application's own connections see it: they end when the process does.
    #[must_use]
    pub fn outbound(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            from: Stage::Ending,
        }
    }

    /// Asks inbound connections to end after what they are doing. New connections are still accepted.
    pub fn start(&self) {
        self.advance(Stage::Draining);
    }

    /// Asks all connections to end after what they are doing. New connections are still accepted.
    pub fn end(&self) {
        self.advance(Stage::Ending);
    }

    /// Asks inbound listeners to close.
    pub fn close(&self) {
        self.advance(Stage::Closing);
    }

    fn advance(&self, to: Stage) {
        self.shared.stage.send_if_modified(|stage| {
            let later = *stage < to;
            *stage = to.max(*stage);
            later
        });
    }

    /// How far it is.
    #[must_use]
    pub fn stage(&self) -> Stage {
        *self.shared.stage.borrow()
    }

    /// Resolves when connections of this side are to end after what they are doing.
    pub async fn started(&self) {
        self.reached(self.from).await;
    }

    /// Resolves when the process is about to end.
    pub async fn ending(&self) {
        self.reached(Stage::Ending).await;
    }

    /// Resolves when inbound listeners have to close.
    pub async fn closing(&self) {
        self.reached(Stage::Closing).await;
    }

    async fn reached(&self, wanted: Stage) {
        let mut stage = self.shared.stage.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = stage.wait_for(|stage| *stage >= wanted).await;
    }

    /// Counts a connection until the guard is dropped.
    #[must_use]
    pub fn connection(&self) -> Guard {
        self.count(|shared| &shared.connections)
    }

    /// Counts an inbound connection until the guard is dropped.
    #[must_use]
    pub fn arrival(&self) -> Guard {
        self.shared.arrivals.fetch_add(1, Ordering::Relaxed);
        self.connection()
    }

    /// Inbound connections that were ever accepted.
    #[must_use]
    pub fn arrivals(&self) -> u64 {
        self.shared.arrivals.load(Ordering::Relaxed)
    }

    /// Counts an inbound listener until the guard is dropped.
    #[must_use]
    pub fn listener(&self) -> Guard {
        self.count(|shared| &shared.listeners)
    }

    fn count(&self, counter: fn(&Shared) -> &AtomicUsize) -> Guard {
        counter(&self.shared).fetch_add(1, Ordering::Relaxed);
        Guard {
            shared: self.shared.clone(),
            counter,
        }
    }

    /// Connections that are open now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Waits until no connection is left, at most `limit`. Returns the number that is left.
    pub async fn finished(&self, limit: Duration) -> usize {
        self.wait(limit, || self.connections() == 0).await
    }

    /// Waits until no inbound listener and no connection is left, at most `limit`. Returns the number of connections that
    /// are left.
    pub async fn closed(&self, limit: Duration) -> usize {
        // In this order: a listener counts a connection before it goes.
        self.wait(limit, || {
            self.shared.listeners.load(Ordering::Acquire) == 0 && self.connections() == 0
        })
        .await
    }

    /// Ends everything within `limit`: new inbound connections are taken until none is left or half of the time is over. It
    /// takes `hold` at least, as far as `limit` allows. Returns the number of connections that are left.
    pub async fn finish(&self, limit: Duration, hold: Duration) -> usize {
        let begun = tokio::time::Instant::now();
        self.end();
        tokio::join!(self.finished(limit / 2), tokio::time::sleep(hold.min(limit / 2)));
        self.close();
        let left = (begun + limit).saturating_duration_since(tokio::time::Instant::now());
        let (open, ()) = tokio::join!(self.closed(left), tokio::time::sleep_until(begun + hold.min(limit)));
        open
    }

    async fn wait(&self, limit: Duration, done: impl Fn() -> bool) -> usize {
        let all_done = async {
            loop {
                let notified = self.shared.idle.notified();
                if done() {
                    return;
                }
                notified.await;
            }
        };
        let _ = tokio::time::timeout(limit, all_done).await;
        self.connections()
    }
}

/// One open connection or listener.
pub struct Guard {
    shared: Arc<Shared>,
    counter: fn(&Shared) -> &AtomicUsize,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if (self.counter)(&self.shared).fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ends_with_the_last_connection() {
        let drain = Drain::default();
        let guard = drain.connection();
        drain.start();
        drain.started().await;
        assert_eq!(drain.finished(Duration::from_secs(1)).await, 1);
        drop(guard);
        assert_eq!(drain.finished(Duration::from_secs(1)).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_applications_connections_outlive_the_inbound_drain() {
        let drain = Drain::default();
        let outbound = drain.outbound();
        drain.start();
        drain.started().await;
        let soon = Duration::from_secs(1);
        assert!(tokio::time::timeout(soon, outbound.started()).await.is_err());
        drain.end();
        outbound.started().await;
        // No way back.
        drain.start();
        assert_eq!(drain.stage(), Stage::Ending);
    }

    #[test]
    fn arrivals_are_counted_for_good() {
        let drain = Drain::default();
        drop(drain.connection());
        assert_eq!(drain.arrivals(), 0);
        drop(drain.arrival());
        assert_eq!((drain.arrivals(), drain.connections()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn is_closed_when_listeners_and_what_they_took_in_are_done() {
        let drain = Drain::default();
        let listener = drain.listener();
        drain.close();
        assert_eq!(drain.stage(), Stage::Closing);
        drain.closing().await;
        let second = Duration::from_secs(1);
        assert_eq!(drain.finished(second).await, 0);
        let waiting = drain.clone();
        let mut closed = std::pin::pin!(waiting.closed(second));
        assert!(tokio::time::timeout(second / 2, closed.as_mut()).await.is_err());
        let connection = drain.connection();
        drop(listener);
        assert!(tokio::time::timeout(second / 4, closed.as_mut()).await.is_err());
        drop(connection);
        assert_eq!(closed.await, 0);
    }
}
