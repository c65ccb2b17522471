//! Health checks of the application, asked as the kubelet would ask: to the pod's own address, with the kubelet's headers.

use std::net::{IpAddr, SocketAddr};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Full;
use prost::Message as _;

use super::client::{self, Reply, Version, Where};
use super::spec::{Action, Grpc, HttpGet, Probe, Scheme};
use crate::resolve;

/// Most bytes of the application's answer that are passed on, the kubelet's own bound.
const MOST_BODY: usize = 10 * 1024;
/// Redirects that are followed, as in the kubelet.
const MOST_REDIRECTS: usize = 10;
/// Largest answer to a gRPC health check.
const MOST_GRPC: usize = 4 * 1024;

/// What the application said.
pub(super) struct Verdict {
    pub status: StatusCode,
    pub body: Bytes,
}

/// The kubelet's request, as far as it is passed on.
pub(super) struct Asked<'a> {
    pub headers: &'a HeaderMap,
    /// The port that it was sent to.
    pub port: u16,
}

/// Runs a health check against the application at `own`.
pub(super) async fn run(probe: &Probe, own: IpAddr, asked: &Asked<'_>) -> Verdict {
    let asking = async {
        match &probe.action {
            Action::Http(get) => http(get, own, asked).await,
            Action::Tcp(tcp) => {
                let (address, place) = target(&tcp.host, tcp.port, own).await?;
                connect(address, place).await.map(|_| Verdict::ok())
            }
            Action::Grpc(check) => grpc(check, own, asked).await.map(|()| Verdict::ok()),
        }
    };
    let answer = match tokio::time::timeout(probe.timeout, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {:?}", probe.timeout)),
    };
    answer.unwrap_or_else(|reason| {
        tracing::debug!(%reason, "a health check of the application failed");
        Verdict {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            body: format!("{reason}\n").into(),
        }
    })
}

impl Verdict {
    fn ok() -> Self {
        Self {
            status: StatusCode::OK,
            body: Bytes::new(),
        }
    }
}

/// Where a check goes: to the pod, unless it names another host.
async fn target(host: &str, port: u16, own: IpAddr) -> Result<(SocketAddr, Where), String> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let ip = match bare {
        "" => Some(own),
        "localhost" if own.is_ipv6() => Some(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)),
        "localhost" => Some(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)),
        name => name.parse().ok(),
    };
    let address = match ip {
        Some(ip) => SocketAddr::new(ip, port),
        None => {
            let resolved = resolve::address(bare, port).await;
            resolved.map_err(|failure| {
                failure
                    .transport_reason()
                    .unwrap_or("the host has no address")
                    .to_owned()
            })?
        }
    };
    let here = address.ip() == own || address.ip().is_loopback();
    Ok((address, if here { Where::Here } else { Where::Elsewhere }))
}

async fn connect(address: SocketAddr, place: Where) -> Result<tokio::net::TcpStream, String> {
    let connected = client::connect(address, place).await;
    connected.map_err(|error| format!("cannot connect to {address}: {error}"))
}

/// Where the next request goes: redirects change it.
struct Url {
    scheme: Scheme,
    host: String,
    port: u16,
    path: String,
}

async fn http(get: &HttpGet, own: IpAddr, asked: &Asked<'_>) -> Result<Verdict, String> {
    let mut url = Url {
        scheme: get.scheme,
        host: if get.host.is_empty() {
            bracketed(own)
        } else {
            get.host.clone()
        },
        port: get.port,
        path: if get.path.starts_with('/') {
            get.path.clone()
        } else {
            format!("/{}", get.path)
        },
    };
    let mut headers = headers(get, asked)?;
    for _ in 0..=MOST_REDIRECTS {
        let (address, place) = target(&url.host, url.port, own).await?;
        let stream = connect(address, place).await?;
        let (io, version) = match url.scheme {
            Scheme::Http => (Box::new(stream) as Box<dyn client::Io>, Version::Http1),
            Scheme::Https => client::unverified_tls(stream, address.ip()).await?,
        };
        let request = request(&url, &headers, version)?;
        let reply = client::exchange(io, version, request, MOST_BODY).await?;
        let Some(next) = redirect(&url, &reply)? else {
            return Ok(verdict(reply));
        };
        if next.host != url.host {
            // Somewhere else, so the application lives: the kubelet goes no further either.
            return Ok(Verdict::ok());
        }
        if next.scheme != url.scheme || next.port != url.port {
            // A host that was asked for by name belongs to the first address.
            headers.remove(header::HOST);
        }
        url = next;
    }
    Err(format!("more than {MOST_REDIRECTS} redirects"))
}

/// The kubelet's own headers, and over them those of the check.
fn headers(get: &HttpGet, asked: &Asked<'_>) -> Result<HeaderMap, String> {
    let mut headers = asked.headers.clone();
    for hop in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::CONTENT_LENGTH,
        header::UPGRADE,
        header::TE,
    ] {
        headers.remove(hop);
    }
    // The address of the status port is no host that the application knows.
    let to_us = |host: &HeaderValue| {
        let authority = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
        authority.is_some_and(|authority| authority.port_u16() == Some(asked.port))
    };
    if headers.get(header::HOST).is_some_and(to_us) {
        headers.remove(header::HOST);
    }
    for given in &get.http_headers {
        let name: HeaderName = given
            .name
            .parse()
            .map_err(|_| format!("`{}` is no header name", given.name))?;
        let value = HeaderValue::from_bytes(given.value.as_bytes());
        let value = value.map_err(|_| format!("the value of header {name} cannot be sent"))?;
        headers.insert(name, value);
    }
    Ok(headers)
}

fn request(url: &Url, headers: &HeaderMap, version: Version) -> Result<Request<Full<Bytes>>, String> {
    let authority = match headers.get(header::HOST) {
        Some(host) => host
            .to_str()
            .map_err(|_| "the Host header is not text".to_owned())?
            .to_owned(),
        None => format!("{}:{}", url.host, url.port),
    };
    let mut headers = headers.clone();
    let uri = match version {
        Version::Http1 => {
            let value = HeaderValue::from_str(&authority).map_err(|error| error.to_string())?;
            headers.insert(header::HOST, value);
            url.path.parse::<Uri>()
        }
        Version::Http2 => {
            headers.remove(header::HOST);
            format!("https://{authority}{}", url.path).parse::<Uri>()
        }
    };
    let mut request = Request::new(Full::default());
    *request.uri_mut() = uri.map_err(|error| format!("path `{}`: {error}", url.path))?;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Where a response sends us, if it does.
fn redirect(from: &Url, reply: &Reply) -> Result<Option<Url>, String> {
    let follows = matches!(reply.status.as_u16(), 301 | 302 | 303 | 307 | 308);
    let Some(location) = reply.headers.get(header::LOCATION).filter(|_| follows) else {
        return Ok(None);
    };
    let location = location
        .to_str()
        .map_err(|_| "a redirect to what is no address".to_owned())?;
    let (scheme, rest) = match (strip_scheme(location), location.strip_prefix("//")) {
        (Some(found), _) => found,
        (None, Some(rest)) => (from.scheme, rest),
        (None, None) => {
            let path = match location.as_bytes().first() {
                Some(b'/') => location.to_owned(),
                Some(b'?') => format!("{}{location}", before_query(&from.path)),
                _ => {
                    let path = before_query(&from.path);
                    format!("{}/{location}", path.rsplit_once('/').map_or("", |(folder, _)| folder))
                }
            };
            return Ok(Some(Url {
                scheme: from.scheme,
                host: from.host.clone(),
                port: from.port,
                path,
            }));
        }
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let authority: Authority = authority.parse().map_err(|_| format!("a redirect to `{location}`"))?;
    let usual = if scheme == Scheme::Https { 443 } else { 80 };
    let path = path.split('#').next().unwrap_or_default();
    Ok(Some(Url {
        scheme,
        host: authority.host().to_owned(),
        port: authority.port_u16().unwrap_or(usual),
        path: if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        },
    }))
}

fn strip_scheme(location: &str) -> Option<(Scheme, &str)> {
    let (scheme, rest) = location.split_once("://")?;
    if scheme.eq_ignore_ascii_case("http") {
        Some((Scheme::Http, rest))
    } else if scheme.eq_ignore_ascii_case("https") {
        Some((Scheme::Https, rest))
    } else {
        None
    }
}

fn before_query(path: &str) -> &str {
    path.split('?').next().unwrap_or_default()
}

fn bracketed(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

fn verdict(reply: Reply) -> Verdict {
    // A redirect without its location is no answer to pass on; it counts as success, as in the kubelet.
    if reply.status.is_redirection() {
        return Verdict::ok();
    }
    Verdict {
        status: reply.status,
        body: reply.body,
    }
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SERVING` of its status.
const SERVING: i32 = 1;

async fn grpc(check: &Grpc, own: IpAddr, asked: &Asked<'_>) -> Result<(), String> {
    let (address, place) = target("", check.port, own).await?;
    let stream = connect(address, place).await?;
    let message = HealthCheckRequest {
        service: check.service.clone().unwrap_or_default(),
    }
    .encode_to_vec();
    let mut body = BytesMut::with_capacity(message.len() + 5);
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).map_err(|_| "the service's name is too long".to_owned())?);
    body.put_slice(&message);
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(Full::new(body.freeze()))
        .map_err(|error| error.to_string())?;
    if let Some(agent) = asked.headers.get(header::USER_AGENT) {
        request.headers_mut().insert(header::USER_AGENT, agent.clone());
    }
    let reply = client::exchange(Box::new(stream), Version::Http2, request, MOST_GRPC).await?;
    health_of(&reply)
}

fn health_of(reply: &Reply) -> Result<(), String> {
    if reply.status != StatusCode::OK {
        return Err(format!(
            "the health check was answered with HTTP status {}",
            reply.status
        ));
    }
    let text = |name: &str| {
        reply
            .trailers
            .get(name)
            .or_else(|| reply.headers.get(name))
            .and_then(|v| v.to_str().ok())
    };
    match text("grpc-status") {
        Some("0") => {}
        Some("12") => return Err("the server does not implement grpc.health.v1.Health".to_owned()),
        status => {
            let message = text("grpc-message").unwrap_or_default();
            return Err(format!("gRPC status {} {message}", status.unwrap_or("missing")));
        }
    }
    let message = reply.body.get(5..).ok_or("the answer holds no message")?;
    let response = HealthCheckResponse::decode(message).map_err(|error| error.to_string())?;
    match response.status {
        SERVING => Ok(()),
        2 => Err("NOT_SERVING".to_owned()),
        other => Err(format!("health status {other}")),
    }
}
