//! HTTP/2 with prior knowledge, by hyper; clones of a connection share it, one stream each.

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::{Form, Plan, connect};

/// One connection, or a further handle to it.
#[derive(Clone)]
pub(super) struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    uri: Uri,
    body_bytes: usize,
}

impl Connection {
    pub(super) async fn open(plan: &Plan) -> anyhow::Result<Self> {
        if plan.entry.form == Form::Absolute {
            bail!("HTTP/2 has no absolute form: use origin or connect");
        }
        let uri = format!("http://{}/bench", plan.entry.authority).parse()?;
        let stream = connect(&plan.entry).await?;
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .handshake(TokioIo::new(stream))
            .await
            .context("no HTTP/2 handshake")?;
        // Its end shows in the next exchange.
        tokio::spawn(connection);
        Ok(Self {
            sender,
            uri,
            body_bytes: plan.body_bytes,
        })
    }

    /// One request, one whole response.
    pub(super) async fn exchange(&mut self) -> anyhow::Result<()> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.uri.clone();
        let response = self
            .sender
            .send_request(request)
            .await
            .context("a request was not answered")?;
        let (head, mut body) = response.into_parts();
        ensure!(
            head.status == StatusCode::OK,
            "expected status 200, got {} with {:?}",
            head.status,
            head.headers
        );
        let declared = head
            .headers
            .get(CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        ensure!(
            declared.is_none_or(|length: usize| length == self.body_bytes),
            "content-length is {declared:?}"
        );
        let mut received = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.context("a response broke off")?;
            received += frame.data_ref().map_or(0, Bytes::len);
        }
        ensure!(
            received == self.body_bytes,
            "expected {} bytes, got {received}",
            self.body_bytes
        );
        Ok(())
    }
}
