//! Whether a pod is injected: one row for each sentence of the reference.

use super::*;

/// Labels or annotations in short: `key=value key=value`.
fn map(text: &str) -> BTreeMap<String, String> {
    text.split_whitespace()
        .map(|pair| pair.split_once('=').unwrap_or_else(|| panic!("{pair}")))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

struct Row {
    what: &'static str,
    namespace: &'static str,
    labels: &'static str,
    annotations: &'static str,
    spec: &'static str,
    config: &'static str,
    istio: bool,
    expected: &'static str,
}

const ROW: Row = Row {
    what: "",
    namespace: "",
    labels: "",
    annotations: "",
    spec: "{containers: [{name: app, image: a}]}",
    config: "",
    istio: false,
    expected: "",
};

const ON: &str = "istio-injection=enabled";

fn decided(row: &Row) -> String {
    let (name, labels) = row
        .namespace
        .split_once(' ')
        .unwrap_or(match row.namespace.contains('=') {
            true => ("default", row.namespace),
            false => (row.namespace, ""),
        });
    let around = Surroundings {
        namespace: name.to_owned(),
        namespace_labels: map(labels),
        istio_injector: row.istio,
        ..Surroundings::default()
    };
    let pod = Pod {
        metadata: kube::core::ObjectMeta {
            labels: Some(map(row.labels)),
            annotations: Some(map(row.annotations)),
            ..Default::default()
        },
        spec: Some(serde_saphyr::from_str(row.spec).unwrap()),
        ..Pod::default()
    };
    match decide(&pod, &around, &InjectorConfig::parse(row.config).unwrap()) {
        Decision::Inject(why) => format!("yes: {why}"),
        Decision::Skip(why) => format!("no: {why}"),
    }
}

#[test]
fn decisions() {
    let rows = [
        Row {
            what: "nobody asks",
            namespace: "default",
            expected: "no: neither",
            ..ROW
        },
        Row {
            what: "Istio's namespace label",
            namespace: ON,
            expected: "yes: the namespace's label istio-injection",
            ..ROW
        },
        Row {
            what: "the mesh's namespace label",
            namespace: "mesh.dev/inject=enabled",
            expected: "yes: the namespace's label mesh.dev/inject",
            ..ROW
        },
        Row {
            what: "a namespace that is out",
            namespace: "istio-injection=disabled",
            expected: "no: the namespace's label istio-injection=disabled",
            ..ROW
        },
        Row {
            what: "the mesh's label stands before Istio's",
            namespace: "default mesh.dev/inject=disabled istio-injection=enabled",
            expected: "no: the namespace's label mesh.dev/inject=disabled",
            ..ROW
        },
        Row {
            what: "as Istio, a pod cannot ask where the namespace is out",
            namespace: "istio-injection=disabled",
            labels: "sidecar.istio.io/inject=true",
            expected: "no: the namespace's label",
            ..ROW
        },
        Row {
            what: "another value of the namespace's label says nothing",
            namespace: "istio-injection=yes",
            expected: "no: neither",
            ..ROW
        },
        Row {
            what: "a pod asks",
            namespace: "default",
            labels: "sidecar.istio.io/inject=true",
            expected: "yes: the pod's label sidecar.istio.io/inject",
            ..ROW
        },
        Row {
            what: "a pod asks by the mesh's label",
            namespace: "default",
            labels: "mesh.dev/inject=true",
            expected: "yes: the pod's label mesh.dev/inject",
            ..ROW
        },
        Row {
            what: "a pod asks, as YAML 1.1 has it",
            namespace: "default",
            labels: "sidecar.istio.io/inject=Yes",
            expected: "yes: the pod's label",
            ..ROW
        },
        Row {
            what: "outside of the mesh an annotation is not enough",
            namespace: "default",
            annotations: "sidecar.istio.io/inject=true",
            expected: "no: neither",
            ..ROW
        },
        Row {
            what: "in the mesh it stands before the selectors",
            namespace: ON,
            annotations: "sidecar.istio.io/inject=true",
            config: "neverInjectSelector: [{matchExpressions: [{key: x, operator: DoesNotExist}]}]",
            expected: "yes: the pod's annotation",
            ..ROW
        },
        Row {
            what: "a pod is out",
            namespace: ON,
            labels: "sidecar.istio.io/inject=false",
            expected: "no: the pod's sidecar.istio.io/inject is \"false\"",
            ..ROW
        },
        Row {
            what: "a pod is out by annotation",
            namespace: ON,
            annotations: "sidecar.istio.io/inject=false",
            expected: "no: the pod's sidecar.istio.io/inject",
            ..ROW
        },
        Row {
            what: "the label stands before the annotation",
            namespace: ON,
            labels: "sidecar.istio.io/inject=true",
            annotations: "sidecar.istio.io/inject=false",
            expected: "yes: the pod's label",
            ..ROW
        },
        Row {
            what: "the mesh's pod label stands before Istio's",
            namespace: ON,
            labels: "sidecar.istio.io/inject=true mesh.dev/inject=false",
            expected: "no: the pod's mesh.dev/inject",
            ..ROW
        },
        Row {
            what: "other texts are a no",
            namespace: ON,
            labels: "sidecar.istio.io/inject=ture",
            expected: "no: the pod's sidecar.istio.io/inject is \"ture\"",
            ..ROW
        },
        Row {
            what: "never",
            namespace: ON,
            labels: "legacy=1",
            config: "neverInjectSelector: [{matchLabels: {legacy: '1'}}]\nalwaysInjectSelector: [{matchLabels: {legacy: '1'}}]",
            expected: "no: neverInjectSelector[0]",
            ..ROW
        },
        Row {
            what: "always",
            namespace: "default",
            labels: "legacy=1",
            config: "alwaysInjectSelector: [{matchLabels: {a: b}}, {matchLabels: {legacy: '1'}}]",
            expected: "yes: alwaysInjectSelector[1]",
            ..ROW
        },
        Row {
            what: "labels stand before selectors",
            namespace: ON,
            labels: "legacy=1 sidecar.istio.io/inject=true",
            config: "neverInjectSelector: [{matchLabels: {legacy: '1'}}]",
            expected: "yes: the pod's label",
            ..ROW
        },
        Row {
            what: "by default",
            namespace: "default",
            config: "enableNamespacesByDefault: true",
            expected: "yes: namespaces",
            ..ROW
        },
        Row {
            what: "by default, but not where the namespace is out",
            namespace: "istio-injection=disabled",
            config: "enableNamespacesByDefault: true",
            expected: "no: the namespace's label",
            ..ROW
        },
        Row {
            what: "this revision",
            namespace: "istio.io/rev=default",
            expected: "yes: the namespace's label istio.io/rev",
            ..ROW
        },
        Row {
            what: "another revision",
            namespace: "istio.io/rev=1-30",
            expected: "no: the namespace belongs to revision 1-30",
            ..ROW
        },
        Row {
            what: "host network",
            namespace: ON,
            labels: "sidecar.istio.io/inject=true",
            spec: "{hostNetwork: true, containers: []}",
            expected: "no: it uses the network of its node",
            ..ROW
        },
        Row {
            what: "a system namespace",
            namespace: "kube-system mesh.dev/inject=enabled",
            labels: "mesh.dev/inject=true",
            expected: "no: pods of namespace kube-system",
            ..ROW
        },
        Row {
            what: "the mesh's own namespace",
            namespace: "mesh-system mesh.dev/inject=enabled",
            expected: "no: pods of namespace mesh-system",
            ..ROW
        },
        Row {
            what: "kind's storage",
            namespace: "local-path-storage mesh.dev/inject=enabled",
            expected: "no: pods of namespace local-path-storage",
            ..ROW
        },
        Row {
            what: "Windows",
            namespace: ON,
            spec: "{os: {name: windows}, containers: []}",
            expected: "no: it runs on Windows",
            ..ROW
        },
        Row {
            what: "asked again",
            namespace: ON,
            spec: "{initContainers: [{name: mesh-init}, {name: istio-proxy}], containers: [{name: app}]}",
            expected: "no: it has the mesh's proxy",
            ..ROW
        },
        Row {
            what: "asked again, classic",
            namespace: ON,
            spec: "{initContainers: [{name: mesh-init}], containers: [{name: istio-proxy}, {name: app}]}",
            expected: "no: it has the mesh's proxy",
            ..ROW
        },
        Row {
            what: "Istio's proxy",
            namespace: ON,
            spec: "{containers: [{name: istio-proxy, image: proxyv2}, {name: app}]}",
            expected: "no: container istio-proxy is Istio's",
            ..ROW
        },
        Row {
            what: "Istio's template",
            namespace: ON,
            spec: "{containers: [{name: istio-proxy, image: auto}]}",
            expected: "no: container istio-proxy with image \"auto\"",
            ..ROW
        },
        Row {
            what: "Istio's native proxy",
            namespace: ON,
            spec: "{initContainers: [{name: istio-proxy}], containers: [{name: app}]}",
            expected: "no: container istio-proxy is Istio's",
            ..ROW
        },
        Row {
            what: "Linkerd's proxy",
            namespace: ON,
            spec: "{containers: [{name: linkerd-proxy}]}",
            expected: "no: container linkerd-proxy is Linkerd's",
            ..ROW
        },
        Row {
            what: "Linkerd's annotation",
            namespace: ON,
            annotations: "linkerd.io/inject=enabled",
            labels: "mesh.dev/inject=true",
            expected: "no: linkerd.io/inject=enabled asks for Linkerd",
            ..ROW
        },
        Row {
            what: "out of Linkerd",
            namespace: ON,
            annotations: "linkerd.io/inject=disabled",
            expected: "yes: the namespace",
            ..ROW
        },
        Row {
            what: "Istio's status",
            namespace: ON,
            annotations: r#"sidecar.istio.io/status={"initContainers":["istio-init"],"containers":["istio-proxy"]}"#,
            expected: "no: annotation sidecar.istio.io/status is another",
            ..ROW
        },
        Row {
            what: "a copy of our status",
            namespace: ON,
            annotations: r#"sidecar.istio.io/status={"initContainers":["mesh-init"]}"#,
            expected: "yes: the namespace",
            ..ROW
        },
        Row {
            what: "the ambient mode",
            namespace: "default istio-injection=enabled istio.io/dataplane-mode=ambient",
            expected: "no: istio.io/dataplane-mode=ambient",
            ..ROW
        },
        Row {
            what: "a pod out of the ambient mode",
            namespace: "default istio-injection=enabled istio.io/dataplane-mode=ambient",
            labels: "istio.io/dataplane-mode=none",
            expected: "yes: the namespace",
            ..ROW
        },
        Row {
            what: "beside Istio its labels are left to it",
            namespace: ON,
            istio: true,
            expected: "no: Istio's injector is in the cluster",
            ..ROW
        },
        Row {
            what: "beside Istio, pods too",
            namespace: "default",
            labels: "sidecar.istio.io/inject=true",
            istio: true,
            expected: "no: Istio's injector is in the cluster",
            ..ROW
        },
        Row {
            what: "beside Istio the mesh's label counts",
            namespace: "mesh.dev/inject=enabled",
            labels: "sidecar.istio.io/inject=false",
            istio: true,
            expected: "yes: the namespace's label mesh.dev/inject",
            ..ROW
        },
        Row {
            what: "beside Istio, if told so",
            namespace: ON,
            istio: true,
            config: "istioLabels: true",
            expected: "yes: the namespace's label istio-injection",
            ..ROW
        },
        Row {
            what: "without Istio, if told so",
            namespace: ON,
            config: "istioLabels: false",
            expected: "no: Istio's injector",
            ..ROW
        },
    ];
    for row in &rows {
        let decided = decided(row);
        assert!(decided.starts_with(row.expected), "{}: {decided}", row.what);
    }
}

#[test]
fn linkerds_annotation_of_the_namespace_counts() {
    let mut around = labelled_namespace();
    around.namespace_annotations = map("linkerd.io/inject=enabled");
    let decision = |pod: &Pod| decide(pod, &around, &InjectorConfig::default());
    assert!(matches!(decision(&pod(SHOP)), Decision::Skip(WhyNot::OtherMesh(_))));
    let out = annotated(&[("linkerd.io/inject", "disabled")]);
    assert!(
        matches!(decision(&out), Decision::Inject(_)),
        "the pod stands before its namespace"
    );
}

#[test]
fn who_asked_in_vain_is_told() {
    let skipped = |pod: &Pod, around: &Surroundings| match inject(pod, around, &InjectorConfig::default()).unwrap() {
        Outcome::Skipped { asked, .. } => asked,
        other => panic!("{other:?}"),
    };
    let host = "{metadata: {labels: {sidecar.istio.io/inject: 'true'}}, spec: {hostNetwork: true, containers: []}}";
    assert!(skipped(&pod(host), &labelled_namespace()));
    let host = "{metadata: {}, spec: {hostNetwork: true, containers: []}}";
    assert!(
        !skipped(&pod(host), &labelled_namespace()),
        "DaemonSets of the node are everywhere"
    );
    assert!(!skipped(&pod(SHOP), &Surroundings::default()));
}
