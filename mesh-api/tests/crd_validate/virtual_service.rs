//! Findings about VirtualServices.

use mesh_api::crd::Kind;

use super::{Row, check};

/// Rows about one HTTP rule: the text goes below `http: [{…}]`.
fn check_http(rows: &[Row<'_>]) {
    for (rule, expected) in rows {
        let spec = format!("hosts: [a]\nhttp: [{{{rule}}}]");
        check(Kind::VirtualService, &[(&spec, expected)]);
    }
}

const TO_A: &str = "route: [{destination: {host: a}}]";

#[test]
fn virtual_service_as_a_whole() {
    check(
        Kind::VirtualService,
        &[
            (&format!("hosts: [a, b.c, '*.d.e', 10.0.0.1]\nhttp: [{{{TO_A}}}]"), &[]),
            ("hosts: [a]", &["!missing-field spec: one of http, tls and tcp"]),
            (
                &format!("hosts: ['*']\nhttp: [{{{TO_A}}}]"),
                &["!bad-value spec.hosts[0]: for gateways"],
            ),
            (
                &format!("hosts: ['a b']\nhttp: [{{{TO_A}}}]"),
                &["!bad-value spec.hosts[0]: no host name"],
            ),
            (
                &format!("hosts: ['a.*.b']\nhttp: [{{{TO_A}}}]"),
                &["!bad-value spec.hosts[0]: no host name"],
            ),
            (
                &format!("hosts: ['*.b.c', a.b.c]\nhttp: [{{{TO_A}}}]"),
                &["!bad-value spec.hosts[1]: overlaps"],
            ),
            (
                &format!("hosts: [a]\ngateways: [mesh]\nexportTo: ['.']\nhttp: [{{{TO_A}}}]"),
                &[],
            ),
            (
                &format!("hosts: ['*']\ngateways: [istio/gw]\nhttp: [{{{TO_A}}}]"),
                &["not-supported-yet spec.gateways[0]: gateway \"istio/gw\""],
            ),
            (
                &format!("hosts: [a]\ngateways: [mesh, a/b/c]\nhttp: [{{{TO_A}}}]"),
                &[
                    "!bad-value spec.gateways[1]: no gateway",
                    "not-supported-yet spec.gateways[1]: gateway",
                ],
            ),
            (
                &format!("hosts: [a]\nexportTo: ['*', b]\nhttp: [{{{TO_A}}}]"),
                &["!bad-value spec.exportTo[0]: must stand alone"],
            ),
            (
                &format!("hosts: [a]\nexportTo: [., default]\nhttp: [{{{TO_A}}}]"),
                &["!bad-value spec.exportTo[1]: named before"],
            ),
            (
                &format!("hosts: [a]\nexportTo: ['~']\nhttp: [{{{TO_A}}}]"),
                &["!bad-value spec.exportTo[0]: only a ServiceEntry"],
            ),
            (
                &format!("gateways: [mesh]\nhttp: [{{{TO_A}}}]"),
                &["!missing-field spec.gateways: needs hosts"],
            ),
            (
                "hosts: [a]\ntcp: [{match: [{port: 0, destinationSubnets: [x]}], route: [{destination: {host: a}}]}]",
                &[
                    "!bad-value spec.tcp[0].match[0].port: no port",
                    "not-supported-yet spec.tcp[0].match[0].destinationSubnets: destinationSubnets",
                    "!bad-value spec.tcp[0].match[0].destinationSubnets[0]: neither an IP address",
                ],
            ),
            (
                "hosts: [a]\ntls: [{match: [{sniHosts: []}], route: []}]",
                &[
                    "not-supported-yet spec.tls: spec.tls",
                    "!missing-field spec.tls[0].match[0].sniHosts: server name",
                    "!missing-field spec.tls[0].route: no destination",
                ],
            ),
        ],
    );
}

#[test]
fn http_actions_exclude_each_other() {
    check_http(&[
        ("name: x", &["!missing-field spec.http[0]: does nothing"]),
        (
            &format!("{TO_A}, redirect: {{uri: /}}"),
            &["!one-of spec.http[0].redirect: cannot be set together with route"],
        ),
        (
            "directResponse: {status: 503}, fault: {abort: {httpStatus: 500, percentage: {value: 1}}}",
            &["!one-of spec.http[0].fault: cannot be set together with directResponse"],
        ),
        (
            "redirect: {uri: /}, rewrite: {uri: /}",
            &["!one-of spec.http[0].rewrite: together with redirect"],
        ),
        ("delegate: {name: b}", &[]),
        (
            &format!("{TO_A}, corsPolicy: {{allowMethods: [GET]}}"),
            &["not-supported-yet spec.http[0].corsPolicy: corsPolicy"],
        ),
        (
            &format!("{TO_A}, match: [{{statPrefix: x, uri: {{exact: /}}}}]"),
            &["not-supported-yet spec.http[0].match[0].statPrefix: statPrefix"],
        ),
    ]);
}

#[test]
fn http_matches() {
    let rows: &[Row<'_>] = &[
        (
            "{uri: {prefix: ''}, method: {exact: GET}, scheme: {exact: http}, authority: {regex: 'a.*'}, \
             headers: {x-a: {}, x-b: {regex: '*'}}, withoutHeaders: {x-c: {exact: v}}, \
             queryParams: {q: {exact: '1'}}, port: 80, sourceLabels: {app: x}, sourceNamespace: shop, \
             ignoreUriCase: true, name: m}",
            &[],
        ),
        (
            "{headers: {':path': {prefix: /}, method: {exact: GET}}, withoutHeaders: {uri: {exact: /}}}",
            &[
                "not-supported-yet spec.http[0].match[0].headers[\":path\"]: never applies; use the match's own field uri",
                "no-effect spec.http[0].match[0].headers.method: use the match's own field method",
                "no-effect spec.http[0].match[0].withoutHeaders.uri: use the match's own field uri",
            ],
        ),
        (
            "{gateways: [mesh], sourceLabels: {app: x}, sourceNamespace: shop}",
            &[
                "no-effect spec.http[0].match[0].sourceLabels: beside gateways",
                "no-effect spec.http[0].match[0].sourceNamespace: beside gateways",
            ],
        ),
        (
            "{uri: {regex: '('}}",
            &["!bad-value spec.http[0].match[0].uri.regex: no regular expression"],
        ),
        (
            "{uri: {regex: '(?=x)'}}",
            &["!bad-value spec.http[0].match[0].uri.regex: no regular expression"],
        ),
        (
            "{method: {prefix: ''}}",
            &["!bad-value spec.http[0].match[0].method.prefix: matches everything"],
        ),
        (
            "{headers: {'x y': {exact: v}}}",
            &["!bad-value spec.http[0].match[0].headers[\"x y\"]: no header name"],
        ),
        (
            "{headers: {'@request.auth.claims.sub': {exact: v}}}",
            &["!bad-value spec.http[0].match[0].headers[\"@request.auth.claims.sub\"]: at gateways only"],
        ),
        ("{port: 70000}", &["!bad-value spec.http[0].match[0].port: no port"]),
        (
            "{sourceNamespace: a.b}",
            &["!bad-value spec.http[0].match[0].sourceNamespace: no namespace"],
        ),
        (
            "{sourceLabels: {'a b': c}}",
            &["!bad-value spec.http[0].match[0].sourceLabels[\"a b\"]: no label key"],
        ),
        (
            "{uri: {regex: a}, ignoreUriCase: true}",
            &["no-effect spec.http[0].match[0].ignoreUriCase: no effect on a regular expression"],
        ),
    ];
    for (m, expected) in rows {
        check_http(&[(&format!("{TO_A}, match: [{m}]"), expected)]);
    }
}

#[test]
fn http_destinations_and_weights() {
    check_http(&[
        (
            "route: [{destination: {host: a, subset: v1}, weight: 90}, {destination: {host: a, subset: v2}, weight: 10}]",
            &[],
        ),
        ("route: [{destination: {host: a}, weight: 0}]", &[]),
        (
            "route: [{destination: {host: a}}, {destination: {host: b}}]",
            &["!bad-value spec.http[0].route: all of these are 0"],
        ),
        (
            "route: [{destination: {host: a}, weight: -1}]",
            &["!bad-value spec.http[0].route[0].weight: negative"],
        ),
        (
            "route: [{destination: {host: '*'}}]",
            &["!bad-value spec.http[0].route[0].destination.host: no destination"],
        ),
        (
            "route: [{destination: {host: ''}}]",
            &["!bad-value spec.http[0].route[0].destination.host: must not be empty"],
        ),
        (
            "route: [{destination: {host: a, subset: 'v 1', port: {number: 0}}}]",
            &[
                "!bad-value spec.http[0].route[0].destination.subset: no DNS label",
                "!bad-value spec.http[0].route[0].destination.port.number: no port",
            ],
        ),
        (
            "route: [{destination: {host: a, port: {}}}]",
            &["!missing-field spec.http[0].route[0].destination.port.number: no number"],
        ),
    ]);
}

#[test]
fn http_redirects_responses_and_rewrites() {
    check_http(&[
        (
            "redirect: {uri: /x, redirectCode: 308, scheme: https, derivePort: FROM_REQUEST_PORT}",
            &[],
        ),
        (
            "redirect: {}",
            &["!missing-field spec.http[0].redirect: changes nothing"],
        ),
        (
            "redirect: {uri: /, redirectCode: 300}",
            &["!bad-value spec.http[0].redirect.redirectCode: 301, 302"],
        ),
        (
            "redirect: {scheme: ftp}",
            &["!bad-value spec.http[0].redirect.scheme: http and https"],
        ),
        (
            "redirect: {uri: /, prefixRewrite: /}",
            &["!one-of spec.http[0].redirect.prefixRewrite: with uri"],
        ),
        (
            "redirect: {prefixRewrite: /}, match: [{uri: {exact: /}}]",
            &["!bad-value spec.http[0].redirect.prefixRewrite: on a prefix"],
        ),
        ("directResponse: {status: 503, body: {string: sorry}}", &[]),
        ("directResponse: {status: 200, body: {bytes: aGk=}}", &[]),
        (
            "directResponse: {status: 100}",
            &["!bad-value spec.http[0].directResponse.status: from 200 to 599"],
        ),
        (
            "directResponse: {status: 200, body: {bytes: 'a b'}}",
            &["!bad-value spec.http[0].directResponse.body.bytes: not base64"],
        ),
        (
            &format!("{TO_A}, rewrite: {{uriRegexRewrite: {{match: '/(a+)', rewrite: '/\\1'}}}}"),
            &[],
        ),
        (
            &format!("{TO_A}, rewrite: {{uriRegexRewrite: {{match: '/a', rewrite: '/\\1'}}}}"),
            &["!bad-value spec.http[0].rewrite.uriRegexRewrite.rewrite: a capture that match does not have"],
        ),
        (
            &format!("{TO_A}, rewrite: {{uriRegexRewrite: {{match: '/a'}}}}"),
            &["!missing-field spec.http[0].rewrite.uriRegexRewrite: both match and rewrite"],
        ),
        (
            &format!("{TO_A}, rewrite: {{}}"),
            &["!missing-field spec.http[0].rewrite: changes nothing"],
        ),
        (
            &format!("{TO_A}, rewrite: {{authority: b}}, headers: {{request: {{set: {{Host: c}}}}}}"),
            &["!one-of spec.http[0].headers.request.set.Host: already set by spec.http[0].rewrite.authority"],
        ),
        (
            &format!("{TO_A}, headers: {{response: {{remove: [':status', host, x-ok]}}}}"),
            &[
                "!bad-value spec.http[0].headers.response.remove[0]: cannot be changed here",
                "!bad-value spec.http[0].headers.response.remove[1]: cannot be changed here",
            ],
        ),
        (
            &format!("{TO_A}, headers: {{request: {{add: {{x-a: '50%', x-b: '%HOSTNAME% 100%%'}}}}}}"),
            &[
                "!bad-value spec.http[0].headers.request.add.x-a: a single '%'",
                "not-supported-yet spec.http[0].headers.request.add.x-b: operator %HOSTNAME%; the value is sent as it stands",
            ],
        ),
    ]);
}

#[test]
fn http_timeouts_retries_faults_and_mirrors() {
    let rows: &[Row<'_>] = &[
        (
            "timeout: 5s, retries: {attempts: 3, perTryTimeout: 2s, retryOn: '5xx, 503,reset', backoff: 25ms}",
            &[],
        ),
        ("timeout: 0s", &["!bad-value spec.http[0].timeout: at least 1ms"]),
        (
            "timeout: 1.0005s",
            &["!bad-value spec.http[0].timeout: whole milliseconds"],
        ),
        ("retries: {attempts: 0}", &[]),
        (
            "retries: {attempts: -1}",
            &["!bad-value spec.http[0].retries.attempts: negative"],
        ),
        (
            "retries: {retryOn: 5xx}",
            &["!bad-value spec.http[0].retries.retryOn: no effect without attempts"],
        ),
        (
            "retries: {attempts: 1, retryOn: 'connect-failed'}",
            &["!bad-value spec.http[0].retries.retryOn: did you mean \"connect-failure\"?"],
        ),
        (
            "retries: {attempts: 1, retryOn: 'retriable-headers,5xx, retriable-status-codes'}",
            &[
                "not-supported-yet spec.http[0].retries.retryOn: retryOn retriable-headers; nothing is retried",
                "no-effect spec.http[0].retries.retryOn: retriable-status-codes has no effect without statuses",
            ],
        ),
        (
            "retries: {attempts: 1, retryRemoteLocalities: true}",
            &["not-supported-yet spec.http[0].retries.retryRemoteLocalities: retryRemoteLocalities"],
        ),
        ("fault: {delay: {fixedDelay: 5s, percentage: {value: 0.0001}}}", &[]),
        (
            "fault: {abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}}",
            &[],
        ),
        ("fault: {}", &["!missing-field spec.http[0].fault: does nothing"]),
        (
            "fault: {abort: {httpStatus: 503}}",
            &["no-effect spec.http[0].fault.abort.percentage: no request is affected"],
        ),
        (
            "fault: {abort: {httpStatus: 700, percentage: {value: 101}}}",
            &[
                "!bad-value spec.http[0].fault.abort.httpStatus: from 200 to 599",
                "!bad-value spec.http[0].fault.abort.percentage: not from 0 to 100",
            ],
        ),
        (
            "fault: {abort: {grpcStatus: UNAVAILIBLE, percentage: {value: 1}}}",
            &["!bad-value spec.http[0].fault.abort.grpcStatus: did you mean UNAVAILABLE?"],
        ),
        (
            "fault: {delay: {fixedDelay: 1s, percentage: {value: 0.00001}}}",
            &["!bad-value spec.http[0].fault.delay.percentage: below the resolution"],
        ),
        (
            "fault: {delay: {exponentialDelay: 1s, percentage: {value: 1}}}",
            &[
                "!bad-value spec.http[0].fault.delay.exponentialDelay: does not work",
                "not-supported-yet spec.http[0].fault.delay.exponentialDelay: exponentialDelay",
            ],
        ),
        (
            "fault: {delay: {fixedDelay: 1s, percent: 101}}",
            &[
                "deprecated spec.http[0].fault.delay.percent: superseded",
                "!bad-value spec.http[0].fault.delay.percent: not from 0 to 100",
            ],
        ),
        ("mirror: {host: b}, mirrorPercentage: {value: 10}", &[]),
        ("mirrors: [{destination: {host: b}, percentage: {value: 10}}]", &[]),
        (
            "mirrors: [{destination: {host: b}}, {destination: {host: '*'}, percentage: {value: -1}}]",
            &[
                "!bad-value spec.http[0].mirrors[1].destination.host: no destination",
                "!bad-value spec.http[0].mirrors[1].percentage: not from 0 to 100",
            ],
        ),
        (
            "mirror: {host: b}, mirrors: [{destination: {host: c}}]",
            &["!one-of spec.http[0].mirrors: together with mirror"],
        ),
        (
            "mirrorPercentage: {value: 10}",
            &["no-effect spec.http[0].mirrorPercentage: without mirror"],
        ),
        (
            "mirror: {host: b}, mirrorPercent: 101",
            &[
                "!bad-value spec.http[0].mirrorPercent: not from 0 to 100",
                "deprecated spec.http[0].mirrorPercent: superseded",
            ],
        ),
    ];
    for (rest, expected) in rows {
        check_http(&[(&format!("{TO_A}, {rest}"), expected)]);
    }
}
