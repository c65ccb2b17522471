//! Addresses that the cluster owns: ranges where they are known, and around every address that is seen outside of them.
//!
//! All proxies hold these, so they must change seldom: an address that is seen counts for its whole block. To own more
//! than there is costs a question to the control plane, and lets nothing through that should not pass.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// Blocks of pods and services that are seen.
const BLOCK_V4: u8 = 24;
const BLOCK_V6: u8 = 112;

/// What says that a range is the cluster's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A Node: those of its pods.
    Node(Arc<str>),
    /// A ServiceCIDR: those of services.
    ServiceCidr(Arc<str>),
    /// How the control plane was started.
    Settings,
}

/// Ranges of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Ranges {
    known: BTreeMap<Origin, Vec<IpNet>>,
    /// Blocks that are seen, with how many addresses are in them.
    seen: HashMap<IpNet, usize>,
}

impl Ranges {
    /// Takes in what an origin says, in place of what it said before. Whether anything changed.
    pub fn put(&mut self, origin: Origin, ranges: Vec<IpNet>) -> bool {
        if ranges.is_empty() {
            return self.known.remove(&origin).is_some();
        }
        let old = self.known.insert(origin, ranges.clone());
        old.is_none_or(|old| old != ranges)
    }

    /// Notes that an address is used. Whether that changes what is owned.
    pub fn enter(&mut self, address: IpAddr) -> bool {
        let block = block(address);
        let count = self.seen.entry(block).or_default();
        *count += 1;
        *count == 1 && !self.is_known(&block)
    }

    /// Notes that a use of an address has ended. Whether that changes what is owned.
    pub fn leave(&mut self, address: IpAddr) -> bool {
        let block = block(address);
        let Some(count) = self.seen.get_mut(&block) else {
            return false;
        };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.seen.remove(&block);
        !self.is_known(&block)
    }

    /// All ranges, with repetitions and in no particular order.
    pub fn all(&self) -> impl Iterator<Item = IpNet> {
        let seen = self.seen.keys().filter(|block| !self.is_known(block));
        self.known.values().flatten().chain(seen).copied()
    }

    fn is_known(&self, block: &IpNet) -> bool {
        self.known.values().flatten().any(|range| range.contains(block))
    }
}

fn block(address: IpAddr) -> IpNet {
    let length = if address.is_ipv4() { BLOCK_V4 } else { BLOCK_V6 };
    IpNet::new(address, length).unwrap_or(IpNet::from(address)).trunc()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn all(ranges: &Ranges) -> Vec<String> {
        let mut all: Vec<_> = ranges.all().map(|range| range.to_string()).collect();
        all.sort();
        all
    }

    #[test]
    fn addresses_count_for_their_block_until_the_last_is_gone() {
        let mut ranges = Ranges::default();
        assert!(ranges.enter(ip("198.18.3.4")));
        assert!(!ranges.enter(ip("198.18.3.5")));
        assert!(ranges.enter(ip("2001:db8::5")));
        assert_eq!(all(&ranges), ["198.18.3.0/24", "2001:db8::/112"]);
        assert!(!ranges.leave(ip("198.18.3.4")));
        assert!(ranges.leave(ip("198.18.3.5")));
        assert!(!ranges.leave(ip("198.18.9.9")), "never seen");
        assert_eq!(all(&ranges), ["2001:db8::/112"]);
    }

    #[test]
    fn known_ranges_make_what_is_seen_in_them_irrelevant() {
        let mut ranges = Ranges::default();
        let node = || Origin::Node("a".into());
        assert!(ranges.put(node(), vec!["198.18.0.0/16".parse().unwrap()]));
        assert!(!ranges.put(node(), vec!["198.18.0.0/16".parse().unwrap()]));
        assert!(!ranges.enter(ip("198.18.3.4")));
        assert!(ranges.enter(ip("198.19.3.4")));
        assert_eq!(all(&ranges), ["198.18.0.0/16", "198.19.3.0/24"]);
        assert!(!ranges.leave(ip("198.18.3.4")));
        ranges.enter(ip("198.18.3.4"));
        assert!(ranges.put(node(), Vec::new()));
        assert_eq!(all(&ranges), ["198.18.3.0/24", "198.19.3.0/24"], "what is seen stays");
    }
}
