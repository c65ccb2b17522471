//! The demo from start to end.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http::Uri;
use mesh_api::identity::TrustDomain;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::live::{Observer, Screen, figures_table, percent};
use super::place::Place;
use super::processes::{self, ControlPlane, Running, Settings};
use super::ready::{self, Awaited, Sign};
use super::report::Report;
use super::shop::{self, Block, MeshOptions, ShopWorkload};
use super::traffic::{Totals, Traffic};
use crate::fetch::{Pages, url_of};
use crate::output::print;

/// For everything to be ready.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Traffic of `--for` without `--traffic`.
const DEFAULT_RATE: f64 = 10.0;
/// For answers that are due when a signal ends the demo.
const HURRY: Duration = Duration::from_millis(500);
/// Between two live tables on a terminal, and elsewhere.
const REDRAW: Duration = Duration::from_secs(1);
const REPRINT: Duration = Duration::from_secs(5);
/// Between two looks at what is wrong in policy files.
const DIAGNOSTICS: Duration = Duration::from_millis(200);

/// What the demo is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Policy directory; one of the run's own without it.
    pub policies: Option<PathBuf>,
    /// What all processes are told.
    pub settings: Settings,
    /// The mesh's settings.
    pub mesh: MeshOptions,
    /// Requests a second.
    pub traffic: Option<f64>,
    /// When it ends by itself.
    pub duration: Option<Duration>,
    /// Whether programs read the output.
    pub json: bool,
}

/// Whether requests failed that policy did not ask to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// None.
    Well,
    /// Some.
    Failures,
}

/// Runs the demo until it ends by itself or by a signal. Nothing of it is left afterwards.
///
/// # Errors
/// When it cannot start.
pub async fn run(options: Options) -> anyhow::Result<Outcome> {
    let stop = stop_on_signals()?;
    let trust_domain = TrustDomain::cluster_local();
    let block = Block::find()?;
    let workloads = shop::workloads(block, &trust_domain)?;
    let place = Place::prepare(options.policies.as_deref(), &trust_domain, &workloads, &options.mesh)?;
    let control_plane = ControlPlane::start(block, &place, &options.settings).context("starting the control plane")?;
    let mut running = Vec::new();
    let outcome = serve(&options, &place, &control_plane, workloads, &mut running, &stop).await;
    processes::stop(running).await;
    control_plane.stop().await;
    outcome
}

/// Cancelled by the first SIGINT, SIGTERM or SIGHUP. The second ends the process at once; its children follow.
fn stop_on_signals() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let cancel = stop.clone();
    let listen = |kind| signal(kind).context("waiting for signals");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            if cancel.is_cancelled() {
                std::process::exit(130);
            }
            cancel.cancel();
        }
    });
    Ok(stop)
}

async fn serve(
    options: &Options,
    place: &Place,
    control_plane: &ControlPlane,
    workloads: Vec<ShopWorkload>,
    running: &mut Vec<Running>,
    stop: &CancellationToken,
) -> anyhow::Result<Outcome> {
    let pages = Pages::default();
    let start = start_workloads(options, place, control_plane, workloads, running, &pages);
    match stop.run_until_cancelled(start).await {
        None => return Ok(Outcome::Well),
        Some(started) => started?,
    }
    let screen = Arc::new(Screen::default());
    let report = Report {
        control_plane,
        workloads: running,
        policies: place.policies(),
        logs: &place.logs(),
        program: &std::env::current_exe()?,
    };
    print(&if options.json {
        format!("{}\n", report.json())
    } else {
        report.text()
    })?;

    let reporting = tokio::spawn(report_diagnostics(
        pages.clone(),
        url_of(control_plane.status),
        screen.clone(),
    ));
    let outcome = match options.traffic.or(options.duration.map(|_| DEFAULT_RATE)) {
        None => {
            stop.cancelled().await;
            Outcome::Well
        }
        Some(rate) => make_traffic(options, rate, running, pages, &screen, stop).await?,
    };
    reporting.abort();
    Ok(outcome)
}

async fn start_workloads(
    options: &Options,
    place: &Place,
    control_plane: &ControlPlane,
    workloads: Vec<ShopWorkload>,
    running: &mut Vec<Running>,
    pages: &Pages,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    // Sidecars that find no control plane come back only after a while: it goes first.
    let control_plane_ready = Awaited {
        label: "control plane".to_owned(),
        sign: Sign::Page(control_plane.status, "/ready"),
        log: control_plane.log.clone(),
    };
    ready::wait(pages, vec![control_plane_ready], START_LIMIT).await?;
    let mut awaited = Vec::new();
    for workload in workloads {
        let name = workload.name;
        let one = Running::start(workload, control_plane.address, place, &options.settings)
            .with_context(|| format!("starting {name}"))?;
        awaited.push(Awaited {
            label: format!("sidecar of {name}"),
            sign: Sign::Page(one.workload.readiness, "/healthz/ready"),
            log: one.sidecar_log.clone(),
        });
        awaited.push(Awaited {
            label: format!("application of {name}"),
            sign: Sign::Accepts(one.workload.app),
            log: one.app_log.clone(),
        });
        running.push(one);
    }
    ready::wait(pages, awaited, deadline.saturating_duration_since(Instant::now())).await?;
    Ok(())
}

async fn make_traffic(
    options: &Options,
    rate: f64,
    running: &[Running],
    pages: Pages,
    screen: &Screen,
    stop: &CancellationToken,
) -> anyhow::Result<Outcome> {
    let client = running.iter().find(|one| one.workload.name == shop::CLIENT);
    let proxy = client.context("the shop has no client")?.workload.outbound;
    let targets = running.iter().map(|one| one.workload.metrics).collect();
    let mut observer = Observer::start(pages, targets).await;
    let start = Instant::now();
    let traffic = Traffic::start(proxy, Uri::from_static(shop::ENTRANCE), rate);
    let end = async {
        match options.duration {
            Some(duration) => tokio::time::sleep_until(start + duration).await,
            None => std::future::pending().await,
        }
    };
    let shows = !options.json && options.traffic.is_some();
    let watching = async {
        let mut ticks = tokio::time::interval(if screen.is_terminal() { REDRAW } else { REPRINT });
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            observer.look().await;
            if shows {
                let (figures, period) = observer.lately();
                screen.draw(&format!("\n{}", figures_table(&figures, period)));
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = end => {}
        () = watching => {}
    }
    let generated = start.elapsed();
    let totals = traffic.totals();
    let hurry = async {
        stop.cancelled().await;
        tokio::time::sleep(HURRY).await;
    };
    // Answers that are due are waited for, unless somebody is in a hurry.
    tokio::select! {
        () = traffic.finish() => {}
        () = hurry => {}
    }
    observer.look().await;
    if options.duration.is_some() || shows {
        summarize(options, screen, &observer, &totals, generated)?;
    }
    Ok(if options.duration.is_some() && totals.failed() > 0 {
        Outcome::Failures
    } else {
        Outcome::Well
    })
}

fn summarize(
    options: &Options,
    screen: &Screen,
    observer: &Observer,
    totals: &Totals,
    generated: Duration,
) -> anyhow::Result<()> {
    let whole = observer.whole();
    if options.json {
        return print(&format!("{}\n", totals_json(totals, whole.mutual_tls())));
    }
    screen.draw(&format!("\n{}", figures_table(&whole, generated)));
    let (requests, failed, asked_for) = (totals.requests(), totals.failed(), totals.asked_for());
    print(&format!(
        "\n{requests} requests in {:.0} s: {} succeeded, {asked_for} failed as policy asked, {failed} failed otherwise; \
         {} of what the services received came over mutual TLS\n",
        generated.as_secs_f64(),
        requests.saturating_sub(failed + asked_for),
        percent(whole.mutual_tls()),
    ))
}

/// `success_rate` counts what policy asked to fail as success: it is what policy wanted.
fn totals_json(totals: &Totals, mutual_tls: Option<f64>) -> Value {
    let (requests, failed) = (totals.requests(), totals.failed());
    #[allow(clippy::cast_precision_loss, reason = "shares of counts that are far below 2^52")]
    let success_rate = if requests == 0 {
        1.0
    } else {
        1.0 - failed as f64 / requests as f64
    };
    json!({
        "totals": {
            "requests": requests,
            "failed": failed,
            "success_rate": success_rate,
            "mtls": mutual_tls.unwrap_or(0.0),
        }
    })
}

/// Says on the terminal what is wrong in policy files, each thing once as long as it holds.
async fn report_diagnostics(pages: Pages, status: Uri, screen: Arc<Screen>) {
    let mut said: HashSet<String> = HashSet::new();
    let mut ticks = tokio::time::interval(DIAGNOSTICS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // A control plane that is away says nothing; it is started again.
        let Ok(page) = pages.get(&status, "/debug/diagnostics").await else {
            continue;
        };
        let Ok(Value::Array(diagnostics)) = serde_json::from_slice(&page) else {
            continue;
        };
        let texts: Vec<&str> = diagnostics.iter().filter_map(|each| each["text"].as_str()).collect();
        for text in texts.iter().filter(|text| !said.contains(**text)) {
            screen.note(text);
        }
        said = texts.into_iter().map(str::to_owned).collect();
    }
}
