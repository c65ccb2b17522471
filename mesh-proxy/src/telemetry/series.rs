//! Storage of Istio's metrics: fixed buckets of relaxed atomics, one copy for each worker thread.
//!
//! A label set's values live in a [`Node`] of a chain that only grows, so that a worker finds them without a lock and
//! without allocation. Workers write to their own copy (no cache line travels between cores); a scrape adds the
//! copies up. What a series has counted is never lost while its node lives, except by [`Counts::reset`], the eviction of
//! idle series.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Istio's and Envoy's default bounds, of milliseconds and of bytes.
pub const BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// [`BOUNDS`] as Prometheus clients print them.
pub const BOUND_TEXTS: [&str; 19] = [
    "0.5", "1", "5", "10", "25", "50", "100", "250", "500", "1000", "2500", "5000", "10000", "30000", "60000",
    "300000", "600000", "1800000", "3600000",
];

/// Most copies of a series, whatever the number of workers: their memory is worth less contention only up to a point.
const MAX_COPIES: usize = 8;

thread_local! {
    static THREAD: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Which copy this thread writes to, before the number of copies is taken into account.
pub fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    THREAD.with(|number| {
        if number.get() == usize::MAX {
            number.set(NEXT.fetch_add(1, Relaxed));
        }
        number.get()
    })
}

/// How many copies a series has at most on this machine.
pub fn copies() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_COPIES))
}

/// Values that are added up over workers when they are read.
pub trait Counts: Default + Send + Sync {
    /// What a reader adds copies up in.
    type Total: Default;

    /// Adds what was counted here to `total`.
    fn add_to(&self, total: &mut Self::Total);

    /// Takes what was counted off again, keeping what is counted meanwhile.
    fn reset(&self);

    /// A number that grows with every use.
    fn uses(total: &Self::Total) -> u64;
}

/// A histogram over [`BOUNDS`]. The sum is kept in whole units of the caller's choice.
#[derive(Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
}

/// A histogram read out, or several added up.
#[derive(Clone, Copy, Default)]
pub struct HistogramTotal {
    /// Not cumulative; the last one has no bound.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// Sum of the observations.
    pub sum: u64,
}

impl HistogramTotal {
    /// Number of observations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl Histogram {
    fn record(&self, value: f64, sum: u64) {
        let bucket = BOUNDS.partition_point(|bound| *bound < value);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(sum, Relaxed);
    }

    /// Observes a duration; buckets are of milliseconds, the sum is of microseconds.
    pub fn record_duration(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.record(duration.as_secs_f64() * 1_000.0, micros);
    }

    /// Observes a number of bytes.
    #[allow(clippy::cast_precision_loss, reason = "bounds are far below 2^52")]
    pub fn record_bytes(&self, bytes: u64) {
        self.record(bytes as f64, bytes);
    }

    fn add_to(&self, total: &mut HistogramTotal) {
        for (bucket, sum) in self.buckets.iter().zip(&mut total.buckets) {
            *sum += bucket.load(Relaxed);
        }
        total.sum = total.sum.wrapping_add(self.sum.load(Relaxed));
    }

    fn reset(&self) {
        self.buckets.iter().for_each(take);
        take(&self.sum);
    }
}

/// Sets a counter back without losing what is added at the same time.
fn take(counter: &AtomicU64) {
    counter.fetch_sub(counter.load(Relaxed), Relaxed);
}

/// Counters of HTTP and gRPC requests with one label set. The number of requests is the duration histogram's.
#[derive(Default)]
pub struct HttpCounts {
    pub duration: Histogram,
    pub request_bytes: Histogram,
    pub response_bytes: Histogram,
}

/// [`HttpCounts`] of all workers.
#[derive(Clone, Copy, Default)]
pub struct HttpTotal {
    pub duration: HistogramTotal,
    pub request_bytes: HistogramTotal,
    pub response_bytes: HistogramTotal,
}

impl Counts for HttpCounts {
    type Total = HttpTotal;

    fn add_to(&self, total: &mut HttpTotal) {
        self.duration.add_to(&mut total.duration);
        self.request_bytes.add_to(&mut total.request_bytes);
        self.response_bytes.add_to(&mut total.response_bytes);
    }

    fn reset(&self) {
        self.duration.reset();
        self.request_bytes.reset();
        self.response_bytes.reset();
    }

    fn uses(total: &HttpTotal) -> u64 {
        total.duration.count()
    }
}

macro_rules! counters {
    ($(#[$doc:meta])* $counts:ident, $total:ident { $($field:ident),* }) => {
        $(#[$doc])*
        #[derive(Default)]
        pub struct $counts {
            $(pub $field: AtomicU64),*
        }

        #[doc = concat!("[`", stringify!($counts), "`] of all workers.")]
        #[derive(Clone, Copy, Default)]
        pub struct $total {
            $(pub $field: u64),*
        }

        impl Counts for $counts {
            type Total = $total;

            fn add_to(&self, total: &mut $total) {
                $(total.$field = total.$field.wrapping_add(self.$field.load(Relaxed));)*
            }

            fn reset(&self) {
                $(take(&self.$field);)*
            }

            fn uses(total: &$total) -> u64 {
                [$(total.$field),*].into_iter().fold(0, u64::wrapping_add)
            }
        }
    };
}

counters! {
    /// Counters of TCP connections with one label set.
    TcpCounts, TcpTotal { opened, closed, sent, received }
}

counters! {
    /// Counters of gRPC messages.
    MessageCounts, MessageTotal { requests, responses }
}

/// Counts of one label set: a copy for each worker, made on its first use.
pub struct Series<C> {
    copies: Box<[OnceLock<Box<C>>]>,
    /// Uses at the last look of [`Series::idle_for`], and when that number was first seen, in seconds.
    seen: AtomicU64,
    since: AtomicU64,
}

impl<C: Counts> Series<C> {
    pub fn new(copies: usize) -> Self {
        Self {
            copies: (0..copies.max(1)).map(|_| OnceLock::new()).collect(),
            seen: AtomicU64::new(0),
            since: AtomicU64::new(0),
        }
    }

    /// The calling thread's copy.
    pub fn mine(&self) -> &C {
        self.copies[thread_number() % self.copies.len()].get_or_init(Box::default)
    }

    /// All copies added up; `None` when nothing was counted, or nothing since the last reset.
    pub fn total(&self) -> Option<C::Total> {
        let mut total = C::Total::default();
        self.copies
            .iter()
            .filter_map(OnceLock::get)
            .for_each(|copy| copy.add_to(&mut total));
        (C::uses(&total) != 0).then_some(total)
    }

    /// Forgets everything: the series is no longer shown until it is used again.
    pub fn reset(&self) {
        self.copies
            .iter()
            .filter_map(OnceLock::get)
            .for_each(|copy| copy.reset());
        self.seen.store(0, Relaxed);
    }

    /// How long, in seconds, nothing was counted, as far as successive calls can tell. `now` is in seconds of any clock.
    pub fn idle_for(&self, now: u64) -> u64 {
        let uses = self.total().map_or(0, |total| C::uses(&total));
        if self.seen.swap(uses, Relaxed) != uses || self.since.load(Relaxed) == 0 {
            self.since.store(now, Relaxed);
        }
        now.saturating_sub(self.since.load(Relaxed))
    }
}

/// A place among the label sets that may exist at once; given back when it is dropped.
pub struct Place(Arc<AtomicUsize>);

impl Place {
    /// A place, unless `max` are taken.
    pub fn take(taken: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        taken
            .fetch_update(Relaxed, Relaxed, |count| (count < max).then_some(count + 1))
            .ok()
            .map(|_| Self(Arc::clone(taken)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// One label set of an edge.
pub struct Node<C> {
    key: u64,
    /// The labels that the edge does not have, ready for printing.
    pub labels: Box<str>,
    pub series: Series<C>,
    next: OnceLock<Box<Node<C>>>,
    /// `None` for the few that exist in any case.
    _place: Option<Place>,
}

impl<C: Counts> Node<C> {
    pub fn new(key: u64, labels: Box<str>, copies: usize, place: Option<Place>) -> Self {
        Self {
            key,
            labels,
            series: Series::new(copies),
            next: OnceLock::new(),
            _place: place,
        }
    }
}

/// Label sets of one edge, found by a packed key. It only grows; the bound is its user's.
pub struct Chain<C> {
    head: OnceLock<Box<Node<C>>>,
}

impl<C> Default for Chain<C> {
    fn default() -> Self {
        Self { head: OnceLock::new() }
    }
}

impl<C: Counts> Chain<C> {
    /// The node of `key`, made by `make` on first use; `None` when `make` refuses.
    pub fn get_or_make(&self, key: u64, mut make: impl FnMut() -> Option<Node<C>>) -> Option<&Node<C>> {
        let mut made = None;
        let mut link = &self.head;
        loop {
            if link.get().is_none() {
                if made.is_none() {
                    made = Some(Box::new(make()?));
                }
                if let Some(node) = made.take() {
                    // Another worker may have been faster, with this key or another: then look at what it put there.
                    made = link.set(node).err();
                }
            }
            let node = link.get()?;
            if node.key == key {
                return Some(node);
            }
            link = &node.next;
        }
    }

    /// All nodes, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Node<C>> {
        std::iter::successors(self.head.get(), |node| node.next.get()).map(|node| &**node)
    }
}

impl<C> Drop for Chain<C> {
    fn drop(&mut self) {
        // One by one: dropping a long chain through its boxes would recurse.
        let mut next = self.head.take();
        while let Some(mut node) = next {
            next = node.next.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_include_their_bound() {
        let histogram = Histogram::default();
        for (value, bucket) in [(0, 0), (1, 1), (2, 2), (5, 2), (6, 3), (3_600_000, 18), (3_600_001, 19)] {
            let mut before = HistogramTotal::default();
            histogram.add_to(&mut before);
            histogram.record_bytes(value);
            let mut after = HistogramTotal::default();
            histogram.add_to(&mut after);
            assert_eq!(after.buckets[bucket], before.buckets[bucket] + 1, "{value}");
        }
        let mut total = HistogramTotal::default();
        histogram.record_duration(Duration::from_micros(500));
        histogram.add_to(&mut total);
        assert_eq!(total.buckets[0], 2);
        assert_eq!(total.count(), 8);
    }

    #[test]
    fn bounds_print_as_they_are() {
        for (bound, text) in BOUNDS.iter().zip(BOUND_TEXTS) {
            assert_eq!(bound.to_string(), text);
        }
    }

    #[test]
    fn a_chain_keeps_one_node_for_a_key_under_contention() {
        let chain = Chain::<MessageCounts>::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for round in 0..1_000_u64 {
                        let node = chain
                            .get_or_make(round % 10, || Some(Node::new(round % 10, "".into(), 4, None)))
                            .unwrap();
                        node.series.mine().requests.fetch_add(1, Relaxed);
                    }
                });
            }
        });
        assert_eq!(chain.iter().count(), 10);
        for node in chain.iter() {
            assert_eq!(node.series.total().unwrap().requests, 800);
        }
    }

    #[test]
    fn a_reset_series_disappears_until_it_is_used() {
        let series = Series::<MessageCounts>::new(2);
        assert!(series.total().is_none());
        series.mine().responses.fetch_add(3, Relaxed);
        assert_eq!(series.idle_for(100), 0);
        assert_eq!(series.idle_for(160), 60);
        series.mine().responses.fetch_add(1, Relaxed);
        assert_eq!(series.idle_for(170), 0);
        series.reset();
        assert!(series.total().is_none());
        series.mine().responses.fetch_add(1, Relaxed);
        assert_eq!(series.total().unwrap().responses, 1);
    }
}
