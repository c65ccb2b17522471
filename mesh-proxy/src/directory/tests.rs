//! How long lookups wait, and what they answer without an answer.

use mesh_api::identity::TrustDomain;
use mesh_api::model::{OutboundPolicy, Owned};
use tokio::time::Instant;

use super::*;

fn settings() -> Arc<MeshSettings> {
    Arc::new(MeshSettings {
        trust_domain: TrustDomain::cluster_local(),
        trust_domain_aliases: vec![],
        owned: Owned {
            ranges: vec!["127.7.0.0/16".parse().unwrap()],
            host_suffixes: vec!["cluster.local".into()],
            short_names: true,
        },
        outbound_policy: OutboundPolicy::AllowAny,
        access_log: None,
        tracing: None,
    })
}

/// Lookups while nobody answers: (host or address, with settings, seconds, whether it is outside).
#[tokio::test(start_paused = true)]
async fn waits_without_an_answer() {
    for (host, with_settings, seconds, outside) in [
        ("reviews.default.svc.cluster.local", true, 5, false),
        ("Reviews", true, 5, false),
        ("example.com", true, 1, true),
        ("127.7.0.1", true, 5, false),
        ("192.0.2.1", true, 1, true),
        ("example.com", false, 5, false),
        ("no host at all", true, 0, true),
    ] {
        let (directory, _questions) = Directory::new();
        if with_settings {
            directory.publish_settings(settings());
        }
        let started = Instant::now();
        let outcome = directory.lookup(host, 80).await;
        assert_eq!(started.elapsed().as_secs(), seconds, "{host}");
        assert_eq!(matches!(outcome, Lookup::NotInMesh), outside, "{host}");
        assert_eq!(matches!(outcome, Lookup::Unavailable), !outside, "{host}");
    }
}

#[tokio::test(start_paused = true)]
async fn addresses_outside_are_outside_at_once() {
    let (directory, _questions) = Directory::new();
    directory.publish_settings(settings());
    let started = Instant::now();
    let outside = directory.lookup_address("192.0.2.1".parse().unwrap(), 80).await;
    assert!(matches!(outside, Lookup::NotInMesh));
    assert_eq!(started.elapsed().as_secs(), 0);
    let inside = directory.lookup_address("::ffff:127.7.0.1".parse().unwrap(), 80).await;
    assert!(matches!(inside, Lookup::Unavailable));
    assert_eq!(started.elapsed().as_secs(), 5);
}

#[tokio::test]
async fn strangers_addresses_are_not_asked_for() {
    let (directory, mut questions) = Directory::new();
    directory.publish_settings(settings());
    assert_eq!(directory.peer("192.0.2.1".parse().unwrap()), None);
    assert_eq!(directory.peer("127.7.0.1".parse().unwrap()), None);
    let asked = questions.0.try_recv();
    assert!(matches!(asked, Ok(Question::Peer(address)) if address.to_string() == "127.7.0.1"));
    assert!(questions.0.try_recv().is_err());
}

#[tokio::test]
async fn without_a_client_nothing_waits() {
    let (directory, questions) = Directory::new();
    drop(questions);
    assert!(matches!(directory.lookup("reviews", 80).await, Lookup::Unavailable));
}
