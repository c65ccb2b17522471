//! The authority's keys and certificates, as files of a directory or keys of a Secret. Two forms:
//!
//! - self-signed: `root-cert.pem` and `root-key.pem`, made when absent. Two starts at once end with one root. Further
//!   roots may stand in `root-cert.pem`: they are trusted, and sent to proxies, but do not sign.
//! - plugged in, as Istio's `cacerts`: `ca-cert.pem`, `ca-key.pem`, `root-cert.pem` and `cert-chain.pem`; never written.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_api::bootstrap::Fingerprint;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::authority::{Time, random_serial, set_validity};

/// The trusted roots.
pub(crate) const ROOT_CERT: &str = "root-cert.pem";
/// The key of a self-signed root.
pub(crate) const ROOT_KEY: &str = "root-key.pem";
/// Plugged in: the signing certificate.
pub(crate) const CA_CERT: &str = "ca-cert.pem";
/// Plugged in: its key.
pub(crate) const CA_KEY: &str = "ca-key.pem";
/// Plugged in: from the signing certificate to a root.
pub(crate) const CERT_CHAIN: &str = "cert-chain.pem";

const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// What signs, and what proves the signature.
pub(super) struct Material {
    pub issuer: Issuer<'static, KeyPair>,
    /// Sent after the leaf: the issuer and what lies between it and a root; empty when a root signs.
    pub intermediates: Vec<CertificateDer<'static>>,
    /// Trusted roots, the issuer's own first.
    pub roots: Arc<[CertificateDer<'static>]>,
    /// When the issuer's certificate ends; no leaf outlives it.
    pub not_after: SystemTime,
}

/// What an authority is made of, by the names above, and where it was read.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Files {
    /// For messages: a directory, or `Secret <namespace>/<name>`.
    pub place: String,
    pub content: BTreeMap<String, Vec<u8>>,
}

/// Why the authority's keys and certificates cannot be used.
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
    #[error("certificate authority: {file} in {place}: {reason}")]
    Content {
        /// The directory or the Secret.
        place: String,
        /// The file.
        file: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Some files of a plugged-in authority are there, others are not.
    #[error(
        "certificate authority: {place} holds part of a plugged-in authority but not {missing}: add it, or remove \
         ca-cert.pem and ca-key.pem to have a self-signed root"
    )]
    Incomplete {
        /// The directory or the Secret.
        place: String,
        /// The file that is missing.
        missing: &'static str,
    },
    /// A root certificate without its key, or a key without its certificate.
    #[error(
        "certificate authority: {place} holds part of a self-signed root but not {missing}: restore it, or remove the \
         other as well to have a new root (proxies outside Kubernetes then need new bootstrap tokens)"
    )]
    HalfLost {
        /// The directory or the Secret.
        place: String,
        /// The file that is missing.
        missing: &'static str,
    },
    /// Certificates and key are each well formed but do not make a working authority.
    #[error("certificate authority: the files in {place} do not belong together: {reason}")]
    Mismatch {
        /// The directory or the Secret.
        place: String,
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

impl Files {
    /// Reads the directory; makes it and a self-signed root when there is none.
    pub fn load_or_create(directory: &Path, organization: &str) -> Result<Self, MaterialError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|e| io_error(directory, e))?;
        if !exists(directory, CA_CERT)? && !exists(directory, CA_KEY)? {
            Self::ensure_root(directory, organization)?;
        }
        let mut files = Self {
            place: directory.display().to_string(),
            content: BTreeMap::new(),
        };
        for name in [ROOT_CERT, ROOT_KEY, CA_CERT, CA_KEY, CERT_CHAIN] {
            let path = directory.join(name);
            match fs::read(&path) {
                Ok(content) => files.content.insert(name.to_owned(), content),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(io_error(&path, error)),
            };
        }
        Ok(files)
    }

    /// The order makes it safe to stop at any point and to run twice at once: a certificate never exists without its
    /// key, and whoever comes second takes what is there.
    fn ensure_root(directory: &Path, organization: &str) -> Result<(), MaterialError> {
        let (cert_path, key_path) = (directory.join(ROOT_CERT), directory.join(ROOT_KEY));
        let place = directory.display().to_string();
        let had_certificate = exists(directory, ROOT_CERT)?;
        if !exists(directory, ROOT_KEY)? {
            if had_certificate {
                let missing = ROOT_KEY;
                return Err(MaterialError::HalfLost { place, missing });
            }
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| content(&place, ROOT_KEY, e))?;
            create_if_absent(&key_path, key.serialize_pem().as_bytes())?;
        }
        if !had_certificate {
            let pem = fs::read(&key_path).map_err(|e| io_error(&key_path, e))?;
            let key = parse_key(&pem).map_err(|e| content(&place, ROOT_KEY, e))?;
            let certificate = self_signed(&key, organization).map_err(|e| content(&place, ROOT_CERT, e))?;
            create_if_absent(&cert_path, certificate.as_bytes())?;
        }
        Ok(())
    }

    /// A new self-signed root, to be stored at `place`.
    pub fn new_root(place: &str, organization: &str) -> Result<Self, MaterialError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| content(place, ROOT_KEY, e))?;
        let certificate = self_signed(&key, organization).map_err(|e| content(place, ROOT_CERT, e))?;
        Ok(Self {
            place: place.to_owned(),
            content: BTreeMap::from([
                (ROOT_CERT.to_owned(), certificate.into_bytes()),
                (ROOT_KEY.to_owned(), key.serialize_pem().into_bytes()),
            ]),
        })
    }

    fn certificates(&self, name: &'static str) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
        let pem = self.content.get(name).map_or(&[][..], Vec::as_slice);
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let certificates = certificates.map_err(|e| content(&self.place, name, e))?;
        if certificates.is_empty() {
            return Err(content(&self.place, name, "no PEM certificate in it"));
        }
        Ok(certificates)
    }

    fn key(&self, name: &'static str) -> Result<KeyPair, MaterialError> {
        let pem = self.content.get(name).map_or(&[][..], Vec::as_slice);
        parse_key(pem).map_err(|e| content(&self.place, name, e))
    }
}

impl Material {
    /// Takes what `files` hold.
    pub fn new(files: &Files) -> Result<Self, MaterialError> {
        if files.content.contains_key(CA_CERT) || files.content.contains_key(CA_KEY) {
            Self::plugged_in(files)
        } else {
            Self::self_signed(files)
        }
    }

    fn plugged_in(files: &Files) -> Result<Self, MaterialError> {
        for missing in [CA_CERT, CA_KEY, ROOT_CERT, CERT_CHAIN] {
            if !files.content.contains_key(missing) {
                let place = files.place.clone();
                return Err(MaterialError::Incomplete { place, missing });
            }
        }
        let roots = files.certificates(ROOT_CERT)?;
        let certificate = files.certificates(CA_CERT)?.swap_remove(0);
        let key = files.key(CA_KEY)?;
        let mut intermediates = vec![certificate.clone()];
        for link in files.certificates(CERT_CHAIN)? {
            if !intermediates.contains(&link) {
                intermediates.push(link);
            }
        }
        intermediates.retain(|link| !roots.contains(link));
        Self::assemble(files, CA_CERT, certificate, key, intermediates, roots)
    }

    fn self_signed(files: &Files) -> Result<Self, MaterialError> {
        for missing in [ROOT_CERT, ROOT_KEY] {
            if !files.content.contains_key(missing) {
                let place = files.place.clone();
                return Err(MaterialError::HalfLost { place, missing });
            }
        }
        let key = files.key(ROOT_KEY)?;
        let mut roots = files.certificates(ROOT_CERT)?;
        let spki = key.subject_public_key_info();
        let own = roots.iter().position(|root| {
            x509_parser::parse_x509_certificate(root).is_ok_and(|(_, root)| root.public_key().raw == spki)
        });
        let own =
            own.ok_or_else(|| content(&files.place, ROOT_CERT, "no certificate in it belongs to root-key.pem"))?;
        roots.swap(0, own);
        Self::assemble(files, ROOT_CERT, roots[0].clone(), key, Vec::new(), roots)
    }

    fn assemble(
        files: &Files,
        file: &'static str,
        certificate: CertificateDer<'static>,
        key: KeyPair,
        intermediates: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, MaterialError> {
        let not_after = Time::not_after(&certificate).map_err(|e| content(&files.place, file, e))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|e| content(&files.place, file, e))?;
        Ok(Self {
            issuer,
            intermediates,
            roots: roots.into(),
            not_after,
        })
    }
}

/// The certificate of a new root, in PEM.
fn self_signed(key: &KeyPair, organization: &str) -> Result<String, rcgen::Error> {
    Ok(root_params(organization)?.self_signed(key)?.pem())
}

fn parse_key(pem: &[u8]) -> Result<KeyPair, String> {
    let der = PrivateKeyDer::from_pem_slice(pem).map_err(|e| e.to_string())?;
    KeyPair::try_from(&der).map_err(|e| e.to_string())
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

fn io_error(path: &Path, source: io::Error) -> MaterialError {
    MaterialError::Io {
        path: path.to_owned(),
        source,
    }
}

fn content(place: &str, file: &'static str, reason: impl ToString) -> MaterialError {
    MaterialError::Content {
        place: place.to_owned(),
        file,
        reason: reason.to_string(),
    }
}
