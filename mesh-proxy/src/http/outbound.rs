//! Requests of this workload's application: find the destination, select the route, act on it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use mesh_api::model::{Forward, HttpRoute, OutboundPolicy, RouteAction};

use super::exchange::{Downstream, Exchange};
use super::forward::{Outgoing, Picked, forward};
use super::headers::{self, FORWARDED_CLIENT_CERT, FORWARDED_PROTO, ORIGINAL_PATH};
use super::{HttpVersion, server, upgrade};
use crate::body::Body;
use crate::directory::{Destination, Lookup};
use crate::edges;
use crate::failure::{ClientKind, Failure};
use crate::flags::ResponseFlags;
use crate::outbound::Target;
use crate::policy::{self, FaultDecision, FaultDraws, RequestView};
use crate::resolve;
use crate::stream::Connection;
use crate::telemetry::{EdgeService, SpanKind};
use crate::worker::Worker;

/// What all requests of one downstream connection share.
struct Origin {
    worker: Rc<Worker>,
    downstream: Rc<Downstream>,
    version: HttpVersion,
    /// Where the connection was meant to go; `None` for the explicit proxy, whose requests say it themselves.
    target: Option<Target>,
}

impl Origin {
    /// Where a request was meant to go, whatever the mesh makes of it.
    fn original<'a>(&'a self, host: &'a str, port: u16) -> Original<'a> {
        Original {
            target: self.target.as_ref(),
            host,
            port,
        }
    }
}

/// Where a request was meant to go.
#[derive(Clone, Copy)]
pub(crate) struct Original<'a> {
    target: Option<&'a Target>,
    host: &'a str,
    port: u16,
}

impl Original<'_> {
    /// The address that the connection was made to, or that the named host has.
    pub async fn address(&self) -> Result<SocketAddr, Failure> {
        match self.target {
            Some(Target::Address(address)) => Ok(*address),
            Some(Target::Host(host, port)) => resolve::address(host, *port).await,
            None => resolve::address(self.host, self.port).await,
        }
    }
}

/// Serves HTTP on a connection of the application.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    stream: Connection,
    version: HttpVersion,
    downstream: Rc<Downstream>,
    target: Option<Target>,
) {
    let drain = worker.proxy.drain.outbound();
    let origin = Rc::new(Origin {
        worker,
        downstream,
        version,
        target,
    });
    let handler = move |request| {
        let origin = origin.clone();
        async move { Ok::<_, Infallible>(answer(&origin, request).await) }
    };
    if let Err(error) = server::serve(stream, version, &drain, handler).await {
        server::count_error("outbound", &error);
    }
}

async fn answer(origin: &Rc<Origin>, mut request: Request<Incoming>) -> Response<Body> {
    if request.method() == Method::CONNECT && origin.target.is_none() {
        return connect(origin, request);
    }
    let telemetry = &origin.worker.proxy.telemetry;
    let mut exchange = Exchange::begin(telemetry, &origin.downstream, SpanKind::Client, &mut request);
    let upgrading = headers::wants_upgrade(request.method(), request.version(), request.headers());
    let client_side = upgrading.then(|| hyper::upgrade::on(&mut request));
    let result = respond(origin, &mut exchange, request, upgrading).await;
    upgrade::conclude(&origin.worker, exchange, client_side, result)
}

/// CONNECT host:port makes a captured connection of the rest of this one.
fn connect(origin: &Rc<Origin>, mut request: Request<Incoming>) -> Response<Body> {
    let target = request.uri().authority().and_then(|authority| {
        let (host, port) = headers::split_authority(authority.as_str());
        let port = port?;
        Some(match headers::parse_ip(host) {
            Some(ip) => Target::Address(SocketAddr::new(ip, port)),
            None => Target::Host(host.to_ascii_lowercase().into(), port),
        })
    });
    let Some(target) = target else {
        return Failure::BadConnect.response(ClientKind::Http);
    };
    upgrade::captured(
        &origin.worker,
        &origin.downstream,
        hyper::upgrade::on(&mut request),
        target,
    );
    Response::new(Body::empty())
}

async fn respond(
    origin: &Origin,
    exchange: &mut Exchange,
    request: Request<Incoming>,
    upgrade: bool,
) -> Result<Response<Body>, Failure> {
    let value = headers::authority_of(&request).ok_or(Failure::BadAuthority)?;
    let authority = value.to_str().map_err(|_| Failure::BadAuthority)?;
    let (host, port) = headers::split_authority(authority);
    let https = request.uri().scheme_str() == Some("https");
    let port = match &origin.target {
        Some(target) => target.port(),
        None => port.unwrap_or(if https { 443 } else { 80 }),
    };
    let found = find(origin, host, port).await;
    let (mut parts, body) = request.into_parts();
    let body = exchange.count_request(Body::from(body));
    // Who called this workload is known to it, and need not be to those that it calls.
    parts.headers.remove(FORWARDED_CLIENT_CERT);
    if !parts.headers.contains_key(FORWARDED_PROTO) {
        parts.headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    let outgoing = Outgoing {
        parts,
        body,
        authority: value.clone(),
        client_version: origin.version,
        upgrade,
    };
    match found {
        Lookup::Found(destination) => {
            let result = route(origin, exchange, &destination, authority, port, outgoing).await;
            if exchange.notes.edge.is_none() {
                // Answered before an endpoint was chosen: it counts for the service as a whole.
                let service = EdgeService::Known(&destination.model.service);
                exchange.notes.edge = Some(edges::to_service(&origin.worker, service));
            }
            result
        }
        Lookup::Unavailable => {
            exchange.notes.edge = Some(edges::to_service(&origin.worker, EdgeService::None));
            Err(Failure::DiscoveryUnavailable)
        }
        Lookup::NotInMesh => match origin.worker.outbound_policy() {
            OutboundPolicy::RegistryOnly => {
                exchange.notes.route = Some("block_all".into());
                exchange.notes.edge = Some(edges::to_service(&origin.worker, EdgeService::BlackHole));
                Err(Failure::BlackHole)
            }
            OutboundPolicy::AllowAny => pass_through(origin, exchange, host, port, outgoing).await,
        },
    }
}

/// An authority that the mesh does not know falls to the service that owns the original address.
async fn find(origin: &Origin, host: &str, port: u16) -> Lookup {
    let directory = &origin.worker.proxy.directory;
    let by_authority = match headers::parse_ip(host) {
        Some(ip) => directory.lookup_address(ip, port).await,
        None => directory.lookup(host, port).await,
    };
    match (&by_authority, &origin.target) {
        (Lookup::NotInMesh, Some(target)) => target.lookup(&origin.worker).await,
        _ => by_authority,
    }
}

async fn route(
    origin: &Origin,
    exchange: &mut Exchange,
    destination: &Arc<Destination>,
    authority: &str,
    port: u16,
    mut outgoing: Outgoing,
) -> Result<Response<Body>, Failure> {
    super::normalize(&mut outgoing.parts.uri)?;
    let model = &destination.model;
    let selected = policy::select_route(&model.routes, &view_of(&outgoing, authority)).ok_or(Failure::NoRoute)?;
    let (rule, matched) = (selected.route, selected.matched);
    exchange.notes.route = Some(rule.name.clone());
    if let Some((object, place)) = &rule.origin {
        exchange.notes.policy = Some(object.clone());
        exchange.notes.rule = Some(place.clone());
    }
    inject_fault(exchange, rule).await?;
    let mut response = match &rule.action {
        RouteAction::Forward(forwarding) => {
            rewrite(exchange, forwarding, matched, &mut outgoing)?;
            let original = origin.original(headers::split_authority(authority).0, port);
            let picked = Picked::Balanced { route: rule, original };
            forward(
                &origin.worker,
                exchange,
                &destination.clusters,
                forwarding,
                picked,
                outgoing,
            )
            .await?
        }
        RouteAction::Redirect(redirect) => {
            exchange.notes.details = Some("direct_response".into());
            let location = policy::redirect_location(redirect, matched, &view_of(&outgoing, authority), port);
            let mut response = Response::new(Body::empty());
            *response.status_mut() = redirect.status;
            let location = HeaderValue::from_str(&location).map_err(|_| Failure::BadAuthority)?;
            response.headers_mut().insert(http::header::LOCATION, location);
            response
        }
        RouteAction::DirectResponse { status, body } => {
            exchange.notes.details = Some("direct_response".into());
            let mut response = Response::new(Body::full(body.clone()));
            *response.status_mut() = *status;
            response
        }
    };
    policy::apply_response_headers(&rule.headers, response.headers_mut());
    Ok(response)
}

fn view_of<'a>(outgoing: &'a Outgoing, authority: &'a str) -> RequestView<'a> {
    let parts = &outgoing.parts;
    RequestView {
        method: &parts.method,
        scheme: parts.uri.scheme_str().unwrap_or("http"),
        authority,
        path: parts.uri.path(),
        query: parts.uri.query(),
        headers: &parts.headers,
    }
}

async fn inject_fault(exchange: &mut Exchange, rule: &HttpRoute) -> Result<(), Failure> {
    let Some(fault) = &rule.fault else { return Ok(()) };
    let draws = FaultDraws {
        delay: fastrand::u32(0..1_000_000),
        abort: fastrand::u32(0..1_000_000),
    };
    let FaultDecision { delay, abort } = policy::draw_fault(fault, draws);
    if let Some(delay) = delay {
        exchange.notes.flags |= ResponseFlags::DI;
        tokio::time::sleep(delay).await;
    }
    match abort {
        None => Ok(()),
        Some(mesh_api::model::Abort::Http(status)) => Err(Failure::FaultAbort(status)),
        Some(mesh_api::model::Abort::Grpc(status)) => Err(Failure::FaultAbortGrpc(status)),
    }
}

fn rewrite(
    exchange: &mut Exchange,
    rule: &Forward,
    matched: Option<&mesh_api::model::HttpMatch>,
    outgoing: &mut Outgoing,
) -> Result<(), Failure> {
    let original = outgoing.parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let Some(path) = policy::rewrite_path(&rule.rewrite, matched, original) else {
        return Ok(());
    };
    if let Ok(original) = HeaderValue::from_str(original) {
        outgoing.parts.headers.insert(ORIGINAL_PATH, original);
    }
    exchange.notes.rewritten_path = Some(path.as_str().into());
    outgoing.parts.uri = path.parse().map_err(|_| Failure::BadAuthority)?;
    Ok(())
}

/// To where the application asked, with no policy of the mesh.
async fn pass_through(
    origin: &Origin,
    exchange: &mut Exchange,
    host: &str,
    port: u16,
    outgoing: Outgoing,
) -> Result<Response<Body>, Failure> {
    exchange.notes.route = Some("allow_any".into());
    let address = origin.original(host, port).address().await?;
    let (cluster, rule) = origin.worker.passthrough();
    let endpoint = cluster
        .passthrough_endpoint(address)
        .ok_or(Failure::NoHealthyEndpoint)?;
    forward(
        &origin.worker,
        exchange,
        std::slice::from_ref(cluster),
        rule,
        Picked::Fixed(endpoint),
        outgoing,
    )
    .await
}
