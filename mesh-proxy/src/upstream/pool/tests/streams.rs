//! HTTP/2 connections: shared, full, going away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::Full;
use tokio::sync::{Notify, watch};

use crate::body::Body;
use crate::upstream::testing::{Client, Server, get, model, read, until, worker};
use crate::upstream::{SendErrorKind, UpstreamProto, Upstreams};

#[test]
fn requests_share_a_connection() {
    let server = Server::echo(UpstreamProto::Http2);
    worker(async {
        let client = Client::new(&Upstreams::new(), model(), &[server.address]).http2();
        for _ in 0..3 {
            let answers = join_all((0..50).map(|index| {
                let body = Body::full(vec![7; 1000 * index]);
                client.fetch(Request::post("/").header("host", "a").body(body).unwrap())
            }));
            for (index, answer) in answers.await.into_iter().enumerate() {
                assert_eq!(answer.unwrap(), format!("/ {}", 1000 * index));
            }
        }
        assert_eq!(server.counts.connections(), 1);
        assert_eq!(client.cluster.state.active_requests(), 0);
        assert_eq!(client.cluster.endpoints()[0].state.in_flight(), 0);
        assert_eq!(client.pool.idle_connections(), 1);
    });
}

fn slow(max_streams: Option<u32>) -> (Server, watch::Sender<bool>) {
    let (open, gate) = watch::channel(true);
    let server = Server::new(UpstreamProto::Http2, max_streams, move |_| {
        let mut gate = gate.clone();
        async move {
            gate.wait_for(|open| *open).await.unwrap();
            Response::new(Full::<Bytes>::from("ok"))
        }
    });
    (server, open)
}

#[test]
fn full_connections_get_neighbours() {
    // Said by the endpoint, or by the policy.
    for (said, set) in [(Some(10), None), (None, Some(10))] {
        let (server, open) = slow(said);
        worker(async {
            let mut model = model();
            model.pool.max_concurrent_streams = set;
            let client = Client::new(&Upstreams::new(), model, &[server.address]).http2();
            client.fetch(get("/")).await.unwrap();
            open.send(false).unwrap();
            let sent = join_all((0..25).map(|_| client.fetch(get("/"))));
            let opened = async {
                until("all run", || server.counts.active() == 25).await;
                open.send(true).unwrap();
            };
            let (answers, ()) = tokio::join!(sent, opened);
            assert!(answers.iter().all(Result::is_ok));
            assert_eq!(server.counts.connections(), 3);
        });
    }
}

#[test]
fn streams_are_waited_for_when_connections_are_limited() {
    let server = Server::new(UpstreamProto::Http2, None, |_| async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Response::new(Full::from("ok"))
    });
    worker(async {
        let mut model = model();
        model.pool.max_connections = 1;
        model.pool.max_pending_requests = 100;
        model.pool.max_concurrent_streams = Some(2);
        model.pool.max_requests = 2;
        let client = Client::new(&Upstreams::new(), model, &[server.address]).http2();
        client.fetch(get("/")).await.unwrap();
        let answers = join_all((0..40).map(|_| client.fetch(get("/")))).await;
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(server.counts.connections(), 1);
        assert_eq!(server.counts.most_active(), 2);
    });
}

#[test]
fn a_used_up_connection_takes_no_more_requests() {
    let server = Server::echo(UpstreamProto::Http2);
    worker(async {
        let mut model = model();
        model.pool.max_requests_per_connection = Some(2);
        let client = Client::new(&Upstreams::new(), model, &[server.address]).http2();
        for _ in 0..5 {
            client.fetch(get("/")).await.unwrap();
        }
        assert_eq!(server.counts.connections(), 3);
        until("two are closed", || server.counts.open() == 1).await;
    });
}

#[test]
fn trailers_pass_and_a_stream_counts_until_they_did() {
    let address = worker(async { trailing_server() });
    worker(async {
        let client = Client::new(&Upstreams::new(), model(), &[address.0]).http2();
        let answer = client.send(get("/")).await.unwrap();
        assert_eq!(client.cluster.state.active_requests(), 1);
        let (bytes, trailers) = read(answer.response.into_body()).await.unwrap();
        assert_eq!(bytes, "data");
        assert_eq!(trailers.unwrap()["grpc-status"], "0");
        assert_eq!(client.cluster.state.active_requests(), 0);
    });
}

/// A server that sends trailers, on a thread of its own.
fn trailing_server() -> (std::net::SocketAddr, Server) {
    let server = Server::raw(|tcp| async move {
        let mut connection = h2::server::handshake(tcp).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            stream.send_data(Bytes::from("data"), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            stream.send_trailers(trailers).unwrap();
        }
    });
    (server.address, server)
}

/// Answers `whole` requests of each connection and treats the next as told.
fn moody(whole: usize, then: Then, requests: Arc<AtomicUsize>) -> Server {
    Server::raw(move |tcp| {
        let requests = Arc::clone(&requests);
        async move {
            let mut connection = h2::server::handshake(tcp).await.unwrap();
            for round in 0.. {
                let Some(Ok((_, mut respond))) = connection.accept().await else {
                    return;
                };
                requests.fetch_add(1, Ordering::SeqCst);
                if round < whole {
                    let mut stream = respond.send_response(Response::new(()), false).unwrap();
                    stream.send_data(Bytes::from("ok"), true).unwrap();
                    continue;
                }
                match then {
                    Then::Close => return,
                    Then::Refuse => respond.send_reset(h2::Reason::REFUSED_STREAM),
                    Then::Reset => respond.send_reset(h2::Reason::INTERNAL_ERROR),
                }
            }
        }
    })
}

#[derive(Clone, Copy)]
enum Then {
    Close,
    Refuse,
    Reset,
}

#[test]
fn what_becomes_of_requests_that_get_no_response() {
    let closed = SendErrorKind::ConnectionClosed { request_started: true };
    for (whole, then, method, outcome) in [
        // Lost on a connection that was used before: replayed.
        (1, Then::Close, "GET", None),
        (1, Then::Close, "POST", Some(closed)),
        (0, Then::Close, "GET", Some(closed)),
        // Up to the retry policy.
        (1, Then::Refuse, "GET", Some(SendErrorKind::RefusedStream)),
        (1, Then::Reset, "GET", Some(SendErrorKind::StreamReset)),
    ] {
        let requests = Arc::default();
        let server = moody(whole, then, Arc::clone(&requests));
        worker(async {
            let client = Client::new(&Upstreams::new(), model(), &[server.address]).http2();
            for _ in 0..whole {
                client.fetch(get("/")).await.unwrap();
            }
            let mut request = get("/");
            *request.method_mut() = method.parse().unwrap();
            let sent = client.fetch(request).await;
            assert_eq!(
                sent.as_ref().err().map(|error| error.kind),
                outcome,
                "{method}: {sent:?}"
            );
            let replays = usize::from(outcome.is_none());
            assert_eq!(requests.load(Ordering::SeqCst), whole + 1 + replays);
            assert_eq!(client.cluster.state.active_requests(), 0);
        });
    }
}

#[test]
fn a_request_is_replayed_though_the_connection_served_others_while_it_waited() {
    let done = Arc::new(Notify::new());
    let first = Arc::new(AtomicBool::new(true));
    let (served, ends) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&done));
    let counted = Arc::clone(&served);
    let server = Server::raw(move |tcp| {
        let (dies, served, done) = (first.swap(false, Ordering::SeqCst), counted.clone(), ends.clone());
        async move {
            let mut connection = h2::server::handshake(tcp).await.unwrap();
            let mut held = Vec::new();
            loop {
                let accepted = tokio::select! {
                    accepted = connection.accept() => accepted,
                    () = done.notified(), if dies => return,
                };
                let Some(Ok((request, mut respond))) = accepted else {
                    return;
                };
                served.fetch_add(1, Ordering::SeqCst);
                if dies && request.uri().path() == "/held" {
                    held.push(respond);
                    continue;
                }
                let mut stream = respond.send_response(Response::new(()), false).unwrap();
                stream.send_data(Bytes::from("ok"), true).unwrap();
            }
        }
    });
    worker(async {
        let client = Client::new(&Upstreams::new(), model(), &[server.address]).http2();
        client.fetch(get("/")).await.unwrap();
        let others = async {
            until("it is held", || served.load(Ordering::SeqCst) == 2).await;
            assert_eq!(client.fetch(get("/other")).await.unwrap(), "ok");
            done.notify_one();
        };
        let (answer, ()) = tokio::join!(client.fetch(get("/held")), others);
        assert_eq!(answer.unwrap(), "ok");
        assert_eq!(server.counts.connections(), 2);
        assert_eq!(served.load(Ordering::SeqCst), 4);
    });
}

#[test]
fn a_connection_whose_requests_are_called_off_too_often_is_left() {
    let (server, open) = slow(None);
    worker(async {
        let client = Client::new(&Upstreams::new(), model(), &[server.address]).http2();
        client.fetch(get("/")).await.unwrap();
        open.send(false).unwrap();
        let stays = client.fetch(get("/stays"));
        let go = async {
            for round in 1..=super::super::http2::CALLED_OFF_MOST as usize / 64 {
                let gone = join_all((0..64).map(|_| client.fetch(get("/goes"))));
                // All have arrived: what is called off before that is the server's to limit.
                tokio::select! {
                    _ = gone => panic!("they are held"),
                    () = until("all are held", || server.counts.requests() == 2 + 64 * round) => {}
                }
            }
            open.send(true).unwrap();
            client.fetch(get("/last")).await.unwrap();
            client.fetch(get("/comes")).await
        };
        let (stayed, came) = tokio::join!(stays, go);
        assert_eq!((stayed.unwrap(), came.unwrap()), ("ok".into(), "ok".into()));
        assert_eq!(server.counts.connections(), 2);
    });
}

#[test]
fn a_connection_that_goes_away_is_left_without_a_failure() {
    // Says goodbye after each second request, and serves what it took.
    let server = Server::raw(|tcp| async move {
        let mut connection = h2::server::handshake(tcp).await.unwrap();
        let mut served = 0;
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            served += 1;
            if served == 2 {
                connection.graceful_shutdown();
            }
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            stream.send_data(Bytes::from("ok"), true).unwrap();
        }
    });
    worker(async {
        let client = Client::new(&Upstreams::new(), model(), &[server.address]).http2();
        for _ in 0..40 {
            assert_eq!(client.fetch(get("/")).await.unwrap(), "ok");
        }
        let connections = server.counts.connections();
        assert!((2..=20).contains(&connections), "{connections} connections");
    });
}

#[test]
fn a_request_that_is_given_up_leaves_the_others_alone() {
    let (server, open) = slow(None);
    worker(async {
        let client = Client::new(&Upstreams::new(), model(), &[server.address]).http2();
        client.fetch(get("/")).await.unwrap();
        open.send(false).unwrap();
        let stays = client.fetch(get("/stays"));
        let goes = async {
            let gone = tokio::time::timeout(Duration::from_millis(100), client.fetch(get("/goes"))).await;
            assert!(gone.is_err());
            assert_eq!(client.cluster.state.active_requests(), 1);
            open.send(true).unwrap();
        };
        let (stayed, ()) = tokio::join!(stays, goes);
        assert_eq!(stayed.unwrap(), "ok");
        assert_eq!(server.counts.connections(), 1);
    });
}

#[test]
fn the_first_requests_share_one_attempt_to_connect() {
    let server = Server::echo(UpstreamProto::Http2);
    worker(async {
        let client = Client::new(&Upstreams::new(), model(), &[server.address]).http2();
        let first = tokio::time::timeout(Duration::ZERO, client.fetch(get("/given-up")));
        let (_, answers) = tokio::join!(first, join_all((0..90).map(|_| client.fetch(get("/")))));
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(server.counts.connections(), 1);
    });
}
