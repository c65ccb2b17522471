//! Certificates by the mesh's own authority for peers of other makes, as files.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_api::identity::{SpiffeId, TrustDomain};
use mesh_control::ca::{Authority, Lifetimes};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::CertificateDer;

/// Files of one identity, PEM.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The certificate, and what lies between it and a root.
    pub chain: PathBuf,
    /// Its private key, PKCS #8.
    pub key: PathBuf,
    /// The roots.
    pub roots: PathBuf,
}

/// A certificate for `default/<account>`, signed by the authority in `ca_dir`; the files are written to `dir`.
///
/// # Errors
/// When the authority does not open or refuses.
pub fn leaf(ca_dir: &Path, dir: &Path, account: &str) -> anyhow::Result<Leaf> {
    let domain = TrustDomain::cluster_local();
    let authority = Authority::open(ca_dir, &domain, Lifetimes::default())?;
    let identity = SpiffeId::new(&domain, "default", account)?;
    let key = KeyPair::generate()?;
    let request = CertificateParams::default().serialize_request(&key)?.pem()?;
    let issued = authority.sign(&identity, &request, Some(Duration::from_secs(3600)))?;
    let write = |name: &str, content: String| -> std::io::Result<PathBuf> {
        let path = dir.join(format!("{account}-{name}.pem"));
        fs::write(&path, content)?;
        Ok(path)
    };
    Ok(Leaf {
        chain: write("chain", pem(&issued.chain))?,
        key: write("key", key.serialize_pem())?,
        roots: write("roots", pem(&authority.roots()))?,
    })
}

fn pem(certificates: &[CertificateDer<'_>]) -> String {
    use base64::Engine as _;
    let mut text = String::new();
    for certificate in certificates {
        let encoded = base64::engine::general_purpose::STANDARD.encode(certificate);
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        for line in encoded.as_bytes().chunks(64) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}
