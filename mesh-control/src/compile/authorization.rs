//! AuthorizationPolicy. Whatever cannot be evaluated makes its rule invalid, and an invalid rule denies the requests that
//! the rest of it selects: nothing is let in because of what was not understood.

use std::sync::Arc;

use http::HeaderName;
use mesh_api::crd::authorization_policy::{self as crd, AuthorizationAction};
use mesh_api::model::{
    Action, AuthorizationPolicy, Condition, ConditionKey, FullRegex, IpBlocks, Operation, Rule, Source, TermMatch,
    Terms,
};

use super::Reader;
use crate::world::{AuthorizationPolicy as Written, Selected, Workload, World, key, parse_range};

/// Policies that select a workload: of its namespace and of the root namespace.
#[must_use]
pub fn policies(reader: &Reader<'_>, workload: &Workload) -> Vec<AuthorizationPolicy> {
    let namespace = &workload.id.namespace;
    let root = reader.root_namespace();
    reader.note(key::authorization(namespace));
    reader.note(key::authorization(root));
    let security = &reader.world.security;
    let of_namespace = if namespace == root {
        &[]
    } else {
        security.authorization(namespace)
    };
    security
        .authorization(root)
        .iter()
        .chain(of_namespace)
        .filter(|policy| policy.in_force && policy.selects(&workload.labels))
        .inspect(|written| reader.credit(&written.age))
        .filter_map(|written| policy(reader.world, written))
        .collect()
}

/// Compiles a policy; `None` for one that decides nothing (AUDIT).
fn policy(world: &World, written: &Written) -> Option<AuthorizationPolicy> {
    let (action, reason) = match written.action {
        AuthorizationAction::Allow => (Action::Allow, None),
        AuthorizationAction::Deny => (Action::Deny, None),
        AuthorizationAction::Audit => return None,
        AuthorizationAction::Custom => (Action::Deny, Some("action CUSTOM is not supported yet")),
    };
    let compiler = Compiler {
        world,
        namespace: &written.age.namespace,
    };
    let rules = written.rules.iter().map(|rule| {
        let mut rule = compiler.rule(rule);
        if let Some(reason) = reason {
            rule.invalid = Some(reason.into());
        }
        rule
    });
    Some(AuthorizationPolicy {
        origin: written.age.origin(),
        action,
        rules: rules.collect(),
    })
}

struct Compiler<'w> {
    world: &'w World,
    namespace: &'w Arc<str>,
}

/// What is wrong with a rule; the first finding is the one that logs show.
#[derive(Default)]
struct Problems(Option<Arc<str>>);

impl Problems {
    fn add(&mut self, problem: String) {
        self.0.get_or_insert_with(|| problem.into());
    }
}

impl Compiler<'_> {
    fn rule(&self, written: &crd::Rule) -> Rule {
        let mut problems = Problems::default();
        let mut rule = Rule::default();
        for (index, from) in written.from.iter().enumerate() {
            match &from.source {
                Some(source) if *source != crd::Source::default() => {
                    rule.from
                        .push(self.source(source, &format!("from[{index}].source"), &mut problems));
                }
                _ => {
                    problems.add(format!("from[{index}].source is empty"));
                    rule.from.push(Source::default());
                }
            }
        }
        for (index, to) in written.to.iter().enumerate() {
            match &to.operation {
                Some(operation) if *operation != crd::Operation::default() => {
                    let path = format!("to[{index}].operation");
                    rule.to.push(compile_operation(operation, &path, &mut problems));
                }
                _ => {
                    problems.add(format!("to[{index}].operation is empty"));
                    rule.to.push(Operation::default());
                }
            }
        }
        for (index, condition) in written.when.iter().enumerate() {
            rule.when
                .extend(self.condition(condition, &format!("when[{index}]"), &mut problems));
        }
        rule.http_only = rule
            .to
            .iter()
            .any(|to| !to.hosts.is_empty() || !to.methods.is_empty() || !to.paths.is_empty())
            || rule.when.iter().any(|when| matches!(when.key, ConditionKey::Header(_)));
        rule.invalid = problems.0;
        rule
    }

    fn source(&self, written: &crd::Source, path: &str, problems: &mut Problems) -> Source {
        let unsupported = [
            ("requestPrincipals", &written.request_principals),
            ("notRequestPrincipals", &written.not_request_principals),
            ("trustDomains", &written.trust_domains),
            ("notTrustDomains", &written.not_trust_domains),
            ("remoteIpBlocks", &written.remote_ip_blocks),
            ("notRemoteIpBlocks", &written.not_remote_ip_blocks),
        ];
        for (field, _) in unsupported.iter().filter(|(_, list)| !list.is_empty()) {
            problems.add(format!("{path}.{field} is not supported yet"));
        }
        Source {
            principals: self.principals(&written.principals, &written.not_principals, path, problems),
            namespaces: terms(&written.namespaces, &written.not_namespaces, path, problems, |term| {
                namespace_term(term)
            }),
            service_accounts: terms(
                &written.service_accounts,
                &written.not_service_accounts,
                path,
                problems,
                |account| self.account(account),
            ),
            ip_blocks: blocks(&written.ip_blocks, &written.not_ip_blocks, path, problems),
        }
    }

    /// Principals of the mesh's trust domain, of an alias of it, or of `cluster.local` mean the same workload in all of the
    /// mesh's trust domains.
    fn principals(&self, any: &[String], none: &[String], path: &str, problems: &mut Problems) -> Terms<TermMatch> {
        let terms = terms(any, none, path, problems, |principal| Ok(self.principal(principal)));
        Terms {
            any: terms.any.into_iter().flatten().collect(),
            none: terms.none.into_iter().flatten().collect(),
        }
    }

    fn principal(&self, principal: &str) -> Vec<TermMatch> {
        let own = self.world.trust_domain();
        let aliases = self.world.trust_domain_aliases();
        let principal = principal.strip_prefix("spiffe://").unwrap_or(principal);
        let domains = || std::iter::once(own).chain(aliases).map(|domain| domain.as_str());
        match principal.split_once('/') {
            Some((domain, rest)) if domain == "cluster.local" || domains().any(|own| own == domain) => domains()
                .map(|own| TermMatch::parse(&format!("{own}/{rest}")))
                .collect(),
            _ => vec![TermMatch::parse(principal)],
        }
    }

    /// `<namespace>/<account>`; an account alone is of the policy's namespace.
    fn account(&self, account: &str) -> Result<Arc<str>, String> {
        let parts = account.split('/').count();
        if account.contains('*') || parts > 2 || account.split('/').any(str::is_empty) {
            return Err("not a service account".to_owned());
        }
        Ok(if parts == 2 {
            account.into()
        } else {
            format!("{}/{account}", self.namespace).into()
        })
    }

    fn condition(&self, written: &crd::Condition, path: &str, problems: &mut Problems) -> Option<Condition> {
        if written.values.is_empty() && written.not_values.is_empty() {
            problems.add(format!("{path} has neither values nor notValues"));
            return None;
        }
        let Some(key) = condition_key(&written.key) else {
            problems.add(format!("{path}.key `{}` is unknown or not supported yet", written.key));
            return None;
        };
        let (any, none) = (&written.values, &written.not_values);
        let mut condition = Condition {
            key,
            values: Terms::default(),
            blocks: Terms::default(),
        };
        match &condition.key {
            ConditionKey::SourceIp | ConditionKey::DestinationIp => {
                condition.blocks = blocks(any, none, path, problems);
            }
            ConditionKey::SourcePrincipal => {
                condition.values = self.principals(any, none, path, problems);
            }
            ConditionKey::SourceServiceAccount => {
                condition.values = terms(any, none, path, problems, |account| {
                    self.account(account).map(TermMatch::Exact)
                });
            }
            ConditionKey::SourceNamespace => {
                condition.values = terms(any, none, path, problems, namespace_term);
            }
            ConditionKey::DestinationPort => {
                condition.values = terms(any, none, path, problems, |term| {
                    parse_port(term).map(|port| TermMatch::Exact(port.to_string().into()))
                });
            }
            ConditionKey::Header(_) | ConditionKey::ConnectionSni => {
                condition.values = terms(any, none, path, problems, |term| Ok(TermMatch::parse(term)));
            }
        }
        Some(condition)
    }
}

fn compile_operation(written: &crd::Operation, path: &str, problems: &mut Problems) -> Operation {
    let plain = |term: &str| Ok(TermMatch::parse(term));
    Operation {
        hosts: terms(&written.hosts, &written.not_hosts, path, problems, plain),
        ports: terms(&written.ports, &written.not_ports, path, problems, parse_port),
        methods: terms(&written.methods, &written.not_methods, path, problems, plain),
        paths: terms(&written.paths, &written.not_paths, path, problems, path_term),
    }
}

fn condition_key(key: &str) -> Option<ConditionKey> {
    if let Some(name) = key
        .strip_prefix("request.headers[")
        .and_then(|rest| rest.strip_suffix(']'))
    {
        return name.parse::<HeaderName>().ok().map(ConditionKey::Header);
    }
    Some(match key {
        "source.ip" => ConditionKey::SourceIp,
        "source.namespace" => ConditionKey::SourceNamespace,
        "source.principal" => ConditionKey::SourcePrincipal,
        "source.serviceAccount" => ConditionKey::SourceServiceAccount,
        "destination.ip" => ConditionKey::DestinationIp,
        "destination.port" => ConditionKey::DestinationPort,
        "connection.sni" => ConditionKey::ConnectionSni,
        _ => return None,
    })
}

/// Compiles both lists. A value that does not compile is a problem of the rule and left out. If that leaves nothing of a
/// list, the attribute asks nothing: the rule, which is invalid, then denies more, never less.
fn terms<T>(
    any: &[String],
    none: &[String],
    path: &str,
    problems: &mut Problems,
    compile: impl Fn(&str) -> Result<T, String>,
) -> Terms<T> {
    let mut invalid = false;
    let mut list = |values: &[String]| {
        let mut compiled = Vec::with_capacity(values.len());
        for value in values {
            let term = if value.is_empty() {
                Err("an empty text matches nothing".to_owned())
            } else {
                compile(value)
            };
            match term {
                Ok(term) => compiled.push(term),
                Err(reason) => {
                    invalid = true;
                    problems.add(format!("{path}: `{value}`: {reason}"));
                }
            }
        }
        compiled
    };
    let terms = Terms {
        any: list(any),
        none: list(none),
    };
    if invalid { Terms::default() } else { terms }
}

fn blocks(any: &[String], none: &[String], path: &str, problems: &mut Problems) -> Terms<IpBlocks> {
    let ranges = terms(any, none, path, problems, |text| {
        parse_range(text).ok_or_else(|| "not an address or range".to_owned())
    });
    let list = |ranges: Vec<_>| {
        if ranges.is_empty() {
            Vec::new()
        } else {
            vec![IpBlocks(ranges)]
        }
    };
    Terms {
        any: list(ranges.any),
        none: list(ranges.none),
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    text.parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| "not a port".to_owned())
}

/// Namespaces may have `*` in the middle.
fn namespace_term(term: &str) -> Result<TermMatch, String> {
    let inner = term.strip_prefix('*').unwrap_or(term);
    let inner = inner.strip_suffix('*').unwrap_or(inner);
    let both_ends = term.len() > 1 && term.starts_with('*') && term.ends_with('*');
    if !inner.contains('*') && !both_ends {
        return Ok(TermMatch::parse(term));
    }
    let expression: Vec<String> = term.split('*').map(regex::escape).collect();
    FullRegex::new(&expression.join(".*"))
        .map(TermMatch::Regex)
        .map_err(|error| error.to_string())
}

/// Paths may be templates: `{*}` is one segment, `{**}` at the end is any number of them.
fn path_term(term: &str) -> Result<TermMatch, String> {
    if !term.contains(['{', '}']) {
        return Ok(TermMatch::parse(term));
    }
    if term.replace("{**}", "").replace("{*}", "").contains(['*', '{', '}']) {
        return Err("a path template has no other wildcards".to_owned());
    }
    let mut expression = String::new();
    let mut segments = term.split('/').peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "{*}" => expression.push_str("[^/]+"),
            "{**}" if segments.peek().is_none() => expression.push_str(".*"),
            _ if segment.contains("{*}") || segment.contains("{**}") => {
                return Err("`{*}` is a whole segment, and `{**}` the last one".to_owned());
            }
            literal => expression.push_str(&regex::escape(literal)),
        }
        if segments.peek().is_some() {
            expression.push('/');
        }
    }
    FullRegex::new(&expression)
        .map(TermMatch::Regex)
        .map_err(|error| error.to_string())
}
