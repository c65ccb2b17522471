//! DestinationRules by host.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use mesh_api::crd::destination_rule::{DestinationRuleSpec, Subset};
use mesh_api::crd::traffic_policy::TrafficPolicy;
use mesh_api::model::Labels;

use super::service::shared_labels;
use super::{Age, Export, Key, hosts, key};

/// A DestinationRule, distilled.
#[derive(Clone, Debug, PartialEq)]
pub struct DestinationRule {
    /// The object.
    pub age: Age,
    /// Host, qualified; may be a wildcard.
    pub host: Arc<str>,
    /// Policy for all of the host's traffic.
    pub policy: Option<TrafficPolicy>,
    /// Subsets.
    pub subsets: Vec<Subset>,
    /// Who sees it.
    pub export: Export,
    /// Client workloads that it is for; `None` is all.
    pub selector: Option<Labels>,
}

impl DestinationRule {
    /// Keeps of a DestinationRule what the compiler asks for.
    #[must_use]
    pub fn distil(age: Age, spec: &DestinationRuleSpec, domain: &str) -> Self {
        Self {
            host: hosts::qualify(&spec.host, &age.namespace, domain),
            policy: spec.traffic_policy.clone(),
            subsets: spec.subsets.clone(),
            export: Export::parse(&spec.export_to, &age.namespace),
            selector: spec
                .workload_selector
                .as_ref()
                .filter(|selector| !selector.match_labels.is_empty())
                .map(|selector| shared_labels(&selector.match_labels)),
            age,
        }
    }
}

/// DestinationRules with their indexes.
#[derive(Debug, Default)]
pub struct Traffic {
    hosts: HashMap<(Arc<str>, Arc<str>), Arc<str>>,
    /// By host as written, the oldest first.
    by_host: HashMap<Arc<str>, Vec<Arc<DestinationRule>>>,
}

impl Traffic {
    /// Takes in a DestinationRule.
    pub fn put(&mut self, rule: DestinationRule, touched: &mut HashSet<Key>) {
        let id = (rule.age.namespace.clone(), rule.age.name.clone());
        let list = self.hosts.get(&id).and_then(|host| self.by_host.get(host));
        if list.is_some_and(|list| list.iter().any(|old| **old == rule)) {
            return;
        }
        self.remove(&id.0, &id.1, touched);
        touched.insert(key::traffic(&rule.host));
        self.hosts.insert(id, rule.host.clone());
        let list = self.by_host.entry(rule.host.clone()).or_default();
        list.push(Arc::new(rule));
        list.sort_by(|a, b| a.age.cmp(&b.age));
    }

    /// Forgets a DestinationRule.
    pub fn remove(&mut self, namespace: &str, name: &str, touched: &mut HashSet<Key>) {
        let Some(host) = self.hosts.remove(&(namespace.into(), name.into())) else {
            return;
        };
        touched.insert(key::traffic(&host));
        if let Some(list) = self.by_host.get_mut(&host) {
            list.retain(|rule| !rule.age.is(namespace, name));
            if list.is_empty() {
                self.by_host.remove(&host);
            }
        }
    }

    /// DestinationRules of a host exactly as written, wildcards included, the oldest first. Its key is [`key::traffic`].
    #[must_use]
    pub fn rules(&self, host: &str) -> &[Arc<DestinationRule>] {
        self.by_host.get(host).map_or(&[], Vec::as_slice)
    }

    /// All of them, in no particular order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<DestinationRule>> {
        self.by_host.values().flatten()
    }
}
