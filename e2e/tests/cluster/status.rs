//! Every policy object says whether it is accepted, and on how many proxies it is in force.

use e2e::cluster::pods::{Client, Shop};
use e2e::cluster::{Namespace, mesh, wait};

/// Waits until a condition of an object has a status, and returns its message.
fn says(namespace: &Namespace, object: &str, kind: &str, status: &str) -> anyhow::Result<String> {
    wait::until(&format!("{object}: {kind} is {status}"), wait::PATIENCE, || {
        let read = namespace.json(&["get", object])?;
        match wait::condition(&read, kind) {
            Some((found, message)) if found == status => Ok(Some(message.to_owned())),
            other => anyhow::bail!("it is {other:?}"),
        }
    })
}

fn routes(name: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}}}
spec: {{hosts: [web], http: [{{route: [{{destination: {{host: web}}}}]}}]}}"
    )
}

#[test]
#[ignore = "needs a cluster"]
fn objects_say_where_they_are_in_force() -> anyhow::Result<()> {
    let _mesh = mesh::shared()?;
    let namespace = Namespace::injected("status")?;
    Shop::new("web").deploy(&namespace)?;
    let client = Client::start(&namespace, "client")?;
    client.gets("http://web:8080/", 200)?;
    namespace.apply(&routes("web"))?;
    says(&namespace, "virtualservice/web", "Accepted", "True")?;
    client.gets("http://web:8080/", 200)?;
    let message = says(&namespace, "virtualservice/web", "Programmed", "True")?;
    assert!(message.contains(" of "), "{message}");

    // The older one wins; the other says so.
    namespace.apply(&routes("web-again"))?;
    let message = says(&namespace, "virtualservice/web-again", "Conflicted", "True")?;
    assert!(message.contains("web"), "{message}");

    // What nobody asks for is accepted and not in use.
    namespace.apply(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: nobody}
spec: {host: nobody.example, trafficPolicy: {loadBalancer: {simple: RANDOM}}}",
    )?;
    says(&namespace, "destinationrule/nobody", "Accepted", "True")?;
    says(&namespace, "destinationrule/nobody", "Programmed", "False")?;
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn the_mesh_config_shows_the_mesh() -> anyhow::Result<()> {
    let _mesh = mesh::shared()?;
    let namespace = Namespace::injected("meshconfig")?;
    let client = Client::start(&namespace, "client")?;
    drop(client);
    // Its scope is the cluster, which takes a namespace without minding.
    let args = ["get", "meshconfig", "-n", "istio-system", "-o", "yaml"];
    let yaml = e2e::cluster::kubectl(&args)?;
    assert!(yaml.contains("trustDomain: cluster.local"), "{yaml}");
    wait::eventually("the status counts proxies", || {
        let config = e2e::cluster::json(&["get", "meshconfig", "default"])?;
        anyhow::ensure!(config["status"].is_object(), "no status: {config}");
        Ok(())
    })
}
