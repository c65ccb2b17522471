use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tonic::Code;

use super::*;
use crate::kube::fake::FakeApi;

fn token(expires: SystemTime) -> String {
    let exp = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let payload = URL_SAFE_NO_PAD.encode(json!({ "exp": exp, "sub": "x" }).to_string());
    format!("e30.{payload}.c2ln")
}

fn reviewer(api: &FakeApi, audiences: &[&str]) -> TokenReviewer {
    let audiences = audiences.iter().map(|audience| (*audience).to_owned()).collect();
    TokenReviewer::new(api.client(), audiences, TrustDomain::cluster_local())
}

/// One row per answer of the API server.
#[tokio::test]
async fn answers_of_the_api_server() {
    let good = "system:serviceaccount:default:orders";
    let identity = "spiffe://cluster.local/ns/default/sa/orders";
    let rows = [
        (
            json!({ "authenticated": true, "audiences": ["mesh-ca"], "user": { "username": good } }),
            Ok(identity),
        ),
        (
            json!({ "authenticated": true, "audiences": ["other", "istio-ca"], "user": { "username": good } }),
            Ok(identity),
        ),
        (
            json!({ "authenticated": true, "audiences": ["other"], "user": { "username": good } }),
            Err("its audience must be one of mesh-ca, istio-ca"),
        ),
        // An API server that does not look at audiences.
        (
            json!({ "authenticated": true, "user": { "username": good } }),
            Err("audience"),
        ),
        (
            json!({ "authenticated": false, "error": "token has expired" }),
            Err("token has expired"),
        ),
        (json!({ "authenticated": false }), Err("no reason given")),
        (json!({}), Err("does not know")),
        (
            json!({ "authenticated": true, "audiences": ["mesh-ca"], "user": { "username": "admin" } }),
            Err("`admin`, which is no service account"),
        ),
        (
            json!({ "authenticated": true, "audiences": ["mesh-ca"], "user": { "username": "system:serviceaccount:x" } }),
            Err("no service account"),
        ),
        (
            json!({ "authenticated": true, "audiences": ["mesh-ca"], "user": { "username": "system:serviceaccount:a:b:c" } }),
            Err("makes no identity"),
        ),
        (
            json!({ "authenticated": true, "audiences": ["mesh-ca"] }),
            Err("no service account"),
        ),
    ];
    for (answer, expected) in rows {
        let api = FakeApi::new();
        let status = answer.clone();
        api.on_post(
            "authentication.k8s.io/tokenreviews",
            move |_| json!({ "spec": {}, "status": status }),
        );
        let outcome = reviewer(&api, &["mesh-ca", "istio-ca"]).review("a.b.c").await;
        match (outcome, expected) {
            (Ok(account), Ok(identity)) => assert_eq!(account.identity.as_str(), identity),
            (Err(status), Err(says)) => {
                assert_eq!(status.code(), Code::Unauthenticated, "{answer}");
                assert!(status.message().contains(says), "{answer}: {status}");
            }
            (outcome, expected) => panic!("{answer}: {outcome:?}, expected {expected:?}"),
        }
    }
}

/// An API server that vouches for every token, counts the questions, and keeps the last.
fn vouching() -> (FakeApi, Arc<AtomicUsize>, Arc<Mutex<Value>>) {
    let (api, asked, last) = (
        FakeApi::new(),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(Mutex::new(Value::Null)),
    );
    let (count, keep) = (asked.clone(), last.clone());
    api.on_post("authentication.k8s.io/tokenreviews", move |review| {
        count.fetch_add(1, Ordering::Relaxed);
        *keep.lock().unwrap() = review.clone();
        let user = json!({ "username": "system:serviceaccount:default:orders" });
        json!({ "spec": {}, "status": { "authenticated": true, "audiences": ["mesh-ca"], "user": user } })
    });
    (api, asked, last)
}

#[tokio::test]
async fn the_question_names_audiences_and_the_answer_ends_with_the_token() {
    let (api, _, last) = vouching();
    let ends = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
    let token = token(ends);
    let account = reviewer(&api, &["mesh-ca", "istio-ca"]).review(&token).await.unwrap();
    assert_eq!(account.expires, ends);
    let review = last.lock().unwrap().clone();
    assert_eq!(
        review["spec"],
        json!({ "audiences": ["mesh-ca", "istio-ca"], "token": token })
    );
}

#[tokio::test]
async fn answers_are_kept_for_a_while_but_not_beyond_the_token() {
    let (api, asked, _) = vouching();
    let reviewer = reviewer(&api, &["mesh-ca"]);
    let long = token(SystemTime::now() + Duration::from_secs(3600));
    for _ in 0..3 {
        reviewer.review(&long).await.unwrap();
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    let over = token(SystemTime::now() - Duration::from_secs(1));
    for _ in 0..2 {
        reviewer.review(&over).await.unwrap();
    }
    assert_eq!(asked.load(Ordering::Relaxed), 3, "the API server decides each time");
}

#[tokio::test]
async fn what_is_kept_is_bounded() {
    let (api, asked, _) = vouching();
    let reviewer = reviewer(&api, &["mesh-ca"]);
    for number in 0..=MAX_KEPT {
        reviewer.review(&format!("token-{number}")).await.unwrap();
    }
    assert_eq!(asked.load(Ordering::Relaxed), MAX_KEPT + 1);
    assert!(reviewer.kept.lock().unwrap().len() <= MAX_KEPT);
}

#[tokio::test]
async fn nobody_is_let_in_while_the_api_server_cannot_be_asked() {
    let (api, _, _) = vouching();
    let reviewer = reviewer(&api, &["mesh-ca"]);
    reviewer.review("known").await.unwrap();

    api.set_away(true);
    let status = reviewer.review("unknown").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    reviewer.review("known").await.unwrap();

    api.set_away(false);
    api.forbid("POST /apis/authentication.k8s.io");
    let status = reviewer.review("unknown").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");

    let status = reviewer.review(&"x".repeat(MAX_TOKEN + 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
}
