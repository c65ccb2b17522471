//! Transparent capture on real packets: hosts in network namespaces, `mesh-proxy intercept` as the init container runs it,
//! sidecars as uid 1337, applications that know nothing of any of it. Needs root; says so and skips otherwise.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod world;

mod exclusions;
mod inbound;
mod outbound;
mod resolving;
mod rules;
