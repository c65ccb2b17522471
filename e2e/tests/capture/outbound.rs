//! Connections of the application: where they go, and as what.

use std::net::SocketAddr;

use e2e::netns::{User, holds};
use e2e::plain::eventually;

use crate::world::*;

/// curl knows nothing of the mesh, and its requests are encrypted, routed and counted.
#[test]
fn requests_of_an_application_are_captured_and_encrypted() {
    let Some(world) = World::start(Plan {
        policy: STRICT,
        ..Plan::default()
    }) else {
        return;
    };
    let wiretap = world.net.listen_in(world.dir.path()).unwrap();
    for (name, address, server) in [("web", WEB, &world.server), ("six", WEB_V6, &world.server_v6)] {
        let host = format!("{name}.default.svc.cluster.local");
        let address = if address.contains(':') {
            format!("[{address}]")
        } else {
            address.to_owned()
        };
        let mut curl = world.client.host.command("curl", User::Application);
        curl.args([
            "-sS",
            "--max-time",
            "20",
            "--noproxy",
            "*",
            "-H",
            "x-secret: plaintext-marker",
        ]);
        curl.args(["--resolve", &format!("{host}:80:{address}"), "--resolve"])
            .arg(format!("{host}:8888:{address}"));
        let body = finish(curl.arg(format!("http://{host}/path")).output().unwrap()).unwrap();
        assert_eq!(body, server.name);
        let seen = server.http.take().pop().unwrap();
        assert_eq!(seen.header("x-secret"), Some("plaintext-marker"));
        let forwarded = seen.header("x-forwarded-client-cert").unwrap();
        assert!(
            forwarded.contains("URI=spiffe://cluster.local/ns/default/sa/client"),
            "{forwarded}"
        );
        // The sidecar reaches the application from an address that is not captured again.
        assert!(
            ["127.0.0.6", "::ffff:127.0.0.6", "::6"].contains(&&*seen.peer.ip().to_string()),
            "{}",
            seen.peer
        );

        let logged = world
            .client
            .logged(&[("authority", &host), ("response_code_details", "via_upstream")]);
        let local = logged["downstream_local_address"].as_str().unwrap();
        assert_eq!(local, format!("{address}:80"), "the original destination");
        let logged = server.logged(&[("authority", &host)]);
        let remote = logged["downstream_remote_address"].as_str().unwrap().to_owned();
        assert!(
            remote.contains(&*world.client.host.v4().to_string())
                || remote.contains(&*world.client.host.v6().to_string()),
            "{remote}"
        );
    }
    let labels = [
        ("reporter", "source"),
        ("source_workload", "client"),
        ("destination_service_name", "web"),
        ("connection_security_policy", "unknown"),
    ];
    eventually("the client counts", || {
        (world.client.metric("istio_requests_total", &labels) == 1.0).then_some(())
    })
    .unwrap();
    let labels = [
        ("reporter", "destination"),
        ("connection_security_policy", "mutual_tls"),
    ];
    eventually("the server counts", || {
        (world.server.metric("istio_requests_total", &labels) == 1.0).then_some(())
    })
    .unwrap();

    if let Some(wiretap) = wiretap {
        // What is plaintext is seen: the wiretap works.
        let outside = world.outside.host.v4().to_string();
        request(
            &world.client.host,
            &outside,
            HTTP,
            "outside.example",
            "/seen-in-plaintext",
        )
        .unwrap();
        let wire = wiretap.until(b"/seen-in-plaintext").unwrap();
        assert!(!holds(&wire, b"plaintext-marker"));
        assert!(!holds(&wire, b"/path"));
    }
}

/// The destination decides where the authority does not: by service address, and by a workload's own address, as clients of
/// headless services connect.
#[test]
fn the_original_destination_finds_services_and_workloads() {
    let Some(world) = World::start(Plan {
        policy: STRICT,
        ..Plan::default()
    }) else {
        return;
    };
    let client = &world.client.host;
    let (server, server_v6) = (
        world.server.host.v4().to_string(),
        world.server_v6.host.v6().to_string(),
    );
    for (address, port, authority, expected) in [
        (WEB, 80, "unknown.example", "web-v1"),
        (WEB, 80, "web", "web-v1"),
        (WEB_V6, 80, "unknown.example", "six-v1"),
        (&*server, HTTP, "unknown.example", "web-v1"),
        (&*server_v6, HTTP, "unknown.example", "six-v1"),
        // The authority comes first.
        (WEB, 80, "six.default.svc.cluster.local", "six-v1"),
    ] {
        let answer = request(client, address, port, authority, "/").unwrap();
        assert_eq!((answer.status, &*answer.body), (200, expected), "{address} {authority}");
    }
    // Declared TCP, where the server speaks first, by service and by workload.
    for (address, port) in [(WEB, 90), (WEB_V6, 90), (&*server, GREETING), (&*server_v6, GREETING)] {
        greeted(client, address, port).unwrap_or_else(|error| panic!("{address}: {error:#}"));
    }
    let security = [
        ("reporter", "destination"),
        ("connection_security_policy", "mutual_tls"),
    ];
    assert!(world.server.metric("istio_tcp_connections_opened_total", &security) >= 2.0);
}

#[test]
fn what_is_outside_passes() {
    let Some(world) = World::start(Plan::default()) else {
        return;
    };
    let client = &world.client.host;
    for address in [world.outside.host.v4(), world.outside.host.v6()] {
        let address = address.to_string();
        let answer = request(client, &address, HTTP, "outside.example", "/").unwrap();
        assert_eq!((answer.status, &*answer.body), (200, "outside"));
        let seen = world.outside.http.take().pop().unwrap();
        assert!(seen.header("x-envoy-peer-metadata").is_none());
        greeted(client, &address, GREETING).unwrap();
    }
    let passed = [("destination_service_name", "PassthroughCluster")];
    assert!(world.client.metric("istio_requests_total", &passed) >= 2.0);
    assert!(world.client.metric("istio_tcp_connections_opened_total", &passed) >= 2.0);
}

#[test]
fn what_is_outside_is_refused_under_registry_only() {
    let Some(world) = World::start(Plan {
        policy: REGISTRY_ONLY,
        ..Plan::default()
    }) else {
        return;
    };
    let (client, outside) = (&world.client.host, world.outside.host.v4().to_string());
    let answer = request(client, &outside, HTTP, "outside.example", "/").unwrap();
    assert_eq!(answer.status, 502);
    assert!(closed(client, &outside, GREETING));
    assert!(world.outside.http.take().is_empty());
    let answer = request(client, WEB, 80, "web", "/").unwrap();
    assert_eq!((answer.status, &*answer.body), (200, "web-v1"));
}

/// A pod that calls its own service comes back to itself, through both sides of its sidecar, with mutual TLS; a call to its
/// own address stays where it is.
#[test]
fn traffic_to_self() {
    let Some(world) = World::start(Plan {
        policy: STRICT,
        ..Plan::default()
    }) else {
        return;
    };
    let client = &world.client;
    let answer = request(&client.host, "198.18.100.9", 80, "client", "/").unwrap();
    assert_eq!((answer.status, &*answer.body), (200, "client"));
    let seen = client.http.take().pop().unwrap();
    let forwarded = seen.header("x-forwarded-client-cert").unwrap();
    assert!(
        forwarded.contains("URI=spiffe://cluster.local/ns/default/sa/client"),
        "{forwarded}"
    );
    greeted(&client.host, "198.18.100.9", 90).unwrap();
    // Over IPv6, where the sidecar's address towards the application is one that `intercept` adds.
    let six = &world.server_v6;
    let answer = request(&six.host, WEB_V6, 80, "six", "/").unwrap();
    assert_eq!((answer.status, &*answer.body), (200, "six-v1"));
    assert_eq!(six.http.take().pop().unwrap().peer.ip().to_string(), "::6");
    greeted(&six.host, WEB_V6, 90).unwrap();

    let own = client.host.v4().to_string();
    let answer = request(&client.host, &own, HTTP, "client", "/").unwrap();
    assert_eq!(answer.status, 200);
    assert!(
        client
            .http
            .take()
            .pop()
            .unwrap()
            .header("x-forwarded-client-cert")
            .is_none()
    );
    for loopback in ["127.0.0.1", "127.0.0.9", "::1"] {
        let answer = request(&client.host, loopback, HTTP, "localhost", "/").unwrap();
        assert_eq!(answer.status, 200);
        assert!(
            client
                .http
                .take()
                .pop()
                .unwrap()
                .header("x-forwarded-client-cert")
                .is_none()
        );
    }
}

/// A connection made straight to the sidecar's ports has no destination: it is closed and counted, and makes no loop.
#[test]
fn connections_to_the_sidecar_itself_are_closed() {
    let Some(world) = World::start(Plan::default()) else {
        return;
    };
    let (client, own) = (&world.client, world.client.host.v4().to_string());
    assert!(closed(&client.host, "127.0.0.1", 15001));
    assert!(closed(&client.host, "127.0.0.1", 15006));
    assert!(closed(&client.host, "::1", 15001));
    assert!(closed(&client.host, &own, 15006));
    assert!(closed(&world.outside.host, &own, 15006));
    // Only on loopback.
    let address = SocketAddr::new(client.host.v4(), 15001);
    let refused = world
        .outside
        .host
        .within(|| std::net::TcpStream::connect(address))
        .unwrap();
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    eventually("the sidecar counts", || {
        let count = |side| client.metric("mesh_capture_connections_refused_total", &[("side", side)]);
        (count("outbound") == 2.0 && count("inbound") == 3.0).then_some(())
    })
    .unwrap();
}
