//! PeerAuthentication and RequestAuthentication, and what all kinds that select workloads share.

use super::Findings;
use super::text;
use crate::crd::common::{TargetRef, WorkloadSelector};
use crate::crd::peer_authentication::PeerAuthenticationSpec;
use crate::crd::request_authentication::{JwtRule, RequestAuthenticationSpec};
use crate::source::FieldPath;

/// What an object is for: workloads by label, or other objects by name; not both.
pub(super) fn subject(
    selector: Option<&WorkloadSelector>,
    target: Option<&TargetRef>,
    targets: &[TargetRef],
    at: &FieldPath,
    findings: &mut Findings,
) {
    let set = [
        ("selector", selector.is_some()),
        ("targetRef", target.is_some()),
        ("targetRefs", !targets.is_empty()),
    ];
    let set: Vec<&str> = set.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect();
    if let [first, second, ..] = set[..] {
        findings.error(
            at.field(second),
            "one-of",
            format!("{second} cannot be set together with {first}"),
        );
    }
    if let Some(selector) = selector {
        text::selector(
            &selector.match_labels,
            &at.field("selector").field("matchLabels"),
            findings,
        );
    }
    if let Some(target) = target {
        target_ref(target, &at.field("targetRef"), findings);
    }
    for (index, target) in targets.iter().enumerate() {
        target_ref(target, &at.field("targetRefs").index(index), findings);
    }
}

fn target_ref(target: &TargetRef, at: &FieldPath, findings: &mut Findings) {
    const ALLOWED: &[(&str, &str)] = &[
        ("", "Service"),
        ("core", "Service"),
        ("networking.istio.io", "ServiceEntry"),
        ("gateway.networking.k8s.io", "Gateway"),
        ("gateway.networking.k8s.io", "GatewayClass"),
    ];
    let group = target.group.as_deref().unwrap_or_default();
    if !ALLOWED.contains(&(group, target.kind.as_str())) {
        let message = format!(
            "{:?} of group {group:?} is nothing that a policy can be attached to",
            target.kind
        );
        findings.error(at.field("kind"), "bad-value", message);
    }
    if target.name.is_empty() {
        findings.error(at.field("name"), "missing-field", "the name must not be empty");
    }
    if target
        .namespace
        .as_deref()
        .is_some_and(|namespace| !namespace.is_empty())
    {
        let message = "a policy can only be attached within its own namespace; leave the namespace out";
        findings.error(at.field("namespace"), "bad-value", message);
    }
}

pub(super) fn peer_authentication(spec: &PeerAuthenticationSpec, at: &FieldPath, findings: &mut Findings) {
    subject(spec.selector.as_ref(), None, &[], at, findings);
    let selects = spec
        .selector
        .as_ref()
        .is_some_and(|selector| !selector.match_labels.is_empty());
    if !spec.port_level_mtls.is_empty() && !selects {
        let message = "portLevelMtls needs a selector: ports are those of some workloads";
        findings.error(at.field("portLevelMtls"), "bad-value", message);
    }
    for port in spec.port_level_mtls.keys() {
        let outcome = match port.parse() {
            Ok(number) => text::port(number),
            Err(_) => Err(format!("{port:?} is no port")),
        };
        findings.test(at.field("portLevelMtls").field(port), outcome);
    }
}

pub(super) fn request_authentication(spec: &RequestAuthenticationSpec, at: &FieldPath, findings: &mut Findings) {
    subject(
        spec.selector.as_ref(),
        spec.target_ref.as_ref(),
        &spec.target_refs,
        at,
        findings,
    );
    for (index, rule) in spec.jwt_rules.iter().enumerate() {
        jwt_rule(rule, &at.field("jwtRules").index(index), findings);
    }
}

fn jwt_rule(rule: &JwtRule, at: &FieldPath, findings: &mut Findings) {
    if rule.issuer.as_deref().unwrap_or_default().is_empty() {
        findings.error(at.field("issuer"), "missing-field", "the rule needs an issuer");
    }
    let keys = [
        ("jwksUri", rule.jwks_uri.as_deref()),
        ("jwks_uri", rule.jwks_uri_alias.as_deref()),
        ("jwks", rule.jwks.as_deref()),
    ];
    let keys: Vec<_> = keys
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect();
    if let [(first, _), (second, _), ..] = keys[..] {
        findings.error(
            at.field(second),
            "one-of",
            format!("{second} cannot be set together with {first}"),
        );
    }
    for (name, uri) in keys.into_iter().filter(|(name, _)| *name != "jwks") {
        if !(uri.starts_with("https://") || uri.starts_with("http://")) {
            findings.error(
                at.field(name),
                "bad-value",
                format!("{uri:?} is no http or https address"),
            );
        }
    }
    for (index, claim) in rule.output_claim_to_headers.iter().enumerate() {
        let at = at.field("outputClaimToHeaders").index(index);
        if !super::headers::is_token(&claim.header) {
            findings.error(
                at.field("header"),
                "bad-value",
                format!("{:?} is no header name", claim.header),
            );
        }
        if claim.claim.is_empty() {
            findings.error(at.field("claim"), "missing-field", "the claim must not be empty");
        }
    }
    if let Some(timeout) = rule.timeout {
        findings.test(at.field("timeout"), text::millisecond(timeout));
    }
}
