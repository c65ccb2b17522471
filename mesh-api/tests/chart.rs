//! The chart carries the policy kinds exactly as they are generated.

#![cfg(feature = "crd")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use mesh_api::crd::Kind;
use mesh_api::crd::definition::{file_name, text};

#[test]
fn files_are_what_the_generator_prints() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/mesh/files/crds");
    let mut expected = BTreeSet::new();
    for kind in Kind::ALL {
        let name = file_name(*kind);
        let file = fs::read_to_string(directory.join(&name)).unwrap_or_default();
        assert!(
            file == text(*kind).unwrap(),
            "charts/mesh/files/crds/{name} is out of date; \
             run: cargo run -p mesh-api --features crd --bin mesh-crds -- --write charts/mesh/files/crds"
        );
        expected.insert(name);
    }
    let files: BTreeSet<String> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(files, expected);
}
