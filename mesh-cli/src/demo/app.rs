//! The shop's application: one program that plays every service.
//!
//! It answers every method with JSON that says who it is, which headers it got, who called (from
//! `x-forwarded-client-cert`, which its sidecar sets), and what it called in turn. Query parameters make it misbehave:
//! `status=503`, `delay=8s`, `fail=0.3`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::Connect;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::proxied::ViaProxy;

/// Headers that an application passes on so that a trace stays whole and a canary stays a canary.
const PASSED_ON: [&str; 13] = [
    "x-request-id",
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "x-ot-span-context",
    "canary",
    "end-user",
    "user-agent",
];

/// Marks answers that an application gave, in contrast to those of a sidecar.
pub const APP_HEADER: &str = "x-demo-app";

/// On a failed answer: `policy` when a rule asked for the failure, `mesh` or `app` otherwise.
pub const FAILURE_HEADER: &str = "x-demo-failure";

/// Most bytes of a called service's answer that are passed on.
const ANSWER_LIMIT: usize = 1 << 20;

/// One service of the shop, behind the sidecar of a demo.
#[derive(Clone, Debug, Args)]
pub struct AppArgs {
    /// What it is.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// Where it listens.
    #[arg(long)]
    pub listen: SocketAddr,
    /// The sidecar's explicit HTTP proxy.
    #[arg(long)]
    pub proxy: SocketAddr,
}

/// What a service of the shop is called, and what it calls.
#[derive(Clone, Debug, Args)]
pub struct ServiceArgs {
    /// Service name, such as `reviews`.
    #[arg(long)]
    pub service: String,
    /// Its version.
    #[arg(long)]
    pub version: String,
    /// Its namespace.
    #[arg(long)]
    pub namespace: String,
    /// Services that it calls for every request, as URLs.
    #[arg(long = "call")]
    pub calls: Vec<Uri>,
}

struct App<C> {
    args: ServiceArgs,
    client: Client<C, Full<Bytes>>,
}

/// Serves until the process ends.
///
/// # Errors
/// When the address cannot be bound.
pub async fn run(args: AppArgs) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen).await?;
    let client = Client::builder(TokioExecutor::new()).build(ViaProxy::new(args.proxy));
    serve(listener, args.service, client, CancellationToken::new()).await;
    Ok(())
}

/// Serves until `stop`, and then until the requests that have come are answered. It calls others with `client`.
pub async fn serve<C>(listener: TcpListener, args: ServiceArgs, client: Client<C, Full<Bytes>>, stop: CancellationToken)
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let app = Arc::new(App { args, client });
    let connections = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => continue,
            },
        };
        let _ = stream.set_nodelay(true);
        let (app, stop) = (app.clone(), stop.clone());
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let app = app.clone();
                async move { Ok::<_, Infallible>(app.answer(request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let mut connection = pin!(connection);
            // A client that breaks off concerns nobody else.
            tokio::select! {
                _ = connection.as_mut() => return,
                () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        });
    }
    connections.close();
    connections.wait().await;
}

impl<C> App<C>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        // The request is read to its end, as any application would before it answers.
        let _ = Limited::new(body, ANSWER_LIMIT).collect().await;
        let wish = match Misbehaviour::parse(parts.uri.query().unwrap_or_default()) {
            Ok(wish) => wish,
            Err(message) => return self.reply(StatusCode::BAD_REQUEST, None, json!({ "error": message })),
        };
        tokio::time::sleep(wish.delay).await;
        if let Some(status) = wish.status() {
            let failure = status.is_server_error().then_some("app");
            return self.reply(status, failure, self.describe(&parts.headers, Vec::new()));
        }
        let mut calls = Vec::with_capacity(self.args.calls.len());
        let mut failure = None;
        for url in &self.args.calls {
            let (call, failed) = self.call(url, &parts.headers).await;
            calls.push(call);
            // What no policy asked for is the graver finding.
            if failed.is_some() && failure != Some("mesh") {
                failure = failed;
            }
        }
        let status = if failure.is_some() {
            StatusCode::BAD_GATEWAY
        } else {
            StatusCode::OK
        };
        self.reply(status, failure, self.describe(&parts.headers, calls))
    }

    async fn call(&self, url: &Uri, headers: &HeaderMap) -> (Value, Option<&'static str>) {
        let mut request = Request::get(url.clone());
        for name in PASSED_ON {
            if let Some(value) = headers.get(name) {
                request = request.header(name, value);
            }
        }
        let result = match request.body(Full::default()) {
            Ok(request) => self.client.request(request).await,
            Err(error) => {
                return (
                    json!({ "url": url.to_string(), "error": error.to_string() }),
                    Some("app"),
                );
            }
        };
        let response = match result {
            Ok(response) => response,
            Err(error) => {
                return (
                    json!({ "url": url.to_string(), "error": error.to_string() }),
                    Some("mesh"),
                );
            }
        };
        let status = response.status();
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_LIMIT)
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes);
        let failure = body
            .as_ref()
            .map_or(Some("mesh"), |body| failure_of(status, &parts.headers, body));
        let answer = body.map_or(Value::Null, |body| {
            serde_json::from_slice(&body).unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&body).into_owned()))
        });
        (
            json!({ "url": url.to_string(), "status": status.as_u16(), "answer": answer }),
            failure,
        )
    }

    fn describe(&self, headers: &HeaderMap, calls: Vec<Value>) -> Value {
        let mut seen = serde_json::Map::new();
        for name in headers.keys() {
            let values: Vec<_> = headers
                .get_all(name)
                .iter()
                .map(|v| String::from_utf8_lossy(v.as_bytes()))
                .collect();
            seen.insert(name.to_string(), Value::from(values.join(",")));
        }
        json!({
            "service": self.args.service,
            "version": self.args.version,
            "namespace": self.args.namespace,
            "caller": caller(headers),
            "headers": seen,
            "calls": calls,
        })
    }

    fn reply(&self, status: StatusCode, failure: Option<&'static str>, body: Value) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(format!("{body}\n")));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(name) = HeaderValue::from_str(&self.args.service) {
            headers.insert(HeaderName::from_static(APP_HEADER), name);
        }
        if let Some(failure) = failure {
            headers.insert(
                HeaderName::from_static(FAILURE_HEADER),
                HeaderValue::from_static(failure),
            );
        }
        response
    }
}

/// Whether an answer is a failure, and who asked for it. What an application answered says so itself; an answer of a
/// sidecar is policy's unless it reports that something is broken.
#[must_use]
pub fn failure_of(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Option<&'static str> {
    if !status.is_client_error() && !status.is_server_error() {
        return None;
    }
    if headers.contains_key(APP_HEADER) {
        return Some(match headers.get(FAILURE_HEADER).map(HeaderValue::as_bytes) {
            Some(b"policy") => "policy",
            Some(b"mesh") => "mesh",
            _ => "app",
        });
    }
    let overloaded = headers.contains_key("x-envoy-overloaded");
    let broken = status == StatusCode::SERVICE_UNAVAILABLE
        && !overloaded
        && body != b"fault filter abort"
        && (body.starts_with(b"upstream connect error")
            || body.starts_with(b"no healthy upstream")
            || body.starts_with(b"the control plane has not said")
            || body.starts_with(b"this workload has not received"));
    Some(if broken { "mesh" } else { "policy" })
}

/// The caller's identity: the `URI` of the last element of `x-forwarded-client-cert`.
fn caller(headers: &HeaderMap) -> Option<String> {
    let value = headers
        .get_all("x-forwarded-client-cert")
        .iter()
        .next_back()?
        .to_str()
        .ok()?;
    let last = value.rsplit(',').next()?;
    last.split(';')
        .find_map(|pair| pair.strip_prefix("URI="))
        .map(str::to_owned)
}

#[derive(Debug, Default)]
struct Misbehaviour {
    status: Option<StatusCode>,
    delay: Duration,
    fail: f64,
}

impl Misbehaviour {
    fn parse(query: &str) -> Result<Self, String> {
        let mut wish = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "status" => {
                    wish.status = Some(
                        value
                            .parse()
                            .map_err(|_| format!("status={value}: not an HTTP status"))?,
                    );
                }
                "delay" => {
                    let delay = value.parse::<mesh_api::duration::Duration>();
                    wish.delay = delay.map_err(|error| format!("delay={value}: {error}"))?.into();
                }
                "fail" => {
                    wish.fail = value
                        .parse()
                        .map_err(|_| format!("fail={value}: not a share from 0 to 1"))?;
                    if !(0.0..=1.0).contains(&wish.fail) {
                        return Err(format!("fail={value}: not a share from 0 to 1"));
                    }
                }
                _ => {}
            }
        }
        Ok(wish)
    }

    fn status(&self) -> Option<StatusCode> {
        if fastrand::f64() < self.fail {
            Some(StatusCode::SERVICE_UNAVAILABLE)
        } else {
            self.status
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes() {
        let wish = Misbehaviour::parse("status=418&delay=1.5s&fail=0").unwrap();
        assert_eq!(wish.status(), Some(StatusCode::IM_A_TEAPOT));
        assert_eq!(wish.delay, Duration::from_millis(1500));
        assert!(Misbehaviour::parse("fail=2").is_err());
        assert!(Misbehaviour::parse("delay=soon").is_err());
        assert_eq!(
            Misbehaviour::parse("fail=1").unwrap().status(),
            Some(StatusCode::SERVICE_UNAVAILABLE)
        );
    }

    #[test]
    fn who_asked_for_a_failure() {
        let none = HeaderMap::new();
        assert_eq!(failure_of(StatusCode::OK, &none, b""), None);
        assert_eq!(
            failure_of(StatusCode::FORBIDDEN, &none, b"RBAC: access denied"),
            Some("policy")
        );
        assert_eq!(
            failure_of(StatusCode::SERVICE_UNAVAILABLE, &none, b"fault filter abort"),
            Some("policy")
        );
        assert_eq!(
            failure_of(StatusCode::SERVICE_UNAVAILABLE, &none, b"no healthy upstream"),
            Some("mesh")
        );
        let mut overloaded = HeaderMap::new();
        overloaded.insert("x-envoy-overloaded", HeaderValue::from_static("true"));
        assert_eq!(
            failure_of(StatusCode::SERVICE_UNAVAILABLE, &overloaded, b"upstream connect error"),
            Some("policy")
        );
        let mut app = HeaderMap::new();
        app.insert(APP_HEADER, HeaderValue::from_static("reviews"));
        assert_eq!(failure_of(StatusCode::BAD_GATEWAY, &app, b""), Some("app"));
    }

    #[test]
    fn the_caller_is_the_last_element() {
        let mut headers = HeaderMap::new();
        headers.insert(
            "x-forwarded-client-cert",
            HeaderValue::from_static(
                "By=a;URI=spiffe://x/ns/a/sa/b,By=c;Hash=1;Subject=\"\";URI=spiffe://td/ns/n/sa/s",
            ),
        );
        assert_eq!(caller(&headers).as_deref(), Some("spiffe://td/ns/n/sa/s"));
    }
}
