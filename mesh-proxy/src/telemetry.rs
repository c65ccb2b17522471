//! What the proxy says about the traffic that it carries: Istio's metrics, the access log, and spans.
//!
//! In come the facts of finished requests and connections; out go a Prometheus page, lines and spans. Handles and formats
//! are prepared when configuration or a connection arrives, so that a request costs a few additions, and a line or a span only
//! where they are asked for. Nothing here ever makes a worker wait, and whatever grows with traffic has a bound that shows
//! as a metric.
//!
//! | part | in | out |
//! |---|---|---|
//! | [`Edge`] | requests and connections between two workloads | `istio_*` |
//! | [`ProcessMetrics`] | the `metrics` macros, anywhere in the process | `mesh_*`, `process_*` |
//! | [`AccessLog`] | [`LogRecord`] | lines |
//! | [`Tracer`] | headers, [`SpanFacts`] | headers, spans over OTLP |

mod access_log;
mod edge;
mod format;
mod labels;
mod process;
mod prometheus;
mod propagation;
mod record;
mod recorder;
mod recording;
mod series;
mod span;
mod trace;

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use http::HeaderMap;
use mesh_api::model::{self, AccessLogFormat, MeshSettings, Workload};

pub use access_log::AccessLog;
pub use edge::{Edge, RequestProtocol};
pub use format::{FormatError, ISTIO_TEXT, LogFormat};
pub use labels::{EdgeKey, EdgeService, Reporter, Security};
pub use record::{CapturedHeaders, Headers, LogRecord};
pub use recorder::ProcessMetrics;
pub use recording::Recording;
pub use trace::{SpanFacts, SpanKind, TraceContext, TraceId, Tracer};

use access_log::{ActiveLog, LogWriter};
use edge::{Overflow, Shared};
use series::Place;
use span::{SpanOrigin, SpanSink};
use trace::Active;

/// How often series are looked at for eviction, at most.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// What telemetry is told at start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Node id, `sidecar~127.0.3.4~reviews-v1.default~default.svc.cluster.local` in Istio's form.
    pub node: Arc<str>,
    /// Mesh id, `cluster.local` by default in Istio.
    pub mesh: Arc<str>,
    /// This workload, as far as it is known at start; see [`Telemetry::set_workload`].
    pub workload: Arc<Workload>,
    /// Where connections to the collector live. Without one there are no spans.
    pub runtime: Option<tokio::runtime::Handle>,
    /// Bounds of Istio's metrics.
    pub limits: Limits,
}

/// Bounds of Istio's metrics.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most label sets that exist at once; what exceeds them is counted with labels `_other`.
    pub label_sets: usize,
    /// A series that was not used for so long disappears.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            label_sets: 10_000,
            idle: Duration::from_secs(3_600),
        }
    }
}

/// Why settings cannot be applied; what was in force stays.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    /// The format of the access log.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The file of the access log.
    #[error("access log `{path}` cannot be opened for appending")]
    Log {
        /// The path.
        path: Arc<str>,
        /// What the system said.
        source: std::io::Error,
    },
    /// The collector.
    #[error("tracing endpoint `{endpoint}`: {reason}; expected `http://host:port`, where OTLP over gRPC is spoken")]
    Tracing {
        /// The endpoint.
        endpoint: Arc<str>,
        /// What is wrong.
        reason: String,
    },
}

/// The proxy's telemetry. One for the process, shared by all threads.
pub struct Telemetry {
    options: Options,
    started: Instant,
    process: ProcessMetrics,
    shared: Arc<Shared>,
    edges: Mutex<HashMap<Box<str>, Arc<Edge>, foldhash::fast::RandomState>>,
    beyond_bound: [Arc<Edge>; 2],
    /// Seconds since the start.
    swept: AtomicU64,
    access_log: AccessLog,
    tracer: Tracer,
    events: Arc<recording::Events>,
    configured: Mutex<Configured>,
}

/// What is in force, to tell what a change concerns.
#[derive(Default)]
struct Configured {
    access_log: Option<model::AccessLog>,
    tracing: Option<model::Tracing>,
    origin: Option<SpanOrigin>,
    workload: Option<Arc<Workload>>,
}

impl Telemetry {
    /// Telemetry with metrics only, until it is configured.
    #[must_use]
    pub fn new(options: Options) -> Arc<Self> {
        let process = ProcessMetrics::new();
        let copies = series::copies();
        let shared = Arc::new(Shared {
            taken: Arc::new(AtomicUsize::new(0)),
            max: options.limits.label_sets,
            copies,
            dropped: process.counter(
                "mesh_telemetry_series_dropped_total",
                "Samples counted with labels `_other` because the bound of label sets was reached.",
            ),
            overflow: [Reporter::Source, Reporter::Destination].map(|reporter| Overflow::new(reporter, copies)),
        });
        let beyond_bound = [Reporter::Source, Reporter::Destination]
            .map(|reporter| Arc::new(Edge::beyond_bound(Arc::clone(&shared), reporter)));
        Arc::new(Self {
            options,
            started: Instant::now(),
            process,
            shared,
            edges: Mutex::default(),
            beyond_bound,
            swept: AtomicU64::new(0),
            access_log: AccessLog::off(),
            tracer: Tracer::off(),
            events: Arc::default(),
            configured: Mutex::default(),
        })
    }

    /// Receives the process's `metrics` macros: give it to `metrics::set_global_recorder`.
    #[must_use]
    pub fn recorder(&self) -> ProcessMetrics {
        self.process.clone()
    }

    /// The handle to count on. Keep it: finding it costs about a microsecond.
    #[must_use]
    pub fn edge(&self, key: EdgeKey<'_>) -> Arc<Edge> {
        let mut labels = String::with_capacity(1024);
        key.write_labels(&mut labels);
        let end = labels.len();
        labels.push_str(key.security_text());
        let mut edges = lock(&self.edges);
        if let Some(edge) = edges.get(labels.as_str()) {
            return Arc::clone(edge);
        }
        let mut place = Place::take(&self.shared.taken, self.shared.max);
        if place.is_none() {
            self.sweep_if_due(&mut edges);
            place = Place::take(&self.shared.taken, self.shared.max);
        }
        let Some(place) = place else {
            return Arc::clone(&self.beyond_bound[key.reporter as usize]);
        };
        let edge = Arc::new(Edge::new(Arc::clone(&self.shared), &key, &labels[..end], place));
        edges.insert(labels.into(), Arc::clone(&edge));
        edge
    }

    /// The access log.
    #[must_use]
    pub const fn access_log(&self) -> &AccessLog {
        &self.access_log
    }

    /// The maker of spans.
    #[must_use]
    pub const fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Whether a record of this request will be printed anywhere, so that its facts are worth collecting.
    #[must_use]
    pub fn wants_record(&self, trace: &TraceContext) -> bool {
        self.access_log.is_on() || trace.is_sampled() || self.events.are_wanted()
    }

    /// Keeps the request headers that the log and the span print. To be called after [`TraceContext::inject`].
    #[must_use]
    pub fn capture_request(&self, trace: &TraceContext, headers: &HeaderMap) -> CapturedHeaders {
        let spans = trace.wanted_headers();
        self.access_log
            .with_format(|format| {
                let names = format.request_headers();
                let more = spans.iter().filter(|name| !names.contains(name));
                CapturedHeaders::capture(names.iter().chain(more), headers)
            })
            .unwrap_or_else(|| CapturedHeaders::capture(spans, headers))
    }

    /// Keeps the response headers that the log prints.
    #[must_use]
    pub fn capture_response(&self, headers: &HeaderMap) -> CapturedHeaders {
        let capture = |format: &LogFormat| CapturedHeaders::capture(format.response_headers(), headers);
        self.access_log.with_format(capture).unwrap_or_default()
    }

    /// Keeps the response trailers that the log prints.
    #[must_use]
    pub fn capture_trailers(&self, trailers: &HeaderMap) -> CapturedHeaders {
        let capture = |format: &LogFormat| CapturedHeaders::capture(format.trailers(), trailers);
        self.access_log.with_format(capture).unwrap_or_default()
    }

    /// Begins to record finished requests and connections; `None` while somebody else does.
    #[must_use]
    pub fn record_events(&self) -> Option<Recording> {
        self.events.begin()
    }

    /// Writes the line and the span of a finished request.
    pub fn finish(&self, trace: &TraceContext, operation: &str, record: &LogRecord<'_>) {
        self.access_log.log(record);
        if self.events.are_wanted() {
            self.events.note(trace.kind(), record);
        }
        self.tracer.finish(trace, &SpanFacts { operation, record });
    }

    /// Puts settings in force. What did not change goes on undisturbed.
    ///
    /// # Errors
    /// When a format or an endpoint is wrong or a file cannot be opened; then nothing changes.
    pub fn configure(&self, settings: &MeshSettings) -> Result<(), ConfigureError> {
        let mut configured = lock(&self.configured);
        let log = match &settings.access_log {
            changed if *changed == configured.access_log => None,
            wanted => Some(wanted.as_ref().map(|wanted| self.open_log(wanted)).transpose()?),
        };
        let workload = configured
            .workload
            .clone()
            .unwrap_or_else(|| Arc::clone(&self.options.workload));
        self.configure_tracing(&mut configured, settings.tracing.clone(), &workload)?;
        if let Some(log) = log {
            self.access_log.replace(log);
            configured.access_log.clone_from(&settings.access_log);
        }
        Ok(())
    }

    /// Tells what this workload is, once the control plane said so: spans carry it.
    ///
    /// # Errors
    /// When the exporter cannot be made again; then spans go on with what was known before.
    pub fn set_workload(&self, workload: &Arc<Workload>) -> Result<(), ConfigureError> {
        let mut configured = lock(&self.configured);
        let tracing = configured.tracing.clone();
        self.configure_tracing(&mut configured, tracing, workload)?;
        configured.workload = Some(Arc::clone(workload));
        Ok(())
    }

    /// Appends the metrics page.
    pub fn render_prometheus(&self, out: &mut String) {
        let edges: Vec<_> = {
            let mut edges = lock(&self.edges);
            self.sweep_if_due(&mut edges);
            edges.values().map(Arc::clone).collect()
        };
        prometheus::render_edges(&edges, &self.shared.overflow, out);
        let version = env!("CARGO_PKG_VERSION");
        let _ = writeln!(
            out,
            "# TYPE istio_build gauge\nistio_build{{component=\"proxy\",tag=\"{version}\"}} 1\n\
             # HELP mesh_telemetry_label_sets Label sets of Istio's metrics that exist, at most {}.\n\
             # TYPE mesh_telemetry_label_sets gauge\nmesh_telemetry_label_sets {}",
            self.shared.max,
            self.shared.taken.load(Relaxed)
        );
        process::render(out);
        self.process.render(out);
    }

    /// Writes out queued lines and spans, each at most for `deadline`, at the end of the process: later spans are lost.
    /// Blocks, while the runtime of [`Options::runtime`] has to go on: call it from a thread of its own.
    pub fn shutdown(&self, deadline: Duration) {
        self.access_log.flush(deadline);
        self.tracer.shutdown(deadline);
    }

    fn open_log(&self, wanted: &model::AccessLog) -> Result<Arc<ActiveLog>, ConfigureError> {
        let format = match &wanted.format {
            AccessLogFormat::Text(format) => LogFormat::text(format.as_deref().unwrap_or(format::ISTIO_TEXT))?,
            AccessLogFormat::Json => LogFormat::json()?,
        };
        let writer = match self.access_log.active() {
            Some(active) if active.writer.path() == &*wanted.path => Arc::clone(&active.writer),
            _ => Arc::new(
                LogWriter::open(&wanted.path, &self.process).map_err(|source| ConfigureError::Log {
                    path: Arc::clone(&wanted.path),
                    source,
                })?,
            ),
        };
        Ok(Arc::new(ActiveLog { format, writer }))
    }

    fn configure_tracing(
        &self,
        configured: &mut Configured,
        tracing: Option<model::Tracing>,
        workload: &Workload,
    ) -> Result<(), ConfigureError> {
        let origin = SpanOrigin {
            node: Arc::clone(&self.options.node),
            mesh: Arc::clone(&self.options.mesh),
            cluster: Arc::clone(&workload.cluster),
            namespace: Arc::clone(&workload.namespace),
            canonical_service: workload.canonical_service().into(),
            canonical_revision: workload.canonical_revision().into(),
        };
        if configured.tracing == tracing && configured.origin.as_ref() == Some(&origin) {
            return Ok(());
        }
        let active = tracing
            .as_ref()
            .map(|tracing| self.open_tracing(tracing, &origin))
            .transpose()?;
        self.tracer.replace(active.map(Arc::new));
        configured.tracing = tracing;
        configured.origin = Some(origin);
        Ok(())
    }

    fn open_tracing(&self, tracing: &model::Tracing, origin: &SpanOrigin) -> Result<Active, ConfigureError> {
        let wrong = |reason: String| ConfigureError::Tracing {
            endpoint: Arc::clone(&tracing.endpoint),
            reason,
        };
        let runtime = self.options.runtime.as_ref();
        let _entered = runtime
            .ok_or_else(|| wrong("this process exports no spans".to_owned()))?
            .enter();
        let plain = tracing.endpoint.strip_prefix("http://");
        let address = plain.ok_or_else(|| wrong("only plaintext is supported".to_owned()))?;
        if address.parse::<http::uri::Authority>().is_err() {
            return Err(wrong("not an address".to_owned()));
        }
        let sink =
            SpanSink::otlp(&tracing.endpoint, origin, &self.process).map_err(|error| wrong(error.to_string()))?;
        Ok(Active {
            sampling: tracing.sampling,
            sink,
        })
    }

    fn sweep_if_due(&self, edges: &mut HashMap<Box<str>, Arc<Edge>, foldhash::fast::RandomState>) {
        let now = self.started.elapsed().as_secs();
        let interval = SWEEP_INTERVAL.min(self.options.limits.idle).as_secs();
        if now.saturating_sub(self.swept.load(Relaxed)) >= interval {
            self.swept.store(now, Relaxed);
            sweep(edges, now, self.options.limits.idle.as_secs());
        }
    }
}

/// Hides idle series, and removes edges that nobody holds and that are idle altogether.
fn sweep(edges: &mut HashMap<Box<str>, Arc<Edge>, foldhash::fast::RandomState>, now: u64, limit: u64) {
    edges.retain(|_, edge| !edge.sweep(now, limit) || Arc::strong_count(edge) > 1);
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
