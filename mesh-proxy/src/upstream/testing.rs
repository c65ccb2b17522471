//! What the tests of this module share: models in a line, and servers that count.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_api::model;
use tokio::net::TcpListener;

use super::{Answer, Cluster, Connector, Pool, SendError, UpstreamProto, Upstreams};
use crate::body::{Body, BodyError};

pub(crate) fn model() -> model::Cluster {
    model::Cluster {
        service: model::ServiceRef {
            host: "reviews.default.svc.cluster.local".parse().unwrap(),
            name: "reviews".into(),
            namespace: "default".into(),
        },
        port: 9080,
        subset: None,
        selector: BTreeMap::new(),
        location: model::Location::MeshInternal,
        protocol: model::Protocol::Http,
        endpoints: model::EndpointSource::Slices(vec!["reviews".into()]),
        balancer: model::Balancer::LeastRequest,
        pool: model::ConnectionPool::default(),
        outlier: None,
        retry_budget: None,
        tls: model::ClientTls::Auto,
        subject_alt_names: Vec::new(),
        origins: Vec::new(),
    }
}

pub(crate) fn endpoint(address: SocketAddr) -> model::Endpoint {
    model::Endpoint {
        address: model::EndpointAddress::Ip(address.ip()),
        port: address.port(),
        workload: Arc::default(),
        weight: 1,
        mutual_tls: false,
        health: model::Health::Healthy,
    }
}

pub(crate) fn slice(endpoints: impl IntoIterator<Item = model::Endpoint>) -> Arc<model::EndpointSlice> {
    Arc::new(model::EndpointSlice {
        endpoints: endpoints.into_iter().collect(),
    })
}

/// Endpoints that nobody listens on, for choices alone.
pub(crate) fn addresses(count: u16) -> Vec<SocketAddr> {
    (0..count)
        .map(|index| SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9)), 1000 + index))
        .collect()
}

pub(crate) fn get(path: &str) -> Request<Body> {
    Request::get(path)
        .header("host", "reviews")
        .body(Body::empty())
        .unwrap()
}

/// A body's bytes and trailers.
pub(crate) async fn read(body: Body) -> Result<(Bytes, Option<HeaderMap>), BodyError> {
    let collected = body.collect().await?;
    let trailers = collected.trailers().cloned();
    Ok((collected.to_bytes(), trailers))
}

/// Waits until something is so, at most 10 s.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(10), wait).await.is_ok(),
        "never so: {what}"
    );
}

/// Runs a worker: a runtime of one thread with local tasks.
pub(crate) fn worker<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(30), work)
            .await
            .expect("in time")
    })
}

/// A worker's side of a cluster.
pub(crate) struct Client {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) pool: Pool,
    pub(crate) connector: Rc<Connector>,
    pub(crate) protocol: UpstreamProto,
}

impl Client {
    pub(crate) fn new(upstreams: &Arc<Upstreams>, model: model::Cluster, servers: &[SocketAddr]) -> Self {
        let slice = slice(servers.iter().map(|address| endpoint(*address)));
        Self {
            cluster: upstreams.cluster(Arc::new(model), &[slice]),
            pool: Pool::new(upstreams),
            connector: Rc::default(),
            protocol: UpstreamProto::Http1,
        }
    }

    pub(crate) fn http2(mut self) -> Self {
        self.protocol = UpstreamProto::Http2;
        self
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Result<Answer, SendError> {
        let endpoint = self.cluster.pick(None, &[]).expect("an endpoint");
        self.pool
            .send(&self.cluster, &endpoint, self.protocol, &self.connector, request)
            .await
    }

    /// Sends, and reads the whole response.
    pub(crate) async fn fetch(&self, request: Request<Body>) -> Result<Bytes, SendError> {
        let answer = self.send(request).await?;
        Ok(read(answer.response.into_body()).await.expect("a whole response").0)
    }
}

/// What a server counts.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) connections: AtomicUsize,
    pub(crate) open: AtomicUsize,
    pub(crate) requests: AtomicUsize,
    pub(crate) active: AtomicUsize,
    pub(crate) most_active: AtomicUsize,
}

impl Counts {
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn active(&self) -> usize {
        self.active.load(Ordering::SeqCst)
    }

    pub(crate) fn most_active(&self) -> usize {
        self.most_active.load(Ordering::SeqCst)
    }
}

/// A server of either version of HTTP on a thread of its own; stops when dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) counts: Arc<Counts>,
    _runtime: Runtime,
}

/// Ends its tasks without waiting, also from within another runtime.
struct Runtime(Option<tokio::runtime::Runtime>);

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Server {
    /// A server that answers with the path and the length of the body.
    pub(crate) fn echo(protocol: UpstreamProto) -> Self {
        Self::new(protocol, None, |request| async move {
            let path = request.uri().path().to_owned();
            let length = request
                .into_body()
                .collect()
                .await
                .map_or(0, |body| body.to_bytes().len());
            Response::new(Full::from(format!("{path} {length}")))
        })
    }

    pub(crate) fn new<F>(
        protocol: UpstreamProto,
        max_streams: Option<u32>,
        handler: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let counts = Arc::new(Counts::default());
        let counted = Arc::clone(&counts);
        Self::accepting(counts, move |tcp| {
            let (handler, counts) = (handler.clone(), Arc::clone(&counted));
            async move {
                let service = service_fn(move |request| {
                    let (answer, counts) = (handler(request), Arc::clone(&counts));
                    async move {
                        counts.requests.fetch_add(1, Ordering::SeqCst);
                        let active = counts.active.fetch_add(1, Ordering::SeqCst) + 1;
                        counts.most_active.fetch_max(active, Ordering::SeqCst);
                        let response = answer.await;
                        counts.active.fetch_sub(1, Ordering::SeqCst);
                        Ok::<_, std::convert::Infallible>(response)
                    }
                });
                let io = TokioIo::new(tcp);
                // Clients of tests go away at any time.
                let _ = match protocol {
                    UpstreamProto::Http1 => {
                        let builder = hyper::server::conn::http1::Builder::new();
                        builder.serve_connection(io, service).with_upgrades().await
                    }
                    UpstreamProto::Http2 => {
                        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        builder
                            .max_concurrent_streams(max_streams)
                            .serve_connection(io, service)
                            .await
                    }
                };
            }
        })
    }

    /// A server that does anything with its connections.
    pub(crate) fn raw<F>(serve: impl Fn(tokio::net::TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::accepting(Arc::default(), serve)
    }

    fn accepting<F>(counts: Arc<Counts>, serve: impl Fn(tokio::net::TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let counted = Arc::clone(&counts);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(socket).unwrap();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                counted.connections.fetch_add(1, Ordering::SeqCst);
                counted.open.fetch_add(1, Ordering::SeqCst);
                let (served, counted) = (serve(tcp), Arc::clone(&counted));
                tokio::spawn(async move {
                    served.await;
                    counted.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self {
            address,
            counts,
            _runtime: Runtime(Some(runtime)),
        }
    }
}
