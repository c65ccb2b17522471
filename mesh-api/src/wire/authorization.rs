//! [`AuthorizationPolicy`] to and from its message.
//!
//! Every attribute that a rule looks at is a clause with an enum, so nothing that a newer control plane sends can vanish
//! unseen. A clause, a term or an action that this release does not know makes its rule invalid, which denies.

use std::sync::Arc;

use super::field::{self, FieldError, InField, Within, each, required};
use super::proto::{self, Attribute, term::Term as Kind};
use super::text::{decode_blocks, encode_blocks, header_name};
use crate::model::{
    Action, AuthorizationPolicy, Condition, ConditionKey, FullRegex, IpBlocks, Operation, Rule, Source, TermMatch,
    Terms,
};

pub(super) fn encode(policy: &AuthorizationPolicy) -> proto::AuthorizationPolicy {
    proto::AuthorizationPolicy {
        origin: Some(field::encode_object(&policy.origin)),
        action: match policy.action {
            Action::Allow => proto::Action::Allow,
            Action::Deny => proto::Action::Deny,
        }
        .into(),
        rules: policy.rules.iter().map(encode_rule).collect(),
    }
}

pub(super) fn decode(policy: proto::AuthorizationPolicy) -> Result<AuthorizationPolicy, FieldError> {
    let origin = required("origin", policy.origin, field::decode_object)?;
    let mut rules: Vec<Rule> = each("rules", policy.rules, decode_rule)?;
    let action = match proto::Action::try_from(policy.action) {
        Ok(proto::Action::Allow) => Action::Allow,
        Ok(proto::Action::Deny) => Action::Deny,
        Ok(proto::Action::Unspecified) | Err(_) => {
            let reason: Arc<str> = format!("action {} is unknown to this release", policy.action).into();
            if rules.is_empty() {
                rules.push(Rule::default());
            }
            for rule in &mut rules {
                rule.invalid.get_or_insert_with(|| reason.clone());
            }
            Action::Deny
        }
    };
    Ok(AuthorizationPolicy { origin, action, rules })
}

fn encode_rule(rule: &Rule) -> proto::Rule {
    proto::Rule {
        from: rule.from.iter().map(encode_source).collect(),
        to: rule.to.iter().map(encode_operation).collect(),
        when: rule.when.iter().map(encode_condition).collect(),
        invalid: field::owned(rule.invalid.as_ref()),
        http_only: rule.http_only,
    }
}

fn decode_rule(rule: proto::Rule) -> Result<Rule, FieldError> {
    let mut unknown = None;
    let from = each("from", rule.from, |source| decode_source(source, &mut unknown))?;
    let to = each("to", rule.to, |operation| decode_operation(operation, &mut unknown))?;
    let when: Vec<Option<Condition>> = each("when", rule.when, |clause| decode_condition(clause, &mut unknown))?;
    Ok(Rule {
        from,
        to,
        when: when.into_iter().flatten().collect(),
        invalid: field::shared(rule.invalid).or(unknown.map(Arc::from)),
        http_only: rule.http_only,
    })
}

fn encode_source(source: &Source) -> proto::Clauses {
    let clauses = [
        clause(Attribute::SourcePrincipal, &source.principals, encode_term),
        clause(Attribute::SourceNamespace, &source.namespaces, encode_term),
        clause(Attribute::SourceServiceAccount, &source.service_accounts, |account| {
            Kind::Exact(account.to_string())
        }),
        clause(Attribute::SourceIp, &source.ip_blocks, |blocks| {
            Kind::Blocks(encode_blocks(blocks))
        }),
    ];
    proto::Clauses {
        clauses: clauses.into_iter().flatten().collect(),
    }
}

fn decode_source(clauses: proto::Clauses, unknown: &mut Option<String>) -> Result<Source, FieldError> {
    let mut source = Source::default();
    for (index, clause) in clauses.clauses.into_iter().enumerate() {
        let place = format!("clauses[{index}]");
        match Attribute::try_from(clause.attribute) {
            Ok(Attribute::SourcePrincipal) => fill(&mut source.principals, clause, text_term, unknown),
            Ok(Attribute::SourceNamespace) => fill(&mut source.namespaces, clause, text_term, unknown),
            Ok(Attribute::SourceServiceAccount) => fill(&mut source.service_accounts, clause, exact_term, unknown),
            Ok(Attribute::SourceIp) => fill(&mut source.ip_blocks, clause, blocks_term, unknown),
            _ => {
                note(unknown, format_args!("source attribute {}", clause.attribute));
                Ok(())
            }
        }
        .within(&place)?;
    }
    Ok(source)
}

fn encode_operation(operation: &Operation) -> proto::Clauses {
    let clauses = [
        clause(Attribute::Host, &operation.hosts, encode_term),
        clause(Attribute::DestinationPort, &operation.ports, |port| {
            Kind::Port((*port).into())
        }),
        clause(Attribute::Method, &operation.methods, encode_term),
        clause(Attribute::Path, &operation.paths, encode_term),
    ];
    proto::Clauses {
        clauses: clauses.into_iter().flatten().collect(),
    }
}

fn decode_operation(clauses: proto::Clauses, unknown: &mut Option<String>) -> Result<Operation, FieldError> {
    let mut operation = Operation::default();
    for (index, clause) in clauses.clauses.into_iter().enumerate() {
        let place = format!("clauses[{index}]");
        match Attribute::try_from(clause.attribute) {
            Ok(Attribute::Host) => fill(&mut operation.hosts, clause, text_term, unknown),
            Ok(Attribute::DestinationPort) => fill(&mut operation.ports, clause, port_term, unknown),
            Ok(Attribute::Method) => fill(&mut operation.methods, clause, text_term, unknown),
            Ok(Attribute::Path) => fill(&mut operation.paths, clause, text_term, unknown),
            _ => {
                note(unknown, format_args!("operation attribute {}", clause.attribute));
                Ok(())
            }
        }
        .within(&place)?;
    }
    Ok(operation)
}

fn encode_condition(condition: &Condition) -> proto::Clause {
    let (attribute, name) = match &condition.key {
        ConditionKey::Header(name) => (Attribute::Header, name.as_str()),
        ConditionKey::SourceIp => (Attribute::SourceIp, ""),
        ConditionKey::SourceNamespace => (Attribute::SourceNamespace, ""),
        ConditionKey::SourcePrincipal => (Attribute::SourcePrincipal, ""),
        ConditionKey::SourceServiceAccount => (Attribute::SourceServiceAccount, ""),
        ConditionKey::DestinationIp => (Attribute::DestinationIp, ""),
        ConditionKey::DestinationPort => (Attribute::DestinationPort, ""),
        ConditionKey::ConnectionSni => (Attribute::ConnectionSni, ""),
    };
    let terms = |texts: &[TermMatch], blocks: &[IpBlocks]| {
        let texts = texts.iter().map(encode_term);
        let blocks = blocks.iter().map(|blocks| Kind::Blocks(encode_blocks(blocks)));
        texts
            .chain(blocks)
            .map(|term| proto::Term { term: Some(term) })
            .collect()
    };
    proto::Clause {
        attribute: attribute.into(),
        name: name.to_owned(),
        any: terms(&condition.values.any, &condition.blocks.any),
        none: terms(&condition.values.none, &condition.blocks.none),
    }
}

/// `None` when the key is unknown, which is noted.
fn decode_condition(clause: proto::Clause, unknown: &mut Option<String>) -> Result<Option<Condition>, FieldError> {
    let key = match Attribute::try_from(clause.attribute) {
        Ok(Attribute::Header) => ConditionKey::Header(header_name("name", &clause.name)?),
        Ok(Attribute::SourceIp) => ConditionKey::SourceIp,
        Ok(Attribute::SourceNamespace) => ConditionKey::SourceNamespace,
        Ok(Attribute::SourcePrincipal) => ConditionKey::SourcePrincipal,
        Ok(Attribute::SourceServiceAccount) => ConditionKey::SourceServiceAccount,
        Ok(Attribute::DestinationIp) => ConditionKey::DestinationIp,
        Ok(Attribute::DestinationPort) => ConditionKey::DestinationPort,
        Ok(Attribute::ConnectionSni) => ConditionKey::ConnectionSni,
        _ => {
            note(unknown, format_args!("condition key {}", clause.attribute));
            return Ok(None);
        }
    };
    let mut condition = Condition {
        key,
        values: Terms::default(),
        blocks: Terms::default(),
    };
    if matches!(condition.key, ConditionKey::SourceIp | ConditionKey::DestinationIp) {
        fill(&mut condition.blocks, clause, blocks_term, unknown)?;
    } else {
        fill(&mut condition.values, clause, text_term, unknown)?;
    }
    Ok(Some(condition))
}

/// `None` when nothing is asked of the attribute.
fn clause<T>(attribute: Attribute, terms: &Terms<T>, encode: impl Fn(&T) -> Kind) -> Option<proto::Clause> {
    let encode = |term: &T| proto::Term {
        term: Some(encode(term)),
    };
    (!terms.is_empty()).then(|| proto::Clause {
        attribute: attribute.into(),
        name: String::new(),
        any: terms.any.iter().map(encode).collect(),
        none: terms.none.iter().map(encode).collect(),
    })
}

/// Decodes the terms of a clause. A term of a kind that this release does not know is left out and noted.
fn fill<T>(
    into: &mut Terms<T>,
    clause: proto::Clause,
    decode: impl Fn(Kind) -> Result<T, FieldError>,
    unknown: &mut Option<String>,
) -> Result<(), FieldError> {
    if !into.is_empty() {
        return Err(FieldError::new("attribute", "occurs twice"));
    }
    let mut terms = |field: &str, terms: Vec<proto::Term>| {
        each(field, terms, |term| match term.term {
            Some(kind) => decode(kind).map(Some),
            None => {
                note(unknown, format_args!("kind of term for attribute {}", clause.attribute));
                Ok(None)
            }
        })
        .map(|terms: Vec<Option<T>>| terms.into_iter().flatten().collect())
    };
    *into = Terms {
        any: terms("any", clause.any)?,
        none: terms("none", clause.none)?,
    };
    Ok(())
}

fn encode_term(term: &TermMatch) -> Kind {
    match term {
        TermMatch::Exact(value) => Kind::Exact(value.to_string()),
        TermMatch::Prefix(value) => Kind::Prefix(value.to_string()),
        TermMatch::Suffix(value) => Kind::Suffix(value.to_string()),
        TermMatch::Present => Kind::Present(true),
        TermMatch::Regex(regex) => Kind::Regex(regex.as_str().to_owned()),
    }
}

fn text_term(kind: Kind) -> Result<TermMatch, FieldError> {
    Ok(match kind {
        Kind::Exact(value) => TermMatch::Exact(value.into()),
        Kind::Prefix(value) => TermMatch::Prefix(value.into()),
        Kind::Suffix(value) => TermMatch::Suffix(value.into()),
        Kind::Present(_) => TermMatch::Present,
        Kind::Regex(source) => TermMatch::Regex(FullRegex::new(&source).field("regex")?),
        Kind::Blocks(_) | Kind::Port(_) => return Err(FieldError::new("term", "expected a text")),
    })
}

fn exact_term(kind: Kind) -> Result<Arc<str>, FieldError> {
    match kind {
        Kind::Exact(value) => Ok(value.into()),
        _ => Err(FieldError::new("term", "expected an exact text")),
    }
}

fn blocks_term(kind: Kind) -> Result<IpBlocks, FieldError> {
    match kind {
        Kind::Blocks(blocks) => decode_blocks(blocks).within("blocks"),
        _ => Err(FieldError::new("term", "expected address ranges")),
    }
}

fn port_term(kind: Kind) -> Result<u16, FieldError> {
    match kind {
        Kind::Port(value) => field::port("port", value),
        _ => Err(FieldError::new("term", "expected a port")),
    }
}

/// Keeps the first thing that this release does not know.
fn note(unknown: &mut Option<String>, what: std::fmt::Arguments<'_>) {
    unknown.get_or_insert_with(|| format!("{what} is unknown to this release"));
}
