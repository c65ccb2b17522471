//! Bodies that are read once, again, and twice at the same time.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use futures_util::poll;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use proptest::prelude::*;

use super::*;

type Log = Rc<RefCell<Vec<String>>>;

struct Logging(Log, &'static str);

impl Observer for Logging {
    fn data(&mut self, piece: &Bytes) {
        self.0.borrow_mut().push(format!("{} {}", self.1, piece.len()));
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        self.0
            .borrow_mut()
            .push(format!("{} trailers {}", self.1, trailers.len()));
    }

    fn end(self: Box<Self>, end: End, bytes: u64) {
        self.0.borrow_mut().push(format!("{} {end:?} {bytes}", self.1));
    }
}

/// A body in pieces, with trailers where wanted: the copy of one whose source has read on.
fn pieces(pieces: &[&'static str], trailers: bool) -> Body {
    let queue: std::collections::VecDeque<Bytes> = pieces
        .iter()
        .map(|piece| Bytes::from_static(piece.as_bytes()))
        .collect();
    Body::of(Kind::Mirror(tee::Copy::whole(queue, trailers.then(some_trailers))))
}

fn some_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    trailers
}

async fn next(body: &mut Body) -> Result<Option<Frame<Bytes>>, BodyError> {
    body.frame().await.transpose()
}

async fn text(body: Body) -> String {
    String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn observers_learn_everything_in_order() {
    let log = Log::default();
    let body = pieces(&["abc", "de"], true)
        .observed(Box::new(Logging(log.clone(), "first")))
        .observed(Box::new(Logging(log.clone(), "second")));
    let collected = body.collect().await.unwrap();
    assert_eq!(collected.trailers(), Some(&some_trailers()));
    let expected = [
        "first 3",
        "second 3",
        "first 2",
        "second 2",
        "first trailers 1",
        "second trailers 1",
    ];
    let ends = ["first Complete 5", "second Complete 5"];
    assert_eq!(*log.borrow(), [&expected[..], &ends[..]].concat());
}

#[tokio::test]
async fn ends_are_told_apart() {
    let observed = |body: Body| {
        let log = Log::default();
        (body.observed(Box::new(Logging(log.clone(), "it"))), log)
    };
    // hyper does not ask for the end of a body that it knows to be over.
    let (mut body, log) = observed(Body::full("abc"));
    next(&mut body).await.unwrap();
    drop(body);
    assert_eq!(*log.borrow(), ["it 3", "it Complete 3"]);
    let (body, log) = observed(Body::empty());
    drop(body);
    assert_eq!(*log.borrow(), ["it Complete 0"]);
    let (body, log) = observed(Body::full("abc"));
    drop(body);
    assert_eq!(*log.borrow(), ["it Dropped 0"]);
    let (source, copy) = pieces(&["abc", "d"], false).tee(1);
    drop(source);
    let (mut body, log) = observed(copy);
    assert!(next(&mut body).await.is_err());
    drop(body);
    assert_eq!(*log.borrow(), ["it Failed 0"]);
}

#[test]
fn lengths_are_known() {
    for (body, exact, over) in [
        (Body::empty(), Some(0), true),
        (Body::full(""), Some(0), true),
        (Body::full("abc"), Some(3), false),
        (ReplayBuffer::new(Body::full("abc"), 10).body().unwrap(), Some(3), false),
        (ReplayBuffer::new(Body::empty(), 10).body().unwrap(), Some(0), true),
        (Body::full("abc").tee(10).0, Some(3), false),
        (Body::full("abc").tee(10).1, Some(3), false),
        (pieces(&["abc"], false), None, false),
    ] {
        assert_eq!(body.size_hint().exact(), exact, "{body:?}");
        assert_eq!(body.is_end_stream(), over, "{body:?}");
    }
}

#[tokio::test]
async fn a_kept_body_can_be_read_again_from_the_middle_of_a_try() {
    let buffer = ReplayBuffer::new(pieces(&["ab", "cd", "ef"], true), 6);
    let mut first = buffer.body().unwrap();
    assert_eq!(next(&mut first).await.unwrap().unwrap().into_data().unwrap(), "ab");
    let mut second = buffer.body().unwrap();
    assert!(matches!(next(&mut first).await, Err(BodyError::Superseded)));
    assert_eq!(next(&mut second).await.unwrap().unwrap().into_data().unwrap(), "ab");
    assert_eq!(next(&mut second).await.unwrap().unwrap().into_data().unwrap(), "cd");
    for _ in 0..2 {
        let collected = buffer.body().unwrap().collect().await.unwrap();
        assert_eq!(collected.trailers(), Some(&some_trailers()));
        assert_eq!(collected.to_bytes(), "abcdef");
    }
    assert_eq!(
        text(buffer.body().unwrap().again().unwrap().body().unwrap()).await,
        "abcdef"
    );
}

#[tokio::test]
async fn beyond_the_bound_a_body_is_read_once() {
    let buffer = ReplayBuffer::new(pieces(&["ab", "cd", "ef"], false), 5);
    let mut first = buffer.body().unwrap();
    next(&mut first).await.unwrap();
    next(&mut first).await.unwrap();
    assert!(buffer.is_replayable());
    next(&mut first).await.unwrap();
    assert!(!buffer.is_replayable() && buffer.body().is_none());
    assert!(next(&mut first).await.unwrap().is_none());

    let known = ReplayBuffer::new(Body::full("too long"), 5);
    let first = known.body().unwrap();
    assert!(!known.is_replayable() && known.body().is_none());
    assert_eq!(text(first).await, "too long");
}

#[tokio::test]
async fn a_mirror_reads_what_its_request_read() {
    let (mut source, mut mirror) = pieces(&["ab", "cd"], true).tee(100);
    assert!(poll!(Pin::new(&mut mirror.frame())).is_pending());
    next(&mut source).await.unwrap();
    assert_eq!(next(&mut mirror).await.unwrap().unwrap().into_data().unwrap(), "ab");
    assert_eq!(source.collect().await.unwrap().trailers(), Some(&some_trailers()));
    let rest = mirror.collect().await.unwrap();
    assert_eq!(rest.trailers(), Some(&some_trailers()));
    assert_eq!(rest.to_bytes(), "cd");
}

#[tokio::test]
async fn a_slow_mirror_is_dropped_and_a_gone_one_forgotten() {
    let (source, mut mirror) = pieces(&["ab", "cd", "ef"], false).tee(5);
    assert_eq!(text(source).await, "abcdef");
    assert!(matches!(
        next(&mut mirror).await,
        Err(BodyError::MirrorTooSlow { limit: 5 })
    ));
    let (source, mirror) = pieces(&["ab", "cd", "ef"], false).tee(5);
    drop(mirror);
    assert_eq!(text(source).await, "abcdef");
}

#[test]
fn bodies_stay_small() {
    assert!(size_of::<Body>() <= 128, "{}", size_of::<Body>());
}

proptest! {
    /// Whatever is read before a retry, the retry reads everything, and a mirror of it all the same.
    #[test]
    fn a_retry_reads_everything(texts in prop::collection::vec("[a-z]{1,5}", 0..8), reads in prop::collection::vec(0_usize..10, 0..4)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let whole = texts.concat();
            let queue = texts.iter().map(|text| Bytes::from(text.clone())).collect();
            let (source, mirror) = Body::of(Kind::Mirror(tee::Copy::whole(queue, None))).tee(1000);
            let buffer = ReplayBuffer::new(source, 1000);
            for count in reads {
                let mut attempt = buffer.body().unwrap();
                for _ in 0..count {
                    let _ = next(&mut attempt).await.unwrap();
                }
            }
            assert_eq!(text(buffer.body().unwrap()).await, whole);
            assert_eq!(text(mirror).await, whole);
        });
    }
}

#[tokio::test]
async fn pending_reads_are_woken() {
    let (mut source, mirror) = pieces(&["ab"], false).tee(100);
    let reads = async {
        let mut mirror = mirror;
        let mut read = String::new();
        while let Some(frame) = next(&mut mirror).await.unwrap() {
            read.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
        }
        read
    };
    let mut reads = Box::pin(reads);
    assert_eq!(poll!(&mut reads), Poll::Pending);
    next(&mut source).await.unwrap();
    next(&mut source).await.unwrap();
    assert_eq!(reads.await, "ab");
}
