//! Findings about AuthorizationPolicies and PeerAuthentications.

use mesh_api::crd::Kind;
use mesh_api::source::read;
use mesh_api::validate::analyze;

use super::check;

#[test]
fn authorization_policies() {
    let rules = |rule: &str| format!("rules: [{{{rule}}}]");
    check(
        Kind::AuthorizationPolicy,
        &[
            ("{}", &[]),
            ("action: ALLOW\nrules: [{}]", &[]),
            ("selector: {matchLabels: {app: a}}\naction: DENY\nrules: [{}]", &[]),
            ("action: DENY", &["!missing-field spec.rules: never denies"]),
            (
                &rules(
                    "from: [{source: {principals: ['*'], notNamespaces: [x], ipBlocks: [10.0.0.0/8], notIpBlocks: ['::1']}}, \
                     {source: {serviceAccounts: [a, b/c]}}], \
                     to: [{operation: {hosts: [a], ports: ['80'], methods: [GET], notPaths: ['/x*']}}], \
                     when: [{key: 'request.headers[x-a]', values: [b]}, {key: source.ip, notValues: [10.0.0.1]}, \
                     {key: source.namespace, values: [x]}, {key: source.principal, values: [x]}, \
                     {key: destination.ip, values: [10.0.0.0/8]}, {key: destination.port, values: ['80']}]",
                ),
                &[],
            ),
            (
                &rules("from: [{}]"),
                &["!missing-field spec.rules[0].from[0].source: needs a source"],
            ),
            (
                &rules("from: [{source: {}}]"),
                &["!missing-field spec.rules[0].from[0].source: empty"],
            ),
            (
                &rules("to: [{operation: {}}]"),
                &["!missing-field spec.rules[0].to[0].operation: empty"],
            ),
            (
                &rules("from: [{source: {ipBlocks: [10.0.0.300]}}]"),
                &["!bad-value spec.rules[0].from[0].source.ipBlocks[0]: neither an IP address"],
            ),
            (
                &rules("from: [{source: {principals: ['']}}]"),
                &["!bad-value spec.rules[0].from[0].source.principals[0]: matches nothing"],
            ),
            (
                &rules("from: [{source: {serviceAccounts: ['*'], namespaces: [a]}}]"),
                &[
                    "!one-of spec.rules[0].from[0].source.serviceAccounts: together with principals or namespaces",
                    "!bad-value spec.rules[0].from[0].source.serviceAccounts[0]: no service account",
                ],
            ),
            (
                &rules("to: [{operation: {ports: [http]}}]"),
                &["!bad-value spec.rules[0].to[0].operation.ports[0]: no port"],
            ),
            (&rules("to: [{operation: {paths: ['/a/{*}/b', '/a/{**}']}}]"), &[]),
            (
                &rules("to: [{operation: {paths: ['/a/{**}/b']}}]"),
                &["!bad-value spec.rules[0].to[0].operation.paths[0]: braces"],
            ),
            (
                &rules("to: [{operation: {paths: ['/a/{*}/*']}}]"),
                &["!bad-value spec.rules[0].to[0].operation.paths[0]: no other wildcards"],
            ),
            (
                &rules("when: [{key: 'request.headers[:method]', values: [GET]}]"),
                &["not-supported-yet spec.rules[0].when[0].key: request.headers[:method]"],
            ),
            (
                &rules("to: [{operation: {paths: ['/a/{id}']}}]"),
                &["!bad-value spec.rules[0].to[0].operation.paths[0]: braces"],
            ),
            (
                &rules("when: [{key: request.header, values: [a]}]"),
                &[
                    "!unknown-key spec.rules[0].when[0].key: (write request.headers[name]); until it is mended the rule denies",
                ],
            ),
            (
                &format!("action: DENY\n{}", rules("when: [{key: source.namespac, values: [a]}]")),
                &[
                    "!unknown-key spec.rules[0].when[0].key: (did you mean \"source.namespace\"?); until it is mended the rule denies",
                ],
            ),
            (
                &rules("when: [{key: source.ip, values: [a]}]"),
                &["!bad-value spec.rules[0].when[0].values[0]: neither an IP address"],
            ),
            (
                &rules("when: [{key: source.ip}]"),
                &["!missing-field spec.rules[0].when[0]: needs values or notValues"],
            ),
            (
                &rules("when: [{key: 'request.auth.claims[sub]', values: [a]}]"),
                &["not-supported-yet spec.rules[0].when[0].key: request.auth.claims"],
            ),
            (
                &format!(
                    "action: DENY\n{}",
                    rules("from: [{source: {remoteIpBlocks: [10.0.0.1]}}]")
                ),
                &["not-supported-yet spec.rules[0].from[0].source.remoteIpBlocks: denies the requests"],
            ),
            (
                &rules("from: [{source: {requestPrincipals: ['*'], trustDomains: [a]}}]"),
                &[
                    "not-supported-yet spec.rules[0].from[0].source.requestPrincipals: denies the requests",
                    "not-supported-yet spec.rules[0].from[0].source.trustDomains: denies the requests",
                ],
            ),
            (
                &format!("action: DENY\n{}", rules("to: [{operation: {methods: [GET]}}]")),
                &["denies-tcp spec.rules[0]: the rule denies every connection"],
            ),
            (
                &format!(
                    "action: DENY\n{}",
                    rules("to: [{operation: {methods: [GET]}}], from: [{source: {namespaces: [a]}}]")
                ),
                &["denies-tcp spec.rules[0]: the rule denies the connections that its sources and conditions select"],
            ),
            (
                &format!(
                    "action: DENY\n{}",
                    rules("when: [{key: 'request.headers[x]', values: [a]}]")
                ),
                &["denies-tcp spec.rules[0]: the rule denies every connection"],
            ),
            (
                &format!(
                    "action: DENY\n{}",
                    rules("to: [{operation: {methods: [GET], ports: ['80']}}]")
                ),
                &[],
            ),
            (
                &format!(
                    "action: DENY\n{}",
                    rules("to: [{operation: {methods: [GET]}}], when: [{key: destination.port, values: ['80']}]")
                ),
                &[],
            ),
            (
                &format!("action: DENY\n{}", rules("from: [{source: {namespaces: [a]}}]")),
                &[],
            ),
            (
                "action: CUSTOM\nprovider: {name: x}\nrules: [{}]",
                &["not-supported-yet spec.action: action CUSTOM; the requests that the rules match are denied"],
            ),
            (
                "action: AUDIT\nrules: [{}]",
                &["not-supported-yet spec.action: action AUDIT; the policy has no effect"],
            ),
            ("provider: {name: x}", &["!bad-value spec.provider: CUSTOM only"]),
            (
                "targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: g}]",
                &["not-supported-yet spec.targetRefs: targetRefs"],
            ),
            (
                "selector: {matchLabels: {app: '*'}}\ntargetRef: {kind: Pod, name: p}",
                &[
                    "!one-of spec.targetRef: together with selector",
                    "!bad-value spec.selector.matchLabels.app: wildcards",
                    "!bad-value spec.targetRef.kind: nothing that a policy can be attached to",
                    "not-supported-yet spec.targetRef: targetRef",
                ],
            ),
        ],
    );
}

#[test]
fn dry_runs_are_reported() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: a\n  annotations:\n    \
                istio.io/dry-run: \"true\"\nspec: {}\n";
    let contents = read("a.yaml", text.as_bytes(), "default");
    let [found] = &analyze(&contents.objects[0])[..] else {
        panic!()
    };
    assert_eq!(found.code, "not-supported-yet");
    assert_eq!((found.line, found.column), (6, 5));
}

#[test]
fn peer_authentications() {
    check(
        Kind::PeerAuthentication,
        &[
            ("mtls: {mode: STRICT}", &[]),
            (
                "selector: {matchLabels: {app: a}}\nmtls: {mode: STRICT}\nportLevelMtls: {'80': {mode: DISABLE}}",
                &[],
            ),
            (
                "portLevelMtls: {'80': {mode: DISABLE}}",
                &["!bad-value spec.portLevelMtls: needs a selector"],
            ),
            (
                "selector: {matchLabels: {app: a}}\nportLevelMtls: {http: {mode: DISABLE}, '70000': {}}",
                &[
                    "!bad-value spec.portLevelMtls.http: no port",
                    "!bad-value spec.portLevelMtls.70000: no port",
                ],
            ),
        ],
    );
}
