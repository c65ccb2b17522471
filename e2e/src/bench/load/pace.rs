//! When the next request is due.
//!
//! Closed loop: at once, until time is up. Open loop: at fixed times, decided in advance, which a slow response does not
//! move. A request that is due while every slot is busy waits, and its latency counts from when it was due, so that a
//! stall is charged to every request that it held up (no coordinated omission).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::Semaphore;

/// A schedule that all slots share.
#[derive(Clone)]
pub(super) enum Pace {
    Closed { end: Instant },
    Open(Arc<Schedule>),
}

/// Evenly spaced requests.
pub(super) struct Schedule {
    start: Instant,
    interval: Duration,
    total: u64,
    /// The requests that are due and that no slot has taken, and the slots that wait, first come first served.
    due: Semaphore,
    taken: AtomicU64,
}

impl Pace {
    /// As fast as responses come back, for `duration` from now.
    pub(super) fn closed(duration: Duration) -> Self {
        Self::Closed {
            end: Instant::now() + duration,
        }
    }

    /// `rate` requests per second for `duration` from now, taken by `slots` waiters.
    pub(super) fn open(rate: f64, duration: Duration, slots: usize) -> anyhow::Result<Self> {
        ensure!(
            rate > 0.0 && rate <= 1e6,
            "a rate is between 0 and 1000000 requests per second, not {rate}"
        );
        let interval = Duration::from_nanos((1e9 / rate) as u64);
        let total = (duration.as_secs_f64() * rate) as u64;
        ensure!(total > 0, "{rate} requests per second make none in {duration:?}");
        let timer = Timer::every(interval).context("cannot create a timer")?;
        let schedule = Arc::new(Schedule {
            start: Instant::now(),
            interval,
            total,
            due: Semaphore::new(0),
            taken: AtomicU64::new(0),
        });
        tokio::spawn(release(Arc::clone(&schedule), timer, slots));
        Ok(Self::Open(schedule))
    }

    /// Waits until a request is due and returns that moment; `None` when there are no more.
    pub(super) async fn next(&self) -> Option<Instant> {
        match self {
            Self::Closed { end } => Some(Instant::now()).filter(|now| now < end),
            Self::Open(schedule) => {
                schedule.due.acquire().await.ok()?.forget();
                let index = schedule.taken.fetch_add(1, Ordering::Relaxed);
                let nth = u32::try_from(index + 1).ok()?;
                (index < schedule.total).then(|| schedule.start + schedule.interval * nth)
            }
        }
    }
}

async fn release(schedule: Arc<Schedule>, mut timer: Timer, slots: usize) {
    let mut released = 0;
    while released < schedule.total {
        let Ok(ticks) = timer.wait().await else { break };
        let ticks = ticks.min(schedule.total - released);
        released += ticks;
        schedule.due.add_permits(usize::try_from(ticks).unwrap_or(0));
    }
    // One each, to learn that there are no more.
    schedule.due.add_permits(slots);
}

/// A kernel timer: the runtime's own are a millisecond coarse. Read as a pipe of counts, which is what it looks like.
struct Timer(pipe::Receiver);

impl Timer {
    fn every(interval: Duration) -> std::io::Result<Self> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        let spec = Timespec {
            tv_sec: interval.as_secs() as i64,
            tv_nsec: i64::from(interval.subsec_nanos()),
        };
        timerfd_settime(
            &timer,
            TimerfdTimerFlags::empty(),
            &Itimerspec {
                it_interval: spec,
                it_value: spec,
            },
        )?;
        Ok(Self(pipe::Receiver::from_owned_fd_unchecked(timer)?))
    }

    /// How many intervals have ended since the last call, at least one.
    async fn wait(&mut self) -> std::io::Result<u64> {
        let mut count = [0; 8];
        self.0.read_exact(&mut count).await?;
        Ok(u64::from_ne_bytes(count))
    }
}
