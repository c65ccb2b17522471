//! The credentials in force, as one snapshot.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use mesh_api::identity::{SpiffeId, TrustDomain};
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::sync::watch;

use crate::tls::provider;
use crate::tls::verify::{self, NotAPeer, TrustDomains};

/// A certificate with its key, and what peers' certificates are verified with.
#[derive(Debug, Clone)]
pub struct Credentials {
    identity: SpiffeId,
    key: Arc<CertifiedKey>,
    resolver: Arc<SingleCertAndKey>,
    roots: Arc<[CertificateDer<'static>]>,
    root_store: Arc<RootCertStore>,
    trust: Arc<TrustDomains>,
    not_before: SystemTime,
    not_after: SystemTime,
    serial: Arc<str>,
    generation: u64,
}

/// Why a chain, a key and roots do not make credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// No certificate in the chain.
    #[error("the certificate chain is empty")]
    Empty,
    /// The leaf is not a workload's.
    #[error("the certificate is not a workload's: {0}")]
    Identity(#[from] NotAPeer),
    /// The key is unusable or another certificate's, a root is malformed, or the chain does not lead to a root.
    #[error("the certificate, its key and the roots do not belong together: {0}")]
    Mismatch(#[from] rustls::Error),
    /// The certificate is malformed.
    #[error("the certificate is malformed: {0}")]
    Malformed(String),
}

impl Credentials {
    /// Puts credentials together, having checked that peers will accept them now.
    ///
    /// `chain` is the leaf and what lies between it and one of `roots`.
    ///
    /// # Errors
    /// See [`CredentialsError`].
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, CredentialsError> {
        let (leaf, intermediates) = chain.split_first().ok_or(CredentialsError::Empty)?;
        let identity = verify::identity(leaf)?;
        let mut root_store = RootCertStore::empty();
        for root in &roots {
            root_store.add(root.clone())?;
        }
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf)?,
            &root_store,
            intermediates,
            UnixTime::now(),
            provider().signature_verification_algorithms.all,
        )?;
        let malformed = |error: &dyn std::fmt::Display| CredentialsError::Malformed(error.to_string());
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|error| malformed(&error))?;
        let (not_before, not_after) = (
            time(parsed.validity().not_before.timestamp()),
            time(parsed.validity().not_after.timestamp()),
        );
        let serial = parsed
            .raw_serial()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
            .into();
        let trust = TrustDomains::new(own_domain(&identity)?, Vec::new());
        let key = Arc::new(CertifiedKey::new(chain, provider().key_provider.load_private_key(key)?));
        key.keys_match()?;
        Ok(Self {
            identity,
            resolver: Arc::new(SingleCertAndKey::from(key.clone())),
            key,
            roots: roots.into(),
            root_store: Arc::new(root_store),
            trust: Arc::new(trust),
            not_before,
            not_after,
            serial,
            generation: 0,
        })
    }

    /// Whose they are.
    #[must_use]
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The leaf, then what lies between it and a root.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// The mesh's roots.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The mesh's roots, for verification.
    #[must_use]
    pub fn root_store(&self) -> &Arc<RootCertStore> {
        &self.root_store
    }

    /// The trust domains of the mesh.
    #[must_use]
    pub fn trust(&self) -> &Arc<TrustDomains> {
        &self.trust
    }

    /// Presents chain and key, on either side of a handshake.
    #[must_use]
    pub fn resolver(&self) -> &Arc<SingleCertAndKey> {
        &self.resolver
    }

    /// Start of the certificate's validity.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of the certificate's validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether the certificate has not ended.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.not_after > SystemTime::now()
    }

    /// The certificate's serial number in hexadecimal.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Grows with every change of anything here; 0 before they are published.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// Holds the current [`Credentials`] and tells when they change.
#[derive(Debug)]
pub struct CertStore {
    current: ArcSwapOption<Credentials>,
    trust: ArcSwap<TrustDomains>,
    last: AtomicU64,
    changed: watch::Sender<u64>,
}

impl CertStore {
    /// An empty store of a mesh with these trust domains.
    #[must_use]
    pub fn new(trust: TrustDomains) -> Arc<Self> {
        Arc::new(Self {
            current: ArcSwapOption::empty(),
            trust: ArcSwap::from_pointee(trust),
            last: AtomicU64::new(0),
            changed: watch::Sender::new(0),
        })
    }

    /// The credentials in force; `None` before the first.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Credentials>> {
        self.current.load_full()
    }

    /// Puts credentials in force for all connections to come.
    pub fn publish(&self, mut credentials: Credentials) {
        credentials.generation = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        credentials.trust = self.trust.load_full();
        let generation = credentials.generation;
        self.current.store(Some(Arc::new(credentials)));
        self.changed.send_replace(generation);
    }

    /// Puts other trust domains in force for all connections to come; nothing happens when they are the same.
    pub fn set_trust_domains(&self, trust: TrustDomains) {
        if **self.trust.load() == trust {
            return;
        }
        self.trust.store(Arc::new(trust));
        if let Some(current) = self.current() {
            self.publish(Credentials::clone(&current));
        }
    }

    /// The generation in force, 0 before the first, and each change of it.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Waits for the first credentials.
    pub async fn ready(&self) -> Arc<Credentials> {
        let mut changes = self.subscribe();
        loop {
            if let Some(current) = self.current() {
                return current;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

fn own_domain(identity: &SpiffeId) -> Result<TrustDomain, CredentialsError> {
    identity
        .trust_domain()
        .parse()
        .map_err(|error| CredentialsError::Malformed(format!("{error}")))
}

fn time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
