//! Admission of policy objects: what cannot work is refused with the path of the field, what has no effect is warned of, and
//! while the injector is away everything is taken.

use e2e::cluster::{Namespace, mesh, tools, wait};

/// What becomes of an object.
enum Verdict {
    /// It is taken without a word.
    Taken,
    /// It is taken, with a warning about this field.
    Warned(&'static str),
    /// It is refused because of this field.
    Refused(&'static str),
}

use Verdict::{Refused, Taken, Warned};

/// Kind, spec, verdict.
const ROWS: [(&str, &str, Verdict); 18] = [
    (
        "VirtualService",
        "{hosts: [a], http: [{route: [{destination: {host: a}}]}]}",
        Taken,
    ),
    ("VirtualService", "{hosts: [a]}", Refused("spec")),
    (
        "VirtualService",
        "{hosts: ['a b'], http: [{route: [{destination: {host: a}}]}]}",
        Refused("spec.hosts[0]"),
    ),
    (
        "VirtualService",
        "{hosts: [a], http: [{name: x}]}",
        Refused("spec.http[0]"),
    ),
    (
        "VirtualService",
        "{hosts: [a], http: [{route: [{destination: {host: a}}], redirect: {uri: /}}]}",
        Refused("spec.http[0].redirect"),
    ),
    (
        "VirtualService",
        "{hosts: [a], http: [{route: [{destination: {host: a}}], corsPolicy: {allowMethods: [GET]}}]}",
        Warned("spec.http[0].corsPolicy"),
    ),
    (
        "VirtualService",
        "{hosts: [a], exportTo: ['*', b], http: [{route: [{destination: {host: a}}]}]}",
        Refused("spec.exportTo[0]"),
    ),
    (
        "DestinationRule",
        "{host: a, subsets: [{name: v1, labels: {version: v1}}]}",
        Taken,
    ),
    (
        "DestinationRule",
        "{host: a, trafficPolicy: {retryPolicy: {attempts: 3, perTryTimeout: 2s, retryOn: '5xx'}}}",
        Taken,
    ),
    ("AuthorizationPolicy", "{}", Taken),
    ("AuthorizationPolicy", "{action: DENY}", Refused("spec.rules")),
    (
        "AuthorizationPolicy",
        "{rules: [{from: [{source: {ipBlocks: [198.18.0.300]}}]}]}",
        Refused("spec.rules[0].from[0].source.ipBlocks[0]"),
    ),
    (
        "AuthorizationPolicy",
        "{rules: [{to: [{operation: {ports: [http]}}]}]}",
        Refused("spec.rules[0].to[0].operation.ports[0]"),
    ),
    ("PeerAuthentication", "{mtls: {mode: STRICT}}", Taken),
    (
        "PeerAuthentication",
        "{portLevelMtls: {'8080': {mode: DISABLE}}}",
        Refused("spec.portLevelMtls"),
    ),
    (
        "ServiceEntry",
        "{hosts: [x.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}",
        Taken,
    ),
    (
        "ServiceEntry",
        "{hosts: [x.example], ports: [{number: 0, name: http}]}",
        Refused("spec.ports[0].number"),
    ),
    ("Telemetry", "{}", Warned("kind Telemetry")),
];

fn manifest(kind: &str, spec: &str, name: &str) -> String {
    let group = match kind {
        "AuthorizationPolicy" | "PeerAuthentication" => "security.istio.io",
        "Telemetry" => "telemetry.istio.io",
        _ => "networking.istio.io",
    };
    format!("apiVersion: {group}/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

#[test]
#[ignore = "needs a cluster"]
fn objects_are_judged_when_they_are_written() -> anyhow::Result<()> {
    let _mesh = mesh::shared()?;
    let namespace = Namespace::new("judged", &[])?;
    // The API server may take a moment to know the webhook's certificate.
    wait::eventually("an object is refused", || {
        let outcome = namespace.try_apply(&manifest("VirtualService", "{hosts: [a]}", "probe"))?;
        anyhow::ensure!(!outcome.success, "it was taken");
        Ok(())
    })?;
    for (n, (kind, spec, verdict)) in ROWS.iter().enumerate() {
        let outcome = namespace.try_apply(&manifest(kind, spec, &format!("row-{n}")))?;
        let said = format!("{kind} {spec}: {}", outcome.stderr);
        match verdict {
            Taken => assert!(outcome.success && outcome.stderr.is_empty(), "{said}"),
            Warned(field) => {
                assert!(outcome.success, "{said}");
                assert!(
                    outcome.stderr.contains("Warning:") && outcome.stderr.contains(field),
                    "{said}"
                );
            }
            Refused(field) => {
                assert!(!outcome.success && outcome.stderr.contains(field), "{said}");
                assert!(outcome.stderr.contains("validation.mesh.dev"), "{said}");
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn policy_can_be_written_while_the_injector_is_away() -> anyhow::Result<()> {
    let _mesh = mesh::exclusive()?;
    let namespace = Namespace::new("fails-open", &[])?;
    let scale = |replicas: &str| {
        let replicas = format!("--replicas={replicas}");
        tools::kubectl(&["-n", mesh::NAMESPACE, "scale", "deployment/mesh-injector", &replicas])
    };
    // An autoscaler leaves a Deployment of no replicas alone.
    scale("0")?;
    wait::eventually("the injector is gone", || {
        let pods = tools::json(&["-n", mesh::NAMESPACE, "get", "pods", "-l", "app=mesh-injector"])?;
        anyhow::ensure!(pods["items"].as_array().is_some_and(Vec::is_empty), "it is there");
        Ok(())
    })?;
    namespace.apply(&manifest("VirtualService", "{hosts: [a]}", "nonsense"))?;
    // Pods that ask for the proxy wait for it, as configured.
    let pod = e2e::cluster::pods::pod("waits", "labels: {mesh.dev/inject: 'true'}", &["sleep"]);
    let outcome = namespace.try_apply(&pod)?;
    assert!(
        !outcome.success && outcome.stderr.contains("sidecar-injector.mesh.dev"),
        "{}",
        outcome.stderr
    );
    scale("1")?;
    wait::rollout(mesh::NAMESPACE, "deployment/mesh-injector")?;
    wait::eventually("pods are taken again", || namespace.apply(&pod).map(drop))
}
