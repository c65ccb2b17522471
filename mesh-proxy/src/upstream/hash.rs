//! What consistent hashing hashes of a request.
//!
//! The hash is xxHash64 with seed 0, as Envoy's: the same request lands on the same endpoint behind either proxy.

use std::net::IpAddr;
use std::time::Duration;

use http::header::COOKIE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue};
use mesh_api::model::{HashKey, HashPolicy};

/// A request's place on the ring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hashed {
    /// The hash; `None` when the request has nothing to hash and goes anywhere.
    pub hash: Option<u64>,
    /// `set-cookie` of a generated cookie, for the response.
    pub set_cookie: Option<HeaderValue>,
}

/// Hashes what the policy names. A cookie with a lifetime that the request lacks is generated.
#[must_use]
pub fn hash_of(policy: &HashPolicy, request: &Parts, client: IpAddr) -> Hashed {
    let just = |hash| Hashed { hash, set_cookie: None };
    match &policy.key {
        HashKey::Header(name) => just(header_hash(&request.headers, name)),
        HashKey::SourceIp => just(Some(text_hash(&client.to_canonical().to_string()))),
        HashKey::QueryParameter(name) => just(
            request
                .uri
                .query()
                .and_then(|query| parameter(query, name))
                .map(text_hash),
        ),
        HashKey::Cookie { name, path, ttl } => match cookie(&request.headers, name) {
            Some(value) => just(Some(xxh64(value, 0))),
            None => ttl.map(|ttl| generated(name, path.as_deref(), ttl)).unwrap_or_default(),
        },
    }
}

fn text_hash(text: &str) -> u64 {
    xxh64(text.as_bytes(), 0)
}

/// Several values of a header are hashed together, in sorted order.
fn header_hash(headers: &HeaderMap, name: &str) -> Option<u64> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    let Some(second) = values.next() else {
        return Some(xxh64(first.as_bytes(), 0));
    };
    let mut all = vec![first.as_bytes(), second.as_bytes()];
    all.extend(values.map(HeaderValue::as_bytes));
    all.sort_unstable();
    Some(all.iter().fold(0, |seed, value| xxh64(value, seed)))
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let cookies = headers.get_all(COOKIE).iter();
    cookies
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b';'))
        .find_map(|pair| {
            let pair = pair.trim_ascii();
            let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
            Some(unquoted.unwrap_or(value)).filter(|value| !value.is_empty())
        })
}

fn generated(name: &str, path: Option<&str>, ttl: Duration) -> Hashed {
    let value = format!("{:016x}", fastrand::u64(..));
    let mut cookie = format!("{name}=\"{value}\"");
    if !ttl.is_zero() {
        cookie.push_str(&format!("; Max-Age={}", ttl.as_secs().max(1)));
    }
    if let Some(path) = path {
        cookie.push_str("; Path=");
        cookie.push_str(path);
    }
    cookie.push_str("; HttpOnly");
    Hashed {
        hash: Some(text_hash(&value)),
        set_cookie: HeaderValue::try_from(cookie).ok(),
    }
}

const PRIMES: [u64; 5] = [
    0x9E37_79B1_85EB_CA87,
    0xC2B2_AE3D_27D4_EB4F,
    0x1656_67B1_9E37_79F9,
    0x85EB_CA77_C2B2_AE63,
    0x27D4_EB2F_1656_67C5,
];

/// xxHash64 (<https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>).
pub(super) fn xxh64(input: &[u8], seed: u64) -> u64 {
    let [p1, p2, p3, p4, p5] = PRIMES;
    let round = |lane: u64, word: u64| {
        lane.wrapping_add(word.wrapping_mul(p2))
            .rotate_left(31)
            .wrapping_mul(p1)
    };
    let (stripes, mut rest) = input.as_chunks::<32>();
    let mut hash = if stripes.is_empty() {
        seed.wrapping_add(p5)
    } else {
        let mut lanes = [
            seed.wrapping_add(p1).wrapping_add(p2),
            seed.wrapping_add(p2),
            seed,
            seed.wrapping_sub(p1),
        ];
        for stripe in stripes {
            for (lane, word) in lanes.iter_mut().zip(stripe.as_chunks::<8>().0) {
                *lane = round(*lane, u64::from_le_bytes(*word));
            }
        }
        let [a, b, c, d] = lanes;
        let mixed = a
            .rotate_left(1)
            .wrapping_add(b.rotate_left(7))
            .wrapping_add(c.rotate_left(12))
            .wrapping_add(d.rotate_left(18));
        lanes.iter().fold(mixed, |hash, lane| {
            (hash ^ round(0, *lane)).wrapping_mul(p1).wrapping_add(p4)
        })
    };
    hash = hash.wrapping_add(input.len() as u64);
    while let Some((word, after)) = rest.split_first_chunk::<8>() {
        hash ^= round(0, u64::from_le_bytes(*word));
        hash = hash.rotate_left(27).wrapping_mul(p1).wrapping_add(p4);
        rest = after;
    }
    if let Some((word, after)) = rest.split_first_chunk::<4>() {
        hash ^= u64::from(u32::from_le_bytes(*word)).wrapping_mul(p1);
        hash = hash.rotate_left(23).wrapping_mul(p2).wrapping_add(p3);
        rest = after;
    }
    for byte in rest {
        hash ^= u64::from(*byte).wrapping_mul(p5);
        hash = hash.rotate_left(11).wrapping_mul(p1);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(p2);
    hash = (hash ^ (hash >> 29)).wrapping_mul(p3);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests;
