//! `match` of VirtualService, and weights.

use mesh_api::model::{HttpMatch, TextMatch};

use super::super::{RequestView, pick, pick_leg, select_route};
use super::*;

fn selects(entry: HttpMatch, line: &str, headers: &[(&str, &str)]) -> bool {
    let parts = parts(line, headers);
    select_route(&[route(vec![entry])], &RequestView::new(&parts, "http")).is_some()
}

#[test]
fn paths() {
    let ignore_exact = TextMatch::ExactIgnoreCase("/Foo".into());
    let ignore_prefix = TextMatch::PrefixIgnoreCase("/Foo".into());
    let table = [
        ("an exact path is the whole path", exact("/foo"), "GET /foo", true),
        ("and not its beginning", exact("/foo"), "GET /foo/", false),
        ("the query is no part of the path", exact("/foo"), "GET /foo?a=b", true),
        ("a prefix is a plain string prefix", prefix("/foo"), "GET /foobar", true),
        ("at the beginning only", prefix("/foo"), "GET /a/foo", false),
        ("case counts", prefix("/foo"), "GET /FOO", false),
        ("unless ignored: exact", ignore_exact.clone(), "GET /fOO", true),
        ("ignored case stays exact", ignore_exact, "GET /fOO/", false),
        ("unless ignored: prefix", ignore_prefix, "GET /FOObar", true),
        (
            "an expression matches the whole path",
            regex("/v[0-9]+"),
            "GET /v12",
            true,
        ),
        ("and no part of it", regex("/v[0-9]+"), "GET /v12/x", false),
        ("alternatives are anchored together", regex("/a|/b"), "GET /bc", false),
        (
            "the query is no part of it either",
            regex("/v[0-9]+"),
            "GET /v1?x=y",
            true,
        ),
    ];
    for (sentence, path, line, expected) in table {
        assert_eq!(selects(path_is(path), line, &[]), expected, "{sentence}");
    }
}

#[test]
fn methods_schemes_and_authorities() {
    let method = |text| HttpMatch {
        method: Some(text),
        ..HttpMatch::default()
    };
    let authority = |text| HttpMatch {
        authority: Some(text),
        ..HttpMatch::default()
    };
    let scheme = |text| HttpMatch {
        scheme: Some(text),
        ..HttpMatch::default()
    };
    let table = [
        ("a method is compared as it is", method(exact("GET")), "GET /", true),
        ("case counts", method(exact("get")), "GET /", false),
        ("another method does not match", method(exact("POST")), "GET /", false),
        (
            "the scheme is the listener's",
            scheme(exact("http")),
            "GET https://x/",
            true,
        ),
        (
            "another scheme does not match",
            scheme(exact("https")),
            "GET https://x/",
            false,
        ),
        (
            "the authority is the target's",
            authority(exact("a")),
            "GET http://a/",
            true,
        ),
        (
            "its port belongs to it",
            authority(exact("a")),
            "GET http://a:80/",
            false,
        ),
        ("as sent", authority(exact("a:80")), "GET http://a:80/", true),
        (
            "without user information",
            authority(exact("a")),
            "GET http://u:p@a/",
            true,
        ),
        ("by prefix", authority(prefix("a.")), "GET http://a.b/", true),
    ];
    for (sentence, entry, line, expected) in table {
        assert_eq!(selects(entry, line, &[]), expected, "{sentence}");
    }
}

#[test]
fn the_authority_of_origin_form_is_host() {
    let (parts, ()) = Request::builder()
        .uri("/x")
        .header("host", "reviews:9080")
        .body(())
        .unwrap()
        .into_parts();
    assert_eq!(RequestView::new(&parts, "http").authority, "reviews:9080");
}

#[test]
fn headers() {
    let with = |value| HttpMatch {
        headers: vec![header("x-user", value)],
        ..HttpMatch::default()
    };
    let without = |value| HttpMatch {
        without_headers: vec![header("x-user", value)],
        ..HttpMatch::default()
    };
    let jason: &[(&str, &str)] = &[("X-User", "jason")];
    let twice: &[(&str, &str)] = &[("x-user", "a"), ("x-user", "b")];
    let empty: &[(&str, &str)] = &[("x-user", "")];
    let table = [
        (
            "a value matches whatever the name's case",
            with(exact("jason")),
            jason,
            true,
        ),
        ("the value's case counts", with(exact("Jason")), jason, false),
        ("a prefix", with(prefix("jas")), jason, true),
        ("an expression over the whole value", with(regex("ja.*n")), jason, true),
        ("presence", with(TextMatch::Present), jason, true),
        ("presence of an empty value", with(TextMatch::Present), empty, true),
        ("what is absent is not present", with(TextMatch::Present), &[], false),
        ("what is absent matches nothing", with(regex(".*")), &[], false),
        ("not even the empty value", with(exact("")), &[], false),
        ("several values are joined by commas", with(exact("a,b")), twice, true),
        ("and not looked at one by one", with(exact("a")), twice, false),
        (
            "without: a value that matches excludes",
            without(exact("jason")),
            jason,
            false,
        ),
        ("without: another value does not", without(exact("anna")), jason, true),
        ("without: presence excludes", without(TextMatch::Present), jason, false),
        (
            "without: absence is not presence",
            without(TextMatch::Present),
            &[],
            true,
        ),
        (
            "without: what is absent counts as empty",
            without(exact("jason")),
            &[],
            true,
        ),
        ("without: which can match", without(exact("")), &[], false),
        ("without: also an expression", without(regex(".*")), &[], false),
    ];
    for (sentence, entry, headers, expected) in table {
        assert_eq!(selects(entry, "GET /", headers), expected, "{sentence}");
    }
}

#[test]
fn host_among_headers_is_the_authority() {
    let entry = HttpMatch {
        headers: vec![header("host", exact("reviews"))],
        ..HttpMatch::default()
    };
    assert!(selects(entry, "GET /", &[("host", "forged")]));
}

#[test]
fn header_values_that_are_not_utf8_are_still_looked_at() {
    let mut parts = parts("GET /", &[]);
    let value = http::HeaderValue::from_bytes(b"jas\xffon").unwrap();
    parts.headers.insert("x-user", value);
    let entry = HttpMatch {
        headers: vec![header("x-user", prefix("jas"))],
        ..HttpMatch::default()
    };
    assert!(select_route(&[route(vec![entry])], &RequestView::new(&parts, "http")).is_some());
}

#[test]
fn query_parameters() {
    let query = |name: &str, value| HttpMatch {
        query: vec![(name.into(), value)],
        ..HttpMatch::default()
    };
    let table = [
        ("a value", query("user", exact("jason")), "GET /?a=b&user=jason", true),
        ("another value", query("user", exact("jason")), "GET /?user=anna", false),
        (
            "names are case-sensitive",
            query("user", exact("jason")),
            "GET /?User=jason",
            false,
        ),
        (
            "the first of several counts",
            query("a", exact("2")),
            "GET /?a=1&a=2",
            false,
        ),
        ("without `=` it is empty", query("a", exact("")), "GET /?a&b=1", true),
        (
            "what is absent matches nothing",
            query("a", regex(".*")),
            "GET /?b=1",
            false,
        ),
        (
            "no query at all neither",
            query("a", TextMatch::Present),
            "GET /",
            false,
        ),
        ("presence", query("a", TextMatch::Present), "GET /?a=", true),
    ];
    for (sentence, entry, line, expected) in table {
        assert_eq!(selects(entry, line, &[]), expected, "{sentence}");
    }
}

#[test]
fn all_of_an_entry_and_any_entry_of_a_rule() {
    let both = HttpMatch {
        method: Some(exact("GET")),
        ..path_is(exact("/a"))
    };
    assert!(selects(both.clone(), "GET /a", &[]));
    assert!(!selects(both.clone(), "POST /a", &[]));
    assert!(!selects(both.clone(), "GET /b", &[]));

    let rule = [route(vec![both, path_is(exact("/b"))])];
    let parts = parts("POST /b", &[]);
    let selected = select_route(&rule, &RequestView::new(&parts, "http")).unwrap();
    assert_eq!(selected.matched, Some(&rule[0].matches[1]));
}

#[test]
fn the_first_rule_that_matches_decides() {
    let routes = [
        route(vec![path_is(exact("/a"))]),
        route(Vec::new()),
        route(vec![path_is(exact("/b"))]),
    ];
    for (path, expected) in [("/a", 0), ("/b", 1), ("/c", 1)] {
        let parts = parts(&format!("GET {path}"), &[]);
        let selected = select_route(&routes, &RequestView::new(&parts, "http")).unwrap();
        assert_eq!(selected.index, expected, "{path}");
        assert_eq!(selected.matched.is_none(), expected == 1);
    }
}

#[test]
fn nothing_matches() {
    let parts = parts("GET /c", &[]);
    let request = RequestView::new(&parts, "http");
    assert_eq!(select_route(&[], &request), None);
    assert_eq!(select_route(&[route(vec![path_is(exact("/a"))])], &request), None);
}

#[test]
fn weights_are_shares() {
    let forward = legs(&[1, 3]);
    let mut counts = [0; 2];
    for draw in 0..400_u64 {
        counts[pick_leg(&forward, draw).cluster] += 1;
    }
    assert_eq!(counts, [100, 300]);
    assert_eq!(
        pick_leg(&legs(&[0]), 7).cluster,
        0,
        "a single leg gets all, whatever its weight"
    );
    assert_eq!(pick_leg(&legs(&[0, 5]), 0).cluster, 1, "a leg of weight 0 gets nothing");
    assert_eq!(pick_leg(&legs(&[u32::MAX; 4]), u64::MAX).weight, u32::MAX);
    assert_eq!(pick(&[], 1), None);
}
