//! Passive health checks: an endpoint that fails in a row is left alone for a while.
//!
//! What callers report comes in; whether an endpoint may be chosen goes out. Counters belong to the endpoint and are
//! shared by all workers and by successive configurations. Nothing runs in the background: an ejection carries its end,
//! and the number of earlier ejections fades when it is next asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use mesh_api::model::OutlierDetection;

use super::clock::{Clock, nanoseconds};
use super::endpoint::Endpoint;

/// How one try ended, as outlier detection sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response with this status; of gRPC the status that its code maps to.
    Status(u16),
    /// No connection.
    ConnectFailure,
    /// No response in time.
    Timeout,
    /// The connection or stream ended before the response.
    Reset,
}

/// Envoy's longest ejection (`max_ejection_time`).
const LONGEST_EJECTION: Duration = Duration::from_secs(300);

/// An endpoint's record.
#[derive(Debug, Default)]
pub(super) struct Health {
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    /// The clock's time when the endpoint may be chosen again; zero was never ejected.
    ejected_until: AtomicU64,
    times_ejected: AtomicU32,
    ejections: AtomicU64,
}

impl Health {
    pub(super) fn is_ejected(&self, clock: &Clock) -> bool {
        let until = self.ejected_until.load(Ordering::Relaxed);
        until != 0 && clock.now() < until
    }

    /// Ejections so far.
    pub(super) fn ejections(&self) -> u64 {
        self.ejections.load(Ordering::Relaxed)
    }

    /// Counts an outcome; true when a threshold was reached just now.
    pub(super) fn record(&self, outcome: Outcome, rules: &OutlierDetection) -> bool {
        let local = !matches!(outcome, Outcome::Status(_));
        if let Some(threshold) = rules.consecutive_local_origin_failures {
            if local {
                return reached(&self.consecutive_local, Some(threshold));
            }
            clear(&self.consecutive_local);
        }
        let status = match outcome {
            Outcome::Status(status) => status,
            Outcome::Timeout => 504,
            Outcome::ConnectFailure | Outcome::Reset => 503,
        };
        if !(500..600).contains(&status) {
            clear(&self.consecutive_5xx);
            clear(&self.consecutive_gateway);
            return false;
        }
        let gateway = if matches!(status, 502..=504) {
            reached(&self.consecutive_gateway, rules.consecutive_gateway_errors)
        } else {
            clear(&self.consecutive_gateway);
            false
        };
        reached(&self.consecutive_5xx, rules.consecutive_5xx) || gateway
    }

    /// Ejects for the base time, times the number of ejections that have not faded yet.
    fn eject(&self, clock: &Clock, rules: &OutlierDetection) {
        let now = clock.now();
        let until = self.ejected_until.load(Ordering::Relaxed);
        let interval = nanoseconds(rules.interval).max(1);
        let good_intervals = now.saturating_sub(until) / interval;
        let earlier = self.times_ejected.load(Ordering::Relaxed);
        let times = earlier.saturating_sub(u32::try_from(good_intervals).unwrap_or(u32::MAX)) + 1;
        let base = nanoseconds(rules.base_ejection_time);
        let length = base
            .saturating_mul(u64::from(times))
            .min(base.max(nanoseconds(LONGEST_EJECTION)));
        self.times_ejected.store(times, Ordering::Relaxed);
        self.ejections.fetch_add(1, Ordering::Relaxed);
        self.ejected_until.store(now.saturating_add(length), Ordering::Relaxed);
    }
}

/// Ejects an endpoint unless too many of its cluster's are already. At least one may always be.
pub(super) fn eject(endpoint: &Endpoint, all: &[Arc<Endpoint>], rules: &OutlierDetection, clock: &Clock) -> bool {
    if endpoint.state.health.is_ejected(clock) {
        return false;
    }
    let ejected = all.iter().filter(|other| other.state.health.is_ejected(clock)).count();
    let allowed = ejected == 0 || (ejected + 1) * 100 <= usize::from(rules.max_ejection_percent) * all.len();
    if allowed {
        endpoint.state.health.eject(clock, rules);
    }
    allowed
}

/// Counts one more; at the threshold it starts again from zero.
fn reached(counter: &AtomicU32, threshold: Option<u32>) -> bool {
    let Some(threshold) = threshold else { return false };
    let reached = counter.fetch_add(1, Ordering::Relaxed) + 1 >= threshold;
    if reached {
        counter.store(0, Ordering::Relaxed);
    }
    reached
}

/// Writes only when there is something to clear, so that good responses share the cache line.
fn clear(counter: &AtomicU32) {
    if counter.load(Ordering::Relaxed) != 0 {
        counter.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
