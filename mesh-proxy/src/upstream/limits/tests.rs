//! The line for connections, step by step.

use super::*;
use crate::upstream::Upstreams;
use crate::upstream::endpoint::PoolProtocol;
use crate::upstream::testing::{addresses, endpoint, model, slice};

/// A cluster with `most` connections, and the keys of two endpoints.
fn line(most: u32) -> (Arc<ClusterState>, [PoolKey; 2]) {
    let mut model = model();
    model.pool.max_connections = most;
    model.pool.max_pending_requests = 1000;
    let slice = slice(addresses(2).into_iter().map(endpoint));
    let cluster = Upstreams::new().cluster(Arc::new(model), &[slice]);
    let key = |index: usize| cluster.endpoints()[index].key(PoolProtocol::Http1);
    (Arc::clone(&cluster.state), [key(0), key(1)])
}

fn slot(waiter: &mut Waiter) -> Option<ConnectionPermit> {
    match waiter.receiver.try_recv() {
        Ok(Grant::Slot(permit)) => Some(permit),
        _ => None,
    }
}

#[test]
fn a_connection_freed_just_before_one_gets_in_line_is_not_missed() {
    let (state, [key, _]) = line(1);
    let taken = state.try_connection().unwrap();
    assert!(state.try_connection().is_none());
    drop(taken);
    let mut waiter = state.wait_in_line(1, key).unwrap();
    assert!(slot(&mut waiter).is_some());
    assert_eq!(state.pending_requests(), 0);
}

#[test]
fn slots_go_out_in_order_and_nobody_passes_the_line() {
    let (state, [key, other]) = line(1);
    let taken = state.try_connection().unwrap();
    let mut first = state.wait_in_line(1, key).unwrap();
    let mut second = state.wait_in_line(2, other).unwrap();
    drop(taken);
    assert!(state.try_connection().is_none());
    assert!(slot(&mut second).is_none());
    let permit = slot(&mut first).unwrap();
    assert!(slot(&mut second).is_none());
    drop(permit);
    assert!(slot(&mut second).is_some());
    assert_eq!((state.connections(), state.pending_requests()), (0, 0));
}

#[test]
fn what_a_waiter_got_that_gave_up_goes_to_the_next() {
    let (state, [key, _]) = line(1);
    let taken = state.try_connection().unwrap();
    let first = state.wait_in_line(1, key).unwrap();
    let second = state.wait_in_line(1, key).unwrap();
    let mut third = state.wait_in_line(1, key).unwrap();
    drop(second);
    drop(taken);
    assert!(slot(&mut third).is_none(), "granted to the first, who did not look yet");
    drop(first);
    assert!(slot(&mut third).is_some());
}

#[test]
fn a_free_connection_serves_its_own_worker_and_makes_way_for_others() {
    let (state, [key, other]) = line(1);
    let _taken = state.try_connection().unwrap();
    assert_eq!(state.connection_is_free(1, key), Freed::KeepIdle);
    let elsewhere = state.wait_in_line(2, key).unwrap();
    let here = state.wait_in_line(1, key).unwrap();
    assert_eq!(state.connection_is_free(1, key), Freed::Serve(here.ticket()));
    assert_eq!(state.connection_is_free(1, key), Freed::Close, "another worker");
    drop(elsewhere);
    let _other_endpoint = state.wait_in_line(1, other).unwrap();
    assert_eq!(state.connection_is_free(1, key), Freed::Close, "another endpoint");
}

#[test]
fn the_head_of_the_line_is_passed_a_bounded_number_of_times() {
    let (state, [key, _]) = line(1);
    let _taken = state.try_connection().unwrap();
    let _head = state.wait_in_line(2, key).unwrap();
    let _local: Vec<_> = (0..=OVERTAKEN_MOST)
        .map(|_| state.wait_in_line(1, key).unwrap())
        .collect();
    for _ in 0..OVERTAKEN_MOST {
        assert!(matches!(state.connection_is_free(1, key), Freed::Serve(_)));
    }
    assert_eq!(state.connection_is_free(1, key), Freed::Close);
}

#[test]
fn one_idle_connection_is_asked_for_each_who_waits() {
    let (state, [key, _]) = line(1);
    let _taken = state.try_connection().unwrap();
    assert!(!state.wants_idle_connection());
    let _waiters = [state.wait_in_line(1, key).unwrap(), state.wait_in_line(2, key).unwrap()];
    assert!(state.wants_idle_connection() && state.wants_idle_connection());
    assert!(!state.wants_idle_connection());
}
