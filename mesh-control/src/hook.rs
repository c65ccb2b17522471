//! What the chart's jobs and tests run: apply an object once its kind is served, and ask addresses whether they answer.
//!
//! Both wait, up to a deadline, for what may come a moment later; neither runs beside a control plane.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use kube::api::{Patch, PatchParams};
use kube::core::{DynamicObject, GroupVersionKind, TypeMeta};
use kube::discovery::{Scope, pinned_kind};
use kube::{Api, Client};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Owner of the fields that the chart sets.
const FIELD_MANAGER: &str = "mesh-chart";
/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// For one attempt.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Of an answer that is shown when it is no success.
const MAX_ANSWER: usize = 4096;

/// Applies the object of a YAML file, server-side: fields of others stay, and fields that the file had before and has no
/// longer go.
///
/// # Errors
/// When the file holds no object, or the API server has not taken it within `limit`.
pub async fn apply(file: &Path, limit: Duration) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let object: DynamicObject =
        serde_saphyr::from_str(&text).with_context(|| format!("{}: not an object", file.display()))?;
    // The API server is found by environment variables, the account by files that the kubelet mounts.
    let client = Client::try_default().await.context("finding the API server")?;
    within(limit, || apply_object(&client, &object)).await?;
    println!("applied {}", file.display());
    Ok(())
}

/// Asks each URL, `http://address:port/path`, until all have answered with success.
///
/// # Errors
/// When one has not within `limit`.
pub async fn probe(urls: &[Uri], limit: Duration) -> anyhow::Result<()> {
    for url in urls {
        within(limit, || get(url)).await?;
        println!("{url} answers");
    }
    Ok(())
}

async fn apply_object(client: &Client, object: &DynamicObject) -> anyhow::Result<()> {
    let name = object.metadata.name.as_deref().context("the object has no name")?;
    let types: &TypeMeta = object.types.as_ref().context("the object has no kind")?;
    let kind = GroupVersionKind::try_from(types)?;
    let (resource, capabilities) = pinned_kind(client, &kind)
        .await
        .with_context(|| format!("looking for {} {}", types.api_version, types.kind))?;
    let api: Api<DynamicObject> = match (capabilities.scope, object.metadata.namespace.as_deref()) {
        (Scope::Namespaced, Some(namespace)) => Api::namespaced_with(client.clone(), namespace, &resource),
        (Scope::Namespaced, None) => Api::default_namespaced_with(client.clone(), &resource),
        (Scope::Cluster, _) => Api::all_with(client.clone(), &resource),
    };
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(name, &params, &Patch::Apply(object))
        .await
        .with_context(|| format!("applying {} {name}", types.kind))?;
    Ok(())
}

async fn get(url: &Uri) -> anyhow::Result<()> {
    let (Some(host), Some(authority)) = (url.host(), url.authority()) else {
        bail!("{url}: a URL needs a host");
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, url.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let path = url.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let request = Request::get(path)
        .header(header::HOST, authority.as_str())
        .body(Empty::<Bytes>::new())?;
    let (parts, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    connection.abort();
    if !parts.status.is_success() {
        let text = body.map(|body| body.to_bytes()).unwrap_or_default();
        bail!("{}: {}", parts.status, String::from_utf8_lossy(&text).trim());
    }
    Ok(())
}

/// Tries again until it succeeds or `limit` is over, and then says why it last failed.
async fn within<F>(limit: Duration, mut attempt: impl FnMut() -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let deadline = Instant::now() + limit;
    loop {
        let outcome = tokio::time::timeout(ATTEMPT, attempt()).await;
        let error = match outcome {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => anyhow::anyhow!("no answer within {} s", ATTEMPT.as_secs()),
        };
        if Instant::now() + PAUSE >= deadline {
            return Err(error.context(format!("gave up after {} s", limit.as_secs())));
        }
        eprintln!("mesh-control: {error:#}; trying again");
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    fn answering(answer: &'static str) -> Uri {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        format!("http://{address}/ready").parse().unwrap()
    }

    #[tokio::test]
    async fn probes_want_success() {
        let well = answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        probe(&[well], Duration::from_secs(10)).await.unwrap();
        let ill = answering("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 8\r\n\r\nnot yet\n");
        let error = probe(&[ill], Duration::from_millis(10)).await.unwrap_err();
        assert!(format!("{error:#}").contains("not yet"), "{error:#}");
    }

    #[tokio::test]
    async fn a_file_without_an_object_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("object.yaml");
        let error = apply(&file, Duration::from_millis(10)).await.unwrap_err();
        assert!(format!("{error:#}").contains("object.yaml"), "{error:#}");
    }
}
