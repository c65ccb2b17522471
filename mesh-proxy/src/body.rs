//! The one body type of requests and responses.
//!
//! Bytes come from a peer's connection, from memory, or from a buffer that is replayed or copied; they go to hyper on the
//! other side. A body can tell an [`Observer`] how it ended, and keeps alive what its stream needs until then. It never
//! boxes the common case, and forwards size hints so that `content-length` survives.

mod replay;
mod tee;

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::upstream::StreamLease;

pub use replay::{REPLAY_LIMIT, ReplayBuffer};
pub use tee::MIRROR_LIMIT;

/// A request's or a response's body.
pub struct Body {
    kind: Kind,
    bytes: u64,
    observer: Option<Box<dyn Observer>>,
    lease: Option<StreamLease>,
    deadline: Option<Pin<Box<Sleep>>>,
}

enum Kind {
    Empty,
    Full(Bytes),
    Incoming(Incoming),
    Replay(replay::Reader),
    Tee(Box<tee::Source>),
    Mirror(tee::Copy),
}

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection that it came from broke.
    #[error("reading the body: {0}")]
    Transport(#[from] hyper::Error),
    /// A later try reads the kept request body instead.
    #[error("another try took the request body over")]
    Superseded,
    /// The mirror read more slowly than the request it copies.
    #[error("the mirror fell more than {limit} bytes behind its request")]
    MirrorTooSlow {
        /// The bound that was hit.
        limit: usize,
    },
    /// What the body is copied from ended early.
    #[error("the copied body ended early")]
    SourceGone,
    /// Time ran out while the body was sent.
    #[error("the time for the whole exchange ran out")]
    TimedOut,
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All of it was read.
    Complete,
    /// Reading it failed.
    Failed,
    /// Its deadline passed.
    TimedOut,
    /// The reader gave up.
    Dropped,
}

/// Makes a body again; see [`Body::again`].
pub struct Again(Kept);

enum Kept {
    Full(Bytes),
    Replay(ReplayBuffer),
}

impl Again {
    /// The body from its start; `None` when it was not kept as a whole after all.
    #[must_use]
    pub fn body(self) -> Option<Body> {
        match self.0 {
            Kept::Full(bytes) => Some(Body::full(bytes)),
            Kept::Replay(buffer) => buffer.body(),
        }
    }
}

/// Learns what passes through a body and, once, how it ended.
pub trait Observer {
    /// A piece was read.
    fn data(&mut self, _piece: &Bytes) {}
    /// Trailers were read.
    fn trailers(&mut self, _trailers: &HeaderMap) {}
    /// It is over, after this many bytes of data.
    fn end(self: Box<Self>, end: End, bytes: u64);
}

impl Body {
    /// No bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self::of(Kind::Empty)
    }

    /// These bytes.
    #[must_use]
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::of(if bytes.is_empty() {
            Kind::Empty
        } else {
            Kind::Full(bytes)
        })
    }

    /// What a peer sends.
    #[must_use]
    pub fn incoming(incoming: Incoming) -> Self {
        Self::of(Kind::Incoming(incoming))
    }

    /// Adds an observer; those that were there learn everything first.
    #[must_use]
    pub fn observed(mut self, observer: Box<dyn Observer>) -> Self {
        self.observer = Some(match self.observer.take() {
            Some(first) => Box::new(Both(first, observer)),
            None => observer,
        });
        self
    }

    /// Splits into a body that reads on as before and a copy for a mirror, which fails once it is `limit` bytes behind.
    #[must_use]
    pub fn tee(self, limit: usize) -> (Self, Self) {
        match &self.kind {
            Kind::Empty => (self, Self::empty()),
            Kind::Full(bytes) => {
                let copy = Self::full(bytes.clone());
                (self, copy)
            }
            _ => {
                let (source, copy) = tee::split(self, limit);
                (Self::of(Kind::Tee(Box::new(source))), Self::of(Kind::Mirror(copy)))
            }
        }
    }

    /// What makes the same body again from its start, where it is kept as a whole. The body itself stays usable until
    /// then.
    #[must_use]
    pub fn again(&self) -> Option<Again> {
        match &self.kind {
            Kind::Empty => Some(Again(Kept::Full(Bytes::new()))),
            Kind::Full(bytes) => Some(Again(Kept::Full(bytes.clone()))),
            Kind::Replay(reader) => Some(Again(Kept::Replay(reader.buffer()))),
            _ if self.bytes == 0 && self.is_empty() => Some(Again(Kept::Full(Bytes::new()))),
            _ => None,
        }
    }

    /// Whether there is nothing to send, known beforehand.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Incoming(incoming) => http_body::Body::is_end_stream(incoming),
            _ => false,
        }
    }

    /// Bytes of data that were read so far.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.bytes
    }

    /// Fails once `deadline` has passed and the body has not ended.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Instant) -> Self {
        if !http_body::Body::is_end_stream(&self) {
            self.deadline = Some(Box::pin(tokio::time::sleep_until(deadline)));
        }
        self
    }

    /// Keeps a stream's lease until the body ends.
    pub(crate) fn holding(mut self, lease: StreamLease) -> Self {
        self.lease = Some(lease);
        self
    }

    fn of(kind: Kind) -> Self {
        Self {
            kind,
            bytes: 0,
            observer: None,
            lease: None,
            deadline: None,
        }
    }

    fn finish(&mut self, end: End) {
        if let Some(lease) = self.lease.take()
            && end != End::Complete
        {
            lease.call_off();
        }
        if let Some(observer) = self.observer.take() {
            observer.end(end, self.bytes);
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl From<Incoming> for Body {
    fn from(incoming: Incoming) -> Self {
        Self::incoming(incoming)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let polled = match &mut this.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.kind = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Incoming(incoming) => Pin::new(incoming)
                .poll_frame(cx)
                .map(|polled| polled.map(|frame| frame.map_err(BodyError::from))),
            Kind::Replay(reader) => reader.poll_frame(cx),
            Kind::Tee(source) => source.poll_frame(cx),
            Kind::Mirror(copy) => copy.poll_frame(cx),
        };
        let polled = match (&mut this.deadline, polled) {
            (Some(deadline), Poll::Pending) => deadline.as_mut().poll(cx).map(|()| Some(Err(BodyError::TimedOut))),
            (_, polled) => polled,
        };
        match &polled {
            Poll::Pending => {}
            Poll::Ready(None) => this.finish(End::Complete),
            Poll::Ready(Some(Err(BodyError::TimedOut))) => this.finish(End::TimedOut),
            Poll::Ready(Some(Err(_))) => this.finish(End::Failed),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    this.bytes += data.len() as u64;
                    if let Some(observer) = &mut this.observer {
                        observer.data(data);
                    }
                } else if let (Some(trailers), Some(observer)) = (frame.trailers_ref(), &mut this.observer) {
                    observer.trailers(trailers);
                }
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(_) => false,
            Kind::Incoming(incoming) => incoming.is_end_stream(),
            Kind::Replay(reader) => reader.is_end_stream(),
            Kind::Tee(source) => source.body().is_end_stream(),
            Kind::Mirror(copy) => copy.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Incoming(incoming) => incoming.size_hint(),
            Kind::Replay(reader) => reader.size_hint(),
            Kind::Tee(source) => source.body().size_hint(),
            Kind::Mirror(copy) => copy.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if self.observer.is_some() || self.lease.is_some() {
            // hyper stops polling a body whose end it knows.
            let end = if http_body::Body::is_end_stream(self) {
                End::Complete
            } else {
                End::Dropped
            };
            self.finish(end);
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match &self.kind {
            Kind::Empty => "Empty",
            Kind::Full(_) => "Full",
            Kind::Incoming(_) => "Incoming",
            Kind::Replay(_) => "Replay",
            Kind::Tee(_) => "Tee",
            Kind::Mirror(_) => "Mirror",
        };
        f.debug_struct("Body")
            .field("kind", &kind)
            .field("bytes", &self.bytes)
            .finish()
    }
}

struct Both(Box<dyn Observer>, Box<dyn Observer>);

impl Observer for Both {
    fn data(&mut self, piece: &Bytes) {
        self.0.data(piece);
        self.1.data(piece);
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        self.0.trailers(trailers);
        self.1.trailers(trailers);
    }

    fn end(self: Box<Self>, end: End, bytes: u64) {
        self.0.end(end, bytes);
        self.1.end(end, bytes);
    }
}

#[cfg(test)]
mod tests;
