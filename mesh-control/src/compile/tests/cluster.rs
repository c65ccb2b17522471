//! Kubernetes' own kinds: what Services, EndpointSlices, Pods and Nodes mean to those who ask.

use mesh_api::model::{EndpointAddress, MtlsMode, Protocol};

use super::*;
use crate::compile::{settings, workload_at};
use crate::source::cluster::ClusterRef;

/// `reviews` as the reference document has it: ports 80 and 9080, both to 9080, and two pods, of which one has a sidecar.
const CLUSTER: &str = r#"
kind: Node
metadata:
  name: node-1
  labels: {topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: z1}
spec: {podCIDRs: [198.18.1.0/24]}
---
kind: Service
metadata: {name: reviews, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  type: ClusterIP
  clusterIP: 198.19.0.10
  clusterIPs: [198.19.0.10]
  selector: {app: reviews}
  ports:
  - {name: http, port: 80, targetPort: 9080, protocol: TCP}
  - {name: http-old, port: 9080, targetPort: http, protocol: TCP}
  - {name: dns, port: 53, targetPort: 53, protocol: UDP}
---
kind: Pod
metadata:
  name: reviews-v1-7d4b-abcde
  labels: {app: reviews, version: v1, pod-template-hash: 7d4b, security.istio.io/tlsMode: istio}
  ownerReferences: [{kind: ReplicaSet, name: reviews-v1-7d4b, controller: true}]
spec:
  serviceAccountName: reviews
  nodeName: node-1
  containers: [{ports: [{name: http, containerPort: 9080}]}, {ports: [{name: dns, containerPort: 53, protocol: UDP}]}]
status: {phase: Running, podIP: 198.18.1.1, podIPs: [{ip: 198.18.1.1}], conditions: [{type: Ready, status: "True"}]}
---
kind: Pod
metadata: {name: reviews-v2-1, labels: {app: reviews, version: v2}}
spec: {containers: [{ports: [{name: http, containerPort: 9080}]}]}
status: {phase: Running, podIP: 198.18.1.2, conditions: [{type: Ready, status: "True"}]}
---
kind: Pod
metadata: {name: client, labels: {app: client, tier: front, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: client}
status: {phase: Running, podIP: 198.18.1.9}
---
kind: EndpointSlice
metadata: {name: reviews-1, labels: {kubernetes.io/service-name: reviews}}
addressType: IPv4
ports: [{name: http, port: 9080, protocol: TCP}, {name: http-old, port: 9080}]
endpoints:
- {addresses: [198.18.1.1], targetRef: {kind: Pod, name: reviews-v1-7d4b-abcde}, conditions: {ready: true, serving: true, terminating: false}}
- {addresses: [198.18.1.2], targetRef: {kind: Pod, name: reviews-v2-1}}
"#;

fn cluster(more: &str) -> Mesh {
    let mut mesh = Mesh::of(CLUSTER);
    mesh.add(more);
    mesh
}

/// A slice of `web` with these endpoints.
fn slice(name: &str, family: &str, endpoints: &str) -> String {
    format!(
        "kind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: {family}\nports: [{{name: http, port: 8080}}]\nendpoints: {endpoints}\n"
    )
}

const WEB: &str = "kind: Service\nmetadata: {name: web}\nspec: {clusterIP: 198.19.0.20, selector: {app: web}, ports: \
                   [{name: http, port: 80, targetPort: 8080}]}\n";

fn pod(name: &str, address: &str) -> String {
    format!(
        "kind: Pod\nmetadata: {{name: {name}, labels: {{app: web}}}}\nspec: {{}}\n\
         status: {{phase: Running, podIP: '{address}'}}\n"
    )
}

fn web(objects: &[&str]) -> Mesh {
    let mut mesh = Mesh::of(WEB);
    objects.iter().for_each(|object| mesh.add(object));
    mesh
}

fn web_endpoints(mesh: &Mesh) -> Vec<String> {
    let destination = mesh.destination("web.default:80");
    mesh.endpoints(&destination.clusters[0])
}

#[test]
fn every_name_and_address_of_a_service_leads_to_its_ready_pods() {
    let mesh = cluster("");
    let names = [
        "reviews:80",
        "reviews.default:80",
        "reviews.default.svc:80",
        "reviews.default.svc.cluster.local:80",
        "reviews.default.svc.cluster.local.:80",
        "198.19.0.10:80",
        "reviews:9080",
    ];
    for name in names {
        let destination = mesh.destination(name);
        assert_eq!(&*destination.service.name, "reviews", "{name}");
        assert_eq!(destination.protocol, Protocol::Http, "{name}");
        let endpoints = mesh.endpoints(&destination.clusters[0]);
        assert_eq!(endpoints, ["198.18.1.1:9080", "198.18.1.2:9080"], "{name}");
    }
    assert!(mesh.destination_for("client.default", "reviews:53").is_none(), "UDP");
    assert!(mesh.destination_for("client.default", "reviews:81").is_none());
}

#[test]
fn endpoints_know_their_pods() {
    let mesh = cluster("");
    let destination = mesh.destination("reviews:80");
    let EndpointSource::Slices(names) = &destination.clusters[0].endpoints else {
        panic!("{:?}", destination.clusters);
    };
    let slice = mesh.slice(&names[0]);
    let [meshed, plain] = slice.endpoints.as_slice() else {
        panic!("{slice:?}");
    };
    assert!(meshed.mutual_tls);
    assert_eq!(&*meshed.workload.name, "reviews-v1", "the Deployment");
    assert_eq!(&*meshed.workload.locality.region, "r1");
    assert_eq!(&*meshed.workload.locality.zone, "z1");
    assert_eq!(
        meshed.workload.identity.as_ref().unwrap().as_str(),
        "spiffe://cluster.local/ns/default/sa/reviews"
    );
    assert!(!plain.mutual_tls);
    assert_eq!(&*plain.workload.name, "reviews-v2-1", "nobody owns it");
    assert_eq!(plain.workload.identity, None);
}

#[test]
fn a_pod_receives_on_the_ports_of_services_that_select_it() {
    let mesh = cluster("");
    let inbound = mesh.inbound("reviews-v1-7d4b-abcde.default");
    let [port] = inbound.ports.as_slice() else {
        panic!("{:?}", inbound.ports);
    };
    assert_eq!(
        (port.port, port.protocol, port.mtls),
        (9080, Protocol::Http, MtlsMode::Permissive)
    );
    assert_eq!(port.services.len(), 1);
    assert_eq!(mesh.inbound("client.default").ports, []);
}

#[test]
fn protocols_are_declared_or_named() {
    let rows = [
        ("name: web, appProtocol: grpc", Protocol::Grpc),
        ("name: grpc, appProtocol: http", Protocol::Http),
        ("name: x, appProtocol: kubernetes.io/h2c", Protocol::Http2),
        ("name: grpc-web", Protocol::Http2),
        ("name: tcp-x", Protocol::Tcp),
        ("name: x", Protocol::Detect),
        ("name: http, appProtocol: example.com/own", Protocol::Detect),
    ];
    for (port, expected) in rows {
        let service = format!("kind: Service\nmetadata: {{name: a}}\nspec: {{ports: [{{{port}, port: 1}}]}}");
        assert_eq!(
            Mesh::of(&service).destination("a.default:1").protocol,
            expected,
            "{port}"
        );
    }
}

#[test]
fn only_who_is_ready_serves_and_who_ends_only_if_nobody_else_does() {
    let endpoint = |pod: &str, conditions: &str| {
        let address = pod.trim_start_matches('p');
        format!(
            "{{addresses: [198.18.2.{address}], targetRef: {{kind: Pod, name: {pod}}}, conditions: {{{conditions}}}}}"
        )
    };
    let ready = "ready: true, serving: true, terminating: false";
    let unready = "ready: false, serving: false, terminating: false";
    let ending = "ready: false, serving: true, terminating: true";
    let ended = "ready: false, serving: false, terminating: true";
    type Endpoints<'a> = &'a [(&'a str, &'a str)];
    let rows: [(Endpoints<'_>, &[&str]); 6] = [
        (&[("p1", ready), ("p2", unready), ("p3", ending)], &["198.18.2.1:8080"]),
        (&[("p1", ""), ("p2", unready)], &["198.18.2.1:8080"]),
        (&[("p1", ending), ("p2", unready), ("p3", ended)], &["198.18.2.1:8080"]),
        (
            &[("p1", ending), ("p2", ending)],
            &["198.18.2.1:8080", "198.18.2.2:8080"],
        ),
        (&[("p1", unready), ("p2", ended)], &[]),
        // publishNotReadyAddresses: the API server says ready.
        (
            &[("p1", "ready: true, serving: false, terminating: true")],
            &["198.18.2.1:8080"],
        ),
    ];
    for (endpoints, expected) in rows {
        let list: Vec<String> = endpoints
            .iter()
            .map(|(pod, conditions)| endpoint(pod, conditions))
            .collect();
        let mut mesh = web(&[&slice("web-1", "IPv4", &format!("[{}]", list.join(", ")))]);
        for name in ["p1", "p2", "p3"] {
            mesh.add(&pod(name, &format!("198.18.2.{}", &name[1..])));
        }
        assert_eq!(web_endpoints(&mesh), expected, "{endpoints:?}");
    }
}

#[test]
fn slices_of_a_service_are_joined_and_each_pod_counts_once() {
    let one = "[{addresses: [198.18.2.1], targetRef: {kind: Pod, name: p1}}]";
    let both = "[{addresses: [198.18.2.1], targetRef: {kind: Pod, name: p1}}, \
                {addresses: [198.18.2.2], targetRef: {kind: Pod, name: p2}}]";
    let six = "[{addresses: ['2001:db8::1'], targetRef: {kind: Pod, name: p1}}]";
    let pods = [pod("p1", "198.18.2.1"), pod("p2", "198.18.2.2")];
    let mut mesh = web(&[
        &slice("web-1", "IPv4", one),
        &slice("web-2", "IPv4", both),
        &slice("web-3", "IPv6", six),
        &pods[0],
        &pods[1],
    ]);
    assert_eq!(web_endpoints(&mesh), ["198.18.2.1:8080", "198.18.2.2:8080"]);
    mesh.add(&WEB.replace("selector:", "ipFamilies: [IPv6, IPv4], selector:"));
    assert_eq!(
        web_endpoints(&mesh),
        ["198.18.2.2:8080", "[2001:db8::1]:8080"].map(|text| text.replace(['[', ']'], ""))
    );
    mesh.world.apply(&Event::Vanished(ClusterRef {
        kind: ClusterKind::EndpointSlice,
        namespace: "default".into(),
        name: "web-2".into(),
    }));
    mesh.add(WEB);
    assert_eq!(web_endpoints(&mesh), ["198.18.2.1:8080"]);
}

#[test]
fn an_endpoint_waits_for_its_pod_and_one_without_pod_is_plaintext() {
    let endpoints = "[{addresses: [198.18.2.1], targetRef: {kind: Pod, name: p1}}, {addresses: [198.18.9.9], zone: z}]";
    let mut mesh = web(&[&slice("web-1", "IPv4", endpoints)]);
    assert_eq!(web_endpoints(&mesh), ["198.18.9.9:8080"]);
    mesh.add(&pod("p1", "198.18.2.1"));
    assert_eq!(web_endpoints(&mesh), ["198.18.2.1:8080", "198.18.9.9:8080"]);
    let direct = mesh.destination("198.18.9.9:8080");
    assert_eq!(mesh.endpoints(&direct.clusters[0]), ["198.18.9.9:8080"]);
}

#[test]
fn slices_may_hold_names() {
    let mesh = web(&[&slice("web-1", "FQDN", "[{addresses: [db.example.com]}]")]);
    let destination = mesh.destination("web:80");
    let EndpointSource::Slices(names) = &destination.clusters[0].endpoints else {
        panic!("{destination:?}");
    };
    let endpoints = mesh.slice(&names[0]).endpoints;
    assert_eq!(endpoints[0].address, EndpointAddress::Name("db.example.com".into()));
}

#[test]
fn headless_services_are_reached_by_name_by_pod_and_by_address() {
    let headless = WEB.replace("clusterIP: 198.19.0.20", "clusterIP: None");
    let endpoints = "[{addresses: [198.18.2.1], hostname: web-0, targetRef: {kind: Pod, name: web-0}}, \
                     {addresses: [198.18.2.2], hostname: other, targetRef: {kind: Pod, name: web-1}}]";
    let mesh = web(&[
        &headless,
        &slice("web-1", "IPv4", endpoints),
        &pod("web-0", "198.18.2.1"),
        &pod("web-1", "198.18.2.2"),
    ]);
    assert_eq!(web_endpoints(&mesh), ["198.18.2.1:8080", "198.18.2.2:8080"]);
    let rows = [
        ("web-0.web.default.svc.cluster.local:8080", "198.18.2.1:8080"),
        ("other.web.default.svc.cluster.local.:8080", "198.18.2.2:8080"),
        ("web-0.web.default.svc:8080", "198.18.2.1:8080"),
        ("web-0.web.default:8080", "198.18.2.1:8080"),
        ("web-0.web:8080", "198.18.2.1:8080"),
        ("198.18.2.2:8080", "198.18.2.2:8080"),
    ];
    for (name, expected) in rows {
        let destination = mesh.destination(name);
        assert_eq!(&*destination.service.name, "web", "{name}");
        assert_eq!(mesh.endpoints(&destination.clusters[0]), [expected], "{name}");
    }
    for name in [
        "web-1.web.default.svc.cluster.local:8080",
        "web-0.web.default:80",
        "198.18.2.2:9999",
    ] {
        assert!(mesh.destination_for("client.default", name).is_none(), "{name}");
    }
}

#[test]
fn a_pod_that_is_not_ready_is_reached_by_its_address() {
    let unready = "[{addresses: [198.18.2.1], targetRef: {kind: Pod, name: p1}, conditions: {ready: false}}]";
    let mesh = web(&[&slice("web-1", "IPv4", unready), &pod("p1", "198.18.2.1")]);
    assert_eq!(web_endpoints(&mesh), [""; 0]);
    let direct = mesh.destination("198.18.2.1:8080");
    assert_eq!(mesh.endpoints(&direct.clusters[0]), ["198.18.2.1:8080"]);
}

#[test]
fn external_names_stand_for_services_and_for_hosts_outside() {
    let mut mesh = cluster(
        "kind: Service\nmetadata: {name: alias}\nspec: {type: ExternalName, externalName: reviews.default.svc.cluster.local}\n\
         \n---\nkind: Service\nmetadata: {name: second}\nspec: {type: ExternalName, externalName: alias.default.svc.cluster.local}\n\
         \n---\nkind: Service\nmetadata: {name: loop}\nspec: {type: ExternalName, externalName: loop.default.svc.cluster.local, ports: [{name: http, port: 80}]}\n\
         \n---\nkind: Service\nmetadata: {name: out}\nspec: {type: ExternalName, externalName: api.example.com, ports: [{name: http, port: 80}]}\n",
    );
    for name in ["alias:80", "second:80"] {
        let destination = mesh.destination(name);
        assert_eq!(&*destination.service.name, "reviews", "{name}");
        assert_eq!(mesh.endpoints(&destination.clusters[0]).len(), 2, "{name}");
    }
    let out = mesh.destination("out:80");
    assert_eq!(out.location, mesh_api::model::Location::MeshExternal);
    let EndpointSource::Slices(names) = &out.clusters[0].endpoints else {
        panic!("{out:?}");
    };
    assert_eq!(
        mesh.slice(&names[0]).endpoints[0].address,
        EndpointAddress::Name("api.example.com".into())
    );
    assert!(mesh.destination_for("client.default", "out:81").is_none());
    mesh.destination("loop:80");
    // Policy for what an alias stands for holds through the alias.
    mesh.add(
        "kind: VirtualService\nmetadata: {name: r}\nspec: {hosts: [reviews], http: [{timeout: 3s, route: [{destination: {host: reviews}}]}]}\n",
    );
    let destination = mesh.destination("alias:80");
    assert_eq!(
        forward(&destination.routes[0]).timeout,
        Some(std::time::Duration::from_secs(3))
    );
}

#[test]
fn services_are_shown_to_the_namespaces_of_their_annotation() {
    let service = "kind: Service\nmetadata: {name: a, annotations: {networking.istio.io/exportTo: 'one, two'}}\n\
                   spec: {ports: [{name: http, port: 80}]}\n";
    let mesh = Mesh::of(service);
    let sees = |namespace: &str| {
        let client = format!("client.{namespace}");
        mesh.destination_for(&client, "a.default:80").is_some()
    };
    assert!(sees("one") && sees("two"));
    assert!(!sees("default") && !sees("three"));
}

#[test]
fn a_service_goes_before_a_service_entry_of_its_host_and_they_share_endpoints() {
    let mut mesh = cluster(
        "kind: ServiceEntry\nmetadata: {name: reviews, creationTimestamp: \"2025-01-01T00:00:00Z\"}\n\
         spec: {hosts: [reviews.default.svc.cluster.local], location: MESH_INTERNAL, resolution: STATIC, \
         ports: [{number: 80, name: tcp, protocol: TCP}, {number: 81, name: more, protocol: HTTP}], \
         endpoints: [{address: 198.18.7.7, ports: {tcp: 9080}}]}\n",
    );
    let destination = mesh.destination("reviews:80");
    assert_eq!(destination.protocol, Protocol::Http, "the Service's");
    assert_eq!(mesh.endpoints(&destination.clusters[0]).len(), 3);
    assert_eq!(
        mesh.endpoints(&mesh.destination("reviews:81").clusters[0]),
        ["198.18.7.7:81"]
    );
    mesh.world.apply(&Event::Vanished(ClusterRef {
        kind: ClusterKind::Service,
        namespace: "default".into(),
        name: "reviews".into(),
    }));
    assert_eq!(mesh.destination("reviews:80").protocol, Protocol::Tcp);
}

#[test]
fn services_select_workload_entries_and_service_entries_select_pods() {
    let mesh = cluster(
        "kind: WorkloadEntry\nmetadata: {name: vm}\nspec: {address: 198.18.8.8, serviceAccount: reviews, \
         labels: {app: reviews}, ports: {http: 7000}}\n\
         \n---\nkind: ServiceEntry\nmetadata: {name: entry}\nspec: {hosts: [entry.example.com], location: MESH_INTERNAL, \
         resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], workloadSelector: {labels: {app: reviews}}}\n",
    );
    let destination = mesh.destination("reviews:80");
    // A numbered target port is the same everywhere, a named one is the workload's.
    assert_eq!(
        mesh.endpoints(&destination.clusters[0]),
        ["198.18.1.1:9080", "198.18.1.2:9080", "198.18.8.8:9080"]
    );
    let destination = mesh.destination("reviews:9080");
    assert_eq!(
        mesh.endpoints(&destination.clusters[0]),
        ["198.18.1.1:9080", "198.18.1.2:9080", "198.18.8.8:7000"]
    );
    let destination = mesh.destination("entry.example.com:80");
    assert_eq!(
        mesh.endpoints(&destination.clusters[0]),
        ["198.18.1.1:9080", "198.18.1.2:9080", "198.18.8.8:7000"]
    );
    let inbound = mesh.inbound("vm.default");
    let ports: Vec<u16> = inbound.ports.iter().map(|port| port.port).collect();
    assert_eq!(ports, [7000, 9080]);
}

#[test]
fn a_pod_goes_before_a_workload_entry_of_its_name() {
    let entry = "kind: WorkloadEntry\nmetadata: {name: client}\nspec: {address: 198.18.8.8, labels: {app: vm}}\n";
    let label = |mesh: &Mesh| {
        let id: WorkloadId = "client.default".parse().unwrap();
        let workload = mesh.world.registry.workload(&id).cloned();
        workload.map(|workload| workload.labels["app"].to_string())
    };
    let mut mesh = cluster(entry);
    assert_eq!(label(&mesh).as_deref(), Some("client"));
    mesh.world.apply(&Event::Vanished(ClusterRef {
        kind: ClusterKind::Pod,
        namespace: "default".into(),
        name: "client".into(),
    }));
    assert_eq!(label(&mesh).as_deref(), Some("vm"));
}

#[test]
fn who_is_at_an_address_is_told_only_where_nobody_shares_it() {
    let mut mesh = cluster("");
    let who = |mesh: &Mesh, address: &str| {
        mesh.with_reader("client.default", |reader| workload_at(reader, address.parse().unwrap()))
            .map(|workload| workload.name.to_string())
    };
    assert_eq!(who(&mesh, "198.18.1.1").as_deref(), Some("reviews-v1"));
    mesh.add(
        "kind: Pod\nmetadata: {name: agent}\nspec: {hostNetwork: true}\nstatus: {phase: Running, podIP: 198.18.100.1}\n",
    );
    assert_eq!(who(&mesh, "198.18.100.1"), None, "the node's");
    mesh.add("kind: Pod\nmetadata: {name: client}\nspec: {}\nstatus: {phase: Succeeded, podIP: 198.18.1.9}\n");
    assert_eq!(who(&mesh, "198.18.1.9"), None, "it has ended");
    mesh.add(
        "kind: Pod\nmetadata: {name: six}\nspec: {}\nstatus: {phase: Running, podIP: 198.18.1.9, podIPs: [{ip: 198.18.1.9}, {ip: '2001:db8::9'}]}\n",
    );
    assert_eq!(
        who(&mesh, "198.18.1.9").as_deref(),
        Some("six"),
        "the address is in use again"
    );
    assert_eq!(who(&mesh, "2001:db8::9").as_deref(), Some("six"));
}

#[test]
fn workloads_are_called_as_their_owners() {
    let rows = [
        ("ReplicaSet, name: shop-7d4b", "pod-template-hash: 7d4b", "shop"),
        ("ReplicaSet, name: shop-7d4b", "app: shop", "shop-7d4b"),
        ("StatefulSet, name: db", "app: db", "db"),
        ("DaemonSet, name: agent", "app: agent", "agent"),
        ("Node, name: node-1", "app: agent", "p"),
        ("Job, name: report-28123456", "app: report", "report"),
        ("Job, name: migrate-1", "app: migrate", "migrate-1"),
        ("Job, name: once", "app: x", "once"),
        (
            "StatefulSet, name: db",
            "service.istio.io/workload-name: other",
            "other",
        ),
    ];
    for (owner, label, expected) in rows {
        let mesh = Mesh::of(&format!(
            "kind: Pod\nmetadata: {{name: p, labels: {{{label}}}, ownerReferences: [{{kind: Other, name: other}}, \
             {{kind: {owner}, controller: true}}]}}\nspec: {{}}\nstatus: {{phase: Running, podIP: 198.18.1.1}}\n"
        ));
        assert_eq!(&*mesh.inbound("p.default").workload.name, expected, "{owner} {label}");
    }
}

#[test]
fn new_pods_and_services_do_not_change_what_every_proxy_holds() {
    let mut mesh = cluster("kind: ServiceCIDR\nmetadata: {name: kubernetes}\nspec: {cidrs: [198.19.0.0/20]}\n");
    let owned = |mesh: &Mesh| {
        let settings = mesh.with_reader("client.default", settings);
        assert!(settings.owned.has_host("reviews.default.svc.cluster.local"));
        assert!(settings.owned.has_host("reviews.default"));
        let ranges: Vec<_> = settings.owned.ranges.iter().map(ToString::to_string).collect();
        ranges
    };
    assert_eq!(owned(&mesh), ["198.18.1.0/24", "198.19.0.0/20"]);
    let key = crate::world::key::owned();
    let mut touches = |manifest: &str| {
        events(manifest)
            .iter()
            .any(|event| mesh.world.apply(event).contains(&key))
    };
    assert!(!touches(&pod("a", "198.18.1.200")));
    assert!(!touches(WEB));
    assert!(!touches(&slice(
        "web-1",
        "IPv4",
        "[{addresses: [198.18.1.200], targetRef: {kind: Pod, name: a}}]"
    )));
    assert!(touches(&pod("b", "198.18.2.1")), "outside of what is known");
    assert!(!touches(&pod("c", "198.18.2.2")), "in a block that is known by now");
    assert_eq!(owned(&mesh), ["198.18.1.0/24", "198.18.2.0/24", "198.19.0.0/20"]);
}

#[test]
fn a_pod_speaks_as_its_service_account_only() {
    use crate::compile::Resolver;
    use crate::discovery::resources::Resources as _;
    let mesh = cluster("");
    let resolver = Resolver::new(mesh.world);
    let admit = |account: &str, workload: &str| {
        let identity = format!("spiffe://cluster.local/ns/default/sa/{account}")
            .parse()
            .unwrap();
        resolver.admit(&identity, &workload.parse().unwrap()).map(|_| ())
    };
    assert_eq!(admit("reviews", "reviews-v1-7d4b-abcde.default"), Ok(()));
    assert!(admit("client", "reviews-v1-7d4b-abcde.default").is_err());
    assert!(admit("default", "reviews-v2-1.default").is_err(), "it has no sidecar");
    assert!(
        admit("reviews", "nobody.default")
            .unwrap_err()
            .contains("no Pod or WorkloadEntry")
    );
}

#[test]
fn one_pod_changes_one_part_of_a_large_service() {
    let mut mesh = web(&[]);
    let endpoints: Vec<String> = (0..100)
        .map(|i| format!("{{addresses: [198.18.2.{i}], targetRef: {{kind: Pod, name: p{i}}}}}"))
        .collect();
    for i in 0..100 {
        mesh.add(&pod(&format!("p{i}"), &format!("198.18.2.{i}")));
    }
    let all = format!("[{}]", endpoints.join(", "));
    mesh.add(&slice("web-1", "IPv4", &all));
    let parts = |mesh: &Mesh| {
        let destination = mesh.destination("web:80");
        let EndpointSource::Slices(names) = &destination.clusters[0].endpoints else {
            panic!("{destination:?}");
        };
        let parts = names.iter().map(|name| (name.clone(), mesh.slice(name)));
        parts.collect::<std::collections::BTreeMap<_, _>>()
    };
    let before = parts(&mesh);
    assert_eq!(before.len(), 4);
    mesh.add(&slice("web-1", "IPv4", &all.replacen("198.18.2.7]", "198.18.3.7]", 1)));
    let after = parts(&mesh);
    let changed = after.iter().filter(|(name, part)| before.get(*name) != Some(part));
    assert_eq!(changed.count(), 1);
}
