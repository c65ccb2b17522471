//! Draining: from the signal to stop until the last connection is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

/// Shared by everything that holds connections. Cheap to clone.
#[derive(Clone)]
pub struct Drain {
    shared: Arc<Shared>,
}

struct Shared {
    draining: watch::Sender<bool>,
    connections: AtomicUsize,
    idle: Notify,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            shared: Arc::new(Shared {
                draining: watch::Sender::new(false),
                connections: AtomicUsize::new(0),
                idle: Notify::new(),
            }),
        }
    }
}

impl Drain {
    /// Asks connections to end after what they are doing. New connections are still accepted.
    pub fn start(&self) {
        self.shared.draining.send_replace(true);
    }

    /// Whether draining has started.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.shared.draining.borrow()
    }

    /// Resolves when draining has started.
    pub async fn started(&self) {
        let mut draining = self.shared.draining.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = draining.wait_for(|draining| *draining).await;
    }

    /// Counts a connection until the guard is dropped.
    #[must_use]
    pub fn connection(&self) -> ConnectionGuard {
        self.shared.connections.fetch_add(1, Ordering::Relaxed);
        ConnectionGuard {
            shared: self.shared.clone(),
        }
    }

    /// Connections that are open now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Waits until no connection is left, at most `limit`. Returns the number that is left.
    pub async fn finished(&self, limit: Duration) -> usize {
        let all_closed = async {
            loop {
                let notified = self.shared.idle.notified();
                if self.connections() == 0 {
                    return;
                }
                notified.await;
            }
        };
        let _ = tokio::time::timeout(limit, all_closed).await;
        self.connections()
    }
}

/// One open connection.
pub struct ConnectionGuard {
    shared: Arc<Shared>,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        if self.shared.connections.fetch_sub(1, Ordering::AcqRel) == 1 {
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
}
