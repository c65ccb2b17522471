//! An API server in memory, for tests: objects of any kind by path, resource versions, conflicts, lists, watches and merge
//! patches, as far as this crate uses them. It can be away, and it remembers what was written.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use kube::Client;
use kube::client::Body;
use mesh_api::crd::Kind;
use serde_json::{Value, json};
use tokio::sync::watch;
use tonic::codegen::Service;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;
type Hook = Box<dyn Fn(&Value) -> Value + Send>;

/// The server; clones are the same one.
#[derive(Clone)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
    /// Grows with each change.
    version: Arc<watch::Sender<u64>>,
    away: Arc<watch::Sender<bool>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Path, Value>,
    history: Vec<(u64, &'static str, Path, Value)>,
    writes: Vec<String>,
    /// What answers a POST to a collection instead of storing.
    hooks: BTreeMap<String, Hook>,
    /// Writes that are refused, by the start of `METHOD /path`.
    forbidden: Vec<String>,
    /// Starts of paths that lead nowhere: kinds that are not defined, versions that are not served.
    unserved: Vec<String>,
    /// Whether lists can come as watches.
    streams: bool,
    /// Watches cannot go on from before this version.
    forgotten: u64,
}

/// Collection (group and plural), namespace, name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Path {
    collection: String,
    namespace: String,
    name: String,
}

impl FakeApi {
    pub fn new() -> Self {
        Self {
            state: Arc::default(),
            version: Arc::new(watch::Sender::new(1)),
            away: Arc::new(watch::Sender::new(false)),
        }
    }

    pub fn client(&self) -> Client {
        Client::new(Connection(self.clone()), "default")
    }

    /// From now on calls fail as if nobody listened, and watches break off; or no longer.
    pub fn set_away(&self, away: bool) {
        self.away.send_replace(away);
    }

    /// Answers POSTs to `collection` (`tokenreviews`) with what `hook` makes of them.
    pub fn on_post(&self, collection: &str, hook: impl Fn(&Value) -> Value + Send + 'static) {
        self.state().hooks.insert(collection.to_owned(), Box::new(hook));
    }

    /// Refuses requests whose `METHOD /path` begins so.
    pub fn forbid(&self, start: &str) {
        self.state().forbidden.push(start.to_owned());
    }

    /// Answers requests whose path begins so as for a kind that is not defined; with `false` no longer.
    pub fn unserve(&self, start: &str, unserved: bool) {
        let mut state = self.state();
        state.unserved.retain(|known| known != start);
        if unserved {
            state.unserved.push(start.to_owned());
        }
    }

    /// From now on lists can come as watches.
    pub fn stream_lists(&self) {
        self.state().streams = true;
    }

    /// Forgets what has happened so far: a watch that is behind has to start over.
    pub fn forget(&self) {
        self.state().forgotten = *self.version.borrow();
    }

    /// Puts an object there, as somebody else would: `path` as in the API (`/api/v1/namespaces/a/secrets/b`).
    pub fn put(&self, path: &str, mut object: Value) {
        let path = Path::parse(path).0;
        object["metadata"]["name"] = json!(path.name);
        if !path.namespace.is_empty() {
            object["metadata"]["namespace"] = json!(path.namespace);
        }
        let kind = if self.state().objects.contains_key(&path) {
            "MODIFIED"
        } else {
            "ADDED"
        };
        self.store(&mut self.state(), kind, path, object);
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.state().objects.get(&Path::parse(path).0).cloned()
    }

    pub fn delete(&self, path: &str) {
        let path = Path::parse(path).0;
        let mut state = self.state();
        if let Some(object) = state.objects.remove(&path) {
            self.note(&mut state, "DELETED", path, object);
        }
    }

    /// `METHOD /path` of each write that was taken, and forget them.
    pub fn take_writes(&self) -> Vec<String> {
        std::mem::take(&mut self.state().writes)
    }

    /// Waits for an object to be as wanted.
    pub async fn until(&self, path: &str, wanted: impl Fn(Option<&Value>) -> bool) -> Option<Value> {
        let mut version = self.version.subscribe();
        let reached = async {
            loop {
                let object = self.get(path);
                if wanted(object.as_ref()) {
                    return object;
                }
                version.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(Duration::from_secs(60), reached).await {
            Ok(object) => object,
            Err(_) => panic!("{path} is still {:?}", self.get(path)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn store(&self, state: &mut State, kind: &'static str, path: Path, mut object: Value) -> Value {
        let version = *self.version.borrow() + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{version}"));
        }
        state.objects.insert(path.clone(), object.clone());
        self.note(state, kind, path, object.clone());
        object
    }

    fn note(&self, state: &mut State, kind: &'static str, path: Path, mut object: Value) {
        let version = *self.version.borrow() + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        state.history.push((version, kind, path, object));
        self.version.send_replace(version);
    }

    async fn answer(self, request: Request<Body>) -> Result<Answer, std::io::Error> {
        let away = || std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "the API server is away");
        if *self.away.borrow() {
            return Err(away());
        }
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| away())?.to_bytes();
        let (path, subresource) = Path::parse(parts.uri.path());
        let query: BTreeMap<String, String> = parts
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), decoded(value)))
            .collect();
        let line = format!("{} {}", parts.method, parts.uri.path());
        if self.state().forbidden.iter().any(|start| line.starts_with(start)) {
            return Ok(failure(StatusCode::FORBIDDEN, "Forbidden", &format!("may not {line}")));
        }
        let asked = format!("{}/", parts.uri.path());
        if self.state().unserved.iter().any(|start| asked.starts_with(start)) {
            return Ok(no_such_path());
        }
        if path.collection.ends_with('/') {
            return Ok(served());
        }
        if query.get("watch").is_some_and(|watch| watch == "true") {
            let streams = self.state().streams;
            if query.contains_key("sendInitialEvents") && !streams {
                let message = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
                return Ok(failure(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message));
            }
            return Ok(self.watch(path, query));
        }
        let mut state = self.state();
        if parts.method == Method::GET {
            return Ok(if path.name.is_empty() {
                self.list(&state, &path, &query)
            } else {
                match state.objects.get(&path) {
                    Some(object) => success(object),
                    None => not_found(&path),
                }
            });
        }
        let document: Value = serde_json::from_slice(&body).unwrap_or_default();
        let applied = parts
            .headers
            .get("content-type")
            .is_some_and(|kind| kind == "application/apply-patch+yaml");
        let answer = if applied && !state.objects.contains_key(&path) {
            success(&self.store(&mut state, "ADDED", path, document))
        } else {
            self.write(&mut state, &parts.method, path, &subresource, document)
        };
        if answer.status().is_success() {
            state.writes.push(line);
        }
        Ok(answer)
    }

    fn write(
        &self,
        state: &mut State,
        method: &Method,
        mut path: Path,
        subresource: &str,
        mut document: Value,
    ) -> Answer {
        if *method == Method::POST {
            if let Some(hook) = state.hooks.get(&path.collection) {
                return success(&hook(&document));
            }
            path.name = document["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            if state.objects.contains_key(&path) {
                return failure(StatusCode::CONFLICT, "AlreadyExists", &format!("{path:?} is there"));
            }
            if !path.namespace.is_empty() {
                document["metadata"]["namespace"] = json!(path.namespace);
            }
            return success(&self.store(state, "ADDED", path, document));
        }
        let Some(present) = state.objects.get(&path).cloned() else {
            return not_found(&path);
        };
        let expected = &document["metadata"]["resourceVersion"];
        if !expected.is_null() && *expected != present["metadata"]["resourceVersion"] {
            return failure(StatusCode::CONFLICT, "Conflict", &format!("{path:?} has changed"));
        }
        if *method == Method::DELETE {
            state.objects.remove(&path);
            self.note(state, "DELETED", path, present.clone());
            return success(&present);
        }
        let changed = if *method == Method::PATCH {
            let mut changed = present.clone();
            merge(&mut changed, &document);
            if subresource == "status" {
                let status = changed["status"].take();
                changed = present.clone();
                changed["status"] = status;
            }
            changed
        } else {
            document
        };
        if changed == present {
            return success(&present);
        }
        success(&self.store(state, "MODIFIED", path, changed))
    }

    fn list(&self, state: &State, of: &Path, query: &BTreeMap<String, String>) -> Answer {
        let chosen = state
            .objects
            .iter()
            .filter(|(path, object)| of.chooses(path, object, query));
        let items: Vec<&Value> = chosen.map(|(_, object)| object).collect();
        let version = self.version.borrow().to_string();
        success(&json!({
            "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": version }, "items": items
        }))
    }

    fn watch(self, of: Path, query: BTreeMap<String, String>) -> Answer {
        let mut from = query
            .get("resourceVersion")
            .and_then(|version| version.parse().ok())
            .unwrap_or(0);
        let mut first = Vec::new();
        if query.contains_key("sendInitialEvents") {
            let state = self.state();
            let chosen = state
                .objects
                .iter()
                .filter(|(path, object)| of.chooses(path, object, &query));
            first.extend(chosen.map(|(_, object)| json!({ "type": "ADDED", "object": object })));
            from = *self.version.borrow();
            let metadata = json!({
                "resourceVersion": from.to_string(),
                "annotations": { "k8s.io/initial-events-end": "true" }
            });
            let bookmark = json!({ "apiVersion": "v1", "kind": "Bookmark", "metadata": metadata });
            first.push(json!({ "type": "BOOKMARK", "object": bookmark }));
        } else if from < self.state().forgotten {
            return failure(StatusCode::GONE, "Expired", "too old resource version");
        }
        let first = futures_util::stream::iter(first).map(|event| format!("{event}\n"));
        let (version, away) = (self.version.subscribe(), self.away.subscribe());
        let start = (self, of, query, from, version, away);
        let events = futures_util::stream::unfold(start, async |(api, of, query, mut from, mut version, mut away)| {
            loop {
                if *away.borrow_and_update() {
                    return None;
                }
                let later = |(at, _, _, _): &&(u64, _, _, _)| *at > from;
                let next = api.state().history.iter().find(later).cloned();
                if let Some((at, kind, path, object)) = next {
                    from = at;
                    if of.chooses(&path, &object, &query) {
                        let line = format!("{}\n", json!({ "type": kind, "object": object }));
                        return Some((line, (api, of, query, from, version, away)));
                    }
                    continue;
                }
                tokio::select! {
                    _ = version.changed() => {}
                    _ = away.changed() => {}
                }
            }
        });
        let frames = first
            .chain(events)
            .map(|line| Ok::<_, Infallible>(Frame::data(Bytes::from(line))));
        Response::new(StreamBody::new(frames).boxed_unsync())
    }
}

impl Path {
    /// The path and, after it, a subresource.
    fn parse(path: &str) -> (Self, String) {
        let mut parts = path.trim_matches('/').split('/').map(str::to_owned);
        let group = match parts.next().as_deref() {
            Some("apis") => format!("{}/", parts.next().unwrap_or_default()),
            _ => String::new(),
        };
        let rest: Vec<String> = parts.skip(1).collect();
        let at = |index: usize| rest.get(index).cloned().unwrap_or_default();
        let (namespace, skip) = if at(0) == "namespaces" && rest.len() > 2 {
            (at(1), 2)
        } else {
            (String::new(), 0)
        };
        let path = Self {
            collection: format!("{group}{}", at(skip)),
            namespace,
            name: at(skip + 1),
        };
        (path, at(skip + 2))
    }

    fn chooses(&self, path: &Self, object: &Value, query: &BTreeMap<String, String>) -> bool {
        let named = query
            .get("fieldSelector")
            .and_then(|field| field.strip_prefix("metadata.name="));
        let labels = query.get("labelSelector").map_or("", String::as_str);
        let labelled = labels.split(',').filter_map(|pair| pair.split_once('='));
        self.collection == path.collection
            && (self.namespace.is_empty() || self.namespace == path.namespace)
            && named.is_none_or(|name| name == path.name)
            && labelled
                .into_iter()
                .all(|(name, value)| object["metadata"]["labels"][name] == value)
            && among(labels, object)
    }
}

/// `name in (one,two)`, alone.
fn among(selector: &str, object: &Value) -> bool {
    let Some((name, values)) = selector.split_once(" in (") else {
        return true;
    };
    let values = values.trim_end_matches(')').split(',');
    values
        .into_iter()
        .any(|value| object["metadata"]["labels"][name] == value)
}

/// A JSON merge patch (RFC 7396).
fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(name);
        } else {
            merge(&mut target[name], value);
        }
    }
}

fn decoded(text: &str) -> String {
    let mut text = text.replace('+', " ");
    for (code, character) in [("%3D", "="), ("%2F", "/"), ("%28", "("), ("%29", ")"), ("%2C", ",")] {
        text = text.replace(code, character);
    }
    text
}

fn success(object: &Value) -> Answer {
    answer(StatusCode::OK, object)
}

/// What a server says of a path that it has never heard of: no Status.
fn no_such_path() -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from_static(b"404 page not found\n")).boxed_unsync());
    *answer.status_mut() = StatusCode::NOT_FOUND;
    answer
}

/// The kinds that a group and version has: whatever this crate reads.
fn served() -> Answer {
    let policy = Kind::ALL.iter().map(|kind| kind.plural());
    let all = policy.chain(["endpointslices".to_owned(), "servicecidrs".to_owned()]);
    let resources: Vec<Value> = all.map(|name| json!({ "name": name })).collect();
    success(&json!({ "kind": "APIResourceList", "resources": resources }))
}

fn not_found(path: &Path) -> Answer {
    failure(StatusCode::NOT_FOUND, "NotFound", &format!("there is no {path:?}"))
}

fn failure(code: StatusCode, reason: &str, message: &str) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": code.as_u16(), "reason": reason, "message": message
    });
    answer(code, &status)
}

fn answer(code: StatusCode, body: &Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body.to_string())).boxed_unsync());
    *answer.status_mut() = code;
    answer
}

#[derive(Clone)]
struct Connection(FakeApi);

impl Service<Request<Body>> for Connection {
    type Response = Answer;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, std::io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.clone().answer(request))
    }
}
