//! Decisions over the model: which route a request takes, what is changed on the way, who may call whom, what is tried
//! again.
//!
//! Pure functions: facts of a request and compiled policy come in, a decision that names its origin goes out. Nothing
//! here reads a clock, draws a number or touches a socket: time and chance are arguments, so that the proxy, offline
//! explanation and tests all run the same code. Nothing on the way of an ordinary request allocates; what does (a header
//! sent twice, a rewritten path, a redirect) says so.

mod authorization;
mod fault;
mod headers;
mod path;
mod retry;
mod rewrite;
mod route;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use http::header::HOST;
use http::{HeaderMap, HeaderName, Method};

pub use authorization::{AuthzRequest, DenyReason, Peer, Verdict, authorize, details};
pub use fault::{FaultDecision, FaultDraws, draw_fault};
pub use headers::{apply_request_headers, apply_response_headers, new_authority};
pub use path::{InvalidPath, normalize_path};
pub use retry::{TryOutcome, backoff, should_retry};
pub use rewrite::{redirect_location, rewrite_path};
pub use route::{Selected, pick, pick_leg, select_route};

/// What matchers look at.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// Method.
    pub method: &'a Method,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Host as sent, with its port if one was sent.
    pub authority: &'a str,
    /// Path without query, normalized (see [`normalize_path`]).
    pub path: &'a str,
    /// What follows `?`.
    pub query: Option<&'a str>,
    /// Headers.
    pub headers: &'a HeaderMap,
}

impl<'a> RequestView<'a> {
    /// The view of a request that came in over `scheme`. The authority is the request target's (HTTP/2, or HTTP/1.1
    /// through an explicit proxy), else `Host`; user information is not part of it.
    #[must_use]
    pub fn new(parts: &'a http::request::Parts, scheme: &'a str) -> Self {
        let host = || parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        let authority = match parts.uri.authority() {
            Some(authority) => authority.as_str(),
            None => host().unwrap_or_default(),
        };
        Self {
            method: &parts.method,
            scheme,
            authority: authority.rsplit('@').next().unwrap_or_default(),
            path: parts.uri.path(),
            query: parts.uri.query(),
            headers: &parts.headers,
        }
    }

    /// Value of a header, as Envoy sees it: values of one name are joined by commas (which allocates), and `host` is the
    /// authority.
    fn header(&self, name: &HeaderName) -> Option<Cow<'a, str>> {
        if name == HOST && !self.authority.is_empty() {
            return Some(Cow::Borrowed(self.authority));
        }
        let mut values = self.headers.get_all(name).iter();
        let mut text = String::from_utf8_lossy(values.next()?.as_bytes());
        for value in values {
            let joined = text.to_mut();
            joined.push(',');
            joined.push_str(&String::from_utf8_lossy(value.as_bytes()));
        }
        Some(text)
    }

    /// First value of a query parameter, as sent; without `=` it is empty.
    fn query_parameter(&self, name: &str) -> Option<&'a str> {
        self.query?.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then_some(value)
        })
    }
}
