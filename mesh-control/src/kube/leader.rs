//! Which replica writes: a Lease that one of them holds and renews.
//!
//! ```text
//! Follow --the lease is free, or its holder went silent--> Lead --not renewed in time, or taken--> Follow
//! ```
//!
//! Times of other machines are never compared: a holder is silent when its Lease has not changed for as long as the Lease
//! says, measured here. A leader that cannot renew stops before others may begin.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::call::{CallError, call};
use super::{LEASE, MANAGER, labels};

/// How long who leads is believed to, and when it gives up.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A holder that has not renewed for this long is gone. Written into the Lease in whole seconds.
    pub lease: Duration,
    /// A leader that could not renew for this long stops.
    pub give_up: Duration,
    /// Between tries, to renew or to take over.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            give_up: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// Whether this replica leads.
#[derive(Clone, Debug)]
pub struct Leadership(watch::Receiver<bool>);

impl Leadership {
    /// Whether it does now.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        *self.0.borrow()
    }

    /// Runs what `work` makes whenever this replica leads, and drops it when it no longer does. Ends at `shutdown`.
    pub async fn while_leading<F: Future<Output = ()>>(mut self, shutdown: CancellationToken, work: impl Fn() -> F) {
        let rounds = async {
            while self.0.wait_for(|leads| *leads).await.is_ok() {
                let mut lost = self.0.clone();
                tokio::select! {
                    () = work() => {}
                    _ = lost.wait_for(|leads| !leads) => {}
                }
            }
        };
        shutdown.run_until_cancelled(rounds).await;
    }
}

/// Takes part in the election.
pub struct Elector {
    leases: Api<Lease>,
    holder: String,
    timing: Timing,
    leads: watch::Sender<bool>,
}

#[derive(Debug)]
enum State {
    /// Somebody else leads, or nobody. What its Lease looked like, and since when.
    Follow(Option<(String, Instant)>),
    /// This replica leads, and has renewed at that time.
    Lead(Instant),
}

impl Elector {
    /// For a replica of that name; it takes part from [`Self::run`] on.
    #[must_use]
    pub fn new(client: Client, namespace: &str, holder: &str, timing: Timing) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            holder: holder.to_owned(),
            timing,
            leads: watch::Sender::new(false),
        }
    }

    /// Follows the outcome.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        Leadership(self.leads.subscribe())
    }

    /// Takes part until `shutdown`, then hands over at once.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut state = State::Follow(None);
        loop {
            let Some(next) = shutdown.run_until_cancelled(self.step(state)).await else {
                break;
            };
            state = next;
            self.show(&state);
            let pause = self.timing.retry.mul_f64(0.9 + 0.2 * fastrand::f64());
            if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                break;
            }
        }
        if self.leads.send_replace(false)
            && let Err(error) = self.release().await
        {
            tracing::warn!("{error}; another replica takes over after {:?}", self.timing.lease);
        }
    }

    fn show(&self, state: &State) {
        let leads = matches!(state, State::Lead(_));
        if self.leads.send_replace(leads) != leads {
            metrics::gauge!("mesh_control_leader").set(if leads { 1.0 } else { 0.0 });
            metrics::counter!("mesh_control_leader_changes_total").increment(1);
            tracing::info!(
                "{} {}",
                self.holder,
                if leads { "leads now" } else { "no longer leads" }
            );
        }
    }

    async fn step(&self, state: State) -> State {
        match state {
            State::Follow(seen) => match self.follow(seen).await {
                Ok(state) => state,
                Err(error) => {
                    tracing::warn!("{error}");
                    // Who cannot see the Lease has not seen its holder silent either.
                    State::Follow(None)
                }
            },
            State::Lead(renewed) => {
                let left = (renewed + self.timing.give_up).saturating_duration_since(Instant::now());
                let started = Instant::now();
                match tokio::time::timeout(left, self.renew()).await {
                    Ok(Ok(true)) => State::Lead(started),
                    Ok(Ok(false)) => State::Follow(None),
                    Ok(Err(error)) if renewed.elapsed() + self.timing.retry < self.timing.give_up => {
                        tracing::warn!("{error}");
                        State::Lead(renewed)
                    }
                    Ok(Err(error)) => {
                        tracing::warn!("{error}");
                        State::Follow(None)
                    }
                    Err(_) => {
                        tracing::warn!("renewing Lease {LEASE}: no answer in time");
                        State::Follow(None)
                    }
                }
            }
        }
    }

    async fn follow(&self, seen: Option<(String, Instant)>) -> Result<State, CallError> {
        let started = Instant::now();
        let Some(lease) = self.read().await? else {
            let lease = self.lease(None);
            let what = || format!("creating Lease {LEASE}");
            return match call(what, self.leases.create(&params(), &lease)).await {
                Ok(_) => Ok(State::Lead(started)),
                Err(error) if error.already_exists() => Ok(State::Follow(None)),
                Err(error) => Err(error),
            };
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        let lasts = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok());
        let lasts = lasts.map_or(self.timing.lease, Duration::from_secs);
        let since = match seen {
            Some((known, since)) if known == version => since,
            _ => Instant::now(),
        };
        // A former self of this name is no more: there is one process of a name at a time.
        let free = holder.is_empty() || holder == self.holder || since.elapsed() >= lasts;
        if !free {
            return Ok(State::Follow(Some((version, since))));
        }
        Ok(match self.replace(self.lease(Some(lease))).await? {
            true => State::Lead(started),
            false => State::Follow(None),
        })
    }

    /// Whether this replica still holds the Lease.
    async fn renew(&self) -> Result<bool, CallError> {
        let Some(lease) = self.read().await? else {
            return Ok(false);
        };
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        if holder != Some(&self.holder) {
            return Ok(false);
        }
        self.replace(self.lease(Some(lease))).await
    }

    async fn release(&self) -> Result<(), CallError> {
        let Some(mut lease) = self.read().await? else {
            return Ok(());
        };
        let Some(spec) = lease
            .spec
            .as_mut()
            .filter(|spec| spec.holder_identity.as_ref() == Some(&self.holder))
        else {
            return Ok(());
        };
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        self.replace(lease).await.map(|_| ())
    }

    async fn read(&self) -> Result<Option<Lease>, CallError> {
        call(|| format!("reading Lease {LEASE}"), self.leases.get_opt(LEASE)).await
    }

    /// Whether it was as we knew it; else somebody was faster.
    async fn replace(&self, lease: Lease) -> Result<bool, CallError> {
        let what = || format!("updating Lease {LEASE}");
        match call(what, self.leases.replace(LEASE, &params(), &lease)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_conflict() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The Lease as this replica holds it, made from what it was.
    fn lease(&self, before: Option<Lease>) -> Lease {
        let now = Some(MicroTime(Timestamp::now()));
        let mut lease = before.unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(LEASE.to_owned()),
                labels: Some(labels()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        let mut spec = lease.spec.take().unwrap_or_default();
        if spec.holder_identity.as_ref() != Some(&self.holder) {
            spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |count| count.saturating_add(1)));
            spec.acquire_time = now.clone();
        }
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: Some(i32::try_from(self.timing.lease.as_secs()).unwrap_or(i32::MAX)),
            renew_time: now,
            ..spec
        });
        lease
    }
}

fn params() -> PostParams {
    PostParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PostParams::default()
    }
}

#[cfg(test)]
mod tests;
