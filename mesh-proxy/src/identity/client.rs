//! Keeps this proxy's certificate fresh: a loop with three states.
//!
//! ```text
//! Request --signed--> Hold --half the life is over--> Request
//!    \--failed--> BackOff --after a while--> Request
//! ```
//!
//! A certificate in force stays in force while requests fail.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_api::identity::SpiffeId;
use mesh_api::wire::ca::IstioCertificateRequest;
use mesh_api::wire::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio_util::sync::CancellationToken;

use super::control::{ControlPlane, describe};
use super::store::{CertStore, Credentials, CredentialsError};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
const FIRST_BACK_OFF: Duration = Duration::from_millis(200);
const MAX_BACK_OFF: Duration = Duration::from_secs(30);
/// The clock is looked at this often: a machine that was suspended must not oversleep.
const CLOCK_CHECK: Duration = Duration::from_secs(60);

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The control plane refused, or was not reached.
    #[error("the control plane did not sign: {}", describe(.0))]
    Call(#[from] Box<tonic::Status>),
    /// The channel could not be made.
    #[error("the control plane's address: {0}")]
    Address(#[from] tonic::transport::Error),
    /// Key or request could not be made.
    #[error("making a key and a signing request: {0}")]
    Key(#[from] rcgen::Error),
    /// The answer is not a certificate chain in PEM with the roots as its last element.
    #[error("the control plane's answer is malformed: {0}")]
    Malformed(String),
    /// The answer is not for this key, not verifiable, or over already.
    #[error("the control plane's certificate cannot be used: {0}")]
    Unusable(#[from] CredentialsError),
    /// The answer is for somebody else.
    #[error("the control plane issued a certificate of {issued}, asked was for {asked}")]
    OtherIdentity {
        /// Ours.
        asked: SpiffeId,
        /// In the certificate.
        issued: SpiffeId,
    },
}

/// Fetches and renews the certificate of one identity.
pub struct IdentityClient {
    identity: SpiffeId,
    control: Arc<ControlPlane>,
    store: Arc<CertStore>,
    lifetime: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Ask for a certificate, after so many failures in a row.
    Request { failures: u32 },
    /// The control plane failed.
    BackOff { failures: u32, until: SystemTime },
    /// A certificate is in force.
    Hold { renew_at: SystemTime },
}

impl IdentityClient {
    /// A client that keeps `store` supplied with certificates of `identity`.
    #[must_use]
    pub fn new(identity: SpiffeId, control: Arc<ControlPlane>, store: Arc<CertStore>) -> Self {
        Self {
            identity,
            control,
            store,
            lifetime: None,
        }
    }

    /// Asks for certificates of this lifetime instead of the authority's default.
    #[must_use]
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = Some(lifetime);
        self
    }

    /// Runs until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut state = State::Request { failures: 0 };
        while let Some(next) = shutdown.run_until_cancelled(self.step(state)).await {
            state = next;
        }
    }

    async fn step(&self, state: State) -> State {
        match state {
            State::Request { failures } => match self.request().await {
                Ok(credentials) => self.hold(credentials),
                Err(error) => self.back_off(failures, &error),
            },
            State::BackOff { failures, until } => {
                sleep_until(until).await;
                State::Request { failures }
            }
            State::Hold { renew_at } => {
                sleep_until(renew_at).await;
                State::Request { failures: 0 }
            }
        }
    }

    async fn request(&self) -> Result<Credentials, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(self.identity.as_str().try_into()?)];
        let request = IstioCertificateRequest {
            csr: params.serialize_request(&key)?.pem()?,
            validity_duration: self
                .lifetime
                .map_or(0, |lifetime| i64::try_from(lifetime.as_secs()).unwrap_or(0)),
            metadata: None,
        };
        let mut request = tonic::Request::new(request);
        request.set_timeout(REQUEST_TIMEOUT);
        let mut client = IstioCertificateServiceClient::new(self.control.channel()?);
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, client.create_certificate(request));
        let answer = answer
            .await
            .unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer in 15 s")));
        let (chain, roots) = certificates(&answer.map_err(Box::new)?.into_inner().cert_chain)?;
        let credentials = Credentials::new(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into(), roots)?;
        if *credentials.identity() != self.identity {
            let issued = credentials.identity().clone();
            return Err(IdentityError::OtherIdentity {
                asked: self.identity.clone(),
                issued,
            });
        }
        Ok(credentials)
    }

    fn hold(&self, credentials: Credentials) -> State {
        let now = SystemTime::now();
        let not_after = credentials.not_after();
        // Half of what is left, a tenth of it earlier or later, so that a fleet does not renew in step.
        let left = not_after.duration_since(now).unwrap_or_default();
        let renew_at = now + left.mul_f64(0.45 + 0.1 * fastrand::f64());
        let expiry = not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        metrics::counter!("mesh_identity_renewals_total", "result" => "success").increment(1);
        metrics::gauge!("mesh_identity_expiry_timestamp_seconds").set(expiry.as_secs_f64());
        tracing::info!(identity = %self.identity, serial = credentials.serial(), lifetime = ?left, "certificate issued");
        self.store.publish(credentials);
        State::Hold { renew_at }
    }

    fn back_off(&self, failures: u32, error: &IdentityError) -> State {
        metrics::counter!("mesh_identity_renewals_total", "result" => "failure").increment(1);
        let longest = FIRST_BACK_OFF.saturating_mul(1 << failures.min(16)).min(MAX_BACK_OFF);
        let pause = longest.mul_f64(0.5 + 0.5 * fastrand::f64());
        let held = match self.store.current() {
            Some(credentials) if credentials.is_live() => "the certificate in force is kept",
            Some(_) => "the certificate has expired",
            None => "there is no certificate yet",
        };
        tracing::warn!(identity = %self.identity, "{error}; {held}; trying again in {pause:.1?}");
        State::BackOff {
            failures: failures + 1,
            until: SystemTime::now() + pause,
        }
    }
}

/// Sleeps by the wall clock, which certificates live by.
async fn sleep_until(deadline: SystemTime) {
    while let Ok(left) = deadline.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(CLOCK_CHECK)).await;
    }
}

type Certificates = Vec<CertificateDer<'static>>;

/// Istio's answer: elements of PEM, of which the last holds the roots.
fn certificates(answer: &[String]) -> Result<(Certificates, Certificates), IdentityError> {
    let parse = |pem: &String| -> Result<Certificates, IdentityError> {
        let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        parsed.map_err(|error| IdentityError::Malformed(error.to_string()))
    };
    let (roots, chain) = answer
        .split_last()
        .ok_or_else(|| IdentityError::Malformed("empty chain".to_owned()))?;
    let chain = chain.iter().map(parse).collect::<Result<Vec<_>, _>>()?.concat();
    Ok((chain, parse(roots)?))
}
