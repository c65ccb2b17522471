//! The process's own metrics, in Prometheus' text format.

use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Between foldings of histogram samples, which would otherwise pile up between scrapes.
const UPKEEP: Duration = Duration::from_secs(5);
/// From a change of policy to the acknowledgement of a proxy, in seconds.
const CONVERGENCE_BUCKETS: [f64; 10] = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 5.0, 10.0];

/// Takes in the `metrics` macros of the process, from the first call on.
///
/// # Errors
/// When the recorder cannot be made.
pub fn recorder() -> anyhow::Result<PrometheusHandle> {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    if let Some(handle) = HANDLE.get() {
        return Ok(handle.clone());
    }
    let matcher = Matcher::Full("pilot_proxy_convergence_time".to_owned());
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(matcher, &CONVERGENCE_BUCKETS)?
        .build_recorder();
    let handle = HANDLE.get_or_init(|| recorder.handle());
    // Where a test has set another recorder already, the page stays empty.
    let _ = metrics::set_global_recorder(recorder);
    Ok(handle.clone())
}

/// Keeps the memory of histograms bounded. Runs for ever.
pub async fn upkeep(handle: PrometheusHandle) {
    let mut interval = tokio::time::interval(UPKEEP);
    loop {
        interval.tick().await;
        handle.run_upkeep();
    }
}
