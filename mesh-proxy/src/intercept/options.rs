//! What is captured and what is not: the settings of Istio's annotations.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;

/// Ports and ranges whose connections the sidecar takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Ports of the pod whose connections pass the sidecar: `*`, or a list; empty captures nothing inbound.
    #[arg(
        long,
        env = "MESH_INTERCEPT_INBOUND_PORTS",
        default_value = "*",
        value_name = "PORTS"
    )]
    pub inbound_ports: Ports,

    /// Ports of the pod that are left alone, beside the sidecar's own.
    #[arg(
        long,
        env = "MESH_INTERCEPT_EXCLUDE_INBOUND_PORTS",
        default_value = "",
        value_name = "PORTS"
    )]
    pub exclude_inbound_ports: Ports,

    /// Destination ports that are captured whatever the ranges say.
    #[arg(
        long,
        env = "MESH_INTERCEPT_OUTBOUND_PORTS",
        default_value = "",
        value_name = "PORTS"
    )]
    pub outbound_ports: Ports,

    /// Destination ports that are left alone.
    #[arg(
        long,
        env = "MESH_INTERCEPT_EXCLUDE_OUTBOUND_PORTS",
        default_value = "",
        value_name = "PORTS"
    )]
    pub exclude_outbound_ports: Ports,

    /// Destinations that are captured: `*`, or ranges; empty captures none but those of --outbound-ports.
    #[arg(
        long,
        env = "MESH_INTERCEPT_OUTBOUND_RANGES",
        default_value = "*",
        value_name = "CIDRS"
    )]
    pub outbound_ranges: Ranges,

    /// Destinations that are left alone.
    #[arg(
        long,
        env = "MESH_INTERCEPT_EXCLUDE_OUTBOUND_RANGES",
        default_value = "",
        value_name = "CIDRS"
    )]
    pub exclude_outbound_ranges: Ranges,

    /// Interfaces whose traffic is left alone, both ways.
    #[arg(
        long,
        env = "MESH_INTERCEPT_EXCLUDE_INTERFACES",
        value_delimiter = ',',
        value_name = "NAMES"
    )]
    pub exclude_interfaces: Vec<Interface>,

    /// User of the sidecar, whose connections are its own.
    #[arg(long, env = "MESH_INTERCEPT_PROXY_UID", default_value_t = 1337)]
    pub proxy_uid: u32,

    /// Group of the sidecar, whose connections are its own.
    #[arg(long, env = "MESH_INTERCEPT_PROXY_GID", default_value_t = 1337)]
    pub proxy_gid: u32,

    /// Where the sidecar takes connections of the application.
    #[arg(long, env = "MESH_INTERCEPT_OUTBOUND_PORT", default_value_t = 15001, value_parser = clap::value_parser!(u16).range(1..))]
    pub outbound_port: u16,

    /// Where the sidecar takes connections to the application.
    #[arg(long, env = "MESH_INTERCEPT_INBOUND_PORT", default_value_t = 15006, value_parser = clap::value_parser!(u16).range(1..))]
    pub inbound_port: u16,

    /// Read the rules back afterwards, and fail if they are not what was asked for.
    #[arg(long, env = "MESH_INTERCEPT_CHECK")]
    pub check: bool,

    /// Remove the rules instead.
    #[arg(long, env = "MESH_INTERCEPT_CLEAN")]
    pub clean: bool,
}

/// Ports: `*`, or a list such as `80,8080`. Empty is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// `*`
    All,
    /// These.
    Only(BTreeSet<u16>),
}

/// Destinations: `*`, or a list of ranges of either family. Empty is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ranges {
    /// `*`
    All,
    /// These, with host bits cleared.
    Only(BTreeSet<IpNet>),
}

/// Name of a network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface(String);

impl Interface {
    /// As the kernel compares it: padded with zeros.
    pub(super) fn padded(&self) -> [u8; 16] {
        let mut padded = [0; 16];
        for (to, from) in padded.iter_mut().zip(self.0.bytes()) {
            *to = from;
        }
        padded
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Interface {
    type Err = String;

    /// Up to 15 bytes without `/` or blanks, as the kernel wants names.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.trim();
        let valid = (1..=15).contains(&name.len()) && !name.bytes().any(|b| b == b'/' || b.is_ascii_whitespace());
        if valid {
            Ok(Self(name.to_owned()))
        } else {
            Err(format!("`{text}` is not the name of an interface"))
        }
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim() == "*" {
            return Ok(Self::All);
        }
        let port = |text: &str| {
            let port = text.parse().ok().filter(|port| *port != 0);
            port.ok_or_else(|| format!("`{text}` is not a port: expected 1 to 65535, as in 80,8080, or *"))
        };
        Ok(Self::Only(items(text).map(port).collect::<Result<_, _>>()?))
    }
}

impl FromStr for Ranges {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim() == "*" {
            return Ok(Self::All);
        }
        let range = |text: &str| {
            let range = match text.parse::<std::net::IpAddr>() {
                Ok(address) => Ok(IpNet::from(address)),
                Err(_) => text.parse::<IpNet>(),
            };
            range
                .map(|range| range.trunc())
                .map_err(|_| format!("`{text}` is not a range of addresses, such as 198.18.0.0/15, nor *"))
        };
        Ok(Self::Only(items(text).map(range).collect::<Result<_, _>>()?))
    }
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}
