//! Merges metrics: Prometheus scrapes the proxy on 15020, and the proxy scrapes the application within the pod, so that
//! both come from one address and strict mutual TLS does not keep Prometheus out.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::names::STATUS_PORT;

const SCRAPE: &str = "prometheus.io/scrape";
const PORT: &str = "prometheus.io/port";
const PATH: &str = "prometheus.io/path";
const SCHEME: &str = "prometheus.io/scheme";
/// Where the merged metrics are.
const MERGED_PATH: &str = "/stats/prometheus";

/// Points the pod's annotations to the proxy. Returns what they said of the application, as the proxy reads it; none
/// when the application said nothing.
pub fn merge(annotations: &mut BTreeMap<String, String>, warnings: &mut Vec<String>) -> Option<String> {
    let own_port = STATUS_PORT.to_string();
    let get = |name: &str| annotations.get(name).filter(|value| !value.is_empty()).cloned();
    if get(SCRAPE).is_some_and(|scrape| !scrape.eq_ignore_ascii_case("true")) || get(PORT).as_ref() == Some(&own_port) {
        return None;
    }
    if get(SCHEME).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")) {
        warnings.push(format!(
            "metrics are not merged: annotation {SCHEME} is https; Prometheus goes on scraping the application"
        ));
        return None;
    }
    let said: Map<String, Value> = [("scrape", SCRAPE), ("port", PORT), ("path", PATH)]
        .iter()
        .filter_map(|(key, name)| Some(((*key).to_owned(), get(name)?.into())))
        .collect();
    annotations.insert(SCRAPE.to_owned(), "true".to_owned());
    annotations.insert(PORT.to_owned(), own_port);
    annotations.insert(PATH.to_owned(), MERGED_PATH.to_owned());
    (!said.is_empty()).then(|| Value::Object(said).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(pairs: &[(&str, &str)]) -> (BTreeMap<String, String>, Option<String>) {
        let mut annotations = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let said = merge(&mut annotations, &mut Vec::new());
        (annotations, said)
    }

    #[test]
    fn annotations_point_to_the_proxy() {
        let merged_annotations = merged(&[]).0;
        assert_eq!(merged_annotations[PORT], "15020");
        assert_eq!(merged_annotations[PATH], "/stats/prometheus");
        assert_eq!(merged_annotations[SCRAPE], "true");
        for (pairs, said) in [
            (&[][..], None),
            (
                &[(SCRAPE, "true"), (PORT, "8080"), (PATH, "/m")][..],
                Some(r#"{"scrape":"true","port":"8080","path":"/m"}"#),
            ),
            (&[(PORT, "8080")][..], Some(r#"{"port":"8080"}"#)),
        ] {
            let (annotations, value) = merged(pairs);
            assert_eq!(annotations, merged_annotations, "{pairs:?}");
            assert_eq!(value.as_deref(), said, "{pairs:?}");
        }
    }

    #[test]
    fn annotations_that_stay() {
        for pairs in [
            &[(SCRAPE, "false")][..],
            &[(PORT, "15020"), (SCRAPE, "true")][..],
            &[(SCHEME, "https"), (SCRAPE, "true")][..],
        ] {
            let (annotations, said) = merged(pairs);
            assert_eq!(annotations.len(), pairs.len());
            assert_eq!(said, None);
        }
    }
}
