//! One direction between two workloads for one service: the handle that requests and connections are counted on.
//!
//! Handles are made when a connection meets an endpoint or a route, are kept by whoever counts on them, and outlive any
//! configuration. Counting is a walk along the few response codes that the edge has seen and six relaxed additions; it
//! allocates only for the first request with a combination of code, gRPC status and flags.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use super::labels::{self, EdgeKey, Reporter};
use super::series::{Chain, HttpCounts, MessageCounts, Node, Place, Series, TcpCounts};
use crate::flags::ResponseFlags;

/// What a request is, for `request_protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestProtocol {
    /// Any HTTP request that is not gRPC.
    Http,
    /// Content type `application/grpc…`.
    Grpc,
}

impl RequestProtocol {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }
}

/// Most combinations of code, gRPC status and flags of one edge: a server that invents codes must not make the walk
/// along them long.
const MAX_LABEL_SETS_OF_EDGE: usize = 256;

/// Bounds and counters that all edges share.
pub(super) struct Shared {
    /// Label sets that exist.
    pub taken: Arc<AtomicUsize>,
    /// Most label sets.
    pub max: usize,
    /// Copies of each series.
    pub copies: usize,
    /// Samples that went to the overflow.
    pub dropped: metrics::Counter,
    /// Where samples go that the bound keeps out, by reporter.
    pub overflow: [Overflow; 2],
}

/// Series of everything beyond the bound, for one reporter.
pub(super) struct Overflow {
    pub labels: Box<str>,
    pub http: Node<HttpCounts>,
    pub grpc: Node<HttpCounts>,
    pub tcp: Node<TcpCounts>,
    pub messages: Series<MessageCounts>,
}

impl Overflow {
    pub(super) fn new(reporter: Reporter, copies: usize) -> Self {
        let mut labels = String::new();
        labels::write_overflow_labels(reporter, &mut labels);
        Self {
            labels: labels.into(),
            http: Node::new(0, labels::http_overflow("http"), copies, None),
            grpc: Node::new(0, labels::http_overflow("grpc"), copies, None),
            tcp: Node::new(0, labels::tcp_overflow(), copies, None),
            messages: Series::new(copies),
        }
    }
}

/// Counters between two workloads for one service, seen from one side.
pub struct Edge {
    shared: Arc<Shared>,
    reporter: Reporter,
    /// `reporter` to `destination_cluster`, ready for printing; `None` for the edge that stands for all beyond the bound.
    pub(super) labels: Option<Box<str>>,
    security: &'static str,
    pub(super) http: Chain<HttpCounts>,
    pub(super) tcp: Chain<TcpCounts>,
    pub(super) messages: Series<MessageCounts>,
    _place: Option<Place>,
}

impl Edge {
    /// An edge of its own.
    pub(super) fn new(shared: Arc<Shared>, key: &EdgeKey<'_>, labels: &str, place: Place) -> Self {
        Self {
            labels: Some(labels.into()),
            security: key.security_text(),
            _place: Some(place),
            ..Self::beyond_bound(shared, key.reporter)
        }
    }

    /// An edge that counts on the overflow.
    pub(super) fn beyond_bound(shared: Arc<Shared>, reporter: Reporter) -> Self {
        let messages = Series::new(shared.copies);
        Self {
            shared,
            reporter,
            labels: None,
            security: "",
            http: Chain::default(),
            tcp: Chain::default(),
            messages,
            _place: None,
        }
    }

    /// Counts a finished request. `code` is 0 when there was no response; `duration` reaches from its first byte to
    /// the last of the response.
    #[allow(clippy::too_many_arguments, reason = "one call per request, all of them numbers")]
    pub fn request(
        &self,
        protocol: RequestProtocol,
        code: u16,
        grpc_status: Option<i32>,
        flags: ResponseFlags,
        duration: Duration,
        request_bytes: u64,
        response_bytes: u64,
    ) {
        let counts = self.http_series(protocol, code, grpc_status, flags).mine();
        counts.duration.record_duration(duration);
        counts.request_bytes.record_bytes(request_bytes);
        counts.response_bytes.record_bytes(response_bytes);
    }

    /// Counts gRPC messages, as they pass or when the call ends.
    pub fn grpc_messages(&self, requests: u64, responses: u64) {
        let series = match &self.labels {
            Some(_) => &self.messages,
            None => &self.overflow().messages,
        };
        let counts = series.mine();
        counts.requests.fetch_add(requests, Relaxed);
        counts.responses.fetch_add(responses, Relaxed);
    }

    /// Counts a TCP connection that was opened.
    pub fn tcp_opened(&self) {
        self.tcp_series(ResponseFlags::NONE).mine().opened.fetch_add(1, Relaxed);
    }

    /// Counts a TCP connection that ended.
    pub fn tcp_closed(&self, flags: ResponseFlags) {
        self.tcp_series(flags).mine().closed.fetch_add(1, Relaxed);
    }

    /// Counts bytes of TCP connections since the last call: `sent` towards the client, `received` from it.
    pub fn tcp_bytes(&self, sent: u64, received: u64) {
        let counts = self.tcp_series(ResponseFlags::NONE).mine();
        counts.sent.fetch_add(sent, Relaxed);
        counts.received.fetch_add(received, Relaxed);
    }

    fn http_series(
        &self,
        protocol: RequestProtocol,
        code: u16,
        grpc_status: Option<i32>,
        flags: ResponseFlags,
    ) -> &Series<HttpCounts> {
        // gRPC's codes are 0 to 16; what a peer invents counts as UNKNOWN.
        let status = grpc_status.map(|status| if (0..=16).contains(&status) { status } else { 2 });
        let status_bits = status.map_or(0xff, |status| u64::from(status.unsigned_abs()));
        let key = u64::from(flags.bits()) << 32 | u64::from(code) << 16 | status_bits << 8 | protocol as u64;
        let make = || {
            let code = code.to_string();
            let status = status.map(|status| status.to_string()).unwrap_or_default();
            let flags = flags.to_string();
            self.place().map(|place| {
                let labels = labels::http_labels(protocol.as_str(), &code, &status, &flags, self.security);
                Node::new(key, labels, self.shared.copies, Some(place))
            })
        };
        match self.http.get_or_make(key, make) {
            Some(node) => &node.series,
            None => {
                self.shared.dropped.increment(1);
                match protocol {
                    RequestProtocol::Http => &self.overflow().http.series,
                    RequestProtocol::Grpc => &self.overflow().grpc.series,
                }
            }
        }
    }

    fn tcp_series(&self, flags: ResponseFlags) -> &Series<TcpCounts> {
        let key = u64::from(flags.bits());
        let make = || {
            self.place().map(|place| {
                let labels = labels::tcp_labels(&flags.to_string(), self.security);
                Node::new(key, labels, self.shared.copies, Some(place))
            })
        };
        match self.tcp.get_or_make(key, make) {
            Some(node) => &node.series,
            None => {
                self.shared.dropped.increment(1);
                &self.overflow().tcp.series
            }
        }
    }

    /// Room for one more label set, in the mesh's bound and the edge's own.
    fn place(&self) -> Option<Place> {
        let full = self.http.iter().count() + self.tcp.iter().count() >= MAX_LABEL_SETS_OF_EDGE;
        if self.labels.is_none() || full {
            return None;
        }
        Place::take(&self.shared.taken, self.shared.max)
    }

    fn overflow(&self) -> &Overflow {
        &self.shared.overflow[self.reporter as usize]
    }

    /// Hides series that were idle for `limit` seconds, and says whether all of them are.
    pub(super) fn sweep(&self, now: u64, limit: u64) -> bool {
        let mut idle = true;
        for node in self.http.iter() {
            idle &= sweep_series(&node.series, now, limit);
        }
        for node in self.tcp.iter() {
            idle &= sweep_series(&node.series, now, limit);
        }
        idle & sweep_series(&self.messages, now, limit)
    }
}

impl std::fmt::Debug for Edge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Edge")
            .field(&self.labels.as_deref().unwrap_or("beyond the bound"))
            .finish()
    }
}

fn sweep_series<C: super::series::Counts>(series: &Series<C>, now: u64, limit: u64) -> bool {
    let idle = series.idle_for(now) >= limit;
    if idle {
        series.reset();
    }
    idle
}
