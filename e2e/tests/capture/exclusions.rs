//! What is included, and what is left alone.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crate::world::*;

fn direct(world: &World, port: u16) -> bool {
    let outside = world.outside.host.v4().to_string();
    request(&world.client.host, &outside, port, "outside.example", "/").is_ok_and(|answer| answer.status == 200)
}

/// Rules change, the world stays.
#[test]
fn what_is_left_alone() {
    let plan = Plan {
        policy: REGISTRY_ONLY,
        ..Plan::default()
    };
    let Some(world) = World::start(plan) else { return };
    dns(&world);
    outbound_ports_and_ranges(&world);
    inbound_ports(&world);
    removal(&world);
}

/// Under `REGISTRY_ONLY`, what is captured gets 502 and what is not reaches the host outside.
fn outbound_ports_and_ranges(world: &World) {
    let v6 = "2001:db8::20";
    for (arguments, v4_captured, v6_captured) in [
        (&[][..], true, true),
        (&["--exclude-outbound-ports", "25,8080"], false, false),
        (&["--exclude-outbound-ports", "25"], true, true),
        (&["--exclude-outbound-ranges", "198.18.0.16/28"], false, true),
        (&["--exclude-outbound-ranges", "2001:db8::20"], true, false),
        (&["--outbound-ranges", "198.18.100.0/24"], false, false),
        (&["--outbound-ranges", "198.18.0.0/16"], true, false),
        (&["--outbound-ranges", "2001:db8::/32"], false, true),
        (
            &["--outbound-ranges", "198.18.100.0/24", "--outbound-ports", "8080"],
            true,
            true,
        ),
        // Exclusions win.
        (
            &[
                "--outbound-ports",
                "8080",
                "--exclude-outbound-ranges",
                "198.18.0.20/32",
            ],
            false,
            true,
        ),
        (&["--exclude-interfaces", "eth0"], false, false),
        (&["--exclude-interfaces", "eth1"], true, true),
    ] {
        world
            .client
            .intercept(&world.dir, &[arguments, &["--check"]].concat())
            .unwrap();
        assert_eq!(!direct(world, HTTP), v4_captured, "{arguments:?}");
        let answer = request(&world.client.host, v6, HTTP, "outside.example", "/").unwrap();
        assert_eq!(answer.status == 502, v6_captured, "{arguments:?}");
    }
}

fn inbound_ports(world: &World) {
    for (arguments, http, undeclared) in [
        (&[][..], true, true),
        (&["--exclude-inbound-ports", "7070"], true, false),
        (&["--inbound-ports", "7070,9999"], false, true),
        (
            &["--inbound-ports", "7070", "--exclude-inbound-ports", "7070"],
            false,
            false,
        ),
        (&["--inbound-ports="], false, false),
        (&["--exclude-interfaces", "eth0"], false, false),
    ] {
        world
            .server
            .intercept(&world.dir, &[arguments, &["--check"]].concat())
            .unwrap();
        for (port, captured) in [(HTTP, http), (UNDECLARED, undeclared)] {
            for address in [world.server.host.v4(), world.server.host.v6()] {
                request(&world.outside.host, &address.to_string(), port, "any.example", "/").unwrap();
                let app = if port == HTTP {
                    &world.server.http
                } else {
                    &world.server.undeclared
                };
                let by_sidecar = app.take().pop().unwrap().header("x-request-id").is_some();
                assert_eq!(by_sidecar, captured, "{arguments:?} {address} {port}");
            }
        }
    }
}

/// Once removed, nothing is captured, and removing is no error twice.
fn removal(world: &World) {
    world.client.intercept(&world.dir, &[]).unwrap();
    assert!(!direct(world, HTTP));
    for _ in 0..2 {
        world.client.intercept(&world.dir, &["--clean"]).unwrap();
        assert!(direct(world, HTTP));
    }
}

/// Only TCP is redirected: a name server outside sees the application's own datagrams.
fn dns(world: &World) {
    for address in [world.outside.host.v4(), world.outside.host.v6()] {
        let server = world
            .outside
            .host
            .within(|| UdpSocket::bind(SocketAddr::new(address, 53)))
            .unwrap()
            .unwrap();
        let source = if address.is_ipv4() {
            world.client.host.v4()
        } else {
            world.client.host.v6()
        };
        let client = world
            .client
            .host
            .within(|| UdpSocket::bind(SocketAddr::new(source, 0)))
            .unwrap()
            .unwrap();
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        client.send_to(b"question", SocketAddr::new(address, 53)).unwrap();
        let mut buffer = [0; 64];
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..length], from),
            (&b"question"[..], client.local_addr().unwrap())
        );
        server.send_to(b"answer", from).unwrap();
        let (length, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..length], from),
            (&b"answer"[..], server.local_addr().unwrap())
        );
    }
}
