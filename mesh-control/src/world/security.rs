//! AuthorizationPolicies and PeerAuthentications by namespace.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use mesh_api::crd::authorization_policy::{AuthorizationAction, AuthorizationPolicySpec, Rule};
use mesh_api::crd::common::WorkloadSelector;
use mesh_api::crd::peer_authentication::{MutualTls, MutualTlsMode, PeerAuthenticationSpec};
use mesh_api::model::Labels;

use super::service::{has_labels, shared_labels};
use super::{Age, Key, key};

const DRY_RUN: &str = "istio.io/dry-run";

/// What has an age and chooses workloads of its namespace.
pub trait Selected {
    /// The object.
    fn age(&self) -> &Age;
    /// Labels of the workloads; `None` is all.
    fn selector(&self) -> Option<&Labels>;

    /// Whether it chooses a workload with these labels, which the caller knows to be in its scope.
    fn selects(&self, labels: &Labels) -> bool {
        self.selector().is_none_or(|selector| has_labels(labels, selector))
    }
}

/// An AuthorizationPolicy, distilled.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthorizationPolicy {
    /// The object.
    pub age: Age,
    /// Labels of the workloads; `None` is all.
    pub selector: Option<Labels>,
    /// The action.
    pub action: AuthorizationAction,
    /// The rules.
    pub rules: Vec<Rule>,
    /// Whether it is in force for sidecars: it is not if it is attached to something else (`targetRefs`), or a dry run.
    pub in_force: bool,
}

impl AuthorizationPolicy {
    /// Keeps of an AuthorizationPolicy what the compiler asks for.
    #[must_use]
    pub fn distil(age: Age, annotations: Option<&BTreeMap<String, String>>, spec: &AuthorizationPolicySpec) -> Self {
        let dry_run = annotations
            .and_then(|annotations| annotations.get(DRY_RUN))
            .is_some_and(|value| value == "true");
        Self {
            selector: selector(spec.selector.as_ref()),
            action: spec.action.unwrap_or(AuthorizationAction::Allow),
            rules: spec.rules.clone(),
            in_force: !dry_run && spec.target_ref.is_none() && spec.target_refs.is_empty(),
            age,
        }
    }
}

impl Selected for AuthorizationPolicy {
    fn age(&self) -> &Age {
        &self.age
    }

    fn selector(&self) -> Option<&Labels> {
        self.selector.as_ref()
    }
}

/// A PeerAuthentication, distilled.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerAuthentication {
    /// The object.
    pub age: Age,
    /// Labels of the workloads; `None` is all.
    pub selector: Option<Labels>,
    /// The mode; `None` is inherited.
    pub mode: Option<MutualTlsMode>,
    /// Modes of workload ports; `None` is the object's own mode.
    pub ports: BTreeMap<u16, Option<MutualTlsMode>>,
}

impl PeerAuthentication {
    /// Keeps of a PeerAuthentication what the compiler asks for.
    #[must_use]
    pub fn distil(age: Age, spec: &PeerAuthenticationSpec) -> Self {
        let mode = |tls: &MutualTls| tls.mode.filter(|mode| *mode != MutualTlsMode::Unset);
        Self {
            selector: selector(spec.selector.as_ref()),
            mode: spec.mtls.as_ref().and_then(mode),
            ports: spec
                .port_level_mtls
                .iter()
                .filter_map(|(port, tls)| Some((port.parse().ok()?, mode(tls))))
                .collect(),
            age,
        }
    }
}

impl Selected for PeerAuthentication {
    fn age(&self) -> &Age {
        &self.age
    }

    fn selector(&self) -> Option<&Labels> {
        self.selector.as_ref()
    }
}

/// A selector without labels chooses everything, as no selector does.
fn selector(selector: Option<&WorkloadSelector>) -> Option<Labels> {
    selector
        .filter(|selector| !selector.match_labels.is_empty())
        .map(|selector| shared_labels(&selector.match_labels))
}

/// Security policies with their indexes.
#[derive(Debug, Default)]
pub struct Security {
    authorization: ByNamespace<AuthorizationPolicy>,
    authentication: ByNamespace<PeerAuthentication>,
}

impl Security {
    /// Takes in an AuthorizationPolicy.
    pub fn put_authorization(&mut self, policy: AuthorizationPolicy, touched: &mut HashSet<Key>) {
        let namespace = policy.age.namespace.clone();
        if self.authorization.put(policy) {
            touched.insert(key::authorization(&namespace));
        }
    }

    /// Forgets an AuthorizationPolicy.
    pub fn remove_authorization(&mut self, namespace: &str, name: &str, touched: &mut HashSet<Key>) {
        if self.authorization.remove(namespace, name) {
            touched.insert(key::authorization(namespace));
        }
    }

    /// Takes in a PeerAuthentication.
    pub fn put_authentication(&mut self, policy: PeerAuthentication, touched: &mut HashSet<Key>) {
        let namespace = policy.age.namespace.clone();
        if self.authentication.put(policy) {
            touched.insert(key::authentication(&namespace));
        }
    }

    /// Forgets a PeerAuthentication.
    pub fn remove_authentication(&mut self, namespace: &str, name: &str, touched: &mut HashSet<Key>) {
        if self.authentication.remove(namespace, name) {
            touched.insert(key::authentication(namespace));
        }
    }

    /// AuthorizationPolicies of a namespace, the oldest first. Its key is [`key::authorization`].
    #[must_use]
    pub fn authorization(&self, namespace: &str) -> &[Arc<AuthorizationPolicy>] {
        self.authorization.of(namespace)
    }

    /// PeerAuthentications of a namespace, the oldest first. Its key is [`key::authentication`].
    #[must_use]
    pub fn authentication(&self, namespace: &str) -> &[Arc<PeerAuthentication>] {
        self.authentication.of(namespace)
    }

    /// All AuthorizationPolicies, in no particular order.
    pub fn all_authorization(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.authorization.0.values().flatten()
    }

    /// All PeerAuthentications, in no particular order.
    pub fn all_authentication(&self) -> impl Iterator<Item = &Arc<PeerAuthentication>> {
        self.authentication.0.values().flatten()
    }
}

/// Objects by namespace, the oldest first.
#[derive(Debug)]
struct ByNamespace<T>(HashMap<Arc<str>, Vec<Arc<T>>>);

impl<T> Default for ByNamespace<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Selected + PartialEq> ByNamespace<T> {
    /// Puts an object in; says whether anything changed.
    fn put(&mut self, object: T) -> bool {
        let age = object.age();
        let list = self.0.entry(age.namespace.clone()).or_default();
        match list.iter().position(|old| old.age().name == age.name) {
            Some(at) if *list[at] == object => return false,
            Some(at) => list[at] = Arc::new(object),
            None => list.push(Arc::new(object)),
        }
        list.sort_by(|a, b| a.age().cmp(b.age()));
        true
    }

    fn remove(&mut self, namespace: &str, name: &str) -> bool {
        let Some(list) = self.0.get_mut(namespace) else {
            return false;
        };
        let before = list.len();
        list.retain(|old| &*old.age().name != name);
        let removed = list.len() < before;
        if list.is_empty() {
            self.0.remove(namespace);
        }
        removed
    }

    fn of(&self, namespace: &str) -> &[Arc<T>] {
        self.0.get(namespace).map_or(&[], Vec::as_slice)
    }
}
