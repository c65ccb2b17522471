//! Into how many parts the endpoints of a service are split for proxies, and which endpoint is in which part: so that one
//! endpoint's change re-sends one part.

use std::hash::BuildHasher;

/// Endpoints that a part holds on average when a service is at the brink of another doubling of its parts.
const SIZE: usize = 48;

/// The most parts of a service; a power of two.
pub const MAX: usize = 4096;

/// Number of parts for so many endpoints: a power of two.
#[must_use]
pub fn number(endpoints: usize) -> usize {
    endpoints.div_ceil(SIZE).clamp(1, MAX).next_power_of_two()
}

/// The part of so many that an endpoint is in.
#[must_use]
pub fn of(endpoint: &str, parts: usize) -> usize {
    let hash = foldhash::quality::FixedState::with_seed(0x736c_6963).hash_one(endpoint);
    usize::try_from(hash % parts.max(1) as u64).unwrap_or_default()
}

/// The parts that an endpoint is in, for every number of parts that there can be: number, part.
pub fn all(endpoint: &str) -> impl Iterator<Item = (usize, usize)> {
    let finest = of(endpoint, MAX);
    let numbers = std::iter::successors(Some(1), |parts| (*parts < MAX).then_some(parts * 2));
    numbers.map(move |parts| (parts, finest % parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_double() {
        let rows = [
            (0, 1),
            (1, 1),
            (48, 1),
            (49, 2),
            (97, 4),
            (10_000, 256),
            (10_000_000, MAX),
        ];
        for (endpoints, parts) in rows {
            assert_eq!(number(endpoints), parts, "{endpoints}");
        }
    }

    #[test]
    fn an_endpoint_is_in_one_part_of_each_number() {
        for endpoint in ["", "reviews-v1-abc", "198.18.0.1"] {
            let all: Vec<_> = all(endpoint).collect();
            assert_eq!(all.len(), 13);
            assert!(all.iter().all(|(parts, part)| of(endpoint, *parts) == *part));
        }
    }
}
