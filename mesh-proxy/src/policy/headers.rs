//! Header operations of routes and legs.
//!
//! A leg's operations are applied before its route's, as Envoy does, in both directions.

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_api::model::{Forward, HeaderOps, HttpRoute, WeightedCluster};

/// Applies the operations on a request: remove, set, add. Returns the authority that they ask for, if any; which of
/// several counts says [`new_authority`].
pub fn apply_request_headers<'o>(ops: &'o HeaderOps, headers: &mut HeaderMap) -> Option<&'o HeaderValue> {
    apply(&ops.request_remove, &ops.request_set, &ops.request_add, headers);
    ops.authority.as_ref()
}

/// Applies the operations on a response: remove, set, add.
pub fn apply_response_headers(ops: &HeaderOps, headers: &mut HeaderMap) {
    apply(&ops.response_remove, &ops.response_set, &ops.response_add, headers);
}

/// The authority that a forwarded request gets, if not its own: `rewrite.authority`, else `host` among the route's
/// header operations, else among the leg's.
#[must_use]
pub fn new_authority<'d>(
    route: &'d HttpRoute,
    forward: &'d Forward,
    leg: &'d WeightedCluster,
) -> Option<&'d HeaderValue> {
    let candidates = [
        &forward.rewrite.authority,
        &route.headers.authority,
        &leg.headers.authority,
    ];
    candidates.into_iter().find_map(Option::as_ref)
}

fn apply(
    remove: &[HeaderName],
    set: &[(HeaderName, HeaderValue)],
    add: &[(HeaderName, HeaderValue)],
    headers: &mut HeaderMap,
) {
    for name in remove {
        headers.remove(name);
    }
    for (name, value) in set {
        headers.insert(name, value.clone());
    }
    for (name, value) in add {
        headers.append(name, value.clone());
    }
}
