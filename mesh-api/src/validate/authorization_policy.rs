//! AuthorizationPolicy: its rules, and which of their conditions this mesh can decide.
//!
//! A rule with a condition that cannot be decided denies the requests that the rest of it selects; the finding says so.

use kube::core::ObjectMeta;

use super::Findings;
use super::security::subject;
use super::text::{Outcome, cidr};
use crate::crd::authorization_policy::{
    AuthorizationAction, AuthorizationPolicySpec, Condition, Operation, Rule, Source,
};
use crate::source::{FieldPath, nearest};

const DRY_RUN: &str = "istio.io/dry-run";

/// Attributes that conditions of this mesh can be on.
const KEYS: &[&str] = &[
    "request.headers[…]",
    "source.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "destination.ip",
    "destination.port",
    "connection.sni",
];

/// Attributes that Istio knows beside them.
const KEYS_NOT_YET: &[&str] = &[
    "remote.ip",
    "source.trustDomain",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
];

const PREFIXES_NOT_YET: &[&str] = &["request.auth.claims", "experimental.envoy.filters."];

pub(super) fn check(metadata: &ObjectMeta, spec: &AuthorizationPolicySpec, at: &FieldPath, findings: &mut Findings) {
    subject(
        spec.selector.as_ref(),
        spec.target_ref.as_ref(),
        &spec.target_refs,
        at,
        findings,
    );
    let action = spec.action.unwrap_or(AuthorizationAction::Allow);
    if action == AuthorizationAction::Deny && spec.rules.is_empty() {
        let message = "DENY without rules never denies; write \"rules: [{}]\" to deny everything";
        findings.error(at.field("rules"), "missing-field", message);
    }
    match (action, &spec.provider) {
        (AuthorizationAction::Custom, None) => {
            findings.error(at.field("provider"), "missing-field", "CUSTOM needs a provider");
        }
        (AuthorizationAction::Custom, Some(_)) | (_, None) => {}
        (_, Some(_)) => findings.error(
            at.field("provider"),
            "bad-value",
            "a provider is for the action CUSTOM only",
        ),
    }
    for (index, rule) in spec.rules.iter().enumerate() {
        check_rule(rule, action, &at.field("rules").index(index), findings);
    }
    not_yet(metadata, spec, action, at, findings);
}

/// What of the object as a whole is not acted on, with what happens instead.
fn not_yet(
    metadata: &ObjectMeta,
    spec: &AuthorizationPolicySpec,
    action: AuthorizationAction,
    at: &FieldPath,
    findings: &mut Findings,
) {
    let instead = match action {
        AuthorizationAction::Custom => "the requests that the rules match are denied",
        AuthorizationAction::Audit => "the policy has no effect",
        AuthorizationAction::Allow | AuthorizationAction::Deny => "",
    };
    if !instead.is_empty() {
        let name = if action == AuthorizationAction::Custom {
            "CUSTOM"
        } else {
            "AUDIT"
        };
        unsupported(at.field("action"), &format!("action {name}"), instead, findings);
    }
    if metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(DRY_RUN))
        .is_some_and(|value| value == "true")
    {
        let at = FieldPath::new("metadata.annotations").field(DRY_RUN);
        unsupported(at, "dry run", "the policy has no effect", findings);
    }
    for (name, set) in [
        ("targetRef", spec.target_ref.is_some()),
        ("targetRefs", !spec.target_refs.is_empty()),
    ] {
        if set {
            unsupported(
                at.field(name),
                &format!("spec.{name}"),
                "the policy has no effect",
                findings,
            );
        }
    }
}

fn unsupported(at: FieldPath, what: &str, instead: &str, findings: &mut Findings) {
    findings.warning(at, "not-supported-yet", format!("not supported yet: {what}; {instead}"));
}

/// What becomes of a rule with a condition that cannot be decided, whatever its action.
const CLOSED: &str = "the rule denies the requests that the rest of it selects";

fn check_rule(rule: &Rule, action: AuthorizationAction, at: &FieldPath, findings: &mut Findings) {
    for (index, from) in rule.from.iter().enumerate() {
        let at = at.field("from").index(index).field("source");
        match &from.source {
            None => findings.error(at, "missing-field", "an entry of from needs a source"),
            Some(source) => check_source(source, &at, findings),
        }
    }
    for (index, to) in rule.to.iter().enumerate() {
        let at = at.field("to").index(index).field("operation");
        match &to.operation {
            None => findings.error(at, "missing-field", "an entry of to needs an operation"),
            Some(operation) => check_operation(operation, &at, findings),
        }
    }
    for (index, condition) in rule.when.iter().enumerate() {
        check_condition(condition, &at.field("when").index(index), findings);
    }
    if action == AuthorizationAction::Deny {
        denies_tcp(rule, at, findings);
    }
}

/// Reports a rule of a DENY policy that asks for what only HTTP has and names no ports: on TCP connections that counts as
/// matched.
fn denies_tcp(rule: &Rule, at: &FieldPath, findings: &mut Findings) {
    let operations = || rule.to.iter().filter_map(|to| to.operation.as_ref());
    let any_port = |operation: &Operation| operation.ports.is_empty() && operation.not_ports.is_empty();
    // An operation that is set and names no ports names something of HTTP.
    let open = operations().any(|operation| any_port(operation) && *operation != Operation::default());
    let header = |condition: &Condition| condition.key.starts_with("request.headers");
    let by_header = rule.to.is_empty() && rule.when.iter().any(header);
    let by_port = rule.when.iter().any(|condition| condition.key == "destination.port");
    if !(open || by_header) || by_port {
        return;
    }
    let narrowed = !rule.from.is_empty() || rule.when.iter().any(|condition| !header(condition));
    let which = match narrowed {
        true => "the connections that its sources and conditions select",
        false => "every connection",
    };
    let message = format!(
        "on TCP ports of the workloads, if they have any, the rule denies {which}, since only HTTP has the rest of what it \
         asks for; name the HTTP ports in it to spare them"
    );
    findings.warning(at.clone(), "denies-tcp", message);
}

fn check_source(source: &Source, at: &FieldPath, findings: &mut Findings) {
    if *source == Source::default() {
        findings.error(
            at.clone(),
            "missing-field",
            "the source is empty; set a field or remove it",
        );
    }
    let accounts = [&source.service_accounts, &source.not_service_accounts];
    let others = [
        &source.principals,
        &source.not_principals,
        &source.namespaces,
        &source.not_namespaces,
    ];
    if accounts.iter().any(|list| !list.is_empty()) && others.iter().any(|list| !list.is_empty()) {
        let message = "service accounts cannot be set together with principals or namespaces";
        findings.error(at.field("serviceAccounts"), "one-of", message);
    }
    for (name, list) in [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
    ] {
        each(list, name, at, not_empty, findings);
    }
    for (name, list) in [
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
    ] {
        each(list, name, at, service_account, findings);
    }
    for (name, list) in [
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ] {
        each(list, name, at, cidr, findings);
    }
    for (name, list) in [
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
    ] {
        if !list.is_empty() {
            unsupported(at.field(name), &at.field(name).to_string(), CLOSED, findings);
        }
    }
}

fn check_operation(operation: &Operation, at: &FieldPath, findings: &mut Findings) {
    if *operation == Operation::default() {
        findings.error(
            at.clone(),
            "missing-field",
            "the operation is empty; set a field or remove it",
        );
    }
    for (name, list) in [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ] {
        each(list, name, at, not_empty, findings);
    }
    for (name, list) in [("ports", &operation.ports), ("notPorts", &operation.not_ports)] {
        each(list, name, at, port, findings);
    }
    for (name, list) in [("paths", &operation.paths), ("notPaths", &operation.not_paths)] {
        for (index, path) in list.iter().enumerate() {
            findings.test(at.field(name).index(index), path_template(path));
        }
    }
}

fn check_condition(condition: &Condition, at: &FieldPath, findings: &mut Findings) {
    let key = condition.key.as_str();
    if condition.values.is_empty() && condition.not_values.is_empty() {
        findings.error(
            at.clone(),
            "missing-field",
            format!("the condition on {key:?} needs values or notValues"),
        );
    }
    let test: fn(&str) -> Outcome = match key {
        "source.ip" | "remote.ip" | "destination.ip" => cidr,
        "destination.port" => port,
        "source.serviceAccount" => service_account,
        _ => not_empty,
    };
    each(&condition.values, "values", at, test, findings);
    each(&condition.not_values, "notValues", at, test, findings);

    let at = at.field("key");
    if KEYS.contains(&key) || is_header_key(key) {
        return;
    }
    if key.starts_with("request.headers[:")
        || KEYS_NOT_YET.contains(&key)
        || PREFIXES_NOT_YET.iter().any(|prefix| key.starts_with(prefix))
    {
        return unsupported(at, &format!("the key {key:?}"), CLOSED, findings);
    }
    let hint = match nearest(key, KEYS.iter().chain(KEYS_NOT_YET).copied()) {
        _ if key.starts_with("request.header") => "write request.headers[name]".to_owned(),
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("known are {}", KEYS.join(", ")),
    };
    let message = format!("there is no key {key:?} ({hint}); until it is mended {CLOSED}");
    findings.error(at, "unknown-key", message);
}

/// `{*}` stands for one segment of a path, `{**}` at its end for any number.
fn path_template(path: &str) -> Outcome {
    if !path.contains(['{', '}']) {
        return Ok(());
    }
    let mut segments = path.split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        if segment.contains(['{', '}']) && segment != "{*}" && !(segment == "{**}" && last) {
            return Err(format!(
                "{path:?}: of braces only {{*}} for one whole segment, and {{**}} for the last ones, are known"
            ));
        }
        if segment.contains('*') && !segment.contains('{') {
            return Err(format!("{path:?}: a template has no other wildcards"));
        }
    }
    Ok(())
}

/// `request.headers[name]`.
fn is_header_key(key: &str) -> bool {
    let name = key
        .strip_prefix("request.headers[")
        .and_then(|rest| rest.strip_suffix(']'));
    name.is_some_and(super::headers::is_token)
}

fn each(list: &[String], name: &str, at: &FieldPath, test: fn(&str) -> Outcome, findings: &mut Findings) {
    for (index, text) in list.iter().enumerate() {
        findings.test(at.field(name).index(index), test(text));
    }
}

fn not_empty(text: &str) -> Outcome {
    if text.is_empty() {
        Err("an empty text matches nothing".to_owned())
    } else {
        Ok(())
    }
}

fn port(text: &str) -> Outcome {
    match text.parse() {
        Ok(number) => super::text::port(number),
        Err(_) => Err(format!("{text:?} is no port")),
    }
}

fn service_account(text: &str) -> Outcome {
    let parts: Vec<&str> = text.split('/').collect();
    if text.contains('*') || parts.len() > 2 || parts.iter().any(|part| part.is_empty()) {
        return Err(format!(
            "{text:?} is no service account; write \"account\" or \"namespace/account\""
        ));
    }
    Ok(())
}
