//! Redirection of a pod's connections to its sidecar: the `intercept` subcommand, run once in the pod's network
//! namespace by an init container with NET_ADMIN.
//!
//! In come the include and exclude settings that Istio's users know; out goes one nftables table `inet mesh`, put in place
//! in one transaction over netlink, so that a run that fails changes nothing and a second run replaces the first. What the
//! rules say is a plain value ([`rules`]), what the kernel is told is its translation ([`nftables`]). Nothing else of the
//! namespace is touched, but for the address `::6` on the loopback interface, from which the sidecar reaches the
//! application over IPv6.

mod address;
mod netlink;
mod nftables;
mod options;
mod rules;

pub use options::{Interface, Options, Ports, Ranges};

/// Why redirection could not be put in place, checked or removed.
#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    /// Without the capability, the kernel refuses.
    #[error(
        "{0}: operation not permitted; run as root with the capability NET_ADMIN in this network namespace (in a pod: the \
         init container's securityContext.capabilities.add)"
    )]
    NotPermitted(&'static str),
    /// The kernel has no such feature.
    #[error(
        "{what}: the kernel refused ({source}); it must have nf_tables with NAT and redirection for IPv4 and IPv6 (Linux \
         5.2 or later): load the modules nf_tables, nft_chain_nat, nft_redir and nf_conntrack on the node"
    )]
    Unsupported {
        /// What was attempted.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Anything else that the kernel or the netlink socket said.
    #[error("{what}: {source}")]
    Kernel {
        /// What was attempted.
        what: &'static str,
        /// What was said.
        source: std::io::Error,
    },
    /// What netlink answered makes no sense.
    #[error("{what}: the kernel's answer cannot be read: {reason}")]
    Answer {
        /// What was attempted.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The rules in force are not those that the settings make.
    #[error("table inet mesh is not as it should be: {0}; run `mesh-proxy intercept` again with the same settings")]
    Differs(String),
    /// Settings that make more rules than one transaction should hold.
    #[error("these settings make {0} rules, more than {1}: name fewer ports and ranges")]
    TooMany(usize, usize),
}

/// Puts redirection in place, or checks or removes it, as the options say, and prints what was done.
///
/// # Errors
/// When the kernel refuses, or what is in force differs from what was asked for.
pub fn run(options: &Options) -> Result<(), InterceptError> {
    if options.clean {
        nftables::remove()?;
        address::remove()?;
        println!("redirection is removed");
        return Ok(());
    }
    let ruleset = rules::ruleset(options)?;
    // Before the rules: without it, connections of the proxy to the application over IPv6 would be captured again.
    let ipv6 = address::add()?;
    nftables::replace(&ruleset)?;
    if options.check {
        nftables::check(&ruleset)?;
    }
    println!(
        "redirection is in place{}: {} rules in table inet mesh, outbound to {}, inbound to {}{}",
        if options.check { " and checked" } else { "" },
        ruleset.rules.len(),
        options.outbound_port,
        options.inbound_port,
        if ipv6 { "" } else { "; IPv6 is off in this namespace" },
    );
    Ok(())
}

#[cfg(test)]
mod tests;
