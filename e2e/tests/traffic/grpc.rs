//! gRPC, with a client and a server of another make.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::ensure;
use e2e::peers;
use e2e::plain::Running;
use e2e::traffic::clients::{grpc, grpc_server};
use e2e::traffic::metrics::sum;
use e2e::traffic::{Plan, Scene, routes, security, strict};
use serde_json::{Value, json};
use tempfile::TempDir;

const TARGET: &str = "reviews.default.svc.cluster.local:50051";

struct Calls {
    scene: Scene,
    packages: PathBuf,
    _server: Running,
    _dir: TempDir,
}

impl Calls {
    /// `None` where Python has no gRPC.
    async fn start(policy: &str) -> anyhow::Result<Option<Self>> {
        let Some(packages) = peers::python() else {
            return Ok(None);
        };
        let dir = tempfile::tempdir()?;
        let (server, port) = grpc_server(&packages, dir.path())?;
        let scene = Scene::start(Plan {
            versions: &["v1"],
            sidecars: true,
            ports: &[(50051, "grpc", "GRPC", 50051)],
            inbound: &[(50051, SocketAddr::from(([127, 0, 0, 1], port)))],
            policy,
            ..Plan::default()
        })
        .await?;
        Ok(Some(Self {
            scene,
            packages,
            _server: server,
            _dir: dir,
        }))
    }

    fn call(&self, method: &str, messages: &[&str]) -> anyhow::Result<Value> {
        grpc(&self.packages, &self.scene.client, TARGET, method, messages)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_carry_messages_metadata_and_status() -> anyhow::Result<()> {
    let Some(calls) = Calls::start(&strict()).await? else {
        return Ok(());
    };
    let answer = calls.call("Unary", &["hello"])?;
    ensure!(
        answer["code"] == "OK" && answer["messages"] == json!(["hello"]),
        "{answer}"
    );
    ensure!(answer["trailers"]["x-trailer"] == "carried", "{answer}");
    ensure!(answer["initial"]["x-initial"] == "carried", "{answer}");

    let answer = calls.call("Stream", &["one", "two", "three"])?;
    ensure!(answer["messages"] == json!(["one", "two", "three"]), "{answer}");
    ensure!(answer["trailers"]["x-trailer"] == "carried", "{answer}");

    let answer = calls.call("Fail", &["hello"])?;
    ensure!(
        answer["code"] == "NOT_FOUND" && answer["details"] == "no such review",
        "{answer}"
    );

    let page = calls.scene.client.metrics_page()?;
    for (status, count) in [("0", 2.0), ("5", 1.0)] {
        let labels = [
            ("request_protocol", "grpc"),
            ("grpc_response_status", status),
            ("response_code", "200"),
        ];
        ensure!(sum(&page, "istio_requests_total", &labels) == count, "{status}: {page}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unavailable_is_retried_without_being_asked() -> anyhow::Result<()> {
    let Some(calls) = Calls::start("").await? else {
        return Ok(());
    };
    let answer = calls.call("UnavailableTwice", &["hello"])?;
    ensure!(
        answer["code"] == "OK" && answer["messages"] == json!(["hello"]),
        "{answer}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_proxy_answers_is_a_grpc_status() -> anyhow::Result<()> {
    let denied = security(
        "AuthorizationPolicy",
        "no-fail",
        "{selector: {matchLabels: {app: reviews}}, action: DENY, rules: [{to: [{operation: {paths: \
         [/echo.Echo/Fail]}}]}]}",
    );
    let policy = denied
        + &routes(
            "[{match: [{uri: {exact: /echo.Echo/Slow}}], directResponse: {status: 504}}, \
             {match: [{uri: {exact: /echo.Echo/Full}}], fault: {abort: {percentage: {value: 100}, grpcStatus: \
             RESOURCE_EXHAUSTED}}, route: [{destination: {host: reviews}}]}, \
             {match: [{uri: {exact: /echo.Echo/Away}}], route: [{destination: {host: reviews, subset: nowhere}}]}, \
             {match: [{uri: {prefix: /echo.Echo/Unary}}, {uri: {prefix: /echo.Echo/Fail}}], route: [{destination: \
             {host: reviews}}]}]",
        );
    let Some(calls) = Calls::start(&policy).await? else {
        return Ok(());
    };
    for (method, code) in [
        ("Unary", "OK"),
        ("Fail", "PERMISSION_DENIED"),
        ("Full", "RESOURCE_EXHAUSTED"),
        ("Away", "UNAVAILABLE"),
        ("Other", "UNIMPLEMENTED"),
    ] {
        let answer = calls.call(method, &["hello"])?;
        ensure!(answer["code"] == code, "{method}: {answer}");
    }
    Ok(())
}
