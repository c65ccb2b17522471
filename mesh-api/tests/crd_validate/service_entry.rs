//! Findings about ServiceEntries and WorkloadEntries.

use mesh_api::crd::Kind;

use super::check;

#[test]
fn service_entries() {
    check(
        Kind::ServiceEntry,
        &[
            (
                "hosts: [a.b]\naddresses: [10.0.0.1, 10.1.0.0/16]\nports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]\n\
                 resolution: STATIC\nlocation: MESH_INTERNAL\nendpoints: [{address: 127.0.0.1, ports: {http: 81}, labels: {version: v1}}]",
                &[],
            ),
            (
                "hosts: [a.b]\nresolution: DNS\nexportTo: ['~']\nsubjectAltNames: [spiffe://x/ns/y/sa/z]",
                &[],
            ),
            ("hosts: []", &["!missing-field spec.hosts: at least one host"]),
            ("hosts: ['*']", &["!bad-value spec.hosts[0]: no service"]),
            (
                "hosts: ['*.a']\nresolution: DNS",
                &["!bad-value spec.hosts[0]: cannot be resolved"],
            ),
            (
                "hosts: ['*.a']\nresolution: DYNAMIC_DNS",
                &["not-supported-yet spec.resolution: resolution DYNAMIC_DNS"],
            ),
            (
                "hosts: [a.b]\naddresses: [x]",
                &["!bad-value spec.addresses[0]: neither an IP address"],
            ),
            (
                "hosts: [a.b]\naddresses: [10.0.0.0/8]\nresolution: DNS",
                &["!bad-value spec.addresses[0]: NONE or STATIC"],
            ),
            (
                "hosts: [a.b]\nports: [{number: 1, name: a, protocol: UDP}, {number: 2, name: b, protocol: grpc-web-tls}, \
                 {number: 3, name: c, protocol: HTTP_PROXY}, {number: 4, name: d, protocol: HBONE}]\n\
                 resolution: STATIC\nendpoints: [{address: 10.0.0.1, locality: r/z}]",
                &[
                    "not-supported-yet spec.ports[0].protocol: protocol UDP; only TCP",
                    "not-supported-yet spec.ports[1].protocol: GRPC-WEB-TLS; the protocol is detected",
                    "not-supported-yet spec.ports[2].protocol: HTTP_PROXY; the protocol is detected",
                    "not-supported-yet spec.ports[3].protocol: HBONE",
                    "not-supported-yet spec.endpoints[0].locality: locality",
                ],
            ),
            (
                "hosts: [a.b]\nports: [{number: 0, name: a}, {number: 80, name: a, protocol: HTPP}, {number: 80, name: b}]",
                &[
                    "!bad-value spec.ports[0].number: no port",
                    "!bad-value spec.ports[1].name: already",
                    "!bad-value spec.ports[1].protocol: no protocol",
                    "!bad-value spec.ports[2].number: already",
                ],
            ),
            (
                "hosts: [a.b]\nendpoints: [{address: 10.0.0.1}]",
                &["!bad-value spec.endpoints: STATIC"],
            ),
            (
                "hosts: [a.b]\nresolution: STATIC\nendpoints: [{address: c.d, ports: {http: 80}}]",
                &[
                    "!bad-value spec.endpoints[0].address: takes IP addresses",
                    "!bad-value spec.endpoints[0].ports.http: no port named",
                ],
            ),
            (
                "hosts: [a.b]\nresolution: STATIC\nworkloadSelector: {labels: {app: a}}\nendpoints: [{address: 10.0.0.1}]",
                &["!one-of spec.workloadSelector: together with endpoints"],
            ),
            (
                "hosts: [a.b]\nworkloadSelector: {labels: {}}",
                &[
                    "empty-selector spec.workloadSelector.labels: selects every",
                    "no-effect spec.workloadSelector: NONE",
                ],
            ),
            (
                "hosts: [a.b]\nresolution: DNS_ROUND_ROBIN\nendpoints: [{address: a}, {address: b}]",
                &["!bad-value spec.endpoints[1]: one endpoint at most"],
            ),
            (
                "hosts: [a.b, c.d]\nresolution: STATIC\nports: [{number: 1, name: x, protocol: TCP}]",
                &["!bad-value spec.ports[0].protocol: tells them apart"],
            ),
        ],
    );
}

#[test]
fn workload_entries() {
    check(
        Kind::WorkloadEntry,
        &[
            (
                "address: 10.0.0.1\nports: {http: 80}\nlabels: {app: a}\nserviceAccount: a\nweight: 3",
                &[],
            ),
            ("address: vm.example.com", &[]),
            (
                "address: unix:///run/a.sock",
                &["not-supported-yet spec.address: a Unix socket"],
            ),
            ("labels: {app: a}", &["!missing-field spec.address: needs an address"]),
            (
                "network: n",
                &[
                    "missing-field spec.address: gateway of network",
                    "not-supported-yet spec.network: network",
                ],
            ),
            ("address: 'a b'", &["!bad-value spec.address: neither"]),
            (
                "address: unix://a\nports: {http: 80}",
                &[
                    "!bad-value spec.address: absolute path",
                    "not-supported-yet spec.address: a Unix socket",
                    "!bad-value spec.ports: no ports",
                ],
            ),
            (
                "address: 10.0.0.1\nports: {http: 0}",
                &["!bad-value spec.ports.http: no port"],
            ),
        ],
    );
}
