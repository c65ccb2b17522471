//! Signs: a caller's proven identity and its certificate signing request in, a short-lived certificate out.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use mesh_api::bootstrap::Fingerprint;
use mesh_api::identity::{SpiffeId, TrustDomain};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, UnixTime};
use tokio::sync::watch;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;

use super::material::{Files, Material, MaterialError, root_fingerprint};
use super::service::pem;

/// A request is a few hundred bytes, with an RSA key two thousand.
const MAX_CSR_BYTES: usize = 64 * 1024;
/// Istio's: clocks that are a little behind must not refuse a fresh certificate.
const BACKDATE: Duration = Duration::from_secs(2 * 60);
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// How long leaf certificates live.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {
    /// Where the request names none.
    pub default: Duration,
    /// Requests for more get this much.
    pub max: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self {
            default: DAY,
            max: 90 * DAY,
        }
    }
}

/// The certificate authority of one trust domain. It is shared; signing changes nothing in it, and its material is
/// replaced as a whole.
pub struct Authority {
    trust_domain: TrustDomain,
    current: ArcSwap<Material>,
    /// Counts replacements.
    changes: watch::Sender<u64>,
    lifetimes: Lifetimes,
}

/// A signed certificate.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The leaf, then what lies between it and a root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The end of its validity.
    pub not_after: SystemTime,
    /// The roots in force at that moment, the chain's own first.
    pub roots: Arc<[CertificateDer<'static>]>,
}

/// Why a request was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// Not a PEM certificate signing request, or one whose signature is not by its own key.
    #[error("the certificate signing request is not valid: {0}")]
    Request(String),
    /// The key is of a kind or size that the mesh does not take.
    #[error(
        "the key of the certificate signing request is not accepted ({0}): use ECDSA P-256 or P-384, or RSA with 2048 to 8192 bits"
    )]
    Key(String),
    /// The request asks for somebody else's name.
    #[error("{caller} may not have a certificate for {asked}: ask for its own identity or name none")]
    OtherName {
        /// The authenticated caller.
        caller: SpiffeId,
        /// The name in the request.
        asked: String,
    },
    /// The caller belongs to another trust domain.
    #[error("{caller} is not in this authority's trust domain `{trust_domain}`")]
    OtherTrustDomain {
        /// The authenticated caller.
        caller: SpiffeId,
        /// The authority's.
        trust_domain: TrustDomain,
    },
    /// The authority's own certificate has ended.
    #[error(
        "the authority's own certificate has expired: replace it where it is kept (outside Kubernetes, then restart)"
    )]
    Expired,
    /// The signature could not be made.
    #[error("signing failed: {0}")]
    Signing(#[from] rcgen::Error),
}

impl Authority {
    /// Opens the authority in `directory`, making a self-signed root there when it holds none, and checks that what
    /// it signs verifies against its roots.
    ///
    /// # Errors
    /// When files are unreadable, incomplete, or do not belong together.
    pub fn open(
        directory: &Path,
        trust_domain: &TrustDomain,
        lifetimes: Lifetimes,
    ) -> Result<Arc<Self>, MaterialError> {
        let files = Files::load_or_create(directory, trust_domain.as_str())?;
        Self::from_files(&files, trust_domain, lifetimes)
    }

    /// The authority that `files` hold.
    pub(crate) fn from_files(
        files: &Files,
        trust_domain: &TrustDomain,
        lifetimes: Lifetimes,
    ) -> Result<Arc<Self>, MaterialError> {
        let authority = Self {
            trust_domain: trust_domain.clone(),
            current: ArcSwap::from_pointee(Material::new(files)?),
            changes: watch::Sender::new(0),
            lifetimes,
        };
        authority.self_check().map_err(|reason| MaterialError::Mismatch {
            place: files.place.clone(),
            reason,
        })?;
        authority.show_expiry();
        Ok(Arc::new(authority))
    }

    /// Signs with what `files` hold from now on. What does not work is refused, and the material in force stays.
    pub(crate) fn replace(&self, files: &Files) -> Result<(), MaterialError> {
        let candidate = Self::from_files(files, &self.trust_domain, self.lifetimes)?;
        self.current.store(candidate.current.load_full());
        self.changes.send_modify(|count| *count += 1);
        self.show_expiry();
        Ok(())
    }

    fn show_expiry(&self) {
        let material = self.current.load();
        metrics::gauge!("citadel_server_root_cert_expiry_timestamp")
            .set(Time::not_after(&material.roots[0]).map_or(0.0, seconds));
        metrics::gauge!("citadel_server_cert_chain_expiry_timestamp").set(seconds(material.not_after));
    }

    /// Changes with every replacement of keys or roots.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The trust domain whose identities this authority signs.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The trusted roots, the one that this authority's certificates lead to first.
    #[must_use]
    pub fn roots(&self) -> Arc<[CertificateDer<'static>]> {
        self.current.load().roots.clone()
    }

    /// The trusted roots in PEM.
    #[must_use]
    pub fn roots_pem(&self) -> String {
        self.roots().iter().map(pem).collect()
    }

    /// The fingerprint that bootstrap tokens carry.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        root_fingerprint(&self.current.load().roots[0])
    }

    /// The roots as a store for verification.
    ///
    /// # Errors
    /// When a root is malformed.
    pub fn root_store(&self) -> Result<Arc<RootCertStore>, rustls::Error> {
        let mut store = RootCertStore::empty();
        for root in self.roots().iter() {
            store.add(root.clone())?;
        }
        Ok(Arc::new(store))
    }

    /// Signs the PEM request of `caller`. Names in it other than the caller's are refused; none is the same as the
    /// caller's own. `validity` of `None` is the default; more than the maximum gets the maximum.
    ///
    /// # Errors
    /// See [`SignError`].
    pub fn sign(&self, caller: &SpiffeId, csr_pem: &str, validity: Option<Duration>) -> Result<Issued, SignError> {
        if caller.trust_domain() != self.trust_domain.as_str() {
            return Err(SignError::OtherTrustDomain {
                caller: caller.clone(),
                trust_domain: self.trust_domain.clone(),
            });
        }
        if csr_pem.len() > MAX_CSR_BYTES {
            return Err(SignError::Request(format!(
                "{} bytes, at most {MAX_CSR_BYTES} are read",
                csr_pem.len()
            )));
        }
        let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes())
            .map_err(|e| SignError::Request(e.to_string()))?;
        let (_, csr) = X509CertificationRequest::from_der(&der).map_err(|e| SignError::Request(e.to_string()))?;
        let key = acceptable_key(&csr)?;
        csr.verify_signature()
            .map_err(|_| SignError::Request("its signature is not by its own key".to_owned()))?;
        check_names(&csr, caller)?;
        self.issue(caller, &[], &[], &key, validity)
    }

    /// Signs `key` for the control plane itself: its identity, and the names and addresses that proxies dial.
    pub(crate) fn issue(
        &self,
        identity: &SpiffeId,
        dns_names: &[String],
        addresses: &[IpAddr],
        key: &impl PublicKeyData,
        validity: Option<Duration>,
    ) -> Result<Issued, SignError> {
        let material = self.current.load();
        let now = SystemTime::now();
        let validity = validity.unwrap_or(self.lifetimes.default).min(self.lifetimes.max);
        let not_after = (now + validity).min(material.not_after);
        if not_after <= now {
            return Err(SignError::Expired);
        }
        let mut params = CertificateParams::default();
        // Without a subject the alternative names are critical, as SPIFFE wants them.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into()?)];
        for name in dns_names {
            params
                .subject_alt_names
                .push(SanType::DnsName(name.as_str().try_into()?));
        }
        params
            .subject_alt_names
            .extend(addresses.iter().copied().map(SanType::IpAddress));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now, not_after);
        params.serial_number = Some(random_serial()?);
        let leaf = params.signed_by(key, &material.issuer)?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend(material.intermediates.iter().cloned());
        Ok(Issued {
            chain,
            not_after,
            roots: material.roots.clone(),
        })
    }

    /// Signs a throw-away certificate and verifies it as a peer would.
    fn self_check(&self) -> Result<(), String> {
        let identity = SpiffeId::new(&self.trust_domain, "self-check", "self-check").map_err(|e| e.to_string())?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| e.to_string())?;
        let issued = self.issue(&identity, &[], &[], &key, None).map_err(|e| e.to_string())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let roots = self.root_store().map_err(|e| e.to_string())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|e| e.to_string())?;
        let (leaf, intermediates) = issued.chain.split_first().ok_or("no certificate")?;
        verifier
            .verify_client_cert(leaf, intermediates, UnixTime::now())
            .map_err(|e| e.to_string())?;
        Ok(())
    }
}

/// The dates of certificates.
pub(crate) struct Time;

impl Time {
    /// The end of a certificate's validity.
    pub fn not_after(certificate: &CertificateDer<'_>) -> Result<SystemTime, String> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|e| e.to_string())?;
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }
}

/// Sets a validity of whole seconds, backdated as [`BACKDATE`] says.
pub(super) fn set_validity(params: &mut CertificateParams, from: SystemTime, until: SystemTime) {
    let whole = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(since.as_secs())
    };
    params.not_before = whole(from - BACKDATE);
    params.not_after = whole(until);
}

/// 16 random bytes, positive as an ASN.1 integer.
pub(super) fn random_serial() -> Result<SerialNumber, rcgen::Error> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn acceptable_key(csr: &X509CertificationRequest<'_>) -> Result<SubjectPublicKeyInfo, SignError> {
    let info = &csr.certification_request_info.subject_pki;
    let key = SubjectPublicKeyInfo::from_der(info.raw).map_err(|e| SignError::Key(e.to_string()))?;
    match info.parsed().map_err(|e| SignError::Key(e.to_string()))? {
        PublicKey::EC(point) if matches!(point.key_size(), 256 | 384) => Ok(key),
        PublicKey::EC(point) => Err(SignError::Key(format!("elliptic curve with {} bits", point.key_size()))),
        PublicKey::RSA(rsa) if RSA_BITS.contains(&rsa.key_size()) => Ok(key),
        PublicKey::RSA(rsa) => Err(SignError::Key(format!("RSA with {} bits", rsa.key_size()))),
        _ => Err(SignError::Key(info.algorithm.algorithm.to_id_string())),
    }
}

fn check_names(csr: &X509CertificationRequest<'_>, caller: &SpiffeId) -> Result<(), SignError> {
    for extension in csr.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else {
            continue;
        };
        for name in &names.general_names {
            if !matches!(name, GeneralName::URI(uri) if *uri == caller.as_str()) {
                return Err(SignError::OtherName {
                    caller: caller.clone(),
                    asked: name.to_string(),
                });
            }
        }
    }
    Ok(())
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
