//! A request body copied to a mirror.
//!
//! What the request reads is queued for the mirror, up to a bound; a mirror that falls behind fails and is forgotten. The
//! request is never slowed down.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use super::{Body, BodyError};

/// Bytes that a mirror may be behind its request.
pub const MIRROR_LIMIT: usize = 256 * 1024;

pub(super) fn split(body: Body, limit: usize) -> (Source, Copy) {
    let queue = Rc::new(RefCell::new(Queue {
        pieces: VecDeque::new(),
        bytes: 0,
        trailers: None,
        remaining: body.size_hint().exact(),
        limit,
        state: State::Open,
        waker: None,
    }));
    let source = Source {
        body,
        queue: Rc::clone(&queue),
    };
    (source, Copy { queue })
}

/// The request's side: reads the body and copies it.
pub(super) struct Source {
    body: Body,
    queue: Rc<RefCell<Queue>>,
}

/// The mirror's side.
pub(super) struct Copy {
    queue: Rc<RefCell<Queue>>,
}

struct Queue {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    trailers: Option<HeaderMap>,
    /// Bytes that the mirror has still to read, where known.
    remaining: Option<u64>,
    limit: usize,
    state: State,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Ended,
    Broken,
    TooSlow,
    Unread,
}

impl Source {
    pub(super) fn body(&self) -> &Body {
        &self.body
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let mut queue = self.queue.borrow_mut();
        match &polled {
            Poll::Pending => return polled,
            Poll::Ready(None) => queue.close(State::Ended),
            Poll::Ready(Some(Err(_))) => queue.close(State::Broken),
            Poll::Ready(Some(Ok(frame))) => {
                queue.push(frame);
                if self.body.is_end_stream() {
                    queue.close(State::Ended);
                }
            }
        }
        polled
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let end = if self.body.is_end_stream() {
            State::Ended
        } else {
            State::Broken
        };
        self.queue.borrow_mut().close(end);
    }
}

impl Copy {
    /// A copy of a body that was read to its end.
    #[cfg(test)]
    pub(super) fn whole(pieces: VecDeque<Bytes>, trailers: Option<HeaderMap>) -> Self {
        let queue = Queue {
            bytes: pieces.iter().map(Bytes::len).sum(),
            pieces,
            trailers,
            remaining: None,
            limit: usize::MAX,
            state: State::Ended,
            waker: None,
        };
        Self {
            queue: Rc::new(RefCell::new(queue)),
        }
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut queue = self.queue.borrow_mut();
        if queue.state == State::TooSlow {
            let limit = queue.limit;
            return Poll::Ready(Some(Err(BodyError::MirrorTooSlow { limit })));
        }
        if let Some(piece) = queue.pieces.pop_front() {
            queue.bytes -= piece.len();
            queue.remaining = queue
                .remaining
                .map(|remaining| remaining.saturating_sub(piece.len() as u64));
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match queue.state {
            State::Ended => Poll::Ready(queue.trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))),
            State::Broken => Poll::Ready(Some(Err(BodyError::SourceGone))),
            _ => {
                queue.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let queue = self.queue.borrow();
        queue.state == State::Ended && queue.pieces.is_empty() && queue.trailers.is_none()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self.queue.borrow().remaining {
            Some(remaining) => SizeHint::with_exact(remaining),
            None => SizeHint::default(),
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let mut queue = self.queue.borrow_mut();
        queue.state = State::Unread;
        queue.pieces = VecDeque::new();
    }
}

impl Queue {
    fn push(&mut self, frame: &Frame<Bytes>) {
        if self.state != State::Open {
            return;
        }
        if let Some(piece) = frame.data_ref() {
            self.bytes += piece.len();
            if self.bytes > self.limit {
                self.pieces = VecDeque::new();
                self.close(State::TooSlow);
                return;
            }
            self.pieces.push_back(piece.clone());
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
        }
        self.wake();
    }

    fn close(&mut self, state: State) {
        if self.state == State::Open {
            self.state = state;
            self.wake();
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
