//! What is taken from, and put on, messages that pass through a proxy.

use std::net::IpAddr;

use http::header::{CONNECTION, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Uri, Version};

use super::HttpVersion;

/// Who a client is, in the form that its certificate proves.
pub(crate) const FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// How the client's request came to the first proxy.
pub(crate) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Number of the try, from 1.
pub(crate) const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
/// Milliseconds until the upstream's response head.
pub(crate) const UPSTREAM_SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
/// On the answer of a peer's sidecar: its application got nothing of the request, which may go elsewhere.
pub(crate) const NOT_SENT: HeaderName = HeaderName::from_static("x-mesh-not-sent");
/// Path before a rewrite.
pub(crate) const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

/// What Istio's sidecars tell each other of their workloads.
const PEER_METADATA: HeaderName = HeaderName::from_static("x-envoy-peer-metadata");
const PEER_METADATA_ID: HeaderName = HeaderName::from_static("x-envoy-peer-metadata-id");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const PROXY_AUTHORIZATION: HeaderName = HeaderName::from_static("proxy-authorization");

/// Removes what concerns one connection only (RFC 9110 §7.6.1). An upgrade that is asked for stays, when `upgrade` is set.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap, upgrade: bool) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .filter(|name| *name != UPGRADE && *name != TE && *name != HOST)
            .collect();
        headers.remove(CONNECTION);
        for name in named {
            headers.remove(name);
        }
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(PROXY_AUTHORIZATION);
    headers.remove(TRANSFER_ENCODING);
    if headers.get(TE).is_some_and(|value| value != "trailers") {
        headers.remove(TE);
    }
    if upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(UPGRADE);
    }
}

/// Removes what a peer's sidecar says of itself, or an application in its name: it is no application's business, on either
/// side.
pub(crate) fn remove_peer_metadata(headers: &mut HeaderMap) {
    headers.remove(PEER_METADATA);
    headers.remove(PEER_METADATA_ID);
    headers.remove(NOT_SENT);
}

/// Whether an HTTP/1.1 request asks to become something else.
pub(crate) fn wants_upgrade(method: &Method, version: Version, headers: &HeaderMap) -> bool {
    version == Version::HTTP_11
        && *method != Method::CONNECT
        && headers.contains_key(UPGRADE)
        && headers.get_all(CONNECTION).iter().any(|value| {
            value
                .to_str()
                .is_ok_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case("upgrade")))
        })
}

/// The authority of a request: of its URI, else its `Host`. `None` without any, with several `Host`s, or with one that is
/// not a host and port.
pub(crate) fn authority_of<B>(request: &Request<B>) -> Option<HeaderValue> {
    let authority = match request.uri().authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok()?,
        None => {
            let mut hosts = request.headers().get_all(HOST).iter();
            match (hosts.next(), hosts.next()) {
                (Some(host), None) => host.clone(),
                _ => return None,
            }
        }
    };
    let allowed =
        |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_' | b'~' | b':' | b'[' | b']' | b'%');
    let valid = !authority.is_empty() && authority.as_bytes().iter().all(allowed);
    valid.then_some(authority)
}

/// Host and port of an authority, brackets removed. What follows a colon and is no port belongs to no host either.
pub(crate) fn split_authority(authority: &str) -> (&str, Option<u16>) {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']').unwrap_or((rest, ""));
        return (host, port.strip_prefix(':').and_then(|port| port.parse().ok()));
    }
    match authority.split_once(':') {
        Some((host, port)) => (host, port.parse().ok()),
        None => (authority, None),
    }
}

/// Gives a request the form that the upstream's version asks for: origin form with `Host` for HTTP/1, an absolute URI
/// without `Host` for HTTP/2.
pub(crate) fn target(
    uri: &mut Uri,
    version: &mut Version,
    headers: &mut HeaderMap,
    authority: &HeaderValue,
    upstream: HttpVersion,
    tls: bool,
) -> Result<(), http::Error> {
    let path = uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    match upstream {
        HttpVersion::Http1 => {
            *uri = Uri::from(path);
            *version = Version::HTTP_11;
            if headers.get(HOST) != Some(authority) {
                headers.insert(HOST, authority.clone());
            }
        }
        HttpVersion::Http2 => {
            let mut parts = http::uri::Parts::default();
            parts.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
            parts.authority = Some(Authority::try_from(authority.as_bytes())?);
            parts.path_and_query = Some(path);
            *uri = Uri::from_parts(parts)?;
            *version = Version::HTTP_2;
            headers.remove(HOST);
        }
    }
    Ok(())
}

/// `x-forwarded-client-cert` of one connection: who the client is, by whom it was checked.
pub(crate) fn client_cert_header(local: &str, peer: &str, certificate_hash: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("By={local};Hash={certificate_hash};Subject=\"\";URI={peer}")).ok()
}

/// The number of a try as a header value, without formatting for the usual ones.
pub(crate) fn attempt_value(attempt: u32) -> HeaderValue {
    match attempt {
        1 => HeaderValue::from_static("1"),
        2 => HeaderValue::from_static("2"),
        3 => HeaderValue::from_static("3"),
        more => HeaderValue::from(more),
    }
}

/// Whether an authority's host is this very address.
pub(crate) fn parse_ip(host: &str) -> Option<IpAddr> {
    host.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn hop_by_hop_headers_stay_behind() {
        let mut map = headers(&[
            ("connection", "close, x-private, te"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("transfer-encoding", "chunked"),
            ("accept", "*/*"),
        ]);
        remove_hop_by_hop(&mut map, false);
        assert_eq!(map, headers(&[("te", "trailers"), ("accept", "*/*")]));
    }

    #[test]
    fn a_wanted_upgrade_passes() {
        let mut map = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert!(wants_upgrade(&Method::GET, Version::HTTP_11, &map));
        remove_hop_by_hop(&mut map, true);
        assert_eq!(map, headers(&[("connection", "upgrade"), ("upgrade", "websocket")]));
    }

    #[test]
    fn a_connection_header_cannot_remove_the_host() {
        let mut map = headers(&[("connection", "host"), ("host", "a")]);
        remove_hop_by_hop(&mut map, false);
        assert_eq!(map, headers(&[("host", "a")]));
    }

    #[test]
    fn one_host_is_an_authority_and_two_are_none() {
        let request = Request::builder().uri("/").header("host", "a:80").body(()).unwrap();
        assert_eq!(authority_of(&request).unwrap(), "a:80");
        let request = Request::builder()
            .uri("/")
            .header("host", "a")
            .header("host", "b")
            .body(())
            .unwrap();
        assert!(authority_of(&request).is_none());
        let request = Request::builder()
            .uri("http://u/")
            .header("host", "a")
            .body(())
            .unwrap();
        assert_eq!(authority_of(&request).unwrap(), "u");
    }

    #[test]
    fn parts_of_an_authority() {
        for (authority, host, port) in [
            ("reviews:9080", "reviews", Some(9080)),
            ("reviews", "reviews", None),
            ("[2001:db8::1]:80", "2001:db8::1", Some(80)),
            ("[2001:db8::1]", "2001:db8::1", None),
            ("a:b", "a", None),
            ("a:99999", "a", None),
        ] {
            assert_eq!(split_authority(authority), (host, port), "{authority}");
        }
        for host in ["user@a", "a/b", "a b", ""] {
            let request = Request::builder().uri("/").header("host", host).body(()).unwrap();
            assert!(authority_of(&request).is_none(), "{host}");
        }
    }

    #[test]
    fn request_forms() {
        let mut uri = Uri::from_static("http://x/a?b");
        let (mut version, mut map) = (Version::HTTP_11, HeaderMap::new());
        let authority = HeaderValue::from_static("x:1");
        target(&mut uri, &mut version, &mut map, &authority, HttpVersion::Http1, false).unwrap();
        assert_eq!(
            (uri.to_string().as_str(), map[HOST].as_bytes()),
            ("/a?b", b"x:1".as_slice())
        );
        target(&mut uri, &mut version, &mut map, &authority, HttpVersion::Http2, true).unwrap();
        assert_eq!(uri.to_string(), "https://x:1/a?b");
        assert!(map.is_empty());
    }
}
