use std::sync::Arc;

use mesh_api::crd::ObjectRef;
use mesh_api::source::FieldPath;

use super::*;

const NOW: &str = "2026-01-02T03:04:05Z";

fn finding(severity: Severity, code: &'static str, field: &str, text: &str) -> Diagnostic {
    Diagnostic {
        severity,
        file: "cluster".into(),
        line: 0,
        column: 0,
        field: if field.is_empty() {
            FieldPath::root()
        } else {
            FieldPath::new(field)
        },
        object: None,
        code,
        message: text.to_owned(),
    }
}

fn object(acceptance: Acceptance, findings: Vec<Diagnostic>) -> PolicyObject {
    PolicyObject {
        reference: ObjectRef {
            kind: Kind::VirtualService,
            namespace: "default".to_owned(),
            name: "reviews".to_owned(),
        },
        api_version: "networking.istio.io/v1".into(),
        uid: Arc::from("uid-1"),
        generation: 3,
        acceptance,
        findings,
    }
}

fn count(programmed: u32, holding: u32) -> Count {
    Count { holding, programmed }
}

fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    status["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|condition| condition["type"] == kind)
}

fn written(object: &PolicyObject, count: &Count) -> Value {
    merged(&Value::Null, &wanted(object, count, Map::new()), NOW.parse().unwrap())
}

#[test]
fn accepted_or_why_not() {
    let warning = || finding(Severity::Warning, "no-effect", "spec.tcp", "has no effect");
    let error = || finding(Severity::Error, "bad-value", "spec.http[0].timeout", "lacks a unit");
    for (acceptance, findings, expected) in [
        (Acceptance::InForce, vec![], ["True", "Accepted", "in force"]),
        (
            Acceptance::InForce,
            vec![warning()],
            ["True", "AcceptedWithWarnings", "in force; spec.tcp: has no effect"],
        ),
        (
            Acceptance::InForce,
            vec![error(), warning()],
            [
                "False",
                "FaultyRulesDeny",
                "in force, and what is faulty in it denies; spec.http[0].timeout: lacks a unit",
            ],
        ),
        (
            Acceptance::LastGood,
            vec![error()],
            [
                "False",
                "Invalid",
                "its last good version stays in force; spec.http[0].timeout: lacks a unit",
            ],
        ),
        (
            Acceptance::Refused,
            vec![error(); 7],
            [
                "False",
                "Invalid",
                "not in force; spec.http[0].timeout: lacks a unit; spec.http[0].timeout: lacks a unit; \
                 spec.http[0].timeout: lacks a unit; spec.http[0].timeout: lacks a unit; \
                 spec.http[0].timeout: lacks a unit; and 2 more",
            ],
        ),
        (
            Acceptance::Denies,
            vec![error()],
            [
                "False",
                "Invalid",
                "what it selects is denied until it is right; spec.http[0].timeout: lacks a unit",
            ],
        ),
    ] {
        let status = written(&object(acceptance, findings), &Count::default());
        let accepted = condition(&status, "Accepted").unwrap();
        let found = ["status", "reason", "message"].map(|field| accepted[field].as_str().unwrap().to_owned());
        assert_eq!(found, expected);
        assert_eq!(accepted["observedGeneration"], 3);
        assert_eq!(accepted["lastTransitionTime"], NOW);
        assert_eq!(status["observedGeneration"], 3);
    }
}

#[test]
fn programmed_on_n_of_m() {
    for (acceptance, count, expected) in [
        (
            Acceptance::InForce,
            count(0, 0),
            ["False", "NotInUse", "programmed on 0 of 0 proxies: no"],
        ),
        (
            Acceptance::InForce,
            count(2, 2),
            ["True", "Programmed", "programmed on 2 of 2 proxies"],
        ),
        (
            Acceptance::InForce,
            count(1, 2),
            ["False", "Pending", "programmed on 1 of 2 proxies"],
        ),
        (
            Acceptance::LastGood,
            count(1, 2),
            ["False", "Pending", "programmed on 1 of 2 proxies"],
        ),
        (
            Acceptance::Refused,
            count(0, 0),
            ["False", "NotAccepted", "it is not accepted"],
        ),
    ] {
        let status = written(&object(acceptance, vec![]), &count);
        let programmed = condition(&status, "Programmed").unwrap();
        assert_eq!(programmed["status"], expected[0]);
        assert_eq!(programmed["reason"], expected[1]);
        assert!(
            programmed["message"].as_str().unwrap().starts_with(expected[2]),
            "{programmed}"
        );
    }
}

#[test]
fn conflicts_are_a_condition_of_their_own_while_there_are_any() {
    let conflict = finding(
        Severity::Warning,
        "conflict",
        "spec.hosts[0]",
        "default/older has this host",
    );
    let status = written(&object(Acceptance::InForce, vec![conflict]), &Count::default());
    assert_eq!(condition(&status, "Accepted").unwrap()["reason"], "Accepted");
    let conflicted = condition(&status, "Conflicted").unwrap();
    assert_eq!(conflicted["status"], "True");
    assert_eq!(conflicted["message"], "spec.hosts[0]: default/older has this host");
    assert_eq!(
        status["validationMessages"],
        json!([{ "level": "WARNING", "type": { "name": "conflict", "code": "conflict" } }])
    );
    let later = merged(
        &status,
        &wanted(&object(Acceptance::InForce, vec![]), &Count::default(), Map::new()),
        NOW.parse().unwrap(),
    );
    assert_eq!(condition(&later, "Conflicted"), None);
    assert_eq!(later["validationMessages"], json!([]));
}

#[test]
fn what_others_say_stays_and_times_tell_of_changes_only() {
    let present = json!({
        "conditions": [
            { "type": "Reconciled", "status": "True", "reason": "istiod" },
            { "type": "Accepted", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z" },
            { "type": "Programmed", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z" },
        ],
        "validationMessages": [
            { "level": "INFO", "type": { "code": "IST0101" } },
            { "level": "ERROR", "type": { "code": "bad-value" } },
        ],
        "other": 1,
    });
    let wanted = wanted(&object(Acceptance::InForce, vec![]), &count(0, 1), Map::new());
    let status = merged(&present, &wanted, NOW.parse().unwrap());
    assert_eq!(condition(&status, "Reconciled").unwrap()["reason"], "istiod");
    assert_eq!(
        condition(&status, "Accepted").unwrap()["lastTransitionTime"],
        "2020-01-01T00:00:00Z"
    );
    assert_eq!(condition(&status, "Programmed").unwrap()["lastTransitionTime"], NOW);
    assert_eq!(
        status["validationMessages"],
        json!([{ "level": "INFO", "type": { "code": "IST0101" } }])
    );
    assert_eq!(status["other"], 1);
    let again = merged(&status, &wanted, "2030-01-01T00:00:00Z".parse().unwrap());
    assert_eq!(again, status, "nothing has changed, so nothing is written");
}

#[test]
fn a_mesh_config_shows_the_mesh() {
    let facts = MeshFacts {
        mtls_mode: "STRICT",
        trust_domain: "cluster.local".to_owned(),
        versions: vec!["0.1.0".to_owned(), "0.1.1".to_owned()],
        proxies: 3,
        in_sync: 2,
    };
    assert_eq!(facts.fields(Kind::VirtualService), Map::new());
    let wanted = wanted(
        &object(Acceptance::InForce, vec![]),
        &Count::default(),
        facts.fields(Kind::MeshConfig),
    );
    let status = merged(&Value::Null, &wanted, NOW.parse().unwrap());
    assert_eq!(status["mtlsMode"], "STRICT");
    assert_eq!(status["trustDomain"], "cluster.local");
    assert_eq!(status["controlPlaneVersion"], "0.1.0, 0.1.1");
    assert_eq!(status["proxiesInSync"], "2/3");
    let typed: mesh_api::crd::mesh_config::MeshConfigStatus = serde_json::from_value(status).unwrap();
    assert_eq!(typed.proxies_in_sync.as_deref(), Some("2/3"));
}

#[test]
fn messages_are_bounded() {
    let long = finding(Severity::Error, "bad-value", "", &"é".repeat(10_000));
    let status = written(&object(Acceptance::Refused, vec![long]), &Count::default());
    let message = condition(&status, "Accepted").unwrap()["message"].as_str().unwrap();
    assert!(message.len() <= MAX_MESSAGE, "{}", message.len());
}
