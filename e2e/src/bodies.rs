//! Bodies of messages for tests: in one piece, in pieces without a length, fed by hand, with trailers, broken off.

use std::convert::Infallible;

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::stream;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use tokio::sync::mpsc;

/// Any error of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Body of a request or an answer.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Pieces that a body of [`feed`] holds unread.
const UNREAD: usize = 4;

/// A body in one piece, of a known length.
#[must_use]
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// Bytes in which no piece is like another, so that one that is lost, doubled or moved shows.
#[must_use]
pub fn pattern(length: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(length + 8);
    let mut state = 1_u64;
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

/// The bytes in pieces of this size, without saying how many there are.
#[must_use]
pub fn pieces(bytes: &Bytes, size: usize) -> Body {
    let frames: Vec<_> = (0..bytes.len())
        .step_by(size)
        .map(|start| Ok(Frame::data(bytes.slice(start..bytes.len().min(start + size)))))
        .collect();
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

/// Feeds a body of [`feed`]. Dropped, it ends the body; [`break_off`](Self::break_off) breaks it.
pub struct Feeder(mpsc::Sender<Result<Frame<Bytes>, BoxError>>);

impl Feeder {
    /// Adds a piece; waits while the reader is behind.
    ///
    /// # Errors
    /// When the reader has gone.
    pub async fn send(&self, bytes: impl Into<Bytes>) -> anyhow::Result<()> {
        let sent = self.0.send(Ok(Frame::data(bytes.into()))).await;
        sent.ok().context("nobody reads the body any more")
    }

    /// Ends the body with trailers.
    ///
    /// # Errors
    /// When the reader has gone.
    pub async fn trailers(self, trailers: HeaderMap) -> anyhow::Result<()> {
        let sent = self.0.send(Ok(Frame::trailers(trailers))).await;
        sent.ok().context("nobody reads the body any more")
    }

    /// Breaks the body off.
    pub async fn break_off(self) {
        let _ = self.0.send(Err("the test broke the body off".into())).await;
    }

    /// Resolves when nobody reads the body any more.
    pub async fn abandoned(&self) {
        self.0.closed().await;
    }
}

/// A body that the test feeds by hand.
#[must_use]
pub fn feed() -> (Feeder, Body) {
    let (sender, receiver) = mpsc::channel(UNREAD);
    let frames = stream::unfold(receiver, async |mut receiver| {
        let frame = receiver.recv().await?;
        Some((frame, receiver))
    });
    (Feeder(sender), StreamBody::new(frames).boxed_unsync())
}
