//! Paths and locations: `rewrite` and `redirect`.

use mesh_api::model::{HttpMatch, Redirect, RedirectPort, Rewrite, TextMatch};

use super::RequestView;

/// The new path and query of a request, or `None` when they stay as they are. Allocates.
///
/// As Envoy's `prefix_rewrite`: what the rule's prefix matched is replaced and nothing else (`/foo` to `/` turns
/// `/foo/bar` into `//bar`), an exact or regular match replaces the whole path, and a rule without a path counts as
/// prefix `/`. An expression replaces every match in the path. The query stays.
#[must_use]
pub fn rewrite_path(rewrite: &Rewrite, matched: Option<&HttpMatch>, path_and_query: &str) -> Option<String> {
    let (path, query) = split_query(path_and_query);
    if !path.starts_with('/') {
        return None; // `OPTIONS *` has no path
    }
    let mut new = if let Some(regex) = &rewrite.regex {
        regex.apply(path).into_owned()
    } else {
        replace_matched(matched, path, rewrite.uri.as_deref()?)?
    };
    if !new.starts_with('/') {
        new.insert(0, '/');
    }
    if new == path {
        return None;
    }
    append_query(&mut new, query);
    Some(new)
}

/// `Location` of a redirect; `request_port` is the port that the request came to. Allocates.
///
/// Without a new authority or port, the host is repeated as sent. Port 80 of http and 443 of https are not printed when
/// the rule speaks of ports or changes the scheme. The query is kept, unless `uri` has its own.
#[must_use]
pub fn redirect_location(
    redirect: &Redirect,
    matched: Option<&HttpMatch>,
    request: &RequestView<'_>,
    request_port: u16,
) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(request.scheme);
    let mut location = format!("{scheme}://");
    push_authority(&mut location, redirect, request, scheme, request_port);

    let mut query = request.query;
    match (&redirect.uri, &redirect.prefix_rewrite) {
        (Some(uri), _) => {
            if uri.contains('?') {
                query = None;
            }
            push_path(&mut location, uri);
        }
        (None, Some(prefix)) => match replace_matched(matched, request.path, prefix) {
            Some(path) => push_path(&mut location, &path),
            None => push_path(&mut location, request.path),
        },
        (None, None) => push_path(&mut location, request.path),
    }
    append_query(&mut location, query);
    location
}

fn push_authority(
    location: &mut String,
    redirect: &Redirect,
    request: &RequestView<'_>,
    scheme: &str,
    request_port: u16,
) {
    let (host, port_as_sent) = match &redirect.authority {
        Some(authority) => (&**authority, None),
        None => split_port(request.authority),
    };
    let port = match redirect.port {
        Some(RedirectPort::Number(port)) => Some(port),
        Some(RedirectPort::FromRequestPort) => Some(request_port),
        Some(RedirectPort::FromProtocolDefault) => None,
        None => {
            // The port as sent belongs to the old scheme: its default would be wrong under the new one.
            let port = port_as_sent.filter(|port| scheme == request.scheme || *port != default_port(request.scheme));
            location.push_str(host);
            if let Some(port) = port {
                location.push_str(&format!(":{port}"));
            }
            return;
        }
    };
    location.push_str(split_port(host).0);
    if let Some(port) = port.filter(|port| *port != default_port(scheme)) {
        location.push_str(&format!(":{port}"));
    }
}

fn default_port(scheme: &str) -> u16 {
    if scheme.eq_ignore_ascii_case("https") { 443 } else { 80 }
}

/// Host and port of an authority; an IPv6 address keeps its brackets.
fn split_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (authority, None),
        },
        _ => (authority, None),
    }
}

/// Replaces what the rule matched; `None` when the path is not what the rule says it is (such as `*` of OPTIONS).
fn replace_matched(matched: Option<&HttpMatch>, path: &str, replacement: &str) -> Option<String> {
    let prefix = match matched.and_then(|entry| entry.path.as_ref()) {
        None => "/",
        Some(TextMatch::Prefix(prefix) | TextMatch::PrefixIgnoreCase(prefix)) => prefix,
        Some(TextMatch::Exact(_) | TextMatch::ExactIgnoreCase(_) | TextMatch::Regex(_) | TextMatch::Present) => path,
    };
    let start = path.get(..prefix.len())?;
    let rest = &path[prefix.len()..];
    start
        .eq_ignore_ascii_case(prefix)
        .then(|| format!("{replacement}{rest}"))
}

fn split_query(path_and_query: &str) -> (&str, Option<&str>) {
    match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path_and_query, None),
    }
}

fn push_path(location: &mut String, path: &str) {
    if !path.starts_with('/') {
        location.push('/');
    }
    location.push_str(path);
}

fn append_query(text: &mut String, query: Option<&str>) {
    if let Some(query) = query {
        text.push('?');
        text.push_str(query);
    }
}
