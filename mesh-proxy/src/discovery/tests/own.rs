//! What a proxy always holds: the mesh's settings, its own policy, and who its peers are.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_api::model::{self, MeshSettings};
use mesh_api::wire::{self, ResourceType};

use super::{DESTINATION, Held, garbage, of, resource, settings};
use crate::directory::Question;

#[test]
fn a_stream_begins_with_settings_own_policy_and_hints() {
    let mut held = Held::new();
    let told = held.connect();
    assert_eq!(of(ResourceType::Mesh, &told).resource_names_subscribe, ["mesh"]);
    assert_eq!(
        of(ResourceType::Inbound, &told).resource_names_subscribe,
        ["client.default"]
    );
    assert!(of(DESTINATION, &told).resource_names_subscribe.is_empty());
}

#[test]
fn inbound_is_closed_until_it_is_there_and_when_it_is_gone() {
    let mut held = Held::new();
    let changed = held.directory.changed();
    let inbound = model::Inbound {
        workload: Arc::default(),
        ports: vec![],
        default_mtls: model::MtlsMode::Strict,
        authorization: vec![],
    };
    held.send(
        ResourceType::Inbound,
        vec![garbage(ResourceType::Inbound, "client.default", &[])],
    );
    assert!(held.directory.inbound().is_none());
    let bytes = wire::encode_inbound(&inbound);
    let other = resource(ResourceType::Inbound, "other.default", "1", &[], bytes.clone());
    held.send(ResourceType::Inbound, vec![other]);
    assert!(held.directory.inbound().is_none(), "of another workload");
    let own = resource(ResourceType::Inbound, "client.default", "1", &[], bytes);
    held.send(ResourceType::Inbound, vec![own]);
    assert_eq!(held.directory.inbound().as_deref(), Some(&inbound));
    assert!(changed.has_changed().unwrap());
    held.store.disconnect("away".into());
    assert!(held.directory.inbound().is_some());
    held.connect();
    held.remove(ResourceType::Inbound, "client.default");
    assert!(held.directory.inbound().is_none());
}

#[test]
fn peers_are_known_after_the_first_question() {
    let mut held = Held::new();
    let address: IpAddr = "127.7.0.1".parse().unwrap();
    held.store.question(Question::Peer(address));
    held.store.question(Question::Peer(address));
    assert_eq!(
        of(ResourceType::Workload, &held.told()).resource_names_subscribe,
        ["127.7.0.1"]
    );
    let workload = model::Workload {
        name: "reviews-v1".into(),
        ..model::Workload::default()
    };
    let bytes = wire::encode_workload(&workload);
    held.send(
        ResourceType::Workload,
        vec![resource(ResourceType::Workload, "127.7.0.1", "1", &[], bytes)],
    );
    assert_eq!(
        held.directory.peer("::ffff:127.7.0.1".parse().unwrap()).as_deref(),
        Some(&workload)
    );
    held.told();
    held.remove(ResourceType::Workload, "127.7.0.1");
    assert_eq!(held.directory.peer(address), None);
    held.told();
    held.advance(Duration::from_secs(601));
    held.advance(Duration::from_secs(601));
    assert_eq!(
        of(ResourceType::Workload, &held.told()).resource_names_unsubscribe,
        ["127.7.0.1"]
    );
}

#[test]
fn settings_are_never_taken_away() {
    let mut held = Held::new();
    let bytes = wire::encode_mesh(&settings());
    held.send(
        ResourceType::Mesh,
        vec![resource(ResourceType::Mesh, "mesh", "1", &[], bytes)],
    );
    held.remove(ResourceType::Mesh, "mesh");
    assert_eq!(held.directory.settings().as_deref(), Some(&settings()));
}

#[test]
fn settings_that_cannot_be_in_force_are_refused() {
    let mesh = |version: &str, policy| {
        let settings = MeshSettings {
            outbound_policy: policy,
            ..settings()
        };
        let bytes = wire::encode_mesh(&settings);
        vec![resource(ResourceType::Mesh, "mesh", version, &[], bytes)]
    };
    let (wrong, right) = (model::OutboundPolicy::RegistryOnly, model::OutboundPolicy::AllowAny);
    let take = move |settings: &MeshSettings| match settings.outbound_policy == wrong {
        true => Err("it cannot be".to_owned()),
        false => Ok(()),
    };
    let mut held = Held::new();
    held.store.set_take_settings(Box::new(take));
    let refused = |held: &mut Held| {
        let told = held.told();
        let error = of(ResourceType::Mesh, &told).error_detail.clone();
        error.map(|error| error.message)
    };
    let policy = |held: &Held| held.directory.settings().unwrap().outbound_policy;

    held.send(ResourceType::Mesh, mesh("1", wrong));
    assert_eq!(refused(&mut held).as_deref(), Some("mesh: it cannot be"));
    assert_eq!(
        policy(&held),
        wrong,
        "without any settings, these are in force as far as they can"
    );
    held.send(ResourceType::Mesh, mesh("2", right));
    assert_eq!(refused(&mut held), None);
    held.send(ResourceType::Mesh, mesh("3", wrong));
    assert_eq!(refused(&mut held).as_deref(), Some("mesh: it cannot be"));
    assert_eq!(policy(&held), right, "the last good ones stay");
}
