//! Delegation: a rule of one VirtualService hands over to the rules of another, one level deep. The other's rules are
//! narrowed to what the first one's rule matches, and inherit what they do not set.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_api::crd::common::StringMatch;
use mesh_api::crd::virtual_service::{HttpMatch, HttpRoute};

use super::Reader;
use crate::world::VirtualService;

/// A rule, and the object that it is written in.
pub struct Rule<'v> {
    /// The rule as it acts.
    pub rule: Cow<'v, HttpRoute>,
    /// The object: its namespace completes short names.
    pub object: &'v Arc<VirtualService>,
    /// Position among the object's rules.
    pub index: usize,
}

/// The rules of a VirtualService in order, with those that it hands over to in their place. A delegate that is not there,
/// or not shown to the object's namespace, has no rules.
#[must_use]
pub fn expand<'v>(reader: &Reader<'v>, object: &'v Arc<VirtualService>) -> Vec<Rule<'v>> {
    let mut rules = Vec::with_capacity(object.http.len());
    for (index, rule) in object.http.iter().enumerate() {
        let Some(written) = &rule.delegate else {
            rules.push(Rule {
                rule: Cow::Borrowed(rule),
                object,
                index,
            });
            continue;
        };
        let own = &object.age.namespace;
        let namespace = written.namespace.as_deref().filter(|namespace| !namespace.is_empty());
        let delegate = reader
            .world
            .routing
            .get(namespace.unwrap_or(own), written.name.as_deref().unwrap_or_default())
            .filter(|delegate| delegate.hosts.is_empty() && delegate.export.shows(own));
        let Some(delegate) = delegate else { continue };
        reader.credit(&delegate.age);
        for (index, inner) in delegate.http.iter().enumerate() {
            if inner.delegate.is_none()
                && let Some(merged) = merge(rule, inner)
            {
                rules.push(Rule {
                    rule: Cow::Owned(merged),
                    object: delegate,
                    index,
                });
            }
        }
    }
    rules
}

/// A delegate's rule with what it inherits; `None` if it matches nothing that is handed over.
fn merge(outer: &HttpRoute, inner: &HttpRoute) -> Option<HttpRoute> {
    let matches = if outer.matches.is_empty() {
        inner.matches.clone()
    } else if inner.matches.is_empty() {
        outer.matches.clone()
    } else {
        let pairs = outer
            .matches
            .iter()
            .flat_map(|outer| inner.matches.iter().map(move |inner| (outer, inner)));
        let matches: Vec<_> = pairs.filter_map(|(outer, inner)| narrow(outer, inner)).collect();
        if matches.is_empty() {
            return None;
        }
        matches
    };
    let mirrors = inner.mirror.is_some() || !inner.mirrors.is_empty();
    let mirror_from = if mirrors { inner } else { outer };
    Some(HttpRoute {
        name: join(outer.name.as_deref(), inner.name.as_deref()),
        matches,
        rewrite: inner.rewrite.clone().or_else(|| outer.rewrite.clone()),
        timeout: inner.timeout.or(outer.timeout),
        retries: inner.retries.clone().or_else(|| outer.retries.clone()),
        fault: inner.fault.clone().or_else(|| outer.fault.clone()),
        cors_policy: inner.cors_policy.clone().or_else(|| outer.cors_policy.clone()),
        headers: inner.headers.clone().or_else(|| outer.headers.clone()),
        mirror: mirror_from.mirror.clone(),
        mirrors: mirror_from.mirrors.clone(),
        mirror_percent: mirror_from.mirror_percent,
        mirror_percent_alias: mirror_from.mirror_percent_alias,
        mirror_percentage: mirror_from.mirror_percentage.clone(),
        ..inner.clone()
    })
}

fn join(outer: Option<&str>, inner: Option<&str>) -> Option<String> {
    match (outer.unwrap_or_default(), inner.unwrap_or_default()) {
        ("", "") => None,
        ("", name) | (name, "") => Some(name.to_owned()),
        (outer, inner) => Some(format!("{outer}-{inner}")),
    }
}

/// What both entries match; `None` if the inner one is not a part of the outer one.
fn narrow(outer: &HttpMatch, inner: &HttpMatch) -> Option<HttpMatch> {
    let uri = text(outer.uri.as_ref(), inner.uri.as_ref())?;
    if outer.uri.is_some() && inner.uri.is_some() && outer.ignore_uri_case != inner.ignore_uri_case {
        return None;
    }
    let namespace = |entry: &HttpMatch| entry.source_namespace.clone().filter(|namespace| !namespace.is_empty());
    let port = |entry: &HttpMatch| entry.port.filter(|port| *port != 0);
    let mut source_labels = outer.source_labels.clone();
    for (name, value) in &inner.source_labels {
        if source_labels
            .insert(name.clone(), value.clone())
            .is_some_and(|other| other != *value)
        {
            return None;
        }
    }
    Some(HttpMatch {
        name: join(outer.name.as_deref(), inner.name.as_deref()),
        uri,
        scheme: text(outer.scheme.as_ref(), inner.scheme.as_ref())?,
        method: text(outer.method.as_ref(), inner.method.as_ref())?,
        authority: text(outer.authority.as_ref(), inner.authority.as_ref())?,
        headers: texts(&outer.headers, &inner.headers)?,
        without_headers: texts(&outer.without_headers, &inner.without_headers)?,
        query_params: texts(&outer.query_params, &inner.query_params)?,
        port: same(port(outer), port(inner))?,
        source_labels,
        source_namespace: same(namespace(outer), namespace(inner))?,
        gateways: if inner.gateways.is_empty() {
            outer.gateways.clone()
        } else {
            inner.gateways.clone()
        },
        ignore_uri_case: outer.ignore_uri_case || inner.ignore_uri_case,
        stat_prefix: inner.stat_prefix.clone().or_else(|| outer.stat_prefix.clone()),
    })
}

/// Either value, or both if they are equal; `None` is a contradiction.
fn same<T: PartialEq>(outer: Option<T>, inner: Option<T>) -> Option<Option<T>> {
    match (outer, inner) {
        (Some(outer), Some(inner)) => (outer == inner).then_some(Some(inner)),
        (outer, inner) => Some(inner.or(outer)),
    }
}

/// The narrower of two text matches; `None` if the inner one is not a part of the outer one. Of an expression nobody can
/// tell, so that beside any other condition it is a contradiction.
fn text(outer: Option<&StringMatch>, inner: Option<&StringMatch>) -> Option<Option<StringMatch>> {
    let (Some(outer), Some(inner)) = (outer, inner) else {
        return Some(inner.or(outer).cloned());
    };
    let within = match (&outer.exact, &outer.prefix, &outer.regex) {
        (_, _, Some(_)) => false,
        (Some(exact), _, _) => inner.exact.as_ref() == Some(exact),
        (_, Some(prefix), _) => {
            let narrower = inner.exact.as_ref().or(inner.prefix.as_ref());
            narrower.is_some_and(|text| text.starts_with(prefix.as_str()))
        }
        // Presence: anything is a part of it.
        (None, None, None) => inner.regex.is_none(),
    };
    within.then(|| Some(inner.clone()))
}

fn texts(
    outer: &BTreeMap<String, StringMatch>,
    inner: &BTreeMap<String, StringMatch>,
) -> Option<BTreeMap<String, StringMatch>> {
    let mut merged = outer.clone();
    for (name, value) in inner {
        let narrowed = text(outer.get(name), Some(value))?;
        merged.insert(name.clone(), narrowed.unwrap_or_default());
    }
    Some(merged)
}
