use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::{Duration, SystemTime};

use mesh_api::bootstrap::BootstrapToken;
use mesh_api::identity::{SpiffeId, TrustDomain};
use mesh_api::wire::ca::IstioCertificateRequest;
use mesh_api::wire::ca::istio_certificate_service_server::IstioCertificateService as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ED25519, SanType,
};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

use super::authenticate::{Authenticator, PeerCertificate, PeerInfo, Proof};
use super::authority::{Authority, Lifetimes, SignError};
use super::material::MaterialError;
use super::service::{CertificateService, pem};
use super::token::{TokenError, TokenStore, create_token};

const ORDERS: &str = "spiffe://cluster.local/ns/default/sa/order-service";
const PAYMENTS: &str = "spiffe://cluster.local/ns/default/sa/payment-service";

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn open(directory: &Path) -> Result<Arc<Authority>, MaterialError> {
    Authority::open(directory, &TrustDomain::cluster_local(), Lifetimes::default())
}

fn csr(names: &[&str]) -> String {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names
        .iter()
        .map(|name| SanType::URI((*name).try_into().unwrap()))
        .collect();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    params.serialize_request(&key).unwrap().pem().unwrap()
}

fn remaining(until: SystemTime) -> Duration {
    until.duration_since(SystemTime::now()).unwrap()
}

#[test]
fn starts_at_once_end_with_one_root() {
    let directory = tempfile::tempdir().unwrap();
    let barrier = Barrier::new(8);
    let fingerprints: Vec<_> = std::thread::scope(|scope| {
        let start = || {
            barrier.wait();
            open(directory.path()).unwrap().fingerprint()
        };
        let starts: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    assert!(
        fingerprints.iter().all(|one| *one == fingerprints[0]),
        "{fingerprints:?}"
    );
    assert_eq!(
        open(directory.path()).unwrap().fingerprint(),
        fingerprints[0],
        "the next start keeps it"
    );

    let mode = std::fs::metadata(directory.path().join("root-key.pem"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut files: Vec<_> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    files.sort();
    assert_eq!(files, ["root-cert.pem", "root-key.pem"], "no left-overs");
}

#[test]
fn a_root_lives_ten_years() {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(directory.path()).unwrap();
    let roots = authority.roots();
    let (_, root) = x509_parser::parse_x509_certificate(&roots[0]).unwrap();
    let days = (root.validity().not_after.timestamp() - root.validity().not_before.timestamp()) / 86_400;
    assert_eq!(days, 3650);
    assert!(root.is_ca());
}

#[test]
fn a_root_without_its_key_is_reported_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path()).unwrap();
    std::fs::remove_file(directory.path().join("root-key.pem")).unwrap();
    assert!(matches!(open(directory.path()), Err(MaterialError::HalfLost { .. })));
}

#[test]
fn leaf_carries_the_callers_identity_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(directory.path()).unwrap();
    for request in [csr(&[]), csr(&[ORDERS])] {
        let issued = authority.sign(&id(ORDERS), &request, None).unwrap();
        assert_eq!(issued.chain.len(), 1, "a root signs without intermediates");
        let (_, leaf) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
        assert_eq!(leaf.subject().iter().count(), 0);
        assert!(!leaf.is_ca());
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        assert!(names.critical);
        assert_eq!(names.value.general_names, [GeneralName::URI(ORDERS)]);
        let usage = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && usage.server_auth && !usage.any);
        let now = jiff::Timestamp::now().as_second();
        let (from, until) = (
            leaf.validity().not_before.timestamp(),
            leaf.validity().not_after.timestamp(),
        );
        assert!((now - 125..=now - 115).contains(&from), "backdated two minutes");
        assert!((now + 86_395..=now + 86_405).contains(&until), "a day");
    }
}

#[test]
fn requested_validity_counts_up_to_the_maximum() {
    let directory = tempfile::tempdir().unwrap();
    let lifetimes = Lifetimes {
        default: Duration::from_secs(3600),
        max: Duration::from_secs(7200),
    };
    let authority = Authority::open(directory.path(), &TrustDomain::cluster_local(), lifetimes).unwrap();
    for (asked, got) in [(None, 3600), (Some(60), 60), (Some(7200), 7200), (Some(100_000), 7200)] {
        let issued = authority
            .sign(&id(ORDERS), &csr(&[]), asked.map(Duration::from_secs))
            .unwrap();
        let left = remaining(issued.not_after).as_secs();
        assert!((got - 5..=got).contains(&left), "{asked:?}: {left}");
    }
}

#[test]
fn refused_requests() {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(directory.path()).unwrap();
    let sign = |csr: &str| authority.sign(&id(ORDERS), csr, None).unwrap_err();

    assert!(matches!(sign(&csr(&[PAYMENTS])), SignError::OtherName { asked, .. } if asked.contains(PAYMENTS)));
    assert!(matches!(sign(&csr(&[ORDERS, PAYMENTS])), SignError::OtherName { .. }));

    let mut with_host = CertificateParams::default();
    with_host.subject_alt_names = vec![SanType::DnsName("payments.default".try_into().unwrap())];
    let with_host = with_host
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap()
        .pem()
        .unwrap();
    assert!(matches!(sign(&with_host), SignError::OtherName { .. }));

    assert!(matches!(sign("nothing"), SignError::Request(_)));
    assert!(matches!(sign(&"A".repeat(100_000)), SignError::Request(_)));

    let ed25519 = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let ed25519 = CertificateParams::default()
        .serialize_request(&ed25519)
        .unwrap()
        .pem()
        .unwrap();
    assert!(matches!(sign(&ed25519), SignError::Key(_)));

    // A request signed by a key other than the one in it.
    let good = CertificateParams::default()
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap();
    let mut forged = good.der().to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let body = pem(&forged.into()).replace("CERTIFICATE-----", "CERTIFICATE REQUEST-----");
    assert!(matches!(sign(&body), SignError::Request(_)));

    let other = authority.sign(
        &id("spiffe://other.domain/ns/default/sa/order-service"),
        &csr(&[]),
        None,
    );
    assert!(matches!(other.unwrap_err(), SignError::OtherTrustDomain { .. }));
}

/// An intermediate below its own root, in the files that Istio's `cacerts` has.
fn plug_in(directory: &Path) {
    let authority_params = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    };
    let (root_params, root_key) = (authority_params("root"), KeyPair::generate().unwrap());
    let root = root_params.self_signed(&root_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = authority_params("intermediate")
        .signed_by(&key, &Issuer::from_params(&root_params, &root_key))
        .unwrap();
    let write = |name: &str, content: String| std::fs::write(directory.join(name), content).unwrap();
    write("root-cert.pem", root.pem());
    write("ca-cert.pem", certificate.pem());
    write("ca-key.pem", key.serialize_pem());
    write("cert-chain.pem", certificate.pem() + &root.pem());
}

#[test]
fn plugged_in_intermediate_signs_and_is_sent_along() {
    let directory = tempfile::tempdir().unwrap();
    plug_in(directory.path());
    let authority = open(directory.path()).unwrap();
    let issued = authority.sign(&id(ORDERS), &csr(&[]), None).unwrap();
    assert_eq!(issued.chain.len(), 2, "leaf and intermediate, not the root");
    assert_eq!(authority.roots().len(), 1);
    assert!(!directory.path().join("root-key.pem").exists());

    let (_, leaf) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
    let (_, intermediate) = x509_parser::parse_x509_certificate(&issued.chain[1]).unwrap();
    assert_eq!(leaf.issuer(), intermediate.subject());
}

#[test]
fn plugged_in_files_that_do_not_fit_are_named() {
    for missing in ["ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"] {
        let directory = tempfile::tempdir().unwrap();
        plug_in(directory.path());
        std::fs::remove_file(directory.path().join(missing)).unwrap();
        let error = open(directory.path()).err().unwrap().to_string();
        assert!(error.contains(missing), "{error}");
    }
    let directory = tempfile::tempdir().unwrap();
    plug_in(directory.path());
    let stranger = KeyPair::generate().unwrap().serialize_pem();
    std::fs::write(directory.path().join("ca-key.pem"), stranger).unwrap();
    assert!(matches!(open(directory.path()), Err(MaterialError::Mismatch { .. })));
}

struct World {
    directory: tempfile::TempDir,
    authority: Arc<Authority>,
    tokens: TokenStore,
    authenticator: Authenticator,
}

fn world() -> World {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(directory.path()).unwrap();
    let tokens = TokenStore::new(directory.path());
    let authenticator = Authenticator::new(TrustDomain::cluster_local(), tokens.clone());
    World {
        directory,
        authority,
        tokens,
        authenticator,
    }
}

fn bearer(token: &str) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
    metadata
}

#[tokio::test]
async fn a_token_gives_its_identity_until_it_ends() {
    let World {
        directory,
        authority,
        tokens,
        authenticator,
    } = world();
    let hour = Duration::from_secs(3600);
    // By another process, as the command line does.
    let token = create_token(directory.path(), &authority, &id(ORDERS), hour).unwrap();
    assert_eq!(token.root(), authority.fingerprint());
    let caller = authenticator
        .authenticate(&bearer(&token.to_string()), None)
        .await
        .unwrap();
    assert_eq!(caller.identity, id(ORDERS));
    assert!(matches!(caller.how, Proof::BootstrapToken { expires } if remaining(expires) <= hour));

    for entry in std::fs::read_dir(directory.path().join("tokens")).unwrap() {
        let path = entry.unwrap().path();
        let content = std::fs::read_to_string(&path).unwrap() + path.to_str().unwrap();
        assert!(!content.contains(token.secret()), "the secret is not on disk");
    }

    let past = SystemTime::now() - Duration::from_secs(1);
    let expired = tokens
        .create_unchecked(authority.fingerprint(), &id(ORDERS), past)
        .unwrap();
    let status = authenticator
        .authenticate(&bearer(&expired.to_string()), None)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("expired"), "{status}");

    let unknown = BootstrapToken::new(&"A".repeat(43), authority.fingerprint()).unwrap();
    for (metadata, says) in [
        (bearer(&unknown.to_string()), "unknown"),
        (bearer("something-else"), "not a bootstrap token"),
        (MetadataMap::new(), "no proof of identity"),
    ] {
        let status = authenticator.authenticate(&metadata, None).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains(says), "{status}");
    }
}

#[test]
fn refused_tokens() {
    let World { authority, tokens, .. } = world();
    let other = id("spiffe://other.domain/ns/default/sa/order-service");
    let create = |identity: &SpiffeId, lifetime| tokens.create(&authority, identity, Duration::from_secs(lifetime));
    assert!(matches!(create(&other, 60), Err(TokenError::OtherTrustDomain { .. })));
    assert!(matches!(create(&id(ORDERS), 0), Err(TokenError::Lifetime(_))));
    assert!(matches!(
        create(&id(ORDERS), 400 * 86_400),
        Err(TokenError::Lifetime(_))
    ));
}

#[test]
fn tokens_that_ended_long_ago_are_removed() {
    let World {
        directory,
        authority,
        tokens,
        ..
    } = world();
    let long_ago = SystemTime::now() - Duration::from_secs(2 * 86_400);
    tokens
        .create_unchecked(authority.fingerprint(), &id(ORDERS), long_ago)
        .unwrap();
    tokens.create(&authority, &id(ORDERS), Duration::from_secs(60)).unwrap();
    assert_eq!(std::fs::read_dir(directory.path().join("tokens")).unwrap().count(), 1);
}

#[tokio::test]
async fn a_live_certificate_comes_before_a_token() {
    let World {
        authority,
        tokens,
        authenticator,
        ..
    } = world();
    let token = tokens
        .create(&authority, &id(PAYMENTS), Duration::from_secs(60))
        .unwrap()
        .to_string();
    let certificate = |identity: &str, not_after| PeerCertificate {
        identity: id(identity),
        not_after,
    };
    let (past, future) = (
        SystemTime::now() - Duration::from_secs(1),
        SystemTime::now() + Duration::from_secs(60),
    );

    let by =
        async |metadata: &MetadataMap, peer: PeerCertificate| authenticator.authenticate(metadata, Some(&peer)).await;
    assert_eq!(
        by(&bearer(&token), certificate(ORDERS, future)).await.unwrap().identity,
        id(ORDERS)
    );
    assert_eq!(
        by(&bearer(&token), certificate(ORDERS, past)).await.unwrap().identity,
        id(PAYMENTS)
    );
    let status = by(&MetadataMap::new(), certificate(ORDERS, past)).await.unwrap_err();
    assert!(status.message().contains("has expired"), "{status}");
    let foreign = certificate("spiffe://other.domain/ns/default/sa/order-service", future);
    assert_eq!(
        by(&MetadataMap::new(), foreign).await.unwrap_err().code(),
        Code::Unauthenticated
    );
}

#[tokio::test]
async fn the_service_signs_for_the_caller_only() {
    let World {
        authority,
        authenticator,
        ..
    } = world();
    let issued = authority.sign(&id(ORDERS), &csr(&[]), None).unwrap();
    let peer = PeerInfo {
        address: "127.0.0.1:1".parse().unwrap(),
        certificate: PeerCertificate::from_verified(&issued.chain[0]),
    };
    let service = CertificateService::new(authority.clone(), authenticator);
    let call = async |csr: String, validity_duration, peer: Option<PeerInfo>| {
        let mut request = Request::new(IstioCertificateRequest {
            csr,
            validity_duration,
            metadata: None,
        });
        request
            .extensions_mut()
            .extend(peer.into_iter().fold(tonic::Extensions::new(), |mut all, one| {
                all.insert(one);
                all
            }));
        service
            .create_certificate(request)
            .await
            .map(tonic::Response::into_inner)
    };

    let chain = call(csr(&[ORDERS]), 600, Some(peer.clone())).await.unwrap().cert_chain;
    assert_eq!(chain.len(), 2, "leaf, root");
    assert_eq!(chain[1], pem(&authority.roots()[0]));
    let (_, leaf) = x509_parser::pem::parse_x509_pem(chain[0].as_bytes()).unwrap();
    let leaf = leaf.parse_x509().unwrap();
    assert!(leaf.extensions().iter().any(|extension| matches!(
        extension.parsed_extension(),
        ParsedExtension::SubjectAlternativeName(names) if names.general_names == [GeneralName::URI(ORDERS)]
    )));

    let code = |outcome: Result<_, tonic::Status>| outcome.map(|_| ()).unwrap_err().code();
    assert_eq!(
        code(call(csr(&[PAYMENTS]), 0, Some(peer.clone())).await),
        Code::PermissionDenied
    );
    assert_eq!(
        code(call("junk".to_owned(), 0, Some(peer.clone())).await),
        Code::InvalidArgument
    );
    assert_eq!(code(call(csr(&[]), -1, Some(peer)).await), Code::InvalidArgument);
    assert_eq!(code(call(csr(&[]), 0, None).await), Code::Unauthenticated);
}

#[test]
fn a_certificate_with_several_names_or_none_is_nobody() {
    let key = KeyPair::generate().unwrap();
    for names in [vec![], vec![ORDERS, PAYMENTS], vec!["spiffe://cluster.local/something"]] {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names
            .iter()
            .map(|name| SanType::URI((*name).try_into().unwrap()))
            .collect();
        let certificate = params.self_signed(&key).unwrap();
        assert!(PeerCertificate::from_verified(certificate.der()).is_none(), "{names:?}");
        assert!(x509_parser::certificate::X509Certificate::from_der(certificate.der()).is_ok());
    }
}
