//! A mesh with a client, a service `reviews` and applications that tests steer: what tests of real traffic start from.
//!
//! The service has ports 80 and 9080, both of the workloads' port 8080. Its endpoints either have sidecars, and the path is
//! client, sidecar, mutual TLS, sidecar, application; or they have none, where only the client's side matters.

pub mod backend;
pub mod caller;
pub mod clients;
pub mod load;
pub mod metrics;
mod tcp;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::Context as _;
use serde_json::Value;

use crate::plain::{Mesh, Sidecar, SidecarOptions, eventually, service_entry, workload_entry};
use backend::Backend;
use caller::Caller;

/// Port of the workloads.
pub const WORKLOAD_PORT: u16 = 8080;
/// Position of the client's address; endpoints follow.
const CLIENT: usize = 0;

/// Access logs as lines of JSON, on the standard output of each proxy.
pub const ACCESS_LOG: &str = "---\napiVersion: mesh.dev/v1\nkind: MeshConfig\nmetadata: {name: mesh}\nspec: {accessLogFile: \
                              /dev/stdout, accessLogEncoding: JSON}\n";

/// What a scene is made of.
#[derive(Clone, Debug, Default)]
pub struct Plan<'a> {
    /// Versions of `reviews`; each is a workload `reviews-<version>`.
    pub versions: &'a [&'a str],
    /// Whether those have sidecars.
    pub sidecars: bool,
    /// Ports of the service: number, name, protocol, workload port. Without any, 80 and 9080.
    pub ports: &'a [(u16, &'a str, &'a str, u16)],
    /// Who listens behind sidecars on workload ports that are not the usual application's.
    pub inbound: &'a [(u16, SocketAddr)],
    /// Further objects.
    pub policy: &'a str,
    /// Arguments of the client's sidecar.
    pub client_args: &'a [&'a str],
    /// Arguments of the other sidecars.
    pub server_args: &'a [&'a str],
}

/// See the module. Everything ends with the value.
pub struct Scene {
    /// The mesh.
    pub mesh: Mesh,
    /// The sidecar of the client.
    pub client: Sidecar,
    /// Sidecars of `reviews`, in the order of the plan's versions.
    pub servers: Vec<Sidecar>,
    /// Applications of `reviews`, in the same order.
    pub backends: Vec<Backend>,
    /// What the sidecars of `reviews` were started with.
    server_options: Vec<SidecarOptions>,
}

impl Scene {
    /// Endpoints with sidecars.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn meshed(versions: &[&str], policy: &str) -> anyhow::Result<Self> {
        Self::start(Plan {
            versions,
            sidecars: true,
            policy,
            ..Plan::default()
        })
        .await
    }

    /// Endpoints without sidecars.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn bare(versions: &[&str], policy: &str) -> anyhow::Result<Self> {
        Self::start(Plan {
            versions,
            policy,
            ..Plan::default()
        })
        .await
    }

    /// Starts all of it, and waits until it is ready.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start(plan: Plan<'_>) -> anyhow::Result<Self> {
        let usual = [
            (80, "http", "HTTP", WORKLOAD_PORT),
            (9080, "http-2", "HTTP", WORKLOAD_PORT),
        ];
        let ports = if plan.ports.is_empty() { &usual } else { plan.ports };
        let mesh = Mesh::start(|mesh| {
            let mut yaml = ACCESS_LOG.to_owned();
            yaml += &service_entry("reviews", ports);
            yaml += &workload_entry("client", mesh.address(CLIENT), "client", "v1");
            for (index, version) in plan.versions.iter().enumerate() {
                let entry = workload_entry(
                    &format!("reviews-{version}"),
                    mesh.address(CLIENT + 1 + index),
                    "reviews",
                    version,
                );
                yaml += &if plan.sidecars { entry } else { without_sidecar(&entry) };
            }
            yaml + plan.policy
        })?;
        let mut servers = Vec::new();
        let mut server_options = Vec::new();
        let mut backends = Vec::new();
        for (index, version) in plan.versions.iter().enumerate() {
            let index = CLIENT + 1 + index;
            if plan.sidecars {
                let backend = Backend::start(version, "127.0.0.1:0".parse()?).await?;
                let inbound = ports.iter().map(|(.., target)| *target).collect::<BTreeSet<_>>();
                let inbound = inbound.into_iter().map(|port| {
                    let other = plan.inbound.iter().find(|(known, _)| *known == port);
                    (port, other.map_or(backend.address, |(_, address)| *address))
                });
                let options = SidecarOptions {
                    index,
                    inbound: inbound.collect(),
                    args: owned(plan.server_args),
                    account: "reviews".to_owned(),
                    ..SidecarOptions::default()
                };
                servers.push(mesh.sidecar(&format!("reviews-{version}"), &options)?);
                server_options.push(options);
                backends.push(backend);
            } else {
                let address = SocketAddr::new(mesh.address(index), WORKLOAD_PORT);
                backends.push(Backend::start(version, address).await?);
            }
        }
        let options = SidecarOptions {
            index: CLIENT,
            args: owned(plan.client_args),
            ..SidecarOptions::default()
        };
        let mut client = mesh.sidecar("client", &options)?;
        for sidecar in servers.iter_mut().chain([&mut client]) {
            sidecar.wait_ready()?;
        }
        Ok(Self {
            mesh,
            client,
            servers,
            backends,
            server_options,
        })
    }

    /// Ends a sidecar of `reviews` as an orchestrator does, waits until it is gone, and starts it again; when this returns,
    /// it is ready.
    ///
    /// # Errors
    /// When it does not end well, or does not start.
    pub fn replace_server(&mut self, index: usize) -> anyhow::Result<()> {
        let old = &mut self.servers[index].process;
        old.signal("TERM")?;
        let status = old.wait()?;
        anyhow::ensure!(status.success(), "{status}: {}", old.output());
        let name = format!("reviews-{}", self.backends[index].name);
        let mut new = self.mesh.sidecar(&name, &self.server_options[index])?;
        new.wait_ready()?;
        self.servers[index] = new;
        Ok(())
    }

    /// Sends requests as the client's application does.
    #[must_use]
    pub fn caller(&self) -> Caller {
        Caller::new(self.client.outbound())
    }

    /// The objects that the mesh was started with, as they are in `objects.yaml`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn objects(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.mesh.dir().join("config/objects.yaml"))?)
    }

    /// The application of a version.
    ///
    /// # Errors
    /// When the plan has none.
    pub fn backend(&self, version: &str) -> anyhow::Result<&Backend> {
        let found = self.backends.iter().find(|backend| backend.name == version);
        found.with_context(|| format!("no application is called {version}"))
    }
}

/// An object of Istio's networking group in the namespace `default`; the spec is YAML in flow style or indented by two.
#[must_use]
pub fn networking(kind: &str, name: &str, spec: &str) -> String {
    object("networking.istio.io", kind, name, "default", spec)
}

/// An object of Istio's security group in the namespace `default`.
#[must_use]
pub fn security(kind: &str, name: &str, spec: &str) -> String {
    object("security.istio.io", kind, name, "default", spec)
}

/// An object of any group.
#[must_use]
pub fn object(group: &str, kind: &str, name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: {group}/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// Only mutual TLS is let in.
#[must_use]
pub fn strict() -> String {
    object(
        "security.istio.io",
        "PeerAuthentication",
        "strict",
        "mesh-system",
        "{mtls: {mode: STRICT}}",
    )
}

/// A VirtualService for `reviews` with these routes, a list in YAML's flow style.
#[must_use]
pub fn routes(http: &str) -> String {
    networking(
        "VirtualService",
        "reviews",
        &format!("{{hosts: [reviews], http: {http}}}"),
    )
}

/// A DestinationRule for `reviews` with subsets v1, v2 and v3.
#[must_use]
pub fn subsets() -> String {
    networking(
        "DestinationRule",
        "subsets",
        "{host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}, {name: v3, \
         labels: {version: v3}}]}",
    )
}

/// A DestinationRule for `reviews` with this traffic policy.
#[must_use]
pub fn traffic_policy(policy: &str) -> String {
    networking(
        "DestinationRule",
        "policy",
        &format!("{{host: reviews, trafficPolicy: {policy}}}"),
    )
}

/// The entry of a workload that has no sidecar.
#[must_use]
pub fn without_sidecar(entry: &str) -> String {
    // A service account alone would say that there is one, as in Istio.
    entry
        .replace(", security.istio.io/tlsMode: istio", "")
        .replace("  serviceAccount: reviews\n", "")
}

fn owned(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

/// Waits for a line of a proxy's access log that fits.
///
/// # Errors
/// When none comes.
pub fn logged(sidecar: &Sidecar, what: &str, fits: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    eventually(&format!("the access log says {what}"), || {
        access_log(sidecar).into_iter().find(&fits)
    })
    .with_context(|| format!("{:#?}", access_log(sidecar)))
}

/// The access log so far.
#[must_use]
pub fn access_log(sidecar: &Sidecar) -> Vec<Value> {
    let output = sidecar.process.output();
    let lines = output.lines().filter_map(|line| serde_json::from_str(line).ok());
    lines
        .filter(|line: &Value| line.get("response_flags").is_some())
        .collect()
}
