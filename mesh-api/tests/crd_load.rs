//! Files as users write them: what is read, what is refused, and where each finding points.
#![cfg(feature = "crd")]
#![allow(clippy::unwrap_used)]

use mesh_api::crd::Object;
use mesh_api::source::{Contents, Diagnostic, FieldPath, Severity, read};
use mesh_api::validate::{analyze, analyze_set};

fn load(text: &str) -> Contents {
    read("policy.yaml", text.as_bytes(), "default")
}

/// All that is said about a text: by the reader, by object, and about the objects together.
fn judge(text: &str) -> Vec<Diagnostic> {
    let contents = load(text);
    let mut all = contents.diagnostics;
    all.extend(contents.objects.iter().flat_map(analyze));
    all.extend(analyze_set(&contents.objects));
    all
}

fn errors(diagnostics: &[Diagnostic]) -> Vec<String> {
    diagnostics
        .iter()
        .filter(|d| d.severity == Severity::Error)
        .map(ToString::to_string)
        .collect()
}

/// The manifests of the introduction to service meshes that this mesh promises to run as they stand.
const SEED: &[(&str, &str)] = &[
    ("canary-by-header", include_str!("policies/canary-by-header.yaml")),
    ("canary-with-port", include_str!("policies/canary-with-port.yaml")),
    ("fault-delay", include_str!("policies/fault-delay.yaml")),
    ("authorization-read", include_str!("policies/authorization-read.yaml")),
    (
        "authorization-read-write",
        include_str!("policies/authorization-read-write.yaml"),
    ),
    ("circuit-breaker", include_str!("policies/circuit-breaker.yaml")),
    ("retry", include_str!("policies/retry.yaml")),
    ("timeout", include_str!("policies/timeout.yaml")),
];

#[test]
fn the_introductions_manifests_load_without_errors() {
    for (name, text) in SEED {
        let contents = load(text);
        assert_eq!(contents.objects.len(), 1, "{name}");
        let diagnostics = judge(text);
        assert_eq!(errors(&diagnostics), Vec::<String>::new(), "{name}");
        assert!(
            diagnostics.iter().all(|d| d.code != "not-supported-yet"),
            "{name}: {diagnostics:?}"
        );
    }
    let all = SEED
        .iter()
        .filter(|(name, _)| ["circuit-breaker", "retry", "timeout"].contains(name));
    let text = all.map(|(_, text)| *text).collect::<Vec<_>>().join("---\n");
    assert_eq!(judge(&text), Vec::new(), "three rules for one host");
}

#[test]
fn values_of_the_introductions_manifests() {
    let object = |name: &str| {
        let (_, text) = SEED.iter().find(|(n, _)| *n == name).unwrap();
        load(text).objects.remove(0).object
    };
    let Object::VirtualService(fault) = object("fault-delay") else {
        panic!()
    };
    let delay = fault.spec.http[0].fault.as_ref().unwrap().delay.as_ref().unwrap();
    assert_eq!(delay.percentage.as_ref().unwrap().value, Some(50.0));
    assert_eq!(delay.fixed_delay.unwrap().to_string(), "5s");
    assert_eq!(fault.metadata.namespace.as_deref(), Some("default"));

    let Object::DestinationRule(retry) = object("retry") else {
        panic!()
    };
    let policy = retry.spec.traffic_policy.unwrap().retry_policy.unwrap();
    assert_eq!(
        (policy.attempts, policy.retry_on.as_deref()),
        (Some(3), Some("5xx,connect-failure,refused-stream"))
    );

    let Object::DestinationRule(timeout) = object("timeout") else {
        panic!()
    };
    let timeouts = timeout.spec.traffic_policy.unwrap().timeout.unwrap();
    assert_eq!(timeouts.http.unwrap().to_string(), "5s");
    assert_eq!(timeouts.connect_timeout.unwrap().to_string(), "3s");
}

/// Text, then line, column, field, code and a part of the message of the one finding that it has.
type Row<'a> = (&'a str, u32, u32, &'a str, &'a str, &'a str);

const HEAD: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: a\n";

#[test]
fn findings_of_the_reader_name_line_column_field_and_reason() {
    let rows: &[Row<'_>] = &[
        (
            "spec: {host: [a]}",
            5,
            8,
            "spec.host",
            "unknown-field",
            "did you mean \"hosts\"?",
        ),
        (
            "spec:\n  hosts: a",
            6,
            3,
            "spec.hosts",
            "wrong-type",
            "expected a list, found the text \"a\"",
        ),
        (
            "spec:\n  hosts: [a, 5]",
            6,
            14,
            "spec.hosts[1]",
            "wrong-type",
            "found the number 5; put it in quotes",
        ),
        (
            "spec:\n  http:\n  - timeout: 5",
            7,
            5,
            "spec.http[0].timeout",
            "wrong-type",
            "expected a duration such as \"5s\", found the number 5",
        ),
        (
            "spec:\n  http:\n  - timeout: 5x",
            7,
            5,
            "spec.http[0].timeout",
            "bad-duration",
            "unknown unit \"x\"",
        ),
        (
            "spec:\n  http:\n  - match:\n    - headers:\n        x.y: {exakt: v}",
            9,
            15,
            "spec.http[0].match[0].headers[\"x.y\"].exakt",
            "unknown-field",
            "did you mean \"exact\"?",
        ),
        (
            "spec:\n  http:\n  - match:\n    - uri: {exact: /, prefix: /}",
            8,
            23,
            "spec.http[0].match[0].uri.prefix",
            "one-of",
            "cannot be set together with \"exact\"",
        ),
        (
            "spec:\n  http:\n  - route:\n    - destination: {subset: v1}",
            8,
            7,
            "spec.http[0].route[0].destination.host",
            "missing-field",
            "\"host\" is missing",
        ),
        (
            "spec:\n  http:\n  - redirect: {derivePort: FROM_REQUEST}",
            7,
            16,
            "spec.http[0].redirect.derivePort",
            "bad-value",
            "FROM_PROTOCOL_DEFAULT, FROM_REQUEST_PORT",
        ),
        (
            "spec:\n  http:\n  - route: [{weight: 3000000000, destination: {host: a}}]",
            7,
            14,
            "spec.http[0].route[0].weight",
            "bad-value",
            "out of range",
        ),
        (
            "spec:\n  http:\n  - route: [{weight: 1.5, destination: {host: a}}]",
            7,
            14,
            "spec.http[0].route[0].weight",
            "wrong-type",
            "expected a whole number",
        ),
        (
            "spec:\n  hosts:\n",
            6,
            3,
            "spec.hosts",
            "missing-value",
            "the field has no value",
        ),
        (
            "spec:\n  hosts: [a]\n  hosts: [b]",
            7,
            3,
            "spec.hosts",
            "duplicate-field",
            "written twice",
        ),
        ("sepc: {}", 5, 1, "sepc", "unknown-field", "did you mean \"spec\"?"),
        ("spec: {hosts: [a]", 5, 7, "", "yaml-syntax", ""),
    ];
    for (text, line, column, field, code, message) in rows {
        let text = format!("{HEAD}{text}");
        let contents = load(&text);
        let [found] = &contents.diagnostics[..] else {
            panic!("{text}\n{:#?}", contents.diagnostics)
        };
        assert_eq!((found.field.as_str(), found.code), (*field, *code), "{text}\n{found}");
        assert!(found.message.contains(message), "{text}\n{found}");
        if *code != "yaml-syntax" {
            assert_eq!((found.line, found.column), (*line, *column), "{text}\n{found}");
            assert_eq!(
                found.object.as_ref().unwrap().to_string(),
                "VirtualService default/a",
                "{text}"
            );
        }
        assert!(contents.objects.is_empty(), "{text}");
    }
}

#[test]
fn findings_about_what_an_object_is() {
    let rows: &[(&str, Severity, &str, &str)] = &[
        (
            "apiVersion: v1\nkind: Service",
            Severity::Warning,
            "ignored-kind",
            "kind of Kubernetes",
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment",
            Severity::Warning,
            "ignored-kind",
            "ignored",
        ),
        (
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway",
            Severity::Warning,
            "not-supported-yet",
            "Gateway API",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: VirtualServise",
            Severity::Error,
            "unknown-kind",
            "did you mean VirtualService?",
        ),
        (
            "apiVersion: networking.istio.io/v2\nkind: VirtualService",
            Severity::Error,
            "unknown-version",
            "v1, v1beta1, v1alpha3",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: VirtualService",
            Severity::Error,
            "unknown-kind",
            "did you mean networking.istio.io/v1?",
        ),
        (
            "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter",
            Severity::Error,
            "unknown-kind",
            "Envoy",
        ),
        (
            "kind: VirtualService",
            Severity::Error,
            "missing-field",
            "no apiVersion",
        ),
        (
            "apiVersion: networking.istio.io/v1",
            Severity::Error,
            "missing-field",
            "no kind",
        ),
        ("- a", Severity::Error, "not-an-object", "found a list"),
        ("just text", Severity::Error, "not-an-object", "found the text"),
        (
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nspec: {host: a}",
            Severity::Error,
            "missing-field",
            "no name",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}",
            Severity::Error,
            "missing-field",
            "\"host\" is missing",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: A_b}\nspec: {host: a}",
            Severity::Error,
            "bad-value",
            "no name of an object",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a, lables: {}}\nspec: {host: a}",
            Severity::Error,
            "unknown-field",
            "did you mean \"labels\"?",
        ),
        ("a: &a [*a]", Severity::Error, "yaml-syntax", "alias"),
        ("a: !mine b", Severity::Error, "yaml-syntax", "tags"),
        ("? [a]\n: b", Severity::Error, "yaml-syntax", "name of a field"),
    ];
    for (text, severity, code, message) in rows {
        let diagnostics = load(text).diagnostics;
        let [found] = &diagnostics[..] else {
            panic!("{text}\n{diagnostics:#?}")
        };
        assert_eq!((found.severity, found.code), (*severity, *code), "{text}\n{found}");
        assert!(found.message.contains(message), "{text}\n{found}");
    }
}

#[test]
fn documents_stand_for_themselves() {
    let text = format!(
        "# a comment\r\n%YAML 1.2\r\n---\r\n{HEAD}spec: {{hosts: [a]}}\r\n--- # the second is broken\r\nkind: [\r\n---\r\n\r\n---\r\n{}",
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: security.istio.io/v1beta1\n  kind: PeerAuthentication\n  metadata: {name: b, \
         namespace: shop}\n- apiVersion: mesh.dev/v1\n  kind: MeshConfig\n  metadata: {name: mesh}\n  spec: {rootNamespace: x}\n"
    );
    let contents = load(&text);
    let names: Vec<String> = contents.objects.iter().map(|o| o.reference().to_string()).collect();
    assert_eq!(
        names,
        [
            "VirtualService default/a",
            "PeerAuthentication shop/b",
            "MeshConfig mesh"
        ]
    );
    let lines: Vec<u32> = contents.objects.iter().map(|o| o.line).collect();
    assert_eq!(lines, [4, 17, 20]);
    assert_eq!(contents.objects[1].meta.api_version, "security.istio.io/v1beta1");
    let root = contents.objects[2].positions.of(&FieldPath::new("spec.rootNamespace"));
    assert_eq!((root.line, root.column), (23, 10));
    let [broken] = &contents.diagnostics[..] else {
        panic!("{:#?}", contents.diagnostics)
    };
    assert_eq!(broken.code, "yaml-syntax");
    assert!((9..=11).contains(&broken.line), "{broken}");
}

#[test]
fn generated_manifests_load() {
    let text = "apiVersion: networking.istio.io/v1alpha3\nkind: ServiceEntry\nmetadata:\n  name: a\n  creationTimestamp: null\n  \
                generation: 3\n  managedFields: [{x: 1}]\n  labels: {a: b}\nspec: {hosts: [a.b]}\nstatus: {conditions: []}\n";
    let contents = load(text);
    assert_eq!(contents.diagnostics, Vec::new());
    assert_eq!(contents.objects[0].meta.labels["a"], "b");
    let dated = text.replace("creationTimestamp: null", "creationTimestamp: 2026-01-31T12:00:00Z");
    let dated = load(&dated);
    assert_eq!(
        dated.objects[0].meta.creation_timestamp.unwrap().to_string(),
        "2026-01-31T12:00:00Z"
    );
    let wrong = load(&text.replace("creationTimestamp: null", "creationTimestamp: yesterday"));
    assert_eq!(wrong.diagnostics[0].field.as_str(), "metadata.creationTimestamp");
}

#[test]
fn anchors_are_followed_within_bounds() {
    let text = format!("{HEAD}spec:\n  hosts: &h [a]\n  exportTo: *h\n");
    let Object::VirtualService(object) = load(&text).objects.remove(0).object else {
        panic!()
    };
    assert_eq!(object.spec.export_to, ["a"]);

    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = level - 1;
        let entries = vec![format!("*a{before}"); 10].join(", ");
        laughs.push_str(&format!("a{level}: &a{level} [{entries}]\n"));
    }
    let found = load(&laughs).diagnostics;
    assert!(found[0].message.contains("more than"), "{}", found[0]);
    let deep = load(&format!("a: {}{}", "[".repeat(500), "]".repeat(500))).diagnostics;
    assert_eq!(deep[0].code, "yaml-syntax");
}

#[test]
fn bytes_that_are_no_text_are_refused_with_their_place() {
    let found = read("policy.yaml", b"a: b\nc: \xff", "default").diagnostics;
    assert_eq!((found[0].code, found[0].line, found[0].column), ("not-utf8", 2, 4));
    let large = vec![b' '; mesh_api::source::MAX_BYTES + 1];
    assert_eq!(
        read("policy.yaml", &large, "default").diagnostics[0].code,
        "file-too-large"
    );
}

#[test]
fn diagnostics_print_for_people_and_for_scripts() {
    let diagnostics = load(&format!("{HEAD}spec: {{host: [a]}}")).diagnostics;
    assert_eq!(
        diagnostics[0].to_string(),
        "policy.yaml:5:8: error: spec.host: unknown field \"host\"; did you mean \"hosts\"? (VirtualService default/a)"
    );
    let json = serde_json::to_value(&diagnostics[0]).unwrap();
    assert_eq!(json["severity"], "error");
    assert_eq!(json["field"], "spec.host");
    assert_eq!(json["object"]["kind"], "VirtualService");
}
