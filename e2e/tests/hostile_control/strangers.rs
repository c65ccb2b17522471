//! Certificates that prove nothing here: the connection ends in its handshake, is counted, and reads nothing.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use e2e::client::connect;
use e2e::plain::eventually;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::{World, world};

const MESH_NAME: &str = "spiffe://cluster.local/ns/default/sa/other";

/// A certificate with its key.
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// A certificate with a name, signed by an authority.
fn signed(issuer: &Issuer<'_, KeyPair>, change: impl FnOnce(&mut CertificateParams)) -> Identity {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(MESH_NAME.try_into().unwrap())];
    change(&mut params);
    let certificate = params.signed_by(&key, issuer).unwrap();
    Identity {
        chain: vec![certificate.der().clone()],
        key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
    }
}

/// An authority that says to be the mesh's, with the same name and another key.
fn impostor() -> Issuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Issuer::new(params, KeyPair::generate().unwrap())
}

/// The mesh's own authority, from the files that only the control plane should read.
fn authority(world: &World) -> Issuer<'static, KeyPair> {
    let read = |file: &str| std::fs::read_to_string(world.mesh.ca_dir().join(file)).unwrap();
    let key = KeyPair::from_pem(&read("root-key.pem")).unwrap();
    Issuer::from_ca_cert_pem(&read("root-cert.pem"), key).unwrap()
}

fn roots(world: &World) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let file = world.mesh.ca_dir().join("root-cert.pem");
    for root in CertificateDer::pem_file_iter(file).unwrap() {
        roots.add(root.unwrap()).unwrap();
    }
    roots
}

/// How a workload of the mesh connects to the control plane.
pub(super) fn of_the_mesh(world: &World) -> Arc<ClientConfig> {
    config(world, Some(signed(&authority(world), |_| {})))
}

fn config(world: &World, identity: Option<Identity>) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(world));
    let mut config = match identity {
        Some(identity) => config.with_client_auth_cert(identity.chain, identity.key).unwrap(),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// Speaks to the control plane with a certificate, if any: what it answers to the preface of HTTP/2.
fn answer(world: &World, identity: Option<Identity>) -> std::io::Result<Vec<u8>> {
    let address = world.mesh.control_address();
    let connection = ClientConnection::new(config(world, identity), address.ip().into()).unwrap();
    let mut stream = StreamOwned::new(connection, connect(address).unwrap());
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
    let mut answer = vec![0; 1024];
    let length = stream.read(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

#[test]
fn certificates_that_are_not_the_meshs_do_not_get_in() -> anyhow::Result<()> {
    let world = world()?;
    let traffic = world.traffic();
    let own = authority(&world);
    let day = Duration::from_secs(24 * 3600);
    let self_signed = || {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(MESH_NAME.try_into().unwrap())];
        let certificate = params.self_signed(&key).unwrap();
        Identity {
            chain: vec![certificate.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        }
    };
    let now = SystemTime::now();
    let strangers = [
        ("of another authority", signed(&impostor(), |_| {})),
        ("signed by nobody", self_signed()),
        (
            "expired",
            signed(&own, |params| {
                params.not_before = (now - 2 * day).into();
                params.not_after = (now - day).into();
            }),
        ),
        (
            "not valid yet",
            signed(&own, |params| {
                params.not_before = (now + day).into();
                params.not_after = (now + 2 * day).into();
            }),
        ),
    ];
    for (what, identity) in strangers {
        let before = world.counted("mesh_control_tls_handshake_failures_total");
        let answer = answer(&world, Some(identity));
        assert!(answer.is_err(), "{what}: {answer:?}");
        eventually(&format!("a certificate {what} is counted"), || {
            (world.counted("mesh_control_tls_handshake_failures_total") == before + 1.0).then_some(())
        })?;
    }

    // The same client with a certificate of the mesh is answered, as is one with none, which may yet show a token.
    let welcome = answer(&world, Some(signed(&own, |_| {})))?;
    assert!(!welcome.is_empty());
    assert!(!answer(&world, None)?.is_empty());
    world.goes_on(traffic);
    Ok(())
}
