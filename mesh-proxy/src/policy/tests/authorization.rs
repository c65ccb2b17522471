//! AuthorizationPolicy.

use std::net::{IpAddr, SocketAddr};

use mesh_api::identity::SpiffeId;
use mesh_api::model::{
    Action, AuthorizationPolicy, Condition, ConditionKey, IpBlocks, Operation, Rule, Source, TermMatch, Terms,
};
use mesh_api::names::ObjectRef;

use super::super::{AuthzRequest, DenyReason, Peer, RequestView, Verdict, authorize, details};
use super::{FullRegex, parts};

mod attributes;

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> AuthorizationPolicy {
    AuthorizationPolicy {
        origin: ObjectRef::new("AuthorizationPolicy", "default", name),
        action,
        rules,
    }
}

fn allow(rules: Vec<Rule>) -> AuthorizationPolicy {
    policy("allow", Action::Allow, rules)
}

fn deny(rules: Vec<Rule>) -> AuthorizationPolicy {
    policy("deny", Action::Deny, rules)
}

fn terms(any: &[&str], none: &[&str]) -> Terms<TermMatch> {
    let parse = |terms: &[&str]| terms.iter().map(|term| TermMatch::parse(term)).collect();
    Terms {
        any: parse(any),
        none: parse(none),
    }
}

fn any(texts: &[&str]) -> Terms<TermMatch> {
    terms(texts, &[])
}

fn not(texts: &[&str]) -> Terms<TermMatch> {
    terms(&[], texts)
}

fn blocks(any: &[&str], none: &[&str]) -> Terms<IpBlocks> {
    let parse = |ranges: &[&str]| -> Vec<IpBlocks> {
        ranges
            .iter()
            .map(|range| IpBlocks(vec![range.parse().unwrap()]))
            .collect()
    };
    Terms {
        any: parse(any),
        none: parse(none),
    }
}

fn from(source: Source) -> Rule {
    Rule {
        from: vec![source],
        ..Rule::default()
    }
}

fn principals(principals: Terms<TermMatch>) -> Rule {
    from(Source {
        principals,
        ..Source::default()
    })
}

/// A rule over one operation; it is `http_only` unless it only names ports.
fn to(operation: Operation) -> Rule {
    let http_only = !(operation.hosts.is_empty() && operation.methods.is_empty() && operation.paths.is_empty());
    Rule {
        to: vec![operation],
        http_only,
        ..Rule::default()
    }
}

fn methods(methods: Terms<TermMatch>) -> Rule {
    to(Operation {
        methods,
        ..Operation::default()
    })
}

fn paths(paths: Terms<TermMatch>) -> Rule {
    to(Operation {
        paths,
        ..Operation::default()
    })
}

fn hosts(hosts: Terms<TermMatch>) -> Rule {
    to(Operation {
        hosts,
        ..Operation::default()
    })
}

fn when(key: ConditionKey, values: Terms<TermMatch>) -> Rule {
    Rule {
        http_only: matches!(key, ConditionKey::Header(_)),
        when: vec![Condition {
            key,
            values,
            blocks: Terms::default(),
        }],
        ..Rule::default()
    }
}

fn when_ip(key: ConditionKey, blocks: Terms<IpBlocks>) -> Rule {
    Rule {
        when: vec![Condition {
            key,
            values: Terms::default(),
            blocks,
        }],
        ..Rule::default()
    }
}

fn invalid(rule: Rule) -> Rule {
    Rule {
        invalid: Some("unknown key `request.auth.claims[x]`".into()),
        ..rule
    }
}

fn header(name: &'static str) -> ConditionKey {
    ConditionKey::Header(name.parse().unwrap())
}

/// Who and what asks; by default `order-service` in namespace `default`, `GET /reviews/1` on port 9080.
#[derive(Clone, Copy)]
struct Ask {
    identity: Option<&'static str>,
    peer: &'static str,
    line: Option<&'static str>,
    headers: &'static [(&'static str, &'static str)],
    sni: Option<&'static str>,
}

const ORDER: &str = "spiffe://cluster.local/ns/default/sa/order-service";

const ASK: Ask = Ask {
    identity: Some(ORDER),
    peer: "127.0.1.5",
    line: Some("GET http://Reviews.example:9080/reviews/1?q=2"),
    headers: &[("x-token", "secret"), ("x-list", "a"), ("x-list", "b"), ("x-empty", "")],
    sni: Some("outbound_.9080_._.reviews"),
};

const PLAINTEXT: Ask = Ask { identity: None, ..ASK };
const TCP: Ask = Ask { line: None, ..ASK };

fn with_verdict<T>(policies: &[AuthorizationPolicy], ask: Ask, look: impl FnOnce(Verdict<'_>) -> T) -> T {
    let identity: Option<SpiffeId> = ask.identity.map(|id| id.parse().unwrap());
    let parts = ask.line.map(|line| parts(line, ask.headers));
    let request = AuthzRequest {
        peer: Peer {
            identity: identity.as_ref(),
            address: ask.peer.parse::<IpAddr>().unwrap(),
        },
        destination: "127.0.1.9:9080".parse::<SocketAddr>().unwrap(),
        sni: ask.sni,
        http: parts.as_ref().map(|parts| RequestView::new(parts, "http")),
    };
    look(authorize(policies, &request))
}

fn allowed(policies: &[AuthorizationPolicy], ask: Ask) -> bool {
    with_verdict(policies, ask, |verdict| verdict.is_allowed())
}

#[test]
fn actions_and_their_order() {
    let all = Rule::default();
    let mine = principals(any(&["cluster.local/ns/default/sa/order-service"]));
    let other = principals(any(&["cluster.local/ns/default/sa/other"]));
    let table: &[(&str, Vec<AuthorizationPolicy>, bool)] = &[
        ("no policy allows", vec![], true),
        ("ALLOW without rules allows nothing", vec![allow(vec![])], false),
        (
            "ALLOW with an empty rule allows everything",
            vec![allow(vec![all.clone()])],
            true,
        ),
        ("ALLOW that matches", vec![allow(vec![mine.clone()])], true),
        ("ALLOW that does not match", vec![allow(vec![other.clone()])], false),
        (
            "any rule may match",
            vec![allow(vec![other.clone(), mine.clone()])],
            true,
        ),
        (
            "any ALLOW policy may match",
            vec![allow(vec![other.clone()]), allow(vec![mine.clone()])],
            true,
        ),
        ("DENY without rules denies nothing", vec![deny(vec![])], true),
        (
            "DENY with an empty rule denies everything",
            vec![deny(vec![all.clone()])],
            false,
        ),
        ("DENY that does not match", vec![deny(vec![other.clone()])], true),
        (
            "DENY wins over ALLOW before it",
            vec![allow(vec![all.clone()]), deny(vec![mine.clone()])],
            false,
        ),
        (
            "DENY wins over ALLOW after it",
            vec![deny(vec![mine.clone()]), allow(vec![all.clone()])],
            false,
        ),
        (
            "DENY that does not match leaves it to ALLOW",
            vec![deny(vec![other.clone()]), allow(vec![])],
            false,
        ),
    ];
    for (sentence, policies, expected) in table {
        assert_eq!(allowed(policies, ASK), *expected, "{sentence}");
    }
}

#[test]
fn on_tcp() {
    let port_and_method = to(Operation {
        ports: Terms {
            any: vec![80],
            none: Vec::new(),
        },
        methods: any(&["GET"]),
        ..Operation::default()
    });
    let mine_and_method = Rule {
        http_only: true,
        to: methods(any(&["GET"])).to,
        ..principals(any(&["*/order-service"]))
    };
    let other_and_method = Rule {
        http_only: true,
        to: methods(any(&["GET"])).to,
        ..principals(any(&["*/other"]))
    };
    let unmarked = Rule {
        http_only: false,
        ..methods(any(&["GET"]))
    };
    let token = when(header("x-token"), any(&["secret"]));
    let table: &[(&str, AuthorizationPolicy, bool)] = &[
        (
            "an ALLOW rule of sources acts",
            allow(vec![principals(any(&["*/order-service"]))]),
            true,
        ),
        (
            "an ALLOW rule with methods never matches",
            allow(vec![methods(any(&["GET"]))]),
            false,
        ),
        ("nor with methods excluded", allow(vec![methods(not(&["POST"]))]), false),
        (
            "nor with sources that match",
            allow(vec![mine_and_method.clone()]),
            false,
        ),
        ("nor with headers", allow(vec![token.clone()]), false),
        ("nor when nobody marked it", allow(vec![unmarked]), false),
        (
            "a DENY rule with only methods denies the port",
            deny(vec![methods(any(&["POST"]))]),
            false,
        ),
        (
            "also one with methods excluded",
            deny(vec![methods(not(&["GET"]))]),
            false,
        ),
        ("a DENY rule's sources still count", deny(vec![other_and_method]), true),
        ("and match", deny(vec![mine_and_method]), false),
        ("a DENY rule's ports still count", deny(vec![port_and_method]), true),
        ("a DENY rule's headers count as matched", deny(vec![token]), false),
    ];
    for (sentence, policy, expected) in table {
        assert_eq!(allowed(std::slice::from_ref(policy), TCP), *expected, "{sentence}");
    }
}

#[test]
fn rules_that_cannot_be_evaluated() {
    let all = || allow(vec![Rule::default()]);
    let mine = || invalid(principals(any(&["*/order-service"])));
    let other = || invalid(principals(any(&["*/other"])));
    let table: &[(&str, Vec<AuthorizationPolicy>, Ask, bool)] = &[
        (
            "an ALLOW rule denies what its rest selects",
            vec![allow(vec![mine()]), all()],
            ASK,
            false,
        ),
        (
            "before any ALLOW that matches",
            vec![all(), allow(vec![mine()])],
            ASK,
            false,
        ),
        ("a DENY rule as well", vec![deny(vec![mine()]), all()], ASK, false),
        (
            "nothing else than what its rest selects",
            vec![allow(vec![other()]), all()],
            ASK,
            true,
        ),
        ("it never allows", vec![allow(vec![other()])], ASK, false),
        (
            "without a rest it denies everything",
            vec![allow(vec![invalid(Rule::default())]), all()],
            ASK,
            false,
        ),
        (
            "on TCP its HTTP parts count as matched",
            vec![allow(vec![invalid(methods(any(&["POST"])))]), all()],
            TCP,
            false,
        ),
    ];
    for (sentence, policies, ask, expected) in table {
        assert_eq!(allowed(policies, *ask), *expected, "{sentence}");
    }
    with_verdict(
        &[all(), deny(vec![Rule::default()]), allow(vec![mine()])],
        ASK,
        |verdict| {
            let Verdict::Denied {
                by: Some((policy, 0)),
                reason,
            } = verdict
            else {
                panic!("{verdict:?}");
            };
            assert_eq!(&*policy.name, "allow");
            assert_eq!(reason, DenyReason::InvalidRule("unknown key `request.auth.claims[x]`"));
            assert!(reason.to_string().contains("request.auth.claims"));
        },
    );
}

#[test]
fn a_verdict_names_its_rule() {
    let other = || principals(any(&["*/other"]));
    let get = || methods(any(&["GET"]));
    let named = |name, action, rules| policy(name, action, rules);
    let cases = [
        (vec![], "Allowed { by: None }", ""),
        (
            vec![named("reviews-authz", Action::Allow, vec![other(), get()])],
            "Allowed { by: Some((AuthorizationPolicy default/reviews-authz, 1)) }",
            "",
        ),
        (
            vec![named("reviews-authz", Action::Allow, vec![other()])],
            "Denied by None: no rule of any ALLOW policy matched",
            "rbac_access_denied_matched_policy[none]",
        ),
        (
            vec![
                named("reviews-authz", Action::Allow, vec![get()]),
                named("no-get", Action::Deny, vec![other(), get()]),
            ],
            "Denied by Some((AuthorizationPolicy default/no-get, 1)): a rule of a DENY policy matched",
            "rbac_access_denied_matched_policy[ns[default]-policy[no-get]-rule[1]]",
        ),
    ];
    for (policies, expected, expected_details) in cases {
        with_verdict(&policies, ASK, |verdict| {
            let by = |by: Option<(&ObjectRef, usize)>| match by {
                Some((policy, rule)) => format!("Some(({policy}, {rule}))"),
                None => "None".to_owned(),
            };
            let text = match verdict {
                Verdict::Allowed { by: rule } => format!("Allowed {{ by: {} }}", by(rule)),
                Verdict::Denied { by: rule, reason } => format!("Denied by {}: {reason}", by(rule)),
            };
            assert_eq!(text, expected);
            assert_eq!(details(&verdict), expected_details);
        });
    }
}
