//! One table for each part of a rule: sources, operations, conditions.

use super::*;

#[test]
fn sources() {
    let namespace = |namespaces| {
        from(Source {
            namespaces,
            ..Source::default()
        })
    };
    let accounts = |any: &[&str], none: &[&str]| {
        from(Source {
            service_accounts: Terms {
                any: any.iter().map(|text| (*text).into()).collect(),
                none: none.iter().map(|text| (*text).into()).collect(),
            },
            ..Source::default()
        })
    };
    let ips = |ip_blocks| {
        from(Source {
            ip_blocks,
            ..Source::default()
        })
    };
    let middle = || Terms {
        any: vec![TermMatch::Regex(FullRegex::new("de.*lt").unwrap())],
        none: Vec::new(),
    };
    let me = "cluster.local/ns/default/sa/order-service";
    let table: &[(&str, Rule, Ask, bool)] = &[
        ("a principal", principals(any(&[me])), ASK, true),
        ("is written without scheme", principals(any(&[ORDER])), ASK, false),
        ("a prefix", principals(any(&["cluster.local/ns/default/*"])), ASK, true),
        ("a suffix", principals(any(&["*/sa/order-service"])), ASK, true),
        ("any principal", principals(any(&["*"])), ASK, true),
        ("plaintext has none", principals(any(&["*"])), PLAINTEXT, false),
        ("case counts", principals(any(&["*/sa/Order-Service"])), ASK, false),
        ("not this one", principals(not(&[me])), ASK, false),
        ("plaintext is not this one", principals(not(&[me])), PLAINTEXT, true),
        ("not any: only plaintext", principals(not(&["*"])), PLAINTEXT, true),
        (
            "the negative list wins",
            principals(terms(&["*"], &["*/order-service"])),
            ASK,
            false,
        ),
        ("a namespace", namespace(any(&["default"])), ASK, true),
        ("another namespace", namespace(any(&["prod"])), ASK, false),
        ("a namespace by expression", namespace(middle()), ASK, true),
        ("plaintext has no namespace", namespace(any(&["*"])), PLAINTEXT, false),
        ("not a namespace", namespace(not(&["default"])), ASK, false),
        (
            "plaintext is in no namespace",
            namespace(not(&["default"])),
            PLAINTEXT,
            true,
        ),
        (
            "a service account",
            accounts(&["default/order-service"], &[]),
            ASK,
            true,
        ),
        (
            "of another namespace",
            accounts(&["prod/order-service"], &[]),
            ASK,
            false,
        ),
        (
            "plaintext has no account",
            accounts(&["default/order-service"], &[]),
            PLAINTEXT,
            false,
        ),
        (
            "not a service account",
            accounts(&[], &["default/order-service"]),
            ASK,
            false,
        ),
        ("an address range", ips(blocks(&["127.0.1.0/24"], &[])), ASK, true),
        (
            "an address outside of it",
            ips(blocks(&["127.0.2.0/24"], &[])),
            ASK,
            false,
        ),
        ("not from this range", ips(blocks(&[], &["127.0.1.0/24"])), ASK, false),
        (
            "an IPv4 address on an IPv6 socket",
            ips(blocks(&["127.0.1.0/24"], &[])),
            Ask {
                peer: "::ffff:127.0.1.5",
                ..ASK
            },
            true,
        ),
        (
            "all attributes of a source have to match",
            from(Source {
                namespaces: any(&["default"]),
                ip_blocks: blocks(&["127.0.2.0/24"], &[]),
                ..Source::default()
            }),
            ASK,
            false,
        ),
        (
            "any source may match",
            Rule {
                from: vec![
                    Source {
                        namespaces: any(&["prod"]),
                        ..Source::default()
                    },
                    Source {
                        namespaces: any(&["default"]),
                        ..Source::default()
                    },
                ],
                ..Rule::default()
            },
            ASK,
            true,
        ),
    ];
    check(table);
}

#[test]
fn operations() {
    let ports = |any: &[u16], none: &[u16]| {
        to(Operation {
            ports: Terms {
                any: any.to_vec(),
                none: none.to_vec(),
            },
            ..Operation::default()
        })
    };
    let table: &[(&str, Rule, Ask, bool)] = &[
        ("a method", methods(any(&["POST", "GET"])), ASK, true),
        ("case counts", methods(any(&["get"])), ASK, false),
        ("not a method", methods(not(&["GET"])), ASK, false),
        ("a path without its query", paths(any(&["/reviews/1"])), ASK, true),
        (
            "with its query it is another",
            paths(any(&["/reviews/1?q=2"])),
            ASK,
            false,
        ),
        ("a path prefix", paths(any(&["/reviews/*"])), ASK, true),
        ("a path suffix", paths(any(&["*/1"])), ASK, true),
        ("case counts in paths", paths(any(&["/Reviews/*"])), ASK, false),
        ("a star in the middle is a star", paths(any(&["/rev*/1"])), ASK, false),
        ("not a path", paths(terms(&["/reviews/*"], &["/reviews/1"])), ASK, false),
        (
            "a host as sent, port included",
            hosts(any(&["reviews.example:9080"])),
            ASK,
            true,
        ),
        (
            "without port it is another",
            hosts(any(&["reviews.example"])),
            ASK,
            false,
        ),
        (
            "unless any port is meant",
            hosts(any(&["reviews.example:*"])),
            ASK,
            true,
        ),
        ("case does not count in hosts", hosts(any(&["REVIEWS.*"])), ASK, true),
        ("nor in suffixes", hosts(any(&["*.EXAMPLE:9080"])), ASK, true),
        ("nor in negative ones", hosts(not(&["*.EXAMPLE:9080"])), ASK, false),
        ("the workload's port", ports(&[80, 9080], &[]), ASK, true),
        ("another port", ports(&[80], &[]), ASK, false),
        ("not a port", ports(&[], &[9080]), ASK, false),
        (
            "all attributes of an operation have to match",
            to(Operation {
                methods: any(&["GET"]),
                paths: any(&["/other"]),
                ..Operation::default()
            }),
            ASK,
            false,
        ),
        (
            "source and operation have to match",
            Rule {
                to: methods(any(&["GET"])).to,
                ..principals(any(&["other"]))
            },
            ASK,
            false,
        ),
    ];
    check(table);
}

#[test]
fn conditions() {
    let me = "cluster.local/ns/default/sa/order-service";
    let table: &[(&str, Rule, Ask, bool)] = &[
        ("a header", when(header("x-token"), any(&["secret"])), ASK, true),
        ("another value", when(header("x-token"), any(&["other"])), ASK, false),
        (
            "an absent header has no value",
            when(header("x-none"), any(&["*"])),
            ASK,
            false,
        ),
        (
            "presence needs a value",
            when(header("x-empty"), any(&["*"])),
            ASK,
            false,
        ),
        ("not a value", when(header("x-token"), not(&["secret"])), ASK, false),
        (
            "an absent header is not a value",
            when(header("x-none"), not(&["secret"])),
            ASK,
            true,
        ),
        (
            "several values are joined",
            when(header("x-list"), any(&["a,b"])),
            ASK,
            true,
        ),
        (
            "source.principal",
            when(ConditionKey::SourcePrincipal, any(&[me])),
            ASK,
            true,
        ),
        (
            "source.namespace",
            when(ConditionKey::SourceNamespace, any(&["prod"])),
            ASK,
            false,
        ),
        (
            "source.serviceAccount",
            when(ConditionKey::SourceServiceAccount, any(&["default/order-service"])),
            ASK,
            true,
        ),
        (
            "source.serviceAccount by pattern",
            when(ConditionKey::SourceServiceAccount, any(&["default/*"])),
            ASK,
            true,
        ),
        (
            "source.serviceAccount of plaintext",
            when(ConditionKey::SourceServiceAccount, any(&["*"])),
            PLAINTEXT,
            false,
        ),
        (
            "source.ip",
            when_ip(ConditionKey::SourceIp, blocks(&["127.0.1.5/32"], &[])),
            ASK,
            true,
        ),
        (
            "source.ip, negative",
            when_ip(ConditionKey::SourceIp, blocks(&[], &["127.0.1.5/32"])),
            ASK,
            false,
        ),
        (
            "destination.ip",
            when_ip(ConditionKey::DestinationIp, blocks(&["127.0.1.9/32"], &[])),
            ASK,
            true,
        ),
        (
            "destination.ip of another",
            when_ip(ConditionKey::DestinationIp, blocks(&["127.0.1.5/32"], &[])),
            ASK,
            false,
        ),
        (
            "destination.port",
            when(ConditionKey::DestinationPort, any(&["9080"])),
            ASK,
            true,
        ),
        (
            "destination.port of another",
            when(ConditionKey::DestinationPort, any(&["908"])),
            ASK,
            false,
        ),
        (
            "destination.port by pattern",
            when(ConditionKey::DestinationPort, any(&["90*"])),
            ASK,
            true,
        ),
        (
            "connection.sni",
            when(ConditionKey::ConnectionSni, any(&["outbound_.9080_*"])),
            ASK,
            true,
        ),
        (
            "connection.sni when there is none",
            when(ConditionKey::ConnectionSni, any(&["*"])),
            Ask { sni: None, ..ASK },
            false,
        ),
        (
            "all conditions have to match",
            Rule {
                when: [
                    when(header("x-token"), any(&["secret"])).when,
                    when(ConditionKey::SourceNamespace, any(&["prod"])).when,
                ]
                .concat(),
                ..Rule::default()
            },
            ASK,
            false,
        ),
    ];
    check(table);
}

/// A rule allows what it matches in an ALLOW policy, and exactly that is refused by the same rule in a DENY policy.
fn check(table: &[(&str, Rule, Ask, bool)]) {
    for (sentence, rule, ask, expected) in table {
        assert_eq!(
            allowed(&[allow(vec![rule.clone()])], *ask),
            *expected,
            "ALLOW: {sentence}"
        );
        assert_eq!(
            allowed(&[deny(vec![rule.clone()])], *ask),
            !*expected,
            "DENY: {sentence}"
        );
    }
}
