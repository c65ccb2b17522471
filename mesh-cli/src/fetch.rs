//! Small requests to the pages of control planes and proxies.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::Uri;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// For a whole answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Largest page that is read.
const MAX_PAGE: usize = 64 << 20;

/// A client of pages over plaintext HTTP.
#[derive(Clone)]
pub struct Pages {
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Default for Pages {
    fn default() -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }
}

impl Pages {
    /// The page at `path` of a server given as `http://host:port`.
    ///
    /// # Errors
    /// When the server cannot be reached, answers otherwise than 200, or with too much.
    pub async fn get(&self, base: &Uri, path: &str) -> anyhow::Result<Bytes> {
        let url = format!("{}{path}", base.to_string().trim_end_matches('/'));
        let read = async { body(self.client.get(url.parse()?).await.map_err(reason)?).await };
        in_time(read).await.with_context(|| format!("GET {url}"))
    }
}

/// The whole body of an answer.
///
/// # Errors
/// When the answer is not a success, or is too large.
pub async fn body(response: http::Response<hyper::body::Incoming>) -> anyhow::Result<Bytes> {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_PAGE).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
    anyhow::ensure!(
        status.is_success(),
        "{status}: {}",
        String::from_utf8_lossy(&body).trim()
    );
    Ok(body)
}

/// Gives up when the answer does not come in time.
///
/// # Errors
/// As `read`, and when it takes too long.
pub async fn in_time<T>(read: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::time::timeout(DEADLINE, read)
        .await
        .unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {DEADLINE:?}")))
}

/// The innermost cause, which says what happened: `Connection refused`.
fn reason(error: hyper_util::client::legacy::Error) -> anyhow::Error {
    let mut cause: &dyn std::error::Error = &error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    anyhow::anyhow!("{cause}")
}

/// `http://addr:port`.
#[must_use]
pub fn url_of(address: SocketAddr) -> Uri {
    // An address with a port always makes an authority.
    format!("http://{address}").parse().unwrap_or_default()
}
