//! Destinations and their endpoints: what is visible when, and what is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{DESTINATION, Held, SLICE, destination, garbage, of, slice};
use crate::directory::{Known, Lookup};

#[test]
fn a_destination_is_visible_when_its_endpoints_have_come() {
    let mut held = Held::new();
    let mut answer = held.ask("a:80");
    assert_eq!(of(DESTINATION, &held.told()).resource_names_subscribe, ["a:80"]);
    held.send(
        DESTINATION,
        vec![destination("a.x", "1", &["a:80"], &["a.x:80/0", "a.x:80/1"])],
    );
    assert_eq!(
        of(SLICE, &held.told()).resource_names_subscribe,
        ["a.x:80/0", "a.x:80/1"]
    );
    held.send(SLICE, vec![slice("a.x:80/0", "1", &["127.7.0.1"])]);
    assert_eq!(held.version("a"), None);
    assert!(answer.try_recv().is_err());
    held.remove(SLICE, "a.x:80/1");
    assert_eq!(held.version("A."), Some("1".into()));
    let Ok(Lookup::Found(found)) = answer.try_recv() else {
        panic!("not found");
    };
    assert_eq!(found.clusters[0].endpoints().len(), 1);

    // A new version with a slice that is not here: the old one stays until then.
    held.send(
        DESTINATION,
        vec![destination("a.x", "2", &["a:80"], &["a.x:80/0", "a.x:80/2"])],
    );
    assert_eq!(held.version("a"), Some("1".into()));
    let told = held.told();
    assert_eq!(of(SLICE, &told).resource_names_subscribe, ["a.x:80/2"]);
    assert!(of(SLICE, &told).resource_names_unsubscribe.is_empty());
    held.send(SLICE, vec![slice("a.x:80/2", "1", &["127.7.0.3", "127.7.0.4"])]);
    assert_eq!(held.version("a"), Some("2".into()));
    assert_eq!(of(SLICE, &held.told()).resource_names_unsubscribe, ["a.x:80/1"]);
}

#[test]
fn endpoints_reach_the_clusters_in_force() {
    let mut held = Held::new();
    drop(held.ask("a:80"));
    held.told();
    held.send(DESTINATION, vec![destination("a.x", "1", &["a:80"], &["s"])]);
    held.told();
    held.send(SLICE, vec![slice("s", "1", &["127.7.0.1"])]);
    let Some(Known::In(before)) = held.directory.get("a", 80) else {
        panic!("not there");
    };
    held.send(SLICE, vec![slice("s", "2", &["127.7.0.1", "127.7.0.2"])]);
    assert_eq!(before.clusters[0].endpoints().len(), 2);
}

#[test]
fn what_does_not_decode_is_refused_by_name_and_the_last_good_stays() {
    let mut held = Held::new();
    drop(held.ask("a:80"));
    drop(held.ask("b:80"));
    held.told();
    held.send(DESTINATION, vec![destination("a.x", "1", &["a:80"], &[])]);
    assert_eq!(of(DESTINATION, &held.told()).error_detail, None);
    held.send(
        DESTINATION,
        vec![
            garbage(DESTINATION, "a.x:80@v", &["a:80"]),
            destination("b.x", "1", &["b:80"], &[]),
        ],
    );
    let told = held.told();
    let error = of(DESTINATION, &told).error_detail.clone().unwrap();
    assert!(error.message.starts_with("a.x:80@v: "), "{}", error.message);
    assert_eq!(of(DESTINATION, &told).response_nonce, "n");
    assert_eq!(
        (held.version("a"), held.version("b")),
        (Some("1".into()), Some("1".into()))
    );
    assert_eq!(
        held.directory.snapshot().rejected.len(),
        0,
        "no client is attached in this test"
    );
    assert_eq!(held.store.snapshot().rejected.len(), 1);
    held.send(DESTINATION, vec![destination("a.x", "2", &["a:80"], &[])]);
    assert!(held.store.snapshot().rejected.is_empty());
    assert_eq!(held.version("a"), Some("2".into()));
}

#[test]
fn unknown_is_not_in_mesh_until_the_name_appears() {
    let mut held = Held::new();
    let mut answer = held.ask("later:80");
    held.told();
    held.remove(DESTINATION, "later:80");
    assert!(matches!(answer.try_recv(), Ok(Lookup::NotInMesh)));
    assert_eq!(held.version("later"), Some("not in mesh".into()));
    held.send(DESTINATION, vec![destination("later.x", "1", &["later:80"], &[])]);
    assert_eq!(held.version("later"), Some("1".into()));
    held.remove(DESTINATION, "later:80");
    assert_eq!(held.version("later"), Some("not in mesh".into()));
}

#[test]
fn names_share_a_destination_and_may_move_to_another() {
    let mut held = Held::new();
    drop(held.ask("a:80"));
    drop(held.ask("a.default:80"));
    held.told();
    held.send(
        DESTINATION,
        vec![destination("a.x", "1", &["a:80", "a.default:80"], &["s"])],
    );
    held.told();
    held.send(SLICE, vec![slice("s", "1", &[])]);
    let (Some(Known::In(one)), Some(Known::In(other))) =
        (held.directory.get("a", 80), held.directory.get("a.default", 80))
    else {
        panic!("not there");
    };
    assert!(Arc::ptr_eq(&one, &other));
    held.send(
        DESTINATION,
        vec![destination("b.x", "9", &["a:80", "a.default:80"], &[])],
    );
    assert_eq!(held.version("a"), Some("9".into()));
    assert_eq!(
        of(SLICE, &held.told()).resource_names_unsubscribe,
        ["s"],
        "nothing leads to a.x any longer"
    );
}

#[test]
fn a_new_stream_says_what_is_held() {
    let mut held = Held::new();
    drop(held.ask("a:80"));
    drop(held.ask("b:80"));
    held.told();
    held.send(
        DESTINATION,
        vec![
            destination("a.x", "1", &["a:80"], &["s"]),
            destination("hint.x", "4", &["hint:80"], &[]),
        ],
    );
    held.told();
    held.send(SLICE, vec![slice("s", "7", &[])]);
    held.store.disconnect("gone".into());
    assert_eq!(held.version("a"), Some("1".into()), "answers stay in force");
    drop(held.ask("c:80"));
    let told = held.connect();
    let request = of(DESTINATION, &told);
    assert_eq!(request.resource_names_subscribe, ["a:80", "b:80", "c:80", "hint:80"]);
    let held_versions: BTreeMap<_, _> = request.initial_resource_versions.iter().collect();
    let expected = [
        ("a:80".to_owned(), "1".to_owned()),
        ("hint:80".to_owned(), "4".to_owned()),
    ];
    assert_eq!(
        held_versions,
        expected.iter().map(|(name, version)| (name, version)).collect()
    );
    assert_eq!(of(SLICE, &told).initial_resource_versions["s"], "7");
}
