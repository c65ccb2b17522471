//! The address `::6` on the loopback interface: where the sidecar's IPv6 connections to the application come from, as
//! those over IPv4 come from 127.0.0.6, which needs no such thing.

use std::net::Ipv6Addr;

use super::InterceptError;
use super::netlink::{Conversation, HEADER, Part};

/// Source of connections to the application.
const ADDRESS: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
/// The loopback interface is the first of every network namespace.
const LOOPBACK_INDEX: u32 = 1;

const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const REQUEST_ACKNOWLEDGED: u16 = 0x1 | 0x4;
const CREATE_OR_REPLACE: u16 = 0x400 | 0x100;
const AF_INET6: u8 = 10;
/// Duplicates cannot be on loopback.
const NO_DETECTION: u8 = 0x02;
/// Of the host only.
const SCOPE_HOST: u8 = 254;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// Adds the address, unless IPv6 is off; says whether it is on.
pub(super) fn add() -> Result<bool, InterceptError> {
    let what = "adding the address ::6 to the loopback interface";
    if !enabled() {
        return Ok(false);
    }
    exchange(what, NEW_ADDRESS, REQUEST_ACKNOWLEDGED | CREATE_OR_REPLACE)?;
    Ok(true)
}

/// Removes the address, if it is there.
pub(super) fn remove() -> Result<(), InterceptError> {
    let what = "removing the address ::6 from the loopback interface";
    if !enabled() {
        return Ok(());
    }
    match exchange(what, DELETE_ADDRESS, REQUEST_ACKNOWLEDGED) {
        Err(InterceptError::Kernel { source, .. })
            if rustix::io::Errno::from_io_error(&source) == Some(rustix::io::Errno::ADDRNOTAVAIL) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn enabled() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6").is_ok_and(|text| text.trim() == "0")
}

fn exchange(what: &'static str, kind: u16, flags: u16) -> Result<(), InterceptError> {
    let conversation = Conversation::open(Part::Routing, what)?;
    conversation.send(&message(kind, flags))?;
    conversation.acknowledged(1)
}

/// `nlmsghdr`, `ifaddrmsg`, and the address twice (rtnetlink(7)).
fn message(kind: u16, flags: u16) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes.extend([AF_INET6, 128, NO_DETECTION, SCOPE_HOST]);
    bytes.extend(LOOPBACK_INDEX.to_ne_bytes());
    for attribute in [IFA_LOCAL, IFA_ADDRESS] {
        bytes.extend(20u16.to_ne_bytes());
        bytes.extend(attribute.to_ne_bytes());
        bytes.extend(ADDRESS.octets());
    }
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes[0..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes[8..12].copy_from_slice(&1u32.to_ne_bytes());
    bytes
}
