//! AuthorizationPolicy: who may do what.
//!
//! In order, over all policies that select the workload: a rule that this release cannot evaluate and whose remaining
//! parts match denies, whatever its action; a DENY rule that matches denies; once any ALLOW policy exists, one of its
//! rules has to match.
//!
//! On TCP there are no HTTP attributes: an ALLOW rule that uses them never matches, and in any rule that denies they
//! count as matched. Both err on the side of refusal.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use mesh_api::identity::SpiffeId;
use mesh_api::model::{
    Action, AuthorizationPolicy, Condition, ConditionKey, Operation, Rule, Source, TermMatch, Terms,
};
use mesh_api::names::ObjectRef;

use super::RequestView;

/// The other end of the connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// Identity of its verified certificate; `None` is plaintext.
    pub identity: Option<&'a SpiffeId>,
    /// Address of its socket.
    pub address: IpAddr,
}

/// What rules look at.
#[derive(Clone, Copy, Debug)]
pub struct AuthzRequest<'a> {
    /// Who asks.
    pub peer: Peer<'a>,
    /// The workload's address and port, as the connection was made to it.
    pub destination: SocketAddr,
    /// SNI of the connection.
    pub sni: Option<&'a str>,
    /// The request; `None` for a TCP connection.
    pub http: Option<RequestView<'a>>,
}

/// The decision, with the policy and the index of the rule that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'p> {
    /// Goes on.
    Allowed {
        /// The ALLOW rule that matched; `None` when no ALLOW policy exists.
        by: Option<(&'p ObjectRef, usize)>,
    },
    /// 403 `RBAC: access denied`, or a closed connection.
    Denied {
        /// The rule that matched; `None` when none of the ALLOW rules did.
        by: Option<(&'p ObjectRef, usize)>,
        /// Why.
        reason: DenyReason<'p>,
    },
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenyReason<'p> {
    /// ALLOW policies exist, and no rule of theirs matches.
    NoAllowMatched,
    /// A DENY rule matches.
    MatchedDeny,
    /// A rule matches as far as it can be evaluated; the text says what cannot.
    InvalidRule(&'p str),
}

impl fmt::Display for DenyReason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAllowMatched => f.write_str("no rule of any ALLOW policy matched"),
            Self::MatchedDeny => f.write_str("a rule of a DENY policy matched"),
            Self::InvalidRule(message) => write!(f, "a rule that cannot be evaluated matched otherwise: {message}"),
        }
    }
}

impl Verdict<'_> {
    /// Whether the request goes on.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed { .. })
    }
}

/// Decides on a request, or on a connection when [`AuthzRequest::http`] is `None`.
#[must_use]
pub fn authorize<'p>(policies: &'p [AuthorizationPolicy], request: &AuthzRequest<'_>) -> Verdict<'p> {
    let first = |select: fn(&AuthorizationPolicy, &Rule) -> bool, http| {
        policies.iter().find_map(|policy| {
            let position = policy
                .rules
                .iter()
                .position(|rule| select(policy, rule) && rule_matches(rule, request, http))?;
            Some((&policy.origin, position, &policy.rules[position]))
        })
    };
    if let Some((policy, index, rule)) = first(|_, rule| rule.invalid.is_some(), OnTcp::Matches) {
        return Verdict::Denied {
            by: Some((policy, index)),
            reason: DenyReason::InvalidRule(rule.invalid.as_deref().unwrap_or_default()),
        };
    }
    if let Some((policy, index, _)) = first(|policy, _| policy.action == Action::Deny, OnTcp::Matches) {
        return Verdict::Denied {
            by: Some((policy, index)),
            reason: DenyReason::MatchedDeny,
        };
    }
    if !policies.iter().any(|policy| policy.action == Action::Allow) {
        return Verdict::Allowed { by: None };
    }
    match first(|policy, _| policy.action == Action::Allow, OnTcp::Fails) {
        Some((policy, index, _)) => Verdict::Allowed {
            by: Some((policy, index)),
        },
        None => Verdict::Denied {
            by: None,
            reason: DenyReason::NoAllowMatched,
        },
    }
}

/// The access log's response code details of a refusal, as Istio writes them; empty for what is allowed.
#[must_use]
pub fn details(verdict: &Verdict<'_>) -> String {
    match verdict {
        Verdict::Allowed { .. } => String::new(),
        Verdict::Denied { by: None, .. } => "rbac_access_denied_matched_policy[none]".to_owned(),
        Verdict::Denied {
            by: Some((policy, rule)),
            ..
        } => {
            let ObjectRef { namespace, name, .. } = policy;
            format!("rbac_access_denied_matched_policy[ns[{namespace}]-policy[{name}]-rule[{rule}]]")
        }
    }
}

/// What HTTP attributes of a rule do on a TCP connection.
#[derive(Clone, Copy, PartialEq)]
enum OnTcp {
    /// They count as matched: the rule denies.
    Matches,
    /// They fail: the rule allows.
    Fails,
}

fn rule_matches(rule: &Rule, request: &AuthzRequest<'_>, on_tcp: OnTcp) -> bool {
    if rule.http_only && request.http.is_none() && on_tcp == OnTcp::Fails {
        return false;
    }
    (rule.from.is_empty() || rule.from.iter().any(|source| source_matches(source, request)))
        && (rule.to.is_empty()
            || rule
                .to
                .iter()
                .any(|operation| operation_matches(operation, request, on_tcp)))
        && rule
            .when
            .iter()
            .all(|condition| condition_matches(condition, request, on_tcp))
}

fn source_matches(source: &Source, request: &AuthzRequest<'_>) -> bool {
    let identity = request.peer.identity;
    text(&source.principals, identity.map(SpiffeId::principal))
        && text(&source.namespaces, identity.map(SpiffeId::namespace))
        && source
            .service_accounts
            .matches(|account| identity.is_some_and(|identity| is_account(identity, account)))
        && source.ip_blocks.matches(|blocks| blocks.contains(request.peer.address))
}

fn operation_matches(operation: &Operation, request: &AuthzRequest<'_>, on_tcp: OnTcp) -> bool {
    if !operation.ports.matches(|port| *port == request.destination.port()) {
        return false;
    }
    let Operation {
        hosts, methods, paths, ..
    } = operation;
    match &request.http {
        Some(http) => {
            methods.matches(|method| method.is_match(http.method.as_str()))
                && paths.matches(|path| path.is_match(http.path))
                && hosts.matches(|host| host.is_match_ignore_case(http.authority))
        }
        None => on_tcp == OnTcp::Matches || [hosts, methods, paths].into_iter().all(Terms::is_empty),
    }
}

fn condition_matches(condition: &Condition, request: &AuthzRequest<'_>, on_tcp: OnTcp) -> bool {
    let Condition { key, values, blocks } = condition;
    let identity = request.peer.identity;
    match key {
        ConditionKey::Header(name) => match &request.http {
            Some(http) => text(values, http.header(name).as_deref()),
            None => on_tcp == OnTcp::Matches,
        },
        ConditionKey::SourceIp => blocks.matches(|range| range.contains(request.peer.address)),
        ConditionKey::DestinationIp => blocks.matches(|range| range.contains(request.destination.ip())),
        ConditionKey::SourceNamespace => text(values, identity.map(SpiffeId::namespace)),
        ConditionKey::SourcePrincipal => text(values, identity.map(SpiffeId::principal)),
        ConditionKey::SourceServiceAccount => values.matches(|value| match (identity, value) {
            (None, _) => false,
            (Some(identity), TermMatch::Exact(account)) => is_account(identity, account),
            (Some(identity), pattern) => {
                pattern.is_match(&format!("{}/{}", identity.namespace(), identity.service_account()))
            }
        }),
        ConditionKey::DestinationPort => values.matches(|value| match value {
            TermMatch::Exact(port) => port.parse() == Ok(request.destination.port()),
            pattern => pattern.is_match(&request.destination.port().to_string()),
        }),
        ConditionKey::ConnectionSni => text(values, request.sni),
    }
}

/// What is absent satisfies no term, so it passes when only the negative list is given.
fn text(terms: &Terms<TermMatch>, value: Option<&str>) -> bool {
    terms.matches(|term| value.is_some_and(|value| term.is_match(value)))
}

/// Whether `<namespace>/<service account>` is this identity's.
fn is_account(identity: &SpiffeId, account: &str) -> bool {
    account
        .split_once('/')
        .is_some_and(|(namespace, name)| namespace == identity.namespace() && name == identity.service_account())
}
