//! Whatever the bytes of a file, reading and judging them keeps the promises of the fuzz target.
#![cfg(feature = "crd")]

use mesh_api::fuzzing::fuzz_yaml;
use proptest::prelude::*;

/// Files that exercise much of the reader; mutations start from these.
const CORPUS: &[&str] = &[
    include_str!("policies/canary-with-port.yaml"),
    include_str!("policies/circuit-breaker.yaml"),
    include_str!("policies/authorization-read-write.yaml"),
    "%YAML 1.2\n---\na: &x [1, 2.5, ~, true, 'q', \"\\u00e9\"]\nb: *x\n...\n--- >\n folded\n text\n",
    "apiVersion: v1\nkind: List\nitems:\n- apiVersion: networking.istio.io/v1\n  kind: Sidecar\n  metadata: {name: a}\n- {}\n",
    "? complex\n: value\n- [}\n",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        fuzz_yaml(&bytes);
    }

    #[test]
    fn arbitrary_text_of_yaml_characters(text in "[-:\\[\\]{}&*!|>'\"#%@?,.~ \n\r\ta-c0-9\u{e9}\u{1f600}]{0,200}") {
        fuzz_yaml(text.as_bytes());
    }

    #[test]
    fn damaged_files(
        index in 0..CORPUS.len(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..6),
    ) {
        let mut bytes = CORPUS[index].as_bytes().to_vec();
        for (at, byte, kind) in edits {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ if bytes.len() > 1 => { bytes.remove(at); }
                _ => {}
            }
        }
        fuzz_yaml(&bytes);
    }

    #[test]
    fn truncated_files(index in 0..CORPUS.len(), cut in any::<prop::sample::Index>()) {
        let bytes = CORPUS[index].as_bytes();
        fuzz_yaml(&bytes[..cut.index(bytes.len())]);
    }
}

#[test]
fn undamaged_files() {
    CORPUS.iter().for_each(|text| fuzz_yaml(text.as_bytes()));
}
