//! What a decision costs: routing and authorization of one request, with little and with much policy.

#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::Request;
use http::request::Parts;
use mesh_api::identity::SpiffeId;
use mesh_api::model::{
    Action, AuthorizationPolicy, FullRegex, HeaderMatch, HttpMatch, HttpRoute, Operation, RouteAction, Rule, Source,
    TermMatch, Terms, TextMatch,
};
use mesh_api::names::ObjectRef;
use mesh_proxy::policy::{AuthzRequest, Peer, RequestView, authorize, normalize_path, select_route};

fn request() -> Parts {
    let request = Request::get("http://reviews.default.svc.cluster.local:9080/reviews/42?full=1")
        .header("user-agent", "bench")
        .header("x-request-id", "5c1e0a60-7e0e-4d6b-9d5e-2f0d3c0f2a11")
        .header("x-user", "jason");
    request.body(()).unwrap().into_parts().0
}

fn route(path: TextMatch) -> HttpRoute {
    let header = HeaderMatch {
        name: "x-user".parse().unwrap(),
        value: TextMatch::Exact("jason".into()),
    };
    HttpRoute {
        name: "default".into(),
        origin: None,
        matches: vec![HttpMatch {
            path: Some(path),
            headers: vec![header],
            ..HttpMatch::default()
        }],
        action: RouteAction::DirectResponse {
            status: http::StatusCode::OK,
            body: bytes::Bytes::new(),
        },
        headers: Default::default(),
        fault: None,
    }
}

fn terms(terms: &[&str]) -> Terms<TermMatch> {
    Terms {
        any: terms.iter().map(|term| TermMatch::parse(term)).collect(),
        none: Vec::new(),
    }
}

fn policy(account: &str) -> AuthorizationPolicy {
    AuthorizationPolicy {
        origin: ObjectRef::new("AuthorizationPolicy", "default", account),
        action: Action::Allow,
        rules: vec![Rule {
            from: vec![Source {
                principals: terms(&[&format!("cluster.local/ns/default/sa/{account}")]),
                ..Source::default()
            }],
            to: vec![Operation {
                methods: terms(&["GET", "HEAD"]),
                paths: terms(&["/reviews/*"]),
                ..Operation::default()
            }],
            http_only: true,
            ..Rule::default()
        }],
    }
}

fn routing(c: &mut Criterion) {
    let parts = request();
    let view = RequestView::new(&parts, "http");
    let mut group = c.benchmark_group("select_route");
    for before in [0, 10, 100] {
        let mut routes: Vec<HttpRoute> = (0..before)
            .map(|number| route(TextMatch::Prefix(format!("/other/{number}").into())))
            .collect();
        routes.push(route(TextMatch::Prefix("/reviews/".into())));
        group.bench_function(BenchmarkId::new("prefix", before + 1), |b| {
            b.iter(|| select_route(black_box(&routes), black_box(&view)).map(|selected| selected.index));
        });
    }
    let routes = [route(TextMatch::Regex(FullRegex::new("/reviews/[0-9]+").unwrap()))];
    group.bench_function("regex", |b| {
        b.iter(|| select_route(black_box(&routes), black_box(&view)).map(|selected| selected.index));
    });
    group.finish();
}

fn authorization(c: &mut Criterion) {
    let parts = request();
    let identity: SpiffeId = "spiffe://cluster.local/ns/default/sa/order-service".parse().unwrap();
    let request = AuthzRequest {
        peer: Peer {
            identity: Some(&identity),
            address: [127, 0, 1, 5].into(),
        },
        destination: ([127, 0, 1, 9], 9080).into(),
        sni: None,
        http: Some(RequestView::new(&parts, "http")),
    };
    let mut group = c.benchmark_group("authorize");
    for before in [0, 10, 100] {
        let mut policies: Vec<AuthorizationPolicy> =
            (0..before).map(|number| policy(&format!("other-{number}"))).collect();
        policies.push(policy("order-service"));
        group.bench_function(BenchmarkId::new("allow", before + 1), |b| {
            b.iter(|| authorize(black_box(&policies), black_box(&request)).is_allowed());
        });
    }
    group.finish();
}

fn paths(c: &mut Criterion) {
    let mut group = c.benchmark_group("normalize_path");
    for (name, path) in [
        ("normal", "/reviews/42?full=1"),
        ("odd", "/public/%2e%2e/reviews/42?full=1"),
    ] {
        group.bench_function(name, |b| b.iter(|| normalize_path(black_box(path))));
    }
    group.finish();
}

criterion_group!(benches, routing, authorization, paths);
criterion_main!(benches);
