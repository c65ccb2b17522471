//! Questions and answers, as the API server writes them.

use std::collections::BTreeMap;
use std::sync::Mutex;

use k8s_openapi::api::core::v1::Namespace;
use serde_json::{Value, json};

use super::*;
use crate::cluster::Facts;
use crate::config::InjectorConfig;

/// Namespaces with their labels; what is reported is kept.
#[derive(Default)]
struct Fake {
    namespaces: BTreeMap<&'static str, Value>,
    reports: Mutex<Vec<Report>>,
    down: bool,
}

impl Cluster for Fake {
    async fn namespace(&self, name: &str) -> Result<Option<Namespace>, ClusterError> {
        if self.down {
            return Err(ClusterError::Timeout {
                what: format!("namespace {name}"),
            });
        }
        let labels = self.namespaces.get(name);
        Ok(labels.map(|labels| serde_json::from_value(json!({"metadata": {"labels": labels}})).unwrap()))
    }

    fn facts(&self) -> Facts {
        Facts {
            istio_injector: false,
            native_sidecars: true,
        }
    }

    fn report(&self, report: Report) {
        self.reports.lock().unwrap().push(report);
    }
}

fn webhooks() -> Webhooks<Fake> {
    let fake = Fake {
        namespaces: [("default", json!({})), ("shop", json!({"istio-injection": "enabled"}))].into(),
        ..Fake::default()
    };
    Webhooks::new(fake, LiveConfig::fixed(InjectorConfig::default()))
}

fn question(namespace: &str, pod: Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "some-uid", "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": namespace, "operation": "CREATE", "userInfo": {}, "dryRun": false,
            "object": pod, "oldObject": null, "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    })
}

fn pod(metadata: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [{"name": "app", "image": "a"}]}})
}

async fn answer(webhooks: &Webhooks<Fake>, question: &Value) -> Value {
    let body = webhooks.inject(question.to_string().as_bytes()).await.unwrap();
    let review: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(review["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(review["kind"], "AdmissionReview");
    assert_eq!(review["response"]["uid"], "some-uid");
    review["response"].clone()
}

/// The patched object of an answer.
fn patched(question: &Value, response: &Value) -> Value {
    assert_eq!(response["patchType"], "JSONPatch");
    let bytes: Vec<u8> = match &response["patch"] {
        Value::String(text) => BASE64_STANDARD.decode(text).unwrap(),
        other => panic!("the patch is base64 in the API, not {other}"),
    };
    let patch: json_patch::Patch = serde_json::from_slice(&bytes).unwrap();
    let mut object = question["request"]["object"].clone();
    json_patch::patch(&mut object, &patch).unwrap();
    object
}

#[tokio::test]
async fn a_pod_is_injected_and_to_be_asked_again_changes_nothing() {
    let webhooks = webhooks();
    let asked = question("shop", pod(json!({"name": "a"})));
    let response = answer(&webhooks, &asked).await;
    assert_eq!(response["allowed"], true);
    let object = patched(&asked, &response);
    assert_eq!(object["spec"]["initContainers"][1]["name"], "istio-proxy");
    let again = answer(&webhooks, &question("shop", object)).await;
    assert_eq!(again["allowed"], true);
    assert!(again.get("patch").is_none());
    assert!(webhooks.cluster.reports.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_is_not_a_new_pod_passes() {
    let webhooks = webhooks();
    for (pointer, value) in [
        ("/request/operation", json!("UPDATE")),
        ("/request/subResource", json!("ephemeralcontainers")),
        ("/request/kind/kind", json!("PodTemplate")),
        ("/request/object", json!(null)),
        ("/request/namespace", json!("default")),
    ] {
        let mut asked = question("shop", pod(json!({"name": "a"})));
        match asked.pointer_mut(pointer) {
            Some(at) => *at = value,
            None => asked["request"]["subResource"] = value,
        }
        let response = answer(&webhooks, &asked).await;
        assert_eq!(response["allowed"], true, "{pointer}");
        assert!(response.get("patch").is_none(), "{pointer}");
    }
}

#[tokio::test]
async fn a_pod_that_cannot_be_injected_is_refused_and_its_controller_told() {
    let webhooks = webhooks();
    let metadata = json!({
        "generateName": "shop-abc-", "annotations": {"sidecar.istio.io/proxyCPU": "lots"},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "shop-abc", "uid": "u", "controller": true}],
    });
    let mut asked = question("shop", pod(metadata));
    let response = answer(&webhooks, &asked).await;
    assert_eq!(response["allowed"], false);
    let message = response["status"]["message"].as_str().unwrap();
    assert!(
        message.contains("sidecar.istio.io/proxyCPU") && message.contains("lots"),
        "{message}"
    );
    {
        let reports = webhooks.cluster.reports.lock().unwrap();
        assert_eq!(reports.len(), 1);
        assert_eq!(reports[0].reason, "InjectionRefused");
        assert_eq!(reports[0].about.name.as_deref(), Some("shop-abc"));
        assert!(reports[0].message.contains("lots"));
    }
    asked["request"]["dryRun"] = json!(true);
    assert_eq!(answer(&webhooks, &asked).await["allowed"], false);
    assert_eq!(
        webhooks.cluster.reports.lock().unwrap().len(),
        1,
        "a dry run leaves no traces"
    );
}

#[tokio::test]
async fn who_asked_in_vain_is_warned() {
    let webhooks = webhooks();
    let mut host = pod(json!({"name": "a", "labels": {"sidecar.istio.io/inject": "true"}}));
    host["spec"]["hostNetwork"] = json!(true);
    let response = answer(&webhooks, &question("shop", host)).await;
    assert_eq!(response["allowed"], true);
    assert!(
        response["warnings"][0].as_str().unwrap().contains("hostNetwork"),
        "{response}"
    );
    assert_eq!(webhooks.cluster.reports.lock().unwrap()[0].reason, "NotInjected");
}

#[tokio::test]
async fn warnings_of_an_injected_pod_are_said_and_reported() {
    let webhooks = webhooks();
    let metadata = json!({"name": "a", "annotations": {"inject.istio.io/templates": "gateway"}});
    let response = answer(&webhooks, &question("shop", pod(metadata))).await;
    assert!(response.get("patch").is_some());
    assert!(
        response["warnings"][0]
            .as_str()
            .unwrap()
            .contains("inject.istio.io/templates")
    );
    assert_eq!(webhooks.cluster.reports.lock().unwrap()[0].reason, "InjectionWarning");
}

#[tokio::test]
async fn what_is_not_known_is_not_answered() {
    let asked = question("nowhere", pod(json!({"name": "a"}))).to_string();
    let error = webhooks().inject(asked.as_bytes()).await.unwrap_err();
    assert!(!error.is_askers() && error.to_string().contains("nowhere"), "{error}");
    let mut webhooks = webhooks();
    webhooks.cluster.down = true;
    assert!(!webhooks.inject(asked.as_bytes()).await.unwrap_err().is_askers());
}

#[tokio::test]
async fn bodies_that_are_no_questions() {
    let webhooks = webhooks();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let mut old = question("shop", pod(json!({"name": "a"})));
    old["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let mut wrong = question("shop", pod(json!({"name": "a"})));
    wrong["request"]["object"]["spec"] = json!({"containers": 3});
    let without = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"});
    for body in [
        "",
        "{",
        "null",
        "[]",
        "\u{0}",
        "{\"request\": {}}",
        &deep,
        &old.to_string(),
        &wrong.to_string(),
        &without.to_string(),
    ] {
        let shown = &body[..body.len().min(60)];
        assert!(
            webhooks.inject(body.as_bytes()).await.unwrap_err().is_askers(),
            "{shown}"
        );
    }
    for body in ["", "{", "null", &deep, &without.to_string()] {
        assert!(webhooks.validate(body.as_bytes()).unwrap_err().is_askers());
    }
    assert!(webhooks.inject(&[0xff, 0xfe]).await.unwrap_err().is_askers());
}
