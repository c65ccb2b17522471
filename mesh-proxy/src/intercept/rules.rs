//! What is redirected, as a list of rules: Istio's, in Istio's order. The first rule that applies decides; what no rule
//! takes passes untouched. Only TCP is ever redirected, so DNS over UDP is left alone.

use std::fmt;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::InterceptError;
use super::options::{Interface, Options, Ports, Ranges};

/// Rules that one transaction holds at most.
const MAX_RULES: usize = 512;

/// Ports of the sidecar itself: connections to them are never taken for the application's.
pub(super) const OWN_PORTS: [u16; 8] = [15000, 15001, 15006, 15008, 15020, 15021, 15053, 15090];

/// Where the sidecar's connections to the application come from.
const SIDECAR_V4: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 6), 32);
const SIDECAR_V6: Ipv6Net = Ipv6Net::new_assert(std::net::Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6), 128);
const LOOPBACK_V4: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8);
const LOOPBACK_V6: Ipv6Net = Ipv6Net::new_assert(std::net::Ipv6Addr::LOCALHOST, 128);

/// All rules, those of a chain in the order in which they are tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ruleset {
    pub rules: Vec<Rule>,
}

/// A rule: if all conditions hold, the action is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub chain: Chain,
    pub when: Vec<Condition>,
    pub then: Action,
}

/// Where packets are looked at; only the first of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chain {
    /// Connections from outside.
    Prerouting,
    /// Connections of this namespace's processes.
    Output,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Tcp,
    ToPort(u16),
    From(IpNet),
    To(IpNet),
    /// Elsewhere, in the range's own family.
    NotTo(IpNet),
    FromInterface(Interface),
    ToInterface(Interface),
    /// The connection stays in the namespace.
    ThroughLoopback,
    User(u32),
    NotUser(u32),
    Group(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// The connection goes where it wanted to.
    Leave,
    /// To a port of the sidecar.
    Redirect(u16),
}

/// The rules that options make.
pub(super) fn ruleset(options: &Options) -> Result<Ruleset, InterceptError> {
    let mut rules = Vec::new();
    inbound(options, &mut rules);
    outbound(options, &mut rules);
    if rules.len() > MAX_RULES {
        return Err(InterceptError::TooMany(rules.len(), MAX_RULES));
    }
    Ok(Ruleset { rules })
}

fn inbound(options: &Options, rules: &mut Vec<Rule>) {
    use Condition::*;
    let mut add = |when, then| {
        rules.push(Rule {
            chain: Chain::Prerouting,
            when,
            then,
        });
    };
    for interface in &options.exclude_interfaces {
        add(vec![FromInterface(interface.clone())], Action::Leave);
    }
    let own = OWN_PORTS
        .into_iter()
        .chain([options.outbound_port, options.inbound_port]);
    let mut excluded: std::collections::BTreeSet<u16> = own.collect();
    match &options.exclude_inbound_ports {
        Ports::Only(ports) => excluded.extend(ports),
        Ports::All => return,
    }
    match &options.inbound_ports {
        Ports::All => {
            for port in excluded {
                add(vec![Tcp, ToPort(port)], Action::Leave);
            }
            add(vec![Tcp], Action::Redirect(options.inbound_port));
        }
        Ports::Only(included) => {
            for port in included.difference(&excluded) {
                add(vec![Tcp, ToPort(*port)], Action::Redirect(options.inbound_port));
            }
        }
    }
}

fn outbound(options: &Options, rules: &mut Vec<Rule>) {
    use Condition::*;
    let mut add = |when, then| {
        rules.push(Rule {
            chain: Chain::Output,
            when,
            then,
        });
    };
    let (uid, gid) = (options.proxy_uid, options.proxy_gid);
    for interface in &options.exclude_interfaces {
        add(vec![ToInterface(interface.clone())], Action::Leave);
    }
    match &options.exclude_outbound_ports {
        Ports::Only(ports) => ports
            .iter()
            .for_each(|port| add(vec![Tcp, ToPort(*port)], Action::Leave)),
        Ports::All => add(vec![Tcp, NotUser(uid)], Action::Leave),
    }

    // The sidecar's connections to the application.
    for source in [SIDECAR_V4.into(), SIDECAR_V6.into()] {
        add(vec![ThroughLoopback, From(source)], Action::Leave);
    }
    // The sidecar reached for this very pod on behalf of the application: as other peers do, through the inbound side.
    let inbound = Action::Redirect(options.inbound_port);
    for loopback in [LOOPBACK_V4.into(), LOOPBACK_V6.into()] {
        add(vec![ThroughLoopback, User(uid), Tcp, NotTo(loopback)], inbound);
    }
    if !includes_loopback(&options.outbound_ranges) {
        add(vec![ThroughLoopback, NotUser(uid)], Action::Leave);
    }
    add(vec![User(uid)], Action::Leave);
    add(vec![Group(gid)], Action::Leave);
    for loopback in [
        Ipv4Net::new_assert(std::net::Ipv4Addr::LOCALHOST, 32).into(),
        LOOPBACK_V6.into(),
    ] {
        add(vec![To(loopback)], Action::Leave);
    }

    match &options.exclude_outbound_ranges {
        Ranges::Only(ranges) => ranges.iter().for_each(|range| add(vec![To(*range)], Action::Leave)),
        Ranges::All => return,
    }
    let outbound = Action::Redirect(options.outbound_port);
    match &options.outbound_ports {
        Ports::Only(ports) => ports.iter().for_each(|port| add(vec![Tcp, ToPort(*port)], outbound)),
        Ports::All => add(vec![Tcp], outbound),
    }
    match &options.outbound_ranges {
        Ranges::Only(ranges) => ranges.iter().for_each(|range| add(vec![Tcp, To(*range)], outbound)),
        Ranges::All => add(vec![Tcp], outbound),
    }
}

fn includes_loopback(ranges: &Ranges) -> bool {
    match ranges {
        Ranges::All => false,
        Ranges::Only(ranges) => ranges.iter().any(|range| range.network().is_loopback()),
    }
}

impl Chain {
    pub(super) const ALL: [Self; 2] = [Self::Prerouting, Self::Output];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Output => "output",
        }
    }
}

/// As `nft` writes rules.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.when {
            write!(f, "{condition} ")?;
        }
        match self.then {
            Action::Leave => f.write_str("return"),
            Action::Redirect(port) => write!(f, "redirect to :{port}"),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = |range: &IpNet| match range {
            IpNet::V4(_) => "ip",
            IpNet::V6(_) => "ip6",
        };
        match self {
            Self::Tcp => f.write_str("meta l4proto tcp"),
            Self::ToPort(port) => write!(f, "tcp dport {port}"),
            Self::From(range) => write!(f, "{} saddr {range}", family(range)),
            Self::To(range) => write!(f, "{} daddr {range}", family(range)),
            Self::NotTo(range) => write!(f, "{} daddr != {range}", family(range)),
            Self::FromInterface(name) => write!(f, "iifname {name}"),
            Self::ToInterface(name) => write!(f, "oifname {name}"),
            Self::ThroughLoopback => f.write_str("oifname lo"),
            Self::User(id) => write!(f, "meta skuid {id}"),
            Self::NotUser(id) => write!(f, "meta skuid != {id}"),
            Self::Group(id) => write!(f, "meta skgid {id}"),
        }
    }
}
