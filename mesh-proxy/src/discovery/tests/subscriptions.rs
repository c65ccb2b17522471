//! How long things are held, hints of the server, and the bounds of both.

use std::time::Duration;

use super::{DESTINATION, Held, SLICE, destination, of, slice};
use crate::discovery::Limits;

#[test]
fn idle_subscriptions_end_but_not_during_an_outage() {
    let mut held = Held::new();
    for name in ["used:80", "idle:80", "nowhere:80"] {
        drop(held.ask(name));
    }
    held.told();
    held.send(
        DESTINATION,
        vec![
            destination("used.x", "1", &["used:80"], &["u"]),
            destination("idle.x", "1", &["idle:80"], &["i"]),
        ],
    );
    held.remove(DESTINATION, "nowhere:80");
    held.told();
    held.send(SLICE, vec![slice("u", "1", &[]), slice("i", "1", &[])]);
    held.told();
    held.store.disconnect("gone".into());
    held.advance(Duration::from_secs(3600));
    assert_eq!(held.store.snapshot().destinations.len(), 2, "kept, however idle");
    held.connect();
    assert!(held.version("used").is_some() && held.version("nowhere").is_some());
    held.advance(Duration::from_secs(1));
    let told = held.told();
    assert_eq!(of(DESTINATION, &told).resource_names_unsubscribe, ["idle:80"]);
    assert_eq!(of(SLICE, &told).resource_names_unsubscribe, ["i"]);
    assert_eq!(held.version("idle"), None);
    held.advance(Duration::from_secs(599));
    assert!(held.version("used").is_some());
}

#[test]
fn hints_are_held_without_asking_while_a_replica_uses_them() {
    let mut held = Held::new();
    held.send(DESTINATION, vec![destination("h.x", "1", &["h:80"], &["s"])]);
    assert_eq!(of(SLICE, &held.told()).resource_names_subscribe, ["s"]);
    held.send(SLICE, vec![slice("s", "1", &[])]);
    held.told();
    held.advance(Duration::from_secs(3600));
    assert!(held.told().is_empty(), "hints do not end by themselves");

    held.remove(DESTINATION, "h:80");
    assert!(
        held.directory.get("h", 80).is_none(),
        "forgotten, and not said to be outside"
    );
    assert_eq!(of(SLICE, &held.told()).resource_names_unsubscribe, ["s"]);

    held.send(DESTINATION, vec![destination("h.x", "1", &["h:80"], &[])]);
    held.told();
    assert!(held.version("h").is_some());
    held.remove(DESTINATION, "h:80");
    assert!(held.version("h").is_some(), "used: our own question now");
    assert_eq!(of(DESTINATION, &held.told()).resource_names_subscribe, ["h:80"]);
    held.remove(DESTINATION, "h:80");
    assert_eq!(held.version("h"), Some("not in mesh".into()));
}

#[test]
fn a_used_hint_becomes_a_subscription() {
    let mut held = Held::new();
    held.send(DESTINATION, vec![destination("h.x", "1", &["h:80"], &[])]);
    held.told();
    assert!(held.version("h").is_some());
    held.advance(Duration::from_secs(1));
    assert_eq!(of(DESTINATION, &held.told()).resource_names_subscribe, ["h:80"]);
}

#[test]
fn what_was_sent_before_the_server_knew_is_ignored() {
    let mut held = Held::new();
    drop(held.ask("a:80"));
    held.told();
    held.send(DESTINATION, vec![destination("a.x", "1", &["a:80"], &[])]);
    held.told();
    held.advance(Duration::from_secs(601));
    assert_eq!(of(DESTINATION, &held.told()).resource_names_unsubscribe, ["a:80"]);
    held.response(DESTINATION, vec![destination("a.x", "2", &["a:80"], &[])], &[], 1);
    assert!(
        held.directory.get("a", 80).is_none(),
        "an update that crossed our farewell is no hint"
    );
    held.send(DESTINATION, vec![destination("a.x", "2", &["a:80"], &[])]);
    assert_eq!(held.version("a"), Some("2".into()), "a hint is");
}

#[test]
fn subscriptions_are_bounded() {
    let limits = Limits {
        subscriptions: 32,
        not_in_mesh: 8,
        ..Limits::default()
    };
    let mut held = Held::with(limits);
    drop(held.ask("kept:80"));
    held.told();
    held.send(DESTINATION, vec![destination("kept.x", "1", &["kept:80"], &[])]);
    for i in 0..100 {
        let name = format!("nowhere-{i}:80");
        drop(held.ask(&name));
        held.told();
        held.remove(DESTINATION, &name);
        assert!(held.store.snapshot().not_in_mesh.len() <= 8);
    }
    for i in 0..100 {
        held.advance(Duration::from_millis(1));
        let (name, alias) = (format!("a{i}.x"), format!("a{i}:80"));
        drop(held.ask(&alias));
        held.told();
        held.send(DESTINATION, vec![destination(&name, "1", &[&alias], &[])]);
        assert!(held.version("kept").is_some(), "used all the time");
        assert!(held.store.snapshot().destinations.len() <= 32);
    }
    assert!(held.directory.get("a0", 80).is_none());
    held.store.disconnect("gone".into());
    for i in 0..100 {
        drop(held.ask(&format!("outage-{i}:80")));
    }
    assert!(
        held.version("a99").is_some() && held.version("kept").is_some(),
        "nothing known is given up in an outage"
    );
    assert!(held.store.snapshot().waiting.len() <= 32);
}

#[test]
fn a_hint_beyond_the_bound_is_refused() {
    let limits = Limits {
        subscriptions: 1,
        ..Limits::default()
    };
    let mut held = Held::with(limits);
    drop(held.ask("a:80"));
    held.told();
    held.send(
        DESTINATION,
        vec![
            destination("a.x", "1", &["a:80"], &[]),
            destination("h.x", "1", &["h:80"], &["s"]),
        ],
    );
    let told = held.told();
    assert_eq!(of(DESTINATION, &told).resource_names_unsubscribe, ["h:80"]);
    assert!(told.iter().all(|request| request.type_url != SLICE.type_url()));
}
