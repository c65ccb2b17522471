//! Forwarding one request: choose a leg, then try, until a response counts or nothing is left to try.
//!
//! Bounds come from the route: the whole request's timeout, each try's, the number of tries and their back-off. A request
//! is tried again only while all of its body is still at hand and no byte of a response has gone to the client. An answer by
//! which the sidecar of an endpoint says that its application got nothing of the request counts as a failure to connect: so
//! ends an application that stops before everybody knows.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use mesh_api::model::{
    Balancer, ClientTls, EndpointSource, Forward, H2Upgrade, HttpRoute, Protocol, RetryCondition, RetryPolicy,
};
use smallvec::SmallVec;

use super::HttpVersion;
use super::exchange::Exchange;
use super::headers::{self, ATTEMPT_COUNT, NOT_SENT};
use super::mirror::mirror_to;
use super::outbound::Original;
use crate::body::{Body, REPLAY_LIMIT, ReplayBuffer};
use crate::edges;
use crate::failure::{ClientKind, Failure};
use crate::flags::ResponseFlags;
use crate::policy::{self, TryOutcome};
use crate::upstream::{
    Cluster, ConnectFailure, Endpoint, Hashed, Outcome, SendError, SendErrorKind, UpstreamProto, hash_of, may_replay,
};
use crate::worker::Worker;

/// A request that is to be forwarded.
pub(crate) struct Outgoing {
    /// Head, in no particular version's form yet.
    pub parts: Parts,
    /// Body.
    pub body: Body,
    /// Authority to send.
    pub authority: HeaderValue,
    /// Version that the client speaks.
    pub client_version: HttpVersion,
    /// Whether the client asks for an upgrade.
    pub upgrade: bool,
}

/// Who chooses the endpoint.
pub(crate) enum Picked<'a> {
    /// The cluster, for a rule of a destination.
    Balanced {
        /// The rule.
        route: &'a HttpRoute,
        /// Where the request was meant to go: there it goes for a cluster without endpoints of its own.
        original: Original<'a>,
    },
    /// The cluster, for no rule.
    Plain,
    /// The address that the application asked for is the endpoint.
    Fixed(Arc<Endpoint>),
}

/// Chooses a leg and sends the request. The leg's header operations are applied; the route's are the caller's.
pub(crate) async fn forward(
    worker: &Rc<Worker>,
    exchange: &mut Exchange,
    clusters: &[Arc<Cluster>],
    rule: &Forward,
    picked: Picked<'_>,
    mut outgoing: Outgoing,
) -> Result<Response<Body>, Failure> {
    let leg = policy::pick_leg(rule, fastrand::u64(..));
    let cluster = clusters.get(leg.cluster).ok_or(Failure::ClusterNotFound)?;
    exchange.notes.cluster = Some(cluster.state.name().clone());
    if matches!(cluster.model.endpoints, EndpointSource::Missing(_)) {
        return Err(Failure::ClusterNotFound);
    }
    policy::apply_request_headers(&leg.headers, &mut outgoing.parts.headers);
    if let Picked::Balanced { route, .. } = &picked {
        // After the leg's, as in Envoy: the route has the last word.
        policy::apply_request_headers(&route.headers, &mut outgoing.parts.headers);
        if let Some(authority) = policy::new_authority(route, rule, leg) {
            outgoing.authority = authority.clone();
        }
    }
    exchange.authority = Some(outgoing.authority.clone());
    let picked = match (&cluster.model.endpoints, picked) {
        (EndpointSource::Passthrough, Picked::Balanced { original, .. }) => {
            let endpoint = cluster.passthrough_endpoint(original.address().await?);
            Picked::Fixed(endpoint.ok_or(Failure::NoHealthyEndpoint)?)
        }
        (_, picked) => picked,
    };
    for mirror in &rule.mirrors {
        if let Some(target) = clusters.get(mirror.cluster)
            && mirror.share.includes(fastrand::u32(0..1_000_000))
        {
            outgoing = mirror_to(worker, target, outgoing);
        }
    }
    // From here on: an injected delay is not the upstream's, as in Envoy.
    let deadline = rule.timeout.map(|timeout| tokio::time::Instant::now() + timeout);
    let sent = send(worker, exchange, cluster, rule.retry.as_ref(), picked, outgoing);
    let mut response = match deadline {
        None => sent.await?,
        Some(deadline) => {
            let response = tokio::time::timeout_at(deadline, sent)
                .await
                .map_err(|_| Failure::Timeout)??;
            response.map(|body| body.with_deadline(deadline))
        }
    };
    policy::apply_response_headers(&leg.headers, response.headers_mut());
    Ok(response)
}

/// What a later try needs again.
struct Spare {
    parts: Parts,
    body: ReplayBuffer,
}

async fn send(
    worker: &Rc<Worker>,
    exchange: &mut Exchange,
    cluster: &Arc<Cluster>,
    retry: Option<&RetryPolicy>,
    picked: Picked<'_>,
    outgoing: Outgoing,
) -> Result<Response<Body>, Failure> {
    let version = upstream_version(cluster, &outgoing);
    let Outgoing {
        mut parts,
        mut body,
        authority,
        upgrade,
        ..
    } = outgoing;
    let hashed = match &cluster.model.balancer {
        Balancer::RingHash { hash, .. } => hash_of(hash, &parts, exchange.peer_address()),
        _ => Hashed::default(),
    };
    headers::remove_hop_by_hop(&mut parts.headers, upgrade);
    headers::remove_peer_metadata(&mut parts.headers);
    headers::target(
        &mut parts.uri,
        &mut parts.version,
        &mut parts.headers,
        &authority,
        version,
        false,
    )
    .map_err(|_| Failure::BadAuthority)?;

    let retry = retry.filter(|policy| policy.attempts > 0 && !upgrade);
    let retried = retry.is_some_and(|policy| may_retry_sent(policy, version, exchange.client(), &cluster.model.tls));
    // What is lost with a connection that was reused, the pool replays from what is kept.
    let replayed = !upgrade && !body.is_empty() && may_replay(&parts.method);
    let kept = (retried || replayed).then(|| ReplayBuffer::new(std::mem::take(&mut body), REPLAY_LIMIT));
    if let Some(kept) = &kept {
        body = kept.body().unwrap_or_default();
    }
    let spare = kept.filter(|_| retried).map(|body| Spare {
        parts: parts.clone(),
        body,
    });
    // At once, but for clusters whose names have no address yet.
    cluster.resolved(cluster.model.pool.connect_timeout).await;
    let mut request = Request::from_parts(parts, body);
    let mut tried: SmallVec<[Arc<Endpoint>; 3]> = SmallVec::new();
    let mut retrying = None;
    let mut attempt = 1;
    loop {
        let endpoint = match &picked {
            Picked::Fixed(endpoint) => endpoint.clone(),
            Picked::Balanced { .. } | Picked::Plain => {
                let avoid = if retry.is_some_and(|policy| policy.ignore_previous_hosts) {
                    &tried[..]
                } else {
                    &[]
                };
                cluster
                    .pick(hashed.hash, avoid)
                    .map_err(|_| Failure::NoHealthyEndpoint)?
            }
        };
        request
            .headers_mut()
            .insert(ATTEMPT_COUNT, headers::attempt_value(attempt));
        edges::note_endpoint(worker, exchange, cluster, &endpoint);
        exchange.notes.attempts = attempt;
        let per_try = retry.and_then(|policy| policy.per_try_timeout);
        let started = Instant::now();
        let result = one_try(worker, cluster, &endpoint, version, request, per_try, exchange).await;

        let outcome = outcome_of(&result, &endpoint);
        let wanted = retry.filter(|policy| policy::should_retry(policy, &outcome));
        let again = wanted.filter(|policy| attempt <= policy.attempts);
        let exhausted = again.is_none() && attempt > 1 && wanted.is_some();
        if exhausted {
            exchange.notes.flags |= ResponseFlags::URX;
        }
        let Some(policy) = again else {
            return conclude(exchange, result, started, hashed.set_cookie);
        };
        if retrying.is_none() {
            match cluster.admit_retry() {
                Ok(permit) => retrying = Some(permit),
                Err(_) => {
                    exchange.notes.flags |= ResponseFlags::UO;
                    return conclude(exchange, result, started, hashed.set_cookie);
                }
            }
        }
        request = match next_request(result, spare.as_ref()) {
            Ok(next) => next,
            Err(result) => return conclude(exchange, *result, started, hashed.set_cookie),
        };
        tried.push(endpoint);
        tokio::time::sleep(policy::backoff(policy, attempt - 1, fastrand::u64(..))).await;
        attempt += 1;
    }
}

/// How one try ended.
type Tried = Result<Response<Body>, TryFailure>;

enum TryFailure {
    Sending(SendError),
    Timeout,
}

async fn one_try(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    version: HttpVersion,
    request: Request<Body>,
    limit: Option<Duration>,
    exchange: &mut Exchange,
) -> Tried {
    let protocol = match version {
        HttpVersion::Http1 => UpstreamProto::Http1,
        HttpVersion::Http2 => UpstreamProto::Http2,
    };
    let connector = worker.connector_of(exchange.kind());
    let sending = worker.pool.send(cluster, endpoint, protocol, connector, request);
    let sent = match limit {
        None => sending.await,
        Some(limit) => match tokio::time::timeout(limit, sending).await {
            Ok(sent) => sent,
            Err(_) => {
                cluster.report(endpoint, Outcome::Timeout);
                return Err(TryFailure::Timeout);
            }
        },
    };
    match sent {
        Ok(answer) => {
            let outcome = if is_not_sent(endpoint, answer.response.headers()) {
                Outcome::ConnectFailure
            } else {
                Outcome::Status(answer.response.status().as_u16())
            };
            cluster.report(endpoint, outcome);
            exchange.notes.upstream_local = Some(answer.connection.local);
            exchange.tunnel = answer.tunnel;
            Ok(answer.response)
        }
        Err(error) => {
            if let Some(outcome) = error.outcome() {
                cluster.report(endpoint, outcome);
            }
            Err(TryFailure::Sending(error))
        }
    }
}

/// Whether an answer is a sidecar's word that its application got nothing of the request. Only of a peer in the mesh.
fn is_not_sent(endpoint: &Endpoint, headers: &HeaderMap) -> bool {
    endpoint.is_mutual_tls() && headers.contains_key(NOT_SENT)
}

fn outcome_of(tried: &Tried, endpoint: &Endpoint) -> TryOutcome {
    match tried {
        Ok(response) if is_not_sent(endpoint, response.headers()) => TryOutcome::ConnectFailure,
        Ok(response) => TryOutcome::of_response(response.status(), response.headers()),
        Err(TryFailure::Timeout) => TryOutcome::Timeout,
        Err(TryFailure::Sending(error)) => match error.kind {
            SendErrorKind::Connect(_) | SendErrorKind::Tls => TryOutcome::ConnectFailure,
            SendErrorKind::RefusedStream => TryOutcome::RefusedStream,
            SendErrorKind::Overflow(_) => TryOutcome::Overflow,
            SendErrorKind::ConnectionClosed { request_started } => TryOutcome::Reset { request_started },
            SendErrorKind::StreamReset | SendErrorKind::Protocol | SendErrorKind::RequestBody => {
                TryOutcome::Reset { request_started: true }
            }
        },
    }
}

/// The request for the next try; gives the result back when the request is not at hand any more.
fn next_request(tried: Tried, spare: Option<&Spare>) -> Result<Request<Body>, Box<Tried>> {
    if let Err(TryFailure::Sending(SendError {
        request: Some(request), ..
    })) = tried
    {
        return Ok(*request);
    }
    let again = spare.and_then(|spare| Some(Request::from_parts(spare.parts.clone(), spare.body.body()?)));
    again.ok_or(Box::new(tried))
}

fn conclude(
    exchange: &mut Exchange,
    tried: Tried,
    started: Instant,
    cookie: Option<HeaderValue>,
) -> Result<Response<Body>, Failure> {
    match tried {
        Ok(mut response) => {
            // HTTP/2 knows no headers of one connection only.
            if response.version() != Version::HTTP_2 {
                let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
                headers::remove_hop_by_hop(response.headers_mut(), upgraded);
            }
            headers::remove_peer_metadata(response.headers_mut());
            exchange.response_head(response.headers_mut(), started);
            if let Some(cookie) = cookie {
                response.headers_mut().append(header::SET_COOKIE, cookie);
            }
            Ok(response)
        }
        Err(TryFailure::Timeout) => Err(Failure::PerTryTimeout),
        Err(TryFailure::Sending(error)) => Err(match error.kind {
            SendErrorKind::Connect(ConnectFailure::Timeout) => Failure::ConnectFailure("connection timeout".into()),
            SendErrorKind::Connect(_) | SendErrorKind::Tls => Failure::ConnectFailure(error.detail),
            SendErrorKind::ConnectionClosed { .. } => Failure::Reset(error.detail),
            SendErrorKind::StreamReset | SendErrorKind::RefusedStream => Failure::RemoteReset(error.detail),
            SendErrorKind::Protocol => Failure::UpstreamProtocol(error.detail),
            SendErrorKind::Overflow(_) => Failure::Overflow,
            SendErrorKind::RequestBody => Failure::ClientAborted,
        }),
    }
}

/// Whether something that the policy retries can happen after the request was sent; before that, it comes back whole.
fn may_retry_sent(policy: &RetryPolicy, upstream: HttpVersion, client: ClientKind, tls: &ClientTls) -> bool {
    policy.retry_on.iter().any(|condition| match condition {
        // The sidecar of an endpoint may say so of its application.
        RetryCondition::ConnectFailure | RetryCondition::ResetBeforeRequest => *tls != ClientTls::Disable,
        RetryCondition::RefusedStream => upstream == HttpVersion::Http2,
        RetryCondition::GrpcCancelled
        | RetryCondition::GrpcDeadlineExceeded
        | RetryCondition::GrpcInternal
        | RetryCondition::GrpcResourceExhausted
        | RetryCondition::GrpcUnavailable => client == ClientKind::Grpc,
        RetryCondition::ServerError
        | RetryCondition::GatewayError
        | RetryCondition::Reset
        | RetryCondition::Retriable4xx
        | RetryCondition::Status(_)
        | RetryCondition::EnvoyRateLimited => true,
    })
}

/// Version to speak to a cluster: HTTP/1.1 stays HTTP/1.1 and HTTP/2 stays HTTP/2, unless the port or its policy says otherwise.
pub(crate) fn upstream_version(cluster: &Cluster, outgoing: &Outgoing) -> HttpVersion {
    let pool = &cluster.model.pool;
    if outgoing.upgrade {
        return HttpVersion::Http1;
    }
    if pool.use_client_protocol {
        return outgoing.client_version;
    }
    match cluster.model.protocol {
        Protocol::Http2 | Protocol::Grpc => HttpVersion::Http2,
        _ if pool.h2_upgrade == H2Upgrade::Upgrade => HttpVersion::Http2,
        Protocol::Http => HttpVersion::Http1,
        Protocol::Tcp | Protocol::Tls | Protocol::Detect => outgoing.client_version,
    }
}
