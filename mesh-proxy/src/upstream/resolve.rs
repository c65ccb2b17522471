//! Addresses of endpoints that are DNS names.
//!
//! Clusters ask for names as their endpoints come; one task resolves them, again every minute (5 s after a failure), and
//! has the clusters look again when addresses change. The last good answer stays in use while resolving fails. A name
//! that no cluster asks for any more is forgotten.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::cluster::Cluster;
use super::registry::{Upstreams, lock};
use crate::resolver;

const REFRESH: Duration = Duration::from_secs(60);
const REFRESH_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// Long enough for the next name server when one is silent.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Names that are looked up at the same time.
const LOOKUPS_MOST: usize = 32;

/// Resolves a name.
pub trait Lookup: Send + Sync + 'static {
    /// All addresses of a name.
    fn lookup(&self, name: &str) -> impl Future<Output = io::Result<Vec<IpAddr>>> + Send;
}

/// The resolver of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemLookup;

impl Lookup for SystemLookup {
    async fn lookup(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        Ok(resolver::system().lookup(name).await?)
    }
}

/// The names that clusters ask for.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: Mutex<HashMap<Arc<str>, Name>>,
    asked: Notify,
}

#[derive(Debug)]
struct Name {
    /// The last good answer.
    addresses: Option<Vec<IpAddr>>,
    due: Instant,
    resolving: bool,
    askers: Vec<Weak<Cluster>>,
}

impl Names {
    /// The known addresses of a name; the asker hears when they change.
    pub(super) fn addresses(&self, name: &Arc<str>, asker: &Weak<Cluster>) -> Option<Vec<IpAddr>> {
        if let Ok(ip) = name.parse() {
            return Some(vec![ip]);
        }
        let mut known = lock(&self.known);
        let entry = known.entry(Arc::clone(name)).or_insert_with(|| {
            self.asked.notify_one();
            Name {
                addresses: None,
                due: Instant::now(),
                resolving: false,
                askers: Vec::new(),
            }
        });
        if !entry.askers.iter().any(|other| Weak::ptr_eq(other, asker)) {
            entry.askers.retain(|other| other.strong_count() > 0);
            entry.askers.push(asker.clone());
        }
        entry.addresses.clone()
    }

    /// Names to resolve now, and when the next is due.
    fn due(&self, now: Instant) -> (Vec<Arc<str>>, Option<Instant>) {
        let mut known = lock(&self.known);
        known.retain(|_, name| name.resolving || name.askers.iter().any(|asker| asker.strong_count() > 0));
        let free = LOOKUPS_MOST.saturating_sub(known.values().filter(|name| name.resolving).count());
        let mut due = Vec::new();
        for (text, name) in known
            .iter_mut()
            .filter(|(_, name)| !name.resolving && name.due <= now)
            .take(free)
        {
            name.resolving = true;
            due.push(Arc::clone(text));
        }
        let next = known.values().filter(|name| !name.resolving).map(|name| name.due).min();
        let next = next.filter(|_| due.len() < free);
        (due, next)
    }

    fn answered(&self, text: &str, answer: io::Result<Vec<IpAddr>>) {
        let askers = {
            let mut known = lock(&self.known);
            let Some(name) = known.get_mut(text) else { return };
            name.resolving = false;
            let answer = answer.ok().filter(|addresses| !addresses.is_empty());
            name.due = Instant::now()
                + if answer.is_some() {
                    REFRESH
                } else {
                    REFRESH_AFTER_FAILURE
                };
            match answer {
                Some(addresses) if name.addresses.as_ref() != Some(&addresses) => name.addresses = Some(addresses),
                _ => return,
            }
            name.askers.clone()
        };
        for asker in askers.iter().filter_map(Weak::upgrade) {
            asker.names_changed();
        }
    }
}

impl Upstreams {
    /// Resolves names for as long as it is polled. Spawn it once, beside the workers.
    pub async fn resolve_names(self: Arc<Self>, lookup: impl Lookup) {
        let lookup = Arc::new(lookup);
        let mut running = tokio::task::JoinSet::new();
        loop {
            let (due, next) = self.names.due(Instant::now());
            for name in due {
                let (upstreams, lookup) = (Arc::clone(&self), Arc::clone(&lookup));
                running.spawn(async move {
                    let answer = match tokio::time::timeout(ANSWER_WITHIN, lookup.lookup(&name)).await {
                        Ok(answer) => answer,
                        Err(_) => Err(io::ErrorKind::TimedOut.into()),
                    };
                    if let Err(error) = &answer {
                        tracing::debug!(%name, %error, "a name does not resolve");
                    }
                    upstreams.names.answered(&name, answer);
                });
            }
            tokio::select! {
                () = self.names.asked.notified() => {}
                Some(_) = running.join_next() => {}
                () = tokio::time::sleep_until(next.unwrap_or_else(|| Instant::now() + REFRESH)) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
