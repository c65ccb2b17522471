//! Tests of header names, header values and changes to headers.

use super::Findings;
use super::text::Outcome;
use crate::crd::virtual_service::{HeaderOperations, Headers};
use crate::source::FieldPath;

/// Key prefix of matches on claims of a token, which stand among header matches.
pub(super) const CLAIMS: &str = "@request.auth.claims";

/// Pseudo-headers, with the field of a match that means the same.
const PSEUDO: &[(&str, Option<&str>)] = &[
    (":method", Some("method")),
    (":scheme", Some("scheme")),
    (":authority", Some("authority")),
    (":path", Some("uri")),
    (":status", None),
];

/// Keys that Istio passes over among matched headers, since a match has fields of these names.
const FIELDS: &[&str] = &["uri", "scheme", "method", "authority"];

/// The name of a header that is matched.
pub(super) fn matched_name(name: &str, at: &FieldPath, findings: &mut Findings) {
    if let Some((_, instead)) = PSEUDO.iter().find(|(pseudo, _)| *pseudo == name) {
        let instead = instead.map_or_else(String::new, |field| format!("; use the match's own field {field}"));
        let message = format!("not supported yet: {name} among headers: the match never applies{instead}");
        findings.warning(at.clone(), "not-supported-yet", message);
    } else if FIELDS.contains(&name) {
        let message =
            format!("{name:?} among headers has no effect, here as in Istio; use the match's own field {name}");
        findings.warning(at.clone(), "no-effect", message);
    } else if !is_token(name) {
        findings.error(at.clone(), "bad-value", format!("{name:?} is no header name"));
    }
}

/// The changes of a route or of one of its destinations.
pub(super) fn changes(headers: &Headers, at: &FieldPath, findings: &mut Findings) {
    if let Some(operations) = &headers.request {
        side(operations, Side::Request, &at.field("request"), findings);
    }
    if let Some(operations) = &headers.response {
        side(operations, Side::Response, &at.field("response"), findings);
    }
}

/// Whether a header names the host of a request.
pub(super) fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case(":authority") || name.eq_ignore_ascii_case("host")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Request,
    Response,
}

fn side(operations: &HeaderOperations, side: Side, at: &FieldPath, findings: &mut Findings) {
    for (verb, headers) in [("set", &operations.set), ("add", &operations.add)] {
        for (name, value) in headers {
            let at = at.field(verb).field(name);
            let authority = side == Side::Request && is_authority(name);
            if !authority {
                findings.test(at.clone(), changed_name(name));
            }
            header_value(value, &at, findings);
        }
    }
    for (index, name) in operations.remove.iter().enumerate() {
        findings.test(at.field("remove").index(index), changed_name(name));
    }
}

fn changed_name(name: &str) -> Outcome {
    if name.starts_with(':') || is_authority(name) {
        return Err(format!(
            "{name:?} cannot be changed here; use rewrite.authority for the host"
        ));
    }
    if !is_token(name) {
        return Err(format!("{name:?} is no header name"));
    }
    Ok(())
}

/// A value, in which `%` stands for a command operator and `%%` for itself.
fn header_value(value: &str, at: &FieldPath, findings: &mut Findings) {
    if value.chars().any(|c| c.is_control() && c != '\t') {
        let message = "a header value must not contain control characters";
        return findings.error(at.clone(), "bad-value", message);
    }
    let mut rest = value;
    while let Some((_, after)) = rest.split_once('%') {
        let Some((operator, after)) = after.split_once('%') else {
            let message = format!("{value:?} has a single '%'; write \"%%\" for the character itself");
            return findings.error(at.clone(), "bad-value", message);
        };
        if !operator.is_empty() {
            let message =
                format!("not supported yet: the command operator %{operator}%; the value is sent as it stands");
            findings.warning(at.clone(), "not-supported-yet", message);
        }
        rest = after;
    }
}

/// A token of RFC 9110, section 5.6.2.
pub(super) fn is_token(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}
