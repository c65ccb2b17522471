//! From installation to removal: over kinds of another mesh, upgraded, rolled back, and gone without a trace.

use e2e::cluster::pods::{Client, Shop};
use e2e::cluster::{Namespace, mesh, tools, wait};
use mesh_api::crd::Kind;
use mesh_api::crd::definition::definition;
use serde_json::Value;

/// What marks our objects.
const OURS: &str = "app.kubernetes.io/part-of=mesh";

fn crd_names() -> Vec<String> {
    let name = |kind: &Kind| {
        definition(*kind)["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    Kind::ALL.iter().map(name).collect()
}

/// The names of objects of a kind, in all namespaces or in one, that `select` takes.
fn named(args: &[&str]) -> anyhow::Result<Vec<String>> {
    let mut all = vec!["get"];
    all.extend(args);
    let list = tools::json(&all)?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    Ok(items
        .iter()
        .filter_map(|item| Some(item["metadata"]["name"].as_str()?.to_owned()))
        .collect())
}

fn bundles() -> anyhow::Result<Vec<Value>> {
    let configuration = tools::json(&["get", "mutatingwebhookconfiguration", "mesh-injector"])?;
    let webhooks = configuration["webhooks"].as_array().cloned().unwrap_or_default();
    Ok(webhooks
        .iter()
        .map(|webhook| webhook["clientConfig"]["caBundle"].clone())
        .collect())
}

/// A definition as another mesh would have it: fewer fields, labels of its own.
const FOREIGN: &str = "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: virtualservices.networking.istio.io
  labels: {app: istio-pilot, release: istio}
spec:
  group: networking.istio.io
  scope: Namespaced
  names: {kind: VirtualService, listKind: VirtualServiceList, plural: virtualservices, singular: virtualservice, shortNames: [vs]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, x-kubernetes-preserve-unknown-fields: true}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
";

#[test]
#[ignore = "needs a cluster"]
fn kinds_of_another_mesh_are_left_alone() -> anyhow::Result<()> {
    let _mesh = mesh::absent()?;
    let mut delete = vec!["delete", "crd", "--ignore-not-found", "--timeout=100s"];
    let names = crd_names();
    delete.extend(names.iter().map(String::as_str));
    tools::kubectl(&delete)?;
    tools::apply(FOREIGN)?;
    let foreign = "virtualservices.networking.istio.io";
    let generation = |name: &str| anyhow::Ok(tools::json(&["get", "crd", name])?["metadata"]["generation"].clone());
    let before = generation(foreign)?;

    mesh::install(&[])?;
    let object = tools::json(&["get", "crd", foreign])?;
    assert_eq!(object["metadata"]["generation"], before, "the definition was written");
    assert_eq!(object["metadata"]["labels"]["app"], "istio-pilot");
    assert_eq!(
        object["metadata"]["annotations"]["meta.helm.sh/release-name"],
        Value::Null
    );
    for name in names.iter().filter(|name| *name != foreign) {
        let object = tools::json(&["get", "crd", name])?;
        assert_eq!(
            object["metadata"]["annotations"]["helm.sh/resource-policy"], "keep",
            "{name}"
        );
    }
    let notes = tools::helm(&["get", "notes", mesh::RELEASE, "-n", mesh::NAMESPACE])?;
    assert!(notes.contains(foreign), "{notes}");

    // An upgrade sees the same cluster and does the same.
    mesh::install(&["control.log=debug"])?;
    assert_eq!(generation(foreign)?, before);

    mesh::uninstall()?;
    tools::kubectl(&["delete", "crd", foreign])?;
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn an_upgrade_can_be_taken_back() -> anyhow::Result<()> {
    let _mesh = mesh::exclusive()?;
    let trust = bundles()?;
    let encoding = || {
        let config = tools::json(&["get", "meshconfig", "default"])?;
        anyhow::Ok(config["spec"]["accessLogEncoding"].clone())
    };
    assert_eq!(encoding()?, Value::Null);
    let history = tools::helm(&["history", mesh::RELEASE, "-n", mesh::NAMESPACE, "-o", "json"])?;
    let history: Value = serde_json::from_str(&history)?;
    let revision = history
        .as_array()
        .and_then(|all| all.last()?["revision"].as_u64())
        .unwrap_or_default();

    mesh::install(&["meshConfig.accessLogEncoding=JSON", "control.log=debug"])?;
    assert_eq!(encoding()?, "JSON");
    assert_eq!(bundles()?, trust, "the upgrade has reset what webhooks trust");

    let revision = revision.to_string();
    tools::helm(&[
        "rollback",
        mesh::RELEASE,
        &revision,
        "-n",
        mesh::NAMESPACE,
        "--wait",
        "--timeout=180s",
    ])?;
    assert_eq!(encoding()?, Value::Null);
    assert_eq!(bundles()?, trust);
    wait::rollout(mesh::NAMESPACE, "deployment/mesh-control")
}

#[test]
#[ignore = "needs a cluster"]
fn nothing_is_left_but_what_users_made() -> anyhow::Result<()> {
    let mesh = mesh::exclusive()?;
    let namespace = Namespace::injected("uninstall")?;
    namespace.apply(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: mine}
spec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}",
    )?;
    Shop::new("web").deploy(&namespace)?;
    let client = Client::start(&namespace, "client")?;
    client.gets("http://web:8080/", 200)?;

    mesh::uninstall()?;
    for kind in [
        "clusterroles",
        "clusterrolebindings",
        "mutatingwebhookconfigurations",
        "validatingwebhookconfigurations",
    ] {
        assert_eq!(named(&[kind, "-l", OURS])?, Vec::<String>::new(), "{kind}");
    }
    // Pods take a moment to end.
    wait::eventually("the mesh's namespace is empty", || {
        for kind in [
            "pods",
            "deployments",
            "services",
            "jobs",
            "roles",
            "rolebindings",
            "secrets",
            "leases",
            "configmaps",
        ] {
            let mut left = named(&[kind, "-n", mesh::NAMESPACE])?;
            left.retain(|name| name != "kube-root-ca.crt");
            anyhow::ensure!(left.is_empty(), "{kind}: {left:?}");
        }
        Ok(())
    })?;
    let mut accounts = named(&["serviceaccounts", "-n", mesh::NAMESPACE])?;
    accounts.retain(|name| name != "default");
    assert_eq!(accounts, Vec::<String>::new());
    let roots = tools::json(&[
        "get",
        "configmaps",
        "-A",
        "--field-selector=metadata.name=mesh-ca-root-cert",
    ])?;
    assert_eq!(roots["items"], Value::Array(Vec::new()));
    assert_eq!(named(&["meshconfigs"])?, Vec::<String>::new());

    // Kinds, users' objects and pods are there, and pods still talk.
    assert_eq!(named(&["virtualservices", "-n", namespace.name()])?, ["mine"]);
    for name in crd_names() {
        tools::json(&["get", "crd", &name])?;
    }
    client.gets("http://web:8080/", 200)?;
    drop(mesh);
    Ok(())
}
