//! What a name leads to: short names, wildcards, addresses, visibility.

use mesh_api::model::{EndpointAddress, EndpointSource, Location, Protocol};

use super::*;

fn entry(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

#[test]
fn names_lead_to_services() {
    let mut mesh = Mesh::shop("");
    for (name, namespace, spec) in [
        (
            "shop-reviews",
            "shop",
            "{hosts: [reviews.shop.svc.cluster.local], location: MESH_INTERNAL, resolution: STATIC, ports: [{number: 80, name: http}]}",
        ),
        (
            "vip",
            "default",
            "{hosts: [vip.example.com], addresses: [10.1.2.3], resolution: DNS, ports: [{number: 5432, name: tcp}]}",
        ),
        (
            "range",
            "default",
            "{hosts: [range.example.com], addresses: [10.2.0.0/16], resolution: NONE, ports: [{number: 5432, name: tcp}]}",
        ),
        (
            "inner",
            "default",
            "{hosts: [inner.example.com], addresses: [10.2.3.0/24], resolution: NONE, ports: [{number: 5432, name: tcp}]}",
        ),
        (
            "wild",
            "default",
            "{hosts: ['*.wild.example.com'], resolution: NONE, ports: [{number: 443, name: tls, protocol: TLS}]}",
        ),
        (
            "wilder",
            "default",
            "{hosts: ['*.example.com'], resolution: NONE, ports: [{number: 443, name: tls, protocol: TLS}]}",
        ),
        (
            "wild-range",
            "default",
            "{hosts: ['*.range.example.com'], addresses: [10.3.0.0/16], resolution: NONE, ports: [{number: 5432, name: tcp}]}",
        ),
        (
            "private",
            "other",
            "{hosts: [private.example.org], exportTo: ['.'], resolution: DNS, ports: [{number: 80, name: http}]}",
        ),
        (
            "shown",
            "other",
            "{hosts: [shown.example.org], exportTo: ['.', default], resolution: DNS, ports: [{number: 80, name: http}]}",
        ),
        (
            "nobodys",
            "default",
            "{hosts: [nobodys.example.org], exportTo: ['~'], resolution: DNS, ports: [{number: 80, name: http}]}",
        ),
        (
            "both-a",
            "default",
            "{hosts: [both.example.org], resolution: DNS, ports: [{number: 80, name: http}]}",
        ),
        (
            "both-b",
            "other",
            "{hosts: [both.example.org], resolution: DNS, ports: [{number: 80, name: http}, {number: 81, name: http-b}]}",
        ),
    ] {
        mesh.add(&entry(name, namespace, spec));
    }
    mesh.add(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: outsider, namespace: other}\nspec: {address: 127.0.3.1, serviceAccount: outsider}\n",
    );
    // (client, asked, host found, or nothing)
    let rows = [
        (
            "client.default",
            "reviews:80",
            Some("reviews.default.svc.cluster.local"),
        ),
        ("outsider.other", "reviews:80", None),
        ("someone.shop", "reviews:80", Some("reviews.shop.svc.cluster.local")),
        (
            "outsider.other",
            "reviews.default:80",
            Some("reviews.default.svc.cluster.local"),
        ),
        (
            "outsider.other",
            "reviews.default.svc:80",
            Some("reviews.default.svc.cluster.local"),
        ),
        (
            "outsider.other",
            "REVIEWS.default.svc.cluster.local.:80",
            Some("reviews.default.svc.cluster.local"),
        ),
        // A port that the service does not have.
        ("client.default", "reviews:81", None),
        ("client.default", "reviews:0", None),
        ("client.default", "reviews", None),
        // Addresses of services, single and ranges, the most specific first; with their ports only.
        ("client.default", "10.1.2.3:5432", Some("vip.example.com")),
        ("client.default", "10.1.2.3:80", None),
        ("client.default", "10.2.9.9:5432", Some("range.example.com")),
        ("client.default", "10.2.3.4:5432", Some("inner.example.com")),
        // Of a wildcard's hosts an address says none.
        ("client.default", "10.3.4.5:5432", Some("10.3.4.5")),
        ("client.default", "10.3.4.5:80", None),
        ("client.default", "[::ffff:10.1.2.3]:5432", Some("vip.example.com")),
        // Wildcards, the most specific first; a wildcard does not cover its own parent.
        ("client.default", "a.wild.example.com:443", Some("a.wild.example.com")),
        ("client.default", "other.example.com:443", Some("other.example.com")),
        ("client.default", "example.com:443", None),
        ("client.default", "nothing.org:443", None),
        // exportTo.
        ("client.default", "private.example.org:80", None),
        ("outsider.other", "private.example.org:80", Some("private.example.org")),
        ("client.default", "shown.example.org:80", Some("shown.example.org")),
        ("someone.third", "shown.example.org:80", None),
        ("client.default", "nobodys.example.org:80", None),
        // Two namespaces declare a host: the client's own counts, for others the older object's.
        ("outsider.other", "both.example.org:81", Some("both.example.org")),
        ("client.default", "both.example.org:81", None),
        ("someone.third", "both.example.org:81", None),
    ];
    for (client, asked, expected) in rows {
        let found = mesh.destination_for(client, asked);
        let host = found.as_ref().map(|destination| destination.service.host.as_str());
        assert_eq!(host, expected, "{client} asks for {asked}");
    }
}

#[test]
fn a_workloads_own_address_leads_to_it_alone() {
    let mesh = Mesh::shop(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v1}}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: pool}
spec: {host: reviews, trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}}}
",
    );
    let destination = mesh.destination("127.0.1.2:9080");
    assert_eq!(&*destination.service.name, "reviews");
    assert_eq!(&*destination.routes[0].name, "default");
    assert_eq!(mesh.endpoints(&destination.clusters[0]), ["127.0.1.2:9080"]);
    assert_eq!(destination.clusters[0].pool.max_connections, 7);
    assert_eq!(mesh.destination_for("client.default", "127.0.1.2:80"), None);
    assert_eq!(mesh.destination_for("client.default", "127.0.9.9:9080"), None);
}

#[test]
fn external_services_are_plain_and_found_as_they_say() {
    let rows = [
        ("resolution: DNS", vec!["Name(\"api.example.com\"):8443"]),
        (
            "resolution: DNS_ROUND_ROBIN",
            vec!["NameRoundRobin(\"api.example.com\"):8443"],
        ),
        (
            "resolution: DNS, endpoints: [{address: a.example.com}, {address: b.example.com, ports: {http: 81}}]",
            vec!["Name(\"a.example.com\"):8443", "Name(\"b.example.com\"):81"],
        ),
        (
            "resolution: STATIC, endpoints: [{address: 127.0.7.1}, {address: 127.0.7.2, ports: {http: 82}, weight: 3}]",
            vec!["127.0.7.1:8443", "127.0.7.2:82"],
        ),
        ("resolution: STATIC", vec![]),
    ];
    for (spec, expected) in rows {
        let mesh = Mesh::of(&entry(
            "api",
            "default",
            &format!(
                "{{hosts: [api.example.com], ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8443}}], {spec}}}"
            ),
        ));
        let destination = mesh.destination("api.example.com:80");
        assert_eq!(destination.location, Location::MeshExternal, "{spec}");
        assert_eq!(mesh.endpoints(&destination.clusters[0]), expected, "{spec}");
        let EndpointSource::Slices(names) = &destination.clusters[0].endpoints else {
            panic!("{spec}");
        };
        assert!(
            mesh.slice(&names[0])
                .endpoints
                .iter()
                .all(|endpoint| !endpoint.mutual_tls),
            "{spec}"
        );
    }
    let mesh = Mesh::of(&entry(
        "api",
        "default",
        "{hosts: ['*.example.com'], ports: [{number: 443, name: tls}]}",
    ));
    let destination = mesh.destination("www.example.com:443");
    assert_eq!(destination.clusters[0].endpoints, EndpointSource::Passthrough);
    assert_eq!(destination.protocol, Protocol::Tls);
    assert!(destination.routes.is_empty());
    let mesh = Mesh::of(&entry(
        "api",
        "default",
        "{hosts: ['*.example.com'], resolution: DYNAMIC_DNS, ports: [{number: 80, name: http}]}",
    ));
    let destination = mesh.destination("www.example.com:80");
    assert_eq!(
        mesh.endpoints(&destination.clusters[0]),
        ["Name(\"www.example.com\"):80"]
    );
}

#[test]
fn endpoints_take_mutual_tls_if_they_have_a_sidecar_and_policy_allows() {
    let base = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a}
spec:
  hosts: [a.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, targetPort: 8080}, {number: 81, name: other, targetPort: 8081}]
  workloadSelector: {labels: {app: a}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: one}
spec: {address: 127.0.1.1, WORKLOAD, labels: {app: a LABEL}}
---
";
    let disable = |spec: &str| {
        format!("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p}}\nspec: {spec}\n")
    };
    // (workload, labels, policy, on port 80, on port 81)
    let rows = [
        ("serviceAccount: a", "", String::new(), true, true),
        ("weight: 1", "", String::new(), false, false),
        (
            "serviceAccount: a",
            ", security.istio.io/tlsMode: disabled",
            String::new(),
            false,
            false,
        ),
        (
            "serviceAccount: a",
            ", security.istio.io/tlsMode: istio",
            String::new(),
            true,
            true,
        ),
        (
            "serviceAccount: a",
            "",
            disable("{mtls: {mode: DISABLE}}"),
            false,
            false,
        ),
        ("serviceAccount: a", "", disable("{mtls: {mode: STRICT}}"), true, true),
        (
            "serviceAccount: a",
            "",
            disable("{selector: {matchLabels: {app: a}}, portLevelMtls: {8081: {mode: DISABLE}}}"),
            true,
            false,
        ),
        (
            "serviceAccount: a",
            "",
            disable("{selector: {matchLabels: {app: b}}, mtls: {mode: DISABLE}}"),
            true,
            true,
        ),
    ];
    for (workload, label, policy, first, second) in rows {
        let mesh = Mesh::of(&(base.replace("WORKLOAD", workload).replace(" LABEL", label) + &policy));
        for (port, expected) in [(80, first), (81, second)] {
            let slice = mesh.slice(&format!("a.default.svc.cluster.local:{port}/default/0-1"));
            assert_eq!(
                slice.endpoints[0].mutual_tls, expected,
                "{workload} {label} {policy} {port}"
            );
        }
    }
}

#[test]
fn endpoints_stay_in_their_slice_when_others_come_and_go() {
    let mut mesh = Mesh::shop("");
    let workload = |number: usize| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: r{number}}}\nspec: {{address: 127.1.{}.{}, serviceAccount: reviews, labels: {{app: reviews}}}}\n---\n",
            number / 250,
            number % 250 + 1
        )
    };
    mesh.add(&(0..298).map(workload).collect::<String>());
    let names = |mesh: &Mesh| match &mesh.destination("reviews:80").clusters[0].endpoints {
        EndpointSource::Slices(names) => names.clone(),
        other => panic!("{other:?}"),
    };
    let before = names(&mesh);
    assert_eq!(before.len(), 8);
    let slices: Vec<_> = before.iter().map(|name| mesh.slice(name)).collect();
    assert_eq!(slices.iter().map(|slice| slice.endpoints.len()).sum::<usize>(), 300);
    mesh.add(&workload(298));
    assert_eq!(names(&mesh), before);
    let changed = before
        .iter()
        .zip(&slices)
        .filter(|(name, old)| mesh.slice(name) != **old)
        .count();
    assert_eq!(changed, 1);
    let address = |endpoint: &mesh_api::model::Endpoint| match &endpoint.address {
        EndpointAddress::Ip(address) => *address,
        other => panic!("{other:?}"),
    };
    let mut all: Vec<_> = before
        .iter()
        .flat_map(|name| mesh.slice(name).endpoints)
        .map(|e| address(&e))
        .collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 301);
}
