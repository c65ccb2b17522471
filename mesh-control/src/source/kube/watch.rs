//! One watch of one kind: everything that is there, then every change, for ever.
//!
//! `unlisted -> streaming | paging -> listed -> watching`. Objects come as one stream where the API server can do that,
//! else in pages. A watch that breaks goes on from where it was; one whose place is forgotten (410) starts over, and
//! what is not there any more shows by its absence from the new list. A kind that the server does not have is asked for
//! again and again. Nothing is kept here: notices go out as they come.

use std::marker::PhantomData;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};
use kube::Client;
use kube::api::{ListParams, WatchParams};
use kube::client::Body;
use kube::core::{Request, Status, WatchEvent};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Objects that one page of a list has.
const PAGE: u32 = 500;
/// How long the server keeps a watch open, in seconds.
const WATCH_SECONDS: u32 = 290;
/// How long a watch may be silent: bookmarks come every minute.
const SILENCE: Duration = Duration::from_secs(150);
/// How long an answer may take to begin, and a page to arrive.
const ANSWER: Duration = Duration::from_secs(60);
/// The longest list of a version's kinds that is read, in bytes.
const MAX_DISCOVERY: usize = 4 << 20;
/// The first pause after a failure; each further one is twice as long, up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause after a failure.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// A watch that ends sooner has not worked.
const BRIEF: Duration = Duration::from_secs(1);
/// A kind is believed to be gone after so many answers in a row that say so.
const GONE_AFTER: u32 = 4;

/// What is read of an object.
pub trait Watched: Clone + DeserializeOwned + Send + Sync + 'static {
    /// The version to continue a watch from.
    fn version(&self) -> &str;
}

/// What a watch says.
#[derive(Clone, Debug)]
pub enum Notice<T> {
    /// All objects follow, each as present.
    Begin,
    /// An object is there.
    Present(T),
    /// That was all: others are gone.
    Complete,
    /// An object was made or changed.
    Changed(T),
    /// An object is gone.
    Gone(T),
    /// The server does not have the kind.
    Absent,
    /// Something does not work; it is tried again.
    Trouble(String),
}

impl<T> Notice<T> {
    /// The notice about another form of the object.
    pub fn map<U>(self, form: impl FnOnce(T) -> U) -> Notice<U> {
        match self {
            Self::Begin => Notice::Begin,
            Self::Present(object) => Notice::Present(form(object)),
            Self::Complete => Notice::Complete,
            Self::Changed(object) => Notice::Changed(form(object)),
            Self::Gone(object) => Notice::Gone(form(object)),
            Self::Absent => Notice::Absent,
            Self::Trouble(message) => Notice::Trouble(message),
        }
    }
}

/// The kind to watch.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Group; empty for Kubernetes' oldest.
    pub group: String,
    /// Versions, the best first: the first that is served is used.
    pub versions: Vec<String>,
    /// The name in paths.
    pub plural: String,
}

impl Resource {
    fn path(&self, version: usize) -> String {
        let version = self.versions.get(version).map_or("v1", String::as_str);
        match self.group.as_str() {
            "" => format!("/api/{version}/{}", self.plural),
            group => format!("/apis/{group}/{version}/{}", self.plural),
        }
    }
}

type Events<T> = BoxStream<'static, kube::Result<WatchEvent<T>>>;

/// How far a watch is.
enum State<T> {
    /// Nothing is known, or what is known is too old to go on from.
    Unlisted,
    /// Objects come as a stream, up to a bookmark that ends them.
    Streaming(Events<T>),
    /// Objects come in pages; the next one is this.
    Paging(Option<String>),
    /// Everything is known as of a version.
    Listed(String),
    /// Changes come.
    Watching(String, Events<T>),
}

/// Why a step failed.
#[derive(Debug)]
enum Failure {
    /// The server does not have the kind in this version.
    NotServed,
    /// The place to go on from is forgotten.
    Expired,
    /// The server cannot stream lists.
    NoStreaming,
    /// The watch ended as soon as it began: the server is not to be asked without pause.
    Brief,
    /// Anything else; tried again from the same state.
    Other(String),
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::from(&*status),
            other => Self::Other(other.to_string()),
        }
    }
}

impl From<&Status> for Failure {
    fn from(status: &Status) -> Self {
        match status.code {
            404 => Self::NotServed,
            410 => Self::Expired,
            // A server that was restored from a backup does not know the versions that it gave out before.
            504 if status.message.contains("Too large resource version") => Self::Expired,
            400 | 422 if status.message.contains("sendInitialEvents") => Self::NoStreaming,
            _ => Self::Other(format!("{} ({})", status.message, status.code)),
        }
    }
}

/// A running watch.
pub struct Watch<T> {
    client: Client,
    resource: Resource,
    /// Which of the resource's versions is tried.
    version: usize,
    streaming: bool,
    state: State<T>,
    pause: Duration,
    /// Answers in a row that the kind is not served.
    missing: u32,
    listed_once: bool,
    began: Instant,
    kind: PhantomData<T>,
}

impl<T: Watched> Watch<T> {
    /// Not begun yet.
    pub fn new(client: Client, resource: Resource) -> Self {
        Self {
            client,
            resource,
            version: 0,
            streaming: true,
            state: State::Unlisted,
            pause: MIN_PAUSE,
            missing: 0,
            listed_once: false,
            began: Instant::now(),
            kind: PhantomData,
        }
    }

    /// Watches until nobody listens.
    pub async fn run<M>(mut self, out: mpsc::Sender<M>, message: impl Fn(Notice<T>) -> M) {
        let mut notices = Vec::new();
        loop {
            let state = std::mem::replace(&mut self.state, State::Unlisted);
            let name = self.resource.plural.clone();
            let pause = match self.step(state, &mut notices).await {
                Ok(next) => {
                    self.state = next;
                    None
                }
                Err((back, failure)) => {
                    metrics::counter!("mesh_source_watch_failures_total", "resource" => name).increment(1);
                    Some(self.fail(back, failure, &mut notices))
                }
            };
            for notice in notices.drain(..) {
                if out.send(message(notice)).await.is_err() {
                    return;
                }
            }
            if let Some(pause) = pause {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = out.closed() => return,
                }
            }
        }
    }

    /// One step; with a failure comes the state to go back to.
    async fn step(&mut self, state: State<T>, notices: &mut Vec<Notice<T>>) -> Result<State<T>, (State<T>, Failure)> {
        match state {
            State::Unlisted => {
                self.expect_served()
                    .await
                    .map_err(|failure| (State::Unlisted, failure))?;
                metrics::counter!("mesh_source_lists_total", "resource" => self.resource.plural.clone()).increment(1);
                if !self.streaming {
                    notices.push(Notice::Begin);
                    return Ok(State::Paging(None));
                }
                let events = self
                    .watch("", true)
                    .await
                    .map_err(|failure| (State::Unlisted, failure))?;
                notices.push(Notice::Begin);
                Ok(State::Streaming(events))
            }
            State::Streaming(mut events) => match next(&mut events, ANSWER).await {
                // Half of a list is of no use.
                Err(failure) => Err((State::Unlisted, failure)),
                Ok(None) => {
                    let failure = Failure::Other("the list ended before its end".to_owned());
                    Err((State::Unlisted, failure))
                }
                Ok(Some(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                    notices.push(Notice::Present(object));
                    Ok(State::Streaming(events))
                }
                Ok(Some(WatchEvent::Deleted(object))) => {
                    notices.push(Notice::Gone(object));
                    Ok(State::Streaming(events))
                }
                Ok(Some(WatchEvent::Bookmark(bookmark))) => {
                    if bookmark.metadata.annotations.contains_key("k8s.io/initial-events-end") {
                        self.complete(notices);
                        return Ok(State::Watching(bookmark.metadata.resource_version, events));
                    }
                    Ok(State::Streaming(events))
                }
                Ok(Some(WatchEvent::Error(status))) => Err((State::Unlisted, Failure::from(&*status))),
            },
            State::Paging(at) => {
                let page = self.page(at).await.map_err(|failure| (State::Unlisted, failure))?;
                notices.extend(page.items.into_iter().map(Notice::Present));
                if !page.metadata.next.is_empty() {
                    return Ok(State::Paging(Some(page.metadata.next)));
                }
                self.complete(notices);
                Ok(State::Listed(page.metadata.resource_version))
            }
            State::Listed(version) => match self.watch(&version, false).await {
                Ok(events) => {
                    self.began = Instant::now();
                    Ok(State::Watching(version, events))
                }
                Err(failure) => Err((State::Listed(version), failure)),
            },
            State::Watching(version, mut events) => match next(&mut events, SILENCE).await {
                Err(failure) => Err((State::Listed(version), failure)),
                // The server ends every watch after a while.
                Ok(None) if self.began.elapsed() < BRIEF => Err((State::Listed(version), Failure::Brief)),
                Ok(None) => Ok(State::Listed(version)),
                Ok(Some(event)) => {
                    let version = match event {
                        WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                            let version = object.version().to_owned();
                            notices.push(Notice::Changed(object));
                            version
                        }
                        WatchEvent::Deleted(object) => {
                            let version = object.version().to_owned();
                            notices.push(Notice::Gone(object));
                            version
                        }
                        WatchEvent::Bookmark(bookmark) => bookmark.metadata.resource_version,
                        WatchEvent::Error(status) => {
                            return Err((State::Listed(version), Failure::from(&*status)));
                        }
                    };
                    self.pause = MIN_PAUSE;
                    Ok(State::Watching(version, events))
                }
            },
        }
    }

    fn complete(&mut self, notices: &mut Vec<Notice<T>>) {
        notices.push(Notice::Complete);
        self.pause = MIN_PAUSE;
        self.missing = 0;
        self.listed_once = true;
    }

    /// Where to go on after a failure, and after which pause.
    fn fail(&mut self, back: State<T>, failure: Failure, notices: &mut Vec<Notice<T>>) -> Duration {
        self.state = back;
        match failure {
            Failure::NoStreaming => {
                self.streaming = false;
                self.state = State::Unlisted;
                return Duration::ZERO;
            }
            Failure::Expired => {
                tracing::info!(
                    "the watch of {} starts over: its place is forgotten",
                    self.resource.plural
                );
                self.state = State::Unlisted;
            }
            Failure::NotServed => {
                self.state = State::Unlisted;
                self.version += 1;
                if self.version < self.resource.versions.len() {
                    return Duration::ZERO;
                }
                self.version = 0;
                self.missing += 1;
                // A server that starts may not have all definitions yet: objects that were there are given up late.
                if !self.listed_once || self.missing >= GONE_AFTER {
                    notices.push(Notice::Absent);
                    self.listed_once = false;
                }
            }
            Failure::Brief => {}
            Failure::Other(message) => {
                notices.push(Notice::Trouble(format!(
                    "{}: {message}",
                    self.resource.path(self.version)
                )));
            }
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(MAX_PAUSE);
        // Several replicas must not come back in step.
        pause.mul_f64(0.75 + fastrand::f64() / 2.0)
    }

    /// Asks whether the version that is tried has the kind. A watch of what is not there ends with an answer that says
    /// nothing.
    async fn expect_served(&mut self) -> Result<(), Failure> {
        let Resource {
            group,
            versions,
            plural,
        } = &self.resource;
        let Some(version) = versions.get(self.version).filter(|_| !group.is_empty()) else {
            return Ok(());
        };
        let path = format!("/apis/{group}/{version}");
        let other = |message: String| Failure::Other(format!("discovering what is served: {message}"));
        let request = http::Request::get(&path).body(Body::empty());
        let request = request.map_err(|error| other(error.to_string()))?;
        let response = tokio::time::timeout(ANSWER, self.client.send(request)).await;
        let response = response.map_err(|_| other(format!("no answer within {ANSWER:?}")))??;
        let (status, body) = (response.status(), Limited::new(response.into_body(), MAX_DISCOVERY));
        if status == StatusCode::NOT_FOUND {
            return Err(Failure::NotServed);
        }
        if !status.is_success() {
            return Err(other(status.to_string()));
        }
        let body = body
            .collect()
            .await
            .map_err(|error| other(error.to_string()))?
            .to_bytes();
        let served: Served = serde_json::from_slice(&body).map_err(|error| other(error.to_string()))?;
        let has = served.resources.iter().any(|resource| resource.name == *plural);
        if has { Ok(()) } else { Err(Failure::NotServed) }
    }

    async fn watch(&mut self, version: &str, list: bool) -> Result<Events<T>, Failure> {
        let params = WatchParams {
            timeout: Some(WATCH_SECONDS),
            bookmarks: true,
            send_initial_events: list,
            ..WatchParams::default()
        };
        let request = Request::new(self.resource.path(self.version)).watch(&params, version);
        let request = request.map_err(|error| Failure::Other(error.to_string()))?;
        let answer = tokio::time::timeout(ANSWER, self.client.request_events::<T>(request)).await;
        let events = answer.map_err(|_| Failure::Other(format!("no answer within {ANSWER:?}")))??;
        Ok(events.boxed())
    }

    async fn page(&mut self, at: Option<String>) -> Result<Page<T>, Failure> {
        let params = ListParams {
            limit: Some(PAGE),
            continue_token: at,
            ..ListParams::default()
        };
        let request = Request::new(self.resource.path(self.version)).list(&params);
        let request = request.map_err(|error| Failure::Other(error.to_string()))?;
        let answer = tokio::time::timeout(ANSWER, self.client.request::<Page<T>>(request)).await;
        Ok(answer.map_err(|_| Failure::Other(format!("no answer within {ANSWER:?}")))??)
    }
}

async fn next<T>(events: &mut Events<T>, within: Duration) -> Result<Option<WatchEvent<T>>, Failure> {
    match tokio::time::timeout(within, events.next()).await {
        Err(_) => Err(Failure::Other(format!("silent for {within:?}"))),
        Ok(None) => Ok(None),
        Ok(Some(event)) => Ok(Some(event?)),
    }
}

/// The kinds of a group and version.
#[derive(Deserialize)]
struct Served {
    #[serde(default)]
    resources: Vec<ServedResource>,
}

#[derive(Deserialize)]
struct ServedResource {
    name: String,
}

/// Part of a list.
#[derive(Deserialize)]
struct Page<T> {
    metadata: PageMetadata,
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PageMetadata {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}
