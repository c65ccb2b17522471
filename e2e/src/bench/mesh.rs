//! The mesh itself: a control plane, and one proxy or a pair, as users run them, told what to do in YAML.
//!
//! Telemetry is on as for the rivals: metrics, the access log to a file, one route with a header match that the load does
//! not satisfy, and on the side of the backend one ALLOW policy.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use mesh_api::identity::{SpiffeId, TrustDomain};
use mesh_cli::demo::shop::Block;
use mesh_control::ca::{Authority, Lifetimes, create_token};

use super::envoy::get;
use super::load::{Entry, Form};
use super::process::{Output, Process};
use super::setting::{Protocol, Setting, Topology};
use super::subject::{Bench, Running, Subject};

/// Subcommands of the benchmark under which it is a control plane or a proxy.
pub const CONTROL: &str = "mesh-control";
/// See [`CONTROL`].
pub const PROXY: &str = "mesh-proxy";

const SERVICE: &str = "backend.default.svc.cluster.local";
const PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;

/// The mesh of this workspace.
pub struct Mesh;

/// One run's files and addresses.
struct World<'a> {
    bench: &'a Bench<'a>,
    block: Block,
    domain: TrustDomain,
}

impl Subject for Mesh {
    fn name(&self) -> &'static str {
        "mesh"
    }

    fn version(&self) -> String {
        format!("mesh {}", env!("CARGO_PKG_VERSION"))
    }

    fn start(&self, bench: &Bench<'_>, setting: &Setting, backend: SocketAddr) -> anyhow::Result<Running> {
        let world = World {
            bench,
            block: Block::find()?,
            domain: TrustDomain::cluster_local(),
        };
        let control = world.control(setting, backend)?;
        let client = world.block.workload(0);
        let mut measured = vec![world.proxy("client", client, None)?];
        if setting.topology == Topology::PairMtls {
            let own = world.block.workload(1);
            let mapping = (SocketAddr::new(own, BACKEND_PORT), backend);
            measured.push(world.proxy("backend", own, Some(mapping))?);
        }
        for (index, process) in measured.iter_mut().enumerate() {
            let readiness = SocketAddr::new(world.block.workload(index), 15021);
            process.wait_for("it is not ready", || {
                get(readiness, "/healthz/ready")
                    .ok()
                    .filter(|answer| answer.starts_with("HTTP/1.1 200"))
            })?;
        }
        let entry = Entry {
            address: SocketAddr::new(client, 15001),
            form: Form::Connect,
            authority: format!("{SERVICE}:{PORT}"),
        };
        Ok(Running {
            entry,
            measured,
            support: vec![control],
        })
    }
}

impl World<'_> {
    fn control(&self, setting: &Setting, backend: SocketAddr) -> anyhow::Result<Process> {
        let dir = self.bench.dir;
        let config = dir.join("config");
        fs::create_dir_all(&config)?;
        fs::write(config.join("benchmark.yaml"), self.objects(setting, backend))?;
        let address = self.block.control_plane();
        let mut command = Command::new(&self.bench.launcher.this_program);
        command
            .arg(CONTROL)
            .arg("--config-dir")
            .arg(&config)
            .arg("--ca-dir")
            .arg(dir.join("ca"));
        command.arg("--listen").arg(SocketAddr::new(address, 15012).to_string());
        command
            .arg("--status")
            .arg(SocketAddr::new(address, 15014).to_string())
            .args(["--log", "warn"]);
        let launcher = self.bench.launcher;
        let mut process = launcher.start("mesh-control", launcher.cores.rest, dir, &command, Output::Log)?;
        process.wait_for("it is not ready", || {
            let ready = get(SocketAddr::new(address, 15014), "/ready").ok();
            ready.filter(|answer| answer.starts_with("HTTP/1.1 200"))
        })?;
        Ok(process)
    }

    fn proxy(&self, name: &str, own: IpAddr, inbound: Option<(SocketAddr, SocketAddr)>) -> anyhow::Result<Process> {
        let dir = self.bench.dir;
        let token = self.token(name, &dir.join("ca"))?;
        let mut command = Command::new(&self.bench.launcher.this_program);
        let mut option = |name: &str, value: OsString| {
            command.arg(name).arg(value);
        };
        option(PROXY, "--concurrency=1".into());
        option("--workload", name.into());
        option("--service-account", name.into());
        option("--token", token.into());
        option("--address", own.to_string().into());
        option(
            "--control-plane",
            SocketAddr::new(self.block.control_plane(), 15012).to_string().into(),
        );
        for (flag, port) in [
            ("--outbound", 15001),
            ("--admin", 15000),
            ("--metrics", 15090),
            ("--readiness", 15021),
        ] {
            option(flag, SocketAddr::new(own, port).to_string().into());
        }
        option("--log", "warn".into());
        if let Some((listen, application)) = inbound {
            option("--inbound", format!("{listen}={application}").into());
        }
        let launcher = self.bench.launcher;
        launcher.start(
            &format!("mesh-{name}"),
            launcher.cores.proxy,
            dir,
            &command,
            Output::Log,
        )
    }

    fn token(&self, name: &str, ca: &Path) -> anyhow::Result<String> {
        let authority = Authority::open(ca, &self.domain, Lifetimes::default())?;
        let identity = SpiffeId::new(&self.domain, "default", name)?;
        let token = create_token(ca, &authority, &identity, Duration::from_secs(3600));
        Ok(token.context("no bootstrap token")?.to_string())
    }

    fn objects(&self, setting: &Setting, backend: SocketAddr) -> String {
        let protocol = match setting.protocol {
            Protocol::Http1 => "HTTP",
            Protocol::Http2 => "HTTP2",
        };
        let client = self.block.workload(0);
        let (address, port, label) = match setting.topology {
            Topology::Single => (backend.ip(), backend.port(), "security.istio.io/tlsMode: disabled"),
            Topology::PairMtls => (self.block.workload(1), BACKEND_PORT, "security.istio.io/tlsMode: istio"),
        };
        let mut yaml = String::new();
        let _ = write!(
            yaml,
            r#"apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: backend, namespace: default}}
spec:
  hosts: [{SERVICE}]
  location: MESH_INTERNAL
  resolution: STATIC
  workloadSelector: {{labels: {{app: backend}}}}
  ports: [{{number: {PORT}, name: main, protocol: {protocol}, targetPort: {port}}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: backend, namespace: default}}
spec:
  address: {address}
  serviceAccount: backend
  labels: {{app: backend, {label}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: client, namespace: default}}
spec:
  address: {client}
  serviceAccount: client
  labels: {{app: client, security.istio.io/tlsMode: istio}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: backend, namespace: default}}
spec:
  hosts: [{SERVICE}]
  http:
  - name: canary
    match: [{{headers: {{x-canary: {{exact: "true"}}}}}}]
    route: [{{destination: {{host: {SERVICE}}}}}]
  - name: main
    route: [{{destination: {{host: {SERVICE}}}}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: backend, namespace: default}}
spec:
  selector: {{matchLabels: {{app: backend}}}}
  rules:
  - from: [{{source: {{principals: ["cluster.local/ns/default/sa/client"]}}}}]
    to: [{{operation: {{methods: ["GET"]}}}}]
---
apiVersion: mesh.dev/v1
kind: MeshConfig
metadata: {{name: mesh}}
spec: {{accessLogFile: {log}}}
"#,
            log = self.bench.dir.join("access.log").display(),
        );
        yaml
    }
}
