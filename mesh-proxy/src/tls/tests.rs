//! Both sides of the mesh's mutual TLS against each other, and against strangers, on loopback sockets.

use std::io;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_api::identity::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::inbound::{Accepted, InboundTls};
use super::outbound::{ExpectedPeer, OutboundTls, server_name};
use super::verify::TrustDomains;
use super::{AlpnKind, TlsUnavailable, provider};
use crate::identity::{CertStore, Credentials};

const ORDERS: &str = "spiffe://cluster.local/ns/default/sa/order-service";
const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";
const SNI: &str = "outbound_.9080_.v1_.reviews.default.svc.cluster.local";

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

/// An authority of the test's own.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("{:x}", fastrand::u64(..)));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: Issuer::new(params, key),
            root,
        }
    }

    fn credentials(&self, names: &[&str]) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let leaf = self.leaf(names, &key);
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Credentials::new(vec![leaf], key, vec![self.root.clone()]).unwrap()
    }

    fn leaf(&self, names: &[&str], key: &KeyPair) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names
            .iter()
            .map(|name| SanType::URI((*name).try_into().unwrap()))
            .collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(key, &self.issuer).unwrap().der().clone()
    }

    pub(crate) fn store(&self, name: &str) -> Arc<CertStore> {
        let store = CertStore::new(TrustDomains::new(TrustDomain::cluster_local(), Vec::new()));
        store.publish(self.credentials(&[name]));
        store
    }
}

/// One handshake between `client` and `inbound`, and a word each way so that both have seen its end.
async fn shake(
    inbound: &InboundTls,
    connect: impl AsyncFnOnce(TcpStream) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>>,
) -> (
    io::Result<tokio_rustls::client::TlsStream<TcpStream>>,
    io::Result<Accepted<TcpStream>>,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = async {
        let mut stream = connect(TcpStream::connect(address).await?).await?;
        stream.write_all(b"ask").await?;
        stream.read_exact(&mut [0; 3]).await?;
        Ok(stream)
    };
    let server = async {
        let mut accepted = inbound.accept(listener.accept().await?.0).await?;
        accepted.stream.read_exact(&mut [0; 3]).await?;
        accepted.stream.write_all(b"yes").await?;
        Ok(accepted)
    };
    tokio::join!(client, server)
}

#[tokio::test]
async fn both_sides_prove_themselves_whatever_is_carried() {
    let authority = Authority::new();
    let inbound = InboundTls::new(authority.store(REVIEWS));
    let outbound = OutboundTls::new(authority.store(ORDERS));
    let expected = ExpectedPeer::from(id(REVIEWS));
    for (alpn, negotiated) in [
        (AlpnKind::Http1, &b"http/1.1"[..]),
        (AlpnKind::Http2, b"h2"),
        (AlpnKind::Tcp, b"istio"),
    ] {
        let (client, server) = shake(&inbound, async |tcp| {
            outbound.connect(tcp, server_name(SNI), &expected, alpn).await
        })
        .await;
        let (client, server) = (client.unwrap(), server.unwrap());
        assert_eq!(server.peer, id(ORDERS));
        assert_eq!(server.alpn, Some(alpn));
        let (_, connection) = server.stream.get_ref();
        assert_eq!(connection.server_name(), Some(SNI));
        assert_eq!(connection.alpn_protocol(), Some(negotiated));
        assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(super::verify::peer(client.get_ref().1), Some(id(REVIEWS)));
    }
}

#[tokio::test]
async fn a_server_with_another_identity_is_refused_by_the_client() {
    let authority = Authority::new();
    let inbound = InboundTls::new(authority.store(ORDERS));
    let outbound = OutboundTls::new(authority.store(ORDERS));
    for expected in [ExpectedPeer::from(id(REVIEWS)), ExpectedPeer::from_iter([])] {
        let (client, server) = shake(&inbound, async |tcp| {
            outbound
                .connect(tcp, server_name(SNI), &expected, AlpnKind::Http1)
                .await
        })
        .await;
        let error = client.unwrap_err().to_string();
        assert!(
            error.contains(ORDERS) && error.contains(&expected.to_string()),
            "{error}"
        );
        assert!(server.is_err());
    }
    let several = ExpectedPeer::from_iter([id(REVIEWS), id(ORDERS)]);
    let (client, _) = shake(&inbound, async |tcp| {
        outbound.connect(tcp, server_name(SNI), &several, AlpnKind::Tcp).await
    })
    .await;
    client.unwrap();
}

#[tokio::test]
async fn strangers_are_refused_by_both_sides() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let expected = ExpectedPeer::from(id(REVIEWS));

    let inbound = InboundTls::new(theirs.store(REVIEWS));
    let outbound = OutboundTls::new(ours.store(ORDERS));
    let connect = async |tcp| outbound.connect(tcp, server_name(SNI), &expected, AlpnKind::Tcp).await;
    let (client, _) = shake(&inbound, connect).await;
    assert!(client.unwrap_err().to_string().contains("UnknownIssuer"));

    // A client that trusts our server, with a certificate of another authority, or none.
    let inbound = InboundTls::new(ours.store(REVIEWS));
    for certificate in [Some(theirs.credentials(&[ORDERS])), None] {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ours.root.clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(super::verify::ExpectedServer {
                roots: Arc::new(roots),
                trust: ours.credentials(&[ORDERS]).trust().clone(),
                expected: expected.clone(),
                algorithms: provider().signature_verification_algorithms,
            }));
        let anonymous = certificate.is_none();
        let config = match certificate {
            Some(credentials) => builder.with_client_cert_resolver(credentials.resolver().clone()),
            None => builder.with_no_client_auth(),
        };
        let connect = async |tcp| {
            TlsConnector::from(Arc::new(config))
                .connect(server_name(SNI), tcp)
                .await
        };
        let (client, server) = shake(&inbound, connect).await;
        assert!(client.is_err(), "anonymous: {anonymous}");
        let error = server.unwrap_err().to_string();
        assert!(
            error.contains(if anonymous { "no certificates" } else { "UnknownIssuer" }),
            "{error}"
        );
    }
}

#[tokio::test]
async fn other_trust_domains_are_refused_unless_they_are_aliases() {
    let authority = Authority::new();
    let old = "spiffe://old.domain/ns/default/sa/order-service";
    let store = authority.store(REVIEWS);
    let inbound = InboundTls::new(store.clone());
    let outbound = OutboundTls::new(authority.store(old));
    let expected = ExpectedPeer::from(id(REVIEWS));
    let connect = async |tcp| outbound.connect(tcp, server_name(SNI), &expected, AlpnKind::Tcp).await;
    let (_, server) = shake(&inbound, connect).await;
    assert!(server.unwrap_err().to_string().contains("not in a trust domain"));

    let aliases = vec!["old.domain".parse().unwrap()];
    store.set_trust_domains(TrustDomains::new(TrustDomain::cluster_local(), aliases));
    let connect = async |tcp| outbound.connect(tcp, server_name(SNI), &expected, AlpnKind::Tcp).await;
    let (_, server) = shake(&inbound, connect).await;
    assert_eq!(server.unwrap().peer, id(old));

    // And as a client: whoever is expected may still have a certificate of the old domain.
    let inbound = InboundTls::new(authority.store(REVIEWS));
    let outbound = OutboundTls::new(store);
    let expected = ExpectedPeer::from(id("spiffe://old.domain/ns/default/sa/reviews"));
    let connect = async |tcp| outbound.connect(tcp, server_name(SNI), &expected, AlpnKind::Tcp).await;
    let (client, _) = shake(&inbound, connect).await;
    client.unwrap();
}

#[test]
fn credentials_that_do_not_work_are_refused() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let der = |key: &KeyPair| PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let leaf = ours.leaf(&[ORDERS], &key);
    let roots = vec![ours.root.clone()];
    assert!(Credentials::new(vec![leaf.clone()], der(&key), roots.clone()).is_ok());
    assert!(
        Credentials::new(vec![leaf.clone()], der(&other), roots.clone()).is_err(),
        "another key"
    );
    assert!(
        Credentials::new(vec![leaf], der(&key), vec![theirs.root.clone()]).is_err(),
        "another root"
    );
    assert!(
        Credentials::new(Vec::new(), der(&key), roots.clone()).is_err(),
        "no certificate"
    );
    for names in [&[][..], &[ORDERS, REVIEWS], &["https://example.com"]] {
        assert!(
            Credentials::new(vec![ours.leaf(names, &key)], der(&key), roots.clone()).is_err(),
            "{names:?}"
        );
    }
}

#[tokio::test]
async fn new_credentials_count_from_the_next_connection_on() {
    let authority = Authority::new();
    let store = CertStore::new(TrustDomains::new(TrustDomain::cluster_local(), Vec::new()));
    let (inbound, outbound) = (InboundTls::new(store.clone()), OutboundTls::new(store.clone()));
    let expected = ExpectedPeer::from(id(REVIEWS));
    assert!(matches!(inbound.config(), Err(TlsUnavailable::NoCredentials)));
    assert!(matches!(
        outbound.config(&expected, AlpnKind::Tcp),
        Err(TlsUnavailable::NoCredentials)
    ));

    let mut changes = store.subscribe();
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.ready().await }
    });
    store.publish(authority.credentials(&[REVIEWS]));
    assert_eq!(waiting.await.unwrap().generation(), 1);
    changes.changed().await.unwrap();

    let (server, client) = (
        inbound.config().unwrap(),
        outbound.config(&expected, AlpnKind::Tcp).unwrap(),
    );
    assert!(Arc::ptr_eq(&server, &inbound.config().unwrap()), "kept");
    assert!(
        Arc::ptr_eq(&client, &outbound.config(&expected, AlpnKind::Tcp).unwrap()),
        "kept"
    );
    assert!(
        !Arc::ptr_eq(&client, &outbound.config(&expected, AlpnKind::Http1).unwrap()),
        "per protocol"
    );

    store.publish(authority.credentials(&[REVIEWS]));
    assert!(!Arc::ptr_eq(&server, &inbound.config().unwrap()), "made anew");
    assert!(
        !Arc::ptr_eq(&client, &outbound.config(&expected, AlpnKind::Tcp).unwrap()),
        "made anew"
    );
}

#[tokio::test]
async fn sessions_resume_with_the_same_peer_and_end_with_the_credentials() {
    let authority = Authority::new();
    let (server_store, client_store) = (authority.store(REVIEWS), authority.store(ORDERS));
    let (inbound, outbound) = (InboundTls::new(server_store.clone()), OutboundTls::new(client_store));
    let expected = ExpectedPeer::from(id(REVIEWS));
    let mut kinds = Vec::new();
    for round in 0..3 {
        if round == 2 {
            server_store.publish(authority.credentials(&[REVIEWS]));
        }
        let connect = async |tcp| outbound.connect(tcp, server_name(SNI), &expected, AlpnKind::Tcp).await;
        let (client, server) = shake(&inbound, connect).await;
        client.unwrap();
        let server = server.unwrap();
        assert_eq!(server.peer, id(ORDERS), "known in a resumed session too");
        kinds.push(server.stream.get_ref().1.handshake_kind().unwrap());
    }
    assert_eq!(
        kinds,
        [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Full]
    );
}

#[tokio::test]
async fn tls_1_2_is_taken_from_peers() {
    let authority = Authority::new();
    let inbound = InboundTls::new(authority.store(REVIEWS));
    let credentials = authority.credentials(&[ORDERS]);
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(super::verify::ExpectedServer {
            roots: credentials.root_store().clone(),
            trust: credentials.trust().clone(),
            expected: id(REVIEWS).into(),
            algorithms: provider().signature_verification_algorithms,
        }))
        .with_client_cert_resolver(credentials.resolver().clone());
    config.alpn_protocols = vec![b"istio-peer-exchange".to_vec(), b"istio".to_vec()];
    let connect = async |tcp| {
        TlsConnector::from(Arc::new(config))
            .connect(server_name(SNI), tcp)
            .await
    };
    let (client, server) = shake(&inbound, connect).await;
    client.unwrap();
    let server = server.unwrap();
    assert_eq!(server.peer, id(ORDERS));
    assert_eq!(server.alpn, Some(AlpnKind::Tcp), "never istio-peer-exchange");
}

#[tokio::test]
async fn openssl_sees_the_identity_and_must_show_one() {
    if Command::new("openssl")
        .arg("version")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        eprintln!("SKIPPED: there is no openssl on this machine");
        return;
    }
    let authority = Authority::new();
    let inbound = Arc::new(InboundTls::new(authority.store(REVIEWS)));
    let directory = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = authority.leaf(&[ORDERS], &key);
    let file = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(file("key.pem"), key.serialize_pem()).unwrap();
    std::fs::write(file("leaf.der"), &leaf).unwrap();
    std::fs::write(file("root.der"), &authority.root).unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, mut peers) = tokio::sync::mpsc::channel(2);
    tokio::spawn(async move {
        loop {
            let accepted = inbound.accept(listener.accept().await.unwrap().0).await;
            let _ = sender.send(accepted.map(|accepted| accepted.peer)).await;
        }
    });
    let openssl = async |certificate: &[&str]| {
        let mut arguments = vec!["s_client", "-connect", &address, "-alpn", "istio", "-CAfile"];
        let root = file("root.pem");
        arguments.extend([&*root, "-verify_return_error", "-servername", SNI]);
        arguments.extend(certificate);
        tokio::process::Command::new("openssl")
            .args(&arguments)
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap()
    };
    for name in ["leaf", "root"] {
        let (der, pem) = (file(&format!("{name}.der")), file(&format!("{name}.pem")));
        let status = Command::new("openssl")
            .args(["x509", "-inform", "DER", "-in", &der, "-out", &pem])
            .status();
        assert!(status.unwrap().success());
    }

    let output = openssl(&["-cert", &file("leaf.pem"), "-key", &file("key.pem")]).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("Verify return code: 0 (ok)"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        text.contains("TLSv1.3") && text.contains("ALPN protocol: istio"),
        "{text}"
    );
    let begin = text.find("-----BEGIN CERTIFICATE-----").unwrap();
    let end = text.find("-----END CERTIFICATE-----").unwrap() + "-----END CERTIFICATE-----\n".len();
    std::fs::write(file("server.pem"), &text[begin..end]).unwrap();
    let shown = Command::new("openssl")
        .args(["x509", "-noout", "-text", "-in", &file("server.pem")])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains(&format!("URI:{REVIEWS}")));
    let peer = tokio::time::timeout(Duration::from_secs(10), peers.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(peer.unwrap(), id(ORDERS));

    openssl(&[]).await;
    let refused = tokio::time::timeout(Duration::from_secs(10), peers.recv())
        .await
        .unwrap()
        .unwrap();
    assert!(refused.unwrap_err().to_string().contains("no certificates"));
}

#[test]
fn credentials_know_their_time() {
    let credentials = Authority::new().credentials(&[ORDERS]);
    assert!(credentials.is_live());
    assert!(credentials.not_before() < SystemTime::now());
    assert!(!credentials.serial().is_empty());
    assert_eq!(credentials.chain().len(), 1);
}
