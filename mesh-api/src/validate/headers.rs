//! Tests of header names, header values and changes to headers.

use super::Findings;
use super::text::Outcome;
use crate::crd::virtual_service::{HeaderOperations, Headers};
use crate::source::FieldPath;

/// Key prefix of matches on claims of a token, which stand among header matches.
pub(super) const CLAIMS: &str = "@request.auth.claims";

const PSEUDO: &[&str] = &[":method", ":scheme", ":authority", ":path", ":status"];

/// The name of a header that is matched.
pub(super) fn matched_name(name: &str) -> Outcome {
    if PSEUDO.contains(&name) || is_token(name) {
        return Ok(());
    }
    Err(format!("{name:?} is no header name"))
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
            findings.test(at, header_value(value));
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
fn header_value(value: &str) -> Outcome {
    if value.chars().any(|c| c.is_control() && c != '\t') {
        return Err("a header value must not contain control characters".to_owned());
    }
    let mut rest = value;
    while let Some(start) = rest.find('%') {
        rest = &rest[start + 1..];
        match rest.find('%') {
            Some(end) => rest = &rest[end + 1..],
            None => {
                return Err(format!(
                    "{value:?} has a single '%'; write \"%%\" for the character itself"
                ));
            }
        }
    }
    Ok(())
}

/// A token of RFC 9110, section 5.6.2.
pub(super) fn is_token(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}
