//! The process's own metrics: what the rest of the proxy counts with the `metrics` macros.
//!
//! Counters, gauges and histograms of the facade live in a registry beside Istio's series and are printed with them.
//! Their names and labels come from this code base, never from traffic; a bound keeps a mistake from growing without end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use metrics::{Counter, Gauge, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::LabelSet;
use metrics_exporter_prometheus::formatting::{
    sanitize_metric_name, write_help_line, write_metric_line, write_type_line,
};
use metrics_util::registry::{Registry, Storage};

/// Most series of the facade.
const MAX_SERIES: usize = 4_096;

/// Bounds of histograms whose name ends in `_seconds`; others have [`super::series::BOUNDS`].
const SECONDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Receives what the facade's macros count. Cheap to clone; all clones write to one registry.
#[derive(Clone)]
pub struct ProcessMetrics(Arc<Inner>);

struct Inner {
    registry: Registry<Key, FixedBuckets>,
    descriptions: Mutex<BTreeMap<String, String>>,
    series: AtomicUsize,
}

impl ProcessMetrics {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner {
            registry: Registry::new(FixedBuckets),
            descriptions: Mutex::default(),
            series: AtomicUsize::new(0),
        }))
    }

    /// A counter with its help text, for the modules of telemetry itself.
    pub(super) fn counter(&self, name: &'static str, help: &'static str) -> Counter {
        self.describe(name, help);
        let counter = self
            .0
            .registry
            .get_or_create_counter(&Key::from_static_name(name), Arc::clone);
        Counter::from_arc(counter)
    }

    fn describe(&self, name: &str, help: &str) {
        self.0
            .descriptions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(sanitize_metric_name(name), help.to_owned());
    }

    /// Whether one more series fits; series of the facade are never removed.
    fn fits(&self, exists: bool) -> bool {
        exists || self.0.series.fetch_add(1, Relaxed) < MAX_SERIES
    }

    /// Appends everything in the exposition format, sorted by name and labels.
    pub(super) fn render(&self, out: &mut String) {
        let registry = &self.0.registry;
        let mut families = BTreeMap::<String, Family>::new();
        registry.visit_counters(|key, value| {
            let sample = Sample::Number(value.load(Relaxed).to_string());
            Family::add(&mut families, key, "counter", sample);
        });
        registry.visit_gauges(|key, value| {
            let sample = Sample::Number(f64::from_bits(value.load(Relaxed)).to_string());
            Family::add(&mut families, key, "gauge", sample);
        });
        registry.visit_histograms(|key, value| {
            Family::add(&mut families, key, "histogram", Sample::Histogram(Arc::clone(value)));
        });
        let descriptions = self.0.descriptions.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, mut family) in families {
            if let Some(help) = descriptions.get(&name) {
                write_help_line(out, &name, None, None, help);
            }
            write_type_line(out, &name, None, None, family.kind);
            family.samples.sort_by(|(a, _), (b, _)| a.cmp(b));
            for (_, (labels, sample)) in &family.samples {
                sample.render(out, &name, labels);
            }
        }
    }
}

impl Recorder for ProcessMetrics {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe(key.as_str(), &description);
    }

    fn describe_gauge(&self, key: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe(key.as_str(), &description);
    }

    fn describe_histogram(&self, key: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe(key.as_str(), &description);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        if !self.fits(self.0.registry.get_counter(key).is_some()) {
            return Counter::noop();
        }
        Counter::from_arc(self.0.registry.get_or_create_counter(key, Arc::clone))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        if !self.fits(self.0.registry.get_gauge(key).is_some()) {
            return Gauge::noop();
        }
        Gauge::from_arc(self.0.registry.get_or_create_gauge(key, Arc::clone))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> metrics::Histogram {
        if !self.fits(self.0.registry.get_histogram(key).is_some()) {
            return metrics::Histogram::noop();
        }
        metrics::Histogram::from_arc(self.0.registry.get_or_create_histogram(key, Arc::clone))
    }
}

/// One metric name with its samples, by their labels.
struct Family {
    kind: &'static str,
    samples: Vec<(Vec<String>, (LabelSet, Sample))>,
}

impl Family {
    fn add(families: &mut BTreeMap<String, Self>, key: &Key, kind: &'static str, sample: Sample) {
        let labels = LabelSet::from_key_and_global(key, &Default::default());
        let family = families
            .entry(sanitize_metric_name(key.name()))
            .or_insert_with(|| Self {
                kind,
                samples: Vec::new(),
            });
        // A name that is used for two kinds would make the page unreadable: the first kind stands.
        if family.kind == kind {
            family.samples.push((labels.to_strings().collect(), (labels, sample)));
        }
    }
}

enum Sample {
    Number(String),
    Histogram(Arc<BucketCounts>),
}

impl Sample {
    fn render(&self, out: &mut String, name: &str, labels: &LabelSet) {
        match self {
            Self::Number(value) => write_metric_line::<&str, _>(out, name, None, labels, None, value, None),
            Self::Histogram(histogram) => {
                let mut count = 0;
                let bounds = histogram.bounds.iter().map(ToString::to_string);
                for (bucket, bound) in histogram.buckets.iter().zip(bounds.chain(["+Inf".to_owned()])) {
                    count += bucket.load(Relaxed);
                    write_metric_line(out, name, Some("bucket"), labels, Some(("le", bound)), count, None);
                }
                let sum = f64::from_bits(histogram.sum.load(Relaxed));
                write_metric_line::<&str, _>(out, name, Some("sum"), labels, None, sum, None);
                write_metric_line::<&str, _>(out, name, Some("count"), labels, None, count, None);
            }
        }
    }
}

/// Storage with buckets that are fixed when a histogram is made: nothing piles up between scrapes.
struct FixedBuckets;

impl Storage<Key> for FixedBuckets {
    type Counter = Arc<AtomicU64>;
    type Gauge = Arc<AtomicU64>;
    type Histogram = Arc<BucketCounts>;

    fn counter(&self, _: &Key) -> Self::Counter {
        Arc::default()
    }

    fn gauge(&self, _: &Key) -> Self::Gauge {
        Arc::default()
    }

    fn histogram(&self, key: &Key) -> Self::Histogram {
        let bounds: &[f64] = if key.name().ends_with("_seconds") {
            &SECONDS
        } else {
            &super::series::BOUNDS
        };
        Arc::new(BucketCounts {
            bounds,
            buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        })
    }
}

struct BucketCounts {
    bounds: &'static [f64],
    buckets: Box<[AtomicU64]>,
    /// Bits of an `f64`.
    sum: AtomicU64,
}

impl HistogramFn for BucketCounts {
    fn record(&self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.buckets[bucket].fetch_add(1, Relaxed);
        let add = |bits: u64| Some((f64::from_bits(bits) + value).to_bits());
        let _ = self.sum.fetch_update(Relaxed, Relaxed, add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_facade_is_printed() {
        let metrics = ProcessMetrics::new();
        metrics::with_local_recorder(&metrics, || {
            metrics::describe_counter!("mesh_things_total", "Things.");
            metrics::counter!("mesh_things_total", "kind" => "a\"b").increment(2);
            metrics::counter!("mesh_things_total", "kind" => "a").increment(1);
            metrics::gauge!("mesh_level").set(1.5);
            metrics::histogram!("mesh_wait_seconds").record(0.3);
            metrics::histogram!("mesh_wait_seconds").record(0.7);
        });
        let mut text = String::new();
        metrics.render(&mut text);
        let expected = "# TYPE mesh_level gauge\nmesh_level 1.5\n# HELP mesh_things_total Things.\n\
                        # TYPE mesh_things_total counter\nmesh_things_total{kind=\"a\"} 1\n\
                        mesh_things_total{kind=\"a\\\"b\"} 2\n# TYPE mesh_wait_seconds histogram\n";
        assert!(text.starts_with(expected), "{text}");
        for line in [
            "mesh_wait_seconds_bucket{le=\"0.25\"} 0\n",
            "mesh_wait_seconds_bucket{le=\"0.5\"} 1\n",
            "mesh_wait_seconds_bucket{le=\"+Inf\"} 2\n",
            "mesh_wait_seconds_sum 1\n",
            "mesh_wait_seconds_count 2\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn series_are_bounded() {
        let metrics = ProcessMetrics::new();
        metrics::with_local_recorder(&metrics, || {
            for number in 0..MAX_SERIES + 10 {
                metrics::counter!("mesh_runaway_total", "n" => number.to_string()).increment(1);
            }
        });
        let mut text = String::new();
        metrics.render(&mut text);
        assert_eq!(text.lines().count(), MAX_SERIES + 1);
    }
}
