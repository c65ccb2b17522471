//! What workloads of one service account use: destination names that one replica asked for and that exist, kept so that
//! its siblings hold the answers before they need them, and keep them when the control plane goes away.
//!
//! A name stays a hint while a replica asks for it; after the last one has disconnected, for an hour more, since
//! replicas come back; when the last one has ended its subscription it is withdrawn.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_api::identity::SpiffeId;
use tokio::sync::broadcast;
use tokio::time::Instant;

/// Accounts remembered; the one whose last stream ended longest ago goes first.
const MAX_ACCOUNTS: usize = 10_000;
/// Names remembered for one account.
const MAX_NAMES: usize = 1_000;
/// How long a name outlives the last replica that asked for it.
const RETENTION: Duration = Duration::from_secs(3600);
/// Events that a stream may be behind; one that lags reads the list again.
const EVENTS: usize = 64;

/// A change of an account's hints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HintEvent {
    /// A replica asked for this name first.
    Added(Arc<str>),
    /// No replica asks for it any longer.
    Withdrawn(Arc<str>),
}

/// How a replica stopped asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    /// It ended the subscription.
    Unsubscribed,
    /// Its stream ended.
    Disconnected,
}

/// Hints of all accounts.
#[derive(Default)]
pub(super) struct Hints {
    accounts: Mutex<HashMap<SpiffeId, Account>>,
}

struct Account {
    names: HashMap<Arc<str>, Hint>,
    events: broadcast::Sender<HintEvent>,
    last_used: Instant,
}

struct Hint {
    /// Streams that ask for the name themselves.
    holders: usize,
    /// When the last of them left.
    since: Instant,
}

impl Hints {
    /// Changes of an account's hints from here on.
    pub(super) fn join(&self, identity: &SpiffeId) -> broadcast::Receiver<HintEvent> {
        account(&mut self.lock(), identity).events.subscribe()
    }

    /// The hints of an account.
    pub(super) fn names(&self, identity: &SpiffeId) -> Vec<Arc<str>> {
        let mut accounts = self.lock();
        let Some(account) = accounts.get_mut(identity) else {
            return Vec::new();
        };
        account.expire();
        account.names.keys().cloned().collect()
    }

    /// A stream asks for a name that exists.
    pub(super) fn ask(&self, identity: &SpiffeId, name: &Arc<str>) {
        let mut accounts = self.lock();
        let account = account(&mut accounts, identity);
        if let Some(hint) = account.names.get_mut(name) {
            hint.holders += 1;
            return;
        }
        account.make_room();
        let hint = Hint {
            holders: 1,
            since: Instant::now(),
        };
        account.names.insert(name.clone(), hint);
        let _ = account.events.send(HintEvent::Added(name.clone()));
    }

    /// A stream that asked for a name stops. Says how many others still ask.
    pub(super) fn release(&self, identity: &SpiffeId, name: &str, leaving: Leaving) -> usize {
        let mut accounts = self.lock();
        let Some(account) = accounts.get_mut(identity) else {
            return 0;
        };
        account.last_used = Instant::now();
        let Some(hint) = account.names.get_mut(name) else {
            return 0;
        };
        hint.holders = hint.holders.saturating_sub(1);
        hint.since = Instant::now();
        let left = hint.holders;
        if left == 0 && leaving == Leaving::Unsubscribed {
            account.withdraw(name);
        }
        left
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SpiffeId, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    fn withdraw(&mut self, name: &str) {
        if let Some((name, _)) = self.names.remove_entry(name) {
            let _ = self.events.send(HintEvent::Withdrawn(name));
        }
    }

    fn expire(&mut self) {
        let old: Vec<_> = self
            .names
            .iter()
            .filter(|(_, hint)| hint.holders == 0 && hint.since.elapsed() > RETENTION)
            .map(|(name, _)| name.clone())
            .collect();
        for name in old {
            self.withdraw(&name);
        }
    }

    /// Forgets the oldest name when there are too many; one that nobody asks for, if there is one.
    fn make_room(&mut self) {
        if self.names.len() < MAX_NAMES {
            return;
        }
        metrics::counter!("mesh_discovery_hints_dropped_total").increment(1);
        let oldest = self.names.iter().min_by_key(|(_, hint)| (hint.holders > 0, hint.since));
        if let Some(name) = oldest.map(|(name, _)| name.clone()) {
            self.withdraw(&name);
        }
    }
}

fn account<'a>(accounts: &'a mut HashMap<SpiffeId, Account>, identity: &SpiffeId) -> &'a mut Account {
    if accounts.len() >= MAX_ACCOUNTS && !accounts.contains_key(identity) {
        let idle = accounts
            .iter()
            .filter(|(_, account)| account.events.receiver_count() == 0)
            .min_by_key(|(_, account)| account.last_used);
        if let Some(identity) = idle.map(|(identity, _)| identity.clone()) {
            accounts.remove(&identity);
        }
    }
    let account = accounts.entry(identity.clone()).or_insert_with(|| Account {
        names: HashMap::new(),
        events: broadcast::channel(EVENTS).0,
        last_used: Instant::now(),
    });
    account.last_used = Instant::now();
    account
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(account: &str) -> SpiffeId {
        format!("spiffe://cluster.local/ns/default/sa/{account}")
            .parse()
            .unwrap()
    }

    #[test]
    fn siblings_hear_of_a_first_question_only() {
        let hints = Hints::default();
        let mut events = hints.join(&id("a"));
        assert!(hints.names(&id("a")).is_empty());
        let name: Arc<str> = "reviews:80".into();
        hints.ask(&id("a"), &name);
        hints.ask(&id("a"), &name);
        hints.ask(&id("b"), &name);
        assert_eq!(events.try_recv().unwrap(), HintEvent::Added(name.clone()));
        assert!(events.try_recv().is_err());
        assert_eq!(hints.names(&id("a")), vec![name]);
    }

    #[test]
    fn the_last_to_unsubscribe_withdraws() {
        let hints = Hints::default();
        let name: Arc<str> = "reviews:80".into();
        let mut events = hints.join(&id("a"));
        hints.ask(&id("a"), &name);
        hints.ask(&id("a"), &name);
        events.try_recv().unwrap();
        assert_eq!(hints.release(&id("a"), &name, Leaving::Unsubscribed), 1);
        assert!(events.try_recv().is_err());
        assert_eq!(hints.release(&id("a"), &name, Leaving::Unsubscribed), 0);
        assert_eq!(events.try_recv().unwrap(), HintEvent::Withdrawn(name));
    }

    #[tokio::test(start_paused = true)]
    async fn names_outlive_a_disconnected_replica_for_an_hour() {
        let hints = Hints::default();
        let name: Arc<str> = "reviews:80".into();
        hints.ask(&id("a"), &name);
        hints.release(&id("a"), &name, Leaving::Disconnected);
        assert_eq!(hints.names(&id("a")), vec![name]);
        tokio::time::advance(RETENTION + Duration::from_secs(1)).await;
        assert!(hints.names(&id("a")).is_empty());
    }

    #[test]
    fn names_are_bounded() {
        let hints = Hints::default();
        for i in 0..MAX_NAMES + 10 {
            hints.ask(&id("a"), &format!("host-{i}:80").into());
        }
        assert_eq!(hints.names(&id("a")).len(), MAX_NAMES);
    }
}
