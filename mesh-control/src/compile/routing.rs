//! Which VirtualService decides about a host, for a client.

use std::sync::Arc;

use super::Reader;
use crate::world::{Export, VirtualService, hosts, key};

/// The VirtualService in force for a host: of the most specific hosts that any claims, the first in the order private to
/// the client's namespace, shown to it by name, public; among equals the oldest. One without `hosts` counts only where
/// no other claims the host.
#[must_use]
pub fn virtual_service(reader: &Reader<'_>, host: &str) -> Option<Arc<VirtualService>> {
    for pattern in hosts::covering(host) {
        reader.note(key::routing(&pattern));
        let claiming: Vec<_> = reader.world.routing.claiming(&pattern).cloned().collect();
        let (named, implied): (Vec<_>, Vec<_>) = claiming.into_iter().partition(|object| !object.hosts.is_empty());
        if let Some(chosen) = first_visible(reader, &named).or_else(|| first_visible(reader, &implied)) {
            reader.credit(&chosen.age);
            return Some(chosen);
        }
    }
    None
}

fn first_visible(reader: &Reader<'_>, list: &[Arc<VirtualService>]) -> Option<Arc<VirtualService>> {
    let first = list.first()?;
    if list.iter().all(|object| object.export == Export::All) {
        return Some(first.clone());
    }
    let client = reader.client_namespace();
    let visible = list.iter().filter_map(|object| {
        let visibility = object.export.visibility(&object.age.namespace, client)?;
        Some((visibility, object))
    });
    // The list is in order of age, and the least of equals is the first of them.
    visible
        .min_by_key(|(visibility, _)| *visibility)
        .map(|(_, object)| object.clone())
}
