//! What passes on the wire: all frames of a network namespace, searched for texts that ought to be encrypted.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read as _};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

/// Frames of every protocol, in the byte order of the network.
const ETH_P_ALL: u16 = 0x0003_u16.to_be();
/// Longest frame, with segments joined by the kernel.
const FRAME_MOST: usize = 1 << 17;
/// Pairs of addresses that are told.
const TOLD: usize = 10;
/// How long one read waits.
const TURN: Duration = Duration::from_millis(100);

/// A look at the wire. Needs CAP_NET_RAW.
#[derive(Clone, Debug, Args)]
pub struct WireArgs {
    /// Texts to look for. Repeatable.
    #[arg(long = "text", required = true)]
    pub texts: Vec<String>,
    /// Only TCP frames from or to this port.
    #[arg(long)]
    pub port: Option<u16>,
    /// Seconds.
    #[arg(long = "for", default_value_t = 5.0)]
    pub duration: f64,
}

/// Reads frames for a while; prints how many there were, in how many each text was, and
/// between whom.
///
/// # Errors
/// When frames may not be read.
pub fn run(args: &WireArgs) -> anyhow::Result<()> {
    let mut socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(ETH_P_ALL))))
        .context("reading frames needs CAP_NET_RAW")?;
    socket.set_read_timeout(Some(TURN))?;
    println!("{}", json!({ "listening": true }));
    let end = Instant::now() + Duration::from_secs_f64(args.duration);
    let mut buffer = vec![0; FRAME_MOST];
    let mut frames = 0_u64;
    let mut found: BTreeMap<&str, u64> = args.texts.iter().map(|text| (text.as_str(), 0)).collect();
    let mut between = BTreeSet::new();
    while Instant::now() < end {
        let length = match socket.read(&mut buffer) {
            Ok(length) => length,
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let frame = &buffer[..length];
        if args.port.is_some_and(|port| !concerns(frame, port)) {
            continue;
        }
        frames += 1;
        for (text, count) in &mut found {
            if frame.windows(text.len()).any(|window| window == text.as_bytes()) {
                *count += 1;
                if between.len() < TOLD {
                    between.insert(ends(frame));
                }
            }
        }
    }
    println!("{}", json!({ "frames": frames, "found": found, "between": between }));
    Ok(())
}

/// Who talks to whom in a frame, where it is IPv4.
fn ends(frame: &[u8]) -> String {
    let (Some([0x08, 0x00]), Some(addresses), Some(first)) = (frame.get(12..14), frame.get(26..34), frame.get(14))
    else {
        return "not IPv4".to_owned();
    };
    let segment = 14 + usize::from(first & 0x0f) * 4;
    let port = |at: usize| {
        frame
            .get(at..at + 2)
            .map_or(0, |port| u16::from(port[0]) << 8 | u16::from(port[1]))
    };
    let address = |at: usize| {
        addresses[at..at + 4]
            .iter()
            .map(u8::to_string)
            .collect::<Vec<_>>()
            .join(".")
    };
    format!(
        "{}:{} > {}:{}",
        address(0),
        port(segment),
        address(4),
        port(segment + 2)
    )
}

/// Whether an Ethernet frame is TCP over IPv4 or IPv6 with that port at one end.
fn concerns(frame: &[u8], port: u16) -> bool {
    let segment = match frame.get(12..14) {
        Some([0x08, 0x00]) => {
            let Some(first) = frame.get(14) else { return false };
            (frame.get(23) == Some(&6))
                .then(|| frame.get(14 + usize::from(first & 0x0f) * 4..))
                .flatten()
        }
        Some([0x86, 0xdd]) => (frame.get(20) == Some(&6)).then(|| frame.get(54..)).flatten(),
        _ => None,
    };
    let Some([a, b, c, d, ..]) = segment else { return false };
    u16::from_be_bytes([*a, *b]) == port || u16::from_be_bytes([*c, *d]) == port
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_a_port() {
        let mut frame = vec![0; 14 + 20 + 20];
        frame[12] = 0x08;
        frame[14] = 0x45;
        frame[23] = 6;
        frame[34..38].copy_from_slice(&[0x1f, 0x90, 0x00, 0x50]);
        assert!(concerns(&frame, 8080) && concerns(&frame, 80));
        assert!(!concerns(&frame, 81));
        frame[23] = 17;
        assert!(!concerns(&frame, 80));
        assert!(!concerns(&[], 80));
    }
}
