//! Upgrades, raw TCP, and mutual TLS underneath all of it.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_api::model::{self, ClientTls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::body::Body;
use crate::tls::inbound::InboundTls;
use crate::tls::outbound::OutboundTls;
use crate::tls::tests::Authority;
use crate::upstream::testing::{Client, Server, endpoint, get, model, slice, until, worker};
use crate::upstream::{Connector, SendErrorKind, Source, UpstreamProto, Upstreams};

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";
const OTHER: &str = "spiffe://cluster.local/ns/default/sa/other";

#[test]
fn an_upgrade_is_a_tunnel_that_counts_until_it_ends() {
    let server = Server::raw(|mut tcp: TcpStream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if tcp.read_buf(&mut head).await.unwrap() == 0 {
                return;
            }
        }
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nhi ";
        tcp.write_all(answer).await.unwrap();
        let (mut from, mut to) = tcp.split();
        // Ends when the client does.
        let _ = tokio::io::copy(&mut from, &mut to).await;
    });
    worker(async {
        let client = Client::new(&Upstreams::new(), model(), &[server.address]);
        let mut request = get("/");
        request.headers_mut().insert("connection", "upgrade".parse().unwrap());
        request.headers_mut().insert("upgrade", "echo".parse().unwrap());
        let mut answer = client.send(request).await.unwrap();
        assert_eq!(answer.response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let upgraded = hyper::upgrade::on(&mut answer.response).await.unwrap();
        drop(answer.response);
        let mut tunnel = TokioIo::new(upgraded);
        tunnel.write_all(b"there").await.unwrap();
        let mut heard = [0; 8];
        tunnel.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hi there");
        let state = &client.cluster.state;
        assert_eq!((state.active_requests(), state.connections()), (1, 1));
        drop((tunnel, answer.tunnel));
        until("it is closed", || server.counts.open() == 0).await;
        assert_eq!((state.active_requests(), state.connections()), (0, 0));
    });
}

/// An endpoint of the mesh: takes mutual TLS, and answers with the protocol and server name that it was offered.
fn mesh_server(authority: &Authority, identity: &str) -> Server {
    let inbound = Arc::new(InboundTls::new(authority.store(identity)));
    Server::raw(move |tcp| {
        let inbound = Arc::clone(&inbound);
        async move {
            let Ok(accepted) = inbound.accept(tcp).await else {
                return;
            };
            let (_, tls) = accepted.stream.get_ref();
            let alpn = String::from_utf8_lossy(tls.alpn_protocol().unwrap_or_default()).into_owned();
            let name = tls.server_name().unwrap_or_default().to_owned();
            let peer = accepted.peer.to_string();
            let http2 = alpn == "h2";
            let service = service_fn(move |_| {
                let told = Full::<Bytes>::from(format!("{alpn} {name} {peer}"));
                async move { Ok::<_, Infallible>(Response::new(told)) }
            });
            let io = TokioIo::new(accepted.stream);
            // Clients of tests go away at any time.
            let _ = if http2 {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                builder.serve_connection(io, service).await
            } else {
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(io, service)
                    .await
            };
        }
    })
}

fn mesh_endpoint(address: SocketAddr, identity: Option<&str>) -> model::Endpoint {
    model::Endpoint {
        mutual_tls: true,
        workload: Arc::new(model::Workload {
            identity: identity.map(|identity| identity.parse().unwrap()),
            ..model::Workload::default()
        }),
        ..endpoint(address)
    }
}

#[test]
fn the_meshs_mutual_tls_names_the_service_and_checks_the_endpoint() {
    let authority = Authority::new();
    let server = mesh_server(&authority, REVIEWS);
    let auto = model();
    let mut accounts = model();
    accounts.subject_alt_names = vec![OTHER.into(), REVIEWS.into()];
    let mut subset = model();
    subset.subset = Some("v1".into());
    let mut named = model();
    named.tls = ClientTls::IstioMutual {
        subject_alt_names: vec![OTHER.into()],
        sni: None,
    };
    let mut unparsable = model();
    unparsable.tls = ClientTls::IstioMutual {
        subject_alt_names: vec!["reviews.example.com".into()],
        sni: None,
    };
    let mut own_sni = model();
    own_sni.tls = ClientTls::IstioMutual {
        subject_alt_names: Vec::new(),
        sni: Some("sni.example.com".into()),
    };
    const PLAIN_SNI: &str = "outbound_.9080_._.reviews.default.svc.cluster.local";
    let cases = [
        (auto.clone(), Some(REVIEWS), Some(PLAIN_SNI)),
        (
            subset,
            Some(REVIEWS),
            Some("outbound_.9080_.v1_.reviews.default.svc.cluster.local"),
        ),
        (auto.clone(), Some(OTHER), None),
        // Nothing is known: nobody is expected.
        (auto, None, None),
        (accounts.clone(), None, Some(PLAIN_SNI)),
        // The endpoint's own identity is the exact one.
        (accounts, Some(OTHER), None),
        (named, Some(REVIEWS), None),
        (unparsable, Some(REVIEWS), None),
        (own_sni, Some(REVIEWS), Some("sni.example.com")),
    ];
    for (model, identity, sni) in cases {
        for (protocol, alpn) in [(UpstreamProto::Http1, "http/1.1"), (UpstreamProto::Http2, "h2")] {
            worker(async {
                let mut client = Client::new(&Upstreams::new(), model.clone(), &[]);
                client
                    .cluster
                    .set_endpoints(&[slice([mesh_endpoint(server.address, identity)])]);
                client.connector = Rc::new(Connector {
                    tls: Some(Arc::new(OutboundTls::new(authority.store(CLIENT)))),
                    source: Source::default(),
                });
                client.protocol = protocol;
                if sni.is_some() {
                    let facts = client.send(get("/")).await.unwrap().connection;
                    assert_eq!(facts.identity.as_ref().unwrap().as_str(), REVIEWS);
                }
                let answer = client.fetch(get("/")).await;
                match sni {
                    Some(sni) => assert_eq!(answer.unwrap(), format!("{alpn} {sni} {CLIENT}")),
                    None => {
                        let error = answer.unwrap_err();
                        assert_eq!(error.kind, SendErrorKind::Tls, "{error}");
                        assert!(error.is_unsent() && error.request.is_some());
                    }
                }
            });
        }
    }
}

#[test]
fn without_an_identity_nothing_goes_to_an_endpoint_that_needs_one() {
    let authority = Authority::new();
    let server = mesh_server(&authority, REVIEWS);
    worker(async {
        let client = Client::new(&Upstreams::new(), model(), &[]);
        client
            .cluster
            .set_endpoints(&[slice([mesh_endpoint(server.address, Some(REVIEWS))])]);
        assert_eq!(client.fetch(get("/")).await.unwrap_err().kind, SendErrorKind::Tls);
    });
}

#[test]
fn plaintext_by_rule_is_plaintext_and_comes_from_the_workloads_address() {
    let server = Server::echo(UpstreamProto::Http1);
    worker(async {
        let mut model = model();
        model.tls = ClientTls::Disable;
        let mut client = Client::new(&Upstreams::new(), model, &[]);
        client
            .cluster
            .set_endpoints(&[slice([mesh_endpoint(server.address, Some(REVIEWS))])]);
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 77));
        client.connector = Rc::new(Connector {
            tls: None,
            source: Source::workload(source),
        });
        let answer = client.send(get("/")).await.unwrap();
        assert!(!answer.connection.mutual_tls);
        assert_eq!(answer.connection.local.ip(), source);
        assert_eq!(answer.connection.peer, server.address);
    });
}

#[test]
fn bytes_pass_through_tcp_with_and_without_tls() {
    let authority = Authority::new();
    let inbound = Arc::new(InboundTls::new(authority.store(REVIEWS)));
    for tls in [false, true] {
        let inbound = Arc::clone(&inbound);
        let server = Server::raw(move |tcp| {
            let inbound = Arc::clone(&inbound);
            async move {
                let mut said = [0; 4];
                if tls {
                    let mut accepted = inbound.accept(tcp).await.unwrap();
                    assert_eq!(accepted.stream.get_ref().1.alpn_protocol(), Some(&b"istio"[..]));
                    accepted.stream.read_exact(&mut said).await.unwrap();
                    accepted.stream.write_all(&said).await.unwrap();
                } else {
                    let mut tcp = tcp;
                    tcp.read_exact(&mut said).await.unwrap();
                    tcp.write_all(&said).await.unwrap();
                }
            }
        });
        worker(async {
            let client = Client::new(&Upstreams::new(), model(), &[]);
            let facts = model::Endpoint {
                mutual_tls: tls,
                ..mesh_endpoint(server.address, Some(REVIEWS))
            };
            client.cluster.set_endpoints(&[slice([facts])]);
            let connector = Connector {
                tls: Some(Arc::new(OutboundTls::new(authority.store(CLIENT)))),
                source: Source::default(),
            };
            let endpoint = client.cluster.pick(None, &[]).unwrap();
            let mut tcp = client
                .pool
                .connect_tcp(&client.cluster, &endpoint, &connector)
                .await
                .unwrap();
            assert_eq!(tcp.io.plain().is_some(), !tls);
            tcp.io.write_all(b"ping").await.unwrap();
            tcp.io.flush().await.unwrap();
            let mut heard = [0; 4];
            tcp.io.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"ping");
            assert_eq!((tcp.io.facts().bytes_read(), tcp.io.facts().bytes_written()), (4, 4));
        });
    }
}

#[test]
fn a_request_over_http2_reaches_a_server_with_its_authority() {
    let server = Server::new(UpstreamProto::Http2, None, |request| async move {
        Response::new(Full::from(request.uri().to_string()))
    });
    worker(async {
        let client = Client::new(&Upstreams::new(), model(), &[server.address]).http2();
        let request = Request::get("/a?b")
            .header("host", "reviews:9080")
            .body(Body::empty())
            .unwrap();
        assert_eq!(client.fetch(request).await.unwrap(), "http://reviews:9080/a?b");
    });
}
