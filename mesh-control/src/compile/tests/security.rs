//! AuthorizationPolicy and PeerAuthentication: which objects hold for a workload, and what they say.

use mesh_api::model::{
    Action, AuthorizationPolicy, ConditionKey, IpBlocks, MtlsMode, Operation, Rule, Source, TermMatch, Terms,
};

use super::*;

fn authorization(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn authentication(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn policies(spec: &str) -> Vec<AuthorizationPolicy> {
    Mesh::shop(&authorization("p", "default", spec))
        .inbound("reviews-v1.default")
        .authorization
}

fn rule(rule: &str) -> Rule {
    let mut policies = policies(&format!("{{rules: [{rule}]}}"));
    policies.remove(0).rules.remove(0)
}

fn exact(text: &str) -> TermMatch {
    TermMatch::Exact(text.into())
}

fn any<T>(list: impl IntoIterator<Item = T>) -> Terms<T> {
    Terms {
        any: list.into_iter().collect(),
        none: Vec::new(),
    }
}

#[test]
fn which_policies_hold_for_a_workload() {
    let allow = "{rules: [{}]}";
    let rows = [
        ("of its namespace", authorization("p", "default", allow), true),
        ("of the root namespace", authorization("p", "mesh-system", allow), true),
        ("of another namespace", authorization("p", "other", allow), false),
        (
            "with its labels",
            authorization("p", "default", "{selector: {matchLabels: {app: reviews, version: v1}}}"),
            true,
        ),
        (
            "with other labels",
            authorization("p", "default", "{selector: {matchLabels: {app: reviews, version: v2}}}"),
            false,
        ),
        (
            "of the root namespace with its labels",
            authorization("p", "mesh-system", "{selector: {matchLabels: {app: reviews}}}"),
            true,
        ),
        (
            "with an empty selector",
            authorization("p", "default", "{selector: {matchLabels: {}}}"),
            true,
        ),
        (
            "that audits",
            authorization("p", "default", "{action: AUDIT, rules: [{}]}"),
            false,
        ),
        (
            "for a gateway",
            authorization(
                "p",
                "default",
                "{targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: g}]}",
            ),
            false,
        ),
        (
            "as a dry run",
            authorization("p, annotations: {istio.io/dry-run: 'true'}", "default", allow),
            false,
        ),
    ];
    for (sentence, manifest, expected) in rows {
        let inbound = Mesh::shop(&manifest).inbound("reviews-v1.default");
        assert_eq!(!inbound.authorization.is_empty(), expected, "{sentence}");
    }
    let both = Mesh::shop(&(authorization("a", "default", allow) + &authorization("b", "mesh-system", allow)));
    assert_eq!(both.inbound("reviews-v1.default").authorization.len(), 2);
    let root = Mesh::shop(
        &(authorization("a", "root", allow)
            + "---\napiVersion: mesh.dev/v1\nkind: MeshConfig\nmetadata: {name: mesh}\nspec: {rootNamespace: root}\n"),
    );
    assert_eq!(root.inbound("reviews-v1.default").authorization.len(), 1);
}

#[test]
fn actions_and_rules() {
    let allow_nothing = policies("{}");
    assert_eq!(
        (allow_nothing[0].action, allow_nothing[0].rules.len()),
        (Action::Allow, 0)
    );
    let allow_all = policies("{rules: [{}]}");
    assert_eq!(allow_all[0].rules, [Rule::default()]);
    assert_eq!(allow_all[0].origin.to_string(), "AuthorizationPolicy default/p");
    assert_eq!(policies("{action: DENY, rules: [{}]}")[0].action, Action::Deny);
    let custom = policies("{action: CUSTOM, provider: {name: x}, rules: [{to: [{operation: {paths: [/a]}}]}]}");
    assert_eq!(custom[0].action, Action::Deny);
    assert!(custom[0].rules[0].invalid.as_ref().unwrap().contains("CUSTOM"));
    assert_eq!(custom[0].rules[0].to[0].paths, any([exact("/a")]));
}

#[test]
fn sources() {
    let source = |written: &str| rule(&format!("{{from: [{{source: {written}}}]}}")).from.remove(0);
    let rows = [
        (
            "{principals: [cluster.local/ns/default/sa/order-service, '*/sa/b', '*', 'other/ns/*']}",
            Source {
                principals: any([
                    exact("cluster.local/ns/default/sa/order-service"),
                    TermMatch::Suffix("/sa/b".into()),
                    TermMatch::Present,
                    TermMatch::Prefix("other/ns/".into()),
                ]),
                ..Source::default()
            },
        ),
        (
            "{notPrincipals: [cluster.local/ns/default/sa/a]}",
            Source {
                principals: Terms {
                    any: vec![],
                    none: vec![exact("cluster.local/ns/default/sa/a")],
                },
                ..Source::default()
            },
        ),
        (
            "{namespaces: [a, 'b*', '*c', '*'], notNamespaces: [d]}",
            Source {
                namespaces: Terms {
                    any: vec![
                        exact("a"),
                        TermMatch::Prefix("b".into()),
                        TermMatch::Suffix("c".into()),
                        TermMatch::Present,
                    ],
                    none: vec![exact("d")],
                },
                ..Source::default()
            },
        ),
        (
            "{serviceAccounts: [a, other/b], notServiceAccounts: [c]}",
            Source {
                service_accounts: Terms {
                    any: vec!["default/a".into(), "other/b".into()],
                    none: vec!["default/c".into()],
                },
                ..Source::default()
            },
        ),
        (
            "{ipBlocks: [10.0.0.0/8, 127.0.0.1], notIpBlocks: ['2001:db8::/32']}",
            Source {
                ip_blocks: Terms {
                    any: vec![IpBlocks(vec![
                        "10.0.0.0/8".parse().unwrap(),
                        "127.0.0.1/32".parse().unwrap(),
                    ])],
                    none: vec![IpBlocks(vec!["2001:db8::/32".parse().unwrap()])],
                },
                ..Source::default()
            },
        ),
    ];
    for (written, expected) in rows {
        assert_eq!(source(written), expected, "{written}");
    }
    let middle = source("{namespaces: ['team-*-prod']}").namespaces;
    assert!(middle.any[0].is_match("team-a-prod") && !middle.any[0].is_match("team-a-test"));
    assert!(!middle.any[0].is_match("team-a-prod-x"));
    let contains = source("{namespaces: ['*prod*']}").namespaces;
    assert!(contains.any[0].is_match("my-prod-a") && !contains.any[0].is_match("my-pro"));
}

#[test]
fn principals_mean_the_same_in_all_trust_domains_of_the_mesh() {
    let mut mesh = Mesh {
        world: World::new(Options {
            trust_domain: "new.example".parse().unwrap(),
            ..Options::default()
        }),
    };
    mesh.add(SHOP);
    mesh.add(
        &(authorization(
            "p",
            "default",
            "{rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/b, old.example/ns/a/sa/c, else/ns/a/sa/d]}}]}]}",
        ) + "---\napiVersion: mesh.dev/v1\nkind: MeshConfig\nmetadata: {name: mesh}\nspec: {trustDomain: elsewhere.example, trustDomainAliases: [old.example]}\n"),
    );
    let inbound = mesh.inbound("reviews-v1.default");
    assert_eq!(
        inbound.authorization[0].rules[0].from[0].principals.any,
        [
            exact("new.example/ns/a/sa/b"),
            exact("old.example/ns/a/sa/b"),
            exact("new.example/ns/a/sa/c"),
            exact("old.example/ns/a/sa/c"),
            exact("else/ns/a/sa/d"),
        ]
    );
    let identity = inbound.workload.identity.as_ref().unwrap().to_string();
    assert_eq!(identity, "spiffe://new.example/ns/default/sa/reviews");
}

#[test]
fn operations_and_conditions() {
    let compiled = rule(
        "{to: [{operation: {hosts: [a.example.com], notHosts: ['b*'], ports: ['80', '443'], methods: [GET], notMethods: [PUT], paths: ['/a*', '*/z'], notPaths: [/no]}}], when: [{key: 'request.headers[X-Role]', values: [admin, 'dev*'], notValues: ['*']}]}",
    );
    assert_eq!(
        compiled.to,
        [Operation {
            hosts: Terms {
                any: vec![exact("a.example.com")],
                none: vec![TermMatch::Prefix("b".into())]
            },
            ports: any([80, 443]),
            methods: Terms {
                any: vec![exact("GET")],
                none: vec![exact("PUT")]
            },
            paths: Terms {
                any: vec![TermMatch::Prefix("/a".into()), TermMatch::Suffix("/z".into())],
                none: vec![exact("/no")]
            },
        }]
    );
    assert_eq!(compiled.when[0].key, ConditionKey::Header("x-role".parse().unwrap()));
    assert_eq!(
        compiled.when[0].values,
        Terms {
            any: vec![exact("admin"), TermMatch::Prefix("dev".into())],
            none: vec![TermMatch::Present]
        }
    );
    assert_eq!(compiled.invalid, None);

    for (key, values, expected) in [
        ("source.ip", "10.0.0.0/8", ConditionKey::SourceIp),
        ("destination.ip", "10.0.0.1", ConditionKey::DestinationIp),
        ("source.namespace", "a", ConditionKey::SourceNamespace),
        ("source.principal", "td/ns/a/sa/b", ConditionKey::SourcePrincipal),
        ("source.serviceAccount", "a/b", ConditionKey::SourceServiceAccount),
        ("destination.port", "'80'", ConditionKey::DestinationPort),
        ("connection.sni", "a.example.com", ConditionKey::ConnectionSni),
    ] {
        let compiled = rule(&format!("{{when: [{{key: {key}, values: [{values}]}}]}}"));
        assert_eq!(
            (compiled.when[0].key.clone(), compiled.invalid),
            (expected.clone(), None),
            "{key}"
        );
        let addresses = matches!(expected, ConditionKey::SourceIp | ConditionKey::DestinationIp);
        assert_eq!(
            (compiled.when[0].blocks.any.len(), compiled.when[0].values.any.len()),
            if addresses { (1, 0) } else { (0, 1) }
        );
    }
}

#[test]
fn path_templates() {
    let matches = |template: &str, path: &str| {
        let compiled = rule(&format!("{{to: [{{operation: {{paths: ['{template}']}}}}]}}"));
        assert_eq!(compiled.invalid, None, "{template}");
        compiled.to[0].paths.any[0].is_match(path)
    };
    for (template, path, expected) in [
        ("/a/{*}/c", "/a/b/c", true),
        ("/a/{*}/c", "/a/b/b/c", false),
        ("/a/{*}/c", "/a//c", false),
        ("/a/{**}", "/a/b/c", true),
        ("/a/{**}", "/b", false),
        ("/a.b/{*}", "/aXb/c", false),
    ] {
        assert_eq!(matches(template, path), expected, "{template} {path}");
    }
    for template in ["/a/{**}/c", "/a{*}", "/a/{*}/*"] {
        let compiled = rule(&format!("{{to: [{{operation: {{paths: ['{template}']}}}}]}}"));
        assert!(compiled.invalid.is_some(), "{template}");
    }
}

#[test]
fn what_cannot_be_evaluated_makes_a_rule_deny() {
    let rows = [
        ("{when: [{key: no.such.key, values: [a]}]}", "no.such.key"),
        (
            "{when: [{key: 'request.headers[a b]', values: [a]}]}",
            "request.headers",
        ),
        (
            "{when: [{key: 'request.auth.claims[iss]', values: [a]}]}",
            "request.auth.claims",
        ),
        ("{when: [{key: source.trustDomain, values: [a]}]}", "source.trustDomain"),
        ("{when: [{key: remote.ip, values: [10.0.0.0/8]}]}", "remote.ip"),
        ("{when: [{key: source.ip, values: [ten]}]}", "`ten`"),
        ("{when: [{key: destination.port, values: [http]}]}", "`http`"),
        ("{when: [{key: source.namespace}]}", "neither values nor notValues"),
        ("{from: [{source: {requestPrincipals: ['*']}}]}", "requestPrincipals"),
        (
            "{from: [{source: {notRequestPrincipals: ['*']}}]}",
            "notRequestPrincipals",
        ),
        ("{from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]}", "remoteIpBlocks"),
        ("{from: [{source: {trustDomains: [a]}}]}", "trustDomains"),
        ("{from: [{source: {ipBlocks: [10.0.0.0/99]}}]}", "10.0.0.0/99"),
        ("{from: [{source: {}}]}", "from[0].source is empty"),
        ("{from: [{}]}", "from[0].source is empty"),
        ("{to: [{operation: {}}]}", "to[0].operation is empty"),
        ("{to: [{operation: {ports: ['70000']}}]}", "`70000`"),
        ("{to: [{operation: {ports: ['http']}}]}", "`http`"),
        ("{to: [{operation: {paths: ['/a/{id}']}}]}", "template"),
        ("{to: [{operation: {notMethods: ['']}}]}", "empty text"),
        ("{from: [{source: {notPrincipals: ['']}}]}", "empty text"),
        ("{from: [{source: {serviceAccounts: ['*']}}]}", "not a service account"),
        (
            "{when: [{key: source.serviceAccount, values: [a/b/c]}]}",
            "not a service account",
        ),
        ("{when: [{key: 'request.headers[:method]', values: [GET]}]}", ":method"),
    ];
    for (written, expected) in rows {
        let compiled = rule(written);
        let reason = compiled.invalid.unwrap_or_else(|| panic!("{written} is valid"));
        assert!(reason.contains(expected), "{written}: {reason}");
    }
    // What is left of the rule still selects.
    let compiled = rule(
        "{from: [{source: {namespaces: [a], requestPrincipals: ['*']}}], to: [{operation: {paths: [/x], ports: [bad]}}]}",
    );
    assert!(compiled.invalid.is_some());
    assert_eq!(compiled.from[0].namespaces, any([exact("a")]));
    assert_eq!(compiled.to[0].paths, any([exact("/x")]));
    assert!(compiled.to[0].ports.is_empty());
}

#[test]
fn rules_with_http_attributes_say_so() {
    for (written, expected) in [
        ("{}", false),
        ("{from: [{source: {namespaces: [a]}}]}", false),
        ("{to: [{operation: {ports: ['80']}}]}", false),
        ("{to: [{operation: {ports: ['80'], notMethods: [GET]}}]}", true),
        ("{to: [{operation: {hosts: [a]}}]}", true),
        ("{to: [{operation: {paths: [/a]}}]}", true),
        ("{when: [{key: 'request.headers[a]', values: [b]}]}", true),
        ("{when: [{key: source.namespace, values: [b]}]}", false),
    ] {
        assert_eq!(rule(written).http_only, expected, "{written}");
    }
}

#[test]
fn peer_authentication_from_port_to_mesh() {
    let mode = |mode: &str| format!("{{mtls: {{mode: {mode}}}}}");
    let selected = |spec: &str| format!("{{selector: {{matchLabels: {{app: reviews}}}}, {spec}}}");
    let (disable, permissive, strict) = (MtlsMode::Disable, MtlsMode::Permissive, MtlsMode::Strict);
    // (sentence, objects, mode of port 9080, mode of other ports)
    let rows = [
        ("permissive by default", vec![], permissive, permissive),
        (
            "the mesh's",
            vec![authentication("m", "mesh-system", &mode("STRICT"))],
            strict,
            strict,
        ),
        (
            "the namespace's wins over the mesh's",
            vec![
                authentication("m", "mesh-system", &mode("STRICT")),
                authentication("narrow", "default", &mode("DISABLE")),
            ],
            disable,
            disable,
        ),
        (
            "UNSET is inherited",
            vec![
                authentication("m", "mesh-system", &mode("STRICT")),
                authentication("narrow", "default", &mode("UNSET")),
            ],
            strict,
            strict,
        ),
        (
            "the workload's wins over the namespace's",
            vec![
                authentication("narrow", "default", &mode("STRICT")),
                authentication("w", "default", &selected("mtls: {mode: PERMISSIVE}")),
            ],
            permissive,
            permissive,
        ),
        (
            "a port's wins over the workload's",
            vec![authentication(
                "w",
                "default",
                &selected("mtls: {mode: STRICT}, portLevelMtls: {9080: {mode: DISABLE}}"),
            )],
            disable,
            strict,
        ),
        (
            "a port's UNSET is the workload's",
            vec![authentication(
                "w",
                "default",
                &selected("mtls: {mode: STRICT}, portLevelMtls: {9080: {mode: UNSET}}"),
            )],
            strict,
            strict,
        ),
        (
            "ports without selector are passed over",
            vec![authentication(
                "narrow",
                "default",
                "{mtls: {mode: STRICT}, portLevelMtls: {9080: {mode: DISABLE}}}",
            )],
            strict,
            strict,
        ),
        (
            "ports of a workload whose own mode is inherited",
            vec![
                authentication("m", "mesh-system", &mode("STRICT")),
                authentication("w", "default", &selected("portLevelMtls: {9080: {mode: PERMISSIVE}}")),
            ],
            permissive,
            strict,
        ),
        (
            "another workload's is not ours",
            vec![authentication(
                "w",
                "default",
                "{selector: {matchLabels: {app: orders}}, mtls: {mode: STRICT}}",
            )],
            permissive,
            permissive,
        ),
        (
            "one with selector in the root namespace is for all namespaces",
            vec![authentication("w", "mesh-system", &selected("mtls: {mode: STRICT}"))],
            strict,
            strict,
        ),
        (
            "the oldest of several",
            vec![
                authentication(
                    "b, creationTimestamp: '2026-01-01T00:00:00Z'",
                    "default",
                    &mode("STRICT"),
                ),
                authentication(
                    "a, creationTimestamp: '2026-01-02T00:00:00Z'",
                    "default",
                    &mode("DISABLE"),
                ),
            ],
            strict,
            strict,
        ),
    ];
    for (sentence, objects, port, other) in rows {
        let inbound = Mesh::shop(&objects.concat()).inbound("reviews-v1.default");
        assert_eq!((inbound.mtls(9080), inbound.mtls(1234)), (port, other), "{sentence}");
    }
    // A port that no service declares keeps its mode.
    let inbound = Mesh::shop(&authentication(
        "w",
        "default",
        &selected("portLevelMtls: {7000: {mode: STRICT}}"),
    ))
    .inbound("reviews-v1.default");
    assert_eq!(inbound.mtls(7000), strict);
    assert_eq!(inbound.port(7000).unwrap().protocol, mesh_api::model::Protocol::Detect);
    assert_eq!(inbound.port(9080).unwrap().protocol, mesh_api::model::Protocol::Http);
}

#[test]
fn the_oldest_service_says_what_a_shared_port_speaks() {
    let service = |name: &str, created: &str, protocol: &str| {
        format!(
            "\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, creationTimestamp: '2026-01-{created}T00:00:00Z'}}\nspec: {{hosts: [{name}.default.svc.cluster.local], location: MESH_INTERNAL, resolution: STATIC, ports: [{{number: 99, name: p, protocol: {protocol}, targetPort: 7000}}], workloadSelector: {{labels: {{app: orders}}}}}}\n"
        )
    };
    let mesh = Mesh::shop(
        &(service("a", "02", "TCP")
            + &service("b", "01", "HTTP2")
            + "\n---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: orders-1}\nspec: {address: 127.0.2.1, serviceAccount: orders, labels: {app: orders}, ports: {http: 18080}}\n"),
    );
    let inbound = mesh.inbound("orders-1.default");
    let port = inbound.port(7000).unwrap();
    assert_eq!(port.protocol, mesh_api::model::Protocol::Http2);
    let names: Vec<_> = port.services.iter().map(|service| &*service.name).collect();
    assert_eq!(names, ["b", "a"]);
    // A workload may serve a port elsewhere.
    assert_eq!(&*inbound.port(18080).unwrap().services[0].name, "orders");
    assert_eq!(inbound.port(8080), None);
}
