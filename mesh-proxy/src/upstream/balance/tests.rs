//! Balancers: shares, and who is avoided.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_api::model::{self, Balancer, HashKey, HashPolicy};
use proptest::prelude::*;

use super::*;
use crate::upstream::endpoint::InFlight;
use crate::upstream::testing::{addresses, endpoint, model, slice};
use crate::upstream::{Clock, Cluster, Outcome, Upstreams};

fn ring_hash() -> Balancer {
    Balancer::RingHash {
        hash: HashPolicy { key: HashKey::SourceIp },
        minimum_ring_size: 1024,
    }
}

fn all_balancers() -> [Balancer; 4] {
    [
        Balancer::LeastRequest,
        Balancer::RoundRobin,
        Balancer::Random,
        ring_hash(),
    ]
}

fn cluster(balancer: Balancer, weights: &[u32]) -> (Arc<Upstreams>, Arc<Cluster>) {
    let upstreams = Upstreams::with_clock(Clock::manual());
    let mut model = model();
    model.balancer = balancer;
    model.outlier = Some(model::OutlierDetection {
        consecutive_5xx: Some(1),
        consecutive_gateway_errors: None,
        consecutive_local_origin_failures: None,
        interval: std::time::Duration::from_secs(10),
        base_ejection_time: std::time::Duration::from_secs(30),
        max_ejection_percent: 100,
    });
    let count = u16::try_from(weights.len()).unwrap();
    let endpoints = addresses(count)
        .into_iter()
        .zip(weights)
        .map(|(address, &weight)| model::Endpoint {
            weight,
            ..endpoint(address)
        });
    let cluster = upstreams.cluster(Arc::new(model), &[slice(endpoints)]);
    (upstreams, cluster)
}

/// Shares of many choices, by endpoint.
fn shares(cluster: &Cluster, draws: u32, tried: &[Arc<Endpoint>]) -> Vec<f64> {
    let mut counts: HashMap<SocketAddr, u32> = HashMap::new();
    for _ in 0..draws {
        *counts.entry(cluster.pick(None, tried).unwrap().address).or_default() += 1;
    }
    let share =
        |endpoint: &Arc<Endpoint>| f64::from(counts.get(&endpoint.address).copied().unwrap_or(0)) / f64::from(draws);
    cluster.endpoints().iter().map(share).collect()
}

fn close(left: &[f64], right: &[f64], tolerance: f64) -> bool {
    left.iter()
        .zip(right)
        .all(|(left, right)| (left - right).abs() <= tolerance)
}

#[test]
fn round_robin_shares_an_ejected_ones_turns_among_all() {
    let (_upstreams, cluster) = cluster(Balancer::RoundRobin, &[1, 1, 1]);
    let first = cluster.endpoints()[0].clone();
    cluster.report(&first, Outcome::Status(500));
    let shares = shares(&cluster, 3000, &[]);
    assert!(close(&shares, &[0.0, 0.5, 0.5], 0.01), "{shares:?}");
}

#[test]
fn shares_follow_weights() {
    fastrand::seed(7);
    for balancer in all_balancers() {
        for (weights, expected) in [
            (&[1, 1, 1, 1][..], &[0.25, 0.25, 0.25, 0.25][..]),
            (&[1, 2, 5], &[0.125, 0.25, 0.625]),
            (&[300, 100], &[0.75, 0.25]),
            (&[9], &[1.0]),
        ] {
            // Points of a ring are placed by hash: they are as even as hashes are.
            let tolerance = if balancer == ring_hash() { 0.08 } else { 0.02 };
            let (_upstreams, cluster) = cluster(balancer.clone(), weights);
            let shares = shares(&cluster, 20_000, &[]);
            assert!(
                close(&shares, expected, tolerance),
                "{balancer:?} {weights:?}: {shares:?}"
            );
        }
    }
}

#[test]
fn round_robin_is_exact_and_goes_on_after_a_push() {
    let (_upstreams, cluster) = cluster(Balancer::RoundRobin, &[1, 1, 2]);
    let endpoints = cluster.endpoints();
    let ports: Vec<u16> = (0..8)
        .map(|_| cluster.pick(None, &[]).unwrap().facts.port - 1000)
        .collect();
    assert_eq!(ports, [2, 0, 1, 2, 2, 0, 1, 2], "evenly spread");
    cluster.pick(None, &[]).unwrap();
    cluster.set_endpoints(&[slice(endpoints.iter().map(|endpoint| endpoint.facts.clone()))]);
    assert_eq!(
        cluster.pick(None, &[]).unwrap().facts.port,
        1000,
        "not from the start again"
    );
}

#[test]
fn the_less_loaded_of_two_is_taken() {
    fastrand::seed(7);
    let (_upstreams, cluster) = cluster(Balancer::LeastRequest, &[1, 1, 1]);
    let endpoints = cluster.endpoints();
    let _busy: Vec<_> = (0..10).map(|_| InFlight::new(&endpoints[1])).collect();
    let shares = shares(&cluster, 10_000, &[]);
    assert!(close(&shares, &[0.5, 0.0, 0.5], 0.02), "{shares:?}");
}

#[test]
fn load_is_seen_in_proportion_to_weight() {
    fastrand::seed(7);
    let (_upstreams, cluster) = cluster(Balancer::LeastRequest, &[3, 1]);
    let endpoints = cluster.endpoints();
    let mut held = Vec::new();
    for _ in 0..400 {
        held.push(InFlight::new(&cluster.pick(None, &[]).unwrap()));
    }
    let load = |index: usize| endpoints[index].state.in_flight();
    assert!((285..=315).contains(&load(0)), "{} and {}", load(0), load(1));
    drop(held);
    assert_eq!((load(0), load(1)), (0, 0));
}

#[test]
fn tried_and_ejected_endpoints_are_avoided() {
    fastrand::seed(7);
    for balancer in all_balancers() {
        let (_upstreams, cluster) = cluster(balancer.clone(), &[1, 1, 1, 1]);
        let endpoints = cluster.endpoints();
        cluster.report(&endpoints[0], Outcome::Status(500));
        let shares = shares(&cluster, 2_000, &endpoints[1..2]);
        assert_eq!(shares[..2], [0.0, 0.0], "{balancer:?}");
        assert!(shares[2] > 0.2 && shares[3] > 0.2, "{balancer:?} {shares:?}");

        // All that are healthy were tried: again rather than not at all.
        let again = cluster.pick(None, &endpoints).unwrap();
        assert!(!Arc::ptr_eq(&again, &endpoints[0]), "{balancer:?}");

        for endpoint in &endpoints {
            cluster.report(endpoint, Outcome::Status(500));
        }
        assert_eq!(
            cluster.pick(None, &[]).unwrap_err(),
            NoEndpoint::Ejected,
            "{balancer:?}"
        );
    }
}

#[test]
fn a_long_order_is_scaled_and_forgets_nobody() {
    let order = smooth_order(&[1_000_000, 999_999, 1]);
    assert!(order.len() as u64 <= SCHEDULE_MOST + 3, "{}", order.len());
    assert!(order.contains(&2));
    let many = vec![1; 10_000];
    assert_eq!(smooth_order(&many).len(), 10_000);
    assert!(smooth_order(&[]).is_empty());
}

proptest! {
    /// In any run of the whole order each endpoint comes exactly as often as its weight says.
    #[test]
    fn smooth_orders_are_exact(weights in prop::collection::vec(1_u32..40, 1..12)) {
        let order = smooth_order(&weights);
        let divisor = weights.iter().copied().reduce(gcd).unwrap();
        for (index, weight) in weights.iter().enumerate() {
            let count = order.iter().filter(|&&other| other as usize == index).count();
            prop_assert_eq!(count as u32, weight / divisor);
        }
    }

    /// Whoever is ejected or tried, a choice is made among the rest when there is one, as a plain filter would.
    #[test]
    fn choices_are_among_those_left(
        weights in prop::collection::vec(1_u32..5, 1..20),
        ejected in prop::collection::vec(any::<bool>(), 20),
        tried in prop::collection::vec(any::<bool>(), 20),
        hash in any::<Option<u64>>(),
    ) {
        for balancer in all_balancers() {
            let (_upstreams, cluster) = cluster(balancer, &weights);
            let endpoints = cluster.endpoints();
            for (endpoint, ejected) in endpoints.iter().zip(&ejected) {
                if *ejected {
                    cluster.report(endpoint, Outcome::Status(500));
                }
            }
            let healthy: Vec<_> = endpoints.iter().filter(|endpoint| !cluster.is_ejected(endpoint)).collect();
            let tried: Vec<_> = endpoints.iter().zip(&tried).filter(|(_, tried)| **tried).map(|(endpoint, _)| endpoint.clone()).collect();
            let fresh: Vec<_> = healthy.iter().filter(|endpoint| !tried.iter().any(|other| Arc::ptr_eq(other, endpoint))).collect();
            for _ in 0..10 {
                match cluster.pick(hash, &tried) {
                    Ok(picked) if fresh.is_empty() => prop_assert!(healthy.iter().any(|other| Arc::ptr_eq(other, &picked))),
                    Ok(picked) => prop_assert!(fresh.iter().any(|other| Arc::ptr_eq(other, &picked))),
                    Err(_) => prop_assert!(healthy.is_empty()),
                }
            }
        }
    }
}
