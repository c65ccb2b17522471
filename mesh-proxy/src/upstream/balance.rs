//! The choice of one endpoint among a cluster's.
//!
//! What can be prepared is prepared when endpoints change: cumulated weights, the order of round robin, the hash ring. A
//! choice then reads atomics and draws random numbers; it locks and allocates nothing. Endpoints that are ejected or were
//! tried before are rare, so choices are made first and checked after.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mesh_api::model::Balancer;
use smallvec::SmallVec;

use super::clock::Clock;
use super::cluster::NoEndpoint;
use super::endpoint::Endpoint;
use super::ring::Ring;

/// Draws before all endpoints are looked at one by one.
const DRAWS: usize = 3;

/// Longest order of weighted round robin, unless there are more endpoints; weights are scaled to fit.
const SCHEDULE_MOST: u64 = 4096;

/// The endpoints that are ready, with what their balancer prepared.
#[derive(Debug)]
pub(super) struct EndpointSet {
    endpoints: Vec<Arc<Endpoint>>,
    why_none: NoEndpoint,
    /// Running totals of weights; `None` when all are equal.
    weights: Option<Vec<u64>>,
    plan: Plan,
}

#[derive(Debug)]
enum Plan {
    LeastRequest,
    Random,
    RoundRobin(Vec<u32>),
    Ring(Ring),
}

impl EndpointSet {
    pub(super) fn new(endpoints: Vec<Arc<Endpoint>>, why_none: NoEndpoint, balancer: &Balancer) -> Self {
        let equal = endpoints.windows(2).all(|pair| pair[0].weight() == pair[1].weight());
        let weights = (!equal).then(|| {
            let mut total = 0;
            let add = |endpoint: &Arc<Endpoint>| {
                total += u64::from(endpoint.weight());
                total
            };
            endpoints.iter().map(add).collect()
        });
        let plan = match balancer {
            Balancer::LeastRequest => Plan::LeastRequest,
            Balancer::Random => Plan::Random,
            Balancer::RoundRobin => {
                let weights: Vec<u32> = endpoints.iter().map(|endpoint| endpoint.weight()).collect();
                Plan::RoundRobin(smooth_order(&weights))
            }
            Balancer::RingHash { minimum_ring_size, .. } => {
                let members: Vec<_> = endpoints
                    .iter()
                    .map(|endpoint| (endpoint.address, endpoint.weight()))
                    .collect();
                Plan::Ring(Ring::new(&members, *minimum_ring_size))
            }
        };
        for endpoint in &endpoints {
            endpoint.state.join();
        }
        Self {
            endpoints,
            why_none,
            weights,
            plan,
        }
    }

    pub(super) fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    pub(super) fn is_unresolved(&self) -> bool {
        self.endpoints.is_empty() && self.why_none == NoEndpoint::Unresolved
    }

    pub(super) fn pick(
        &self,
        hash: Option<u64>,
        tried: &[Arc<Endpoint>],
        cursor: &AtomicUsize,
        ejections: Option<&Clock>,
    ) -> Result<Arc<Endpoint>, NoEndpoint> {
        if self.endpoints.is_empty() {
            return Err(self.why_none);
        }
        let healthy =
            |endpoint: &Arc<Endpoint>| !ejections.is_some_and(|clock| endpoint.state.health.is_ejected(clock));
        let fresh = |endpoint: &Arc<Endpoint>| {
            healthy(endpoint) && !tried.iter().any(|other| Arc::ptr_eq(&other.state, &endpoint.state))
        };
        let index = self.choose(hash, cursor, fresh).or_else(|| {
            // A retry prefers other endpoints, but not to none.
            let again = !tried.is_empty();
            again.then(|| self.choose(hash, cursor, healthy)).flatten()
        });
        index
            .and_then(|index| self.endpoints.get(index))
            .map(Arc::clone)
            .ok_or(NoEndpoint::Ejected)
    }

    fn choose(
        &self,
        hash: Option<u64>,
        cursor: &AtomicUsize,
        allowed: impl Fn(&Arc<Endpoint>) -> bool,
    ) -> Option<usize> {
        let allowed = |index: usize| self.endpoints.get(index).is_some_and(&allowed);
        match &self.plan {
            Plan::LeastRequest => self.least_request(allowed),
            Plan::Random => self.random(allowed),
            Plan::RoundRobin(order) => {
                // Who cannot be chosen loses the turn; the next in order must not have two.
                let turn = |_| order[cursor.fetch_add(1, Ordering::Relaxed) % order.len()] as usize;
                (0..order.len()).map(turn).find(|&index| allowed(index))
            }
            Plan::Ring(ring) => ring.find(hash.unwrap_or_else(|| fastrand::u64(..)), allowed),
        }
    }

    fn least_request(&self, allowed: impl Fn(usize) -> bool) -> Option<usize> {
        let count = self.endpoints.len();
        if count == 1 {
            return allowed(0).then_some(0);
        }
        for _ in 0..DRAWS {
            let first = self.draw();
            let second = self.draw_other(first);
            match (allowed(first), allowed(second)) {
                (true, true) => return Some(self.less_loaded(first, second)),
                (true, false) => return Some(first),
                (false, true) => return Some(second),
                (false, false) => {}
            }
        }
        let candidates = self.candidates(allowed);
        let first = self.draw_of(&candidates)?;
        let second = self.draw_of(&candidates)?;
        Some(self.less_loaded(first, second))
    }

    fn random(&self, allowed: impl Fn(usize) -> bool) -> Option<usize> {
        for _ in 0..DRAWS {
            let index = self.draw();
            if allowed(index) {
                return Some(index);
            }
        }
        self.draw_of(&self.candidates(allowed))
    }

    fn candidates(&self, allowed: impl Fn(usize) -> bool) -> SmallVec<[usize; 64]> {
        (0..self.endpoints.len()).filter(|&index| allowed(index)).collect()
    }

    /// Any endpoint, by weight.
    fn draw(&self) -> usize {
        match &self.weights {
            None => fastrand::usize(..self.endpoints.len()),
            Some(totals) => {
                let drawn = fastrand::u64(..totals.last().copied().unwrap_or(1));
                totals.partition_point(|&total| total <= drawn)
            }
        }
    }

    /// Another one than `first`.
    fn draw_other(&self, first: usize) -> usize {
        if self.weights.is_some() {
            for _ in 0..DRAWS {
                let other = self.draw();
                if other != first {
                    return other;
                }
            }
        }
        let other = fastrand::usize(..self.endpoints.len() - 1);
        if other < first { other } else { other + 1 }
    }

    fn draw_of(&self, candidates: &[usize]) -> Option<usize> {
        let weight = |index: &usize| u64::from(self.endpoints[*index].weight());
        let total: u64 = candidates.iter().map(weight).sum();
        if total == 0 {
            return None;
        }
        let mut drawn = fastrand::u64(..total);
        candidates.iter().copied().find(|index| {
            let inside = drawn < weight(index);
            drawn = drawn.saturating_sub(weight(index));
            inside
        })
    }

    /// The one with less in flight for its weight; the first when they are equal, so that weights count without load.
    fn less_loaded(&self, first: usize, second: usize) -> usize {
        let (a, b) = (&self.endpoints[first], &self.endpoints[second]);
        let load = |endpoint: &Endpoint| u64::from(endpoint.state.in_flight());
        if load(b) * u64::from(a.weight()) < load(a) * u64::from(b.weight()) {
            second
        } else {
            first
        }
    }
}

impl Drop for EndpointSet {
    fn drop(&mut self) {
        for endpoint in &self.endpoints {
            endpoint.state.leave();
        }
    }
}

/// Indexes in an order in which each comes as often as its weight says, as evenly spread as can be.
fn smooth_order(weights: &[u32]) -> Vec<u32> {
    let divisor = weights.iter().copied().reduce(gcd).unwrap_or(1).max(1);
    let total: u64 = weights.iter().map(|&weight| u64::from(weight / divisor)).sum();
    let most = SCHEDULE_MOST.max(weights.len() as u64);
    let turns: Vec<i64> = weights
        .iter()
        .map(|&weight| {
            let turns = u64::from(weight / divisor);
            let scaled = if total > most { turns * most / total } else { turns };
            i64::try_from(scaled.max(1)).unwrap_or(1)
        })
        .collect();
    let length: i64 = turns.iter().sum();
    if turns.iter().all(|&turn| turn == 1) {
        return (0..u32::try_from(weights.len()).unwrap_or(u32::MAX)).collect();
    }
    // nginx's smooth weighted round robin: everybody earns its weight each turn, the richest pays the total.
    let mut credit = vec![0_i64; turns.len()];
    let mut order = Vec::new();
    for _ in 0..length {
        let mut richest = 0;
        for (index, turn) in turns.iter().enumerate() {
            credit[index] += turn;
            if credit[index] > credit[richest] {
                richest = index;
            }
        }
        credit[richest] -= length;
        order.push(u32::try_from(richest).unwrap_or(0));
    }
    order
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
