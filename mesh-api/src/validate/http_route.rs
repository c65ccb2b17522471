//! One rule for HTTP of a VirtualService: its matches, its action, and what it changes on the way.

use super::headers::{self, is_authority};
use super::text::{self, EmptyPrefix, destination, is_label, labels, millisecond, string_match, value_match};
use super::virtual_service::{beside_gateways, gateway_name, weights};
use super::{Findings, headers::CLAIMS};
use crate::crd::virtual_service::{
    CorsPolicy, DirectResponse, FaultInjection, HttpMatch, HttpRedirect, HttpRetry, HttpRewrite, HttpRoute,
};
use crate::source::FieldPath;

/// The largest body of a direct response, as in Istio.
const MAX_BODY: usize = 1024 * 1024;

const GRPC_STATUSES: &[&str] = &[
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

pub(super) fn check(route: &HttpRoute, in_mesh: bool, at: &FieldPath, findings: &mut Findings) {
    action(route, at, findings);
    for (index, m) in route.matches.iter().enumerate() {
        request_match(m, in_mesh, &at.field("match").index(index), findings);
    }
    for (index, leg) in route.route.iter().enumerate() {
        let at = at.field("route").index(index);
        destination(&leg.destination, &at.field("destination"), findings);
        if let Some(changes) = &leg.headers {
            headers::changes(changes, &at.field("headers"), findings);
        }
    }
    weights(route.route.iter().map(|leg| leg.weight), &at.field("route"), findings);
    if let Some(redirect_to) = &route.redirect {
        redirect(redirect_to, route, &at.field("redirect"), findings);
    }
    if let Some(response) = &route.direct_response {
        direct_response(response, &at.field("directResponse"), findings);
    }
    if let Some(changes) = &route.rewrite {
        rewrite(changes, &at.field("rewrite"), findings);
    }
    if let Some(timeout) = route.timeout {
        findings.test(at.field("timeout"), millisecond(timeout));
    }
    if let Some(policy) = &route.retries {
        retries(policy, &at.field("retries"), findings);
    }
    if let Some(injected) = &route.fault {
        fault(injected, &at.field("fault"), findings);
    }
    mirrors(route, at, findings);
    if let Some(policy) = &route.cors_policy {
        cors(policy, &at.field("corsPolicy"), findings);
    }
    if let Some(changes) = &route.headers {
        headers::changes(changes, &at.field("headers"), findings);
    }
    authority_is_set_once(route, at, findings);
}

/// What a rule does: exactly one of forwarding, redirect, direct response and delegation.
fn action(route: &HttpRoute, at: &FieldPath, findings: &mut Findings) {
    let forwards = !route.route.is_empty();
    let chosen = [
        ("route", forwards),
        ("redirect", route.redirect.is_some()),
        ("directResponse", route.direct_response.is_some()),
        ("delegate", route.delegate.is_some()),
    ];
    let set: Vec<&str> = chosen
        .into_iter()
        .filter(|(_, set)| *set)
        .map(|(name, _)| name)
        .collect();
    match set[..] {
        [] => findings.error(
            at.clone(),
            "missing-field",
            "the rule does nothing: it needs one of route, redirect, directResponse and delegate",
        ),
        [_] => {}
        [first, second, ..] => {
            let message = format!("{second} cannot be set together with {first}");
            findings.error(at.field(second), "one-of", message);
        }
    }
    if route.redirect.is_some() || route.direct_response.is_some() {
        let answer = if route.redirect.is_some() {
            "redirect"
        } else {
            "directResponse"
        };
        for (name, set) in [("fault", route.fault.is_some()), ("rewrite", route.rewrite.is_some())] {
            if set {
                findings.error(
                    at.field(name),
                    "one-of",
                    format!("{name} cannot be set together with {answer}"),
                );
            }
        }
    }
}

fn request_match(m: &HttpMatch, in_mesh: bool, at: &FieldPath, findings: &mut Findings) {
    if let Some(uri) = &m.uri {
        string_match(uri, EmptyPrefix::Allowed, &at.field("uri"), findings);
    }
    for (name, text) in [
        ("scheme", &m.scheme),
        ("method", &m.method),
        ("authority", &m.authority),
    ] {
        if let Some(text) = text {
            string_match(text, EmptyPrefix::Refused, &at.field(name), findings);
        }
    }
    for (part, headers) in [("headers", &m.headers), ("withoutHeaders", &m.without_headers)] {
        for (name, value) in headers {
            let at = at.field(part).field(name);
            if name.starts_with(CLAIMS) {
                if in_mesh {
                    findings.error(
                        at.clone(),
                        "bad-value",
                        "claims of a token can be matched at gateways only",
                    );
                }
            } else {
                headers::matched_name(name, &at, findings);
            }
            value_match(value, &at, findings);
        }
    }
    for (name, value) in &m.query_params {
        value_match(value, &at.field("queryParams").field(name), findings);
    }
    if let Some(port) = m.port {
        findings.test(at.field("port"), text::port(port));
    }
    labels(&m.source_labels, &at.field("sourceLabels"), findings);
    for (index, gateway) in m.gateways.iter().enumerate() {
        gateway_name(gateway, &at.field("gateways").index(index), findings);
    }
    if let Some(namespace) = m.source_namespace.as_deref().filter(|namespace| !is_label(namespace)) {
        findings.error(
            at.field("sourceNamespace"),
            "bad-value",
            format!("{namespace:?} is no namespace"),
        );
    }
    beside_gateways(
        &m.gateways,
        &m.source_labels,
        m.source_namespace.as_deref(),
        at,
        findings,
    );
    if m.ignore_uri_case && m.uri.as_ref().is_some_and(|uri| uri.regex.is_some()) {
        let message = "ignoreUriCase has no effect on a regular expression; write (?i) in front of it";
        findings.warning(at.field("ignoreUriCase"), "no-effect", message);
    }
}

fn redirect(redirect: &HttpRedirect, route: &HttpRoute, at: &FieldPath, findings: &mut Findings) {
    let set = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
    if set(&redirect.uri) && set(&redirect.prefix_rewrite) {
        findings.error(
            at.field("prefixRewrite"),
            "one-of",
            "prefixRewrite cannot be set together with uri",
        );
    }
    if set(&redirect.prefix_rewrite)
        && route
            .matches
            .iter()
            .filter_map(|m| m.uri.as_ref())
            .any(|uri| uri.prefix.is_none())
    {
        findings.error(
            at.field("prefixRewrite"),
            "bad-value",
            "prefixRewrite needs every match to be on a prefix",
        );
    }
    let target = [
        &redirect.uri,
        &redirect.prefix_rewrite,
        &redirect.authority,
        &redirect.scheme,
    ];
    if !target.into_iter().any(set) && redirect.port.is_none() && redirect.derive_port.is_none() {
        findings.error(
            at.clone(),
            "missing-field",
            "the redirect changes nothing: set uri, authority, scheme or port",
        );
    }
    if let Some(code) = redirect
        .redirect_code
        .filter(|code| ![301, 302, 303, 307, 308].contains(code))
    {
        let message = format!("{code} is no status of a redirect; known are 301, 302, 303, 307 and 308");
        findings.error(at.field("redirectCode"), "bad-value", message);
    }
    if let Some(scheme) = redirect
        .scheme
        .as_deref()
        .filter(|scheme| !["", "http", "https"].contains(scheme))
    {
        let message = format!("{scheme:?} is no scheme of a redirect; known are http and https");
        findings.error(at.field("scheme"), "bad-value", message);
    }
    if let Some(port) = redirect.port {
        findings.test(at.field("port"), text::port(port));
    }
}

fn direct_response(response: &DirectResponse, at: &FieldPath, findings: &mut Findings) {
    if !(200..=599).contains(&response.status) {
        let message = format!(
            "{} is no status of an answer: from 200 to 599 is allowed",
            response.status
        );
        findings.error(at.field("status"), "bad-value", message);
    }
    let Some(body) = &response.body else { return };
    let length = match (&body.string, &body.bytes) {
        (Some(text), _) => text.len(),
        (None, Some(encoded)) => {
            if !is_base64(encoded) {
                findings.error(at.field("body").field("bytes"), "bad-value", "the body is not base64");
            }
            encoded.len() / 4 * 3
        }
        (None, None) => 0,
    };
    if length > MAX_BODY {
        findings.error(
            at.field("body"),
            "bad-value",
            format!("the body has {length} bytes; at most {MAX_BODY} are allowed"),
        );
    }
}

fn is_base64(text: &str) -> bool {
    let digits = text.trim_end_matches('=');
    text.len().is_multiple_of(4)
        && text.len() - digits.len() <= 2
        && digits
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
}

fn rewrite(rewrite: &HttpRewrite, at: &FieldPath, findings: &mut Findings) {
    if rewrite.uri.is_some() && rewrite.uri_regex_rewrite.is_some() {
        findings.error(
            at.field("uriRegexRewrite"),
            "one-of",
            "uriRegexRewrite cannot be set together with uri",
        );
    }
    if rewrite.uri.is_none() && rewrite.uri_regex_rewrite.is_none() && rewrite.authority.is_none() {
        findings.error(
            at.clone(),
            "missing-field",
            "the rewrite changes nothing: set uri, uriRegexRewrite or authority",
        );
    }
    let Some(by_regex) = &rewrite.uri_regex_rewrite else {
        return;
    };
    let at = at.field("uriRegexRewrite");
    let (pattern, replacement) = (by_regex.matches.as_deref(), by_regex.rewrite.as_deref());
    let (Some(pattern), Some(replacement)) = (pattern.filter(|p| !p.is_empty()), replacement.filter(|r| !r.is_empty()))
    else {
        return findings.error(at, "missing-field", "uriRegexRewrite needs both match and rewrite");
    };
    match text::regex(pattern) {
        Err(message) => findings.error(at.field("match"), "bad-value", message),
        Ok(captures) => findings.test(at.field("rewrite"), captures_exist(replacement, captures)),
    }
}

/// `\1` and so on must refer to captures that there are; `\\` is the character itself.
fn captures_exist(replacement: &str, captures: usize) -> Result<(), String> {
    let mut rest = replacement.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            continue;
        }
        match rest.next() {
            Some('\\') => {}
            Some(digit @ '0'..='9') => {
                let number = digit as usize - '0' as usize;
                if number > captures {
                    return Err(format!(
                        "\\{number} refers to a capture that match does not have ({captures} there)"
                    ));
                }
            }
            _ => return Err("a single backslash; write \"\\\\\" for the character itself".to_owned()),
        }
    }
    Ok(())
}

fn retries(policy: &HttpRetry, at: &FieldPath, findings: &mut Findings) {
    let attempts = policy.attempts.unwrap_or(0);
    findings.test(at.field("attempts"), text::not_negative(attempts));
    let configured = [
        ("perTryTimeout", policy.per_try_timeout.is_some()),
        (
            "retryOn",
            policy.retry_on.as_deref().is_some_and(|text| !text.is_empty()),
        ),
        ("retryRemoteLocalities", policy.retry_remote_localities.is_some()),
    ];
    if attempts == 0
        && let Some((name, _)) = configured.into_iter().find(|(_, set)| *set)
    {
        let message = format!("{name} has no effect without attempts: 0, the default, disables retries");
        findings.error(at.field(name), "bad-value", message);
    }
    for (name, duration) in [("perTryTimeout", policy.per_try_timeout), ("backoff", policy.backoff)] {
        if let Some(duration) = duration {
            findings.test(at.field(name), millisecond(duration));
        }
    }
    if let Some(conditions) = policy.retry_on.as_deref().filter(|text| !text.is_empty()) {
        text::retry_on(conditions, &at.field("retryOn"), findings);
    }
}

fn fault(fault: &FaultInjection, at: &FieldPath, findings: &mut Findings) {
    if fault.delay.is_none() && fault.abort.is_none() {
        findings.error(
            at.clone(),
            "missing-field",
            "the fault does nothing: set delay or abort",
        );
    }
    if let Some(delay) = &fault.delay {
        let at = at.field("delay");
        match delay.percent {
            Some(percent) => {
                findings.test(at.field("percent"), text::whole_percent(percent));
                findings.warning(at.field("percent"), "deprecated", "percent is superseded by percentage");
            }
            None => share_of_requests(delay.percentage.as_ref(), &at, findings),
        }
        if delay.exponential_delay.is_some() {
            let message = "exponentialDelay does not work, here as in Istio; use fixedDelay";
            findings.error(at.field("exponentialDelay"), "bad-value", message);
        }
        match delay.fixed_delay {
            Some(duration) => findings.test(at.field("fixedDelay"), millisecond(duration)),
            None if delay.exponential_delay.is_some() => {}
            None => findings.warning(at, "no-effect", "the delay has no effect without fixedDelay"),
        }
    }
    if let Some(abort) = &fault.abort {
        let at = at.field("abort");
        share_of_requests(abort.percentage.as_ref(), &at, findings);
        if let Some(status) = abort.http_status.filter(|status| !(200..=599).contains(status)) {
            let message = format!("{status} is no status of an answer: from 200 to 599 is allowed");
            findings.error(at.field("httpStatus"), "bad-value", message);
        }
        if let Some(status) = &abort.grpc_status {
            findings.test(at.field("grpcStatus"), grpc_status(status));
        }
        if abort.http2_error.is_some() {
            let message = "http2Error does not work, here as in Istio; use httpStatus or grpcStatus";
            findings.error(at.field("http2Error"), "bad-value", message);
        }
        if abort.http_status.is_none() && abort.grpc_status.is_none() && abort.http2_error.is_none() {
            findings.warning(
                at,
                "no-effect",
                "the abort has no effect without httpStatus or grpcStatus",
            );
        }
    }
}

fn share_of_requests(percentage: Option<&crate::crd::common::Percent>, at: &FieldPath, findings: &mut Findings) {
    let at = at.field("percentage");
    match percentage {
        Some(percentage) => findings.test(at, text::percent(percentage)),
        None => findings.warning(
            at,
            "no-effect",
            "without a percentage no request is affected; write value: 100 for all",
        ),
    }
}

fn grpc_status(status: &str) -> Result<(), String> {
    if GRPC_STATUSES.contains(&status) {
        return Ok(());
    }
    match crate::source::nearest(status, GRPC_STATUSES.iter().copied()) {
        Some(near) => Err(format!("{status:?} is no gRPC status; did you mean {near}?")),
        None => Err(format!("{status:?} is no gRPC status; write for instance NOT_FOUND")),
    }
}

fn mirrors(route: &HttpRoute, at: &FieldPath, findings: &mut Findings) {
    if let Some(mirror) = &route.mirror {
        destination(mirror, &at.field("mirror"), findings);
        if !route.mirrors.is_empty() {
            findings.error(
                at.field("mirrors"),
                "one-of",
                "mirrors cannot be set together with mirror",
            );
        }
    } else if route.mirror_percentage.is_some() {
        findings.warning(
            at.field("mirrorPercentage"),
            "no-effect",
            "mirrorPercentage has no effect without mirror",
        );
    }
    for (name, percent) in [
        ("mirrorPercent", route.mirror_percent),
        ("mirror_percent", route.mirror_percent_alias),
    ] {
        let Some(percent) = percent else { continue };
        findings.warning(
            at.field(name),
            "deprecated",
            format!("{name} is superseded by mirrorPercentage"),
        );
        if percent > 100 {
            let message = format!("{percent} per cent is not from 0 to 100");
            findings.error(at.field(name), "bad-value", message);
        }
    }
    if let Some(percentage) = &route.mirror_percentage {
        findings.test(at.field("mirrorPercentage"), text::percent(percentage));
    }
    for (index, mirror) in route.mirrors.iter().enumerate() {
        let at = at.field("mirrors").index(index);
        destination(&mirror.destination, &at.field("destination"), findings);
        if let Some(percentage) = &mirror.percentage {
            findings.test(at.field("percentage"), text::percent(percentage));
        }
    }
}

fn cors(policy: &CorsPolicy, at: &FieldPath, findings: &mut Findings) {
    for (index, origin) in policy.allow_origins.iter().enumerate() {
        string_match(
            origin,
            EmptyPrefix::Refused,
            &at.field("allowOrigins").index(index),
            findings,
        );
    }
    for (name, list) in [
        ("allowHeaders", &policy.allow_headers),
        ("exposeHeaders", &policy.expose_headers),
    ] {
        for (index, header) in list.iter().enumerate().filter(|(_, header)| !headers::is_token(header)) {
            findings.error(
                at.field(name).index(index),
                "bad-value",
                format!("{header:?} is no header name"),
            );
        }
    }
    if let Some(age) = policy.max_age {
        findings.test(at.field("maxAge"), millisecond(age));
    }
}

/// The host of a request can be rewritten in one place only.
fn authority_is_set_once(route: &HttpRoute, at: &FieldPath, findings: &mut Findings) {
    let rewritten = route.rewrite.as_ref().and_then(|rewrite| rewrite.authority.as_ref());
    let mut places: Vec<FieldPath> = rewritten
        .map(|_| at.field("rewrite").field("authority"))
        .into_iter()
        .collect();
    if let Some(operations) = route.headers.as_ref().and_then(|headers| headers.request.as_ref()) {
        let at = at.field("headers").field("request");
        for (verb, headers) in [("set", &operations.set), ("add", &operations.add)] {
            places.extend(
                headers
                    .keys()
                    .filter(|name| is_authority(name))
                    .map(|name| at.field(verb).field(name)),
            );
        }
    }
    if let [first, second, ..] = &places[..] {
        let message = format!("the host is already set by {first}");
        findings.error(second.clone(), "one-of", message);
    }
}
