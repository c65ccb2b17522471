//! Connections to the application: on any port, with PeerAuthentication in force.

use crate::world::*;

#[test]
fn plaintext_is_refused_under_strict_on_every_port() {
    let Some(world) = World::start(Plan {
        policy: STRICT,
        ..Plan::default()
    }) else {
        return;
    };
    for (pod, address) in [
        (&world.server, world.server.host.v4()),
        (&world.server, world.server.host.v6()),
        (&world.server_v6, world.server_v6.host.v6()),
    ] {
        let address = address.to_string();
        for port in [HTTP, GREETING, UNDECLARED] {
            assert!(closed(&world.outside.host, &address, port), "{address} {port}");
        }
        assert!(pod.http.take().is_empty() && pod.undeclared.take().is_empty());
        let strict = [("reason", "plaintext_under_strict")];
        assert!(pod.metric("mesh_inbound_connections_refused_total", &strict) >= 3.0);
    }
    // A workload's port that no service declares is nothing that the mesh knows, as in Istio.
    let server = world.server.host.v4().to_string();
    let answer = request(&world.client.host, &server, UNDECLARED, "whatever.example", "/").unwrap();
    assert_eq!(answer.status, 503);
    assert!(world.server.undeclared.take().is_empty());
}

#[test]
fn plaintext_from_outside_passes_by_default() {
    let Some(world) = World::start(Plan::default()) else {
        return;
    };
    for (pod, address) in [
        (&world.server, world.server.host.v4()),
        (&world.server, world.server.host.v6()),
        (&world.server_v6, world.server_v6.host.v6()),
    ] {
        let address = address.to_string();
        for port in [HTTP, UNDECLARED] {
            let answer = request(&world.outside.host, &address, port, "anything.example", "/").unwrap();
            assert_eq!((answer.status, &*answer.body), (200, pod.name), "{address} {port}");
        }
        greeted(&world.outside.host, &address, GREETING).unwrap();
    }
    let server = world.server.host.v4().to_string();
    let declared = format!("{server}:{HTTP}");
    let logged = world.server.logged(&[("downstream_local_address", &declared)]);
    assert_eq!(logged["upstream_cluster"], format!("inbound|{HTTP}||"));
    let logged = world
        .server
        .logged(&[("downstream_local_address", &format!("{server}:{UNDECLARED}"))]);
    assert_eq!(logged["upstream_cluster"], "InboundPassthroughCluster");
    assert!(
        logged["upstream_local_address"]
            .as_str()
            .unwrap()
            .starts_with("127.0.0.6:")
    );
    let unknown = [
        ("reporter", "destination"),
        ("destination_service_name", "InboundPassthroughCluster"),
    ];
    assert!(world.server.metric("istio_requests_total", &unknown) >= 1.0);
    // Nobody listens there: the connection ends, as it would without a sidecar.
    assert!(closed(&world.outside.host, &server, 4444));
}

/// The application sees neither side of the sidecar as a stranger: `AuthorizationPolicy` decides by the address and port that
/// the peer asked for.
#[test]
fn policy_knows_the_original_destination() {
    let deny = format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: deny, namespace: \
         default}}\nspec:\n  selector: {{matchLabels: {{app: web}}}}\n  action: DENY\n  rules:\n  - when:\n    - {{key: \
         destination.port, values: ['{UNDECLARED}']}}\n    - {{key: source.ip, values: ['198.18.0.20']}}\n"
    );
    let Some(world) = World::start(Plan {
        policy: &deny,
        ..Plan::default()
    }) else {
        return;
    };
    let server = world.server.host.v4().to_string();
    let status = |port| {
        request(&world.outside.host, &server, port, "any.example", "/")
            .unwrap()
            .status
    };
    assert_eq!((status(HTTP), status(UNDECLARED)), (200, 403));
    let answer = request(&world.client.host, &server, UNDECLARED, "any.example", "/").unwrap();
    assert_eq!(answer.status, 200, "another source");
}
