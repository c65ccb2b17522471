//! What users are told as Kubernetes events: a pod that was refused, or that has no proxy though it was asked for. The
//! makers of most pods are controllers, which show nobody a warning; events of theirs are where people look.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::mpsc;

/// Reports that wait to be sent; more are dropped and counted.
const QUEUE: usize = 256;
/// The same is not said again within this time: a controller tries for ever.
const QUIET: Duration = Duration::from_secs(300);
/// Reports that are remembered so as not to be repeated.
const REMEMBERED: usize = 1024;
/// The API server takes no more.
const MAX_MESSAGE: usize = 1024;
/// How long the API server may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Something to tell the users of a namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Where.
    pub namespace: String,
    /// What it is about: the controller of the pod, or the pod itself.
    pub about: ObjectReference,
    /// In a word, for machines.
    pub reason: &'static str,
    /// In a sentence.
    pub message: String,
}

/// Takes reports, without waiting.
#[derive(Clone)]
pub struct Reports(mpsc::Sender<Report>);

impl Reports {
    /// A queue of reports and its end, for [`send_all`].
    pub fn channel() -> (Self, mpsc::Receiver<Report>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    pub(crate) fn send(&self, report: Report) {
        if self.0.try_send(report).is_err() {
            metrics::counter!("injector_events_total", "result" => "dropped").increment(1);
        }
    }
}

/// Whom an event about a pod is about: its controller, which exists, or the pod itself, which may never.
pub fn subject(pod: &Pod, namespace: &str) -> ObjectReference {
    let owners = pod.metadata.owner_references.iter().flatten();
    let controller = owners.into_iter().find(|owner| owner.controller == Some(true));
    match controller {
        Some(owner) => ObjectReference {
            api_version: Some(owner.api_version.clone()),
            kind: Some(owner.kind.clone()),
            name: Some(owner.name.clone()),
            uid: Some(owner.uid.clone()),
            namespace: Some(namespace.to_owned()),
            ..ObjectReference::default()
        },
        None => ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(crate::inject::workload_of(pod)),
            namespace: Some(namespace.to_owned()),
            ..ObjectReference::default()
        },
    }
}

/// Makes events of reports until the queue is closed. `name` is the injector's own.
pub async fn send_all(client: Client, name: String, mut reports: mpsc::Receiver<Report>) {
    let mut said = Said::default();
    while let Some(report) = reports.recv().await {
        if !said.is_new(&report, Instant::now()) {
            continue;
        }
        let events = Api::<Event>::namespaced(client.clone(), &report.namespace);
        let event = event(&report, &name, Timestamp::now());
        let params = PostParams::default();
        let sent = tokio::time::timeout(SEND_TIMEOUT, events.create(&params, &event)).await;
        let result = match sent {
            Ok(Ok(_)) => "sent",
            Ok(Err(error)) => {
                tracing::warn!(namespace = report.namespace, "writing an event: {error}");
                "failed"
            }
            Err(_) => {
                tracing::warn!(namespace = report.namespace, "writing an event: no answer");
                "failed"
            }
        };
        metrics::counter!("injector_events_total", "result" => result).increment(1);
    }
}

fn event(report: &Report, injector: &str, now: Timestamp) -> Event {
    let about = report.about.name.as_deref().unwrap_or("pod");
    let time = Time(now);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{about}.{:016x}", fastrand::u64(..))),
            namespace: Some(report.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: report.about.clone(),
        type_: Some("Warning".to_owned()),
        reason: Some(report.reason.to_owned()),
        message: Some(cut(&report.message, MAX_MESSAGE)),
        source: Some(EventSource {
            component: Some("mesh-injector".to_owned()),
            host: None,
        }),
        reporting_component: Some("mesh.dev/injector".to_owned()),
        reporting_instance: Some(injector.to_owned()),
        action: Some("Inject".to_owned()),
        first_timestamp: Some(time.clone()),
        last_timestamp: Some(time),
        count: Some(1),
        ..Event::default()
    }
}

/// A text of at most so many bytes.
pub(crate) fn cut(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(bytes.saturating_sub('…'.len_utf8()));
    format!("{}…", &text[..end])
}

/// What was said lately.
#[derive(Default)]
struct Said(HashMap<(String, Option<String>, &'static str, String), Instant>);

impl Said {
    fn is_new(&mut self, report: &Report, now: Instant) -> bool {
        let key = (
            report.namespace.clone(),
            report.about.name.clone(),
            report.reason,
            report.message.clone(),
        );
        if self.0.get(&key).is_some_and(|at| now.duration_since(*at) < QUIET) {
            return false;
        }
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, at| now.duration_since(*at) < QUIET);
        }
        if self.0.len() >= REMEMBERED {
            // A flood: saying something twice is better than forgetting everything one by one.
            self.0.clear();
        }
        self.0.insert(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(message: &str) -> Report {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"generateName": "shop-abc-", "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "shop-abc", "uid": "u", "controller": true}]}
        }))
        .unwrap();
        Report {
            namespace: "default".to_owned(),
            about: subject(&pod, "default"),
            reason: "InjectionRefused",
            message: message.to_owned(),
        }
    }

    #[test]
    fn an_event_is_about_the_controller_and_within_bounds() {
        let event = event(&report(&"é".repeat(2000)), "injector-1", Timestamp::UNIX_EPOCH);
        assert_eq!(event.involved_object.kind.as_deref(), Some("ReplicaSet"));
        assert_eq!(event.involved_object.uid.as_deref(), Some("u"));
        assert!(event.metadata.name.unwrap().starts_with("shop-abc."));
        let message = event.message.unwrap();
        assert!(message.len() <= MAX_MESSAGE && message.ends_with('…'));
    }

    #[test]
    fn a_pod_without_controller_stands_for_itself() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "alone"}})).unwrap();
        let about = subject(&pod, "web");
        assert_eq!(
            (about.kind.as_deref(), about.name.as_deref()),
            (Some("Pod"), Some("alone"))
        );
    }

    #[test]
    fn the_same_is_said_once() {
        let mut said = Said::default();
        let start = Instant::now();
        assert!(said.is_new(&report("a"), start));
        assert!(!said.is_new(&report("a"), start + QUIET / 2));
        assert!(said.is_new(&report("b"), start));
        assert!(said.is_new(&report("a"), start + QUIET));
        for i in 0..REMEMBERED * 2 {
            assert!(said.is_new(&report(&format!("flood {i}")), start));
        }
        assert!(said.0.len() <= REMEMBERED);
    }
}
