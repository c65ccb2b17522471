//! Istio's certificate service over gRPC.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use mesh_api::wire::ca::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use mesh_api::wire::ca::{IstioCertificateRequest, IstioCertificateResponse};
use rustls_pki_types::CertificateDer;
use tonic::{Request, Response, Status};

use super::authenticate::Authenticator;
use super::authority::{Authority, SignError};

/// A request holds one CSR and little else.
const MAX_REQUEST_BYTES: usize = 128 * 1024;

/// Answers `CreateCertificate`.
pub struct CertificateService {
    authority: Arc<Authority>,
    authenticator: Authenticator,
}

impl CertificateService {
    pub(super) fn new(authority: Arc<Authority>, authenticator: Authenticator) -> Self {
        Self {
            authority,
            authenticator,
        }
    }

    /// The service, ready to be routed to.
    #[must_use]
    pub fn server(authority: Arc<Authority>, authenticator: Authenticator) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(Self::new(authority, authenticator))
            .max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    async fn create(&self, request: Request<IstioCertificateRequest>) -> Result<IstioCertificateResponse, Status> {
        let caller = self.authenticator.authenticate_request(&request).await?;
        let message = request.get_ref();
        let validity = match u64::try_from(message.validity_duration) {
            Ok(0) => None,
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => return Err(Status::invalid_argument("validity_duration is negative")),
        };
        let issued = self
            .authority
            .sign(&caller.identity, &message.csr, validity)
            .map_err(|error| {
                tracing::warn!(caller = %caller.identity, "refused a certificate: {error}");
                status(&error)
            })?;
        tracing::debug!(caller = %caller.identity, how = ?caller.how, "signed a certificate");
        let mut cert_chain: Vec<_> = issued.chain.iter().map(pem).collect();
        cert_chain.push(issued.roots.iter().map(pem).collect());
        Ok(IstioCertificateResponse { cert_chain })
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        metrics::counter!("citadel_server_csr_count").increment(1);
        let outcome = self.create(request).await;
        let result = match &outcome {
            Ok(_) => "success",
            Err(status) if status.code() == tonic::Code::Unauthenticated => "unauthenticated",
            Err(status) if status.code() == tonic::Code::Unavailable => "unavailable",
            Err(_) => "refused",
        };
        metrics::counter!("mesh_ca_requests_total", "result" => result).increment(1);
        outcome.map(Response::new)
    }
}

fn status(error: &SignError) -> Status {
    let text = error.to_string();
    match error {
        SignError::Request(_) | SignError::Key(_) => Status::invalid_argument(text),
        SignError::OtherName { .. } | SignError::OtherTrustDomain { .. } => Status::permission_denied(text),
        SignError::Expired => Status::failed_precondition(text),
        SignError::Signing(_) => Status::internal(text),
    }
}

/// One certificate in PEM (RFC 7468).
pub(crate) fn pem(certificate: &CertificateDer<'_>) -> String {
    let encoded = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in encoded.as_bytes().chunks(64) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}
