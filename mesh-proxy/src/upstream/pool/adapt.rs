//! Requests in the form that a version of HTTP asks for, whatever version they came in.

use http::header::{COOKIE, HOST, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};
use http_body::Body as _;

use crate::body::Body;

/// Origin form with a `host` header, and one `cookie` (RFC 9112 §3.2, RFC 9113 §8.2.3).
pub(super) fn http1(mut request: Request<Body>) -> Request<Body> {
    let from_http2 = request.version() == Version::HTTP_2;
    *request.version_mut() = Version::HTTP_11;
    if request.uri().authority().is_some() && request.method() != Method::CONNECT {
        let parts = std::mem::take(request.uri_mut()).into_parts();
        if let Some(host) = parts
            .authority
            .and_then(|authority| HeaderValue::try_from(authority.as_str()).ok())
        {
            request.headers_mut().entry(HOST).or_insert(host);
        }
        *request.uri_mut() = Uri::from(parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/")));
    }
    if from_http2 {
        join_cookies(request.headers_mut());
    }
    let rarely_has_body = matches!(*request.method(), Method::GET | Method::HEAD);
    if rarely_has_body && !request.body().is_end_stream() && request.body().size_hint().exact().is_none() {
        // Unless told, hyper takes it for one without a body.
        let chunked = HeaderValue::from_static("chunked");
        request.headers_mut().insert(TRANSFER_ENCODING, chunked);
    }
    request
}

/// Scheme and authority in the URI, which hyper makes pseudo-headers of (RFC 9113 §8.3.1).
pub(super) fn http2(mut request: Request<Body>, fallback: &str) -> Request<Body> {
    *request.version_mut() = Version::HTTP_2;
    let host = request.headers_mut().remove(HOST);
    let extended = request.extensions().get::<hyper::ext::Protocol>().is_some();
    if request.method() == Method::CONNECT && !extended {
        return request;
    }
    if request.uri().scheme().is_some() && request.uri().authority().is_some() {
        return request;
    }
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme.get_or_insert(Scheme::HTTP);
    if parts.authority.is_none() {
        parts.authority = host
            .and_then(|host| Authority::try_from(host.as_bytes()).ok())
            .or_else(|| Authority::try_from(fallback).ok());
    }
    parts
        .path_and_query
        .get_or_insert_with(|| PathAndQuery::from_static("/"));
    // Scheme, authority and path are all there: nothing is missing.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    request
}

fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let all: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, version: Version) -> http::request::Builder {
        Request::builder().uri(uri).version(version)
    }

    #[test]
    fn http2_to_http1() {
        let request = request("http://reviews:9080/a?b=c", Version::HTTP_2)
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(Body::empty())
            .unwrap();
        let request = http1(request);
        assert_eq!(request.uri(), "/a?b=c");
        assert_eq!(request.version(), Version::HTTP_11);
        assert_eq!(request.headers()[HOST], "reviews:9080");
        assert_eq!(
            request.headers().get_all(COOKIE).iter().collect::<Vec<_>>(),
            ["a=1; b=2"]
        );
    }

    #[test]
    fn a_host_header_stays_and_http1_stays_as_it_is() {
        let request = request("/a", Version::HTTP_11)
            .header(HOST, "x")
            .body(Body::empty())
            .unwrap();
        let request = http1(request);
        assert_eq!(request.uri(), "/a");
        assert_eq!(request.headers()[HOST], "x");
    }

    #[test]
    fn http1_to_http2() {
        for (host, authority) in [(Some("reviews:9080"), "reviews:9080"), (None, "127.0.0.1:80")] {
            let mut request = request("/a?b=c", Version::HTTP_11).body(Body::empty()).unwrap();
            if let Some(host) = host {
                request.headers_mut().insert(HOST, HeaderValue::from_static(host));
            }
            let request = http2(request, "127.0.0.1:80");
            assert_eq!(request.uri(), format!("http://{authority}/a?b=c").as_str());
            assert!(!request.headers().contains_key(HOST));
        }
    }
}
