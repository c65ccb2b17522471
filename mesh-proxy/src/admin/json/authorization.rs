//! Authorization policies, with the words of the API.

use mesh_api::model::{
    Action, AuthorizationPolicy, Condition, ConditionKey, IpBlocks, Operation, Rule, Source, TermMatch, Terms,
};
use serde_json::{Map, Value, json};

use super::{object, put, strings};

pub(super) fn policy(policy: &AuthorizationPolicy) -> Value {
    json!({
        "policy": object(&policy.origin),
        "action": match policy.action {
            Action::Allow => "ALLOW",
            Action::Deny => "DENY",
        },
        "rules": policy.rules.iter().map(rule).collect::<Vec<_>>(),
    })
}

fn rule(rule: &Rule) -> Value {
    let mut map = Map::new();
    put(&mut map, "from", rule.from.iter().map(source).collect::<Vec<_>>());
    put(&mut map, "to", rule.to.iter().map(operation).collect::<Vec<_>>());
    put(&mut map, "when", rule.when.iter().map(condition).collect::<Vec<_>>());
    put(&mut map, "invalid", rule.invalid.as_deref());
    Value::Object(map)
}

fn source(source: &Source) -> Value {
    let mut map = Map::new();
    terms(&mut map, "principals", &source.principals, term);
    terms(&mut map, "namespaces", &source.namespaces, term);
    terms(&mut map, "serviceAccounts", &source.service_accounts, |account| {
        account.to_string()
    });
    terms(&mut map, "ipBlocks", &source.ip_blocks, blocks);
    Value::Object(map)
}

fn operation(operation: &Operation) -> Value {
    let mut map = Map::new();
    terms(&mut map, "hosts", &operation.hosts, term);
    terms(&mut map, "ports", &operation.ports, u16::to_string);
    terms(&mut map, "methods", &operation.methods, term);
    terms(&mut map, "paths", &operation.paths, term);
    Value::Object(map)
}

fn condition(condition: &Condition) -> Value {
    let mut map = Map::new();
    put(
        &mut map,
        "key",
        match &condition.key {
            ConditionKey::Header(name) => format!("request.headers[{name}]"),
            ConditionKey::SourceIp => "source.ip".to_owned(),
            ConditionKey::SourceNamespace => "source.namespace".to_owned(),
            ConditionKey::SourcePrincipal => "source.principal".to_owned(),
            ConditionKey::SourceServiceAccount => "source.serviceAccount".to_owned(),
            ConditionKey::DestinationIp => "destination.ip".to_owned(),
            ConditionKey::DestinationPort => "destination.port".to_owned(),
            ConditionKey::ConnectionSni => "connection.sni".to_owned(),
        },
    );
    terms(&mut map, "values", &condition.values, term);
    terms(&mut map, "values", &condition.blocks, blocks);
    Value::Object(map)
}

/// `methods` and `notMethods`.
fn terms<T>(map: &mut Map<String, Value>, name: &str, terms: &Terms<T>, text: impl Fn(&T) -> String) {
    put(map, name, terms.any.iter().map(&text).collect::<Vec<_>>());
    let mut negated = String::from("not");
    let mut letters = name.chars();
    negated.extend(letters.next().map(|first| first.to_ascii_uppercase()));
    negated.push_str(letters.as_str());
    put(map, &negated, terms.none.iter().map(&text).collect::<Vec<_>>());
}

fn term(term: &TermMatch) -> String {
    match term {
        TermMatch::Exact(text) => text.to_string(),
        TermMatch::Prefix(text) => format!("{text}*"),
        TermMatch::Suffix(text) => format!("*{text}"),
        TermMatch::Present => "*".to_owned(),
        TermMatch::Regex(regex) => format!("/{}/", regex.as_str()),
    }
}

fn blocks(blocks: &IpBlocks) -> String {
    strings(&blocks.0).join(",")
}
