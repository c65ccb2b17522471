use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};

use super::*;
use crate::kube::fake::FakeApi;

const OWN: &str = "/api/v1/namespaces/mesh-system/secrets/mesh-ca";
const PLUGGED_IN: &str = "/api/v1/namespaces/mesh-system/secrets/cacerts";

fn secrets(api: &FakeApi) -> CaSecrets {
    CaSecrets::new(
        api.client(),
        "mesh-system",
        TrustDomain::cluster_local(),
        Lifetimes::default(),
    )
}

fn object(content: impl IntoIterator<Item = (String, Vec<u8>)>) -> Value {
    let data: serde_json::Map<_, _> = content
        .into_iter()
        .map(|(name, bytes)| (name, json!(STANDARD.encode(bytes))))
        .collect();
    json!({ "apiVersion": "v1", "kind": "Secret", "metadata": {}, "data": data })
}

/// A new root's Secret.
fn new_root() -> Value {
    object(Files::new_root("a test", "cluster.local").unwrap().content)
}

/// A new intermediate below a new root, as in Istio's Secret.
fn intermediate() -> Value {
    let params = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    };
    let (root_params, root_key, key) = (
        params("root"),
        KeyPair::generate().unwrap(),
        KeyPair::generate().unwrap(),
    );
    let root = root_params.self_signed(&root_key).unwrap();
    let issuer = Issuer::from_params(&root_params, &root_key);
    let certificate = params("intermediate").signed_by(&key, &issuer).unwrap();
    let file = |name: &str, content: String| (name.to_owned(), content.into_bytes());
    object([
        file("root-cert.pem", root.pem()),
        file("ca-cert.pem", certificate.pem()),
        file("ca-key.pem", key.serialize_pem()),
        file("cert-chain.pem", certificate.pem() + &root.pem()),
    ])
}

#[tokio::test]
async fn replicas_that_start_at_once_end_with_one_root() {
    let api = FakeApi::new();
    let starts = (0..8).map(|_| {
        let secrets = secrets(&api);
        tokio::spawn(async move { secrets.open().await.unwrap().authority.fingerprint() })
    });
    let mut fingerprints = Vec::new();
    for start in starts.collect::<Vec<_>>() {
        fingerprints.push(start.await.unwrap());
    }
    assert!(fingerprints.iter().all(|one| *one == fingerprints[0]));
    assert_eq!(api.take_writes(), ["POST /api/v1/namespaces/mesh-system/secrets"]);
    let labels = &api.get(OWN).unwrap()["metadata"]["labels"];
    assert_eq!(labels["app.kubernetes.io/part-of"], "mesh");

    let again = secrets(&api).open().await.unwrap();
    assert_eq!(
        again.authority.fingerprint(),
        fingerprints[0],
        "the next start keeps it"
    );
}

#[tokio::test]
async fn a_plugged_in_authority_comes_first_and_is_never_written() {
    let api = FakeApi::new();
    api.put(OWN, new_root());
    api.put(PLUGGED_IN, intermediate());
    let opened = secrets(&api).open().await.unwrap();
    assert_eq!(opened.files.place, "Secret mesh-system/cacerts");
    assert_eq!(opened.authority.roots().len(), 1);
    assert!(api.take_writes().is_empty());
}

#[tokio::test]
async fn what_cannot_be_used_is_said() {
    let rows = [
        (
            object([]),
            "mesh-system/mesh-ca holds part of a self-signed root but not root-cert.pem",
        ),
        (
            object([
                ("root-cert.pem".to_owned(), b"x".to_vec()),
                ("root-key.pem".to_owned(), b"x".to_vec()),
            ]),
            "root-key.pem in Secret mesh-system/mesh-ca",
        ),
    ];
    for (secret, says) in rows {
        let api = FakeApi::new();
        api.put(OWN, secret);
        let error = secrets(&api).open().await.err().unwrap().to_string();
        assert!(error.contains(says), "{error}");
    }
    let api = FakeApi::new();
    api.forbid("GET /api/v1/namespaces/mesh-system/secrets");
    let error = secrets(&api).open().await.err().unwrap().to_string();
    assert!(
        error.contains("Secret mesh-system/cacerts") && error.contains("RBAC"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_is_waited_for() {
    let api = FakeApi::new();
    api.set_away(true);
    let (secrets, shutdown) = (secrets(&api), CancellationToken::new());
    let waiting = tokio::spawn({
        let shutdown = shutdown.clone();
        async move { secrets.wait(&shutdown).await.is_some() }
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!waiting.is_finished());
    api.set_away(false);
    assert!(waiting.await.unwrap());
}

#[tokio::test]
async fn changes_are_taken_up_if_they_work() {
    let api = FakeApi::new();
    let secrets = secrets(&api);
    let opened = secrets.open().await.unwrap();
    let authority = opened.authority.clone();
    let shutdown = CancellationToken::new();
    let mut changes = authority.changes();
    tokio::spawn(secrets.follow(opened, shutdown.clone()));
    let mut changed = async || {
        let changed = tokio::time::timeout(Duration::from_secs(60), changes.changed());
        changed.await.expect("no change was taken up").unwrap();
    };
    let first = authority.fingerprint();

    // A further root: still signs with its own.
    let mut two_roots = api.get(OWN).unwrap();
    let pem = |secret: &Value| {
        STANDARD
            .decode(secret["data"]["root-cert.pem"].as_str().unwrap())
            .unwrap()
    };
    let both = [pem(&new_root()), pem(&two_roots)].concat();
    two_roots["data"]["root-cert.pem"] = json!(STANDARD.encode(both));
    api.put(OWN, two_roots);
    changed().await;
    assert_eq!(authority.roots().len(), 2);
    assert_eq!(authority.fingerprint(), first);

    // Nonsense changes nothing, what follows it does.
    api.put(OWN, object([("root-cert.pem".to_owned(), b"x".to_vec())]));
    api.put(OWN, new_root());
    changed().await;
    assert_eq!(authority.roots().len(), 1);
    assert_ne!(authority.fingerprint(), first);

    // One plugged in later, and renewed.
    let own = authority.fingerprint();
    api.put(PLUGGED_IN, intermediate());
    changed().await;
    let plugged_in = authority.fingerprint();
    assert_ne!(plugged_in, own);
    api.put(PLUGGED_IN, intermediate());
    changed().await;
    assert_ne!(authority.fingerprint(), plugged_in);

    // Pulled again: its own is there still.
    api.delete(PLUGGED_IN);
    changed().await;
    assert_eq!(authority.fingerprint(), own);
    // Deleted: stays in force, and a Secret put back is taken up.
    api.delete(OWN);
    api.put(OWN, new_root());
    changed().await;
    assert_ne!(authority.fingerprint(), own);
}
