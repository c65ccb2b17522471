//! Policy kinds on a real API server: definitions are established, and objects are taken strictly in every served version.

use e2e::cluster::{Namespace, mesh, tools, wait};
use mesh_api::crd::Kind;
use mesh_api::crd::definition::{definition, served_versions};

/// A spec of each kind, as users write them.
fn spec(kind: Kind) -> &'static str {
    match kind {
        Kind::VirtualService => {
            "hosts: [reviews]
gateways: [mesh]
http:
- name: canary
  match: [{headers: {canary: {exact: 'true'}}, uri: {prefix: /}}]
  route: [{destination: {host: reviews, subset: v2, port: {number: 9080}}}]
  fault: {delay: {percentage: {value: 50}, fixedDelay: 5s}}
  timeout: 10s
- retries: {attempts: 3, perTryTimeout: 2s, retryOn: '5xx,connect-failure'}
  route:
  - {destination: {host: reviews, subset: v1}, weight: 90}
  - {destination: {host: reviews, subset: v2}, weight: 10}"
        }
        Kind::DestinationRule => {
            "host: reviews
trafficPolicy:
  connectionPool: {tcp: {maxConnections: 100}, http: {http1MaxPendingRequests: 50, http2MaxRequests: 100}}
  outlierDetection: {consecutive5xxErrors: 5, interval: 30s, baseEjectionTime: 30s, maxEjectionPercent: 50}
subsets:
- {name: v1, labels: {version: v1}}
- {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}"
        }
        Kind::Gateway => {
            "selector: {istio: ingressgateway}
servers:
- {port: {number: 80, name: http, protocol: HTTP}, hosts: ['*.example.com']}"
        }
        Kind::ServiceEntry => {
            "hosts: [api.example.com]
location: MESH_EXTERNAL
resolution: STATIC
ports: [{number: 443, name: tls, protocol: TLS}]
endpoints: [{address: 198.18.0.7}]"
        }
        Kind::Sidecar => {
            "workloadSelector: {labels: {app: reviews}}
egress: [{hosts: ['./*', 'istio-system/*']}]"
        }
        Kind::WorkloadEntry => "address: 198.18.0.8\nlabels: {app: vm}\nserviceAccount: vm",
        Kind::WorkloadGroup => "template: {serviceAccount: vm, ports: {http: 8080}}",
        Kind::ProxyConfig => "concurrency: 2",
        Kind::AuthorizationPolicy => {
            "selector: {matchLabels: {app: reviews}}
action: ALLOW
rules:
- from: [{source: {principals: ['cluster.local/ns/default/sa/order-service']}}]
  to: [{operation: {methods: [GET, POST]}}]"
        }
        Kind::PeerAuthentication => {
            "selector: {matchLabels: {app: reviews}}
mtls: {mode: STRICT}
portLevelMtls: {'8080': {mode: PERMISSIVE}}"
        }
        Kind::RequestAuthentication => {
            "selector: {matchLabels: {app: reviews}}
jwtRules: [{issuer: i.example, jwks: '{\"keys\":[]}'}]"
        }
        Kind::Telemetry => "accessLogging: [{providers: [{name: envoy}]}]",
        Kind::MeshConfig => "trustDomain: cluster.local\naccessLogFile: /dev/stdout",
    }
}

fn manifest(kind: Kind, version: &str, name: &str) -> String {
    let definition = definition(kind);
    let group = definition["spec"]["group"].as_str().unwrap_or_default();
    let spec = spec(kind).replace('\n', "\n  ");
    format!("apiVersion: {group}/{version}\nkind: {kind}\nmetadata:\n  name: {name}\nspec:\n  {spec}\n")
}

fn definition_name(kind: Kind) -> String {
    definition(kind)["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[test]
#[ignore = "needs a cluster"]
fn definitions_are_established() -> anyhow::Result<()> {
    let _mesh = mesh::shared()?;
    for kind in Kind::ALL {
        let object = tools::json(&["get", "crd", &definition_name(*kind)])?;
        for condition in ["Established", "NamesAccepted"] {
            let found = wait::condition(&object, condition).map(|(status, _)| status);
            assert_eq!(found, Some("True"), "{kind}: {condition}");
        }
        // Schemas that are not structural are reported, not refused.
        assert_eq!(wait::condition(&object, "NonStructuralSchema"), None, "{kind}");
    }
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn every_kind_is_taken_strictly_in_every_served_version() -> anyhow::Result<()> {
    let _mesh = mesh::shared()?;
    let namespace = Namespace::new("kinds", &[])?;
    for kind in Kind::ALL {
        for version in served_versions(*kind) {
            let text = manifest(*kind, &version, &format!("sample-{version}"));
            if *kind == Kind::MeshConfig {
                // There is one for the whole cluster, which is the mesh's own.
                let args = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
                let text = text.replace("sample-v1", "default");
                let outcome = tools::run("kubectl", &args, Some(&text), tools::LIMIT)?;
                assert!(outcome.success, "{}", outcome.stderr);
                continue;
            }
            namespace.apply(&text)?;
            // What comes back is what went in, in each of the versions.
            for other in served_versions(*kind) {
                let name = definition_name(*kind);
                let (plural, group) = name.split_once('.').unwrap_or_default();
                let resource = format!("{plural}.{other}.{group}");
                let read = namespace.json(&["get", &resource, &format!("sample-{version}")])?;
                assert!(
                    read["spec"].as_object().is_some_and(|spec| !spec.is_empty()),
                    "{kind} {other}: {read}"
                );
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn fields_that_no_schema_has_are_refused() -> anyhow::Result<()> {
    let _mesh = mesh::shared()?;
    let namespace = Namespace::new("strict", &[])?;
    for kind in Kind::ALL.iter().filter(|kind| **kind != Kind::MeshConfig) {
        let text = manifest(*kind, &served_versions(*kind)[0], "sample") + "  noSuchField: 1\n";
        let outcome = namespace.try_apply(&text)?;
        assert!(
            !outcome.success && outcome.stderr.contains("noSuchField"),
            "{kind}: {}",
            outcome.stderr
        );
    }
    Ok(())
}
