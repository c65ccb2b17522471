//! A port of a pod on this machine, by `kubectl port-forward`.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

/// A forwarded port; it ends with the value.
pub struct Forward {
    child: Child,
    /// Where it is on this machine.
    pub address: SocketAddr,
}

impl Forward {
    /// Forwards to a port of `pod/NAME`, `deployment/NAME` or `service/NAME`.
    ///
    /// # Errors
    /// When kubectl does not.
    pub fn start(namespace: &str, target: &str, port: u16) -> anyhow::Result<Self> {
        let mut child = Command::new("kubectl")
            .args(["-n", namespace, "port-forward", target, &format!(":{port}")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("kubectl port-forward")?;
        let output = child.stdout.take().context("standard output is a pipe")?;
        let mut forward = Self {
            child,
            address: (Ipv4Addr::LOCALHOST, 0).into(),
        };
        // "Forwarding from 127.0.0.1:40321 -> 15014"
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let port = line
            .split_once("127.0.0.1:")
            .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
            .with_context(|| format!("kubectl port-forward {target} :{port} says {line:?}"))?;
        forward.address.set_port(port);
        Ok(forward)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
