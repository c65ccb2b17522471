//! VirtualService: which one decides, which rules apply, and what they say.

use mesh_api::model::{EndpointSource, HeaderOps, Missing, Percentage, RedirectPort, TextMatch};

use super::*;

fn rules(http: &str) -> Mesh {
    Mesh::shop(&format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: reviews}}\nspec:\n  hosts: [reviews]\n  http:\n{http}"
    ))
}

const V1: &str = "outbound|80|v1|reviews.default.svc.cluster.local";
const V2: &str = "outbound|80|v2|reviews.default.svc.cluster.local";

/// Where each route goes first, with the number of its matches.
fn summary(mesh: &Mesh, client: &str, name: &str) -> Vec<(String, usize)> {
    let destination = mesh.destination_for(client, name).unwrap();
    destination
        .routes
        .iter()
        .map(|route| (legs(&destination, route)[0].0.clone(), route.matches.len()))
        .collect()
}

#[test]
fn which_rules_are_for_a_client_and_port() {
    let to = |subset: &str| format!("    route: [{{destination: {{host: reviews, subset: {subset}}}}}]\n");
    let rest = format!("  -{}", &to("v1")[3..]);
    let with = |entry: &str| format!("  - match: [{entry}]\n{}{rest}", to("v2"));
    let v2_then_v1 = vec![(V2.to_owned(), 1), (V1.to_owned(), 0)];
    let v1 = vec![(V1.to_owned(), 0)];
    let v2 = vec![(V2.to_owned(), 1)];
    let rows = [
        ("{headers: {canary: {exact: 'true'}}}", &v2_then_v1),
        // The service port that was asked for.
        ("{port: 80, method: {exact: GET}}", &v2_then_v1),
        ("{port: 9080, method: {exact: GET}}", &v1),
        // The client's labels and namespace.
        ("{sourceLabels: {tier: front}, method: {exact: GET}}", &v2_then_v1),
        ("{sourceLabels: {tier: back}, method: {exact: GET}}", &v1),
        ("{sourceLabels: {tier: front, absent: x}, method: {exact: GET}}", &v1),
        ("{sourceNamespace: default, method: {exact: GET}}", &v2_then_v1),
        ("{sourceNamespace: other, method: {exact: GET}}", &v1),
        // Gateways: `mesh` is all sidecars, and then labels and namespace are not looked at.
        (
            "{gateways: [mesh], sourceLabels: {tier: back}, method: {exact: GET}}",
            &v2_then_v1,
        ),
        ("{gateways: [mesh, default/edge], method: {exact: GET}}", &v2_then_v1),
        ("{gateways: [default/edge], method: {exact: GET}}", &v1),
        // After a rule that matches everything nothing is reached.
        ("{uri: {prefix: /}}", &v2),
        ("{uri: {regex: '.*'}}", &v2),
        ("{}", &v2),
        ("{port: 80}", &v2),
        ("{sourceLabels: {tier: front}}", &v2),
        ("{uri: {prefix: /}, headers: {a: {exact: b}}}", &v2_then_v1),
        ("{uri: {exact: /}}", &v2_then_v1),
        // What cannot be compiled matches nothing.
        ("{uri: {regex: '('}}", &v1),
        ("{headers: {'@request.auth.claims.sub': {exact: a}}}", &v1),
        // Keys of headers that have fields of their own are passed over.
        ("{headers: {method: {exact: GET}}}", &v2),
    ];
    for (entry, expected) in rows {
        assert_eq!(
            &summary(&rules(&with(entry)), "client.default", "reviews:80"),
            expected,
            "{entry}"
        );
    }
}

#[test]
fn without_a_matching_rule_there_is_no_default_route() {
    let mesh = rules("  - match: [{uri: {prefix: /a}}]\n    route: [{destination: {host: reviews}}]\n");
    assert_eq!(mesh.destination("reviews:80").routes.len(), 1);
    let mesh = rules("  - match: [{port: 1}]\n    route: [{destination: {host: reviews}}]\n");
    assert!(mesh.destination("reviews:80").routes.is_empty());
}

#[test]
fn matches_are_compiled_as_istio_reads_them() {
    let mesh = rules(
        "
  - name: rule
    match:
    - name: one
      uri: {exact: /Exact}
      ignoreUriCase: true
      scheme: {exact: http}
      method: {regex: 'GET|HEAD'}
      authority: {prefix: rev}
      headers: {X-Present: {}, x-star: {regex: '*'}, x-exact: {exact: ''}}
      withoutHeaders: {x-not: {prefix: a}}
      queryParams: {q: {exact: '1'}, any: {}}
    - uri: {prefix: /P}
      ignoreUriCase: true
    - uri: {regex: '/R.*'}
      ignoreUriCase: true
    route: [{destination: {host: reviews}}]
",
    );
    let destination = mesh.destination("reviews:80");
    let names: Vec<_> = destination.routes.iter().map(|route| &*route.name).collect();
    assert_eq!(names, ["rule.one", "rule", "rule"]);
    let origins: Vec<_> = destination
        .routes
        .iter()
        .map(|route| {
            route
                .origin
                .as_ref()
                .map(|(object, rule)| format!("{object} {rule}"))
                .unwrap()
        })
        .collect();
    assert_eq!(origins, vec!["VirtualService default/reviews http[0]"; 3]);
    let first = &destination.routes[0].matches[0];
    assert_eq!(first.path, Some(TextMatch::ExactIgnoreCase("/Exact".into())));
    assert_eq!(first.scheme, Some(TextMatch::Exact("http".into())));
    assert!(first.method.as_ref().unwrap().is_match("HEAD") && !first.method.as_ref().unwrap().is_match("GETS"));
    assert_eq!(first.authority, Some(TextMatch::Prefix("rev".into())));
    let headers: Vec<_> = first
        .headers
        .iter()
        .map(|header| (header.name.as_str(), header.value.clone()))
        .collect();
    assert_eq!(
        headers,
        [
            ("x-present", TextMatch::Present),
            ("x-exact", TextMatch::Exact("".into())),
            ("x-star", TextMatch::Present)
        ]
    );
    assert_eq!(first.without_headers[0].value, TextMatch::Prefix("a".into()));
    assert_eq!(
        first.query,
        [
            ("any".into(), TextMatch::Present),
            ("q".into(), TextMatch::Exact("1".into()))
        ]
    );
    assert_eq!(
        destination.routes[1].matches[0].path,
        Some(TextMatch::PrefixIgnoreCase("/P".into()))
    );
    assert!(matches!(&destination.routes[2].matches[0].path, Some(TextMatch::Regex(regex)) if regex.is_match("/Rx")));
}

#[test]
fn where_destinations_lead() {
    // (destination, cluster, missing)
    let rows = [
        (
            "{host: reviews}",
            "outbound|80||reviews.default.svc.cluster.local",
            None,
        ),
        (
            "{host: reviews.default.svc.cluster.local}",
            "outbound|80||reviews.default.svc.cluster.local",
            None,
        ),
        (
            "{host: reviews, port: {number: 9080}}",
            "outbound|9080||reviews.default.svc.cluster.local",
            None,
        ),
        ("{host: reviews, subset: v1}", V1, None),
        // The only port of a service is meant if none is named, otherwise the port that was asked for.
        (
            "{host: orders}",
            "outbound|8080||orders.default.svc.cluster.local",
            None,
        ),
        (
            "{host: nobody}",
            "outbound|80||nobody.default.svc.cluster.local",
            Some(Missing::Host),
        ),
        (
            "{host: reviews.default}",
            "outbound|80||reviews.default",
            Some(Missing::Host),
        ),
        (
            "{host: reviews, port: {number: 1}}",
            "outbound|1||reviews.default.svc.cluster.local",
            Some(Missing::Port),
        ),
        (
            "{host: reviews, subset: v9}",
            "outbound|80|v9|reviews.default.svc.cluster.local",
            Some(Missing::Subset),
        ),
    ];
    for (written, name, missing) in rows {
        let mesh = rules(&format!("  - route: [{{destination: {written}}}]\n"));
        let destination = mesh.destination("reviews:80");
        let cluster = &destination.clusters[forward(&destination.routes[0]).clusters[0].cluster];
        assert_eq!(cluster.name(), name, "{written}");
        let found = match &cluster.endpoints {
            EndpointSource::Missing(missing) => Some(*missing),
            _ => None,
        };
        assert_eq!(found, missing, "{written}");
    }
}

#[test]
fn weights_are_shares_of_their_sum() {
    let leg =
        |subset: &str, weight: i32| format!("{{destination: {{host: reviews, subset: {subset}}}, weight: {weight}}}");
    let rows = [
        (vec![leg("v1", 90), leg("v2", 10)], vec![(V1, 90), (V2, 10)]),
        (vec![leg("v1", 1), leg("v2", 2)], vec![(V1, 1), (V2, 2)]),
        // Nothing goes to a weight of zero, unless there is nowhere else.
        (vec![leg("v1", 100), leg("v2", 0)], vec![(V1, 100)]),
        (vec![leg("v1", 0)], vec![(V1, 1)]),
        (
            vec!["{destination: {host: reviews, subset: v2}}".to_owned()],
            vec![(V2, 1)],
        ),
    ];
    for (written, expected) in rows {
        let mesh = rules(&format!("  - route: [{}]\n", written.join(", ")));
        let destination = mesh.destination("reviews:80");
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(name, weight)| (name.to_owned(), weight))
            .collect();
        assert_eq!(legs(&destination, &destination.routes[0]), expected, "{written:?}");
    }
}

#[test]
fn a_cluster_is_there_once_however_often_rules_name_it() {
    let mesh = rules(
        "  - match: [{uri: {prefix: /a}}]\n    route: [{destination: {host: reviews, subset: v1}}]\n    mirror: {host: reviews, subset: v1}\n  - route: [{destination: {host: reviews, subset: v1}}]\n",
    );
    let destination = mesh.destination("reviews:80");
    let names: Vec<_> = destination.clusters.iter().map(|cluster| cluster.name()).collect();
    assert_eq!(names, ["outbound|80||reviews.default.svc.cluster.local", V1]);
    assert_eq!(&*destination.clusters[1].selector["version"], "v1");
}

#[test]
fn actions() {
    let route = |rule: &str| {
        let destination = rules(&format!("  - {rule}\n")).destination("reviews:80");
        destination.routes[0].clone()
    };
    let RouteAction::Redirect(redirect) =
        route("{redirect: {uri: /new, authority: other, redirectCode: 308, scheme: https, port: 8443}, directResponse: {status: 200}}").action
    else {
        panic!("a redirect wins");
    };
    assert_eq!(redirect.status, 308);
    assert_eq!(redirect.uri.as_deref(), Some("/new"));
    assert_eq!(redirect.authority.as_deref(), Some("other"));
    assert_eq!(redirect.scheme.as_deref(), Some("https"));
    assert_eq!(redirect.port, Some(RedirectPort::Number(8443)));
    let RouteAction::Redirect(redirect) =
        route("{redirect: {prefixRewrite: /b, derivePort: FROM_REQUEST_PORT}}").action
    else {
        panic!("no redirect");
    };
    assert_eq!(
        (redirect.status.as_u16(), redirect.port),
        (301, Some(RedirectPort::FromRequestPort))
    );
    assert_eq!(redirect.prefix_rewrite.as_deref(), Some("/b"));

    for (body, expected) in [("{string: hello}", "hello"), ("{bytes: aGVsbG8=}", "hello")] {
        let RouteAction::DirectResponse { status, body } = route(&format!(
            "{{directResponse: {{status: 418, body: {body}}}, route: [{{destination: {{host: reviews}}}}]}}"
        ))
        .action
        else {
            panic!("no direct response");
        };
        assert_eq!((status.as_u16(), &*body), (418, expected.as_bytes()));
    }

    let rewritten = route(
        "{rewrite: {uri: /v2, authority: a.example.com}, headers: {request: {set: {host: b.example.com}}}, route: [{destination: {host: reviews}, headers: {request: {set: {host: c.example.com}}}}]}",
    );
    let rewrite = &forward(&rewritten).rewrite;
    assert_eq!(rewrite.uri.as_deref(), Some("/v2"));
    assert_eq!(rewrite.authority.as_ref().unwrap(), "a.example.com");
    assert_eq!(forward(&rewritten).clusters[0].headers.authority, None);
    assert_eq!(rewritten.headers, HeaderOps::default());
    let regex = route(
        "{rewrite: {uriRegexRewrite: {match: '/a/(.*)', rewrite: '/b/\\1'}}, route: [{destination: {host: reviews}}]}",
    );
    assert_eq!(forward(&regex).rewrite.regex.as_ref().unwrap().apply("/a/x"), "/b/x");
}

#[test]
fn hosts_are_set_by_route_then_by_destination() {
    let authority = |route_headers: &str, leg_headers: &str| {
        let destination = rules(&format!(
            "  - headers: {{request: {route_headers}}}\n    route: [{{destination: {{host: reviews}}, headers: {{request: {leg_headers}}}}}]\n"
        ))
        .destination("reviews:80");
        let forward = forward(&destination.routes[0]).clone();
        (
            forward
                .rewrite
                .authority
                .map(|value| value.to_str().unwrap().to_owned()),
            forward.clusters[0]
                .headers
                .authority
                .as_ref()
                .map(|value| value.to_str().unwrap().to_owned()),
        )
    };
    let is = |text: &str| Some(text.to_owned());
    assert_eq!(
        authority("{set: {Host: a}, add: {':authority': b}}", "{set: {host: c}}"),
        (is("a"), None)
    );
    assert_eq!(authority("{add: {host: b}}", "{}"), (is("b"), None));
    assert_eq!(authority("{}", "{set: {':authority': c}}"), (None, is("c")));
}

#[test]
fn header_operations() {
    let destination = rules(
        "  - headers: {request: {set: {a: '1%%'}, add: {b: '2'}, remove: [c]}, response: {set: {d: '3'}, add: {e: '4'}, remove: [f]}}\n    route: [{destination: {host: reviews}}]\n",
    )
    .destination("reviews:80");
    let ops = &destination.routes[0].headers;
    let pairs = |list: &[(http::HeaderName, http::HeaderValue)]| {
        list.iter()
            .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()))
            .collect::<Vec<_>>()
            .join(",")
    };
    assert_eq!(pairs(&ops.request_set), "a=1%");
    assert_eq!(pairs(&ops.request_add), "b=2");
    assert_eq!(ops.request_remove, ["c"]);
    assert_eq!(pairs(&ops.response_set), "d=3");
    assert_eq!(pairs(&ops.response_add), "e=4");
    assert_eq!(ops.response_remove, ["f"]);
}

#[test]
fn faults_need_a_share_and_mirrors_do_not() {
    use mesh_api::model::{Abort, Fault};
    let fault = |written: &str| {
        let destination = rules(&format!(
            "  - fault: {written}\n    route: [{{destination: {{host: reviews}}}}]\n"
        ))
        .destination("reviews:80");
        destination.routes[0].fault.clone()
    };
    let half = Percentage::from_percent(50.0);
    let five = std::time::Duration::from_secs(5);
    let delay = |share| {
        Some(Fault {
            delay: Some((share, five)),
            abort: None,
        })
    };
    let abort = |share, how| {
        Some(Fault {
            delay: None,
            abort: Some((share, how)),
        })
    };
    let rows = [
        ("{delay: {fixedDelay: 5s, percentage: {value: 50}}}", delay(half)),
        (
            "{delay: {fixedDelay: 5s, percentage: {value: 0.0001}}}",
            delay(Percentage::from_per_million(1)),
        ),
        ("{delay: {fixedDelay: 5s, percent: 50}}", delay(half)),
        ("{delay: {fixedDelay: 5s}}", None),
        ("{delay: {fixedDelay: 5s, percentage: {}}}", None),
        (
            "{abort: {httpStatus: 503, percentage: {value: 50}}}",
            abort(half, Abort::Http(http::StatusCode::SERVICE_UNAVAILABLE)),
        ),
        (
            "{abort: {grpcStatus: UNAVAILABLE, percentage: {value: 50}}}",
            abort(half, Abort::Grpc(14)),
        ),
        (
            "{abort: {grpcStatus: '4', percentage: {value: 50}}}",
            abort(half, Abort::Grpc(4)),
        ),
        ("{abort: {httpStatus: 503}}", None),
    ];
    for (written, expected) in rows {
        assert_eq!(fault(written), expected, "{written}");
    }
    let mirrors = |written: &str| {
        let destination = rules(&format!(
            "  - route: [{{destination: {{host: reviews, subset: v1}}}}]\n    {written}\n"
        ))
        .destination("reviews:80");
        forward(&destination.routes[0])
            .mirrors
            .iter()
            .map(|mirror| (destination.clusters[mirror.cluster].name(), mirror.share.per_million()))
            .collect::<Vec<_>>()
    };
    let to_v2 = |share| vec![(V2.to_owned(), share)];
    for (written, expected) in [
        ("mirror: {host: reviews, subset: v2}", to_v2(1_000_000)),
        (
            "mirror: {host: reviews, subset: v2}\n    mirrorPercentage: {value: 25}",
            to_v2(250_000),
        ),
        (
            "mirror: {host: reviews, subset: v2}\n    mirrorPercentage: {value: 0}",
            vec![],
        ),
        (
            "mirror: {host: reviews, subset: v2}\n    mirrorPercent: 10",
            to_v2(100_000),
        ),
        (
            "mirrors: [{destination: {host: reviews, subset: v2}, percentage: {value: 1}}]",
            to_v2(10_000),
        ),
    ] {
        assert_eq!(mirrors(written), expected, "{written}");
    }
}

/// A VirtualService for `reviews` or another host that sends everything to a subset.
fn object(name: &str, extra: &str, hosts: &str, subset: &str) -> String {
    let (namespace, created) = extra.split_once(' ').unwrap_or((extra, ""));
    let created = if created.is_empty() {
        String::new()
    } else {
        format!(", creationTimestamp: '2026-01-{created}T00:00:00Z'")
    };
    format!(
        "\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: {namespace}{created}}}\nspec:\n  {hosts}\n  http: [{{route: [{{destination: {{host: reviews.default.svc.cluster.local, subset: {subset}}}}}]}}]\n"
    )
}

#[test]
fn which_virtual_service_decides() {
    const FQDN: &str = "hosts: [reviews.default.svc.cluster.local]";
    // (objects, client, the subset that decides; none for the default route)
    let rows: [(&str, Vec<String>, &str, Option<&str>); 13] = [
        (
            "one",
            vec![object("a", "default", "hosts: [reviews]", "v1")],
            "client.default",
            Some("v1"),
        ),
        (
            "short names are of the object's namespace",
            vec![object("a", "other", "hosts: [reviews]", "v1")],
            "client.default",
            None,
        ),
        (
            "other namespaces may claim a host",
            vec![object("a", "other", FQDN, "v1")],
            "client.default",
            Some("v1"),
        ),
        (
            "the oldest wins",
            vec![
                object("a", "default 02", FQDN, "v1"),
                object("b", "default 01", FQDN, "v2"),
            ],
            "client.default",
            Some("v2"),
        ),
        (
            "of the same age, the first name wins",
            vec![object("b", "default", FQDN, "v1"), object("a", "default", FQDN, "v2")],
            "client.default",
            Some("v2"),
        ),
        (
            "private ones come before public ones",
            vec![
                object("a", "other 01", FQDN, "v1"),
                object("b", "default 02", &format!("{FQDN}\n  exportTo: ['.']"), "v2"),
            ],
            "client.default",
            Some("v2"),
        ),
        (
            "private ones are not for other namespaces",
            vec![object("b", "default", &format!("{FQDN}\n  exportTo: ['.']"), "v2")],
            "someone.other",
            None,
        ),
        (
            "those shown by name come between private and public ones",
            vec![
                object("a", "other 01", FQDN, "v1"),
                object("b", "other 02", &format!("{FQDN}\n  exportTo: [default]"), "v2"),
            ],
            "client.default",
            Some("v2"),
        ),
        (
            "the most specific host wins",
            vec![
                object("a", "default 01", "hosts: ['*.cluster.local']", "v1"),
                object("b", "default 02", "hosts: ['*.default.svc.cluster.local']", "v2"),
            ],
            "client.default",
            Some("v2"),
        ),
        (
            "a wildcard is enough",
            vec![object("a", "default", "hosts: ['*']", "v1")],
            "client.default",
            Some("v1"),
        ),
        (
            "one for gateways only is not for sidecars",
            vec![object("a", "default", &format!("{FQDN}\n  gateways: [edge]"), "v1")],
            "client.default",
            None,
        ),
        (
            "one without hosts is for the hosts of its destinations",
            vec![object("a", "default", "hosts: []", "v1")],
            "client.default",
            Some("v1"),
        ),
        (
            "but only if no other has them",
            vec![
                object("a", "default 01", "hosts: []", "v1"),
                object("b", "default 02", FQDN, "v2"),
            ],
            "client.default",
            Some("v2"),
        ),
    ];
    for (sentence, objects, client, expected) in rows {
        let mesh = Mesh::shop(&objects.concat());
        let destination = mesh.destination_for(client, "reviews.default:80").unwrap();
        let cluster = legs(&destination, &destination.routes[0])[0].0.clone();
        let subset = cluster.split('|').nth(2).filter(|subset| !subset.is_empty());
        assert_eq!(subset, expected, "{sentence}");
    }
}

#[test]
fn a_virtual_service_alone_answers_on_port_80() {
    let mesh = Mesh::shop(&object("a", "default", "hosts: [shop.example.com]", "v1"));
    let destination = mesh.destination("shop.example.com:80");
    assert_eq!(legs(&destination, &destination.routes[0])[0].0, V1);
    assert_eq!(destination.service.host.as_str(), "shop.example.com");
    assert_eq!(mesh.destination_for("client.default", "shop.example.com:8080"), None);
    let mesh = Mesh::shop(&object("a", "default", "hosts: [front]", "v1"));
    assert!(mesh.destination_for("client.default", "front:80").is_some());
    assert!(mesh.destination_for("someone.other", "front:80").is_none());
}

#[test]
fn tcp_goes_where_tcp_rules_say() {
    let legs = |tcp: &str| {
        let mesh = Mesh::shop(&format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: reviews}}\nspec: {{hosts: [reviews], tcp: {tcp}}}\n"
        ));
        let destination = mesh.destination("reviews:80");
        assert_eq!(&*destination.routes[0].name, "default");
        destination
            .tcp
            .iter()
            .map(|leg| (destination.clusters[leg.cluster].name(), leg.weight))
            .collect::<Vec<_>>()
    };
    let whole = vec![("outbound|80||reviews.default.svc.cluster.local".to_owned(), 1)];
    let split = vec![(V1.to_owned(), 30), (V2.to_owned(), 70)];
    let route = "route: [{destination: {host: reviews, subset: v1}, weight: 30}, {destination: {host: reviews, subset: v2}, weight: 70}]";
    for (tcp, expected) in [
        (format!("[{{{route}}}]"), &split),
        (format!("[{{match: [{{port: 80}}], {route}}}]"), &split),
        (format!("[{{match: [{{port: 81}}], {route}}}]"), &whole),
        (
            format!("[{{match: [{{destinationSubnets: [127.0.0.0/8]}}], {route}}}]"),
            &whole,
        ),
    ] {
        assert_eq!(&legs(&tcp), expected, "{tcp}");
    }
}
