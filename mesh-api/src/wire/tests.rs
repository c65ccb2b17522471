//! Round trips of arbitrary values, and the errors of wrong ones.

use std::sync::Arc;

use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::model::{Action, AuthorizationPolicy, Health, Rule};
use crate::names::ObjectRef;

mod arbitrary;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn settings_round_trip(settings in arbitrary::settings()) {
        let bytes = encode_mesh(&settings);
        prop_assert_eq!(&bytes, &encode_mesh(&settings.clone()));
        prop_assert_eq!(decode_mesh(&bytes), Ok(settings));
    }

    #[test]
    fn inbound_round_trips(inbound in arbitrary::inbound()) {
        let bytes = encode_inbound(&inbound);
        prop_assert_eq!(&bytes, &encode_inbound(&inbound.clone()));
        prop_assert_eq!(decode_inbound(&bytes), Ok(inbound));
    }

    #[test]
    fn destination_round_trips(destination in arbitrary::destination()) {
        let bytes = encode_destination(&destination);
        prop_assert_eq!(&bytes, &encode_destination(&destination.clone()));
        prop_assert_eq!(decode_destination(&bytes), Ok(destination));
    }

    #[test]
    fn slice_round_trips(slice in arbitrary::slice()) {
        let bytes = encode_slice(&slice);
        prop_assert_eq!(&bytes, &encode_slice(&slice.clone()));
        prop_assert_eq!(decode_slice(&bytes), Ok(slice));
    }

    #[test]
    fn workload_round_trips(workload in arbitrary::workload()) {
        prop_assert_eq!(decode_workload(&encode_workload(&workload)), Ok(workload));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        decode_all(&bytes);
    }

    /// Bytes that are nearly right reach deeper than noise does.
    #[test]
    fn damaged_resources_never_panic(
        destination in arbitrary::destination(),
        inbound in arbitrary::inbound(),
        slice in arbitrary::slice(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        for bytes in [encode_destination(&destination), encode_inbound(&inbound), encode_slice(&slice)] {
            let mut bytes = bytes.to_vec();
            for (index, value) in &flips {
                if !bytes.is_empty() {
                    let at = index.index(bytes.len());
                    bytes[at] = *value;
                }
            }
            decode_all(&bytes);
        }
    }
}

fn decode_all(bytes: &[u8]) {
    let _ = decode_mesh(bytes);
    let _ = decode_inbound(bytes);
    let _ = decode_destination(bytes);
    let _ = decode_slice(bytes);
    let _ = decode_workload(bytes);
}

/// A message of each kind that decodes, to be broken in one place by the tables below.
fn good_destination() -> proto::Destination {
    let service = proto::ServiceRef {
        host: "reviews.default.svc.cluster.local".into(),
        name: "reviews".into(),
        namespace: "default".into(),
    };
    let leg = |cluster| proto::WeightedCluster {
        cluster,
        weight: 1,
        headers: None,
    };
    let matcher = proto::Matcher {
        attribute: proto::MatchAttribute::Header.into(),
        name: "x-user".into(),
        text: Some(proto::Text {
            r#match: Some(proto::text::Match::Regex("a+".into())),
        }),
    };
    let retry = proto::RetryPolicy {
        attempts: 1,
        retry_on: vec![503, proto::RetryCondition::Reset as u32],
        ..Default::default()
    };
    proto::Destination {
        service: Some(service.clone()),
        port: 80,
        protocol: proto::Protocol::Http.into(),
        location: proto::Location::MeshInternal.into(),
        routes: vec![proto::HttpRoute {
            matches: vec![proto::HttpMatch {
                matchers: vec![matcher],
            }],
            action: Some(proto::http_route::Action::Forward(proto::Forward {
                clusters: vec![leg(0), leg(0)],
                retry: Some(retry),
                ..Default::default()
            })),
            ..Default::default()
        }],
        tcp: vec![leg(0)],
        clusters: vec![proto::Cluster {
            service: Some(service),
            port: 80,
            protocol: proto::Protocol::Http.into(),
            location: proto::Location::MeshInternal.into(),
            endpoints: Some(proto::cluster::Endpoints::Passthrough(true)),
            balancer: Some(proto::Balancer {
                kind: Some(proto::balancer::Kind::Random(true)),
            }),
            pool: Some(proto::ConnectionPool {
                h2_upgrade: proto::H2Upgrade::Default.into(),
                ..Default::default()
            }),
            tls: Some(proto::ClientTls {
                mode: Some(proto::client_tls::Mode::Auto(true)),
            }),
            ..Default::default()
        }],
    }
}

fn forward(destination: &mut proto::Destination) -> &mut proto::Forward {
    match &mut destination.routes[0].action {
        Some(proto::http_route::Action::Forward(forward)) => forward,
        _ => unreachable!("the good destination forwards"),
    }
}

#[test]
fn wrong_destinations_name_their_field() {
    assert!(decode_destination(&good_destination().encode_to_vec()).is_ok());
    type Break = fn(&mut proto::Destination);
    let table: &[(&str, Break)] = &[
        ("service", |d| d.service = None),
        ("service.host", |d| d.service.as_mut().unwrap().host = "a b".into()),
        ("port", |d| d.port = 0),
        ("port", |d| d.port = 65_536),
        ("protocol", |d| d.protocol = 0),
        ("protocol", |d| d.protocol = 99),
        ("location", |d| d.location = 3),
        ("tcp[0].cluster", |d| d.tcp[0].cluster = 1),
        ("clusters[0].port", |d| d.clusters[0].port = 0),
        ("clusters[0].endpoints", |d| d.clusters[0].endpoints = None),
        ("clusters[0].tls.mode", |d| {
            d.clusters[0].tls.as_mut().unwrap().mode = None
        }),
        ("clusters[0].tls", |d| d.clusters[0].tls = None),
        ("clusters[0].retry_budget.percent", |d| {
            d.clusters[0].retry_budget = Some(proto::RetryBudget {
                percent: f64::NAN,
                min_concurrency: 3,
            });
        }),
        ("clusters[0].outlier.max_ejection_percent", |d| {
            d.clusters[0].outlier = Some(proto::OutlierDetection {
                interval: 1,
                max_ejection_percent: 101,
                ..Default::default()
            });
        }),
        ("routes[0].action", |d| d.routes[0].action = None),
        ("routes[0].matches[0].matchers[0].attribute", |d| {
            d.routes[0].matches[0].matchers[0].attribute = 77;
        }),
        ("routes[0].matches[0].matchers[0].name", |d| {
            d.routes[0].matches[0].matchers[0].name = "x y".into();
        }),
        ("routes[0].matches[0].matchers[0].text.regex", |d| {
            d.routes[0].matches[0].matchers[0].text = Some(proto::Text {
                r#match: Some(proto::text::Match::Regex("(".into())),
            });
        }),
        ("routes[0].matches[0].matchers[0].text.match", |d| {
            d.routes[0].matches[0].matchers[0].text = Some(proto::Text { r#match: None });
        }),
        ("routes[0].forward.clusters", |d| forward(d).clusters.clear()),
        ("routes[0].forward.clusters[1].weight", |d| {
            forward(d).clusters[1].weight = 0
        }),
        ("routes[0].forward.clusters[1].cluster", |d| {
            forward(d).clusters[1].cluster = u32::MAX;
        }),
        ("routes[0].forward.retry.retry_on[0]", |d| {
            forward(d).retry.as_mut().unwrap().retry_on[0] = 99;
        }),
        ("routes[0].forward.rewrite.authority", |d| {
            forward(d).rewrite = Some(proto::Rewrite {
                authority: Some(Bytes::from_static(b"a\nb")),
                ..Default::default()
            });
        }),
        ("routes[0].fault.delay.share_per_million", |d| {
            d.routes[0].fault = Some(proto::Fault {
                delay: Some(proto::Delay {
                    share_per_million: 1_000_001,
                    duration: 1,
                }),
                abort: None,
            });
        }),
        ("routes[0].direct_response.status", |d| {
            d.routes[0].action = Some(proto::http_route::Action::DirectResponse(proto::DirectResponse {
                status: 101,
                body: Bytes::new(),
            }));
        }),
        ("routes[0].redirect.status", |d| {
            d.routes[0].action = Some(proto::http_route::Action::Redirect(proto::Redirect {
                status: 304,
                ..Default::default()
            }));
        }),
        ("routes[0].headers.request_set[0].name", |d| {
            d.routes[0].headers = Some(proto::HeaderOps {
                request_set: vec![proto::HeaderField {
                    name: String::new(),
                    value: Bytes::new(),
                }],
                ..Default::default()
            });
        }),
    ];
    for (expected, change) in table {
        let mut message = good_destination();
        change(&mut message);
        match decode_destination(&message.encode_to_vec()) {
            Err(WireError::Field { field, .. }) => assert_eq!(field, *expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn a_missing_cluster_needs_no_port() {
    let mut message = good_destination();
    message.clusters[0].port = 0;
    message.clusters[0].endpoints = Some(proto::cluster::Endpoints::Missing(proto::Missing::Host.into()));
    assert!(decode_destination(&message.encode_to_vec()).is_ok());
}

#[test]
fn wrong_slices_name_their_field() {
    let good = || proto::EndpointSlice {
        strings: vec!["a".into()],
        workloads: vec![proto::InternedWorkload::default()],
        endpoints: vec![proto::Endpoint {
            address: Some(proto::endpoint::Address::Ip(Bytes::from_static(&[127, 0, 0, 1]))),
            port: 80,
            weight: 1,
            health: proto::Health::Healthy.into(),
            ..Default::default()
        }],
    };
    assert!(decode_slice(&good().encode_to_vec()).is_ok());
    type Break = fn(&mut proto::EndpointSlice);
    let table: &[(&str, Break)] = &[
        ("workloads[0].name", |s| s.workloads[0].name = 2),
        ("workloads[0].identity", |s| s.workloads[0].identity = 1),
        ("workloads[0].labels", |s| s.workloads[0].labels = vec![1]),
        ("endpoints[0].ip", |s| {
            s.endpoints[0].address = Some(proto::endpoint::Address::Ip(Bytes::from_static(&[1, 2, 3])));
        }),
        ("endpoints[0].name", |s| {
            s.endpoints[0].address = Some(proto::endpoint::Address::Name(String::new()));
        }),
        ("endpoints[0].address", |s| s.endpoints[0].address = None),
        ("endpoints[0].port", |s| s.endpoints[0].port = 0),
        ("endpoints[0].weight", |s| s.endpoints[0].weight = 0),
        ("endpoints[0].workload", |s| s.endpoints[0].workload = 1),
        ("endpoints[0].health", |s| s.endpoints[0].health = 9),
    ];
    for (expected, change) in table {
        let mut message = good();
        change(&mut message);
        match decode_slice(&message.encode_to_vec()) {
            Err(WireError::Field { field, .. }) => assert_eq!(field, *expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

/// A thousand replicas cost their addresses, not a thousand copies of their labels.
#[test]
fn replicas_share_their_workload() {
    let workload = |replica: usize| crate::model::Workload {
        name: "reviews-v1".into(),
        namespace: "default".into(),
        identity: Some("spiffe://cluster.local/ns/default/sa/reviews".parse().unwrap()),
        labels: [("app", "reviews"), ("version", ["v1", "v2"][replica % 2])]
            .map(|(key, value)| (key.into(), value.into()))
            .into(),
        cluster: "Kubernetes".into(),
        ..Default::default()
    };
    let slice = EndpointSlice {
        endpoints: (0..1000)
            .map(|replica| crate::model::Endpoint {
                address: crate::model::EndpointAddress::Ip([127, 0, (replica >> 8) as u8, replica as u8].into()),
                port: 9080,
                workload: Arc::new(workload(replica)),
                weight: 1,
                mutual_tls: true,
                health: Health::Healthy,
            })
            .collect(),
    };
    let bytes = encode_slice(&slice);
    assert!(bytes.len() < 1000 * 20, "{} bytes", bytes.len());
    let decoded = decode_slice(&bytes).unwrap();
    assert_eq!(decoded, slice);
    assert!(Arc::ptr_eq(
        &decoded.endpoints[0].workload,
        &decoded.endpoints[2].workload
    ));
    let label = |index: usize| decoded.endpoints[index].workload.labels["app"].clone();
    assert!(Arc::ptr_eq(&label(0), &label(1)));
}

mod unknown_parts_of_authorization {
    use super::*;
    use crate::model::{MtlsMode, Source};

    fn policy(action: i32, rules: Vec<proto::Rule>) -> AuthorizationPolicy {
        let inbound = proto::Inbound {
            workload: Some(proto::Workload::default()),
            default_mtls: proto::MtlsMode::Permissive.into(),
            authorization: vec![proto::AuthorizationPolicy {
                origin: Some(proto::ObjectRef::default()),
                action,
                rules,
            }],
            ..Default::default()
        };
        let mut decoded = decode_inbound(&inbound.encode_to_vec()).unwrap();
        assert_eq!(decoded.default_mtls, MtlsMode::Permissive);
        decoded.authorization.remove(0)
    }

    fn clause(attribute: i32, term: Option<proto::term::Term>) -> proto::Clause {
        proto::Clause {
            attribute,
            any: vec![proto::Term { term }],
            ..Default::default()
        }
    }

    fn exact(text: &str) -> Option<proto::term::Term> {
        Some(proto::term::Term::Exact(text.into()))
    }

    const ALLOW: i32 = proto::Action::Allow as i32;

    #[test]
    fn an_unknown_action_denies_what_its_rules_select() {
        let decoded = policy(7, vec![proto::Rule::default()]);
        assert_eq!(decoded.action, Action::Deny);
        assert!(decoded.rules[0].invalid.as_ref().unwrap().contains("action 7"));
        let decoded = policy(7, Vec::new());
        assert_eq!(decoded.rules.len(), 1);
        assert!(decoded.rules[0].invalid.is_some());
    }

    #[test]
    fn unknown_keys_make_the_rule_invalid() {
        let sources = |clauses| proto::Rule {
            from: vec![proto::Clauses { clauses }],
            ..Default::default()
        };
        let operations = |clauses| proto::Rule {
            to: vec![proto::Clauses { clauses }],
            ..Default::default()
        };
        let path = proto::Attribute::Path.into();
        let principal = proto::Attribute::SourcePrincipal.into();
        let table = [
            ("a source attribute", sources(vec![clause(99, exact("x"))])),
            (
                "an operation's attribute in a source",
                sources(vec![clause(path, exact("/"))]),
            ),
            ("an operation attribute", operations(vec![clause(99, exact("x"))])),
            ("a kind of term", operations(vec![clause(path, None)])),
            ("a kind of term in a source", sources(vec![clause(principal, None)])),
            (
                "a condition key",
                proto::Rule {
                    when: vec![clause(99, exact("x"))],
                    ..Default::default()
                },
            ),
        ];
        for (what, rule) in table {
            let decoded = policy(ALLOW, vec![rule]);
            let invalid = decoded.rules[0].invalid.as_ref();
            assert!(invalid.is_some_and(|reason| reason.contains("unknown")), "{what}");
        }
    }

    #[test]
    fn known_parts_beside_unknown_ones_stay() {
        let principal = proto::Attribute::SourcePrincipal.into();
        let rule = proto::Rule {
            from: vec![proto::Clauses {
                clauses: vec![clause(principal, exact("a")), clause(99, exact("x"))],
            }],
            ..Default::default()
        };
        let decoded = policy(ALLOW, vec![rule]);
        let mut expected = Source::default();
        expected.principals.any = vec![crate::model::TermMatch::Exact("a".into())];
        assert_eq!(decoded.rules[0].from, [expected]);
        assert!(decoded.rules[0].invalid.is_some());
    }

    #[test]
    fn an_invalid_rule_stays_invalid() {
        let rule = Rule {
            invalid: Some("unknown key `request.auth.claims[x]`".into()),
            ..Rule::default()
        };
        let policy = AuthorizationPolicy {
            origin: ObjectRef::new("AuthorizationPolicy", "default", "p"),
            action: Action::Allow,
            rules: vec![rule],
        };
        let message = super::super::authorization::encode(&policy);
        assert_eq!(super::super::authorization::decode(message).unwrap(), policy);
    }
}
