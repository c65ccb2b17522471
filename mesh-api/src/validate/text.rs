//! Tests of single values: names, hosts, ports, durations, shares, expressions. Each says what is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use regex::Regex;

use super::Findings;
use crate::crd::Kind;
use crate::crd::common::{Destination, Percent, StringMatch};
use crate::duration::Duration;
use crate::source::FieldPath;

/// What an outcome of a test is: nothing, or what is wrong.
pub type Outcome = Result<(), String>;

/// A DNS label (RFC 1123): up to 63 lower- or upper-case letters, digits and inner dashes.
pub(super) fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= 63
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        && edge(bytes.first())
        && edge(bytes.last())
}

/// A name that a port or a subset may have.
pub(super) fn label(text: &str) -> Outcome {
    if is_label(text) {
        return Ok(());
    }
    Err(format!(
        "{text:?} is no DNS label: use letters, digits and inner '-', at most 63 characters"
    ))
}

/// A host name without wildcard.
pub(super) fn host(text: &str) -> Outcome {
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.len() > 253 {
        return Err(format!("host name {text:?} is longer than 253 characters"));
    }
    match name.split('.').find(|part| !is_label(part)) {
        None => Ok(()),
        Some(_) if name.is_empty() => Err("a host name must not be empty".to_owned()),
        Some(part) => Err(format!("{text:?} is no host name: its part {part:?} is no DNS label")),
    }
}

/// A host name whose first part may be or begin with `*`.
pub(super) fn wildcard_host(text: &str) -> Outcome {
    if text == "*" {
        return Ok(());
    }
    match text.strip_prefix('*') {
        None => host(text),
        Some(rest) => {
            let rest = rest.strip_prefix(['.', '-']).unwrap_or(rest);
            host(rest)
                .map_err(|_| format!("{text:?} is no host name; a wildcard stands first, as in \"*.example.com\""))
        }
    }
}

/// Whether one host, perhaps a wildcard, covers the other.
pub(super) fn covers(wide: &str, narrow: &str) -> bool {
    match wide.strip_prefix('*') {
        Some(suffix) => narrow.trim_start_matches('*').ends_with(suffix),
        None => wide == narrow,
    }
}

/// A port number.
pub(super) fn port(number: u32) -> Outcome {
    if (1..=65535).contains(&number) {
        return Ok(());
    }
    Err(format!("{number} is no port: from 1 to 65535 is allowed"))
}

/// The name of a namespace.
///
/// # Errors
/// Says what is wrong, in a sentence.
pub fn namespace(text: &str) -> Outcome {
    if is_label(text) && !text.bytes().any(|b| b.is_ascii_uppercase()) {
        Ok(())
    } else {
        Err(format!("{text:?} is no namespace"))
    }
}

/// Where spans go, as `http://host:port` with nothing after it.
///
/// # Errors
/// Says what is wrong, in a sentence.
pub fn collector(endpoint: &str) -> Outcome {
    let because = |reason: &str| {
        Err(format!(
            "{endpoint:?} is no collector of spans: {reason}; write \"http://host:4317\", where OTLP over gRPC is spoken"
        ))
    };
    if endpoint.starts_with("https://") {
        return because("TLS is not supported yet");
    }
    let Some(authority) = endpoint.strip_prefix("http://") else {
        return because("it does not begin with \"http://\"");
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    match authority.parse::<http::uri::Authority>() {
        Err(_) => because("after \"http://\" only a host and a port may stand"),
        Ok(authority) if authority.port_u16().is_none_or(|port| port == 0) => because("it names no port"),
        Ok(authority) if authority.as_str().contains('@') => because("it names a user"),
        Ok(authority)
            if authority.host().parse::<std::net::IpAddr>().is_err() && !authority.host().starts_with('[') =>
        {
            match host(authority.host()) {
                Ok(()) => Ok(()),
                Err(reason) => because(&reason),
            }
        }
        Ok(_) => Ok(()),
    }
}

/// A duration of at least a millisecond, in whole milliseconds.
pub(super) fn millisecond(duration: Duration) -> Outcome {
    let duration = duration.as_std();
    if duration.as_millis() == 0 {
        return Err("the duration must be at least 1ms".to_owned());
    }
    if !duration.subsec_nanos().is_multiple_of(1_000_000) {
        return Err("the duration must be in whole milliseconds".to_owned());
    }
    Ok(())
}

/// A share with the resolution that proxies have.
pub(super) fn percent(percent: &Percent) -> Outcome {
    match percent.value {
        Some(value) if !(0.0..=100.0).contains(&value) => Err(format!("{value} per cent is not from 0 to 100")),
        Some(value) if value > 0.0 && value < 0.0001 => {
            Err(format!("{value} per cent is below the resolution of 0.0001"))
        }
        _ => Ok(()),
    }
}

/// A share in whole per cent.
pub(super) fn whole_percent(value: i32) -> Outcome {
    if (0..=100).contains(&value) {
        Ok(())
    } else {
        Err(format!("{value} per cent is not from 0 to 100"))
    }
}

/// A count.
pub(super) fn not_negative(value: i32) -> Outcome {
    if value >= 0 {
        Ok(())
    } else {
        Err(format!("{value} is negative"))
    }
}

/// A regular expression; gives the number of its captures.
pub(super) fn regex(text: &str) -> Result<usize, String> {
    if text.is_empty() {
        return Err("a regular expression must not be empty".to_owned());
    }
    match Regex::new(text) {
        Ok(regex) => Ok(regex.captures_len() - 1),
        Err(regex::Error::CompiledTooBig(_)) => Err("the regular expression is too large".to_owned()),
        Err(e) => {
            // The last line says what is wrong; those before show where, which a message of one line cannot.
            let reason = e.to_string();
            let reason = reason
                .lines()
                .last()
                .unwrap_or_default()
                .trim_start_matches("error: ")
                .to_owned();
            Err(format!("{text:?} is no regular expression (RE2 syntax): {reason}"))
        }
    }
}

/// Whether an empty prefix makes sense where a text is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum EmptyPrefix {
    Allowed,
    Refused,
}

/// A comparison of texts.
pub(super) fn string_match(m: &StringMatch, empty: EmptyPrefix, at: &FieldPath, findings: &mut Findings) {
    if m.prefix.as_deref() == Some("") && empty == EmptyPrefix::Refused {
        findings.error(
            at.field("prefix"),
            "bad-value",
            "an empty prefix matches everything; leave the match out",
        );
    }
    if let Some(text) = &m.regex {
        findings.test(at.field("regex"), regex(text).map(|_| ()));
    }
}

/// A comparison of header values or query parameters, where `*` as expression stands for presence.
pub(super) fn value_match(m: &StringMatch, at: &FieldPath, findings: &mut Findings) {
    if m.regex.as_deref() != Some("*") {
        string_match(m, EmptyPrefix::Refused, at, findings);
    }
}

/// An address or a range of addresses.
pub(super) fn cidr(text: &str) -> Outcome {
    if text.parse::<IpNet>().is_ok() || text.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    Err(format!(
        "{text:?} is neither an IP address nor a range such as \"10.0.0.0/8\""
    ))
}

/// Labels of workloads.
pub(super) fn labels(labels: &BTreeMap<String, String>, at: &FieldPath, findings: &mut Findings) {
    for (key, value) in labels {
        let name = key.rsplit_once('/').map_or(key.as_str(), |(_, name)| name);
        if !is_qualified(name) {
            findings.error(at.field(key), "bad-value", format!("{key:?} is no label key"));
        }
        if !value.is_empty() && !is_qualified(value) {
            let message = format!("{value:?} is no label value: use letters, digits, '-', '_' and '.', at most 63");
            findings.error(at.field(key), "bad-value", message);
        }
    }
}

fn is_qualified(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= 63
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && edge(bytes.first())
        && edge(bytes.last())
}

/// Labels that select; wildcards are a frequent mistake.
pub(super) fn selector(labels: &BTreeMap<String, String>, at: &FieldPath, findings: &mut Findings) {
    if labels.is_empty() {
        findings.warning(
            at.clone(),
            "empty-selector",
            "the selector has no labels and selects every workload",
        );
    }
    for (key, value) in labels {
        if key.is_empty() {
            findings.error(at.clone(), "bad-value", "a label key must not be empty");
        }
        if key.contains('*') || value.contains('*') {
            findings.error(at.field(key), "bad-value", "wildcards are not allowed in selectors");
        }
    }
}

/// A service, or a subset of it, as target of traffic.
pub(super) fn destination(destination: &Destination, at: &FieldPath, findings: &mut Findings) {
    let host = &destination.host;
    let outcome = if host == "*" {
        Err("\"*\" is no destination".to_owned())
    } else {
        wildcard_host(host)
    };
    findings.test(at.field("host"), outcome);
    if let Some(subset) = &destination.subset {
        findings.test(at.field("subset"), label(subset));
    }
    if let Some(selector) = &destination.port {
        let at = at.field("port").field("number");
        match selector.number {
            Some(number) => findings.test(at, port(number)),
            None => findings.error(at, "missing-field", "the port has no number"),
        }
    }
}

/// Namespaces that an object is visible in.
pub(super) fn export_to(entries: &[String], namespace: &str, kind: Kind, at: &FieldPath, findings: &mut Findings) {
    let mut seen = BTreeSet::new();
    for (index, entry) in entries.iter().enumerate() {
        let at = at.index(index);
        let nobody = entry == "~";
        if !(entry == "." || entry == "*" || nobody || is_label(entry)) {
            findings.error(
                at.clone(),
                "bad-value",
                format!("{entry:?} is no namespace; also allowed are \".\" and \"*\""),
            );
        }
        if nobody && kind != Kind::ServiceEntry {
            findings.error(
                at.clone(),
                "bad-value",
                "only a ServiceEntry can be exported to nobody (\"~\")",
            );
        }
        if !seen.insert(if entry == "." { namespace } else { entry }) {
            findings.error(
                at.clone(),
                "bad-value",
                format!("{entry:?} names a namespace that is named before"),
            );
        }
        if entries.len() > 1 && (entry == "*" || nobody) {
            findings.error(at, "bad-value", format!("{entry:?} must stand alone"));
        }
    }
}

const RETRY_ON: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// Conditions that are known and never lead to a retry.
const RETRY_ON_NOT_YET: &[&str] = &["retriable-headers", "http3-post-connect-failure"];

/// Conditions of retries, separated by commas: names, or statuses.
pub(super) fn retry_on(text: &str, at: &FieldPath, findings: &mut Findings) {
    let is_status = |condition: &str| {
        condition.len() == 3
            && condition
                .parse::<u16>()
                .is_ok_and(|status| (100..=599).contains(&status))
    };
    let conditions = || text.split(',').map(str::trim);
    for condition in conditions() {
        if RETRY_ON_NOT_YET.contains(&condition) {
            let message = format!("not supported yet: retryOn {condition}; nothing is retried because of it");
            findings.warning(at.clone(), "not-supported-yet", message);
        } else if condition == "retriable-status-codes" && !conditions().any(is_status) {
            let message = "retriable-status-codes has no effect without statuses; list them, as in \"503,504\"";
            findings.warning(at.clone(), "no-effect", message);
        } else if !is_status(condition) && !RETRY_ON.contains(&condition) {
            let hint = match crate::source::nearest(condition, RETRY_ON.iter().copied()) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("known are HTTP statuses and {}", RETRY_ON.join(", ")),
            };
            let message = format!("{condition:?} is no condition of retries; {hint}");
            findings.error(at.clone(), "bad-value", message);
        }
    }
}

/// The protocol of a service's port: what is known and not carried as what it is called is reported.
pub(super) fn port_protocol(text: &str, at: &FieldPath, findings: &mut Findings) {
    const NOT_YET: &[&str] = &["UDP", "HTTP_PROXY", "GRPC-WEB-TLS", "HBONE", "DOUBLE-HBONE"];
    let name = text.to_ascii_uppercase();
    if name == "UDP" {
        let message = "not supported yet: protocol UDP; only TCP connections to the port are carried";
        findings.warning(at.clone(), "not-supported-yet", message);
    } else if NOT_YET.contains(&name.as_str()) {
        let message = format!("not supported yet: protocol {name}; the protocol is detected, as if none were declared");
        findings.warning(at.clone(), "not-supported-yet", message);
    } else {
        findings.test(at.clone(), protocol(text));
    }
}

/// The protocol of a port; empty is detected.
pub(super) fn protocol(text: &str) -> Outcome {
    const KNOWN: &[&str] = &[
        "HTTP",
        "HTTP2",
        "HTTPS",
        "HTTP_PROXY",
        "GRPC",
        "GRPC-WEB",
        "GRPC-WEB-TLS",
        "TCP",
        "TLS",
        "MONGO",
        "MYSQL",
        "REDIS",
        "UDP",
        "HBONE",
        "DOUBLE-HBONE",
    ];
    if text.is_empty() || KNOWN.contains(&text.to_ascii_uppercase().as_str()) {
        return Ok(());
    }
    Err(format!("{text:?} is no protocol; known are {}", KNOWN.join(", ")))
}
