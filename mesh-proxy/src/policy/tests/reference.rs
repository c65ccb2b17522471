//! Properties: the engine decides as a naive reference does, which copies everything into plain maps and strings and
//! spells every sentence out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::request::Parts;
use mesh_api::identity::SpiffeId;
use mesh_api::model::{
    Action, AuthorizationPolicy, Condition, ConditionKey, HeaderMatch, HttpMatch, HttpRoute, IpBlocks, Operation, Rule,
    Source, TermMatch, Terms, TextMatch,
};
use mesh_api::names::ObjectRef;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::{AuthzRequest, DenyReason, Peer, RequestView, Verdict, authorize, select_route};
use super::{exact, header, parts, prefix, regex, route};

/// Few words, so that matches are as likely as misses.
const WORDS: [&str; 4] = ["", "a", "ab", "b"];

fn word() -> impl Strategy<Value = &'static str> {
    select(&WORDS[..])
}

fn request() -> impl Strategy<Value = Parts> {
    let method = select(vec!["GET", "POST"]);
    let query = of(vec((word(), word()), 0..3));
    let headers = vec((select(vec!["x-a", "x-b"]), word()), 0..3);
    (method, word(), word(), query, headers).prop_map(|(method, host, path, query, headers)| {
        let query = query.map_or(String::new(), |pairs| {
            let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("?{}", pairs.join("&"))
        });
        parts(&format!("{method} http://h{host}/{path}{query}"), &headers)
    })
}

fn text_match() -> impl Strategy<Value = TextMatch> {
    prop_oneof![
        word().prop_map(exact),
        word().prop_map(prefix),
        select(vec!["a*", "a|b", ".*", ".+"]).prop_map(regex),
        word().prop_map(|word| TextMatch::ExactIgnoreCase(word.to_uppercase().into())),
        word().prop_map(|word| TextMatch::PrefixIgnoreCase(word.to_uppercase().into())),
        Just(TextMatch::Present),
    ]
}

fn http_match() -> impl Strategy<Value = HttpMatch> {
    let headers = || {
        vec(
            (select(vec!["x-a", "x-b"]), text_match()).prop_map(|(name, value)| header(name, value)),
            0..2,
        )
    };
    let path = word().prop_flat_map(|word| {
        let path = format!("/{word}");
        prop_oneof![
            Just(exact(&path)),
            Just(prefix(&path)),
            Just(regex(&format!("{path}.*")))
        ]
    });
    (
        of(path),
        of(select(vec![exact("GET"), prefix("P")])),
        of(select(vec![exact("ha"), prefix("h"), exact("h")])),
        headers(),
        headers(),
        vec((word().prop_map(Into::into), text_match()), 0..2),
    )
        .prop_map(|(path, method, authority, headers, without_headers, query)| HttpMatch {
            path,
            scheme: None,
            method,
            authority,
            headers,
            without_headers,
            query,
        })
}

fn routes() -> impl Strategy<Value = Vec<HttpRoute>> {
    vec(vec(http_match(), 0..3).prop_map(route), 0..5)
}

struct Plain {
    method: String,
    authority: String,
    path: String,
    query: Vec<(String, String)>,
    headers: HashMap<String, String>,
}

impl Plain {
    fn of(parts: &Parts) -> Self {
        let mut headers: HashMap<String, Vec<String>> = HashMap::new();
        for (name, value) in &parts.headers {
            let values = headers.entry(name.to_string()).or_default();
            values.push(value.to_str().unwrap().to_owned());
        }
        Self {
            method: parts.method.to_string(),
            authority: parts.uri.authority().unwrap().to_string(),
            path: parts.uri.path().to_owned(),
            query: parts
                .uri
                .query()
                .unwrap_or_default()
                .split('&')
                .filter(|_| parts.uri.query().is_some())
                .map(|pair| match pair.split_once('=') {
                    Some((name, value)) => (name.to_owned(), value.to_owned()),
                    None => (pair.to_owned(), String::new()),
                })
                .collect(),
            headers: headers
                .into_iter()
                .map(|(name, values)| (name, values.join(",")))
                .collect(),
        }
    }
}

fn is(matcher: &TextMatch, text: &str) -> bool {
    match matcher {
        TextMatch::Exact(value) => *text == **value,
        TextMatch::Prefix(prefix) => text.chars().zip(prefix.chars()).filter(|(a, b)| a == b).count() == prefix.len(),
        TextMatch::Regex(regex) => {
            let anchored = regex::Regex::new(&format!(r"\A(?:{})\z", regex.as_str())).unwrap();
            anchored.is_match(text)
        }
        TextMatch::ExactIgnoreCase(value) => text.to_ascii_uppercase() == value.to_ascii_uppercase(),
        TextMatch::PrefixIgnoreCase(prefix) => text.to_ascii_uppercase().starts_with(&prefix.to_ascii_uppercase()),
        TextMatch::Present => true,
    }
}

fn entry_holds(entry: &HttpMatch, request: &Plain) -> bool {
    let mut holds = true;
    if let Some(path) = &entry.path {
        holds &= is(path, &request.path);
    }
    if let Some(method) = &entry.method {
        holds &= is(method, &request.method);
    }
    if let Some(authority) = &entry.authority {
        holds &= is(authority, &request.authority);
    }
    for HeaderMatch { name, value } in &entry.headers {
        holds &= request.headers.get(name.as_str()).is_some_and(|text| is(value, text));
    }
    for HeaderMatch { name, value } in &entry.without_headers {
        let sent = request.headers.get(name.as_str());
        holds &= match value {
            TextMatch::Present => sent.is_none(),
            value => !is(value, sent.map_or("", String::as_str)),
        };
    }
    for (name, value) in &entry.query {
        let first = request.query.iter().find(|(key, _)| **key == **name);
        holds &= first.is_some_and(|(_, text)| is(value, text));
    }
    holds
}

fn naive_route(routes: &[HttpRoute], request: &Plain) -> Option<(usize, Option<usize>)> {
    for (index, route) in routes.iter().enumerate() {
        if route.matches.is_empty() {
            return Some((index, None));
        }
        for (entry_index, entry) in route.matches.iter().enumerate() {
            if entry_holds(entry, request) {
                return Some((index, Some(entry_index)));
            }
        }
    }
    None
}

const ACCOUNTS: [&str; 3] = ["a", "ab", "b"];

fn terms() -> impl Strategy<Value = Terms<TermMatch>> {
    let term = || select(vec!["a", "a*", "*b", "*", "/a", "/*", "ha", "GET", "9080", "80"]).prop_map(TermMatch::parse);
    prop_oneof![
        3 => Just(Terms::default()),
        2 => (vec(term(), 0..3), vec(term(), 0..2)).prop_map(|(any, none)| Terms { any, none }),
    ]
}

fn blocks() -> impl Strategy<Value = Terms<IpBlocks>> {
    let block =
        || select(vec!["127.0.0.0/30", "127.0.0.2/32"]).prop_map(|range| IpBlocks(vec![range.parse().unwrap()]));
    prop_oneof![
        3 => Just(Terms::default()),
        1 => (vec(block(), 0..2), vec(block(), 0..2)).prop_map(|(any, none)| Terms { any, none }),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let source = (terms(), terms(), blocks()).prop_map(|(principals, namespaces, ip_blocks)| Source {
        principals,
        namespaces,
        service_accounts: Terms::default(),
        ip_blocks,
    });
    let ports = prop_oneof![
        2 => Just(Terms::default()),
        1 => select(vec![80, 9080]).prop_map(|port| Terms { any: vec![port], none: Vec::new() }),
    ];
    let operation = (terms(), ports, terms(), terms()).prop_map(|(hosts, ports, methods, paths)| Operation {
        hosts,
        ports,
        methods,
        paths,
    });
    let key = select(vec![
        ConditionKey::Header(http::HeaderName::from_static("x-a")),
        ConditionKey::SourceNamespace,
        ConditionKey::DestinationPort,
        ConditionKey::ConnectionSni,
    ]);
    let condition = (key, terms()).prop_map(|(key, values)| Condition {
        key,
        values,
        blocks: Terms::default(),
    });
    (
        vec(source, 0..3),
        vec(operation, 0..3),
        vec(condition, 0..2),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(from, to, when, invalid)| {
            let of_http = |operation: &Operation| {
                [&operation.hosts, &operation.methods, &operation.paths]
                    .iter()
                    .any(|terms| !terms.is_empty())
            };
            let http_only = to.iter().any(of_http) || when.iter().any(|c| matches!(c.key, ConditionKey::Header(_)));
            Rule {
                from,
                to,
                when,
                invalid: invalid.then(|| "unknown".into()),
                http_only,
            }
        })
}

fn policies() -> impl Strategy<Value = Vec<AuthorizationPolicy>> {
    let policy = (select(vec![Action::Allow, Action::Deny]), vec(rule(), 0..3));
    vec(policy, 0..4).prop_map(|policies| {
        let number = |(index, (action, rules)): (usize, (Action, Vec<Rule>))| AuthorizationPolicy {
            origin: ObjectRef::new("AuthorizationPolicy", "default", &index.to_string()),
            action,
            rules,
        };
        policies.into_iter().enumerate().map(number).collect()
    })
}

fn term_is(term: &TermMatch, text: &str, ignore_case: bool) -> bool {
    let fold = |text: &str| {
        if ignore_case {
            text.to_ascii_lowercase()
        } else {
            text.to_owned()
        }
    };
    let text = fold(text);
    match term {
        TermMatch::Exact(value) => text == fold(value),
        TermMatch::Prefix(prefix) => text.starts_with(&fold(prefix)),
        TermMatch::Suffix(suffix) => text.ends_with(&fold(suffix)),
        TermMatch::Present => !text.is_empty(),
        TermMatch::Regex(_) => unreachable!("not generated"),
    }
}

/// What is absent is an empty list of values: no term holds for it.
fn terms_hold(terms: &Terms<TermMatch>, value: Option<&str>, ignore_case: bool) -> bool {
    let holds = |term: &TermMatch| {
        value
            .into_iter()
            .filter(|text| term_is(term, text, ignore_case))
            .count()
            > 0
    };
    let positive = terms.any.is_empty() || terms.any.iter().filter(|term| holds(term)).count() > 0;
    let negative = terms.none.iter().filter(|term| holds(term)).count() > 0;
    positive && !negative
}

fn blocks_hold(terms: &Terms<IpBlocks>, address: IpAddr) -> bool {
    let holds = |blocks: &&IpBlocks| blocks.0.iter().any(|range| range.contains(&address));
    (terms.any.is_empty() || terms.any.iter().any(|block| holds(&block)))
        && !terms.none.iter().any(|block| holds(&block))
}

struct Asked {
    identity: Option<SpiffeId>,
    peer: IpAddr,
    port: u16,
    sni: Option<&'static str>,
    http: Option<Plain>,
}

fn rule_holds(rule: &Rule, asked: &Asked, denies: bool) -> bool {
    if asked.http.is_none() && rule.http_only && !denies {
        return false;
    }
    let namespace = asked.identity.as_ref().map(SpiffeId::namespace);
    let principal = asked.identity.as_ref().map(SpiffeId::principal);
    let source = |source: &Source| {
        terms_hold(&source.principals, principal, false)
            && terms_hold(&source.namespaces, namespace, false)
            && blocks_hold(&source.ip_blocks, asked.peer)
    };
    let operation = |operation: &Operation| {
        let ports = &operation.ports.any;
        let on_port = ports.is_empty() || ports.contains(&asked.port);
        on_port
            && asked.http.as_ref().is_none_or(|http| {
                terms_hold(&operation.hosts, Some(&http.authority), true)
                    && terms_hold(&operation.methods, Some(&http.method), false)
                    && terms_hold(&operation.paths, Some(&http.path), false)
            })
    };
    let condition = |condition: &Condition| match &condition.key {
        ConditionKey::Header(name) => asked.http.as_ref().is_none_or(|http| {
            let value = http.headers.get(name.as_str()).map(String::as_str);
            terms_hold(&condition.values, value, false)
        }),
        ConditionKey::SourceNamespace => terms_hold(&condition.values, namespace, false),
        ConditionKey::DestinationPort => terms_hold(&condition.values, Some(&asked.port.to_string()), false),
        ConditionKey::ConnectionSni => terms_hold(&condition.values, asked.sni, false),
        _ => unreachable!("not generated"),
    };
    (rule.from.is_empty() || rule.from.iter().any(source))
        && (rule.to.is_empty() || rule.to.iter().any(operation))
        && rule.when.iter().all(condition)
}

/// Every rule that matches, then the first of the highest precedence.
fn naive_verdict(policies: &[AuthorizationPolicy], asked: &Asked) -> (bool, Option<(String, usize)>, &'static str) {
    let (mut invalid, mut denied, mut allowed) = (Vec::new(), Vec::new(), Vec::new());
    for policy in policies {
        for (index, rule) in policy.rules.iter().enumerate() {
            let place = (policy.origin.name.to_string(), index);
            if rule.invalid.is_some() && rule_holds(rule, asked, true) {
                invalid.push(place.clone());
            }
            match policy.action {
                Action::Deny if rule_holds(rule, asked, true) => denied.push(place),
                Action::Allow if rule_holds(rule, asked, false) => allowed.push(place),
                _ => {}
            }
        }
    }
    let restricted = policies.iter().any(|policy| policy.action == Action::Allow);
    let first = |places: Vec<(String, usize)>| places.into_iter().next();
    if !invalid.is_empty() {
        (false, first(invalid), "invalid")
    } else if !denied.is_empty() {
        (false, first(denied), "denied")
    } else if restricted && allowed.is_empty() {
        (false, None, "none")
    } else {
        (true, first(allowed), "allowed")
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn select_route_is_the_reference(routes in routes(), request in request()) {
        let view = RequestView::new(&request, "http");
        let selected = select_route(&routes, &view).map(|selected| {
            let entries = &routes[selected.index].matches;
            let entry = selected.matched.map(|matched| {
                entries.iter().position(|entry| std::ptr::eq(entry, matched)).unwrap()
            });
            (selected.index, entry)
        });
        prop_assert_eq!(selected, naive_route(&routes, &Plain::of(&request)));
    }

    #[test]
    fn authorize_is_the_reference(
        policies in policies(),
        identity in of((select(&ACCOUNTS[..]), select(&ACCOUNTS[..]))),
        octet in 0..6_u8,
        port in select(vec![80_u16, 9080]),
        sni in of(word()),
        request in of(request()),
    ) {
        let identity: Option<SpiffeId> =
            identity.map(|(ns, sa)| format!("spiffe://a/ns/{ns}/sa/{sa}").parse().unwrap());
        let peer = IpAddr::V4(Ipv4Addr::new(127, 0, 0, octet));
        let asked = AuthzRequest {
            peer: Peer { identity: identity.as_ref(), address: peer },
            destination: SocketAddr::from(([127, 0, 0, 9], port)),
            sni,
            http: request.as_ref().map(|parts| RequestView::new(parts, "http")),
        };
        let place = |by: Option<(&ObjectRef, usize)>| by.map(|(policy, rule)| (policy.name.to_string(), rule));
        let decided = match authorize(&policies, &asked) {
            Verdict::Allowed { by } => (true, place(by), "allowed"),
            Verdict::Denied { by, reason } => (false, place(by), match reason {
                DenyReason::NoAllowMatched => "none",
                DenyReason::MatchedDeny => "denied",
                DenyReason::InvalidRule(_) => "invalid",
            }),
        };
        let plain = Asked { identity: identity.clone(), peer, port, sni, http: request.as_ref().map(Plain::of) };
        prop_assert_eq!(decided, naive_verdict(&policies, &plain));
    }
}
