//! Traffic policy towards a cluster: DestinationRule's blocks with their defaults applied.

use std::sync::Arc;
use std::time::Duration;

/// The protocol of a service port, as declared (`appProtocol`, then port name) or to be detected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.x.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC: HTTP/2 whose metrics and retries know statuses in trailers.
    Grpc,
    /// Opaque bytes.
    Tcp,
    /// TLS of the application's own, passed through.
    Tls,
    /// Not declared: detected per connection, TCP after 1 s without bytes.
    #[default]
    Detect,
}

impl Protocol {
    /// Whether the port is declared to carry HTTP in any version.
    #[must_use]
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc)
    }
}

/// How a request's endpoint is chosen.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Balancer {
    /// The less loaded of two random choices (Istio's default).
    #[default]
    LeastRequest,
    /// One after the other, by weight.
    RoundRobin,
    /// Any, by weight.
    Random,
    /// Consistent hashing on a ring.
    RingHash {
        /// What is hashed.
        hash: HashPolicy,
        /// At least so many points on the ring (Istio's default 1024).
        minimum_ring_size: u32,
    },
}

/// What consistent hashing hashes; a request without it is balanced at random.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashPolicy {
    /// The source of the hash.
    pub key: HashKey,
}

/// `consistentHash`'s one-of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// Value of a request header (lower case).
    Header(Arc<str>),
    /// Value of a cookie; one with a lifetime is generated when absent.
    Cookie {
        /// Cookie name.
        name: Arc<str>,
        /// `Path` attribute of a generated cookie.
        path: Option<Arc<str>>,
        /// `Max-Age` of a generated cookie; `None` never generates one, zero makes a session cookie.
        ttl: Option<Duration>,
    },
    /// The client's address.
    SourceIp,
    /// Value of a query parameter.
    QueryParameter(Arc<str>),
}

/// Limits of connections and requests; they hold for the whole proxy, whatever its number of workers.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectionPool {
    /// `tcp.maxConnections`.
    pub max_connections: u32,
    /// `tcp.connectTimeout`, else T11's `timeout.connectTimeout`, else 10 s.
    pub connect_timeout: Duration,
    /// `tcp.maxConnectionDuration`.
    pub max_connection_duration: Option<Duration>,
    /// `tcp.idleTimeout`: for TCP without bytes; default 1 h, `None` never.
    pub tcp_idle_timeout: Option<Duration>,
    /// `tcp.tcpKeepalive`.
    pub keepalive: Option<TcpKeepalive>,
    /// `http.http1MaxPendingRequests`: requests waiting for a connection.
    pub max_pending_requests: u32,
    /// `http.http2MaxRequests`: active requests, of HTTP/1.1 as well.
    pub max_requests: u32,
    /// `http.maxRequestsPerConnection`; `None` is unlimited.
    pub max_requests_per_connection: Option<u32>,
    /// `http.maxRetries`: concurrent retries.
    pub max_retries: u32,
    /// `http.idleTimeout`: of a pooled upstream connection; default 1 h.
    pub http_idle_timeout: Duration,
    /// `http.maxConcurrentStreams` per HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
    /// `http.h2UpgradePolicy`.
    pub h2_upgrade: H2Upgrade,
    /// `http.useClientProtocol`.
    pub use_client_protocol: bool,
}

impl Default for ConnectionPool {
    fn default() -> Self {
        Self {
            max_connections: u32::MAX,
            connect_timeout: Duration::from_secs(10),
            max_connection_duration: None,
            tcp_idle_timeout: Some(Duration::from_secs(3600)),
            keepalive: None,
            max_pending_requests: u32::MAX,
            max_requests: u32::MAX,
            max_requests_per_connection: None,
            max_retries: u32::MAX,
            http_idle_timeout: Duration::from_secs(3600),
            max_concurrent_streams: None,
            h2_upgrade: H2Upgrade::Default,
            use_client_protocol: false,
        }
    }
}

/// `h2UpgradePolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum H2Upgrade {
    /// The mesh's default: HTTP/1.1 stays HTTP/1.1.
    #[default]
    Default,
    /// Never.
    DoNotUpgrade,
    /// HTTP/1.1 requests are carried as HTTP/2.
    Upgrade,
}

/// `tcpKeepalive`; `None` fields are the operating system's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// Probes before the connection is dead.
    pub probes: Option<u32>,
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Between probes.
    pub interval: Option<Duration>,
}

/// `outlierDetection`: when an endpoint is left alone.
#[derive(Clone, Debug, PartialEq)]
pub struct OutlierDetection {
    /// Consecutive 5xx (and local failures, unless split) before ejection; `None` is off. Default 5.
    pub consecutive_5xx: Option<u32>,
    /// Consecutive 502, 503, 504 before ejection; `None` (default) is off.
    pub consecutive_gateway_errors: Option<u32>,
    /// With `splitExternalLocalOriginErrors`: consecutive connection failures and timeouts; `None` counts them as 5xx.
    pub consecutive_local_origin_failures: Option<u32>,
    /// Between sweeps that bring ejected endpoints back. Default 10 s.
    pub interval: Duration,
    /// Ejection lasts this times the number of ejections. Default 30 s.
    pub base_ejection_time: Duration,
    /// At most this share of endpoints (but always one) is ejected, 0 to 100. Default 10.
    pub max_ejection_percent: u8,
}

/// `retryBudget`: retries as a share of active requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// 0 to 100, default 20.
    pub percent: f64,
    /// Always allowed, default 3.
    pub min_concurrency: u32,
}

/// How a connection to an endpoint is secured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ClientTls {
    /// The mesh's mutual TLS towards endpoints that have it, else plaintext (auto mTLS).
    #[default]
    Auto,
    /// Plaintext, by DestinationRule.
    Disable,
    /// The mesh's mutual TLS always, by DestinationRule.
    IstioMutual {
        /// `subjectAltNames`, when set, instead of the endpoint's identity.
        subject_alt_names: Vec<Arc<str>>,
        /// `sni`, when set.
        sni: Option<Arc<str>>,
    },
}
