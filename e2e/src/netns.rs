//! Test hosts in network namespaces: a switch, and hosts behind it with addresses of both families, as pods have them.
//! Needs root and `ip` and `setpriv`; [`available`] says loudly when they are missing.
//!
//! Everything that is added is deleted with the value, and what an earlier run of the tests left behind when it was killed
//! is deleted before.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::plain::Running;

/// Names of all namespaces begin so; the process id follows.
const PREFIX: &str = "mesh-e2e-";

/// Whether this machine lets the tests have network namespaces. Says why not.
#[must_use]
pub fn available() -> bool {
    let missing = missing();
    if let Some(reason) = &missing {
        eprintln!("SKIPPED: tests in network namespaces {reason}");
    }
    missing.is_none()
}

fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("need root".to_owned());
    }
    for (program, argument) in [("ip", "-V"), ("setpriv", "--version")] {
        if Command::new(program).arg(argument).output().is_err() {
            return Some(format!("need the program {program} (packages iproute2 and util-linux)"));
        }
    }
    let probe = format!("{PREFIX}{}-probe", std::process::id());
    static ONCE: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    ONCE.get_or_init(|| {
        sweep();
        match ip(&["netns", "add", &probe]) {
            Ok(()) => {
                delete(&probe);
                None
            }
            Err(error) => Some(format!("are not allowed here: {error:#}")),
        }
    })
    .clone()
}

/// Deletes what test processes left behind that are gone.
fn sweep() {
    let Ok(names) = fs::read_dir("/run/netns") else { return };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            delete(&name);
        }
    }
}

fn delete(name: &str) {
    let _ = ip(&["netns", "del", name]);
    let _ = fs::remove_dir_all(Path::new("/etc/netns").join(name));
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output()?;
    if !output.status.success() {
        bail!(
            "ip {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// A switch and its hosts.
pub struct Net {
    prefix: String,
    switch: Host,
}

/// A host: a network namespace with one interface `eth0` on the switch, and loopback.
pub struct Host {
    name: String,
    /// Its number: the last part of its addresses.
    number: u8,
}

/// Whom a process runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// As the sidecar does.
    Proxy,
    /// As applications do.
    Application,
    /// With all capabilities.
    Root,
}

impl Net {
    /// A switch without hosts.
    ///
    /// # Errors
    /// When namespaces cannot be made.
    pub fn new() -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{PREFIX}{}-{count}", std::process::id());
        let switch = Host::add(format!("{prefix}-switch"), 0)?;
        let net = Self { prefix, switch };
        net.switch.ip(&["link", "add", "br0", "type", "bridge"])?;
        net.switch.ip(&["link", "set", "br0", "up"])?;
        Ok(net)
    }

    /// Adds a host with the addresses 198.18.0.`number` and 2001:db8::`number`, and routes to everywhere.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn host(&self, name: &str, number: u8) -> anyhow::Result<Host> {
        let host = Host::add(format!("{}-{name}", self.prefix), number)?;
        let port = format!("p{number}");
        let switch = &self.switch.name;
        ip(&[
            "-n", switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &host.name,
        ])?;
        self.switch.ip(&["link", "set", &port, "master", "br0", "up"])?;
        host.ip(&["addr", "add", &format!("{}/24", host.v4()), "dev", "eth0"])?;
        host.ip(&["addr", "add", &format!("{}/64", host.v6()), "dev", "eth0", "nodad"])?;
        host.ip(&["link", "set", "eth0", "up"])?;
        host.ip(&["route", "add", "default", "dev", "eth0"])?;
        host.ip(&["-6", "route", "add", "default", "dev", "eth0"])?;
        Ok(host)
    }

    /// Writes down what passes between hosts, headers and bytes, until the value goes. `None` without tcpdump.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn listen_in(&self, dir: &Path) -> anyhow::Result<Option<Wiretap>> {
        if Command::new("tcpdump").arg("--version").output().is_err() {
            eprintln!("SKIPPED: looking at the wire needs the program tcpdump");
            return Ok(None);
        }
        let file = dir.join("wire.pcap");
        let mut command = self.switch.command("tcpdump", User::Root);
        command
            .args(["-i", "br0", "-s", "0", "-U", "--immediate-mode", "-Z", "root", "-w"])
            .arg(&file)
            .arg("tcp");
        let process = Running::start("tcpdump", dir, command)?;
        crate::plain::eventually("tcpdump listens", || {
            process.output().contains("listening on").then_some(())
        })?;
        Ok(Some(Wiretap { process, file }))
    }
}

/// What passes on the wire.
pub struct Wiretap {
    process: Running,
    file: PathBuf,
}

impl Wiretap {
    /// Everything that has passed, once it holds `last`.
    ///
    /// # Errors
    /// When `last` does not come.
    pub fn until(self, last: &[u8]) -> anyhow::Result<Vec<u8>> {
        let seen = crate::plain::eventually("the wire carries what the test sent last", || {
            let seen = fs::read(&self.file).ok()?;
            holds(&seen, last).then_some(seen)
        });
        drop(self.process);
        seen
    }
}

/// Whether bytes occur in others.
#[must_use]
pub fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

impl Host {
    fn add(name: String, number: u8) -> anyhow::Result<Self> {
        ip(&["netns", "add", &name])?;
        let host = Self { name, number };
        host.ip(&["link", "set", "lo", "up"])?;
        Ok(host)
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn v4(&self) -> IpAddr {
        Ipv4Addr::new(198, 18, 0, self.number).into()
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn v6(&self) -> IpAddr {
        // Its digits are those of the IPv4 address.
        let last = u16::from_str_radix(&self.number.to_string(), 16).unwrap_or_default();
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into()
    }

    /// Runs `ip` in it.
    ///
    /// # Errors
    /// With what it says.
    pub fn ip(&self, arguments: &[&str]) -> anyhow::Result<()> {
        ip(&[&["-n", &self.name], arguments].concat())
    }

    /// Files that processes of this host see in place of those of the same name in `/etc`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn etc(&self, file: &str, text: &str) -> anyhow::Result<()> {
        let directory = Path::new("/etc/netns").join(&self.name);
        fs::create_dir_all(&directory)?;
        Ok(fs::write(directory.join(file), text)?)
    }

    /// A command that runs in it, and ends with this process.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>, user: User) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "setpriv", "--pdeathsig=KILL"]);
        if let Some(id) = user.id() {
            command.args([
                format!("--reuid={id}"),
                format!("--regid={id}"),
                "--clear-groups".to_owned(),
            ]);
        }
        command.arg(program);
        command
    }

    /// Runs a function on a thread that lives in it: sockets that it makes belong there, those of its threads too.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn within<T: Send>(&self, run: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let namespace = File::open(Path::new("/run/netns").join(&self.name))?;
        let joined = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .with_context(|| format!("cannot enter {}", self.name))?;
                Ok(run())
            });
            thread.join()
        });
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl User {
    fn id(self) -> Option<u32> {
        match self {
            Self::Proxy => Some(1337),
            Self::Application => Some(1000),
            Self::Root => None,
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        delete(&self.name);
    }
}
