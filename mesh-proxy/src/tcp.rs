//! Opaque bytes: captured connections that are not HTTP, and inbound ones, carried to one endpoint and counted.

use std::borrow::Cow;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::model::{EndpointSource, Forward};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::directory::Destination;
use crate::edges;
use crate::failure::Failure;
use crate::flags::ResponseFlags;
use crate::http::exchange::Downstream;
use crate::outbound::Target;
use crate::policy;
use crate::resolve;
use crate::stream::Connection;
use crate::telemetry::{Edge, EdgeService, LogRecord, SpanKind, TraceContext};
use crate::upstream::{Cluster, Endpoint, Outcome};
use crate::worker::Worker;

/// Bytes that one direction of a connection holds at most.
const BUFFER: usize = 16 * 1024;

/// Why a connection is closed without an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The control plane did not answer for a destination inside the mesh.
    DiscoveryUnavailable,
    /// Not in the mesh, under `REGISTRY_ONLY`.
    BlackHole,
}

/// How often the bytes of a connection that lasts are counted, as in Istio.
const REPORTING_INTERVAL: Duration = Duration::from_secs(5);

/// What is known of a connection when it has ended.
struct Ended<'a> {
    started: Instant,
    start: jiff::Timestamp,
    flags: ResponseFlags,
    cluster: Option<&'a str>,
    upstream: Option<&'a Endpoint>,
    upstream_local: Option<std::net::SocketAddr>,
    failure: Option<String>,
    details: Option<Cow<'a, str>>,
    denial: Option<&'a Failure>,
    received: u64,
    sent: u64,
}

/// Counts and logs a connection that is closed at once.
pub(crate) fn refuse(worker: &Worker, downstream: &Downstream, refusal: Refusal) {
    let (service, details) = match refusal {
        Refusal::DiscoveryUnavailable => (EdgeService::None, "mesh_discovery_unavailable"),
        Refusal::BlackHole => (EdgeService::BlackHole, "mesh_outbound_registry_only"),
    };
    let edge = edges::to_service(worker, service);
    edge.tcp_opened();
    edge.tcp_closed(ResponseFlags::NR);
    let ended = Ended {
        flags: ResponseFlags::NR,
        details: Some(details.into()),
        ..Ended::begun()
    };
    log(worker, downstream, SpanKind::Client, &ended);
}

/// Logs a connection to this workload that authorization refused, as Envoy does: the details are those of its ending.
pub(crate) fn log_denial(worker: &Worker, downstream: &Downstream, cluster: &str, denial: &Failure) {
    let ended = Ended {
        cluster: Some(cluster),
        details: Some(denial.details()),
        denial: Some(denial),
        ..Ended::begun()
    };
    log(worker, downstream, SpanKind::Server, &ended);
}

/// Carries a connection to a destination of the mesh.
pub(crate) async fn outbound(
    worker: &Rc<Worker>,
    stream: Connection,
    downstream: &Downstream,
    destination: &Destination,
    target: &Target,
) {
    let legs = &destination.model.tcp;
    let leg = policy::pick(legs, fastrand::u64(..));
    let Some(cluster) = leg.and_then(|leg| destination.clusters.get(leg.cluster)) else {
        let edge = edges::to_service(worker, EdgeService::Known(&destination.model.service));
        edge.tcp_opened();
        edge.tcp_closed(ResponseFlags::NR);
        return log(
            worker,
            downstream,
            SpanKind::Client,
            &Ended {
                flags: ResponseFlags::NR,
                ..Ended::begun()
            },
        );
    };
    let endpoint = match &cluster.model.endpoints {
        EndpointSource::Passthrough => {
            return to_address(worker, stream, downstream, cluster, target).await;
        }
        EndpointSource::Missing(_) => Err(ResponseFlags::NC),
        EndpointSource::Slices(_) => {
            cluster.resolved(cluster.model.pool.connect_timeout).await;
            cluster.pick(None, &[]).map_err(|_| ResponseFlags::UH)
        }
    };
    match endpoint {
        Ok(endpoint) => carry(worker, stream, downstream, SpanKind::Client, cluster, &endpoint, None).await,
        Err(flags) => {
            let edge = edges::to_service(worker, EdgeService::Known(&destination.model.service));
            edge.tcp_opened();
            edge.tcp_closed(flags);
            let ended = Ended {
                flags,
                cluster: Some(cluster.state.name()),
                ..Ended::begun()
            };
            log(worker, downstream, SpanKind::Client, &ended);
        }
    }
}

/// Carries a connection to where the application asked, outside the mesh.
pub(crate) async fn passthrough(worker: &Rc<Worker>, stream: Connection, downstream: &Downstream, target: &Target) {
    let (cluster, _): (&Arc<Cluster>, &Forward) = worker.passthrough();
    to_address(worker, stream, downstream, cluster, target).await;
}

async fn to_address(
    worker: &Rc<Worker>,
    stream: Connection,
    downstream: &Downstream,
    cluster: &Arc<Cluster>,
    target: &Target,
) {
    let resolved = match target {
        Target::Address(address) => Ok(*address),
        Target::Host(host, port) => resolve::address(host, *port).await,
    };
    let endpoint = resolved.ok().and_then(|address| cluster.passthrough_endpoint(address));
    match endpoint {
        Some(endpoint) => carry(worker, stream, downstream, SpanKind::Client, cluster, &endpoint, None).await,
        None => {
            let ended = Ended {
                flags: ResponseFlags::DF,
                cluster: Some(cluster.state.name()),
                ..Ended::begun()
            };
            log(worker, downstream, SpanKind::Client, &ended);
        }
    }
}

/// Connects to an endpoint, copies until both sides are done, counts and logs. `inbound` is where the inbound side counts
/// and the name of its cluster; outbound takes the endpoint's. Dropping the future closes both sides, and counts them all the same.
pub(crate) async fn carry(
    worker: &Rc<Worker>,
    stream: Connection,
    downstream: &Downstream,
    kind: SpanKind,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    inbound: Option<(Arc<Edge>, &str)>,
) {
    let (edge, name) = match inbound {
        Some((edge, name)) => (Some(edge), name),
        None => (edges::to_endpoint(worker, cluster, endpoint), &**cluster.state.name()),
    };
    let mut ended = Ended {
        cluster: Some(name),
        upstream: Some(endpoint),
        ..Ended::begun()
    };
    if let Some(edge) = &edge {
        edge.tcp_opened();
    }
    match worker
        .pool
        .connect_tcp(cluster, endpoint, worker.connector_of(kind))
        .await
    {
        Ok(upstream) => {
            ended.upstream_local = Some(upstream.io.facts().local);
            let facts = upstream.io.facts().clone();
            let mut closing = Closing {
                worker,
                downstream,
                kind,
                edge,
                ended,
                counted: (0, 0),
                facts: Some(facts),
            };
            let limit = cluster.model.pool.max_connection_duration;
            let copying = copy(stream, upstream.io, cluster.model.pool.tcp_idle_timeout);
            let limited = async {
                match limit {
                    None => Some(copying.await),
                    Some(limit) => tokio::time::timeout(limit, copying).await.ok(),
                }
            };
            let copied = reporting(&mut closing, limited).await;
            if copied.is_none() {
                closing.ended.flags |= ResponseFlags::DT;
            }
            if copied.is_some_and(|copied| copied.is_err()) {
                closing.ended.flags |= ResponseFlags::UC;
            }
            drop(upstream.in_flight);
        }
        Err(error) => {
            if let Some(outcome) = error.outcome() {
                cluster.report(endpoint, outcome);
            }
            ended.flags |= match error.outcome() {
                Some(Outcome::ConnectFailure | Outcome::Timeout) => ResponseFlags::UF,
                _ => ResponseFlags::UO,
            };
            ended.failure = Some(error.detail.into_owned());
            drop(Closing {
                worker,
                downstream,
                kind,
                edge,
                ended,
                counted: (0, 0),
                facts: None,
            });
        }
    }
}

impl Ended<'_> {
    fn begun() -> Self {
        Self {
            started: Instant::now(),
            start: jiff::Timestamp::now(),
            flags: ResponseFlags::NONE,
            cluster: None,
            upstream: None,
            upstream_local: None,
            failure: None,
            details: None,
            denial: None,
            received: 0,
            sent: 0,
        }
    }
}

/// Counts and logs a connection when it ends, however it ends.
struct Closing<'a> {
    worker: &'a Worker,
    downstream: &'a Downstream,
    kind: SpanKind,
    edge: Option<Arc<Edge>>,
    ended: Ended<'a>,
    counted: (u64, u64),
    facts: Option<Arc<crate::upstream::ConnectionFacts>>,
}

impl Closing<'_> {
    /// Counts what has passed since the last time.
    fn count_bytes(&mut self) {
        if let Some(facts) = &self.facts {
            self.ended.received = facts.bytes_written();
            self.ended.sent = facts.bytes_read();
        }
        let passed = (self.ended.sent, self.ended.received);
        let counted = std::mem::replace(&mut self.counted, passed);
        if let Some(edge) = &self.edge
            && passed != counted
        {
            edge.tcp_bytes(passed.0 - counted.0, passed.1 - counted.1);
        }
    }
}

/// Runs what carries a connection, and counts its bytes while it lasts.
async fn reporting<T>(closing: &mut Closing<'_>, carrying: impl Future<Output = T>) -> T {
    let mut carrying = std::pin::pin!(carrying);
    let mut next = tokio::time::Instant::now() + REPORTING_INTERVAL;
    loop {
        match tokio::time::timeout_at(next, carrying.as_mut()).await {
            Ok(ended) => return ended,
            Err(_) => closing.count_bytes(),
        }
        next += REPORTING_INTERVAL;
    }
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.count_bytes();
        if let Some(edge) = &self.edge {
            edge.tcp_closed(self.ended.flags);
        }
        log(self.worker, self.downstream, self.kind, &self.ended);
    }
}

fn log(worker: &Worker, downstream: &Downstream, kind: SpanKind, ended: &Ended<'_>) {
    let telemetry = &worker.proxy.telemetry;
    let trace = TraceContext::none(kind);
    if !telemetry.wants_record(&trace) {
        return;
    }
    let by = ended.denial.and_then(Failure::decided_by);
    let rule = by.map(|(_, rule)| format!("rules[{rule}]"));
    let reason = ended.denial.map(Failure::reason);
    let record = LogRecord {
        start: ended.start,
        policy: by.map(|(policy, _)| policy),
        rule: rule.as_deref(),
        reason: reason.as_deref(),
        duration: ended.started.elapsed(),
        flags: ended.flags,
        connection_termination_details: ended.details.as_deref(),
        upstream_transport_failure_reason: ended.failure.as_deref(),
        bytes_received: ended.received,
        bytes_sent: ended.sent,
        upstream_host: ended.upstream.map(|endpoint| endpoint.address),
        upstream_cluster: ended.cluster,
        upstream_local_address: ended.upstream_local,
        downstream_local_address: Some(downstream.local),
        downstream_remote_address: Some(downstream.peer),
        requested_server_name: downstream.server_name.as_deref(),
        downstream_peer: downstream.identity.as_ref(),
        downstream_local: downstream.local_identity.as_ref(),
        ..LogRecord::default()
    };
    telemetry.finish(&trace, "", &record);
}

/// Copies both ways until both ends have closed, an error, or no byte has moved for as long as `idle`. A side that has
/// said all keeps listening: each end of file is passed on by itself.
pub(crate) async fn copy<A, B>(mut client: A, mut server: B, idle: Option<Duration>) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let Some(idle) = idle else {
        return tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER)
            .await
            .map(drop);
    };
    let moved = std::cell::Cell::new(tokio::time::Instant::now());
    let (client_read, client_write) = tokio::io::split(client);
    let (server_read, server_write) = tokio::io::split(server);
    let both = async {
        tokio::try_join!(
            one_way(client_read, server_write, &moved),
            one_way(server_read, client_write, &moved)
        )
    };
    let watch = async {
        loop {
            let until = moved.get() + idle;
            tokio::time::sleep_until(until).await;
            if moved.get() + idle <= tokio::time::Instant::now() {
                return;
            }
        }
    };
    tokio::select! {
        result = both => result.map(drop),
        () = watch => Ok(()),
    }
}

async fn one_way<R, W>(mut from: R, mut to: W, moved: &std::cell::Cell<tokio::time::Instant>) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        moved.set(tokio::time::Instant::now());
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
    }
}
