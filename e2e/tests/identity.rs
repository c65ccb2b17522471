//! Certificates from the authority to both ends of a connection: control plane and proxies in one process, over
//! loopback sockets.
// What fails in a helper fails its test.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_api::bootstrap::BootstrapToken;
use mesh_api::identity::{SpiffeId, TrustDomain};
use mesh_api::wire::ca::IstioCertificateRequest;
use mesh_api::wire::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_control::ca::{
    Authenticator, Authority, CertificateService, Lifetimes, ReviewToken, Reviewing, ServiceAccount, TokenStore,
    create_token,
};
use mesh_control::tls::{ControlTls, ServingNames};
use mesh_proxy::identity::{CertStore, ControlPlane, ControlPlaneConfig, IdentityClient, TokenSource};
use mesh_proxy::tls::AlpnKind;
use mesh_proxy::tls::inbound::InboundTls;
use mesh_proxy::tls::outbound::{ExpectedPeer, OutboundTls, server_name};
use mesh_proxy::tls::verify::TrustDomains;
use rcgen::{CertificateParams, KeyPair, SanType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::Code;

const CONTROL: &str = "spiffe://cluster.local/ns/mesh-system/sa/mesh-control";
const ORDERS: &str = "spiffe://cluster.local/ns/default/sa/order-service";
const PAYMENTS: &str = "spiffe://cluster.local/ns/default/sa/payment-service";
const HOUR: Duration = Duration::from_secs(3600);

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let outcome = tokio::time::timeout(Duration::from_secs(30), future).await;
    outcome.unwrap_or_else(|_| panic!("not within 30 s: {what}"))
}

/// A control plane's certificate service on 127.0.0.1; ends when dropped.
struct Control {
    authority: Arc<Authority>,
    tls: Arc<ControlTls>,
    address: SocketAddr,
    server: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

impl Control {
    async fn start(directory: &Path, address: SocketAddr, identity: &str, lifetimes: Lifetimes) -> Self {
        let authority = Authority::open(directory, &TrustDomain::cluster_local(), lifetimes).unwrap();
        let authenticator = Authenticator::new(TrustDomain::cluster_local(), TokenStore::new(directory));
        Self::serve(authority, authenticator, address, identity).await
    }

    async fn serve(
        authority: Arc<Authority>,
        authenticator: Authenticator,
        address: SocketAddr,
        identity: &str,
    ) -> Self {
        let names = ServingNames {
            identity: id(identity),
            dns_names: Vec::new(),
            addresses: Vec::new(),
        };
        let tls = ControlTls::new(authority.clone(), names).unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = CertificateService::server(authority.clone(), authenticator);
        let (stop, incoming) = (CancellationToken::new(), tls.clone().incoming(listener));
        let serving = tonic::transport::Server::builder().serve_with_incoming_shutdown(
            service,
            incoming,
            stop.clone().cancelled_owned(),
        );
        let server = tokio::spawn(async move { serving.await.unwrap() });
        Self {
            authority,
            tls,
            address,
            server,
            stop,
        }
    }

    async fn new(directory: &Path) -> Self {
        Self::start(directory, "127.0.0.1:0".parse().unwrap(), CONTROL, Lifetimes::default()).await
    }

    fn token(&self, directory: &Path, identity: &str) -> BootstrapToken {
        create_token(directory, &self.authority, &id(identity), HOUR).unwrap()
    }

    /// Stops listening and waits until the port is free again.
    async fn stop(self) -> SocketAddr {
        self.stop.cancel();
        soon("the server ends", self.server).await.unwrap();
        self.address
    }
}

struct Proxy {
    store: Arc<CertStore>,
    control: Arc<ControlPlane>,
    stop: CancellationToken,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Proxy {
    fn dialling(address: SocketAddr, token: Option<TokenSource>) -> Self {
        Self::knowing(address, token, None)
    }

    fn knowing(address: SocketAddr, token: Option<TokenSource>, roots: Option<PathBuf>) -> Self {
        let store = CertStore::new(TrustDomains::new(TrustDomain::cluster_local(), Vec::new()));
        let address = address.to_string().parse().unwrap();
        let config = ControlPlaneConfig {
            address,
            identity: id(CONTROL),
            token,
            roots,
        };
        let control = ControlPlane::new(config, store.clone());
        Self {
            store,
            control,
            stop: CancellationToken::new(),
        }
    }

    fn run(self, identity: &str, lifetime: Option<Duration>) -> Self {
        let mut client = IdentityClient::new(id(identity), self.control.clone(), self.store.clone());
        if let Some(lifetime) = lifetime {
            client = client.with_lifetime(lifetime);
        }
        tokio::spawn(client.run(self.stop.clone()));
        self
    }

    async fn generation(&self, at_least: u64) {
        let mut changes = self.store.subscribe();
        soon("certificates", changes.wait_for(|generation| *generation >= at_least))
            .await
            .unwrap();
    }

    /// Asks for a certificate of `name` without the client's own checks.
    async fn ask(&self, name: &str) -> Result<Vec<String>, tonic::Status> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
        let csr = params
            .serialize_request(&KeyPair::generate().unwrap())
            .unwrap()
            .pem()
            .unwrap();
        let request = IstioCertificateRequest {
            csr,
            validity_duration: 0,
            metadata: None,
        };
        let mut client = IstioCertificateServiceClient::new(self.control.channel().unwrap());
        soon("an answer", client.create_certificate(request))
            .await
            .map(|answer| answer.into_inner().cert_chain)
    }
}

async fn exchange(client: &Proxy, server: &Proxy, expected: &str) -> (std::io::Result<()>, std::io::Result<SpiffeId>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (inbound, outbound) = (
        InboundTls::new(server.store.clone()),
        OutboundTls::new(client.store.clone()),
    );
    let serve = async {
        let mut accepted = inbound.accept(listener.accept().await?.0).await?;
        accepted.stream.read_exact(&mut [0; 3]).await?;
        accepted.stream.write_all(b"yes").await?;
        Ok(accepted.peer)
    };
    let call = async {
        let (tcp, expected) = (TcpStream::connect(address).await?, ExpectedPeer::from(id(expected)));
        let sni = server_name("outbound_.80_._.payment-service.default.svc.cluster.local");
        let mut stream = outbound.connect(tcp, sni, &expected, AlpnKind::Http1).await?;
        stream.write_all(b"ask").await?;
        stream.read_exact(&mut [0; 3]).await.map(drop)
    };
    soon("an exchange", async { tokio::join!(call, serve) }).await
}

fn bootstrap(token: BootstrapToken) -> Option<TokenSource> {
    Some(TokenSource::Bootstrap(token))
}

#[tokio::test]
async fn tokens_become_certificates_that_prove_both_ends() {
    let directory = tempfile::tempdir().unwrap();
    let control = Control::new(directory.path()).await;
    let start = |identity: &str| {
        Proxy::dialling(control.address, bootstrap(control.token(directory.path(), identity))).run(identity, None)
    };
    let (orders, payments) = (start(ORDERS), start(PAYMENTS));
    let credentials = soon("a certificate", orders.store.ready()).await;
    assert_eq!(*credentials.identity(), id(ORDERS));
    assert_eq!(credentials.roots(), &*control.authority.roots());
    soon("a certificate", payments.store.ready()).await;

    let (client, server) = exchange(&orders, &payments, PAYMENTS).await;
    client.unwrap();
    assert_eq!(server.unwrap(), id(ORDERS));
    let (client, server) = exchange(&payments, &orders, ORDERS).await;
    client.unwrap();
    assert_eq!(server.unwrap(), id(PAYMENTS));
    let (client, _) = exchange(&orders, &payments, ORDERS).await;
    assert!(
        client.unwrap_err().to_string().contains("expected was"),
        "who answers is checked"
    );
}

#[tokio::test]
async fn meshes_with_other_authorities_do_not_talk() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (control, other) = (Control::new(ours.path()).await, Control::new(theirs.path()).await);
    let orders = Proxy::dialling(control.address, bootstrap(control.token(ours.path(), ORDERS))).run(ORDERS, None);
    let stranger = Proxy::dialling(other.address, bootstrap(other.token(theirs.path(), PAYMENTS))).run(PAYMENTS, None);
    soon("a certificate", orders.store.ready()).await;
    soon("a certificate", stranger.store.ready()).await;
    let (client, server) = exchange(&orders, &stranger, PAYMENTS).await;
    assert!(client.is_err() && server.is_err());
}

#[tokio::test]
async fn the_token_is_not_sent_before_the_root_is_checked() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (control, other) = (Control::new(ours.path()).await, Control::new(theirs.path()).await);
    let token = control.token(ours.path(), ORDERS);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::dialling(listener.local_addr().unwrap(), bootstrap(token.clone()));
    let handshake = async {
        let (tcp, _) = listener.accept().await.unwrap();
        tokio_rustls::TlsAcceptor::from(other.tls.config()).accept(tcp).await
    };
    let (handshake, answer) = tokio::join!(soon("a handshake", handshake), proxy.ask(ORDERS));
    assert!(handshake.is_err(), "the proxy leaves in the handshake");
    assert_eq!(answer.unwrap_err().code(), Code::Unavailable);

    // Nor to a workload of the same mesh that plays the control plane.
    let any = "127.0.0.1:0".parse().unwrap();
    let impostor = Control::start(ours.path(), any, PAYMENTS, Lifetimes::default()).await;
    let proxy = Proxy::dialling(impostor.address, bootstrap(token));
    assert_eq!(proxy.ask(ORDERS).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn certificates_are_for_the_caller_only() {
    let directory = tempfile::tempdir().unwrap();
    let control = Control::new(directory.path()).await;
    let orders = Proxy::dialling(control.address, bootstrap(control.token(directory.path(), ORDERS)));
    let status = orders.ask(PAYMENTS).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(
        status.message().contains(ORDERS) && status.message().contains(PAYMENTS),
        "{status}"
    );
    assert_eq!(orders.ask(ORDERS).await.unwrap().len(), 2);

    // The same by certificate, when the token no longer exists.
    let orders = orders.run(ORDERS, None);
    soon("a certificate", orders.store.ready()).await;
    std::fs::remove_dir_all(directory.path().join("tokens")).unwrap();
    assert_eq!(orders.ask(PAYMENTS).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(orders.ask(ORDERS).await.unwrap().len(), 2);

    let nobody = Proxy::dialling(control.address, None);
    nobody.store.publish(mesh_proxy::identity::Credentials::clone(
        &*orders.store.current().unwrap(),
    ));
    assert_eq!(
        nobody.ask(ORDERS).await.unwrap().len(),
        2,
        "a live certificate is enough"
    );
}

#[tokio::test]
async fn expired_and_unknown_tokens_are_refused_and_a_new_one_mends_it() {
    let directory = tempfile::tempdir().unwrap();
    let control = Control::new(directory.path()).await;
    let path = directory.path().join("proxy-token");
    let second = Duration::from_secs(1);
    let short = create_token(directory.path(), &control.authority, &id(ORDERS), second).unwrap();
    std::fs::write(&path, short.to_string()).unwrap();
    let proxy = Proxy::dialling(control.address, Some(TokenSource::File(path.clone())));
    let expired = async {
        loop {
            match proxy.ask(ORDERS).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(status) => return status,
            }
        }
    };
    let status = soon("the token expires", expired).await;
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("expired"), "{status}");

    let unknown = BootstrapToken::new(&"A".repeat(43), short.root()).unwrap();
    std::fs::write(&path, unknown.to_string()).unwrap();
    assert!(
        proxy
            .ask(ORDERS)
            .await
            .unwrap_err()
            .message()
            .contains("unknown bootstrap token")
    );

    let proxy = proxy.run(ORDERS, None);
    std::fs::write(&path, control.token(directory.path(), ORDERS).to_string()).unwrap();
    soon("a certificate by the new token", proxy.store.ready()).await;
}

/// Vouches for the tokens `orders.jwt.<number>`, as an API server would.
struct Reviewer;

impl ReviewToken for Reviewer {
    fn review<'a>(&'a self, token: &'a str) -> Reviewing<'a> {
        let known = token.starts_with("orders.jwt.");
        Box::pin(async move {
            let account = known.then(|| ServiceAccount {
                identity: id(ORDERS),
                expires: SystemTime::now() + HOUR,
            });
            account.ok_or_else(|| tonic::Status::unauthenticated("no such token"))
        })
    }
}

/// As in a pod: the token and the roots are files that are replaced under way, and there is no bootstrap token.
#[tokio::test]
async fn service_account_tokens_and_mounted_roots_are_read_as_they_are_now() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let open = |name: &str| {
        let path = directory.path().join(name);
        Authority::open(&path, &TrustDomain::cluster_local(), Lifetimes::default()).unwrap()
    };
    let (authority, other) = (open("ours"), open("theirs"));
    let any = "127.0.0.1:0".parse().unwrap();
    let authenticator = Authenticator::in_cluster(TrustDomain::cluster_local(), Arc::new(Reviewer));
    let control = Control::serve(authority.clone(), authenticator, any, CONTROL).await;

    let token = TokenSource::File(file("token", "orders.jwt.1\n"));
    let roots = file("root-cert.pem", &other.roots_pem());
    let orders = Proxy::knowing(control.address, Some(token), Some(roots));
    assert_eq!(
        orders.ask(ORDERS).await.unwrap_err().code(),
        Code::Unavailable,
        "another mesh's root"
    );

    file("root-cert.pem", &(other.roots_pem() + &authority.roots_pem()));
    assert_eq!(orders.ask(ORDERS).await.unwrap().len(), 2, "leaf, root");
    assert_eq!(orders.ask(PAYMENTS).await.unwrap_err().code(), Code::PermissionDenied);

    file("token", "somebody.else.1");
    let status = orders.ask(ORDERS).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    file("token", "orders.jwt.2");
    let orders = orders.run(ORDERS, None);
    soon("a certificate by the new token", orders.store.ready()).await;
}

#[tokio::test]
async fn certificates_are_renewed_live_and_kept_while_the_control_plane_is_away() {
    let directory = tempfile::tempdir().unwrap();
    let control = Control::new(directory.path()).await;
    let lifetime = Some(Duration::from_secs(10));
    let token = control.token(directory.path(), ORDERS);
    let orders = Proxy::dialling(control.address, bootstrap(token)).run(ORDERS, lifetime);
    let token = control.token(directory.path(), PAYMENTS);
    let payments = Proxy::dialling(control.address, bootstrap(token)).run(PAYMENTS, None);
    let first = soon("a certificate", orders.store.ready()).await;
    soon("a certificate", payments.store.ready()).await;
    // Without tokens only the certificate proves who they are.
    let (tokens, hidden) = (directory.path().join("tokens"), directory.path().join("hidden"));
    std::fs::rename(&tokens, &hidden).unwrap();
    let (client, _) = exchange(&orders, &payments, PAYMENTS).await;
    client.unwrap();

    orders.generation(2).await;
    let second = orders.store.current().unwrap();
    assert!(second.is_live() && first.is_live(), "renewed before the end");
    assert_ne!(first.serial(), second.serial());
    assert!(second.not_after() > first.not_after());
    let (client, server) = exchange(&orders, &payments, PAYMENTS).await;
    client.unwrap();
    assert_eq!(server.unwrap(), id(ORDERS));

    std::fs::rename(&hidden, &tokens).unwrap();
    let address = control.stop().await;
    let before = orders.store.current().unwrap();
    assert!(orders.ask(ORDERS).await.is_err(), "the control plane is away");
    assert_eq!(orders.store.current().unwrap().serial(), before.serial(), "kept");
    let (client, _) = exchange(&orders, &payments, PAYMENTS).await;
    client.unwrap();

    let _back = Control::start(directory.path(), address, CONTROL, Lifetimes::default()).await;
    orders.generation(before.generation() + 1).await;
    let (client, _) = exchange(&orders, &payments, PAYMENTS).await;
    client.unwrap();
}

#[tokio::test]
async fn the_control_plane_renews_its_own_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let short = Lifetimes {
        default: Duration::from_secs(2),
        max: HOUR,
    };
    let control = Control::start(directory.path(), "127.0.0.1:0".parse().unwrap(), CONTROL, short).await;
    let before = control.tls.config();
    let (tls, stop) = (control.tls.clone(), control.stop.clone());
    let renewing = tokio::spawn(async move { tls.keep_fresh(stop).await });
    let renewed = async {
        while Arc::ptr_eq(&before, &control.tls.config()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("a new serving certificate", renewed).await;
    let proxy = Proxy::dialling(control.address, bootstrap(control.token(directory.path(), ORDERS)));
    proxy.ask(ORDERS).await.unwrap();
    control.stop.cancel();
    soon("renewing ends", renewing).await.unwrap();
}
