//! Which DestinationRules hold for a host and client, and what they say together.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_api::crd::destination_rule::Subset;
use mesh_api::crd::traffic_policy::{
    ClientTls, ConnectionPool, LoadBalancer, OutlierDetection, PortTrafficPolicy, RetryBudget, RetryPolicy,
    TimeoutPolicy, TrafficPolicy,
};
use mesh_api::names::ObjectRef;

use super::Reader;
use crate::world::{DestinationRule, Export, hosts, key};

/// The rules for a host, merged: each block from the oldest rule that sets it.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Vec<Arc<DestinationRule>>,
}

/// What holds for one port of a host or subset. Every block knows the object that it is from.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// How an endpoint is chosen.
    pub load_balancer: Block<LoadBalancer>,
    /// Limits.
    pub connection_pool: Block<ConnectionPool>,
    /// Passive health checks.
    pub outlier_detection: Block<OutlierDetection>,
    /// TLS towards endpoints.
    pub tls: Block<ClientTls>,
    /// Bound of retries.
    pub retry_budget: Block<RetryBudget>,
    /// Retries (an extension of this mesh).
    pub retry: Block<RetryPolicy>,
    /// Timeouts (an extension of this mesh).
    pub timeout: Block<TimeoutPolicy>,
}

/// A part of a policy and where it was written.
pub type Block<T> = Option<(T, ObjectRef)>;

impl Rules {
    /// The rules for a service's host: of the client's namespace, else of the service's, else of the root namespace, and
    /// there those for the most specific host.
    #[must_use]
    pub fn of(reader: &Reader<'_>, host: &str, service_namespace: &str) -> Self {
        let mut found: Vec<Vec<Arc<DestinationRule>>> = Vec::new();
        for pattern in hosts::covering(host) {
            reader.note(key::traffic(&pattern));
            let rules = reader.world.traffic.rules(&pattern);
            if !rules.is_empty() {
                found.push(rules.to_vec());
            }
        }
        if found.is_empty() {
            return Self::default();
        }
        let root = reader.root_namespace();
        // Where nothing depends on the client, it is not asked: that would split the view for nothing.
        let same_for_all = found.iter().flatten().all(|rule| {
            let home = *rule.age.namespace == *service_namespace || rule.age.namespace == *root;
            home && rule.export == Export::All && rule.selector.is_none()
        });
        let namespaces: Vec<&str> = if same_for_all {
            vec![service_namespace, root]
        } else {
            let client: &str = reader.client_namespace();
            if client == &**root {
                vec![service_namespace, root]
            } else {
                vec![client, service_namespace, root]
            }
        };
        for namespace in namespaces {
            for candidates in &found {
                let rules = applicable(reader, candidates, namespace, same_for_all);
                if !rules.is_empty() {
                    rules.iter().for_each(|rule| reader.credit(&rule.age));
                    return Self { rules };
                }
            }
        }
        Self::default()
    }

    /// The subset of a name, from the oldest rule that defines it.
    #[must_use]
    pub fn subset(&self, name: &str) -> Option<&Subset> {
        self.subset_with_origin(name).map(|(subset, _)| subset)
    }

    fn subset_with_origin(&self, name: &str) -> Option<(&Subset, ObjectRef)> {
        self.rules.iter().find_map(|rule| {
            let subset = rule.subsets.iter().find(|subset| subset.name == name)?;
            Some((subset, rule.age.origin()))
        })
    }

    /// What holds for a port, in a subset or none. Settings of a port replace everything that is not of the port; each
    /// block that the subset sets replaces the host's.
    #[must_use]
    pub fn policy(&self, port: u16, subset: Option<&str>) -> Policy {
        let mut policy = Policy::default();
        let mut port_policies: BTreeMap<u32, (&PortTrafficPolicy, ObjectRef)> = BTreeMap::new();
        for rule in &self.rules {
            let Some(own) = &rule.policy else { continue };
            policy.fill(own, &rule.age.origin());
            for settings in &own.port_level_settings {
                if let Some(number) = settings.port.as_ref().and_then(|port| port.number) {
                    port_policies
                        .entry(number)
                        .or_insert_with(|| (settings, rule.age.origin()));
                }
            }
        }
        if let Some((settings, origin)) = port_policies.get(&u32::from(port)) {
            policy.replace_by_port(settings, origin);
        }
        let Some((subset, origin)) = subset.and_then(|name| self.subset_with_origin(name)) else {
            return policy;
        };
        if let Some(own) = &subset.traffic_policy {
            let mut merged = Policy::default();
            merged.fill(own, &origin);
            policy = merged.or(policy);
            let of_port = own
                .port_level_settings
                .iter()
                .find(|settings| settings.port.as_ref().and_then(|port| port.number) == Some(u32::from(port)));
            if let Some(settings) = of_port {
                policy.replace_by_port(settings, &origin);
            }
        }
        policy
    }

    /// The object that defines a subset.
    #[must_use]
    pub fn subset_origin(&self, name: &str) -> Option<ObjectRef> {
        self.subset_with_origin(name).map(|(_, origin)| origin)
    }
}

/// Rules of one host and namespace that hold for the client. Rules that select client workloads come before, and
/// instead of, those that do not.
fn applicable(
    reader: &Reader<'_>,
    candidates: &[Arc<DestinationRule>],
    namespace: &str,
    same_for_all: bool,
) -> Vec<Arc<DestinationRule>> {
    let mut selecting = Vec::new();
    let mut general = Vec::new();
    for rule in candidates.iter().filter(|rule| *rule.age.namespace == *namespace) {
        if !same_for_all && !rule.export.shows(reader.client_namespace()) {
            continue;
        }
        match &rule.selector {
            None => general.push(rule.clone()),
            Some(selector) => {
                let labels = selector.iter().map(|(name, value)| (&**name, &**value));
                if **reader.client_namespace() == *namespace && reader.client_has_labels(labels) {
                    selecting.push(rule.clone());
                }
            }
        }
    }
    if selecting.is_empty() { general } else { selecting }
}

impl Policy {
    /// Takes over the blocks that are not set yet.
    fn fill(&mut self, from: &TrafficPolicy, origin: &ObjectRef) {
        fill(&mut self.load_balancer, from.load_balancer.as_ref(), origin);
        fill(&mut self.connection_pool, from.connection_pool.as_ref(), origin);
        fill(&mut self.outlier_detection, from.outlier_detection.as_ref(), origin);
        fill(&mut self.tls, from.tls.as_ref(), origin);
        fill(&mut self.retry_budget, from.retry_budget.as_ref(), origin);
        fill(&mut self.retry, from.retry_policy.as_ref(), origin);
        fill(&mut self.timeout, from.timeout.as_ref(), origin);
    }

    fn or(self, other: Self) -> Self {
        Self {
            load_balancer: self.load_balancer.or(other.load_balancer),
            connection_pool: self.connection_pool.or(other.connection_pool),
            outlier_detection: self.outlier_detection.or(other.outlier_detection),
            tls: self.tls.or(other.tls),
            retry_budget: self.retry_budget.or(other.retry_budget),
            retry: self.retry.or(other.retry),
            timeout: self.timeout.or(other.timeout),
        }
    }

    /// Port settings never inherit: what they leave out has its default. They cannot set a retry budget.
    fn replace_by_port(&mut self, from: &PortTrafficPolicy, origin: &ObjectRef) {
        *self = Self {
            retry_budget: self.retry_budget.take(),
            ..Self::default()
        };
        fill(&mut self.load_balancer, from.load_balancer.as_ref(), origin);
        fill(&mut self.connection_pool, from.connection_pool.as_ref(), origin);
        fill(&mut self.outlier_detection, from.outlier_detection.as_ref(), origin);
        fill(&mut self.tls, from.tls.as_ref(), origin);
        fill(&mut self.retry, from.retry_policy.as_ref(), origin);
        fill(&mut self.timeout, from.timeout.as_ref(), origin);
    }

    /// The objects that the blocks are from, without repetition.
    #[must_use]
    pub fn origins(&self) -> Vec<ObjectRef> {
        let mut origins: Vec<ObjectRef> = [
            origin(&self.load_balancer),
            origin(&self.connection_pool),
            origin(&self.outlier_detection),
            origin(&self.tls),
            origin(&self.retry_budget),
            origin(&self.retry),
            origin(&self.timeout),
        ]
        .into_iter()
        .flatten()
        .cloned()
        .collect();
        origins.sort();
        origins.dedup();
        origins
    }
}

fn fill<T: Clone>(block: &mut Block<T>, from: Option<&T>, origin: &ObjectRef) {
    if block.is_none() {
        *block = from.map(|value| (value.clone(), origin.clone()));
    }
}

fn origin<T>(block: &Block<T>) -> Option<&ObjectRef> {
    block.as_ref().map(|(_, origin)| origin)
}
