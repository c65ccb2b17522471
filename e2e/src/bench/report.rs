//! From measurements to what is shown: medians with their spread, as a table for people and as JSON for programs.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::process::Cores;

/// What one round measured of one subject.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measurement {
    /// CPU seconds of all its proxies for 100,000 requests, closed loop; none where there is no proxy.
    pub cpu_s_per_100k: Option<f64>,
    /// Requests per second, closed loop.
    pub rps: f64,
    /// Median latency at the fixed rate.
    pub p50_us: f64,
    /// 99th percentile at the fixed rate.
    pub p99_us: f64,
    /// 99.9th percentile at the fixed rate.
    pub p999_us: f64,
    /// Resident memory of all its proxies before the first connection.
    pub rss_idle_mb: Option<f64>,
    /// The same after the closed loop.
    pub rss_mb: Option<f64>,
}

type Figure = (&'static str, usize, fn(&Measurement) -> Option<f64>);

/// Name, decimals in the table, how to get it.
const FIGURES: [Figure; 7] = [
    ("cpu_s_per_100k", 2, |m| m.cpu_s_per_100k),
    ("rps", 0, |m| Some(m.rps)),
    ("p50_us", 0, |m| Some(m.p50_us)),
    ("p99_us", 0, |m| Some(m.p99_us)),
    ("p999_us", 0, |m| Some(m.p999_us)),
    ("rss_idle_mb", 1, |m| m.rss_idle_mb),
    ("rss_mb", 1, |m| m.rss_mb),
];

/// All rounds of one subject in one setting.
#[derive(Debug, Clone)]
pub struct Row {
    /// The setting's name.
    pub setting: String,
    /// The subject's name.
    pub subject: String,
    /// One per round.
    pub rounds: Vec<Measurement>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Row {
    fn spread(&self, get: fn(&Measurement) -> Option<f64>) -> Option<Spread> {
        let mut values: Vec<f64> = self.rounds.iter().filter_map(get).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() {
            0 => return None,
            odd if odd % 2 == 1 => values[middle],
            _ => f64::midpoint(values[middle - 1], values[middle]),
        };
        Some(Spread {
            median,
            min: values[0],
            max: values[values.len() - 1],
        })
    }

    /// `{"setting", "subject", "rounds", FIGURE, FIGURE_min, FIGURE_max, …}`; null for what a subject does not have.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut row = Map::new();
        row.insert("setting".to_owned(), json!(self.setting));
        row.insert("subject".to_owned(), json!(self.subject));
        row.insert("rounds".to_owned(), json!(self.rounds.len()));
        let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
        for (name, _, get) in FIGURES {
            let spread = self.spread(get);
            row.insert(name.to_owned(), json!(spread.map(|s| rounded(s.median))));
            row.insert(format!("{name}_min"), json!(spread.map(|s| rounded(s.min))));
            row.insert(format!("{name}_max"), json!(spread.map(|s| rounded(s.max))));
        }
        Value::Object(row)
    }
}

/// Writes all rows as a JSON list.
///
/// # Errors
/// When the file cannot be written.
pub fn write_json(path: &Path, rows: &[Row]) -> anyhow::Result<()> {
    let list: Vec<Value> = rows.iter().map(Row::to_json).collect();
    let text = serde_json::to_string_pretty(&list)? + "\n";
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// A Markdown table of rows: `median (min–max)`, and CPU as a multiple of Envoy's in the same setting.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut header = vec!["setting".to_owned(), "subject".to_owned()];
    header.extend(FIGURES.iter().map(|(name, ..)| (*name).to_owned()));
    header.push("cpu / envoy".to_owned());
    let mut lines = vec![header];
    for row in rows {
        let mut line = vec![row.setting.clone(), row.subject.clone()];
        line.extend(
            FIGURES
                .iter()
                .map(|(_, decimals, get)| cell(row.spread(*get), *decimals)),
        );
        line.push(ratio_to_envoy(row, rows).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")));
        lines.push(line);
    }
    align(&lines)
}

/// One measurement as a line, for the log of a running benchmark.
#[must_use]
pub fn line(measurement: &Measurement) -> String {
    let mut line = String::new();
    for (name, decimals, get) in FIGURES {
        if let Some(value) = get(measurement) {
            let _ = write!(line, "  {name} {value:.decimals$}");
        }
    }
    line
}

/// What the figures were taken on.
#[must_use]
pub fn machine(cores: Cores) -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split(": ").nth(1));
    let count = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let Cores { proxy, rest } = cores;
    format!(
        "{count} × {}, Linux {}; proxies on core {proxy}, all else on core {rest}{}",
        model.unwrap_or("unknown processor"),
        read("/proc/sys/kernel/osrelease").trim(),
        if proxy == rest {
            " (only one is to be had: latencies mean little)"
        } else {
            ""
        },
    )
}

fn ratio_to_envoy(row: &Row, rows: &[Row]) -> Option<f64> {
    let cpu = |row: &Row| row.spread(|m| m.cpu_s_per_100k).map(|s| s.median);
    let envoy = rows
        .iter()
        .find(|other| other.setting == row.setting && other.subject == "envoy")?;
    cpu(envoy)
        .filter(|cpu| *cpu > 0.0)
        .and_then(|base| Some(cpu(row)? / base))
}

fn cell(spread: Option<Spread>, decimals: usize) -> String {
    let Some(Spread { median, min, max }) = spread else {
        return "-".to_owned();
    };
    format!("{median:.decimals$} ({min:.decimals$}–{max:.decimals$})")
}

fn align(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(text, "| {cell:<width$} ");
        }
        text.push_str("|\n");
        if index == 0 {
            for width in &widths {
                let _ = write!(text, "|{}", "-".repeat(width + 2));
            }
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(subject: &str, cpu: &[f64]) -> Row {
        let round = |cpu: &f64| Measurement {
            cpu_s_per_100k: Some(*cpu),
            rps: 1000.0,
            p50_us: 100.0,
            p99_us: 200.0,
            p999_us: 300.0,
            rss_idle_mb: None,
            rss_mb: None,
        };
        Row {
            setting: "http1-single".to_owned(),
            subject: subject.to_owned(),
            rounds: cpu.iter().map(round).collect(),
        }
    }

    #[test]
    fn json_has_median_and_spread_and_null_for_what_is_not_there() {
        let json = row("mesh", &[3.0, 1.0, 2.0]).to_json();
        assert_eq!(json["setting"], "http1-single");
        assert_eq!(json["subject"], "mesh");
        assert_eq!(json["cpu_s_per_100k"], 2.0);
        assert_eq!(json["cpu_s_per_100k_min"], 1.0);
        assert_eq!(json["cpu_s_per_100k_max"], 3.0);
        assert_eq!(json["rss_mb"], Value::Null);
        assert_eq!(row("mesh", &[1.0, 2.0]).to_json()["cpu_s_per_100k"], 1.5);
    }

    #[test]
    fn the_table_compares_with_envoy_in_the_same_setting() {
        let rows = [row("mesh", &[1.0]), row("envoy", &[4.0])];
        let table = table(&rows);
        let line = |subject| {
            table
                .lines()
                .find(|line| line.contains(subject))
                .unwrap()
                .trim_end()
                .to_owned()
        };
        assert!(line("| mesh").contains("| 0.25 "), "{table}");
        assert!(line("| envoy").contains("| 1.00 "), "{table}");
        let widths: Vec<usize> = table.lines().map(|line| line.chars().count()).collect();
        assert!(widths.windows(2).all(|pair| pair[0] == pair[1]), "{table}");
    }
}
