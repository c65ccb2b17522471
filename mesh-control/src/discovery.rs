//! Delta discovery: subscriptions of proxies in, resources and their changes out, acknowledgements kept as sync state.
//!
//! The protocol is `envoy.service.discovery.v3`'s delta variant. A proxy subscribes to names; the answer to a name is a
//! resource under its canonical name (with the name that was asked as alias) or, in `removed_resources`, that there is no
//! such thing. Answers follow the world until the proxy unsubscribes. On reconnection `initial_resource_versions` says,
//! **by the name asked for**, what the proxy holds, and what has not changed is not sent again. Destinations that other
//! replicas of the same service account use are sent unasked.
//!
//! The module knows nothing of policy: what a name means to a client is the [`Resources`](resources::Resources)
//! trait's answer.

pub mod resources;

mod hints;
mod status;
mod stream;
mod subscriptions;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use mesh_api::identity::SpiffeId;
use mesh_api::names::ObjectRef;
use mesh_api::wire::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use mesh_api::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

pub use status::{Programmed, ProxyStatus, SyncState, TypeStatus};

use crate::ca::{Authenticator, PeerInfo};
use hints::Hints;
use resources::Resources;
use status::Registry;

/// Largest request: a reconnecting proxy lists all that it holds.
const MAX_REQUEST: usize = 16 << 20;

/// Who opened a stream.
#[derive(Clone, Debug)]
pub struct Authenticated {
    /// Identity that was proved.
    pub identity: SpiffeId,
    /// When the proof ends; the stream ends with it.
    pub expires: Option<SystemTime>,
}

/// An authentication under way.
pub type Authenticating = Pin<Box<dyn Future<Output = Result<Authenticated, Status>> + Send>>;

/// Says who calls.
pub trait Authenticate: Send + Sync + 'static {
    /// The subject of a request that opens a stream.
    ///
    /// # Errors
    /// UNAUTHENTICATED, or UNAVAILABLE when it cannot be told.
    fn authenticate(&self, request: &Request<Streaming<DeltaDiscoveryRequest>>) -> Authenticating;
}

impl Authenticate for Authenticator {
    fn authenticate(&self, request: &Request<Streaming<DeltaDiscoveryRequest>>) -> Authenticating {
        let caller = self.authenticate_request(request);
        Box::pin(async move {
            let caller = caller.await?;
            Ok(Authenticated {
                identity: caller.identity,
                expires: Some(caller.how.ends()),
            })
        })
    }
}

/// The discovery service; cheap to clone.
#[derive(Clone)]
pub struct Discovery {
    shared: Arc<Shared>,
}

struct Shared {
    resources: Arc<dyn Resources>,
    authenticate: Arc<dyn Authenticate>,
    /// Name of this replica in status.
    control_plane: String,
    shutdown: CancellationToken,
    hints: Hints,
    registry: Registry,
    streams: AtomicU64,
}

impl Shared {
    fn next_id(&self) -> u64 {
        self.streams.fetch_add(1, Ordering::Relaxed)
    }
}

impl Discovery {
    /// A service that answers from `resources` until `shutdown`, which ends all streams. `control_plane` names this replica
    /// in `proxy-status`.
    #[must_use]
    pub fn new(
        resources: Arc<dyn Resources>,
        authenticate: Arc<dyn Authenticate>,
        control_plane: impl Into<String>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                resources,
                authenticate,
                control_plane: control_plane.into(),
                shutdown,
                hints: Hints::default(),
                registry: Registry::default(),
                streams: AtomicU64::new(1),
            }),
        }
    }

    /// The gRPC service.
    #[must_use]
    pub fn server(&self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self.clone()).max_decoding_message_size(MAX_REQUEST)
    }

    /// Connected proxies and their sync state, by name.
    #[must_use]
    pub fn status(&self) -> Vec<ProxyStatus> {
        self.shared.registry.snapshot(&self.shared.control_plane)
    }

    /// On how many of the connected proxies each policy object is programmed. Objects that no proxy holds anything of are
    /// left out. `applied` says in which generation an object last changed.
    #[must_use]
    pub fn programmed(&self, applied: impl Fn(&ObjectRef) -> u64) -> HashMap<ObjectRef, Programmed> {
        self.shared.registry.programmed(applied)
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let subject = self.shared.authenticate.authenticate(&request).await?;
        let address: Option<SocketAddr> = match request.extensions().get::<PeerInfo>() {
            Some(peer) => Some(peer.address),
            None => request.remote_addr(),
        };
        let (out, responses) = mpsc::channel(stream::OUTGOING);
        tokio::spawn(stream::run(
            self.shared.clone(),
            subject,
            address,
            request.into_inner(),
            out,
        ));
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}
