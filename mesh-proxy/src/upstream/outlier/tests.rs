//! Outlier detection: what counts, who is ejected, for how long.

use mesh_api::model;

use super::*;
use crate::upstream::testing::{addresses, endpoint, model, slice};
use crate::upstream::{Cluster, NoEndpoint, Upstreams};

fn rules() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: Some(3),
        consecutive_gateway_errors: None,
        consecutive_local_origin_failures: None,
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_percent: 100,
    }
}

struct Mesh {
    upstreams: Arc<Upstreams>,
    clock: Clock,
    model: model::Cluster,
    cluster: Arc<Cluster>,
}

impl Mesh {
    fn new(rules: OutlierDetection, endpoints: u16) -> Self {
        let clock = Clock::manual();
        let upstreams = Upstreams::with_clock(clock.clone());
        let mut model = model();
        model.outlier = Some(rules);
        let slice = slice(addresses(endpoints).into_iter().map(endpoint));
        let cluster = upstreams.cluster(Arc::new(model.clone()), &[slice]);
        Self {
            upstreams,
            clock,
            model,
            cluster,
        }
    }

    fn endpoint(&self, index: usize) -> Arc<Endpoint> {
        Arc::clone(&self.cluster.endpoints()[index])
    }

    fn report(&self, index: usize, outcomes: &[Outcome]) {
        for outcome in outcomes {
            self.cluster.report(&self.endpoint(index), *outcome);
        }
    }

    fn is_ejected(&self, index: usize) -> bool {
        self.cluster.is_ejected(&self.endpoint(index))
    }

    fn wait(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }
}

#[test]
fn what_ejects() {
    use Outcome::{ConnectFailure, Reset, Status, Timeout};
    let gateway = OutlierDetection {
        consecutive_5xx: None,
        consecutive_gateway_errors: Some(3),
        ..rules()
    };
    let split = OutlierDetection {
        consecutive_local_origin_failures: Some(3),
        ..rules()
    };
    let none = OutlierDetection {
        consecutive_5xx: None,
        ..rules()
    };
    let (bad, good) = (Status(500), Status(200));
    for (rules, outcomes, ejected) in [
        (rules(), &[bad, bad][..], false),
        (rules(), &[bad, bad, bad], true),
        (rules(), &[bad, bad, good, bad, bad], false),
        (rules(), &[bad, Status(404), bad, bad], false),
        (rules(), &[Status(503), Status(599), bad], true),
        (rules(), &[Status(600), Status(499), Status(302)], false),
        // Local failures are as 5xx unless they are split off.
        (rules(), &[ConnectFailure, Timeout, Reset], true),
        (rules(), &[ConnectFailure, bad, Timeout], true),
        (split.clone(), &[ConnectFailure, Timeout, Reset], true),
        (split.clone(), &[ConnectFailure, Timeout, bad, Reset], false),
        (split.clone(), &[bad, ConnectFailure, bad, ConnectFailure, bad], true),
        (split, &[ConnectFailure, Timeout, good, Reset], false),
        (gateway.clone(), &[Status(502), Status(503), Status(504)], true),
        (gateway.clone(), &[Status(502), bad, Status(503), Status(504)], false),
        (gateway, &[bad, bad, bad, bad], false),
        (none, &[bad, Status(503), bad, bad, bad, bad], false),
    ] {
        let mesh = Mesh::new(rules.clone(), 2);
        mesh.report(0, outcomes);
        assert_eq!(mesh.is_ejected(0), ejected, "{rules:?} {outcomes:?}");
        assert!(!mesh.is_ejected(1));
    }
}

#[test]
fn ejections_last_longer_each_time_and_fade() {
    let mesh = Mesh::new(rules(), 2);
    let bad = [Outcome::Status(500); 3];
    for times in 1..=4 {
        mesh.report(0, &bad);
        assert!(mesh.is_ejected(0));
        mesh.wait(30 * times - 1);
        assert!(mesh.is_ejected(0), "{times}");
        mesh.wait(1);
        assert!(!mesh.is_ejected(0), "{times}");
        assert_eq!(mesh.endpoint(0).state.ejections(), times);
    }
    // Two good intervals later it is as if it had been ejected twice less.
    mesh.wait(20);
    mesh.report(0, &bad);
    mesh.wait(30 * 3 - 1);
    assert!(mesh.is_ejected(0));
    mesh.wait(1);
    assert!(!mesh.is_ejected(0));
    // And after many, as new.
    mesh.wait(1000);
    mesh.report(0, &bad);
    mesh.wait(30);
    assert!(!mesh.is_ejected(0));
    // Never longer than five minutes.
    for _ in 0..20 {
        mesh.report(0, &bad);
        mesh.wait(300);
        assert!(!mesh.is_ejected(0));
    }
}

#[test]
fn failures_while_ejected_change_nothing() {
    let mesh = Mesh::new(rules(), 2);
    mesh.report(0, &[Outcome::Status(500); 3]);
    mesh.wait(20);
    mesh.report(0, &[Outcome::Status(500); 6]);
    mesh.wait(10);
    assert!(!mesh.is_ejected(0));
    assert_eq!(mesh.endpoint(0).state.ejections(), 1);
}

#[test]
fn the_share_of_ejected_endpoints_is_kept_but_one_may_always_be() {
    for (percent, endpoints, expected) in [
        (10, 3, 1),
        (0, 3, 1),
        (50, 4, 2),
        (50, 3, 1),
        (100, 3, 3),
        (34, 3, 1),
        (67, 3, 2),
    ] {
        let mesh = Mesh::new(
            OutlierDetection {
                max_ejection_percent: percent,
                ..rules()
            },
            endpoints,
        );
        for index in 0..usize::from(endpoints) {
            mesh.report(index, &[Outcome::Status(500); 3]);
        }
        let ejected = (0..usize::from(endpoints))
            .filter(|index| mesh.is_ejected(*index))
            .count();
        assert_eq!(ejected, expected, "{percent} % of {endpoints}");
    }
}

#[test]
fn nobody_left_is_an_error_until_one_returns() {
    let mesh = Mesh::new(rules(), 2);
    for index in 0..2 {
        mesh.report(index, &[Outcome::ConnectFailure; 3]);
    }
    assert_eq!(mesh.cluster.pick(None, &[]).unwrap_err(), NoEndpoint::Ejected);
    mesh.wait(30);
    assert!(mesh.cluster.pick(None, &[]).is_ok());
}

/// A push does not bring an endpoint back: neither of the same endpoints, nor of fewer, nor of another policy.
#[test]
fn no_push_brings_an_endpoint_back() {
    let mesh = Mesh::new(rules(), 3);
    mesh.report(0, &[Outcome::Status(500); 3]);
    let bad = addresses(1)[0];
    let all = || slice(addresses(3).into_iter().map(endpoint));
    let ejected = |cluster: &Cluster| {
        let endpoints = cluster.endpoints();
        let endpoint = endpoints.iter().find(|endpoint| endpoint.address == bad).unwrap();
        cluster.is_ejected(endpoint)
    };

    mesh.cluster.set_endpoints(&[all()]);
    assert!(ejected(&mesh.cluster), "the same again");

    mesh.cluster
        .set_endpoints(&[slice(addresses(2).into_iter().map(|address| model::Endpoint {
            weight: 7,
            ..endpoint(address)
        }))]);
    assert!(ejected(&mesh.cluster), "other facts");

    mesh.cluster.set_endpoints(&[]);
    mesh.cluster.set_endpoints(&[all()]);
    assert!(ejected(&mesh.cluster), "gone and back");

    let mut other = mesh.model.clone();
    other.pool.max_connections = 5;
    let other = mesh.upstreams.cluster(Arc::new(other), &[all()]);
    assert!(ejected(&other), "another policy");

    let mut subset = mesh.model.clone();
    subset.subset = Some("v1".into());
    let subset = mesh.upstreams.cluster(Arc::new(subset), &[all()]);
    assert!(ejected(&subset), "a subset of the same service");

    let mut off = mesh.model.clone();
    off.outlier = None;
    let off = mesh.upstreams.cluster(Arc::new(off), &[all()]);
    assert!(!ejected(&off), "nobody asks for it any more");

    mesh.wait(30);
    assert!(!ejected(&other), "its time is over");
}
