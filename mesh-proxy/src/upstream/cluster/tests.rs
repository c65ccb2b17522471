//! Endpoints of a cluster: which there are, and what stays when they are pushed again.

use std::collections::BTreeMap;

use super::*;
use crate::upstream::testing::{addresses, endpoint, model, slice};

fn labelled(address: SocketAddr, labels: &[(&str, &str)]) -> model::Endpoint {
    model::Endpoint {
        workload: Arc::new(model::Workload {
            labels: labels
                .iter()
                .map(|(key, value)| (Arc::from(*key), Arc::from(*value)))
                .collect(),
            ..model::Workload::default()
        }),
        ..endpoint(address)
    }
}

#[test]
fn a_subset_has_the_endpoints_that_its_labels_select() {
    let upstreams = Upstreams::new();
    let at = addresses(4);
    let slices = [
        slice([
            labelled(at[0], &[("version", "v1"), ("app", "reviews")]),
            labelled(at[1], &[("version", "v2")]),
        ]),
        slice([labelled(at[2], &[("version", "v1")]), endpoint(at[3])]),
    ];
    for (selector, expected) in [
        (&[][..], &at[..]),
        (&[("version", "v1")], &[at[0], at[2]]),
        (&[("version", "v1"), ("app", "reviews")], &[at[0]]),
        (&[("version", "v3")], &[]),
    ] {
        let mut model = model();
        model.selector = selector
            .iter()
            .map(|(key, value)| (Arc::from(*key), Arc::from(*value)))
            .collect::<BTreeMap<_, _>>();
        let cluster = upstreams.cluster(Arc::new(model), &slices);
        let addresses: Vec<_> = cluster.endpoints().iter().map(|endpoint| endpoint.address).collect();
        assert_eq!(addresses, expected, "{selector:?}");
        assert_eq!(cluster.pick(None, &[]).is_err(), expected.is_empty());
    }
}

#[test]
fn only_ready_endpoints_are_chosen_and_the_reason_is_said() {
    let upstreams = Upstreams::new();
    let at = addresses(1)[0];
    let with = |health| model::Endpoint { health, ..endpoint(at) };
    for (endpoints, expected) in [
        (vec![], Err(NoEndpoint::Empty)),
        (vec![with(Health::Healthy)], Ok(at)),
        (vec![with(Health::Draining)], Err(NoEndpoint::NotReady)),
        (vec![with(Health::Unhealthy)], Err(NoEndpoint::NotReady)),
    ] {
        let cluster = upstreams.cluster(Arc::new(model()), &[slice(endpoints)]);
        assert_eq!(cluster.pick(None, &[]).map(|endpoint| endpoint.address), expected);
    }
}

#[test]
fn a_push_changes_nothing_for_endpoints_that_it_does_not_concern() {
    let upstreams = Upstreams::new();
    let at = addresses(3);
    let cluster = upstreams.cluster(Arc::new(model()), &[slice([endpoint(at[0]), endpoint(at[1])])]);
    let before = cluster.endpoints();
    before[0].extension(|| Arc::new(7_u32));
    let changed = model::Endpoint {
        weight: 3,
        ..endpoint(at[1])
    };
    cluster.set_endpoints(&[slice([endpoint(at[2])]), slice([changed, endpoint(at[0])])]);
    let after = cluster.endpoints();
    assert!(
        Arc::ptr_eq(&before[0], &after[0]),
        "the same object, with what others keep in it"
    );
    assert_eq!(after[0].extension(|| Arc::new(8_u32)), Some(&7));
    assert_eq!(after[0].extension(|| Arc::new("another type")), None);
    assert!(!Arc::ptr_eq(&before[1], &after[1]) && Arc::ptr_eq(&before[1].state, &after[1].state));
    assert_eq!(after[1].key, before[1].key, "its connections stay in use");
}

#[test]
fn the_same_policy_is_the_same_cluster_and_another_has_its_state() {
    let upstreams = Upstreams::new();
    let first = upstreams.cluster(Arc::new(model()), &[]);
    assert!(Arc::ptr_eq(&first, &upstreams.cluster(Arc::new(model()), &[])));
    let mut changed = model();
    changed.pool.max_requests = 1;
    let second = upstreams.cluster(Arc::new(changed), &[]);
    assert!(!Arc::ptr_eq(&first, &second) && Arc::ptr_eq(&first.state, &second.state));
    let mut other = model();
    other.port = 80;
    assert!(!Arc::ptr_eq(
        &first.state,
        &upstreams.cluster(Arc::new(other), &[]).state
    ));
}

#[test]
fn other_identities_and_other_subsets_have_connections_of_their_own() {
    let upstreams = Upstreams::new();
    let at = addresses(1)[0];
    let mesh = |identity: &str| model::Endpoint {
        mutual_tls: true,
        workload: Arc::new(model::Workload {
            identity: Some(
                format!("spiffe://cluster.local/ns/default/sa/{identity}")
                    .parse()
                    .unwrap(),
            ),
            ..model::Workload::default()
        }),
        ..endpoint(at)
    };
    // What is compared stays alive, as in a pool.
    let mut alive = Vec::new();
    let mut key = |model: model::Cluster, endpoint: model::Endpoint| {
        let cluster = upstreams.cluster(Arc::new(model), &[slice([endpoint])]);
        alive.push(Arc::clone(&cluster.endpoints()[0]));
        cluster.endpoints()[0].key
    };
    let mut subset = model();
    subset.subset = Some("v1".into());
    let mut disabled = model();
    disabled.tls = ClientTls::Disable;
    let keys = [
        key(model(), endpoint(at)),
        key(model(), mesh("a")),
        key(model(), mesh("b")),
        key(subset, mesh("a")),
    ];
    for (index, one) in keys.iter().enumerate() {
        assert!(keys[index + 1..].iter().all(|other| other != one));
    }
    assert_eq!(key(model(), mesh("a")), keys[1]);
    assert_eq!(key(disabled, mesh("a")), keys[0], "plaintext is plaintext");
}

#[test]
fn passthrough_endpoints_are_remembered_up_to_a_bound() {
    let upstreams = Upstreams::new();
    let mut model = model();
    model.endpoints = model::EndpointSource::Passthrough;
    let cluster = upstreams.cluster(Arc::new(model), &[]);
    let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let held = cluster.passthrough_endpoint(at(1)).unwrap();
    assert!(Arc::ptr_eq(&held, &cluster.passthrough_endpoint(at(1)).unwrap()));
    for port in 2..=(PASSTHROUGH_MOST as u16 + 100) {
        assert_eq!(cluster.passthrough_endpoint(at(port)).unwrap().address, at(port));
    }
    assert!(
        Arc::ptr_eq(&held, &cluster.passthrough_endpoint(at(1)).unwrap()),
        "in use: kept"
    );
    assert!(cluster.passthrough.lock().unwrap().len() <= PASSTHROUGH_MOST);
    drop(cluster);
    assert!(held.state.is_gone());
}

#[test]
fn unused_state_is_forgotten() {
    let upstreams = Upstreams::new();
    for port in 0..3000 {
        let mut model = model();
        model.port = port;
        let cluster = upstreams.cluster(Arc::new(model), &[slice(addresses(1).into_iter().map(endpoint))]);
        assert_eq!(cluster.endpoints().len(), 1);
    }
    let (clusters, endpoints) = upstreams.sizes();
    assert!(
        clusters <= 1024 && endpoints <= 1024,
        "{clusters} clusters, {endpoints} endpoints"
    );
}
