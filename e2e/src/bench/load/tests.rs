use std::net::Ipv4Addr;

use tokio::net::TcpListener;

use super::*;
use crate::bench::backend;

const BODY: usize = 1024;

async fn backend_at(protocol: Protocol) -> SocketAddr {
    let (address, serving) = backend::bind(protocol, BODY).await.unwrap();
    tokio::spawn(serving);
    address
}

fn plan(address: SocketAddr, protocol: Protocol) -> Plan {
    Plan {
        entry: Entry {
            address,
            form: Form::Origin,
            authority: address.to_string(),
        },
        protocol,
        connections: 3,
        streams: 1,
        body_bytes: BODY,
        warm_up: Duration::from_millis(5),
        duration: Duration::from_millis(50),
        rate: None,
    }
}

async fn measure(plan: &Plan) -> anyhow::Result<Outcome> {
    Prepared::new(plan).await?.measure().await
}

#[tokio::test]
async fn closed_loop_counts_every_response() {
    for (protocol, streams) in [(Protocol::Http1, 1), (Protocol::Http2, 4)] {
        let plan = Plan {
            streams,
            ..plan(backend_at(protocol).await, protocol)
        };
        let outcome = measure(&plan).await.unwrap();
        assert!(outcome.requests > 10, "{protocol:?}: {outcome:?}");
        assert!(outcome.seconds >= 0.05, "{outcome:?}");
        assert!(outcome.p50_us > 0.0 && outcome.p50_us <= outcome.p99_us, "{outcome:?}");
    }
}

#[tokio::test]
async fn open_loop_makes_exactly_the_requests_of_its_rate() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let plan = Plan {
            rate: Some(1000.0),
            ..plan(backend_at(protocol).await, protocol)
        };
        let outcome = measure(&plan).await.unwrap();
        assert_eq!(outcome.requests, 50);
        assert!(outcome.seconds >= 0.049, "{outcome:?}");
    }
}

/// A server whose one answer comes late holds up the requests that are due behind it: all are charged.
#[tokio::test]
async fn open_loop_charges_a_stall_to_every_request_that_it_held_up() {
    let stall = Duration::from_millis(100);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut answered = 0;
        let mut buffer = [0; 1024];
        while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
            answered += 1;
            if answered == 2 {
                tokio::time::sleep(stall).await;
            }
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n{}", "x".repeat(BODY));
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let plan = Plan {
        connections: 1,
        warm_up: Duration::ZERO,
        duration: Duration::from_millis(100),
        rate: Some(200.0),
        ..plan(address, Protocol::Http1)
    };
    let outcome = measure(&plan).await.unwrap();
    assert_eq!(outcome.requests, 20);
    // Twenty requests, 5 ms apart, of which the first stalls for all of their time: the waits fall evenly from 100 ms.
    assert!(outcome.p50_us > 30_000.0, "{outcome:?}");
    assert!(outcome.p99_us >= 95_000.0, "{outcome:?}");
}

/// A CONNECT proxy for one protocol-blind tunnel per connection.
async fn connect_proxy(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                let wanted = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n");
                let status = if head == wanted.as_bytes() {
                    "200 OK"
                } else {
                    "400 Bad Request"
                };
                client
                    .write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes())
                    .await
                    .unwrap();
                let mut server = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn connections_can_be_tunnelled() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let backend = backend_at(protocol).await;
        let mut plan = plan(connect_proxy(backend).await, protocol);
        plan.entry.form = Form::Connect;
        plan.entry.authority = backend.to_string();
        assert!(measure(&plan).await.unwrap().requests > 10);

        plan.entry.authority = "elsewhere:80".to_owned();
        let error = measure(&plan).await.unwrap_err().to_string();
        assert_eq!(error, "CONNECT elsewhere:80 was answered with 400");
    }
}

#[tokio::test]
async fn requests_can_name_their_destination_in_full() {
    let mut plan = plan(backend_at(Protocol::Http1).await, Protocol::Http1);
    plan.entry.form = Form::Absolute;
    assert!(measure(&plan).await.unwrap().requests > 10);
}

#[tokio::test]
async fn a_response_of_the_wrong_length_is_an_error() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let plan = Plan {
            body_bytes: BODY + 1,
            ..plan(backend_at(protocol).await, protocol)
        };
        assert!(measure(&plan).await.is_err(), "{protocol:?}");
    }
}
