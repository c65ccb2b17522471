//! HTTP/1.1 connections: used again, replayed when one dies under a request, closed when over.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use http::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::body::{Body, REPLAY_LIMIT, ReplayBuffer};
use crate::upstream::testing::{Client, Server, endpoint, get, model, slice, until, worker};
use crate::upstream::{ConnectFailure, SendErrorKind, UpstreamProto, Upstreams};

#[test]
fn one_after_the_other_share_a_connection() {
    let server = Server::echo(UpstreamProto::Http1);
    worker(async {
        let client = Client::new(&Upstreams::new(), model(), &[server.address]);
        for round in 0..20 {
            let path = format!("/{round}");
            assert_eq!(client.fetch(get(&path)).await.unwrap(), format!("{path} 0"));
        }
        assert_eq!(server.counts.connections(), 1);
        until("the connection is idle", || client.pool.idle_connections() == 1).await;
        assert_eq!(client.cluster.state.active_requests(), 0);
        assert_eq!(client.cluster.endpoints()[0].state.in_flight(), 0);
        assert_eq!(client.cluster.state.connections(), 1);
    });
}

#[test]
fn at_once_take_a_connection_each_and_bodies_arrive() {
    let server = Server::echo(UpstreamProto::Http1);
    worker(async {
        let client = Client::new(&Upstreams::new(), model(), &[server.address]);
        for _ in 0..3 {
            let answers = join_all((0..5).map(|index| {
                let body = Body::full(vec![7; 100_000 * index]);
                client.fetch(Request::post("/").header("host", "a").body(body).unwrap())
            }));
            for (index, answer) in answers.await.into_iter().enumerate() {
                assert_eq!(answer.unwrap(), format!("/ {}", 100_000 * index));
            }
            until("all are idle", || client.pool.idle_connections() == 5).await;
        }
        assert_eq!(server.counts.connections(), 5);
    });
}

/// Answers `whole` requests on each connection and then `last` bytes to the next, and closes.
fn dying(whole: usize, last: &'static [u8], requests: Arc<AtomicUsize>) -> Server {
    Server::raw(move |mut tcp: TcpStream| {
        let requests = Arc::clone(&requests);
        async move {
            for _ in 0..whole {
                if !read_request(&mut tcp).await {
                    return;
                }
                requests.fetch_add(1, Ordering::SeqCst);
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                tcp.write_all(answer).await.unwrap();
            }
            if read_request(&mut tcp).await {
                requests.fetch_add(1, Ordering::SeqCst);
                tcp.write_all(last).await.unwrap();
            }
        }
    })
}

/// Reads one request of which the body, if any, ends in a `!`.
async fn read_request(tcp: &mut TcpStream) -> bool {
    let mut read = Vec::new();
    loop {
        if tcp.read_buf(&mut read).await.unwrap_or(0) == 0 {
            return false;
        }
        let head = read.windows(4).position(|window| window == b"\r\n\r\n");
        if head.is_some() && (read.starts_with(b"GET") || read.ends_with(b"!")) {
            return true;
        }
    }
}

#[test]
fn a_request_that_a_dying_connection_swallowed_is_replayed_once() {
    let requests = Arc::default();
    let server = dying(1, b"", Arc::clone(&requests));
    worker(async {
        let client = Client::new(&Upstreams::new(), model(), &[server.address]);
        for round in 1..=5 {
            assert_eq!(client.fetch(get("/")).await.unwrap(), "ok");
            // The first needs one, each further one dies once.
            assert_eq!(requests.load(Ordering::SeqCst), 2 * round - 1);
            until("the connection is idle", || client.pool.idle_connections() == 1).await;
        }
    });
}

#[test]
fn a_kept_body_is_replayed_and_a_streamed_one_is_not() {
    let body = || Body::full("a body!");
    let cases: [(&str, Body, bool); 4] = [
        ("PUT", body(), true),
        ("PUT", ReplayBuffer::new(body(), REPLAY_LIMIT).body().unwrap(), true),
        // Observed by the application twice if it was not lost after all.
        ("POST", body(), false),
        ("PUT", body().tee(1).0, true),
    ];
    for (method, body, replayed) in cases {
        let requests = Arc::default();
        let server = dying(1, b"", Arc::clone(&requests));
        worker(async {
            let client = Client::new(&Upstreams::new(), model(), &[server.address]);
            client.fetch(get("/")).await.unwrap();
            until("the connection is idle", || client.pool.idle_connections() == 1).await;
            let request = Request::builder()
                .method(method)
                .header("host", "a")
                .body(body)
                .unwrap();
            match client.fetch(request).await {
                Ok(answer) => assert!(replayed && answer == "ok", "{method}"),
                Err(error) => {
                    let kind = SendErrorKind::ConnectionClosed { request_started: true };
                    assert_eq!(error.kind, kind);
                    assert!(!replayed && error.request.is_none() && !error.is_unsent(), "{method}");
                }
            }
        });
    }
}

#[test]
fn nothing_is_replayed_after_a_byte_of_the_response_or_on_a_new_connection() {
    for (whole, last) in [(1, &b"HTTP/1.1 2"[..]), (0, b"")] {
        let requests = Arc::default();
        let server = dying(whole, last, Arc::clone(&requests));
        worker(async {
            let client = Client::new(&Upstreams::new(), model(), &[server.address]);
            for _ in 0..whole {
                client.fetch(get("/")).await.unwrap();
                until("the connection is idle", || client.pool.idle_connections() == 1).await;
            }
            let error = client.fetch(get("/")).await.unwrap_err();
            assert_eq!(error.kind, SendErrorKind::ConnectionClosed { request_started: true });
            assert_eq!(requests.load(Ordering::SeqCst), whole + 1);
        });
    }
}

#[test]
fn a_request_that_was_not_sent_finds_another_connection_whatever_its_method() {
    // Closes after each response, without saying so.
    let server = Server::raw(|mut tcp: TcpStream| async move {
        if read_request(&mut tcp).await {
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            tcp.write_all(answer).await.unwrap();
        }
    });
    worker(async {
        let client = Client::new(&Upstreams::new(), model(), &[server.address]);
        for _ in 0..50 {
            let request = Request::post("/").header("host", "a").body(Body::full("!")).unwrap();
            let connections = server.counts.connections();
            assert_eq!(client.fetch(request).await.unwrap(), "ok");
            assert_eq!(server.counts.connections(), connections + 1);
            // The other end is closed: ours may have heard of it or not.
            until("the server closed", || server.counts.open() == 0).await;
        }
    });
}

#[test]
fn a_connection_serves_as_many_requests_as_it_may() {
    let server = Server::echo(UpstreamProto::Http1);
    worker(async {
        let mut model = model();
        model.pool.max_requests_per_connection = Some(2);
        let client = Client::new(&Upstreams::new(), model, &[server.address]);
        for _ in 0..5 {
            client.fetch(get("/")).await.unwrap();
        }
        assert_eq!(server.counts.connections(), 3);
        until("two are closed", || server.counts.open() == 1).await;
    });
}

#[test]
fn idle_and_old_connections_are_closed() {
    let mut idle = model();
    idle.pool.http_idle_timeout = Duration::from_millis(1);
    let mut old = model();
    old.pool.max_connection_duration = Some(Duration::from_millis(1));
    for model in [idle, old] {
        for (protocol, http2) in [(UpstreamProto::Http1, false), (UpstreamProto::Http2, true)] {
            let server = Server::echo(protocol);
            worker(async {
                let client = Client::new(&Upstreams::new(), model.clone(), &[server.address]);
                let client = if http2 { client.http2() } else { client };
                client.fetch(get("/")).await.unwrap();
                until("it is closed", || {
                    server.counts.connections() == 1 && server.counts.open() == 0
                })
                .await;
                until("it is not counted", || client.cluster.state.connections() == 0).await;
                assert_eq!(client.pool.idle_connections(), 0);
            });
        }
    }
}

#[test]
fn connections_to_an_endpoint_that_left_are_closed() {
    let server = Server::echo(UpstreamProto::Http1);
    let other = Server::echo(UpstreamProto::Http1);
    worker(async {
        let client = Client::new(&Upstreams::new(), model(), &[server.address]);
        client.fetch(get("/")).await.unwrap();
        until("the connection is idle", || client.pool.idle_connections() == 1).await;
        client.cluster.set_endpoints(&[slice([endpoint(other.address)])]);
        until("it is closed", || server.counts.open() == 0).await;
        client.fetch(get("/")).await.unwrap();
        assert_eq!((server.counts.requests(), other.counts.requests()), (1, 1));
    });
}

#[test]
fn a_pool_that_is_dropped_closes_its_connections() {
    for protocol in [UpstreamProto::Http1, UpstreamProto::Http2] {
        let server = Server::echo(protocol);
        worker(async {
            let upstreams = Upstreams::new();
            let mut client = Client::new(&upstreams, model(), &[server.address]);
            client.protocol = protocol;
            client.fetch(get("/")).await.unwrap();
            until("the connection is idle", || client.pool.idle_connections() == 1).await;
            drop(client);
            until("it is closed", || server.counts.open() == 0).await;
        });
    }
}

#[test]
fn what_cannot_be_connected_to_is_said_and_the_request_comes_back() {
    let refused = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    // A listener whose queue is full takes no further connection.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    full.listen(0).unwrap();
    let full_address = full.local_addr().unwrap().as_socket().unwrap();
    let _queued: Vec<_> = (0..4)
        .map(|_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            // In progress, or never.
            let _ = socket.connect(&full_address.into());
            socket
        })
        .collect();
    for (address, failure) in [
        (refused, ConnectFailure::Refused),
        (full_address, ConnectFailure::Timeout),
    ] {
        for protocol in [UpstreamProto::Http1, UpstreamProto::Http2] {
            worker(async {
                let mut model = model();
                model.pool.connect_timeout = Duration::from_millis(100);
                let mut client = Client::new(&Upstreams::new(), model, &[address]);
                client.protocol = protocol;
                let request = Request::post("/x").header("host", "a").body(Body::full("!")).unwrap();
                let error = client.fetch(request).await.unwrap_err();
                assert_eq!(error.kind, SendErrorKind::Connect(failure), "{error}");
                assert!(error.is_unsent());
                assert_eq!(error.request.unwrap().method(), "POST");
                until("nothing is counted", || client.cluster.state.connections() == 0).await;
            });
        }
    }
}

#[test]
fn a_response_that_is_not_http_is_the_endpoints_fault() {
    let server = Server::raw(|mut tcp: TcpStream| async move {
        if read_request(&mut tcp).await {
            tcp.write_all(b"SSH-2.0-OpenSSH_9.7\r\n\r\n").await.unwrap();
        }
    });
    worker(async {
        let client = Client::new(&Upstreams::new(), model(), &[server.address]);
        assert_eq!(client.fetch(get("/")).await.unwrap_err().kind, SendErrorKind::Protocol);
    });
}

#[test]
fn a_request_that_is_given_up_takes_its_connection_along() {
    let server = Server::new(UpstreamProto::Http1, None, |_| std::future::pending());
    worker(async {
        let client = Client::new(&Upstreams::new(), model(), &[server.address]);
        let sent = tokio::time::timeout(Duration::from_millis(200), client.fetch(get("/"))).await;
        assert!(sent.is_err() && server.counts.active() == 1);
        until("it is closed", || server.counts.open() == 0).await;
        until("nothing is counted", || {
            let state = &client.cluster.state;
            state.connections() == 0 && state.active_requests() == 0
        })
        .await;
        assert_eq!(client.cluster.endpoints()[0].state.in_flight(), 0);
    });
}
