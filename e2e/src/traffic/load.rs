//! Steady load through a client's sidecar, and what became of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Version};
use tokio::task::JoinSet;

use super::caller::{Answer, Caller, Connection};

/// What each caller does, again and again, on a connection of its own to `host:port` that the sidecar captured.
#[derive(Clone, Debug)]
pub struct Calls {
    /// Whom they call.
    pub target: &'static str,
    /// In which version of HTTP.
    pub version: Version,
    /// Method.
    pub method: Method,
    /// Body.
    pub body: &'static str,
}

/// What became of it.
#[derive(Debug, Default)]
pub struct Tally {
    /// Answers with 200, by the application that gave them.
    pub good: std::collections::BTreeMap<String, usize>,
    /// What else happened.
    pub bad: Vec<String>,
}

impl Tally {
    /// Answers with 200.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.good.values().sum()
    }

    fn add(&mut self, result: anyhow::Result<Answer>) {
        match result {
            Ok(answer) if answer.status == 200 => *self.good.entry(answer.backend().to_owned()).or_default() += 1,
            Ok(answer) => self.bad.push(format!("{} {}", answer.status, answer.text())),
            Err(error) => self.bad.push(format!("{error:#}")),
        }
    }
}

/// Load that goes on until it is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    callers: JoinSet<Tally>,
}

impl Load {
    /// So many callers, each with a short pause between its requests.
    #[must_use]
    pub fn start(caller: Caller, count: usize, calls: Calls) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut callers = JoinSet::new();
        for _ in 0..count {
            let (stop, calls) = (stop.clone(), calls.clone());
            callers.spawn(async move {
                let mut tally = Tally::default();
                let mut connection = None;
                while !stop.load(Ordering::Relaxed) {
                    let result = call(caller, &calls, &mut connection).await;
                    if result.is_err() {
                        connection = None;
                    }
                    tally.add(result);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                tally
            });
        }
        Self { stop, callers }
    }

    /// Ends it after the requests that are under way.
    ///
    /// # Errors
    /// When a caller broke.
    pub async fn stop(mut self) -> anyhow::Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        while let Some(tally) = self.callers.join_next().await {
            let tally = tally.context("a caller")?;
            for (backend, count) in tally.good {
                *all.good.entry(backend).or_default() += count;
            }
            all.bad.extend(tally.bad);
        }
        Ok(all)
    }
}

async fn call(caller: Caller, calls: &Calls, kept: &mut Option<Connection>) -> anyhow::Result<Answer> {
    let connection = match kept {
        Some(connection) => connection,
        None => kept.insert(Connection::on(caller.tunnel(calls.target).await?, calls.version).await?),
    };
    connection.send(calls.request()?).await
}

impl Calls {
    /// GETs.
    #[must_use]
    pub fn get(target: &'static str, version: Version) -> Self {
        Self {
            target,
            version,
            method: Method::GET,
            body: "",
        }
    }

    /// One of the requests.
    ///
    /// # Errors
    /// When the target is no authority.
    pub fn request(&self) -> anyhow::Result<Request<Bytes>> {
        let request = Request::builder().method(self.method.clone());
        let request = match self.version {
            Version::HTTP_2 => request.uri(format!("http://{}/", self.target)),
            _ => request.uri("/").header("host", self.target),
        };
        Ok(request.body(Bytes::from_static(self.body.as_bytes()))?)
    }
}
