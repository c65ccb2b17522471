//! What is outside the mesh: ServiceEntries of every kind, what leaves without one, and who may see them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};

use e2e::app::{App, ping};
use e2e::client::{Answer, Call, read_answer, tunnel};
use e2e::exposition::sum;
use e2e::plain::{Mesh, Sidecar, SidecarOptions, eventually, workload_entry};

struct World {
    mesh: Mesh,
    http: App,
    tcp: App,
    client: Sidecar,
}

/// A client's sidecar, and two servers that know nothing of the mesh.
fn world(objects: impl FnOnce(&Mesh, SocketAddr, SocketAddr) -> String) -> anyhow::Result<World> {
    let (http, tcp) = (App::http("outside")?, App::tcp("")?);
    let mesh = Mesh::start(|mesh| {
        workload_entry("client", mesh.address(0), "client", "v1") + &objects(mesh, http.address, tcp.address)
    })?;
    let mut client = mesh.sidecar("client", &SidecarOptions::default())?;
    client.wait_ready()?;
    Ok(World {
        mesh,
        http,
        tcp,
        client,
    })
}

impl World {
    fn get(&self, url: &str) -> Answer {
        Call::get(url)
            .through(self.client.outbound())
            .unwrap_or_else(|error| panic!("{url}: {error:#}"))
    }

    /// A request as interception finds it: on a connection to an address, with a host of its own.
    fn captured(&self, address: SocketAddr, host: &str) -> anyhow::Result<Answer> {
        let mut stream = tunnel(self.client.outbound(), &address.to_string())?;
        write!(stream, "GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
        read_answer(stream)
    }

    fn echoes(&self, target: &str) -> anyhow::Result<()> {
        let mut stream = tunnel(self.client.outbound(), target)?;
        ping(&mut stream, b"there and back")
    }

    fn count(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels = [&[("reporter", "source"), ("source_workload", "client")], labels].concat();
        sum(&self.client.metrics_page().unwrap(), name, &labels).unwrap()
    }

    fn counted(&self, name: &str, labels: &[(&str, &str)]) {
        eventually(&format!("{name} {labels:?}"), || {
            (self.count(name, labels) > 0.0).then_some(())
        })
        .unwrap();
    }
}

fn entry(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n{spec}"
    )
}

fn outbound_policy(mode: &str) -> String {
    format!(
        "---\napiVersion: mesh.dev/v1\nkind: MeshConfig\nmetadata: {{name: mesh}}\nspec: {{outboundTrafficPolicy: {{mode: {mode}}}}}\n"
    )
}

#[test]
fn static_endpoints_outside_are_spoken_to_in_plaintext() -> anyhow::Result<()> {
    let world = world(|_, http, tcp| {
        entry(
            "static",
            "default",
            &format!(
                "  hosts: [static.example.com, '*.static.example.com']\n  location: MESH_EXTERNAL\n  resolution: STATIC\n  ports:\n  \
                 - {{number: 80, name: http, protocol: HTTP}}\n  - {{number: 81, name: h2, protocol: HTTP2}}\n  \
                 endpoints:\n  - {{address: {}, ports: {{http: {port}, h2: {port}}}}}\n",
                http.ip(),
                port = http.port(),
            ),
        ) + &entry(
            "static-tcp",
            "default",
            &format!(
                "  hosts: [tcp.example.com]\n  resolution: STATIC\n  ports:\n  - {{number: 90, name: tcp, protocol: TCP}}\n  \
                 endpoints:\n  - {{address: {}, ports: {{tcp: {}}}}}\n",
                tcp.ip(),
                tcp.port()
            ),
        ) + &outbound_policy("REGISTRY_ONLY")
    })?;
    let answer = Call::get("http://static.example.com/path")
        .header("x-envoy-peer-metadata", "what Istio's sidecars tell each other")
        .header("x-forwarded-client-cert", "By=this;URI=somebody")
        .through(world.client.outbound())?;
    assert_eq!((answer.status, answer.body.as_str()), (200, "outside"));
    let seen = world.http.take();
    assert_eq!(
        (seen[0].header("host"), seen[0].path.as_str()),
        (Some("static.example.com"), "/path")
    );
    assert_eq!(seen[0].version, http::Version::HTTP_11);
    assert_eq!(
        seen[0].header("x-envoy-peer-metadata"),
        None,
        "who we are is nobody's business outside"
    );
    assert_eq!(seen[0].header("x-forwarded-client-cert"), None);
    assert_eq!(world.get("http://static.example.com:81/").status, 200);
    assert_eq!(world.http.take()[0].version, http::Version::HTTP_2);
    world.echoes("tcp.example.com:90")?;

    // Wildcards: any name below, not the name of another.
    for host in ["a.static.example.com", "a.b.static.example.com"] {
        assert_eq!(world.get(&format!("http://{host}/")).body, "outside", "{host}");
        assert_eq!(world.http.take()[0].header("host"), Some(host));
    }
    assert_eq!(world.get("http://nonstatic.example.com/").status, 502);
    assert_eq!(world.get("http://example.com/").status, 502);
    // A port that the entry does not have is not in the mesh either.
    assert_eq!(world.get("http://static.example.com:8080/").status, 502);

    let labels = [
        ("destination_service", "static.example.com"),
        ("destination_service_name", "static.example.com"),
        ("destination_principal", "unknown"),
        ("response_code", "200"),
    ];
    world.counted("istio_requests_total", &labels);
    world.counted(
        "istio_tcp_connections_opened_total",
        &[("destination_service", "tcp.example.com")],
    );
    Ok(())
}

#[test]
fn names_are_resolved_by_dns() -> anyhow::Result<()> {
    let world = world(|_, http, tcp| {
        let with_endpoint = format!(
            "  hosts: [dns.example.com]\n  resolution: DNS\n  ports:\n  - {{number: 80, name: http, protocol: HTTP}}\n  \
             - {{number: 90, name: tcp, protocol: TCP}}\n  endpoints:\n  - {{address: localhost, ports: {{http: {}, tcp: {}}}}}\n",
            http.port(),
            tcp.port()
        );
        let by_host = format!(
            "  hosts: [localhost]\n  resolution: DNS\n  ports:\n  - {{number: {}, name: http, protocol: HTTP}}\n",
            http.port()
        );
        let unknown = "  hosts: [nowhere.example.com]\n  resolution: DNS\n  ports:\n  - {number: 80, name: http, protocol: HTTP}\n  \
                       endpoints:\n  - {address: nowhere.invalid}\n";
        entry("with-endpoint", "default", &with_endpoint)
            + &entry("by-host", "default", &by_host)
            + &entry("unknown", "default", unknown)
            + &outbound_policy("REGISTRY_ONLY")
    })?;
    // The first request may come before the first answer of the resolver.
    eventually("dns.example.com answers", || {
        (world.get("http://dns.example.com/").status == 200).then_some(())
    })?;
    let seen = world.http.take();
    assert_eq!(
        seen.last().unwrap().header("host"),
        Some("dns.example.com"),
        "the name, not where it leads"
    );
    world.echoes("dns.example.com:90")?;
    let url = format!("http://localhost:{}/", world.http.address.port());
    eventually("localhost answers", || (world.get(&url).status == 200).then_some(()))?;
    assert_eq!(
        world.get("http://nowhere.example.com/").status,
        503,
        "no address, no endpoint"
    );
    world.counted(
        "istio_requests_total",
        &[("destination_service", "dns.example.com"), ("response_code", "200")],
    );
    Ok(())
}

#[test]
fn without_resolution_connections_go_where_they_were_going() -> anyhow::Result<()> {
    let world = world(|mesh, _, _| {
        let outside = mesh.address(40);
        let spec = format!(
            "  hosts: ['*.none.example.com']\n  resolution: NONE\n  location: MESH_EXTERNAL\n  addresses: [{outside}/32]\n  ports:\n  \
             - {{number: 8080, name: http, protocol: HTTP}}\n  - {{number: 9090, name: tcp, protocol: TCP}}\n"
        );
        let local =
            "  hosts: [localhost]\n  resolution: NONE\n  ports:\n  - {number: 8081, name: http, protocol: HTTP}\n";
        entry("none", "default", &spec) + &entry("local", "default", local) + &outbound_policy("REGISTRY_ONLY")
    })?;
    let outside: IpAddr = world.mesh.address(40);
    let (http, tcp) = (SocketAddr::new(outside, 8080), SocketAddr::new(outside, 9090));
    let (at_address, raw) = (App::http_at("at its address", http)?, App::tcp_at("", tcp)?);
    world.echoes(&tcp.to_string()).unwrap();
    let answer = world.captured(http, "a.none.example.com")?;
    assert_eq!((answer.status, answer.body.as_str()), (200, "at its address"));
    assert_eq!(at_address.take()[0].header("host"), Some("a.none.example.com"));
    world.counted(
        "istio_requests_total",
        &[("destination_service", "a.none.example.com"), ("response_code", "200")],
    );

    // Through the explicit proxy there is no address but the host's own.
    let local = App::http_at("by its name", "127.0.0.1:8081".parse()?);
    if let Ok(local) = local {
        let answer = world.get("http://localhost:8081/");
        assert_eq!((answer.status, answer.body.as_str()), (200, "by its name"));
        assert_eq!(local.take().len(), 1);
    }
    drop(raw);
    Ok(())
}

#[test]
fn what_nobody_knows_follows_the_outbound_policy() -> anyhow::Result<()> {
    let world = world(|_, _, _| String::new())?;
    let (http, tcp) = (world.http.address, world.tcp.address);
    let by_name = format!("http://localhost:{}/", http.port());
    let by_address = format!("http://{http}/");

    // ALLOW_ANY is what holds when nobody says.
    for url in [&by_name, &by_address] {
        let answer = world.get(url);
        assert_eq!((answer.status, answer.body.as_str()), (200, "outside"), "{url}");
    }
    world.echoes(&tcp.to_string())?;
    world.echoes(&format!("localhost:{}", tcp.port()))?;
    assert_eq!(
        world.captured(http, "unknown.example.com")?.body,
        "outside",
        "the address decides, whatever the host says"
    );
    let passed = [
        ("destination_service_name", "PassthroughCluster"),
        ("destination_service", "unknown"),
    ];
    world.counted("istio_requests_total", &passed);
    world.counted("istio_tcp_connections_opened_total", &passed);
    let nowhere = world.get("http://nowhere.invalid/");
    assert_eq!(nowhere.status, 503, "{nowhere:?}");
    let _ = world.http.take();

    world.mesh.write("mesh.yaml", &outbound_policy("REGISTRY_ONLY"))?;
    eventually("HTTP is refused", || (world.get(&by_name).status == 502).then_some(()))?;
    let _ = world.http.take();
    assert_eq!(world.get(&by_address).status, 502);
    assert_eq!(world.captured(http, "unknown.example.com")?.status, 502);
    for target in [tcp.to_string(), format!("localhost:{}", tcp.port())] {
        let mut stream = tunnel(world.client.outbound(), &target)?;
        let _ = stream.write_all(b"hello");
        assert_eq!(stream.read(&mut [0; 10]).unwrap_or(0), 0, "{target}: closed");
    }
    assert!(world.http.take().is_empty());
    let refused = [("destination_service_name", "BlackHoleCluster")];
    world.counted("istio_requests_total", &[refused[0], ("response_code", "502")]);
    world.counted("istio_tcp_connections_closed_total", &refused);

    world.mesh.delete("mesh.yaml")?;
    eventually("and let through again", || {
        (world.get(&by_name).status == 200).then_some(())
    })?;
    Ok(())
}

#[test]
fn entries_are_seen_by_whom_they_are_exported_to() -> anyhow::Result<()> {
    let world = world(|_, http, _| {
        let spec = |host: &str, export: &str| {
            format!(
                "  hosts: [{host}]\n  resolution: STATIC\n  {export}\n  ports:\n  - {{number: 80, name: http, protocol: HTTP}}\n  \
                 endpoints:\n  - {{address: {}, ports: {{http: {}}}}}\n",
                http.ip(),
                http.port()
            )
        };
        [
            entry("private", "elsewhere", &spec("private.example.com", "exportTo: ['.']")),
            entry("named", "elsewhere", &spec("named.example.com", "exportTo: [default]")),
            entry("all", "elsewhere", &spec("all.example.com", "exportTo: ['*']")),
            entry(
                "silent",
                "elsewhere",
                &spec("silent.example.com", "location: MESH_EXTERNAL"),
            ),
            entry("own", "default", &spec("own.example.com", "exportTo: ['.']")),
            entry(
                "others",
                "elsewhere",
                &spec("others.example.com", "exportTo: [another]"),
            ),
            outbound_policy("REGISTRY_ONLY"),
        ]
        .concat()
    })?;
    for (host, status) in [
        ("private", 502),
        ("others", 502),
        ("named", 200),
        ("all", 200),
        ("silent", 200),
        ("own", 200),
    ] {
        assert_eq!(
            world.get(&format!("http://{host}.example.com/")).status,
            status,
            "{host}"
        );
    }
    assert_eq!(world.http.take().len(), 4);
    Ok(())
}
