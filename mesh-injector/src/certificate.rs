//! The serving certificate of the webhooks: made, judged and kept as the data of a Secret. No clock is read here.
//!
//! Each generation has an authority of its own, which signs one leaf and whose key is then forgotten. The authorities
//! of generations that still live are trusted beside the newest, so that replicas and API servers may change from one
//! to the next at their own time.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// Keys of the Secret.
const CA: &str = "ca.crt";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Clocks that are a little behind must not refuse a fresh certificate.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// Authorities that are trusted at once; older ones are dropped though they live.
const MAX_AUTHORITIES: usize = 4;

/// A serving certificate with what proves it.
#[derive(Debug)]
pub struct Serving {
    /// PEM of the authorities to trust, the newest first: the webhooks' `caBundle`.
    pub ca_pem: String,
    certificate_pem: String,
    key_pem: String,
    key: std::sync::Arc<CertifiedKey>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// Why the data of a Secret is of no use; a new certificate is made then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(String);

impl Serving {
    /// Makes a certificate for `names` that is valid from `now` for `ttl`. The authorities of `previous` that still
    /// live stay trusted.
    ///
    /// # Errors
    /// When a name is not a name, or no key can be made.
    pub fn issue(names: &[String], now: SystemTime, ttl: Duration, previous: Option<&Self>) -> Result<Self, Unusable> {
        let unusable = |e: rcgen::Error| Unusable(e.to_string());
        let authority_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(unusable)?;
        let mut authority = params("mesh-injector authority", now, ttl);
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority_certificate = authority.self_signed(&authority_key).map_err(unusable)?;
        let issuer = Issuer::new(authority, authority_key);

        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(unusable)?;
        let mut leaf = params(names.first().map_or("", String::as_str), now, ttl);
        for name in names {
            let name = name.as_str().try_into().map_err(unusable)?;
            leaf.subject_alt_names.push(rcgen::SanType::DnsName(name));
        }
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = leaf.signed_by(&key, &issuer).map_err(unusable)?;

        let mut ca_pem = authority_certificate.pem();
        for pem in previous.map(|previous| previous.living(now)).unwrap_or_default() {
            ca_pem.push_str(&pem);
        }
        Self::assemble(ca_pem, certificate.pem(), key.serialize_pem(), names, now)
    }

    /// Takes the data of a Secret.
    ///
    /// # Errors
    /// When it is incomplete, does not belong together, is for other names, or its time has ended.
    pub fn parse(data: &BTreeMap<String, ByteString>, names: &[String], now: SystemTime) -> Result<Self, Unusable> {
        let text = |key: &str| {
            let bytes = data.get(key).ok_or_else(|| Unusable(format!("{key} is missing")))?;
            String::from_utf8(bytes.0.clone()).map_err(|_| Unusable(format!("{key} is no text")))
        };
        Self::assemble(text(CA)?, text(CERTIFICATE)?, text(KEY)?, names, now)
    }

    /// The data of the Secret.
    pub fn data(&self) -> BTreeMap<String, ByteString> {
        [
            (CA, &self.ca_pem),
            (CERTIFICATE, &self.certificate_pem),
            (KEY, &self.key_pem),
        ]
        .map(|(key, text)| (key.to_owned(), ByteString(text.clone().into_bytes())))
        .into()
    }

    /// What TLS needs of it.
    pub fn key(&self) -> std::sync::Arc<CertifiedKey> {
        self.key.clone()
    }

    /// When it is to be replaced: at two thirds of its life.
    pub fn renew_at(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + life * 2 / 3
    }

    /// The end of its validity.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether it is the same certificate.
    pub fn is_same(&self, other: &Self) -> bool {
        self.certificate_pem == other.certificate_pem
    }

    fn assemble(
        ca_pem: String,
        certificate_pem: String,
        key_pem: String,
        names: &[String],
        now: SystemTime,
    ) -> Result<Self, Unusable> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let chain = certificates(CERTIFICATE, &certificate_pem)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| Unusable(format!("{KEY}: {e}")))?;
        verify(&chain, &certificates(CA, &ca_pem)?, names, now, &provider)?;
        let (not_before, not_after) = validity(&chain[0])?;
        let key = CertifiedKey::from_der(chain, key, &provider)
            .map_err(|e| Unusable(format!("{KEY} does not belong to {CERTIFICATE}: {e}")))?;
        Ok(Self {
            ca_pem,
            certificate_pem,
            key_pem,
            key: std::sync::Arc::new(key),
            // What renewal counts from: the moment it was made.
            not_before: not_before + BACKDATE,
            not_after,
        })
    }

    /// The trusted authorities whose time has not ended, as PEM, with room for one more.
    fn living(&self, now: SystemTime) -> Vec<String> {
        let blocks = self.ca_pem.split_inclusive("-----END CERTIFICATE-----\n");
        blocks
            .filter(|pem| {
                let certificates = certificates(CA, pem).unwrap_or_default();
                certificates
                    .first()
                    .is_some_and(|ca| validity(ca).is_ok_and(|(_, not_after)| not_after > now))
            })
            .take(MAX_AUTHORITIES - 1)
            .map(str::to_owned)
            .collect()
    }
}

/// Verifies as an API server would.
fn verify(
    chain: &[CertificateDer<'static>],
    authorities: &[CertificateDer<'static>],
    names: &[String],
    now: SystemTime,
    provider: &CryptoProvider,
) -> Result<(), Unusable> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots
            .add(authority.clone())
            .map_err(|e| Unusable(format!("{CA}: {e}")))?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone().into())
        .build()
        .map_err(|e| Unusable(format!("{CA}: {e}")))?;
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (leaf, intermediates) = chain
        .split_first()
        .ok_or_else(|| Unusable(format!("{CERTIFICATE} holds no certificate")))?;
    for name in names {
        let server = ServerName::try_from(name.as_str()).map_err(|e| Unusable(format!("{name}: {e}")))?;
        verifier
            .verify_server_cert(leaf, intermediates, &server, &[], UnixTime::since_unix_epoch(since))
            .map_err(|e| Unusable(format!("{CERTIFICATE} is not valid for {name}: {e}")))?;
    }
    Ok(())
}

fn certificates(key: &str, pem: &str) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(Unusable(format!("{key} holds no certificate"))),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(Unusable(format!("{key}: {error}"))),
    }
}

fn validity(certificate: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), Unusable> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|e| Unusable(format!("{CERTIFICATE}: {e}")))?;
    let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let validity = parsed.validity();
    Ok((
        time(validity.not_before.timestamp()),
        time(validity.not_after.timestamp()),
    ))
}

fn params(name: &str, now: SystemTime, ttl: Duration) -> CertificateParams {
    let whole = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(since.as_secs())
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "mesh");
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = whole(now - BACKDATE);
    params.not_after = whole(now + ttl);
    params.use_authority_key_identifier_extension = true;
    params
}

#[cfg(test)]
mod tests;
