//! The ring of consistent hashing.
//!
//! Endpoints are placed on a circle of 64-bit hashes, as many times as their weight asks; a request goes to the next
//! endpoint after its own hash. Places depend on addresses alone, so all proxies agree and restarts change nothing; they
//! are those of Envoy (xxHash64 of `address_index`).

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::hash::xxh64;

/// Most points of a ring (2 MB), unless there are more endpoints. Weights further apart than it can show are rounded.
const POINTS_MOST: f64 = 131_072.0;

#[derive(Debug)]
pub(super) struct Ring {
    /// Hash and index of the endpoint, by hash.
    points: Vec<(u64, u32)>,
    members: usize,
}

impl Ring {
    pub(super) fn new(members: &[(SocketAddr, u32)], minimum: u32) -> Self {
        let total: f64 = members.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let share = |weight: u32| f64::from(weight) / total;
        let least = members.iter().map(|(_, weight)| share(*weight)).fold(1.0, f64::min);
        // Enough points that the lightest endpoint has a whole number of them.
        let scale = ((least * f64::from(minimum.max(1))).ceil() / least).min(POINTS_MOST);
        let mut points = Vec::new();
        let mut target = 0.0;
        let mut placed = 0.0;
        let mut key = String::new();
        for (index, (address, weight)) in members.iter().enumerate() {
            target += scale * share(*weight);
            let mut copy = 0_u32;
            while placed < target || copy == 0 {
                key.clear();
                // Writing to a string does not fail.
                let _ = write!(key, "{address}_{copy}");
                points.push((xxh64(key.as_bytes(), 0), u32::try_from(index).unwrap_or(u32::MAX)));
                copy += 1;
                placed += 1.0;
            }
        }
        points.sort_unstable();
        Self {
            points,
            members: members.len(),
        }
    }

    /// The first allowed endpoint at or after a hash.
    pub(super) fn find(&self, hash: u64, allowed: impl Fn(usize) -> bool) -> Option<usize> {
        let start = self.points.partition_point(|(point, _)| *point < hash);
        let mut refused = smallvec::SmallVec::<[u32; 16]>::new();
        let (before, after) = self.points.split_at(start);
        for (_, index) in after.iter().chain(before) {
            if refused.contains(index) {
                continue;
            }
            if allowed(*index as usize) {
                return Some(*index as usize);
            }
            refused.push(*index);
            if refused.len() == self.members {
                break;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
