//! Waiting for conditions, with deadlines.

use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::Value;

use super::tools;

/// For what takes a cluster seconds.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until `probe` gives a value. A probe that fails is asked again; its last error is told.
///
/// # Errors
/// After `limit`; `what` says what did not happen.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let error = match probe() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() > deadline {
            match error {
                Some(error) => return Err(error.context(format!("not within {limit:?}: {what}"))),
                None => bail!("not within {limit:?}: {what}"),
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Waits until a condition holds.
///
/// # Errors
/// After [`PATIENCE`], with the last reason that `check` gave.
pub fn eventually(what: &str, mut check: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    until(what, PATIENCE, || check().map(Some))
}

/// Waits for the rollout of a `deployment/name`, as kubectl sees it.
///
/// # Errors
/// When it does not end, with the state of the pods and the last events.
pub fn rollout(namespace: &str, object: &str) -> anyhow::Result<()> {
    let seconds = format!("--timeout={}s", PATIENCE.as_secs());
    let args = ["-n", namespace, "rollout", "status", object, &seconds];
    let outcome = tools::run("kubectl", &args, None, PATIENCE * 2)?;
    if outcome.success {
        return Ok(());
    }
    bail!("{}{}\n{}", outcome.stderr, outcome.stdout, situation(namespace));
}

/// Pods and the last events of a namespace, for messages.
#[must_use]
pub fn situation(namespace: &str) -> String {
    let pods = tools::kubectl(&["-n", namespace, "get", "pods", "-o", "wide"]).unwrap_or_default();
    let events = tools::kubectl(&["-n", namespace, "get", "events", "--sort-by=.lastTimestamp"]).unwrap_or_default();
    let lines: Vec<&str> = events.lines().collect();
    let last = lines[lines.len().saturating_sub(20)..].join("\n");
    format!("{pods}\n{last}")
}

/// A condition of an object's status: its `status` and `message`.
#[must_use]
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<(&'a str, &'a str)> {
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == kind)?;
    Some((found["status"].as_str()?, found["message"].as_str().unwrap_or_default()))
}
