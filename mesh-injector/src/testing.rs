//! An API server in memory, for tests: objects by path, with resource versions and conflicts, JSON patches, and lists.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// The Secret of the certificate.
pub const SECRET: &str = "/api/v1/namespaces/mesh-system/secrets/mesh-injector-cert";
/// The injection webhook's configuration.
pub const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/mesh-injector";
/// The validation webhook's configuration.
pub const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/mesh-validator";
/// Nodes.
pub const NODES: &str = "/api/v1/nodes";

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    log: Vec<String>,
    /// Requests that are refused: method and path.
    refused: Vec<(Method, String)>,
}

/// The server; clones share it.
#[derive(Clone, Default)]
pub struct Api(Arc<Mutex<State>>);

impl Api {
    /// A server with the webhooks' configurations and one node.
    pub fn new() -> Self {
        let api = Self::default();
        let webhook = |name: &str| json!({"name": name, "clientConfig": {"service": {"name": "mesh-injector"}}});
        api.put(
            MUTATING,
            json!({"metadata": {"name": "mesh-injector"}, "webhooks": [webhook("a.b.c"), webhook("d.e.f")]}),
        );
        api.put(
            VALIDATING,
            json!({"metadata": {"name": "mesh-validator"}, "webhooks": [webhook("g.h.i")]}),
        );
        api.node("one", "v1.33.1");
        api
    }

    /// A node with a kubelet of this version.
    pub fn node(&self, name: &str, kubelet: &str) {
        let info = [
            "architecture",
            "bootID",
            "containerRuntimeVersion",
            "kernelVersion",
            "kubeProxyVersion",
            "machineID",
            "operatingSystem",
            "osImage",
            "systemUUID",
        ];
        let mut info: serde_json::Map<String, Value> = info.iter().map(|key| ((*key).to_owned(), "".into())).collect();
        info.insert("kubeletVersion".to_owned(), kubelet.into());
        let node = json!({"metadata": {"name": name}, "status": {"nodeInfo": info}});
        self.put(&format!("{NODES}/{name}"), node);
    }

    /// Puts an object there, as another client would.
    pub fn put(&self, path: &str, mut object: Value) {
        let mut state = self.0.lock().unwrap();
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        state.objects.insert(path.to_owned(), object);
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.0.lock().unwrap().objects.get(path).cloned()
    }

    pub fn remove(&self, path: &str) {
        self.0.lock().unwrap().objects.remove(path);
    }

    /// Refuses these requests from now on.
    pub fn refuse(&self, method: Method, path: &str) {
        self.0.lock().unwrap().refused.push((method, path.to_owned()));
    }

    /// Refuses nothing any more.
    pub fn relent(&self) {
        self.0.lock().unwrap().refused.clear();
    }

    /// Requests that changed something: `PUT /path`.
    pub fn changes(&self) -> Vec<String> {
        self.0.lock().unwrap().log.clone()
    }

    /// Objects below a path.
    pub fn below(&self, path: &str) -> Vec<Value> {
        let state = self.0.lock().unwrap();
        let inside = |key: &str| key.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
        state
            .objects
            .iter()
            .filter(|(key, _)| inside(key))
            .map(|(_, value)| value.clone())
            .collect()
    }

    pub fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let (status, value) = api.answer(&parts.method, &parts.uri, &body);
                let response = Response::builder().status(status);
                Ok::<_, Infallible>(response.body(Full::new(Bytes::from(value.to_string()))).unwrap())
            }
        });
        Client::new(service, "mesh-system")
    }

    fn answer(&self, method: &Method, uri: &http::Uri, body: &[u8]) -> (StatusCode, Value) {
        let path = uri.path();
        let mut state = self.0.lock().unwrap();
        if state
            .refused
            .iter()
            .any(|(refused, at)| refused == method && at == path)
        {
            return failure(StatusCode::FORBIDDEN, "Forbidden");
        }
        if path == "/version" {
            let keys = [
                "buildDate",
                "compiler",
                "gitCommit",
                "gitTreeState",
                "goVersion",
                "platform",
            ];
            let mut version: serde_json::Map<String, Value> =
                keys.iter().map(|key| ((*key).to_owned(), "".into())).collect();
            version.extend(
                [("major", "1"), ("minor", "33"), ("gitVersion", "v1.33.1")].map(|(k, v)| (k.to_owned(), v.into())),
            );
            return (StatusCode::OK, Value::Object(version));
        }
        if uri.query().is_some_and(|query| query.contains("watch=true")) {
            // A watch that ends at once; the client watches again.
            return (StatusCode::OK, Value::Null);
        }
        if method != Method::GET {
            state.log.push(format!("{method} {path}"));
        }
        match *method {
            Method::GET => match state.objects.get(path) {
                Some(object) => (StatusCode::OK, object.clone()),
                None => list(&state, path),
            },
            Method::POST => {
                let object: Value = serde_json::from_slice(body).unwrap();
                let path = format!("{path}/{}", object["metadata"]["name"].as_str().unwrap());
                if state.objects.contains_key(&path) {
                    return failure(StatusCode::CONFLICT, "AlreadyExists");
                }
                store(&mut state, &path, object)
            }
            Method::PUT => {
                let object: Value = serde_json::from_slice(body).unwrap();
                let current = state
                    .objects
                    .get(path)
                    .map(|object| object["metadata"]["resourceVersion"].clone());
                if current.is_some_and(|current| current != object["metadata"]["resourceVersion"]) {
                    return failure(StatusCode::CONFLICT, "Conflict");
                }
                store(&mut state, path, object)
            }
            Method::PATCH => {
                let Some(mut object) = state.objects.get(path).cloned() else {
                    return failure(StatusCode::NOT_FOUND, "NotFound");
                };
                let patch: json_patch::Patch = serde_json::from_slice(body).unwrap();
                match json_patch::patch(&mut object, &patch) {
                    Ok(()) => store(&mut state, path, object),
                    Err(_) => failure(StatusCode::UNPROCESSABLE_ENTITY, "Invalid"),
                }
            }
            _ => failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }
}

fn store(state: &mut State, path: &str, mut object: Value) -> (StatusCode, Value) {
    state.version += 1;
    object["metadata"]["resourceVersion"] = state.version.to_string().into();
    state.objects.insert(path.to_owned(), object.clone());
    (StatusCode::OK, object)
}

/// The objects right below a path; not found where that is the path of an object.
fn list(state: &State, path: &str) -> (StatusCode, Value) {
    let lists = [
        "nodes",
        "mutatingwebhookconfigurations",
        "validatingwebhookconfigurations",
    ];
    if !lists.iter().any(|list| path.ends_with(list)) {
        return failure(StatusCode::NOT_FOUND, "NotFound");
    }
    let inside = |key: &str| key.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
    let items: Vec<&Value> = state
        .objects
        .iter()
        .filter(|(key, _)| inside(key))
        .map(|(_, value)| value)
        .collect();
    (
        StatusCode::OK,
        json!({"metadata": {"resourceVersion": state.version.to_string()}, "items": items}),
    )
}

fn failure(code: StatusCode, reason: &str) -> (StatusCode, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason,
        "code": code.as_u16(),
    });
    (code, status)
}
