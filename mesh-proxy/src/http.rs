//! HTTP: connections in, requests through policy to an upstream, responses back.
//!
//! | module | stage |
//! |---|---|
//! | [`server`] | speaks HTTP/1 or HTTP/2 on an accepted connection, one handler call per request |
//! | [`outbound`] | a request of this workload: find the destination, select the route, act on it |
//! | [`inbound`] | a request to this workload: authorize, hand to the application |
//! | [`forward`] | tries, timeouts, retries and copies of a forwarded request |
//! | [`mirror`] | copies of requests |
//! | [`exchange`] | one request and its response, from the first byte to the record of it |
//! | [`headers`] | what is taken from, and put on, messages that pass |
//! | [`grpc`] | the messages of a gRPC call |
//! | [`upgrade`] | connections that stop being HTTP: CONNECT, WebSocket |

use http::Uri;

use crate::failure::Failure;
use crate::policy;

pub(crate) mod exchange;
pub(crate) mod forward;
pub(crate) mod grpc;
pub(crate) mod headers;
pub(crate) mod inbound;
pub(crate) mod mirror;
pub(crate) mod outbound;
pub(crate) mod server;
pub(crate) mod upgrade;

/// Puts a path into its normal form, so that what policy sees is what the application gets.
pub(crate) fn normalize(uri: &mut Uri) -> Result<(), Failure> {
    let Some(path) = uri.path_and_query() else {
        return Ok(());
    };
    let Some(normal) = policy::normalize_path(path.as_str()).map_err(|_| Failure::BadPath)? else {
        return Ok(());
    };
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(normal.parse().map_err(|_| Failure::BadPath)?);
    *uri = Uri::from_parts(parts).map_err(|_| Failure::BadPath)?;
    Ok(())
}

/// Version that a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2.
    Http2,
}
