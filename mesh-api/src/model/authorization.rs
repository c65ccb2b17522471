//! AuthorizationPolicy, compiled. Evaluation is the proxy's `policy::authorization`.

use std::sync::Arc;

use http::HeaderName;

use super::{IpBlocks, TermMatch};
use crate::names::ObjectRef;

/// A policy that selects the workload.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthorizationPolicy {
    /// The object.
    pub origin: ObjectRef,
    /// What a match means.
    pub action: Action,
    /// Any rule may match. ALLOW without rules allows nothing; DENY without rules denies nothing.
    pub rules: Vec<Rule>,
}

/// `action`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Matching requests are allowed; once such a policy exists, others are not.
    #[default]
    Allow,
    /// Matching requests are denied, whatever else allows them.
    Deny,
}

/// `rules[]`: a source, an operation and all conditions must match; an empty list matches anything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// `from[]`: any.
    pub from: Vec<Source>,
    /// `to[]`: any.
    pub to: Vec<Operation>,
    /// `when[]`: all.
    pub when: Vec<Condition>,
    /// A part of the rule that this release cannot evaluate (an unknown key, a value that does not compile), as a
    /// message for logs. Whatever the policy's action, requests that match the rest of the rule are denied.
    pub invalid: Option<Arc<str>>,
    /// The rule uses HTTP attributes (methods, paths, hosts, headers): on TCP an ALLOW rule never matches, and in a DENY
    /// rule these parts count as matched.
    pub http_only: bool,
}

/// Terms of one attribute: one of `any` (when not empty) and none of `none`.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms<T> {
    /// The positive list.
    pub any: Vec<T>,
    /// The `not…` list.
    pub none: Vec<T>,
}

impl<T> Default for Terms<T> {
    fn default() -> Self {
        Self {
            any: Vec::new(),
            none: Vec::new(),
        }
    }
}

impl<T> Terms<T> {
    /// Whether nothing is asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.none.is_empty()
    }

    /// Whether a value, tested by `test`, satisfies both lists.
    pub fn matches(&self, mut test: impl FnMut(&T) -> bool) -> bool {
        (self.any.is_empty() || self.any.iter().any(&mut test)) && !self.none.iter().any(&mut test)
    }
}

/// `from[].source`: all attributes must match.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    /// Peer identity without `spiffe://`; absent for plaintext, which matches no positive term.
    pub principals: Terms<TermMatch>,
    /// Namespace of the peer identity.
    pub namespaces: Terms<TermMatch>,
    /// `<namespace>/<service account>` of the peer identity.
    pub service_accounts: Terms<Arc<str>>,
    /// Address of the peer's socket.
    pub ip_blocks: Terms<IpBlocks>,
}

/// `to[].operation`: all attributes must match.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Operation {
    /// `Host`, ASCII case ignored, port included as sent.
    pub hosts: Terms<TermMatch>,
    /// Workload port.
    pub ports: Terms<u16>,
    /// Method, case-sensitive.
    pub methods: Terms<TermMatch>,
    /// Path without query, case-sensitive; for gRPC `/package.Service/Method`.
    pub paths: Terms<TermMatch>,
}

/// `when[]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// What is looked at.
    pub key: ConditionKey,
    /// `values` and `notValues`; for addresses see [`ConditionKey`].
    pub values: Terms<TermMatch>,
    /// `values` and `notValues` of address keys.
    pub blocks: Terms<IpBlocks>,
}

/// Attribute of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConditionKey {
    /// `request.headers[name]`.
    Header(HeaderName),
    /// `source.ip`; uses `blocks`.
    SourceIp,
    /// `source.namespace`.
    SourceNamespace,
    /// `source.principal`.
    SourcePrincipal,
    /// `source.serviceAccount`, `<namespace>/<service account>`.
    SourceServiceAccount,
    /// `destination.ip`; uses `blocks`.
    DestinationIp,
    /// `destination.port`.
    DestinationPort,
    /// `connection.sni`.
    ConnectionSni,
}
