//! Rings: agreement between proxies, even shares, and little movement when endpoints come and go.

use proptest::prelude::*;

use super::*;
use crate::upstream::testing::addresses;

fn members(count: u16) -> Vec<(SocketAddr, u32)> {
    addresses(count).into_iter().map(|address| (address, 1)).collect()
}

fn hashes() -> impl Iterator<Item = u64> {
    (0_u64..20_000).map(|key| xxh64(&key.to_le_bytes(), 0))
}

/// Every point looked at, nothing sorted or searched.
fn naive(members: &[(SocketAddr, u32)], copies: u32, hash: u64) -> SocketAddr {
    let points = members.iter().flat_map(|(address, _)| {
        (0..copies).map(move |copy| {
            (
                xxh64(format!("{address}_{copy}").as_bytes(), 0).wrapping_sub(hash),
                *address,
            )
        })
    });
    points.min().unwrap().1
}

#[test]
fn a_ring_is_that_of_the_addresses_alone() {
    let members = members(5);
    // 1024 points for five: 205 each.
    let ring = Ring::new(&members, 1024);
    for hash in hashes().take(200) {
        let found = ring.find(hash, |_| true).unwrap();
        assert_eq!(members[found].0, naive(&members, 205, hash));
    }
}

#[test]
fn little_moves_when_an_endpoint_leaves_or_joins() {
    let all = members(10);
    let (before, after) = (Ring::new(&all, 4096), Ring::new(&all[..9], 4096));
    let mut moved = 0;
    for hash in hashes() {
        let (old, new) = (
            before.find(hash, |_| true).unwrap(),
            after.find(hash, |_| true).unwrap(),
        );
        if old != new {
            moved += 1;
        }
    }
    // A tenth has to move. The others get a ninth more points each, as Envoy's do, to keep the ring's size.
    assert!((1_600..4_000).contains(&moved), "{moved} of 20000 moved");
}

#[test]
fn an_ejected_endpoint_leaves_the_others_alone() {
    let ring = Ring::new(&members(10), 1024);
    for hash in hashes() {
        let found = ring.find(hash, |_| true).unwrap();
        let without = ring.find(hash, |index| index != 3).unwrap();
        assert!(if found == 3 { without != 3 } else { without == found });
    }
}

#[test]
fn sizes() {
    for (weights, minimum, points) in [
        (&[1, 1][..], 1024, 1024),
        (&[1, 1, 1], 1024, 1026),
        // The lighter one has a whole number of points, and so has the heavier.
        (&[1, 3], 1024, 1024),
        (&[1, 2], 10, 12),
        // More endpoints than points: each has one.
        (&[1; 50], 10, 50),
        (&[], 1024, 0),
        (&[1], 0, 1),
    ] {
        let members: Vec<_> = addresses(weights.len() as u16)
            .into_iter()
            .zip(weights.iter().copied())
            .collect();
        assert_eq!(
            Ring::new(&members, minimum).points.len(),
            points,
            "{weights:?} {minimum}"
        );
    }
    // As far apart as can be: bounded, and nobody is left out.
    let extreme = [(addresses(1)[0], 1), (addresses(2)[1], u32::MAX)];
    let ring = Ring::new(&extreme, 1024);
    assert!(ring.points.len() <= 131_073);
    assert!(ring.points.iter().any(|(_, index)| *index == 0));
}

proptest! {
    #[test]
    fn the_next_allowed_point_is_found(count in 1_u16..20, forbidden in prop::collection::vec(any::<bool>(), 20), hash in any::<u64>()) {
        let members = members(count);
        let ring = Ring::new(&members, 64);
        let allowed = |index: usize| !forbidden[index];
        let naive = ring.points.iter().filter(|(_, index)| allowed(*index as usize)).min_by_key(|(point, _)| point.wrapping_sub(hash));
        prop_assert_eq!(ring.find(hash, allowed), naive.map(|(_, index)| *index as usize));
    }
}
