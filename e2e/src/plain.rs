//! A mesh of real processes on loopback for tests: a control plane on a directory of YAML, and sidecars with bootstrap
//! tokens, as `docs/plain-hosts.md` tells users to run them.
//!
//! Every mesh has a block of loopback addresses of its own, so tests run side by side. Everything ends with the value.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use mesh_cli::demo::shop::Block;
use tempfile::TempDir;

use crate::binaries;

/// How long anything may take to happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `probe` gives a value.
///
/// # Errors
/// After [`PATIENCE`]; `what` says what did not happen.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("not within {PATIENCE:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that ends with the value; its output is in a file.
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts a command whose standard output and error go to `DIR/NAME.log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, dir: &Path, mut command: Command) -> anyhow::Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = fs::OpenOptions::new().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    #[must_use]
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal by number's name, such as `TERM` or `STOP`.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let status = Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(self.pid().to_string())
            .status()?;
        if !status.success() {
            bail!("{} took no signal", self.name);
        }
        Ok(())
    }

    /// Ends it at once and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end, at most [`PATIENCE`].
    ///
    /// # Errors
    /// When it goes on.
    pub fn wait(&mut self) -> anyhow::Result<std::process::ExitStatus> {
        let name = self.name.clone();
        eventually(&format!("{name} ends"), || self.child.try_wait().ok().flatten())
    }

    fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended ({status}); its output: {}", self.name, self.output());
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let output = self.output();
            let tail = output
                .lines()
                .rev()
                .take(30)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect::<Vec<_>>()
                .join("\n");
            eprintln!("--- {} wrote:\n{tail}", self.name);
        }
    }
}

/// A mesh.
pub struct Mesh {
    /// Control plane, unless it was taken.
    pub control: Option<Running>,
    block: Block,
    dir: TempDir,
}

/// What a sidecar is started with beyond its name.
#[derive(Clone, Debug, Default)]
pub struct SidecarOptions {
    /// Position of its address in the mesh's block.
    pub index: usize,
    /// Ports of the workload and where the application listens.
    pub inbound: Vec<(u16, SocketAddr)>,
    /// Further arguments.
    pub args: Vec<String>,
    /// Service account; the workload's name when empty.
    pub account: String,
    /// Bootstrap token; one that is good for an hour when empty.
    pub token: String,
}

/// A running sidecar.
pub struct Sidecar {
    /// The process.
    pub process: Running,
    /// The workload's address.
    pub address: IpAddr,
}

impl Sidecar {
    /// The explicit HTTP proxy.
    #[must_use]
    pub fn outbound(&self) -> SocketAddr {
        SocketAddr::new(self.address, 15001)
    }

    /// The explicit HTTP proxy as curl takes it.
    #[must_use]
    pub fn proxy_url(&self) -> String {
        format!("http://{}", self.outbound())
    }

    /// Administration.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        SocketAddr::new(self.address, 15000)
    }

    /// Metrics.
    #[must_use]
    pub fn metrics(&self) -> SocketAddr {
        SocketAddr::new(self.address, 15090)
    }

    /// Whether it says that it is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        get(SocketAddr::new(self.address, 15021), "/healthz/ready").is_ok_and(|(status, _)| status == 200)
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// When it ends, or is not ready in time.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        let address = self.address;
        let result = eventually(&format!("the sidecar at {address} is ready"), || {
            self.is_ready().then_some(())
        });
        self.process.check()?;
        result
    }

    /// Its metrics page.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics_page(&self) -> anyhow::Result<String> {
        Ok(get(self.metrics(), "/stats/prometheus")?.1)
    }
}

impl Mesh {
    /// A mesh with these objects; the control plane is ready.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(objects: impl FnOnce(&Self) -> String) -> anyhow::Result<Self> {
        let mut mesh = Self {
            control: None,
            block: Block::find()?,
            dir: tempfile::tempdir()?,
        };
        fs::create_dir(mesh.config_dir())?;
        let yaml = objects(&mesh);
        mesh.write("objects.yaml", &yaml)?;
        mesh.start_control()?;
        Ok(mesh)
    }

    /// Starts the control plane, again if it was ended.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_control(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(binaries::mesh_control());
        command
            .arg("--config-dir")
            .arg(self.config_dir())
            .arg("--ca-dir")
            .arg(self.ca_dir());
        command.args([
            "--listen",
            &self.control_address().to_string(),
            "--status",
            &self.status_address().to_string(),
        ]);
        let mut control = Running::start("mesh-control", self.dir.path(), command)?;
        let status = self.status_address();
        let ready = eventually("the control plane is ready", || {
            get(status, "/ready")
                .is_ok_and(|(status, _)| status == 200)
                .then_some(())
        });
        control.check()?;
        ready?;
        self.control = Some(control);
        Ok(())
    }

    /// Where discovery and certificates are served.
    #[must_use]
    pub fn control_address(&self) -> SocketAddr {
        SocketAddr::new(self.block.control_plane(), 15012)
    }

    /// Where the control plane's state is served.
    #[must_use]
    pub fn status_address(&self) -> SocketAddr {
        SocketAddr::new(self.block.control_plane(), 15014)
    }

    /// Address of the workload with this index.
    #[must_use]
    pub fn address(&self, index: usize) -> IpAddr {
        self.block.workload(index)
    }

    /// Directory of the mesh's files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Directory of the certificate authority.
    #[must_use]
    pub fn ca_dir(&self) -> PathBuf {
        self.dir.path().join("ca")
    }

    /// Directory of policy files.
    #[must_use]
    pub fn config_dir(&self) -> PathBuf {
        self.dir.path().join("config")
    }

    /// Writes or overwrites a file of policy.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, file: &str, yaml: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.config_dir().join(file), yaml)?)
    }

    /// Deletes a file of policy.
    ///
    /// # Errors
    /// When it cannot be deleted.
    pub fn delete(&self, file: &str) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.config_dir().join(file))?)
    }

    /// Where the token of a sidecar is.
    #[must_use]
    pub fn token_file(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.token"))
    }

    /// A bootstrap token for `default/<account>`, made by the command that users have for it.
    ///
    /// # Errors
    /// When the command fails.
    pub fn token(&self, account: &str, ttl: &str) -> anyhow::Result<String> {
        let output = Command::new(binaries::mesh_control())
            .args([
                "token",
                "create",
                "--identity",
                &format!("default/{account}"),
                "--ttl",
                ttl,
                "--ca-dir",
            ])
            .arg(self.ca_dir())
            .output()?;
        if !output.status.success() {
            bail!("token create: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Starts a sidecar; it may not be ready yet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn sidecar(&self, name: &str, options: &SidecarOptions) -> anyhow::Result<Sidecar> {
        let address = self.address(options.index);
        let account = if options.account.is_empty() {
            name
        } else {
            &options.account
        };
        let token_file = self.token_file(name);
        let token = match options.token.is_empty() {
            true => self.token(account, "1h")?,
            false => options.token.clone(),
        };
        fs::write(&token_file, token)?;
        let mut command = Command::new(binaries::mesh_proxy());
        command.args([
            "--workload",
            name,
            "--service-account",
            account,
            "--address",
            &address.to_string(),
        ]);
        command
            .args(["--control-plane", &self.control_address().to_string(), "--token-file"])
            .arg(&token_file);
        for (flag, port) in [
            ("--outbound", 15001),
            ("--admin", 15000),
            ("--metrics", 15090),
            ("--readiness", 15021),
        ] {
            command.arg(flag).arg(SocketAddr::new(address, port).to_string());
        }
        for (port, application) in &options.inbound {
            command
                .arg("--inbound")
                .arg(format!("{}={application}", SocketAddr::new(address, *port)));
        }
        command.args(&options.args);
        Ok(Sidecar {
            process: Running::start(name, self.dir.path(), command)?,
            address,
        })
    }
}

/// A WorkloadEntry with a sidecar: name, address, app label and service account are given.
#[must_use]
pub fn workload_entry(name: &str, address: IpAddr, app: &str, version: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  \
         address: {address}\n  serviceAccount: {app}\n  labels: {{app: {app}, version: {version}, \
         security.istio.io/tlsMode: istio}}\n"
    )
}

/// A ServiceEntry `<name>.default.svc.cluster.local` of the workloads labelled `app: <name>`. Ports are number, port
/// name, protocol and target port.
#[must_use]
pub fn service_entry(name: &str, ports: &[(u16, &str, &str, u16)]) -> String {
    use std::fmt::Write as _;
    let mut yaml = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  \
         hosts: [{name}.default.svc.cluster.local]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  workloadSelector: \
         {{labels: {{app: {name}}}}}\n  ports:\n"
    );
    for (number, port_name, protocol, target) in ports {
        let protocol = if protocol.is_empty() {
            String::new()
        } else {
            format!(", protocol: {protocol}")
        };
        let _ = writeln!(
            yaml,
            "  - {{number: {number}, name: {port_name}{protocol}, targetPort: {target}}}"
        );
    }
    yaml
}

/// A plain GET; status and body.
///
/// # Errors
/// When there is no answer.
pub fn get(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no response head")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .context("no status")?;
    Ok((status, body.to_owned()))
}
