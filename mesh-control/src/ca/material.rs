//! The authority's keys and certificates on disk. Two forms of one directory:
//!
//! - self-signed: `root-cert.pem` and `root-key.pem`, made when absent. Two starts at once end with one root.
//! - plugged in, as Istio's `cacerts`: `ca-cert.pem`, `ca-key.pem`, `root-cert.pem` and `cert-chain.pem`; never written.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mesh_api::bootstrap::Fingerprint;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::authority::{Time, random_serial, set_validity};

const ROOT_CERT: &str = "root-cert.pem";
const ROOT_KEY: &str = "root-key.pem";
const CA_CERT: &str = "ca-cert.pem";
const CA_KEY: &str = "ca-key.pem";
const CERT_CHAIN: &str = "cert-chain.pem";

const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// What signs, and what proves the signature.
pub(super) struct Material {
    pub issuer: Issuer<'static, KeyPair>,
    /// Sent after the leaf: the issuer and what lies between it and a root; empty when a root signs.
    pub intermediates: Vec<CertificateDer<'static>>,
    /// Trusted roots, the issuer's own first.
    pub roots: Vec<CertificateDer<'static>>,
    /// When the issuer's certificate ends; no leaf outlives it.
    pub not_after: SystemTime,
}

/// Why the authority's directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// A file could not be read or written.
    #[error("certificate authority: {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file's content is not what its name says.
    #[error("certificate authority: {path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Some files of a plugged-in authority are there, others are not.
    #[error(
        "certificate authority: {directory} holds part of a plugged-in authority but not {missing}: add it, or remove \
         ca-cert.pem and ca-key.pem to have a self-signed root"
    )]
    Incomplete {
        /// The directory.
        directory: PathBuf,
        /// The file that is missing.
        missing: &'static str,
    },
    /// A root certificate without its key.
    #[error(
        "certificate authority: {directory} holds root-cert.pem without root-key.pem: restore the key, or remove \
         root-cert.pem to have a new root (every proxy then needs a new bootstrap token)"
    )]
    KeyLost {
        /// The directory.
        directory: PathBuf,
    },
    /// Certificates and key are each well formed but do not make a working authority.
    #[error("certificate authority: the files in {directory} do not belong together: {reason}")]
    Mismatch {
        /// The directory.
        directory: PathBuf,
        /// What the verification of a certificate signed with them said.
        reason: String,
    },
}

/// The SHA-256 of the certificate that bootstrap tokens name: the first in `root-cert.pem`.
#[must_use]
pub fn root_fingerprint(root: &CertificateDer<'_>) -> Fingerprint {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, root);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    Fingerprint(bytes)
}

impl Material {
    /// Reads the directory; makes it and a self-signed root when there is none.
    pub fn load_or_create(directory: &Path, organization: &str) -> Result<Self, MaterialError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|e| io_error(directory, e))?;
        if exists(directory, CA_CERT)? || exists(directory, CA_KEY)? {
            Self::plugged_in(directory)
        } else {
            Self::self_signed(directory, organization)
        }
    }

    fn plugged_in(directory: &Path) -> Result<Self, MaterialError> {
        for missing in [CA_CERT, CA_KEY, ROOT_CERT, CERT_CHAIN] {
            if !exists(directory, missing)? {
                return Err(MaterialError::Incomplete {
                    directory: directory.to_owned(),
                    missing,
                });
            }
        }
        let roots = read_certificates(&directory.join(ROOT_CERT))?;
        let certificate = read_certificates(&directory.join(CA_CERT))?.swap_remove(0);
        let key = read_key(&directory.join(CA_KEY))?;
        let mut intermediates = vec![certificate.clone()];
        for link in read_certificates(&directory.join(CERT_CHAIN))? {
            if !intermediates.contains(&link) {
                intermediates.push(link);
            }
        }
        intermediates.retain(|link| !roots.contains(link));
        Self::assemble(&directory.join(CA_CERT), certificate, key, intermediates, roots)
    }

    /// The order makes it safe to stop at any point and to run twice at once: a certificate never exists without its
    /// key, and whoever comes second takes what is there.
    fn self_signed(directory: &Path, organization: &str) -> Result<Self, MaterialError> {
        let (cert_path, key_path) = (directory.join(ROOT_CERT), directory.join(ROOT_KEY));
        let had_certificate = exists(directory, ROOT_CERT)?;
        if !exists(directory, ROOT_KEY)? {
            if had_certificate {
                return Err(MaterialError::KeyLost {
                    directory: directory.to_owned(),
                });
            }
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| content_error(&key_path, e))?;
            create_if_absent(&key_path, key.serialize_pem().as_bytes())?;
        }
        let key = read_key(&key_path)?;
        if !had_certificate {
            let params = root_params(organization).map_err(|e| content_error(&cert_path, e))?;
            let certificate = params.self_signed(&key).map_err(|e| content_error(&cert_path, e))?;
            create_if_absent(&cert_path, certificate.pem().as_bytes())?;
        }
        let mut roots = read_certificates(&cert_path)?;
        let spki = key.subject_public_key_info();
        let own = roots.iter().position(|root| {
            x509_parser::parse_x509_certificate(root).is_ok_and(|(_, root)| root.public_key().raw == spki)
        });
        let own = own.ok_or_else(|| content_error(&cert_path, "no certificate in it belongs to root-key.pem"))?;
        roots.swap(0, own);
        Self::assemble(&cert_path, roots[0].clone(), key, Vec::new(), roots)
    }

    fn assemble(
        path: &Path,
        certificate: CertificateDer<'static>,
        key: KeyPair,
        intermediates: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, MaterialError> {
        let not_after = Time::not_after(&certificate).map_err(|e| content_error(path, e))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|e| content_error(path, e))?;
        Ok(Self {
            issuer,
            intermediates,
            roots,
            not_after,
        })
    }
}

fn root_params(organization: &str) -> Result<CertificateParams, rcgen::Error> {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now, now + ROOT_LIFETIME);
    params.serial_number = Some(random_serial()?);
    Ok(params)
}

/// Writes `path` whole or not at all, readable by its owner only; leaves it alone when it is there already.
pub(super) fn create_if_absent(path: &Path, content: &[u8]) -> Result<(), MaterialError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.{:016x}.tmp", std::process::id(), fastrand::u64(..)));
    let temporary = PathBuf::from(temporary);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        match fs::hard_link(&temporary, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            outcome => outcome,
        }
    })();
    // The link keeps the content; a left-over would only waste space.
    let _ = fs::remove_file(&temporary);
    written.map_err(|e| io_error(path, e))
}

fn exists(directory: &Path, name: &str) -> Result<bool, MaterialError> {
    let path = directory.join(name);
    path.try_exists().map_err(|e| io_error(&path, e))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    let pem = fs::read(path).map_err(|e| io_error(path, e))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|e| content_error(path, e))?;
    if certificates.is_empty() {
        return Err(content_error(path, "no PEM certificate in it"));
    }
    Ok(certificates)
}

fn read_key(path: &Path) -> Result<KeyPair, MaterialError> {
    let pem = fs::read(path).map_err(|e| io_error(path, e))?;
    let der = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| content_error(path, e))?;
    KeyPair::try_from(&der).map_err(|e| content_error(path, e))
}

fn io_error(path: &Path, source: io::Error) -> MaterialError {
    MaterialError::Io {
        path: path.to_owned(),
        source,
    }
}

fn content_error(path: &Path, reason: impl ToString) -> MaterialError {
    MaterialError::Content {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}
