//! The benchmark itself, run briefly: it must start every rival that it finds, check every response and leave figures.

use std::process::Command;

use anyhow::bail;
use serde_json::Value;

/// Runs the benchmark for a moment; gives its rows, or what it said when it failed.
fn bench(only: &str) -> anyhow::Result<Vec<Value>> {
    let dir = tempfile::tempdir()?;
    let json = dir.path().join("rows.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench-data-plane"));
    command
        .args([
            "--rounds",
            "1",
            "--seconds",
            "0.2",
            "--rate",
            "500",
            "--only",
            only,
            "--json",
        ])
        .arg(&json);
    if let Some(envoy) = e2e::peers::envoy() {
        command.env("ENVOY", envoy);
    }
    let output = command.output()?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{}", String::from_utf8_lossy(&said));
    }
    Ok(serde_json::from_slice(&std::fs::read(json)?)?)
}

#[test]
fn envoy_and_the_direct_connection_give_figures_in_every_setting() {
    let rows = bench("/envoy,/direct").unwrap();
    let expected = if e2e::peers::find_envoy().is_some() { 8 } else { 4 };
    assert_eq!(rows.len(), expected, "{rows:#?}");
    for row in &rows {
        let figure = |name: &str| row[name].as_f64();
        for name in ["rps", "p50_us", "p99_us", "p999_us"] {
            assert!(figure(name).is_some_and(|value| value > 0.0), "{name} in {row:#}");
        }
        assert!(
            figure("rps_min") <= figure("rps") && figure("rps") <= figure("rps_max"),
            "{row:#}"
        );
        let has_processes = row["subject"] != "direct";
        for name in ["cpu_s_per_100k", "rss_idle_mb", "rss_mb"] {
            assert_eq!(
                figure(name).is_some_and(|value| value > 0.0),
                has_processes,
                "{name} in {row:#}"
            );
        }
    }
}

#[test]
fn a_pattern_that_selects_nothing_is_an_error() {
    let said = bench("http7").unwrap_err().to_string();
    assert!(said.contains(r#"nothing is called "http7""#), "{said}");
}
