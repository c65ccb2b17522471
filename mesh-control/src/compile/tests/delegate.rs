//! Delegation: whose rules apply, what they inherit, and what contradicts.

use std::collections::HashSet;
use std::time::Duration;

use super::*;
use crate::world::Key;

fn root(rules: &str) -> String {
    format!(
        "\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: root}}\nspec: {{hosts: [reviews], http: {rules}}}\n"
    )
}

fn leaf(namespace: &str, extra: &str, rules: &str) -> String {
    format!(
        "\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: leaf, namespace: {namespace}}}\nspec: {{{extra}http: {rules}}}\n"
    )
}

const REVIEWS: &str = "host: reviews.default.svc.cluster.local";

#[test]
fn rules_of_a_delegate_stand_in_the_place_of_the_rule_that_hands_over() {
    let mesh = Mesh::shop(
        &(root(&format!(
            "[{{name: outer, match: [{{uri: {{prefix: /a}}}}], timeout: 9s, retries: {{attempts: 4}}, delegate: {{name: leaf, namespace: other}}}}, {{route: [{{destination: {{{REVIEWS}}}}}]}}]"
        )) + &leaf(
            "other",
            "",
            &format!(
                "[{{name: one, match: [{{uri: {{prefix: /a/b}}}}], timeout: 1s, route: [{{destination: {{{REVIEWS}, subset: v1}}}}]}}, {{match: [{{uri: {{prefix: /c}}}}], route: [{{destination: {{{REVIEWS}, subset: v3}}}}]}}, {{route: [{{destination: {{{REVIEWS}, subset: v2}}}}]}}]"
            ),
        )),
    );
    let destination = mesh.destination("reviews:80");
    let seen: Vec<_> = destination
        .routes
        .iter()
        .map(|route| {
            let origin = route.origin.as_ref().unwrap();
            let forward = forward(route);
            (
                route.name.to_string(),
                format!("{} {}", origin.0, origin.1),
                destination.clusters[forward.clusters[0].cluster]
                    .subset
                    .as_deref()
                    .unwrap_or_default()
                    .to_owned(),
                forward.timeout.map_or(0, |timeout| timeout.as_secs()),
                forward.retry.as_ref().map_or(0, |retry| retry.attempts),
            )
        })
        .collect();
    let row = |name: &str, origin: &str, subset: &str, timeout, attempts| {
        (
            name.to_owned(),
            format!("VirtualService {origin}"),
            subset.to_owned(),
            timeout,
            attempts,
        )
    };
    assert_eq!(
        seen,
        [
            row("outer-one", "other/leaf http[0]", "v1", 1, 4),
            row("outer", "other/leaf http[2]", "v2", 9, 4),
            row("", "default/root http[1]", "", 0, 2),
        ],
        "what is not within the outer match is left out, what is not set is inherited"
    );
    assert_eq!(destination.routes[1].matches.len(), 1);
}

#[test]
fn what_narrows_and_what_contradicts() {
    // (outer, inner, whether the inner rule is there)
    let rows = [
        ("{uri: {prefix: /a}}", "{uri: {prefix: /a/b}}", true),
        ("{uri: {prefix: /a}}", "{uri: {exact: /a/b}}", true),
        ("{uri: {prefix: /a}}", "{uri: {exact: /b}}", false),
        ("{uri: {exact: /a}}", "{uri: {exact: /a}}", true),
        ("{uri: {exact: /a}}", "{uri: {prefix: /a}}", false),
        ("{uri: {regex: '/a.*'}}", "{uri: {prefix: /a}}", false),
        ("{uri: {prefix: /a}}", "{uri: {regex: '/a.*'}}", false),
        ("{uri: {prefix: /a}}", "{method: {exact: GET}}", true),
        ("{method: {exact: GET}}", "{method: {exact: PUT}}", false),
        ("{headers: {x: {exact: a}}}", "{headers: {y: {exact: b}}}", true),
        ("{headers: {x: {prefix: a}}}", "{headers: {x: {exact: ab}}}", true),
        ("{headers: {x: {exact: a}}}", "{headers: {x: {exact: b}}}", false),
        ("{headers: {x: {}}}", "{headers: {x: {exact: b}}}", true),
        ("{port: 80, uri: {prefix: /a}}", "{port: 80}", true),
        ("{port: 80, uri: {prefix: /a}}", "{port: 81}", false),
        (
            "{sourceLabels: {tier: front}, uri: {prefix: /a}}",
            "{sourceLabels: {app: client}}",
            true,
        ),
        (
            "{sourceLabels: {tier: front}, uri: {prefix: /a}}",
            "{sourceLabels: {tier: back}}",
            false,
        ),
        ("{uri: {prefix: /a}, ignoreUriCase: true}", "{uri: {prefix: /a}}", false),
    ];
    for (outer, inner, expected) in rows {
        let mesh = Mesh::shop(
            &(root(&format!("[{{match: [{outer}], delegate: {{name: leaf}}}}]"))
                + &leaf(
                    "default",
                    "",
                    &format!("[{{match: [{inner}], route: [{{destination: {{{REVIEWS}}}}}]}}]"),
                )),
        );
        assert_eq!(
            !mesh.destination("reviews:80").routes.is_empty(),
            expected,
            "{outer} and {inner}"
        );
    }
    let merged = Mesh::shop(
        &(root("[{match: [{uri: {prefix: /a}, headers: {x: {}}}], delegate: {name: leaf}}]")
            + &leaf(
                "default",
                "",
                &format!(
                    "[{{match: [{{uri: {{prefix: /a/b}}, headers: {{x: {{exact: b}}, y: {{}}}}}}], route: [{{destination: {{{REVIEWS}}}}}]}}]"
                ),
            )),
    );
    let entry = &merged.destination("reviews:80").routes[0].matches[0];
    assert_eq!(entry.path, Some(mesh_api::model::TextMatch::Prefix("/a/b".into())));
    assert_eq!(entry.headers.len(), 2);
}

#[test]
fn who_may_be_a_delegate() {
    let rules = format!("[{{timeout: 7s, route: [{{destination: {{{REVIEWS}}}}}]}}]");
    for (sentence, leaf, expected) in [
        ("of another namespace, shown to all", leaf("other", "", &rules), true),
        ("not shown", leaf("other", "exportTo: ['.'], ", &rules), false),
        ("shown by name", leaf("other", "exportTo: [default], ", &rules), true),
        (
            "with hosts of its own",
            leaf("other", "hosts: [elsewhere], ", &rules),
            false,
        ),
        ("that is not there", String::new(), false),
    ] {
        let mesh = Mesh::shop(&(root("[{delegate: {name: leaf, namespace: other}}]") + &leaf));
        let routes = mesh.destination("reviews:80").routes;
        let seen = routes.first().and_then(|route| forward(route).timeout) == Some(Duration::from_secs(7));
        assert_eq!(seen, expected, "{sentence}");
    }
}

#[test]
fn a_delegate_acts_only_through_others_and_touches_their_hosts() {
    let rules = |timeout: u32| {
        format!("[{{timeout: {timeout}s, route: [{{destination: {{host: orders.default.svc.cluster.local}}}}]}}]")
    };
    let mut mesh = Mesh::shop(&leaf("default", "", &rules(1)));
    let timeout = |mesh: &Mesh, name: &str| forward(&mesh.destination(name).routes[0]).timeout;
    assert_eq!(
        timeout(&mesh, "orders:8080"),
        Some(Duration::from_secs(1)),
        "nobody hands over to it"
    );

    let apply = |mesh: &mut Mesh, manifest: &str| -> HashSet<Key> {
        let object = objects(manifest).remove(0);
        mesh.world.apply(&Event::Applied(Arc::new(object)))
    };
    let depends = |mesh: &Mesh, name: &str| {
        let facts = ClientFacts::of(&mesh.world, &"client.default".parse().unwrap());
        let reader = Reader::new(&mesh.world, &facts);
        let (host, port) = crate::compile::lookup::split(name).unwrap();
        let target = crate::compile::lookup(&reader, host, port).unwrap();
        crate::compile::destination(&reader, &target).unwrap();
        reader.finish().depends
    };
    let orders = depends(&mesh, "orders:8080");
    let touched = apply(&mut mesh, &root("[{delegate: {name: leaf}}]"));
    assert!(
        orders.iter().any(|key| touched.contains(key)),
        "it is only a delegate now"
    );
    assert_eq!(timeout(&mesh, "orders:8080"), None);
    assert_eq!(timeout(&mesh, "reviews:80"), Some(Duration::from_secs(1)));

    let reviews = depends(&mesh, "reviews:80");
    let touched = apply(&mut mesh, &leaf("default", "", &rules(2)));
    assert!(reviews.iter().any(|key| touched.contains(key)));
    assert_eq!(timeout(&mesh, "reviews:80"), Some(Duration::from_secs(2)));
}
