//! A mesh of pods: a control plane, a client, two servers (one known by its IPv4 address, one by its IPv6 address), and a
//! host that is not in the mesh.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, bail};
use e2e::app::{App, ping};
use e2e::client::{Answer, read_answer};
use e2e::exposition::sum;
use e2e::netns::{Host, Net, User};
use e2e::plain::{Running, eventually, get, workload_entry};
use e2e::{binaries, plain};
use tempfile::TempDir;

/// Address of the service `web`, and that of its IPv6 sister.
pub const WEB: &str = "198.18.100.1";
pub const WEB_V6: &str = "2001:db8:100::1";
pub const HTTP: u16 = 8080;
/// Speaks first.
pub const GREETING: u16 = 9090;
/// No service leads here.
pub const UNDECLARED: u16 = 7070;

/// Processes go before the hosts that they run in.
pub struct World {
    pub client: Pod,
    pub server: Pod,
    pub server_v6: Pod,
    pub outside: Outside,
    _control: Running,
    pub control_host: Host,
    pub net: Net,
    pub dir: TempDir,
}

/// A workload with its sidecar and its application.
pub struct Pod {
    pub name: &'static str,
    sidecar: Option<Running>,
    pub http: App,
    _greeting: App,
    pub undeclared: App,
    pub host: Host,
}

/// A host without sidecar.
pub struct Outside {
    pub http: App,
    _greeting: App,
    pub host: Host,
}

/// How a world differs from the usual one.
#[derive(Clone, Copy, Default)]
pub struct Plan<'a> {
    /// Policy in force.
    pub policy: &'a str,
    /// The client knows the control plane by name; the host outside is the name server.
    pub by_name: bool,
}

pub const STRICT: &str = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, \
                          namespace: mesh-system}\nspec: {mtls: {mode: STRICT}}\n";
pub const REGISTRY_ONLY: &str = "---\napiVersion: mesh.dev/v1\nkind: MeshConfig\nmetadata: {name: mesh}\nspec: \
                                 {outboundTrafficPolicy: {mode: REGISTRY_ONLY}, accessLogFile: /dev/stdout, \
                                 accessLogEncoding: JSON}\n";
const LOGGED: &str = "---\napiVersion: mesh.dev/v1\nkind: MeshConfig\nmetadata: {name: mesh}\nspec: {accessLogFile: \
                      /dev/stdout, accessLogEncoding: JSON}\n";

impl World {
    /// Everything is ready when it returns. `None` where there are no namespaces.
    pub fn start(plan: Plan<'_>) -> Option<Self> {
        e2e::netns::available().then(|| Self::try_start(plan).unwrap())
    }

    fn try_start(plan: Plan<'_>) -> anyhow::Result<Self> {
        let net = Net::new()?;
        let dir = tempfile::tempdir()?;
        // The sidecar's user reads its token, and may not look into the directories of whoever built it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let program = dir.path().join("mesh-proxy");
        if fs::hard_link(binaries::mesh_proxy(), &program).is_err() {
            fs::copy(binaries::mesh_proxy(), &program)?;
        }

        let control_host = net.host("control", 2)?;
        let (client, server, server_v6) = (
            net.host("client", 10)?,
            net.host("server", 11)?,
            net.host("server6", 12)?,
        );
        let config = dir.path().join("config");
        fs::create_dir(&config)?;
        let mut objects = workload_entry("client", client.v4(), "client", "v1")
            + &workload_entry("web-v1", server.v4(), "web", "v1")
            + &workload_entry("six-v1", server_v6.v6(), "six", "v1")
            + &service("web", WEB)
            + &service("six", WEB_V6)
            // The client is a service too, which it may call itself.
            + &service("client", "198.18.100.9");
        if !plan.policy.contains("MeshConfig") {
            objects += LOGGED;
        }
        fs::write(config.join("objects.yaml"), objects + plan.policy)?;

        let control_address = SocketAddr::new(control_host.v4(), 15012);
        let mut command = control_host.command(binaries::mesh_control(), User::Root);
        command
            .arg("--config-dir")
            .arg(&config)
            .arg("--ca-dir")
            .arg(dir.path().join("ca"));
        command.args(["--listen", &control_address.to_string(), "--status", "127.0.0.1:15014"]);
        let control = Running::start("mesh-control", dir.path(), command)?;
        eventually("the control plane is ready", || {
            let ready = control_host.within(|| get(SocketAddr::new([127, 0, 0, 1].into(), 15014), "/ready"));
            ready
                .is_ok_and(|ready| ready.is_ok_and(|(status, _)| status == 200))
                .then_some(())
        })?;

        let host = net.host("outside", 20)?;
        let mut known_as = control_address.to_string();
        if plan.by_name {
            crate::resolving::name_server(&host, control_host.v4())?;
            client.etc(
                "resolv.conf",
                &format!("search mesh.example\nnameserver {}\n", host.v4()),
            )?;
            known_as = "control:15012".to_owned();
        }
        let client = Pod::start("client", "client", client, Family::V4, &known_as, &dir)?;
        let known_as = control_address.to_string();
        let server = Pod::start("web-v1", "web", server, Family::V4, &known_as, &dir)?;
        let server_v6 = Pod::start("six-v1", "six", server_v6, Family::V6, &known_as, &dir)?;
        for pod in [&client, &server, &server_v6] {
            pod.wait_ready()?;
        }
        let (http, greeting) = host.within(|| anyhow::Ok((both("outside", HTTP)?, greets(GREETING)?)))??;
        Ok(Self {
            client,
            server,
            server_v6,
            outside: Outside {
                http,
                _greeting: greeting,
                host,
            },
            _control: control,
            control_host,
            net,
            dir,
        })
    }
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

/// Ports 80 (HTTP) and 90 (TCP) of `<name>.default.svc.cluster.local`, at an address.
fn service(name: &str, address: &str) -> String {
    plain::service_entry(name, &[(80, "http", "HTTP", HTTP), (90, "tcp", "TCP", GREETING)])
        + &format!("  addresses: ['{address}']\n")
}

fn both(name: &str, port: u16) -> anyhow::Result<App> {
    App::http_at(name, SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port))
}

fn greets(port: u16) -> anyhow::Result<App> {
    App::tcp_at("hello\n", SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port))
}

impl Pod {
    fn start(
        name: &'static str,
        account: &str,
        host: Host,
        family: Family,
        control: &str,
        dir: &TempDir,
    ) -> anyhow::Result<Self> {
        let apps = host.within(|| anyhow::Ok((both(name, HTTP)?, greets(GREETING)?, both(name, UNDECLARED)?)));
        let (http, greeting, undeclared) = apps??;
        let mut pod = Self {
            name,
            sidecar: None,
            http,
            _greeting: greeting,
            undeclared,
            host,
        };
        pod.intercept(dir, &["--check"])?;
        let token = dir.path().join(format!("{name}.token"));
        fs::write(&token, token_for(account, dir)?)?;
        fs::set_permissions(&token, fs::Permissions::from_mode(0o644))?;
        let address = match family {
            Family::V4 => pod.host.v4(),
            Family::V6 => pod.host.v6(),
        };
        let mut command = pod.host.command(program(dir), User::Proxy);
        command.env("MESH_CAPTURE", "true");
        command.args([
            "--workload",
            name,
            "--service-account",
            account,
            "--address",
            &address.to_string(),
        ]);
        command.args(["--control-plane", control, "--token-file"]).arg(&token);
        pod.sidecar = Some(Running::start(name, dir.path(), command)?);
        Ok(pod)
    }

    fn wait_ready(&self) -> anyhow::Result<()> {
        let ready = || {
            self.local(15021, "/healthz/ready")
                .is_ok_and(|(status, _)| status == 200)
        };
        let waited = eventually(&format!("{} is ready", self.name), || ready().then_some(()));
        waited.with_context(|| self.output())
    }

    /// Runs `mesh-proxy intercept` as the init container does.
    pub fn intercept(&self, dir: &TempDir, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.host.command(program(dir), User::Root);
        finish(command.arg("intercept").args(arguments).output()?)
    }

    fn local(&self, port: u16, path: &str) -> anyhow::Result<(u16, String)> {
        self.host
            .within(|| get(SocketAddr::new([127, 0, 0, 1].into(), port), path))?
    }

    /// What the sidecar has written.
    pub fn output(&self) -> String {
        self.sidecar.as_ref().map(Running::output).unwrap_or_default()
    }

    /// A value of the sidecar's metrics.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&self.local(15090, "/stats/prometheus").unwrap().1, name, labels).unwrap()
    }

    /// Waits for a line of the access log with these members.
    pub fn logged(&self, members: &[(&str, &str)]) -> serde_json::Value {
        let fits = |line: &serde_json::Value| members.iter().all(|(key, value)| line[*key].as_str() == Some(value));
        eventually(&format!("the access log of {} says {members:?}", self.name), || {
            let output = self.output();
            let mut lines = output.lines().filter_map(|line| serde_json::from_str(line).ok());
            lines.find(&fits)
        })
        .with_context(|| self.output())
        .unwrap()
    }
}

fn program(dir: &TempDir) -> PathBuf {
    dir.path().join("mesh-proxy")
}

fn token_for(account: &str, dir: &TempDir) -> anyhow::Result<String> {
    let identity = format!("default/{account}");
    let mut command = Command::new(binaries::mesh_control());
    command.args(["token", "create", "--identity", &identity, "--ttl", "1h", "--ca-dir"]);
    finish(command.arg(dir.path().join("ca")).output()?)
}

pub fn finish(output: Output) -> anyhow::Result<String> {
    if !output.status.success() {
        bail!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A connection from a host, as applications make it.
pub fn connect(host: &Host, address: &str, port: u16) -> std::io::Result<TcpStream> {
    let address = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
    let stream = host
        .within(|| TcpStream::connect_timeout(&address, Duration::from_secs(10)))
        .unwrap()?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

/// A request on a connection to an address, with a host of its own.
pub fn request(host: &Host, address: &str, port: u16, authority: &str, path: &str) -> anyhow::Result<Answer> {
    let mut stream = connect(host, address, port)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n"
    )?;
    read_answer(stream)
}

/// A server that speaks first is heard, and then echoes.
pub fn greeted(host: &Host, address: &str, port: u16) -> anyhow::Result<()> {
    let mut stream = connect(host, address, port)?;
    let mut greeting = [0; 6];
    stream.read_exact(&mut greeting)?;
    anyhow::ensure!(&greeting == b"hello\n", "another greeting");
    ping(&mut stream, b"there and back")
}

/// A connection that is closed without a byte, or refused.
pub fn closed(host: &Host, address: &str, port: u16) -> bool {
    let Ok(mut stream) = connect(host, address, port) else {
        return true;
    };
    let _ = stream.write_all(b"anything\r\n\r\n");
    matches!(stream.read(&mut [0; 64]), Ok(0))
        || stream.take_error().is_ok_and(|error| error.is_some())
        || stream.peer_addr().is_err()
}
