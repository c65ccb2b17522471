//! Requests to this workload: authorize each with the policy in force, then hand it to the application.

use std::convert::Infallible;
use std::rc::Rc;

use http::{HeaderValue, Method, Request, Response};
use hyper::body::Incoming;

use super::exchange::{Downstream, Exchange};
use super::forward::{Outgoing, Picked, forward};
use super::headers::{self, FORWARDED_CLIENT_CERT, FORWARDED_PROTO};
use super::{HttpVersion, server, upgrade};
use crate::body::Body;
use crate::edges::Source;
use crate::failure::Failure;
use crate::inbound::{Application, authorize};
use crate::policy::RequestView;
use crate::stream::Connection;
use crate::telemetry::SpanKind;
use crate::worker::Worker;

/// What all requests of one connection share.
struct Arrival {
    worker: Rc<Worker>,
    application: Rc<Application>,
    downstream: Rc<Downstream>,
    source: Rc<Source>,
    version: HttpVersion,
}

/// Serves HTTP on a connection of a peer.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    application: Rc<Application>,
    stream: Connection,
    version: HttpVersion,
    downstream: Rc<Downstream>,
) {
    let drain = worker.proxy.drain.clone();
    let source = Source::new(&downstream);
    let arrival = Rc::new(Arrival {
        worker,
        application,
        downstream,
        source,
        version,
    });
    let handler = move |request| {
        let arrival = arrival.clone();
        async move { Ok::<_, Infallible>(answer(&arrival, request).await) }
    };
    if let Err(error) = server::serve(stream, version, &drain, handler).await {
        server::count_error("inbound", &error);
    }
}

async fn answer(arrival: &Arrival, mut request: Request<Incoming>) -> Response<Body> {
    let telemetry = &arrival.worker.proxy.telemetry;
    let mut exchange = Exchange::begin(telemetry, &arrival.downstream, SpanKind::Server, &mut request);
    let upgrading = headers::wants_upgrade(request.method(), request.version(), request.headers());
    let client_side = upgrading.then(|| hyper::upgrade::on(&mut request));
    let result = respond(arrival, &mut exchange, request, upgrading).await;
    exchange.notes.cluster = Some(arrival.application.name.clone());
    upgrade::conclude(&arrival.worker, exchange, client_side, result)
}

async fn respond(
    arrival: &Arrival,
    exchange: &mut Exchange,
    request: Request<Incoming>,
    upgrade: bool,
) -> Result<Response<Body>, Failure> {
    let Arrival {
        worker,
        application,
        downstream,
        source,
        version,
    } = arrival;
    let policy = worker.proxy.directory.inbound().ok_or(Failure::PolicyUnavailable)?;
    exchange.notes.edge = Some(source.edge(worker, &policy.workload, policy.port(application.port)));
    exchange.notes.route = Some("default".into());
    if request.method() == Method::CONNECT {
        return Err(Failure::BadConnect);
    }
    let authority = headers::authority_of(&request).ok_or(Failure::BadAuthority)?;
    let (mut parts, body) = request.into_parts();
    let body = exchange.count_request(Body::from(body));
    super::normalize(&mut parts.uri)?;
    let view = RequestView {
        method: &parts.method,
        scheme: if downstream.identity.is_some() { "https" } else { "http" },
        authority: authority.to_str().map_err(|_| Failure::BadAuthority)?,
        path: parts.uri.path(),
        query: parts.uri.query(),
        headers: &parts.headers,
    };
    authorize(&policy, application.port, downstream, Some(view))?;
    // What a client says of itself counts for nothing: only what its certificate proved is passed on.
    parts.headers.remove(FORWARDED_CLIENT_CERT);
    if let Some(proven) = &downstream.client_cert {
        parts.headers.insert(FORWARDED_CLIENT_CERT, proven.clone());
    }
    if !parts.headers.contains_key(FORWARDED_PROTO) {
        parts.headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    let outgoing = Outgoing {
        parts,
        body,
        authority,
        client_version: *version,
        upgrade,
    };
    let clusters = std::slice::from_ref(&application.cluster);
    forward(worker, exchange, clusters, &application.rule, Picked::Plain, outgoing).await
}
