//! Certificates for the rivals' mutual TLS, made at start and thrown away with their directory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};

/// The identity of the client's side.
pub const CLIENT_ID: &str = "spiffe://cluster.local/ns/default/sa/client";
/// The identity of the backend's side.
pub const BACKEND_ID: &str = "spiffe://cluster.local/ns/default/sa/backend";

/// One identity's files, PEM.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key, PKCS #8.
    pub key: PathBuf,
}

/// A root and one leaf for each side.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// The root, PEM.
    pub root: PathBuf,
    /// For [`CLIENT_ID`].
    pub client: Leaf,
    /// For [`BACKEND_ID`].
    pub backend: Leaf,
}

impl Certificates {
    /// Makes all of them (ECDSA P-256, as the mesh's own) in `dir`.
    ///
    /// # Errors
    /// When `dir` cannot be written.
    pub fn create(dir: &Path) -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name = named("benchmark root");
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let root_path = write(dir, "root.pem", &root.pem())?;
        Ok(Self {
            root: root_path,
            client: leaf(dir, "client", CLIENT_ID, &root)?,
            backend: leaf(dir, "backend", BACKEND_ID, &root)?,
        })
    }
}

fn leaf(dir: &Path, name: &str, id: &str, root: &CertifiedIssuer<'_, KeyPair>) -> anyhow::Result<Leaf> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, root)?;
    Ok(Leaf {
        certificate: write(dir, &format!("{name}.pem"), &certificate.pem())?,
        key: write(dir, &format!("{name}.key"), &key.serialize_pem())?,
    })
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn write(dir: &Path, name: &str, pem: &str) -> anyhow::Result<PathBuf> {
    let path = dir.join(name);
    fs::write(&path, pem).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
