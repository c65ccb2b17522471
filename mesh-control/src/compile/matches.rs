//! `match` entries of HTTP rules. What selects clients and ports is decided here; what looks at requests is compiled.

use std::sync::Arc;

use http::HeaderName;
use mesh_api::crd::common::StringMatch;
use mesh_api::crd::virtual_service::{HttpMatch as Written, L4Match};
use mesh_api::model::{FullRegex, HeaderMatch, HttpMatch, TextMatch};

use super::Reader;

/// Keys of header maps that Istio passes over: what they name has fields of its own.
const IGNORED_HEADERS: [&str; 4] = ["uri", "scheme", "method", "authority"];

/// An entry cannot be compiled: it matches nothing. Validation says why.
pub struct Uncompilable;

/// Whether an entry is for the client's sidecar and the port that it asked for.
#[must_use]
pub fn concerns(reader: &Reader<'_>, entry: &Written, port: u16) -> bool {
    let source = Source {
        gateways: &entry.gateways,
        labels: &entry.source_labels,
        namespace: entry.source_namespace.as_deref(),
    };
    entry.port.is_none_or(|wanted| wanted == 0 || wanted == u32::from(port)) && source.is_client(reader)
}

/// Whether an entry of a TCP rule is for the client's sidecar and the port that it asked for. Subnets are not evaluated,
/// so entries that have them never match.
#[must_use]
pub fn concerns_tcp(reader: &Reader<'_>, entry: &L4Match, port: u16) -> bool {
    let source = Source {
        gateways: &entry.gateways,
        labels: &entry.source_labels,
        namespace: entry.source_namespace.as_deref(),
    };
    entry.destination_subnets.is_empty()
        && entry.source_subnet.as_deref().is_none_or(str::is_empty)
        && entry.port.is_none_or(|wanted| wanted == 0 || wanted == u32::from(port))
        && source.is_client(reader)
}

struct Source<'a> {
    gateways: &'a [String],
    labels: &'a std::collections::BTreeMap<String, String>,
    namespace: Option<&'a str>,
}

impl Source<'_> {
    /// With `gateways`, labels and namespace are not looked at, as in Istio.
    fn is_client(&self, reader: &Reader<'_>) -> bool {
        if !self.gateways.is_empty() {
            return self.gateways.iter().any(|gateway| gateway == "mesh");
        }
        let labels = self.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        reader.client_has_labels(labels)
            && self
                .namespace
                .filter(|namespace| !namespace.is_empty())
                .is_none_or(|namespace| **reader.client_namespace() == *namespace)
    }
}

/// Compiles what an entry asks of requests.
pub fn compile(entry: &Written) -> Result<HttpMatch, Uncompilable> {
    let text = |text: &Option<StringMatch>| text.as_ref().map(condition).transpose().map(Option::flatten);
    let mut path = text(&entry.uri)?;
    if entry.ignore_uri_case {
        path = path.map(|path| match path {
            TextMatch::Exact(text) => TextMatch::ExactIgnoreCase(text),
            TextMatch::Prefix(text) => TextMatch::PrefixIgnoreCase(text),
            other => other,
        });
    }
    Ok(HttpMatch {
        path,
        scheme: text(&entry.scheme)?,
        method: text(&entry.method)?,
        authority: text(&entry.authority)?,
        headers: headers(&entry.headers)?,
        without_headers: headers(&entry.without_headers)?,
        query: entry
            .query_params
            .iter()
            .map(|(name, value)| Ok((name.as_str().into(), condition(value)?.unwrap_or(TextMatch::Present))))
            .collect::<Result<_, _>>()?,
    })
}

fn headers(map: &std::collections::BTreeMap<String, StringMatch>) -> Result<Vec<HeaderMatch>, Uncompilable> {
    map.iter()
        .filter(|(name, _)| !IGNORED_HEADERS.contains(&name.as_str()))
        .map(|(name, value)| {
            Ok(HeaderMatch {
                // Also refuses `@request.auth.claims…`, which is not supported yet.
                name: name.parse::<HeaderName>().map_err(|_| Uncompilable)?,
                value: condition(value)?.unwrap_or(TextMatch::Present),
            })
        })
        .collect()
}

/// Compiles a text match; `None` if it asks nothing. The expression `*` asks for presence, as in Istio.
fn condition(text: &StringMatch) -> Result<Option<TextMatch>, Uncompilable> {
    Ok(if let Some(exact) = &text.exact {
        Some(TextMatch::Exact(exact.as_str().into()))
    } else if let Some(prefix) = &text.prefix {
        Some(TextMatch::Prefix(prefix.as_str().into()))
    } else {
        match text.regex.as_deref() {
            None => None,
            Some("*") => Some(TextMatch::Present),
            Some(regex) => Some(TextMatch::Regex(FullRegex::new(regex).map_err(|_| Uncompilable)?)),
        }
    })
}

/// Whether a compiled entry lets every request through, so that nothing after it is reached.
#[must_use]
pub fn is_catch_all(entry: &HttpMatch) -> bool {
    let path = match &entry.path {
        None => true,
        Some(TextMatch::Prefix(prefix) | TextMatch::PrefixIgnoreCase(prefix)) => &**prefix == "/",
        Some(TextMatch::Regex(regex)) => regex.as_str() == ".*",
        Some(TextMatch::Present) => true,
        Some(TextMatch::Exact(_) | TextMatch::ExactIgnoreCase(_)) => false,
    };
    let HttpMatch {
        path: _,
        scheme,
        method,
        authority,
        headers,
        without_headers,
        query,
    } = entry;
    path && scheme.is_none()
        && method.is_none()
        && authority.is_none()
        && headers.is_empty()
        && without_headers.is_empty()
        && query.is_empty()
}

/// The name of a rule with that of a match entry.
#[must_use]
pub fn joined_name(rule: Option<&str>, entry: Option<&str>) -> Arc<str> {
    match (rule.unwrap_or_default(), entry.unwrap_or_default()) {
        (rule, "") => rule.into(),
        ("", entry) => entry.into(),
        (rule, entry) => format!("{rule}.{entry}").into(),
    }
}
