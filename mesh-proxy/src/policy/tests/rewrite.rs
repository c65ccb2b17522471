//! `rewrite` and `redirect`.

use http::StatusCode;
use mesh_api::model::{PathRewrite, Redirect, RedirectPort, Rewrite, TextMatch};

use super::super::{RequestView, redirect_location, rewrite_path};
use super::*;

#[test]
fn prefixes() {
    let ignore = TextMatch::PrefixIgnoreCase("/Foo".into());
    let table = [
        (
            "the prefix is replaced, the rest stays",
            Some(prefix("/foo")),
            "/bar",
            "/foo/x",
            Some("/bar/x"),
        ),
        (
            "nothing is inserted between",
            Some(prefix("/foo/")),
            "/",
            "/foo/x",
            Some("/x"),
        ),
        ("nor taken away", Some(prefix("/foo")), "/", "/foo/x", Some("//x")),
        ("the prefix alone", Some(prefix("/foo")), "/", "/foo", Some("/")),
        (
            "the query stays",
            Some(prefix("/foo")),
            "/bar",
            "/foo?a=/foo",
            Some("/bar?a=/foo"),
        ),
        (
            "of any case when case is ignored",
            Some(ignore),
            "/bar",
            "/fOO/x",
            Some("/bar/x"),
        ),
        (
            "an exact match replaces the whole path",
            Some(exact("/foo")),
            "/bar",
            "/foo?q",
            Some("/bar?q"),
        ),
        (
            "so does an expression",
            Some(regex("/v[0-9]/.*")),
            "/bar",
            "/v1/x?q",
            Some("/bar?q"),
        ),
        (
            "a rule without path counts as prefix /",
            None,
            "/v2/",
            "/x",
            Some("/v2/x"),
        ),
        (
            "a path begins with /",
            Some(prefix("/foo/")),
            "bar",
            "/foo/x",
            Some("/barx"),
        ),
        (
            "what stays the same is not rewritten",
            Some(prefix("/foo")),
            "/foo",
            "/foo/x",
            None,
        ),
        ("OPTIONS * has no path", None, "/v2", "*", None),
    ];
    for (sentence, path, uri, request, expected) in table {
        let entry = path.map(path_is);
        let rewrite = Rewrite {
            uri: Some(uri.into()),
            ..Rewrite::default()
        };
        let rewritten = rewrite_path(&rewrite, entry.as_ref(), request);
        assert_eq!(rewritten.as_deref(), expected, "{sentence}");
    }
    assert_eq!(rewrite_path(&Rewrite::default(), None, "/x"), None);
}

#[test]
fn expressions() {
    let table = [
        (
            "captures are \\1 to \\9",
            "^/v1/(.*)$",
            "/v2/\\1",
            "/v1/x?q",
            Some("/v2/x?q"),
        ),
        ("every match is replaced", "a", "b", "/a/a?a", Some("/b/b?a")),
        ("a dollar is a dollar", "^/x$", "/$1", "/x", Some("/$1")),
        ("what does not match stays", "^/v1", "/v2", "/v3", None),
    ];
    for (sentence, expression, replacement, request, expected) in table {
        let rewrite = Rewrite {
            regex: Some(PathRewrite::new(expression, replacement).unwrap()),
            ..Rewrite::default()
        };
        assert_eq!(rewrite_path(&rewrite, None, request).as_deref(), expected, "{sentence}");
    }
}

fn redirect() -> Redirect {
    Redirect {
        status: StatusCode::MOVED_PERMANENTLY,
        uri: None,
        prefix_rewrite: None,
        authority: None,
        scheme: None,
        port: None,
    }
}

#[test]
fn locations() {
    type Change = fn(&mut Redirect);
    let table: &[(&str, Change, &str, &str)] = &[
        (
            "uri replaces the path",
            |r| r.uri = Some("/new".into()),
            "http://a/old",
            "http://a/new",
        ),
        (
            "and keeps the query",
            |r| r.uri = Some("/new".into()),
            "http://a/old?q=1",
            "http://a/new?q=1",
        ),
        (
            "unless it has its own",
            |r| r.uri = Some("/new?x".into()),
            "http://a/old?q=1",
            "http://a/new?x",
        ),
        (
            "the matched prefix is replaced",
            |r| r.prefix_rewrite = Some("/n".into()),
            "http://a/old/x?q",
            "http://a/n/x?q",
        ),
        (
            "a new host",
            |r| r.authority = Some("b".into()),
            "http://a:81/old",
            "http://b/old",
        ),
        (
            "with a port of its own",
            |r| r.authority = Some("b:82".into()),
            "http://a:81/old",
            "http://b:82/old",
        ),
        (
            "the port as sent stays",
            |r| r.uri = Some("/".into()),
            "http://a:81/old",
            "http://a:81/",
        ),
        (
            "a new scheme",
            |r| r.scheme = Some("https".into()),
            "http://a/old",
            "https://a/old",
        ),
        (
            "drops the old scheme's port",
            |r| r.scheme = Some("https".into()),
            "http://a:80/old",
            "https://a/old",
        ),
        (
            "a new port",
            |r| r.port = Some(RedirectPort::Number(8443)),
            "http://a:81/old",
            "http://a:8443/old",
        ),
        (
            "80 of http is not printed",
            |r| r.port = Some(RedirectPort::Number(80)),
            "http://a:81/old",
            "http://a/old",
        ),
        (
            "443 of https is not printed",
            |r| {
                r.scheme = Some("https".into());
                r.port = Some(RedirectPort::Number(443));
            },
            "http://a/old",
            "https://a/old",
        ),
        (
            "443 of http is",
            |r| r.port = Some(RedirectPort::Number(443)),
            "http://a/old",
            "http://a:443/old",
        ),
        (
            "the request's port is the listener's",
            |r| {
                r.authority = Some("b".into());
                r.port = Some(RedirectPort::FromRequestPort);
            },
            "http://a/old",
            "http://b:9080/old",
        ),
        (
            "the protocol's default is not printed",
            |r| r.port = Some(RedirectPort::FromProtocolDefault),
            "http://a:81/old",
            "http://a/old",
        ),
        (
            "an IPv6 address keeps its brackets",
            |r| r.port = Some(RedirectPort::Number(81)),
            "http://[::1]/old",
            "http://[::1]:81/old",
        ),
        (
            "and loses its port",
            |r| r.port = Some(RedirectPort::Number(80)),
            "http://[::1]:81/old",
            "http://[::1]/old",
        ),
    ];
    let entry = path_is(prefix("/old"));
    for (sentence, change, request, expected) in table {
        let mut redirect = redirect();
        change(&mut redirect);
        let parts = parts(&format!("GET {request}"), &[]);
        let request = RequestView::new(&parts, "http");
        let location = redirect_location(&redirect, Some(&entry), &request, 9080);
        assert_eq!(location, *expected, "{sentence}");
    }
}
