//! The processes of one run: the control plane, and a sidecar and an application for each workload. All of them are this
//! very program, with other arguments.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::task::JoinSet;

use super::place::Place;
use super::shop::{self, Block, ShopWorkload};
use super::supervisor::{Spec, Supervised};

/// What the processes are told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace whose policies hold for the whole mesh.
    pub root_namespace: String,
    /// Workers of each sidecar; by default what the machine has.
    pub concurrency: Option<u16>,
}

/// The control plane, running.
pub struct ControlPlane {
    process: Supervised,
    /// Where sidecars reach it.
    pub address: SocketAddr,
    /// Where it shows the state of proxies.
    pub status: SocketAddr,
    /// What it says.
    pub log: PathBuf,
}

/// One workload, running.
pub struct Running {
    /// The plan of it.
    pub workload: ShopWorkload,
    sidecar: Supervised,
    app: Supervised,
    /// What its sidecar says, the access log included.
    pub sidecar_log: PathBuf,
    /// What its application says.
    pub app_log: PathBuf,
}

impl ControlPlane {
    /// Starts it.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start(block: Block, place: &Place, settings: &Settings) -> io::Result<Self> {
        let [address, status] = shop::CONTROL_PORTS.map(|port| SocketAddr::new(block.control_plane(), port));
        let log = place.log("control-plane");
        let mut args = Arguments::new("__control-plane");
        args.flag("--config-dir", place.objects());
        args.flag("--config-dir", place.policies());
        args.flag("--ca-dir", place.authority());
        args.flag("--listen", address.to_string());
        args.flag("--status", status.to_string());
        args.flag("--root-namespace", &settings.root_namespace);
        let process = Supervised::start(Spec {
            label: "control plane".to_owned(),
            args: args.0,
            log: log.clone(),
        })?;
        Ok(Self {
            process,
            address,
            status,
            log,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Stops it.
    pub async fn stop(self) {
        self.process.stop().await;
    }
}

impl Running {
    /// Starts a sidecar and its application.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub fn start(
        workload: ShopWorkload,
        control_plane: SocketAddr,
        place: &Place,
        settings: &Settings,
    ) -> io::Result<Self> {
        let sidecar_log = place.log(&format!("{}.sidecar", workload.name));
        let app_log = place.log(&format!("{}.app", workload.name));
        let sidecar = Supervised::start(Spec {
            label: format!("sidecar of {}", workload.name),
            args: sidecar_args(&workload, control_plane, place, settings),
            log: sidecar_log.clone(),
        })?;
        let app = Supervised::start(Spec {
            label: format!("application of {}", workload.name),
            args: app_args(&workload),
            log: app_log.clone(),
        })?;
        Ok(Self {
            workload,
            sidecar,
            app,
            sidecar_log,
            app_log,
        })
    }

    /// Process id of the sidecar.
    #[must_use]
    pub fn sidecar_pid(&self) -> u32 {
        self.sidecar.pid()
    }

    /// Process id of the application.
    #[must_use]
    pub fn app_pid(&self) -> u32 {
        self.app.pid()
    }
}

/// Stops all workloads: sidecars first, which drain while their applications still answer.
pub async fn stop(running: Vec<Running>) {
    let mut ends = JoinSet::new();
    for one in running {
        ends.spawn(async move {
            one.sidecar.stop().await;
            one.app.stop().await;
        });
    }
    while ends.join_next().await.is_some() {}
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn new(command: &str) -> Self {
        Self(vec![command.into()])
    }

    fn flag(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }
}

fn sidecar_args(
    workload: &ShopWorkload,
    control_plane: SocketAddr,
    place: &Place,
    settings: &Settings,
) -> Vec<OsString> {
    let mut args = Arguments::new("__sidecar");
    args.flag("--workload", workload.name);
    args.flag("--namespace", shop::NAMESPACE);
    args.flag("--service-account", workload.service);
    args.flag("--trust-domain", workload.identity.trust_domain());
    args.flag("--control-plane", control_plane.to_string());
    args.flag(
        "--control-plane-identity",
        format!("{}/mesh-control", settings.root_namespace),
    );
    args.flag("--token-file", place.token(workload));
    args.flag("--address", workload.address.to_string());
    args.flag("--inbound", format!("{}={}", workload.inbound, workload.app));
    args.flag("--outbound", workload.outbound.to_string());
    args.flag("--admin", workload.admin.to_string());
    args.flag("--metrics", workload.metrics.to_string());
    args.flag("--readiness", workload.readiness.to_string());
    if let Some(workers) = settings.concurrency {
        args.flag("--concurrency", workers.to_string());
    }
    args.0
}

fn app_args(workload: &ShopWorkload) -> Vec<OsString> {
    let mut args = Arguments::new("__app");
    args.flag("--service", workload.service);
    args.flag("--version", workload.version);
    args.flag("--namespace", shop::NAMESPACE);
    args.flag("--listen", workload.app.to_string());
    args.flag("--proxy", workload.outbound.to_string());
    for url in &workload.calls {
        args.flag("--call", url.to_string());
    }
    args.0
}
