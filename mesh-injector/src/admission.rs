//! AdmissionReview in, AdmissionReview out: what the API server asks of a pod is put to `inject`, what it asks of a
//! policy object to `validation`. The namespace of a pod is looked up here, and here users are told.

use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation, SerializePatchError};
use serde::de::DeserializeOwned;

use crate::cluster::{Cluster, ClusterError};
use crate::config::LiveConfig;
use crate::events::{Report, subject};
use crate::inject::{Outcome, Surroundings, inject};
use crate::validation;

/// The webhooks, whatever carries the questions.
pub struct Webhooks<C> {
    cluster: C,
    config: LiveConfig,
}

/// A question that has no answer. The API server then does what the webhook's `failurePolicy` says.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// The body is not a question.
    #[error("the body is no AdmissionReview of admission.k8s.io/v1: {0}")]
    Body(String),
    /// The namespace of the pod is not known.
    #[error("the pod's namespace cannot be read: {0}")]
    Cluster(#[from] ClusterError),
    /// The namespace of the pod does not exist.
    #[error("there is no namespace {0:?}")]
    NoNamespace(String),
    /// The answer cannot be written.
    #[error("writing the answer: {0}")]
    Answer(String),
}

impl Unanswered {
    /// Whether whoever asked is at fault.
    pub fn is_askers(&self) -> bool {
        matches!(self, Self::Body(_))
    }
}

impl From<SerializePatchError> for Unanswered {
    fn from(error: SerializePatchError) -> Self {
        Self::Answer(error.to_string())
    }
}

impl<C: Cluster> Webhooks<C> {
    /// Webhooks for a cluster.
    pub fn new(cluster: C, config: LiveConfig) -> Self {
        Self { cluster, config }
    }

    /// Answers about a pod.
    ///
    /// # Errors
    /// When the question cannot be read, or the pod's namespace cannot.
    pub async fn inject(&self, body: &[u8]) -> Result<Vec<u8>, Unanswered> {
        let started = Instant::now();
        metrics::counter!("sidecar_injection_requests_total").increment(1);
        let outcome = self.answer_pod(body).await;
        metrics::histogram!("sidecar_injection_time_seconds").record(started.elapsed().as_secs_f64());
        if let Err(error) = &outcome {
            metrics::counter!("sidecar_injection_failure_total").increment(1);
            tracing::warn!("injection not answered: {error}");
        }
        outcome
    }

    /// Answers about a policy object.
    ///
    /// # Errors
    /// When the question cannot be read.
    pub fn validate(&self, body: &[u8]) -> Result<Vec<u8>, Unanswered> {
        let request = parse::<DynamicObject>(body)?;
        let response = validation::review(&request);
        if !response.allowed {
            let object = format!(
                "{} {}/{}",
                request.kind.kind,
                request.namespace.as_deref().unwrap_or_default(),
                request.name
            );
            tracing::info!(object, "refused: {}", response.result.message);
        }
        write(response)
    }

    async fn answer_pod(&self, body: &[u8]) -> Result<Vec<u8>, Unanswered> {
        let request = parse::<Pod>(body)?;
        let is_pod = request.kind.group.is_empty() && request.kind.kind == "Pod";
        let whole = request.sub_resource.as_deref().unwrap_or_default().is_empty();
        let response = match &request.object {
            Some(pod) if is_pod && whole && request.operation == Operation::Create => self.pod(&request, pod).await?,
            _ => AdmissionResponse::from(&request),
        };
        write(response)
    }

    async fn pod(&self, request: &AdmissionRequest<Pod>, pod: &Pod) -> Result<AdmissionResponse, Unanswered> {
        let around = self
            .surroundings(request.namespace.as_deref().unwrap_or_default())
            .await?;
        let mut response = AdmissionResponse::from(request);
        let called = match pod.name_any() {
            name if name.is_empty() => format!("{}…", pod.metadata.generate_name.as_deref().unwrap_or_default()),
            name => name,
        };
        let config = self.config.get();
        let tell = |reason, message: String| {
            // A dry run leaves no traces.
            if !request.dry_run {
                self.cluster.report(Report {
                    namespace: around.namespace.clone(),
                    about: subject(pod, &around.namespace),
                    reason,
                    message,
                });
            }
        };
        match inject(pod, &around, &config) {
            Ok(Outcome::Injected { why, patch, warnings }) => {
                metrics::counter!("sidecar_injection_success_total").increment(1);
                tracing::info!(namespace = around.namespace, pod = called, "injected: {why}");
                for warning in &warnings {
                    tell("InjectionWarning", format!("pod {called}: {warning}"));
                }
                response.warnings = validation::warnings(warnings);
                Ok(response.with_patch(patch)?)
            }
            Ok(Outcome::Skipped { why, asked }) => {
                metrics::counter!("sidecar_injection_skip_total").increment(1);
                tracing::info!(namespace = around.namespace, pod = called, "not injected: {why}");
                if asked && why.is_notable() {
                    let message = format!("not injected with the mesh's proxy: {why}");
                    tell("NotInjected", format!("pod {called} {message}"));
                    response.warnings = validation::warnings(vec![message]);
                }
                Ok(response)
            }
            Err(refusal) => {
                metrics::counter!("sidecar_injection_failure_total").increment(1);
                tracing::info!(namespace = around.namespace, pod = called, "refused: {refusal}");
                tell(
                    "InjectionRefused",
                    format!("pod {called} cannot have the mesh's proxy: {refusal}"),
                );
                Ok(response.deny(format!("the pod cannot have the mesh's proxy: {refusal}")))
            }
        }
    }

    async fn surroundings(&self, namespace: &str) -> Result<Surroundings, Unanswered> {
        let found = self.cluster.namespace(namespace).await?;
        let found = found.ok_or_else(|| Unanswered::NoNamespace(namespace.to_owned()))?;
        let facts = self.cluster.facts();
        Ok(Surroundings {
            namespace: namespace.to_owned(),
            namespace_labels: found.metadata.labels.unwrap_or_default(),
            namespace_annotations: found.metadata.annotations.unwrap_or_default(),
            istio_injector: facts.istio_injector,
            native_sidecars: facts.native_sidecars,
        })
    }
}

fn parse<T: kube::Resource + DeserializeOwned>(body: &[u8]) -> Result<AdmissionRequest<T>, Unanswered> {
    let review: AdmissionReview<T> = serde_json::from_slice(body).map_err(|e| Unanswered::Body(e.to_string()))?;
    if review.types.api_version != kube::core::admission::META_API_VERSION_V1 {
        return Err(Unanswered::Body(format!(
            "apiVersion is {:?}",
            review.types.api_version
        )));
    }
    review
        .try_into()
        .map_err(|_| Unanswered::Body("it has no request".to_owned()))
}

fn write(mut response: AdmissionResponse) -> Result<Vec<u8>, Unanswered> {
    let failed = |e: serde_json::Error| Unanswered::Answer(e.to_string());
    let patch = response.patch.take().map(|patch| BASE64_STANDARD.encode(patch));
    let mut review = serde_json::to_value(response.into_review()).map_err(failed)?;
    if let Some(patch) = patch {
        // The API has base64 here; the type would write a list of numbers.
        review["response"]["patch"] = patch.into();
    }
    serde_json::to_vec(&review).map_err(failed)
}

#[cfg(test)]
mod tests;
