//! Names: resolved, refreshed, remembered, forgotten.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};

use mesh_api::model::{self, EndpointAddress};

use super::*;
use crate::upstream::testing::{endpoint, model, slice, until};
use crate::upstream::{NoEndpoint, Upstreams};

#[derive(Clone, Default)]
struct Fake(Arc<Answers>);

#[derive(Default)]
struct Answers {
    answers: Mutex<Vec<IpAddr>>,
    asked: AtomicUsize,
}

impl Fake {
    fn answer(&self, last: &[u8]) {
        *self.0.answers.lock().unwrap() = last.iter().map(|last| ip(*last)).collect();
    }

    fn asked(&self) -> usize {
        self.0.asked.load(Ordering::SeqCst)
    }
}

impl Lookup for Fake {
    async fn lookup(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        assert_eq!(name, "reviews.example");
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        let answers = self.0.answers.lock().unwrap().clone();
        if answers.is_empty() {
            Err(io::ErrorKind::NotFound.into())
        } else {
            Ok(answers)
        }
    }
}

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

fn named(address: EndpointAddress) -> model::Endpoint {
    model::Endpoint {
        address,
        ..endpoint((ip(1), 80).into())
    }
}

fn addresses(cluster: &Cluster) -> Vec<IpAddr> {
    cluster
        .endpoints()
        .iter()
        .map(|endpoint| endpoint.address.ip())
        .collect()
}

#[tokio::test]
async fn every_address_or_one_at_a_time() {
    for (address, expected) in [
        (EndpointAddress::Name("reviews.example".into()), &[ip(2), ip(3)][..]),
        (EndpointAddress::NameRoundRobin("reviews.example".into()), &[ip(3)]),
        (EndpointAddress::Name("127.0.0.9".into()), &[ip(9)]),
    ] {
        let upstreams = Upstreams::new();
        let fake = Fake::default();
        fake.answer(&[3, 2]);
        let resolver = tokio::spawn(upstreams.clone().resolve_names(fake));
        let cluster = upstreams.cluster(Arc::new(model()), &[slice([named(address)])]);
        cluster.resolved(Duration::from_secs(10)).await;
        assert_eq!(addresses(&cluster), expected);
        resolver.abort();
    }
}

#[tokio::test]
async fn a_name_without_an_answer_is_said_to_be_so() {
    let upstreams = Upstreams::new();
    let resolver = tokio::spawn(upstreams.clone().resolve_names(Fake::default()));
    let name = EndpointAddress::Name("reviews.example".into());
    let cluster = upstreams.cluster(Arc::new(model()), &[slice([named(name)])]);
    cluster.resolved(Duration::from_millis(10)).await;
    assert_eq!(cluster.pick(None, &[]).unwrap_err(), NoEndpoint::Unresolved);
    resolver.abort();
}

/// Refreshing, without waiting for it: what is due is made due.
#[tokio::test]
async fn the_last_good_answer_stays_until_there_is_another() {
    let upstreams = Upstreams::new();
    let fake = Fake::default();
    fake.answer(&[2]);
    let name: Arc<str> = "reviews.example".into();
    let cluster = upstreams.cluster(
        Arc::new(model()),
        &[slice([named(EndpointAddress::Name(name.clone()))])],
    );
    let resolver = tokio::spawn(upstreams.clone().resolve_names(fake.clone()));
    cluster.resolved(Duration::from_secs(10)).await;
    let state = Arc::clone(&cluster.endpoints()[0].state);
    let next_due = || {
        upstreams.names.known.lock().unwrap()[&name]
            .due
            .duration_since(Instant::now())
    };
    assert!(next_due() > Duration::from_secs(55));

    for (answer, expected, due) in [
        (&[][..], &[ip(2)][..], 5),
        (&[2, 4], &[ip(2), ip(4)], 60),
        (&[4], &[ip(4)], 60),
    ] {
        fake.answer(answer);
        let asked = fake.asked();
        upstreams.names.known.lock().unwrap().get_mut(&name).unwrap().due = Instant::now();
        upstreams.names.asked.notify_one();
        until("it was asked for", || fake.asked() == asked + 1).await;
        until("the answer is in use", || addresses(&cluster) == expected).await;
        until("the next time is set", || {
            !upstreams.names.known.lock().unwrap()[&name].resolving
        })
        .await;
        assert!(next_due() <= Duration::from_secs(due) && next_due() > Duration::from_secs(due - 4));
        if expected.contains(&ip(2)) {
            assert!(Arc::ptr_eq(&state, &cluster.endpoints()[0].state));
        }
    }

    drop(cluster);
    upstreams.names.asked.notify_one();
    until("it is forgotten", || upstreams.names.known.lock().unwrap().is_empty()).await;
    resolver.abort();
}
