//! Limits that hold for the whole proxy, whatever its number of workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Response;
use http_body_util::Full;
use mesh_api::model;
use tokio::sync::watch;

use crate::upstream::testing::{Client, Server, get, model, until, worker};
use crate::upstream::{Overflow, SendErrorKind, UpstreamProto, Upstreams};

/// A server that answers when told.
fn gated() -> (Server, watch::Sender<bool>) {
    gated_as(UpstreamProto::Http1, None)
}

fn gated_as(protocol: UpstreamProto, max_streams: Option<u32>) -> (Server, watch::Sender<bool>) {
    let (open, gate) = watch::channel(false);
    let server = Server::new(protocol, max_streams, move |_| {
        let mut gate = gate.clone();
        async move {
            gate.wait_for(|open| *open).await.unwrap();
            Response::new(Full::<Bytes>::from("ok"))
        }
    });
    (server, open)
}

fn limited(connections: u32, pending: u32, requests: u32) -> model::Cluster {
    let mut model = model();
    model.pool.max_connections = connections;
    model.pool.max_pending_requests = pending;
    model.pool.max_requests = requests;
    model
}

#[derive(Default)]
struct Tally {
    answered: AtomicUsize,
    overflowed: AtomicUsize,
}

async fn burst(client: &Client, count: usize, tally: &Tally) {
    join_all((0..count).map(|_| async {
        match client.fetch(get("/")).await {
            Ok(_) => tally.answered.fetch_add(1, Ordering::SeqCst),
            Err(error) => {
                assert_eq!(
                    error.kind,
                    SendErrorKind::Overflow(Overflow::PendingRequests),
                    "{error}"
                );
                assert!(error.request.is_some());
                tally.overflowed.fetch_add(1, Ordering::SeqCst)
            }
        };
    }))
    .await;
}

/// The document's limits: of 300 requests at once 100 run, 50 wait, 150 are refused at once.
#[test]
fn three_hundred_requests_on_one_and_two_workers() {
    for workers in [1, 2] {
        let (server, open) = gated();
        let upstreams = Upstreams::new();
        let tally = Tally::default();
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    worker(async {
                        let client = Client::new(&upstreams, limited(100, 50, 100), &[server.address]);
                        burst(&client, 300 / workers, &tally).await;
                    });
                });
            }
            let refused = || tally.overflowed.load(Ordering::SeqCst) == 150 && server.counts.active() == 100;
            worker(until("150 are refused while 100 run", refused));
            open.send(true).unwrap();
        });
        assert_eq!(tally.answered.load(Ordering::SeqCst), 150, "{workers} workers");
        assert_eq!(tally.overflowed.load(Ordering::SeqCst), 150, "{workers} workers");
        assert_eq!(server.counts.most_active(), 100, "{workers} workers");
        assert_eq!(server.counts.requests(), 150, "{workers} workers");
    }
}

/// Random sizes and speeds on two workers: nobody is forgotten, and limits hold throughout.
#[test]
fn no_waiter_is_ever_forgotten() {
    let server = Server::new(UpstreamProto::Http1, None, |_| async {
        tokio::time::sleep(Duration::from_micros(fastrand::u64(..3000))).await;
        Response::new(Full::from("ok"))
    });
    let upstreams = Upstreams::new();
    let tally = Tally::default();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                worker(async {
                    let mut model = limited(3, 1000, 3);
                    model.pool.max_requests_per_connection = Some(7);
                    let client = Client::new(&upstreams, model, &[server.address]);
                    for _ in 0..10 {
                        let given_up = join_all((0..10).map(|_| async {
                            let patience = Duration::from_micros(fastrand::u64(..2000));
                            let _ = tokio::time::timeout(patience, client.fetch(get("/"))).await;
                        }));
                        tokio::join!(burst(&client, 30, &tally), given_up);
                    }
                });
            });
        }
    });
    assert_eq!(tally.answered.load(Ordering::SeqCst), 600);
    // A request that was given up may still run at the server.
    assert_eq!(tally.overflowed.load(Ordering::SeqCst), 0);
}

#[test]
fn connections_that_another_worker_holds_idle_are_freed() {
    for protocol in [UpstreamProto::Http1, UpstreamProto::Http2] {
        let server = Server::echo(protocol);
        let upstreams = Upstreams::new();
        let (done, mut is_done) = watch::channel(false);
        thread::scope(|scope| {
            let (first_ready, ready) = std::sync::mpsc::channel();
            let (server, upstreams) = (&server, &upstreams);
            scope.spawn(move || {
                worker(async {
                    let mut client = Client::new(upstreams, limited(2, 10, 100), &[server.address]);
                    client.protocol = protocol;
                    let (a, b) = tokio::join!(client.fetch(get("/")), client.fetch(get("/")));
                    assert!(a.is_ok() && b.is_ok());
                    until("all are idle", || {
                        client.pool.idle_connections() == client.cluster.state.connections() as usize
                    })
                    .await;
                    first_ready.send(()).unwrap();
                    is_done.wait_for(|done| *done).await.unwrap();
                });
            });
            scope.spawn(move || {
                ready.recv().unwrap();
                worker(async {
                    let mut client = Client::new(upstreams, limited(2, 10, 100), &[server.address]);
                    client.protocol = protocol;
                    let answers = join_all((0..6).map(|_| client.fetch(get("/")))).await;
                    assert!(answers.iter().all(Result::is_ok));
                    assert!(client.cluster.state.connections() <= 2);
                });
                done.send(true).unwrap();
            });
        });
    }
}

#[test]
fn an_idle_connection_gives_way_to_another_endpoint() {
    let servers = [Server::echo(UpstreamProto::Http1), Server::echo(UpstreamProto::Http1)];
    worker(async {
        let addresses = [servers[0].address, servers[1].address];
        let client = Client::new(&Upstreams::new(), limited(1, 10, 10), &addresses);
        for round in 0..10 {
            let endpoint = &client.cluster.endpoints()[round % 2];
            let sent = client.pool.send(
                &client.cluster,
                endpoint,
                UpstreamProto::Http1,
                &client.connector,
                get("/"),
            );
            let answer = sent.await.unwrap();
            crate::upstream::testing::read(answer.response.into_body())
                .await
                .unwrap();
        }
        assert_eq!(servers[0].counts.requests() + servers[1].counts.requests(), 10);
    });
}

/// The connection is busy when the other worker asks for idle ones: it makes way when it is done.
#[test]
fn a_connection_that_is_done_makes_way_for_another_worker() {
    for protocol in [UpstreamProto::Http1, UpstreamProto::Http2] {
        let (server, open) = gated_as(protocol, None);
        let upstreams = Upstreams::new();
        let (done, is_done) = watch::channel(0);
        let send_one = || {
            worker(async {
                let mut model = limited(1, 10, 10);
                // Full with one request, also where streams are shared.
                model.pool.max_concurrent_streams = Some(1);
                let mut client = Client::new(&upstreams, model, &[server.address]);
                client.protocol = protocol;
                client.fetch(get("/")).await.unwrap();
                done.send_modify(|done| *done += 1);
                // The worker stays, so that its connection does not end with it.
                is_done.clone().wait_for(|done| *done == 2).await.unwrap();
            });
        };
        thread::scope(|scope| {
            scope.spawn(send_one);
            scope.spawn(send_one);
            let state = || Arc::clone(&upstreams.clusters()[0].state);
            worker(until("one runs and one waits", || {
                server.counts.active() == 1 && state().pending_requests() == 1
            }));
            open.send(true).unwrap();
        });
        assert_eq!((server.counts.requests(), server.counts.connections()), (2, 2));
    }
}

#[test]
fn who_gives_up_leaves_the_line() {
    let (server, open) = gated();
    worker(async {
        let client = Client::new(&Upstreams::new(), limited(1, 2, 10), &[server.address]);
        let state = &client.cluster.state;
        let running = client.fetch(get("/1"));
        let later = async {
            until("one runs", || server.counts.active() == 1).await;
            let mut first = Box::pin(client.fetch(get("/2")));
            let second = client.fetch(get("/3"));
            assert!(futures_util::poll!(&mut first).is_pending());
            let third = async {
                until("two wait", || state.pending_requests() == 2).await;
                let refused = client.fetch(get("/4")).await.unwrap_err();
                assert_eq!(refused.kind, SendErrorKind::Overflow(Overflow::PendingRequests));
                assert_eq!(state.overflows(Overflow::PendingRequests), 1);
                drop(first);
                assert_eq!(state.pending_requests(), 1);
                let waits = client.fetch(get("/5"));
                open.send(true).unwrap();
                waits.await
            };
            tokio::join!(second, third)
        };
        let (running, (second, third)) = tokio::join!(running, later);
        assert!(running.is_ok() && second.is_ok() && third.is_ok());
        assert_eq!(server.counts.requests(), 3);
        assert_eq!(server.counts.connections(), 1, "the one connection served all");
    });
}

#[test]
fn active_requests_are_limited_too() {
    for protocol in [UpstreamProto::Http1, UpstreamProto::Http2] {
        let (server, open) = gated_as(protocol, None);
        worker(async {
            let mut client = Client::new(&Upstreams::new(), limited(u32::MAX, 10, 3), &[server.address]);
            client.protocol = protocol;
            let sent = join_all((0..8).map(|_| client.fetch(get("/"))));
            let opened = async {
                until("five are refused", || {
                    client.cluster.state.overflows(Overflow::Requests) == 5
                })
                .await;
                until("three run", || server.counts.active() == 3).await;
                open.send(true).unwrap();
            };
            let (answers, ()) = tokio::join!(sent, opened);
            assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 3);
            assert_eq!(client.cluster.state.active_requests(), 0);
        });
    }
}

#[test]
fn retries_are_limited_by_number_or_by_share() {
    let upstreams = Upstreams::new();
    let mut model = model();
    model.pool.max_retries = 2;
    let by_number = upstreams.cluster(Arc::new(model.clone()), &[]);
    let permits = [by_number.admit_retry().unwrap(), by_number.admit_retry().unwrap()];
    assert_eq!(by_number.admit_retry().unwrap_err(), Overflow::Retries);
    drop(permits);
    assert!(by_number.admit_retry().is_ok());

    model.retry_budget = Some(model::RetryBudget {
        percent: 20.0,
        min_concurrency: 1,
    });
    let by_share = upstreams.cluster(Arc::new(model), &[]);
    let only = by_share.admit_retry().unwrap();
    assert!(by_share.admit_retry().is_err(), "nothing is active: the least is one");
    for _ in 0..10 {
        by_share.state.enter_request().unwrap();
    }
    let second = by_share.admit_retry().unwrap();
    assert!(by_share.admit_retry().is_err(), "a fifth of ten");
    drop((only, second));
}

#[test]
fn a_raised_limit_serves_those_who_wait() {
    let (server, open) = gated();
    let upstreams = Upstreams::new();
    worker(async {
        let client = Client::new(&upstreams, limited(1, 10, 10), &[server.address]);
        let sent = join_all((0..3).map(|_| client.fetch(get("/"))));
        let raised = async {
            until("two wait", || client.cluster.state.pending_requests() == 2).await;
            let _newer = upstreams.cluster(Arc::new(limited(3, 10, 10)), &[]);
            until("three run", || server.counts.active() == 3).await;
            open.send(true).unwrap();
        };
        let (answers, ()) = tokio::join!(sent, raised);
        assert!(answers.iter().all(Result::is_ok));
    });
}

#[test]
fn tcp_connections_count_and_wait() {
    let server = Server::echo(UpstreamProto::Http1);
    worker(async {
        let mut model = limited(1, 1, 10);
        model.pool.connect_timeout = Duration::from_secs(5);
        let client = Client::new(&Upstreams::new(), model, &[server.address]);
        // An idle HTTP connection gives way.
        client.fetch(get("/")).await.unwrap();
        let endpoint = client.cluster.pick(None, &[]).unwrap();
        let connect = || client.pool.connect_tcp(&client.cluster, &endpoint, &client.connector);
        let first = connect().await.unwrap();
        assert_eq!(endpoint.state.in_flight(), 1);
        let waiting = connect();
        let refused = async {
            until("one waits", || client.cluster.state.pending_requests() == 1).await;
            let error = connect().await.err().unwrap();
            assert_eq!(error.kind, SendErrorKind::Overflow(Overflow::PendingRequests));
            drop(first);
        };
        let (second, ()) = tokio::join!(waiting, refused);
        drop(second.unwrap());
        assert_eq!((client.cluster.state.connections(), endpoint.state.in_flight()), (0, 0));
    });
}
