//! The live table: pages of all sidecars in, figures of the last seconds and of the whole run out.

use std::collections::VecDeque;
use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::metrics::Figures;
use crate::fetch::{Pages, url_of};
use crate::output::{rendered, table};

/// What the live table looks back on.
const WINDOW: Duration = Duration::from_secs(10);
/// A sidecar that does not answer in this time is left out of a round.
const SCRAPE_LIMIT: Duration = Duration::from_secs(2);

/// Reads the metrics of all sidecars.
pub struct Observer {
    pages: Pages,
    targets: Vec<SocketAddr>,
    /// By target, the pages of the last seconds; the newest last. Never empty.
    rounds: VecDeque<(Instant, Vec<Figures>)>,
    first: Vec<Figures>,
}

impl Observer {
    /// Starts to count at this moment.
    pub async fn start(pages: Pages, targets: Vec<SocketAddr>) -> Self {
        let mut observer = Self {
            pages,
            first: vec![Figures::default(); targets.len()],
            targets,
            rounds: VecDeque::new(),
        };
        let first = observer.scrape().await;
        observer.first.clone_from(&first);
        observer.rounds.push_back((Instant::now(), first));
        observer
    }

    /// Reads all pages again.
    pub async fn look(&mut self) {
        let figures = self.scrape().await;
        let now = Instant::now();
        while self.rounds.len() > 1 && self.rounds.front().is_some_and(|(at, _)| now - *at > WINDOW) {
            self.rounds.pop_front();
        }
        self.rounds.push_back((now, figures));
    }

    /// What was counted since the start.
    #[must_use]
    pub fn whole(&self) -> Figures {
        self.rounds
            .back()
            .map(|(_, newest)| difference(newest, &self.first))
            .unwrap_or_default()
    }

    /// What was counted lately, and in how much time.
    #[must_use]
    pub fn lately(&self) -> (Figures, Duration) {
        match (self.rounds.front(), self.rounds.back()) {
            (Some((from, oldest)), Some((to, newest))) => (difference(newest, oldest), *to - *from),
            _ => (Figures::default(), Duration::ZERO),
        }
    }

    /// A sidecar that does not answer keeps the figures that it had.
    async fn scrape(&self) -> Vec<Figures> {
        let mut figures = self
            .rounds
            .back()
            .map_or_else(|| self.first.clone(), |(_, newest)| newest.clone());
        let mut reads = JoinSet::new();
        for (index, target) in self.targets.iter().copied().enumerate() {
            let pages = self.pages.clone();
            reads.spawn(async move {
                let url = url_of(target);
                let page = tokio::time::timeout(SCRAPE_LIMIT, pages.get(&url, "/stats/prometheus"))
                    .await
                    .ok()?
                    .ok()?;
                Some((index, Figures::parse(&String::from_utf8_lossy(&page))))
            });
        }
        while let Some(read) = reads.join_next().await {
            if let Ok(Some((index, read))) = read
                && let Some(slot) = figures.get_mut(index)
            {
                *slot = read;
            }
        }
        figures
    }
}

fn difference(newer: &[Figures], older: &[Figures]) -> Figures {
    let mut sum = Figures::default();
    for (newer, older) in newer.iter().zip(older) {
        sum.add(&newer.since(older));
    }
    sum
}

/// A row per destination that got requests; `period` is the time in which they came.
#[must_use]
pub fn figures_table(figures: &Figures, period: Duration) -> String {
    let mut rows = table([
        "DESTINATION",
        "VERSION",
        "REQUESTS",
        "PER SECOND",
        "SUCCESS",
        "P50",
        "P99",
        "MTLS",
    ]);
    for (destination, counts) in &figures.0 {
        if counts.requests < 0.5 && counts.received < 0.5 {
            continue;
        }
        let seconds = period.as_secs_f64();
        let name = |text: &str| {
            if text.is_empty() {
                "-".to_owned()
            } else {
                text.to_owned()
            }
        };
        rows.add_row([
            name(&destination.service),
            name(&destination.version),
            format!("{:.0}", counts.requests),
            if seconds > 0.0 {
                format!("{:.1}", counts.requests / seconds)
            } else {
                "-".to_owned()
            },
            percent(counts.success_rate()),
            millis(counts.quantile(0.5)),
            millis(counts.quantile(0.99)),
            percent(counts.mutual_tls()),
        ]);
    }
    rendered(&rows)
}

/// `99.5%`.
#[must_use]
pub fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1}%", share * 100.0))
}

fn millis(latency: Option<f64>) -> String {
    match latency {
        None => "-".to_owned(),
        Some(latency) if latency < 10.0 => format!("{latency:.1}ms"),
        Some(latency) if latency < 10_000.0 => format!("{latency:.0}ms"),
        Some(latency) => format!("{:.1}s", latency / 1_000.0),
    }
}

/// The end of the terminal: a table that is drawn over and over, with notes above it.
pub struct Screen {
    /// Lines of the table that stand on the terminal.
    drawn: Mutex<usize>,
    is_terminal: bool,
}

impl Default for Screen {
    fn default() -> Self {
        Self {
            drawn: Mutex::new(0),
            is_terminal: std::io::stdout().is_terminal(),
        }
    }
}

impl Screen {
    /// Whether the table can be drawn over.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Draws the table, over the last one on a terminal.
    pub fn draw(&self, text: &str) {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = std::io::stdout().lock();
        // Nobody reads when this fails.
        let _ = write!(out, "{}{text}", self.erase(&mut drawn)).and_then(|()| out.flush());
        *drawn = text.lines().count();
    }

    /// Writes a line to standard error, above the table.
    pub fn note(&self, line: &str) {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = std::io::stdout().lock();
        let erase = self.erase(&mut drawn);
        if !erase.is_empty() {
            let _ = out.write_all(erase.as_bytes()).and_then(|()| out.flush());
        }
        eprintln!("{line}");
    }

    /// What takes the last table off the terminal.
    fn erase(&self, drawn: &mut usize) -> String {
        let lines = std::mem::take(drawn);
        if self.is_terminal && lines > 0 {
            format!("\x1b[{lines}A\x1b[J")
        } else {
            String::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::metrics::{Counts, Destination};

    #[test]
    fn rows_are_destinations_with_requests() {
        let reviews = |version: &str| Destination {
            service: "reviews".to_owned(),
            version: version.to_owned(),
        };
        let counts = Counts {
            requests: 200.0,
            errors: 1.0,
            buckets: vec![(1.0, 100.0), (5.0, 200.0), (f64::INFINITY, 200.0)],
            received: 200.0,
            secured: 200.0,
        };
        let figures = Figures([(reviews("v1"), counts), (reviews("v2"), Counts::default())].into());
        let text = figures_table(&figures, Duration::from_secs(10));
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows.len(), 2, "{text}");
        assert_eq!(
            rows[1],
            ["reviews", "v1", "200", "20.0", "99.5%", "1.0ms", "4.9ms", "100.0%"]
        );
    }

    #[test]
    fn latencies_are_read_at_a_glance() {
        let texts = [None, Some(0.44), Some(12.3), Some(5_012.0), Some(60_000.0)].map(millis);
        assert_eq!(texts, ["-", "0.4ms", "12ms", "5012ms", "60.0s"]);
    }
}
