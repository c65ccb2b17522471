//! Header operations and the new authority.

use http::{HeaderMap, HeaderValue};
use mesh_api::model::{HeaderOps, RouteAction};

use super::super::{apply_request_headers, apply_response_headers, new_authority};
use super::*;

fn pair(name: &str, value: &str) -> (HeaderName, HeaderValue) {
    (name.parse().unwrap(), value.parse().unwrap())
}

fn map(pairs: &[(&str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| pair(name, value)).collect()
}

#[test]
fn order_is_remove_set_add() {
    let ops = HeaderOps {
        request_remove: vec!["gone".parse().unwrap(), "both".parse().unwrap()],
        request_set: vec![pair("set", "new"), pair("both", "set")],
        request_add: vec![pair("added", "2"), pair("both", "added")],
        response_set: vec![pair("set", "response")],
        ..HeaderOps::default()
    };
    let before = [
        ("gone", "1"),
        ("set", "old"),
        ("set", "older"),
        ("added", "1"),
        ("both", "sent"),
    ];
    let mut headers = map(&before);
    assert_eq!(apply_request_headers(&ops, &mut headers), None);
    let after = [
        ("set", "new"),
        ("added", "1"),
        ("added", "2"),
        ("both", "set"),
        ("both", "added"),
    ];
    assert_eq!(headers, map(&after));

    let mut headers = map(&before);
    apply_response_headers(&ops, &mut headers);
    assert_eq!(headers["set"], "response");
    assert_eq!(headers["gone"], "1", "operations on requests leave responses alone");
}

#[test]
fn precedence_of_authorities() {
    let value = |present: bool, text: &'static str| present.then(|| HeaderValue::from_static(text));
    let table = [
        ("the rewrite before all", [true, true, true], Some("rewrite")),
        (
            "the route's headers before the leg's",
            [false, true, true],
            Some("route"),
        ),
        (
            "the leg's when there is nothing else",
            [false, false, true],
            Some("leg"),
        ),
        ("else the request keeps its own", [false; 3], None),
    ];
    for (sentence, [rewrite, of_route, of_leg], expected) in table {
        let mut forward = legs(&[1]);
        forward.rewrite.authority = value(rewrite, "rewrite");
        forward.clusters[0].headers.authority = value(of_leg, "leg");
        let mut rule = route(Vec::new());
        rule.headers.authority = value(of_route, "route");
        rule.action = RouteAction::Forward(Box::new(forward.clone()));
        let authority = new_authority(&rule, &forward, &forward.clusters[0]);
        assert_eq!(
            authority.map(|authority| authority.to_str().unwrap()),
            expected,
            "{sentence}"
        );
    }
}
