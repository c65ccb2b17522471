//! What is refused, what is warned about, and what is let pass.

use serde_json::json;

use super::*;

fn request(operation: &str, object: Value, old: Value) -> AdmissionRequest<DynamicObject> {
    let (group, version) = object["apiVersion"]
        .as_str()
        .unwrap()
        .split_once('/')
        .unwrap_or(("", "v1"));
    let kind = object["kind"].as_str().unwrap();
    let value = json!({
        "uid": "u", "kind": {"group": group, "version": version, "kind": kind},
        "resource": {"group": group, "version": version, "resource": kind.to_lowercase()},
        "name": "x", "namespace": "default", "operation": operation, "userInfo": {}, "object": object, "oldObject": old,
    });
    serde_json::from_value(value).unwrap()
}

fn virtual_service(spec: Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {
            "name": "x", "namespace": "default", "creationTimestamp": null,
            "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}],
        },
        "spec": spec,
    })
}

fn good() -> Value {
    json!({"hosts": ["reviews"], "http": [{"route": [{"destination": {"host": "reviews"}}]}]})
}

fn bad() -> Value {
    json!({"hosts": ["reviews"], "http": [{"timeout": "5", "route": [{"destination": {"host": "reviews"}}]}]})
}

#[test]
fn what_works_passes_and_what_cannot_work_is_refused_with_field_and_reason() {
    let response = review(&request("CREATE", virtual_service(good()), Value::Null));
    assert!(response.allowed && response.warnings.is_none(), "{response:?}");

    let response = review(&request("CREATE", virtual_service(bad()), Value::Null));
    assert!(!response.allowed);
    let message = &response.result.message;
    assert!(
        message.starts_with("spec.http[0].timeout: duration \"5\" lacks a unit"),
        "{message}"
    );
    assert_eq!(response.result.code, 422);
}

#[test]
fn every_served_version_is_judged() {
    for version in ["v1", "v1beta1", "v1alpha3"] {
        let mut object = virtual_service(bad());
        object["apiVersion"] = json!(format!("networking.istio.io/{version}"));
        assert!(!review(&request("CREATE", object, Value::Null)).allowed, "{version}");
    }
}

#[test]
fn what_has_no_effect_is_warned_about() {
    let mut spec = good();
    spec["http"][0]["corsPolicy"] = json!({"allowOrigins": [{"exact": "*"}]});
    let response = review(&request("CREATE", virtual_service(spec), Value::Null));
    assert!(response.allowed);
    let warnings = response.warnings.unwrap();
    assert!(warnings[0].contains("corsPolicy"), "{warnings:?}");
    assert!(warnings.iter().all(|warning| warning.len() <= MAX_WARNING));
}

#[test]
fn what_is_not_ours_passes() {
    let config_map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}});
    let foreign = json!({"apiVersion": "example.org/v1", "kind": "VirtualService", "metadata": {"name": "x"}, "spec": {"hosts": 3}});
    let filter = json!({"apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter", "metadata": {"name": "x"}, "spec": {}});
    for object in [config_map, foreign, filter] {
        assert!(
            review(&request("CREATE", object.clone(), Value::Null)).allowed,
            "{object}"
        );
    }
    let mut status = request("UPDATE", virtual_service(bad()), virtual_service(good()));
    status.sub_resource = Some("status".to_owned());
    assert!(review(&status).allowed);
}

#[test]
fn objects_can_always_be_deleted() {
    let mut delete = request("DELETE", virtual_service(bad()), virtual_service(bad()));
    assert!(review(&delete).allowed);
    delete.object = None;
    assert!(review(&delete).allowed);
    let mut ending = virtual_service(bad());
    ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert!(
        review(&request("UPDATE", ending, virtual_service(good()))).allowed,
        "its finalizers have to go"
    );
}

#[test]
fn what_was_let_in_can_still_be_labelled_but_not_be_made_worse() {
    let mut labelled = virtual_service(bad());
    labelled["metadata"]["labels"] = json!({"a": "b"});
    let response = review(&request("UPDATE", labelled, virtual_service(bad())));
    assert!(response.allowed);
    assert!(response.warnings.unwrap()[0].starts_with("spec.http[0].timeout"));
    assert!(!review(&request("UPDATE", virtual_service(bad()), virtual_service(good()))).allowed);
}

#[test]
fn a_name_may_be_made_up_by_the_server() {
    let mut object = virtual_service(good());
    object["metadata"] = json!({"generateName": "x-", "namespace": "default"});
    let response = review(&request("CREATE", object, Value::Null));
    assert!(response.allowed, "{:?}", response.result);
}

#[test]
fn texts_that_yaml_would_read_otherwise_stay_texts() {
    let mut spec = good();
    spec["http"][0]["match"] =
        json!([{"headers": {"a: b # c": {"exact": "\u{7}\"'\\ \u{2028} yes"}, "on": {"exact": "null"}}}]);
    let response = review(&request("CREATE", virtual_service(spec), Value::Null));
    assert!(!response.result.message.contains("syntax"), "{:?}", response.result);
    let mut spec = good();
    spec["http"][0]["match"] = json!([{"headers": {"x-user": {"exact": "yes"}, "x-b": {"prefix": "0123"}}}]);
    assert!(review(&request("CREATE", virtual_service(spec), Value::Null)).allowed);
}

#[test]
fn answers_are_bounded() {
    let many: Vec<String> = (0..100).map(|i| format!("{i}\n{}", "é".repeat(500))).collect();
    let warnings = warnings(many.clone()).unwrap();
    assert_eq!(warnings.len(), MAX_WARNINGS + 1);
    assert!(
        warnings
            .iter()
            .all(|warning| warning.len() <= MAX_WARNING && !warning.contains('\n'))
    );
    assert_eq!(warnings[MAX_WARNINGS], "and 90 more: see meshctl analyze");
    let judgement = Judgement {
        errors: many,
        warnings: Vec::new(),
    };
    let response = answer(AdmissionResponse::invalid(""), judgement);
    assert!(response.result.message.ends_with("; and 80 more"));
}
