//! Settings × rounds × subjects: A, B, C, A, B, C, each with fresh processes.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use super::certificates::Certificates;
use super::load::{Entry, Outcome};
use super::process::{Launcher, Process};
use super::report::{self, Measurement, Row};
use super::setting::Setting;
use super::subject::{Bench, Running, Subject};

/// How much to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only what this matches; see [`selected`].
    pub only: Option<String>,
    /// Rounds per setting.
    pub rounds: usize,
    /// Length of the closed loop in each round.
    pub closed: Duration,
    /// Length of the load at a fixed rate in each round.
    pub open: Duration,
    /// Closed-loop load before the measurement.
    pub warm_up: Duration,
    /// Requests per second of the load at a fixed rate.
    pub rate: f64,
    /// Rewritten after each setting.
    pub json: Option<PathBuf>,
}

/// Whether `only` asks for this: comma-separated parts, each of which `SETTING/SUBJECT` may contain.
#[must_use]
pub fn selected(only: Option<&str>, setting: &str, subject: &str) -> bool {
    let name = format!("{setting}/{subject}");
    only.is_none_or(|only| only.split(',').any(|part| name.contains(part.trim())))
}

/// Measures and prints. A subject that fails is reported and left out; the others go on.
///
/// # Errors
/// When the machine does not let it measure, nothing was selected, or, at the end, when any subject failed.
pub fn run(
    settings: &[Setting],
    subjects: &[Box<dyn Subject>],
    launcher: &Launcher,
    options: &Options,
) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let mut failures = 0;
    for setting in settings {
        let chosen: Vec<&dyn Subject> = subjects
            .iter()
            .map(Box::as_ref)
            .filter(|subject| selected(options.only.as_deref(), setting.name, subject.name()))
            .collect();
        let first = rows.len();
        rows.extend(chosen.iter().map(|subject| Row {
            setting: setting.name.to_owned(),
            subject: subject.name().to_owned(),
            rounds: Vec::new(),
        }));
        for round in 1..=options.rounds {
            for (subject, row) in chosen.iter().zip(&mut rows[first..]) {
                print!("{:<16} {:<8} round {round}", setting.name, subject.name());
                std::io::stdout().flush()?;
                match measure(setting, *subject, launcher, options) {
                    Ok(measurement) => {
                        println!("{}", report::line(&measurement));
                        row.rounds.push(measurement);
                    }
                    Err(error) => {
                        println!("  FAILED: {error:#}");
                        failures += 1;
                    }
                }
            }
        }
        if !chosen.is_empty() {
            println!("\n{}", report::table(&rows[first..]));
        }
        if let Some(path) = &options.json {
            report::write_json(path, &rows)?;
        }
    }
    anyhow::ensure!(
        !rows.is_empty(),
        "nothing is called {:?}",
        options.only.as_deref().unwrap_or_default()
    );
    anyhow::ensure!(failures == 0, "{failures} measurements failed; see above");
    Ok(())
}

fn measure(
    setting: &Setting,
    subject: &dyn Subject,
    launcher: &Launcher,
    options: &Options,
) -> anyhow::Result<Measurement> {
    let dir = tempfile::Builder::new()
        .prefix("bench-")
        .tempdir()
        .context("cannot create a temporary directory")?;
    let certificates = Certificates::create(dir.path())?;
    let bench = Bench {
        launcher,
        certificates: &certificates,
        dir: dir.path(),
    };

    let args = [
        "backend",
        "--protocol",
        setting.protocol.as_str(),
        "--body-bytes",
        &setting.body_bytes.to_string(),
    ];
    let mut backend = launcher.start_own("backend", dir.path(), &args.map(str::to_owned))?;
    let address: SocketAddr = backend.line()?.parse().context("the backend did not say its address")?;

    let mut running = subject.start(&bench, setting, address)?;
    let rss_idle_mb = memory(&running)?;
    let (closed, cpu) = load(&bench, setting, &running, options.warm_up, options.closed, None)?;
    let rss_mb = memory(&running)?;
    // The pools are warm by now; new client connections are not, so they get a moment.
    let settle = options.warm_up / 5;
    let (open, _) = load(&bench, setting, &running, settle, options.open, Some(options.rate))?;
    for process in running.measured.iter_mut().chain(&mut running.support) {
        process.check()?;
    }
    Ok(Measurement {
        cpu_s_per_100k: cpu.map(|cpu| cpu.as_secs_f64() / closed.requests as f64 * 100_000.0),
        rps: closed.requests as f64 / closed.seconds,
        p50_us: open.p50_us,
        p99_us: open.p99_us,
        p999_us: open.p999_us,
        rss_idle_mb,
        rss_mb,
    })
}

/// Runs one load generator; also the CPU time that the proxies used while its requests were in flight.
fn load(
    bench: &Bench<'_>,
    setting: &Setting,
    running: &Running,
    warm_up: Duration,
    duration: Duration,
    rate: Option<f64>,
) -> anyhow::Result<(Outcome, Option<Duration>)> {
    let name = if rate.is_some() { "load-open" } else { "load-closed" };
    let args = load_args(setting, &running.entry, warm_up, duration, rate);
    let mut process = bench.launcher.start_own(name, bench.dir, &args)?;
    let ready = process.line()?;
    anyhow::ensure!(ready == "ready", "the load generator said {ready:?}");
    let before = cpu(running)?;
    process
        .stdin()
        .context("the load generator has no stdin")?
        .write_all(b"go\n")?;
    let outcome = process.line()?;
    let used = cpu(running)?
        .zip(before)
        .map(|(after, before)| after.saturating_sub(before));
    Ok((
        serde_json::from_str(&outcome).context("the load generator's outcome is not JSON")?,
        used,
    ))
}

fn load_args(
    setting: &Setting,
    entry: &Entry,
    warm_up: Duration,
    duration: Duration,
    rate: Option<f64>,
) -> Vec<String> {
    let mut args = vec!["load".to_owned()];
    let mut option = |name: &str, value: String| args.extend([format!("--{name}"), value]);
    option("protocol", setting.protocol.as_str().to_owned());
    option("address", entry.address.to_string());
    option("form", entry.form.as_str().to_owned());
    option("authority", entry.authority.clone());
    option("connections", setting.connections.to_string());
    option("streams", setting.streams.to_string());
    option("body-bytes", setting.body_bytes.to_string());
    option("warm-up", warm_up.as_secs_f64().to_string());
    option("duration", duration.as_secs_f64().to_string());
    if let Some(rate) = rate {
        option("rate", rate.to_string());
    }
    args
}

fn cpu(running: &Running) -> anyhow::Result<Option<Duration>> {
    let total = running
        .measured
        .iter()
        .map(Process::cpu)
        .sum::<anyhow::Result<Duration>>()?;
    Ok((!running.measured.is_empty()).then_some(total))
}

fn memory(running: &Running) -> anyhow::Result<Option<f64>> {
    let total = running
        .measured
        .iter()
        .map(Process::resident)
        .sum::<anyhow::Result<u64>>()?;
    Ok((!running.measured.is_empty()).then_some(total as f64 / f64::from(1 << 20)))
}

#[cfg(test)]
mod tests {
    use super::selected;

    #[test]
    fn only_selects_by_parts_of_setting_and_subject() {
        assert!(selected(None, "http1-single", "envoy"));
        assert!(selected(Some("single"), "http1-single", "envoy"));
        assert!(selected(
            Some("http2-pair, http1-single/envoy"),
            "http1-single",
            "envoy"
        ));
        assert!(!selected(Some("http1-single/envoy"), "http1-single", "direct"));
        assert!(!selected(Some("http2"), "http1-single", "envoy"));
    }
}
