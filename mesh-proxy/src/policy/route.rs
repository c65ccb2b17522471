//! Which rule a request takes, and which leg of a split.

use mesh_api::model::{Forward, HeaderMatch, HttpMatch, HttpRoute, TextMatch, WeightedCluster};

use super::RequestView;

/// The rule that a request takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Selected<'d> {
    /// Position in the destination's list.
    pub index: usize,
    /// The rule.
    pub route: &'d HttpRoute,
    /// The entry of its `match` that held; `None` when the rule has none and takes everything. Prefix rewrites need it.
    pub matched: Option<&'d HttpMatch>,
}

/// The first rule that matches; `None` is a 404 with flag `NR`.
#[must_use]
pub fn select_route<'d>(routes: &'d [HttpRoute], request: &RequestView<'_>) -> Option<Selected<'d>> {
    routes.iter().enumerate().find_map(|(index, route)| {
        let matched = match &route.matches[..] {
            [] => None,
            entries => Some(entries.iter().find(|entry| matches(entry, request))?),
        };
        Some(Selected { index, route, matched })
    })
}

/// The leg of a request: `draw` is any number, evenly distributed over all of `u64`.
///
/// A forward has at least one leg; that is checked where the model is made.
#[must_use]
pub fn pick_leg(forward: &Forward, draw: u64) -> &WeightedCluster {
    pick(&forward.clusters, draw).unwrap_or(&forward.clusters[0])
}

/// One of several legs by weight; `None` only when there are none. A single leg is taken whatever its weight.
#[must_use]
pub fn pick(legs: &[WeightedCluster], draw: u64) -> Option<&WeightedCluster> {
    let (first, rest) = legs.split_first()?;
    if rest.is_empty() {
        return Some(first);
    }
    let total: u64 = legs.iter().map(|leg| u64::from(leg.weight)).sum();
    let mut point = draw.checked_rem(total)?;
    legs.iter().find(|leg| {
        let weight = u64::from(leg.weight);
        let hit = point < weight;
        point = point.saturating_sub(weight);
        hit
    })
}

fn matches(entry: &HttpMatch, request: &RequestView<'_>) -> bool {
    let text =
        |matcher: &Option<TextMatch>, value: &str| matcher.as_ref().is_none_or(|matcher| matcher.is_match(value));
    text(&entry.path, request.path)
        && text(&entry.method, request.method.as_str())
        && text(&entry.authority, request.authority)
        && text(&entry.scheme, request.scheme)
        && entry.headers.iter().all(|header| has(header, request))
        && !entry
            .without_headers
            .iter()
            .any(|header| has_or_is_empty(header, request))
        && entry.query.iter().all(|(name, value)| {
            let parameter = request.query_parameter(name);
            parameter.is_some_and(|parameter| value.is_match(parameter))
        })
}

fn has(header: &HeaderMatch, request: &RequestView<'_>) -> bool {
    match request.header(&header.name) {
        Some(value) => header.value.is_match(&value),
        None => false,
    }
}

/// For `withoutHeaders`: to a condition on the value, an absent header is an empty one.
fn has_or_is_empty(header: &HeaderMatch, request: &RequestView<'_>) -> bool {
    match (request.header(&header.name), &header.value) {
        (Some(value), condition) => condition.is_match(&value),
        (None, TextMatch::Present) => false,
        (None, condition) => condition.is_match(""),
    }
}
