//! Request bodies that several tries can read.
//!
//! A body goes in and streams out to the first try while its pieces are kept, up to a bound; a later try reads them again
//! and then goes on with the rest. Past the bound the pieces are let go and the request can no longer be tried again.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use super::{Body, BodyError, Kind};

/// Bytes of a request body that are kept for a retry.
pub const REPLAY_LIMIT: usize = 64 * 1024;

/// Keeps a request body while it is sent. Cheap to clone; all clones are the same body.
#[derive(Clone)]
pub struct ReplayBuffer {
    shared: Rc<RefCell<Shared>>,
}

struct Shared {
    source: Body,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    limit: usize,
    total: Option<u64>,
    state: State,
    /// Only the latest reader may read on.
    reader: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    Whole,
    /// Pieces were let go: no further reader.
    Beyond,
    Failed,
}

impl ReplayBuffer {
    /// Keeps up to `limit` bytes of a body; one whose length is known to be beyond it is not kept at all.
    #[must_use]
    pub fn new(body: Body, limit: usize) -> Self {
        let total = body.size_hint().exact();
        Self {
            shared: Rc::new(RefCell::new(Shared {
                source: body,
                kept: Vec::new(),
                kept_bytes: 0,
                trailers: None,
                limit,
                total,
                state: if total.is_some_and(|total| total > limit as u64) {
                    State::Beyond
                } else {
                    State::Reading
                },
                reader: 0,
            })),
        }
    }

    /// The body from its start, for a first or a further try; earlier readers fail when they read on. `None` once pieces
    /// were let go.
    #[must_use]
    pub fn body(&self) -> Option<Body> {
        let mut shared = self.shared.borrow_mut();
        if shared.state == State::Failed || (shared.state == State::Beyond && shared.reader > 0) {
            return None;
        }
        if matches!(shared.source.kind, Kind::Empty) && shared.kept.is_empty() && shared.trailers.is_none() {
            return Some(Body::empty());
        }
        shared.reader += 1;
        let reader = Reader {
            id: shared.reader,
            shared: Rc::clone(&self.shared),
            next: 0,
            read: 0,
            trailers_read: false,
        };
        drop(shared);
        Some(Body::of(Kind::Replay(reader)))
    }

    /// Whether [`body`](Self::body) would give another one.
    #[must_use]
    pub fn is_replayable(&self) -> bool {
        !matches!(self.shared.borrow().state, State::Beyond | State::Failed)
    }
}

/// One try's reading.
pub(super) struct Reader {
    id: u64,
    shared: Rc<RefCell<Shared>>,
    next: usize,
    read: u64,
    trailers_read: bool,
}

impl Reader {
    pub(super) fn buffer(&self) -> ReplayBuffer {
        ReplayBuffer {
            shared: Rc::clone(&self.shared),
        }
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut shared = self.shared.borrow_mut();
        let shared = &mut *shared;
        if shared.reader != self.id {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(piece) = shared.kept.get(self.next) {
            self.next += 1;
            self.read += piece.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        match shared.state {
            State::Failed => return Poll::Ready(Some(Err(BodyError::SourceGone))),
            State::Whole => {
                let trailers = shared.trailers.as_ref().filter(|_| !self.trailers_read);
                self.trailers_read = true;
                return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers.clone()))));
            }
            State::Reading | State::Beyond => {}
        }
        let polled = Pin::new(&mut shared.source).poll_frame(cx);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(None) => shared.finish(),
            Poll::Ready(Some(Err(_))) => shared.state = State::Failed,
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(piece) = frame.data_ref() {
                    self.read += piece.len() as u64;
                    shared.keep(piece);
                    self.next = shared.kept.len();
                } else if let Some(trailers) = frame.trailers_ref() {
                    shared.trailers = Some(trailers.clone());
                    self.trailers_read = true;
                }
                if shared.source.is_end_stream() {
                    shared.finish();
                }
            }
        }
        polled
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let shared = self.shared.borrow();
        shared.reader == self.id
            && self.next >= shared.kept.len()
            && match shared.state {
                State::Whole => shared.trailers.is_none() || self.trailers_read,
                State::Reading | State::Beyond => shared.source.is_end_stream(),
                State::Failed => false,
            }
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self.shared.borrow().total {
            Some(total) => SizeHint::with_exact(total.saturating_sub(self.read)),
            None => SizeHint::default(),
        }
    }
}

impl Shared {
    fn keep(&mut self, piece: &Bytes) {
        if self.state != State::Reading {
            return;
        }
        self.kept_bytes += piece.len();
        if self.kept_bytes > self.limit {
            self.state = State::Beyond;
            self.kept = Vec::new();
        } else {
            self.kept.push(piece.clone());
        }
    }

    fn finish(&mut self) {
        if self.state == State::Reading {
            self.state = State::Whole;
        }
    }
}
