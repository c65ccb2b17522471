//! Waiting until every process serves; when one does not in time, saying which, and what it said last.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::fetch::{Pages, url_of};

/// Between two looks at a process.
const PAUSE: Duration = Duration::from_millis(25);
/// Of the log of a process that is not ready.
const TAIL_LINES: usize = 12;
/// Logs that are shown; the others are likely to say the same.
const MAX_TAILS: usize = 3;

/// A process that is waited for.
#[derive(Clone, Debug)]
pub struct Awaited {
    /// For messages: `sidecar of reviews-v1`.
    pub label: String,
    /// How one sees that it serves.
    pub sign: Sign,
    /// What it says.
    pub log: PathBuf,
}

/// How one sees that a process serves.
#[derive(Clone, Debug)]
pub enum Sign {
    /// This page answers 200.
    Page(SocketAddr, &'static str),
    /// It accepts connections.
    Accepts(SocketAddr),
}

/// Not everything is ready in time.
#[derive(Debug, thiserror::Error)]
#[error("not ready after {limit:?}: {}{tails}", .labels.join(", "))]
pub struct NotReady {
    limit: Duration,
    labels: Vec<String>,
    tails: String,
}

/// Waits until all are ready.
///
/// # Errors
/// When `limit` is over before.
pub async fn wait(pages: &Pages, awaited: Vec<Awaited>, limit: Duration) -> Result<(), NotReady> {
    let deadline = Instant::now() + limit;
    let mut waits = JoinSet::new();
    for one in awaited {
        let pages = pages.clone();
        waits.spawn(async move {
            match tokio::time::timeout_at(deadline, until_ready(&pages, &one.sign)).await {
                Ok(()) => None,
                Err(_) => Some(one),
            }
        });
    }
    let mut late: Vec<Awaited> = Vec::new();
    while let Some(outcome) = waits.join_next().await {
        late.extend(outcome.ok().flatten());
    }
    if late.is_empty() {
        return Ok(());
    }
    late.sort_by(|a, b| a.label.cmp(&b.label));
    let mut tails = String::new();
    for one in late.iter().take(MAX_TAILS) {
        let _ = write!(
            tails,
            "\n\n{} said last ({}):\n{}",
            one.label,
            one.log.display(),
            tail(&one.log)
        );
    }
    Err(NotReady {
        limit,
        labels: late.into_iter().map(|one| one.label).collect(),
        tails,
    })
}

async fn until_ready(pages: &Pages, sign: &Sign) {
    loop {
        let ready = match sign {
            Sign::Page(address, path) => pages.get(&url_of(*address), path).await.is_ok(),
            Sign::Accepts(address) => TcpStream::connect(address).await.is_ok(),
        };
        if ready {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The last lines of a log, indented.
fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    if last.is_empty() {
        return "  nothing".to_owned();
    }
    last.iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn says_who_is_late_and_what_it_said() {
        let listening = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        // Bound, but it does not listen: connections are refused.
        let silent = tokio::net::TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        std::fs::write(&log, "one\ncannot listen\n").unwrap();
        let awaited = |label: &str, address| Awaited {
            label: label.to_owned(),
            sign: Sign::Accepts(address),
            log: log.clone(),
        };
        let all = vec![
            awaited("early", listening.local_addr().unwrap()),
            awaited("late", silent.local_addr().unwrap()),
        ];
        let pages = Pages::default();
        let error = wait(&pages, all.clone(), Duration::from_millis(200))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("not ready after 200ms: late\n"), "{error}");
        assert!(error.ends_with("\n  one\n  cannot listen"), "{error}");
        wait(&pages, all[..1].to_vec(), Duration::from_secs(10)).await.unwrap();
    }
}
