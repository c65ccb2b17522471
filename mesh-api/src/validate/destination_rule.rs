//! DestinationRule: its host, its subsets, and where policies stand in it.

use std::collections::BTreeSet;

use super::text::{self, labels, wildcard_host};
use super::{Findings, traffic_policy};
use crate::crd::destination_rule::DestinationRuleSpec;
use crate::source::FieldPath;

pub(super) fn check(spec: &DestinationRuleSpec, at: &FieldPath, findings: &mut Findings) {
    findings.test(at.field("host"), wildcard_host(&spec.host));
    if let Some(policy) = &spec.traffic_policy {
        traffic_policy::check(policy, &at.field("trafficPolicy"), findings);
    }
    let mut names = BTreeSet::new();
    for (index, subset) in spec.subsets.iter().enumerate() {
        let at = at.field("subsets").index(index);
        findings.test(at.field("name"), text::label(&subset.name));
        if !names.insert(subset.name.as_str()) {
            findings.error(
                at.field("name"),
                "bad-value",
                format!("there is a subset {:?} already", subset.name),
            );
        }
        labels(&subset.labels, &at.field("labels"), findings);
        if let Some(policy) = &subset.traffic_policy {
            traffic_policy::check(policy, &at.field("trafficPolicy"), findings);
        }
    }
    let Some(selector) = &spec.workload_selector else {
        return;
    };
    text::selector(
        &selector.match_labels,
        &at.field("workloadSelector").field("matchLabels"),
        findings,
    );
    if spec.export_to.iter().any(|entry| entry != ".") {
        let message = "a rule with workloadSelector can only be exported to its own namespace (\".\")";
        findings.error(at.field("exportTo"), "bad-value", message);
    }
}
