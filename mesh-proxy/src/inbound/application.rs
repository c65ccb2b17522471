//! What is behind the ports of the workload: the application, as a cluster of one endpoint.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use mesh_api::model::{
    Cluster as ClusterModel, Endpoint, EndpointAddress, EndpointSlice, EndpointSource, Forward, Health, Protocol,
    ServiceRef, WeightedCluster, Workload,
};
use smallvec::smallvec;

use crate::config::InboundMapping;
use crate::upstream::Cluster;
use crate::worker::Worker;

/// Ports of the application that are remembered; peers choose them.
const MAX_APPLICATIONS: usize = 256;

/// A port of the workload, and the application behind it.
pub(crate) struct Application {
    /// The workload port.
    pub port: u16,
    /// One endpoint: the application.
    pub cluster: Arc<Cluster>,
    /// Forwards everything there.
    pub rule: Forward,
    /// Istio's name: `inbound|9080||`, or `InboundPassthroughCluster` of a port that no service declares.
    pub name: Arc<str>,
    declared: Declared,
}

/// Whether a service leads to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Declared {
    Yes,
    No,
}

/// The applications that captured connections asked for, by address and port; one set a worker.
#[derive(Default)]
pub(crate) struct Applications {
    known: RefCell<HashMap<SocketAddr, Rc<Application>>>,
}

impl Applications {
    /// The application at the original destination of a connection. Made at the first, and again when its port comes to be
    /// declared or ceases to be.
    pub fn at(&self, worker: &Worker, address: SocketAddr) -> Rc<Application> {
        let inbound = worker.proxy.directory.inbound();
        let declared = match inbound.is_some_and(|inbound| inbound.port(address.port()).is_some()) {
            true => Declared::Yes,
            false => Declared::No,
        };
        let mut known = self.known.borrow_mut();
        if let Some(application) = known.get(&address).filter(|known| known.declared == declared) {
            return application.clone();
        }
        if known.len() >= MAX_APPLICATIONS {
            known.retain(|_, application| Rc::strong_count(application) > 1);
        }
        let application = Application::new(worker, address.port(), address, declared);
        // All are in use: the connection has its own.
        if known.len() < MAX_APPLICATIONS {
            known.insert(address, application.clone());
        }
        application
    }
}

impl Application {
    /// Prepares what forwards to the application of a mapping.
    pub fn mapped(worker: &Worker, mapping: &InboundMapping) -> Rc<Self> {
        Self::new(worker, mapping.listen.port(), mapping.application, Declared::Yes)
    }

    fn new(worker: &Worker, port: u16, address: SocketAddr, declared: Declared) -> Rc<Self> {
        let host = match address.ip() {
            IpAddr::V4(ip) => format!("application-{ip}"),
            IpAddr::V6(ip) => format!("application-{:032x}", ip.to_bits()),
        };
        let host = host.parse().unwrap_or_else(|_| unreachable_host());
        let model = ClusterModel {
            service: ServiceRef {
                host,
                name: "inbound".into(),
                namespace: "".into(),
            },
            port,
            ..passthrough_model()
        };
        let endpoint = Endpoint {
            address: EndpointAddress::Ip(address.ip()),
            port: address.port(),
            workload: Arc::new(Workload::default()),
            weight: 1,
            mutual_tls: false,
            health: Health::Healthy,
        };
        let model = ClusterModel {
            endpoints: EndpointSource::Slices(vec!["application".into()]),
            ..model
        };
        let slice = Arc::new(EndpointSlice {
            endpoints: vec![endpoint],
        });
        Rc::new(Self {
            port,
            cluster: worker.proxy.upstreams.cluster(Arc::new(model), &[slice]),
            rule: single_leg(),
            name: match declared {
                Declared::Yes => format!("inbound|{port}||").into(),
                Declared::No => "InboundPassthroughCluster".into(),
            },
            declared,
        })
    }
}

fn unreachable_host() -> mesh_api::names::Hostname {
    // An address in text form is a host name.
    #[allow(clippy::expect_used, reason = "a constant")]
    "application".parse().expect("a host name")
}

/// A rule that sends everything to the first cluster, once.
pub(crate) fn single_leg() -> Forward {
    Forward {
        clusters: smallvec![WeightedCluster {
            cluster: 0,
            weight: 1,
            headers: Default::default()
        }],
        timeout: None,
        retry: None,
        rewrite: Default::default(),
        mirrors: Vec::new(),
    }
}

/// Istio's `PassthroughCluster`: the address that was asked for, in plaintext.
pub(crate) fn passthrough_model() -> ClusterModel {
    ClusterModel {
        service: ServiceRef {
            host: unreachable_host(),
            name: "PassthroughCluster".into(),
            namespace: "".into(),
        },
        port: 0,
        subset: None,
        selector: Default::default(),
        location: mesh_api::model::Location::MeshExternal,
        protocol: Protocol::Detect,
        endpoints: EndpointSource::Passthrough,
        balancer: Default::default(),
        pool: Default::default(),
        outlier: None,
        retry_budget: None,
        tls: mesh_api::model::ClientTls::Disable,
        subject_alt_names: Vec::new(),
        origins: Vec::new(),
    }
}
