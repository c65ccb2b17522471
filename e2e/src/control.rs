//! A control plane in the test's own process, from the parts that `mesh-control` is made of, for what the program does not
//! let its users ask for: certificates that live for seconds.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use mesh_api::identity::{SpiffeId, TrustDomain};
use mesh_control::ca::{Authenticator, Authority, CertificateService, Lifetimes, TokenStore};
use mesh_control::compile::Resolver;
use mesh_control::discovery::Discovery;
use mesh_control::grpc::Services;
use mesh_control::source::dir::{DirSource, Options};
use mesh_control::tls::{ControlTls, ServingNames};
use mesh_control::world::{self, World};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// A running control plane; it ends with the value.
pub struct Control {
    stop: CancellationToken,
    runtime: Option<Runtime>,
    _source: DirSource,
}

impl Control {
    /// Serves at `address` from the directories of authority and policy.
    ///
    /// # Errors
    /// When the address or the authority is not to be had.
    pub fn start(address: SocketAddr, ca: &Path, config: &Path, lifetimes: Lifetimes) -> anyhow::Result<Self> {
        let domain = TrustDomain::cluster_local();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let authority = Authority::open(ca, &domain, lifetimes)?;
        let authenticator = Authenticator::new(domain.clone(), TokenStore::new(ca));
        let names = ServingNames {
            identity: SpiffeId::new(&domain, "mesh-system", "mesh-control")?,
            dns_names: Vec::new(),
            addresses: vec![address.ip()],
        };
        let tls = ControlTls::new(authority.clone(), names)?;
        let resolver = Arc::new(Resolver::new(World::new(world::Options::default())));
        let sink = resolver.clone();
        let source = DirSource::start(Options::new([config.to_owned()]), move |events| sink.apply(&events))?;
        let stop = CancellationToken::new();
        let discovery = Discovery::new(resolver, Arc::new(authenticator.clone()), "in-process", stop.clone());
        runtime.block_on(async {
            source.synced().await;
            let listener = tokio::net::TcpListener::bind(address).await?;
            let services = Services(discovery.server(), CertificateService::server(authority, authenticator));
            let fresh = (tls.clone(), stop.clone());
            tokio::spawn(async move { fresh.0.keep_fresh(fresh.1).await });
            tokio::spawn(tonic::transport::Server::builder().serve_with_incoming_shutdown(
                services,
                tls.incoming(listener),
                stop.clone().cancelled_owned(),
            ));
            anyhow::Ok(())
        })?;
        Ok(Self {
            stop,
            runtime: Some(runtime),
            _source: source,
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
