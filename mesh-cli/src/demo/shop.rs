//! The shop: which workloads there are, where they live on loopback, and the objects that tell the mesh of them.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use http::Uri;
use mesh_api::identity::{SpiffeId, TrustDomain};

/// Namespace of every workload of the shop.
pub const NAMESPACE: &str = "default";
/// Port that services serve unless they say otherwise.
const HTTP_PORT: u16 = 8080;
/// Ports of `reviews`, both served by the same workload port.
const REVIEWS_PORTS: [u16; 2] = [80, 9080];
/// Where an application listens, beside its sidecar.
const APP_PORT: u16 = 18080;
/// Ports of each sidecar: explicit proxy, administration, metrics, readiness.
const SIDECAR_PORTS: [u16; 4] = [15001, 15000, 15090, 15021];
/// Ports of the control plane: discovery, status.
pub(super) const CONTROL_PORTS: [u16; 2] = [15012, 15014];

/// A workload as the shop's plan has it.
struct Plan {
    name: &'static str,
    service: &'static str,
    version: &'static str,
    port: Option<u16>,
    calls: &'static [&'static str],
}

const AUTH: &str = "http://auth-service.default.svc.cluster.local:8080/";
const ORDER: &str = "http://order-service.default.svc.cluster.local:8080/";
const INVENTORY: &str = "http://inventory-service.default.svc.cluster.local:8080/";
const PAYMENT: &str = "http://payment-service.default.svc.cluster.local:8080/";
/// The service that the commands to copy use.
pub const REVIEWS: &str = "http://reviews.default.svc.cluster.local:9080/";

/// The workload that requests come from.
pub const CLIENT: &str = "client";

/// The request that steady traffic makes.
pub const ENTRANCE: &str = "http://api-gateway.default.svc.cluster.local:8080/";

const PLANS: [Plan; 9] = [
    Plan {
        name: CLIENT,
        service: "client",
        version: "v1",
        port: None,
        calls: &[],
    },
    Plan {
        name: "api-gateway",
        service: "api-gateway",
        version: "v1",
        port: Some(HTTP_PORT),
        calls: &[AUTH, ORDER],
    },
    Plan {
        name: "auth-service",
        service: "auth-service",
        version: "v1",
        port: Some(HTTP_PORT),
        calls: &[],
    },
    Plan {
        name: "order-service",
        service: "order-service",
        version: "v1",
        port: Some(HTTP_PORT),
        calls: &[INVENTORY, PAYMENT, REVIEWS],
    },
    Plan {
        name: "inventory-service",
        service: "inventory-service",
        version: "v1",
        port: Some(HTTP_PORT),
        calls: &[],
    },
    Plan {
        name: "payment-service",
        service: "payment-service",
        version: "v1",
        port: Some(HTTP_PORT),
        calls: &[],
    },
    Plan {
        name: "reviews-v1",
        service: "reviews",
        version: "v1",
        port: Some(REVIEWS_PORTS[1]),
        calls: &[],
    },
    Plan {
        name: "reviews-v2",
        service: "reviews",
        version: "v2",
        port: Some(REVIEWS_PORTS[1]),
        calls: &[],
    },
    Plan {
        name: "reviews-v3",
        service: "reviews",
        version: "v3",
        port: Some(REVIEWS_PORTS[1]),
        calls: &[],
    },
];

/// One workload with everything that its two processes need.
#[derive(Clone, Debug)]
pub struct ShopWorkload {
    /// `reviews-v1`.
    pub name: &'static str,
    /// `reviews`; also the service account.
    pub service: &'static str,
    /// `v1`.
    pub version: &'static str,
    /// Its identity.
    pub identity: SpiffeId,
    /// Its own address.
    pub address: IpAddr,
    /// Where peers connect: the sidecar's.
    pub inbound: SocketAddr,
    /// Where the application listens.
    pub app: SocketAddr,
    /// The sidecar's explicit HTTP proxy.
    pub outbound: SocketAddr,
    /// Administration.
    pub admin: SocketAddr,
    /// Metrics.
    pub metrics: SocketAddr,
    /// Readiness.
    pub readiness: SocketAddr,
    /// Whether any service leads here.
    pub serves: bool,
    /// What it calls.
    pub calls: Vec<Uri>,
}

/// A free block of loopback addresses, `127.<x>.<y>.0/24`.
#[derive(Clone, Copy, Debug)]
pub struct Block(u8, u8);

/// No block is free, or the machine has one loopback address only.
#[derive(Debug, thiserror::Error)]
#[error("no free block of loopback addresses in 127.0.0.0/8 ({0}); on macOS add aliases with `ifconfig lo0 alias`")]
pub struct NoBlock(io::Error);

impl Block {
    /// Finds a block in which all that the shop needs is free.
    ///
    /// # Errors
    /// When none is found in a hundred tries.
    pub fn find() -> Result<Self, NoBlock> {
        let mut last = io::Error::other("none tried");
        for _ in 0..100 {
            let block = Self(fastrand::u8(16..=250), fastrand::u8(1..=250));
            match block
                .addresses()
                .try_for_each(|address| TcpListener::bind(address).map(drop))
            {
                Ok(()) => return Ok(block),
                Err(error) => last = error,
            }
        }
        Err(NoBlock(last))
    }

    /// Everything that somebody of the demo listens on.
    fn addresses(self) -> impl Iterator<Item = SocketAddr> {
        let control_plane = CONTROL_PORTS.map(|port| SocketAddr::new(self.control_plane(), port));
        let workloads = PLANS.iter().enumerate().flat_map(move |(index, plan)| {
            let own = [plan.port.unwrap_or(HTTP_PORT), APP_PORT]
                .into_iter()
                .chain(SIDECAR_PORTS);
            own.map(move |port| SocketAddr::new(self.workload(index), port))
        });
        control_plane.into_iter().chain(workloads)
    }

    /// Address of the control plane.
    #[must_use]
    pub fn control_plane(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(127, self.0, self.1, 1))
    }

    /// Address of the workload with this index.
    #[must_use]
    pub fn workload(self, index: usize) -> IpAddr {
        let last = u8::try_from(10 + index).unwrap_or(u8::MAX);
        IpAddr::V4(Ipv4Addr::new(127, self.0, self.1, last))
    }
}

/// The shop's workloads in a block.
///
/// # Errors
/// Never for the built-in plan; the signature keeps parsing honest.
pub fn workloads(block: Block, trust_domain: &TrustDomain) -> anyhow::Result<Vec<ShopWorkload>> {
    let [outbound, admin, metrics, readiness] = SIDECAR_PORTS;
    PLANS
        .iter()
        .enumerate()
        .map(|(index, plan)| {
            let address = block.workload(index);
            Ok(ShopWorkload {
                name: plan.name,
                service: plan.service,
                version: plan.version,
                identity: SpiffeId::new(trust_domain, NAMESPACE, plan.service)?,
                address,
                inbound: SocketAddr::new(address, plan.port.unwrap_or(HTTP_PORT)),
                app: SocketAddr::new(address, APP_PORT),
                outbound: SocketAddr::new(address, outbound),
                admin: SocketAddr::new(address, admin),
                metrics: SocketAddr::new(address, metrics),
                readiness: SocketAddr::new(address, readiness),
                serves: plan.port.is_some(),
                calls: plan.calls.iter().map(|url| url.parse()).collect::<Result<_, _>>()?,
            })
        })
        .collect()
}

/// The objects of the demo's own: services, workloads, the subsets of `reviews`, and the mesh's settings.
#[must_use]
pub fn objects(workloads: &[ShopWorkload], settings: &MeshOptions) -> String {
    let mut yaml = String::from("# The demo's own objects; policies go into the policy directory.\n");
    let mut services: Vec<&ShopWorkload> = Vec::new();
    for workload in workloads.iter().filter(|workload| workload.serves) {
        if !services.iter().any(|known| known.service == workload.service) {
            services.push(workload);
        }
    }
    for workload in services {
        let target = workload.inbound.port();
        let ports: &[u16] = if workload.service == "reviews" {
            &REVIEWS_PORTS
        } else {
            &[HTTP_PORT]
        };
        let service = workload.service;
        let _ = write!(
            yaml,
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: {service}\n  namespace: \
             {NAMESPACE}\nspec:\n  hosts:\n  - {service}.{NAMESPACE}.svc.cluster.local\n  location: MESH_INTERNAL\n  \
             resolution: STATIC\n  workloadSelector:\n    labels:\n      app: {service}\n  ports:\n"
        );
        for port in ports {
            let _ = write!(
                yaml,
                "  - number: {port}\n    name: http-{port}\n    protocol: HTTP\n    targetPort: {target}\n"
            );
        }
    }
    for workload in workloads {
        let ShopWorkload {
            name,
            service,
            version,
            address,
            ..
        } = workload;
        let _ = write!(
            yaml,
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: {name}\n  namespace: \
             {NAMESPACE}\nspec:\n  address: {address}\n  serviceAccount: {service}\n  labels:\n    app: {service}\n    \
             version: {version}\n    security.istio.io/tlsMode: istio\n"
        );
    }
    yaml.push_str(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: demo-reviews-subsets\n  \
         namespace: default\nspec:\n  host: reviews\n  subsets:\n",
    );
    for version in ["v1", "v2", "v3"] {
        let _ = write!(yaml, "  - name: {version}\n    labels:\n      version: {version}\n");
    }
    yaml.push_str("---\napiVersion: mesh.dev/v1\nkind: MeshConfig\nmetadata:\n  name: mesh\nspec:\n");
    let _ = write!(
        yaml,
        "  accessLogFile: /dev/stdout\n  accessLogEncoding: {}\n",
        settings.access_log_encoding
    );
    if let Some(endpoint) = &settings.otlp_endpoint {
        let _ = write!(
            yaml,
            "  tracing:\n    otlpEndpoint: {endpoint}\n    samplingPercentage: 100\n"
        );
    }
    yaml
}

/// What the demo's MeshConfig says.
#[derive(Clone, Debug)]
pub struct MeshOptions {
    /// `TEXT` or `JSON`.
    pub access_log_encoding: &'static str,
    /// Where spans go, if anywhere.
    pub otlp_endpoint: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_reaches_a_service() {
        let services: Vec<_> = PLANS
            .iter()
            .filter(|plan| plan.port.is_some())
            .map(|plan| plan.service)
            .collect();
        for call in PLANS.iter().flat_map(|plan| plan.calls).chain([&ENTRANCE]) {
            let uri: Uri = call.parse().unwrap();
            let name = uri.host().unwrap().split('.').next().unwrap();
            assert!(services.contains(&name), "{call}");
        }
    }
}
