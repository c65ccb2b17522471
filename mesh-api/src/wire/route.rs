//! HTTP routes to and from their messages.

use http::{HeaderName, HeaderValue, StatusCode};

use super::field::{self, FieldError, InField, Within, duration, each, each_value, nanos, optional, required};
use super::proto::{self, MatchAttribute, abort::Answer, http_route::Action, redirect::Port};
use super::text::{decode_text, encode_header_value, encode_text, header_name, header_value, status};
use crate::model::{
    Abort, Fault, Forward, HeaderMatch, HeaderOps, HttpMatch, HttpRoute, Mirror, PathRewrite, Redirect, RedirectPort,
    RetryCondition, RetryPolicy, Rewrite, RouteAction, TextMatch, WeightedCluster,
};

pub(super) fn encode(route: &HttpRoute) -> proto::HttpRoute {
    let action = match &route.action {
        RouteAction::Forward(forward) => Action::Forward(encode_forward(forward)),
        RouteAction::Redirect(redirect) => Action::Redirect(encode_redirect(redirect)),
        RouteAction::DirectResponse { status, body } => Action::DirectResponse(proto::DirectResponse {
            status: status.as_u16().into(),
            body: body.clone(),
        }),
    };
    proto::HttpRoute {
        name: route.name.to_string(),
        origin: route.origin.as_ref().map(|(object, _)| field::encode_object(object)),
        origin_part: route
            .origin
            .as_ref()
            .map(|(_, part)| part.to_string())
            .unwrap_or_default(),
        matches: route.matches.iter().map(encode_match).collect(),
        action: Some(action),
        headers: encode_ops(&route.headers),
        fault: route.fault.as_ref().map(encode_fault),
    }
}

/// `clusters` is the number of the destination's clusters.
pub(super) fn decode(route: proto::HttpRoute, clusters: usize) -> Result<HttpRoute, FieldError> {
    let origin = optional("origin", route.origin, field::decode_object)?;
    Ok(HttpRoute {
        name: route.name.into(),
        origin: origin.map(|object| (object, route.origin_part.into())),
        matches: each("matches", route.matches, decode_match)?,
        action: match route.action {
            Some(Action::Forward(forward)) => {
                RouteAction::Forward(Box::new(decode_forward(forward, clusters).within("forward")?))
            }
            Some(Action::Redirect(redirect)) => {
                RouteAction::Redirect(Box::new(decode_redirect(redirect).within("redirect")?))
            }
            Some(Action::DirectResponse(response)) => RouteAction::DirectResponse {
                status: status("direct_response.status", response.status)?,
                body: response.body,
            },
            None => return Err(FieldError::new("action", "is missing, or unknown to this release")),
        },
        headers: decode_ops(route.headers)?,
        fault: optional("fault", route.fault, decode_fault)?,
    })
}

fn encode_match(rule: &HttpMatch) -> proto::HttpMatch {
    let matcher = |attribute: MatchAttribute, name: &str, text: &TextMatch| proto::Matcher {
        attribute: attribute.into(),
        name: name.to_owned(),
        text: Some(encode_text(text)),
    };
    let single = [
        (MatchAttribute::Path, &rule.path),
        (MatchAttribute::Scheme, &rule.scheme),
        (MatchAttribute::Method, &rule.method),
        (MatchAttribute::Authority, &rule.authority),
    ];
    let mut matchers = Vec::new();
    for (attribute, text) in single {
        matchers.extend(text.as_ref().map(|text| matcher(attribute, "", text)));
    }
    for header in &rule.headers {
        matchers.push(matcher(MatchAttribute::Header, header.name.as_str(), &header.value));
    }
    for header in &rule.without_headers {
        matchers.push(matcher(
            MatchAttribute::WithoutHeader,
            header.name.as_str(),
            &header.value,
        ));
    }
    for (name, text) in &rule.query {
        matchers.push(matcher(MatchAttribute::Query, name, text));
    }
    proto::HttpMatch { matchers }
}

fn decode_match(rule: proto::HttpMatch) -> Result<HttpMatch, FieldError> {
    let mut decoded = HttpMatch::default();
    let single = |slot: &mut Option<TextMatch>, text| match slot.replace(text) {
        None => Ok(()),
        Some(_) => Err(FieldError::new("attribute", "occurs twice")),
    };
    let header = |name: &str, value| {
        Ok(HeaderMatch {
            name: header_name("name", name)?,
            value,
        })
    };
    let _: Vec<()> = each("matchers", rule.matchers, |matcher| {
        let text = required("text", matcher.text, decode_text)?;
        match field::known("attribute", matcher.attribute)? {
            MatchAttribute::Unspecified => return field::unspecified("attribute"),
            MatchAttribute::Path => single(&mut decoded.path, text)?,
            MatchAttribute::Scheme => single(&mut decoded.scheme, text)?,
            MatchAttribute::Method => single(&mut decoded.method, text)?,
            MatchAttribute::Authority => single(&mut decoded.authority, text)?,
            MatchAttribute::Header => decoded.headers.push(header(&matcher.name, text)?),
            MatchAttribute::WithoutHeader => decoded.without_headers.push(header(&matcher.name, text)?),
            MatchAttribute::Query => decoded.query.push((matcher.name.into(), text)),
        }
        Ok(())
    })?;
    Ok(decoded)
}

fn encode_forward(forward: &Forward) -> proto::Forward {
    proto::Forward {
        clusters: forward.clusters.iter().map(encode_leg).collect(),
        timeout: forward.timeout.map(nanos),
        retry: forward.retry.as_ref().map(encode_retry),
        rewrite: encode_rewrite(&forward.rewrite),
        mirrors: forward
            .mirrors
            .iter()
            .map(|mirror| proto::Mirror {
                cluster: index_of(mirror.cluster),
                share_per_million: mirror.share.per_million(),
            })
            .collect(),
    }
}

fn decode_forward(forward: proto::Forward, clusters: usize) -> Result<Forward, FieldError> {
    Ok(Forward {
        clusters: decode_legs("clusters", forward.clusters, clusters)?,
        timeout: forward.timeout.map(duration),
        retry: optional("retry", forward.retry, decode_retry)?,
        rewrite: optional("rewrite", forward.rewrite, decode_rewrite)?.unwrap_or_default(),
        mirrors: each("mirrors", forward.mirrors, |mirror| {
            Ok(Mirror {
                cluster: cluster_index(mirror.cluster, clusters)?,
                share: field::percentage("share_per_million", mirror.share_per_million)?,
            })
        })?,
    })
}

pub(super) fn encode_leg(leg: &WeightedCluster) -> proto::WeightedCluster {
    proto::WeightedCluster {
        cluster: index_of(leg.cluster),
        weight: leg.weight,
        headers: encode_ops(&leg.headers),
    }
}

/// The legs of a split: at least one, and positive weights when there are several.
pub(super) fn decode_legs<C>(field: &str, legs: Vec<proto::WeightedCluster>, clusters: usize) -> Result<C, FieldError>
where
    C: FromIterator<WeightedCluster>,
{
    if legs.is_empty() {
        return Err(FieldError::new(field, "is empty: expected at least one cluster"));
    }
    let several = legs.len() > 1;
    each(field, legs, |leg| {
        if several && leg.weight == 0 {
            return Err(FieldError::new("weight", "0 among several: expected a positive weight"));
        }
        Ok(WeightedCluster {
            cluster: cluster_index(leg.cluster, clusters)?,
            weight: leg.weight,
            headers: decode_ops(leg.headers)?,
        })
    })
}

/// An index that cannot be written is out of range for the reader as well.
fn index_of(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn cluster_index(index: u32, clusters: usize) -> Result<usize, FieldError> {
    usize::try_from(index)
        .ok()
        .filter(|index| *index < clusters)
        .ok_or_else(|| {
            FieldError::new(
                "cluster",
                format_args!("{index}: the destination has {clusters} clusters"),
            )
        })
}

fn encode_rewrite(rewrite: &Rewrite) -> Option<proto::Rewrite> {
    (*rewrite != Rewrite::default()).then(|| proto::Rewrite {
        uri: field::owned(rewrite.uri.as_ref()),
        regex: rewrite.regex.as_ref().map(|regex| {
            let (expression, replacement) = regex.parts();
            proto::PathRewrite {
                expression: expression.to_owned(),
                replacement: replacement.to_owned(),
            }
        }),
        authority: rewrite.authority.as_ref().map(encode_header_value),
    })
}

fn decode_rewrite(rewrite: proto::Rewrite) -> Result<Rewrite, FieldError> {
    Ok(Rewrite {
        uri: field::shared(rewrite.uri),
        regex: optional("regex", rewrite.regex, |regex| {
            PathRewrite::new(&regex.expression, &regex.replacement).field("expression")
        })?,
        authority: decode_authority(rewrite.authority)?,
    })
}

fn decode_authority(authority: Option<bytes::Bytes>) -> Result<Option<HeaderValue>, FieldError> {
    authority.map(|value| header_value("authority", &value)).transpose()
}

fn encode_retry(retry: &RetryPolicy) -> proto::RetryPolicy {
    proto::RetryPolicy {
        attempts: retry.attempts,
        per_try_timeout: retry.per_try_timeout.map(nanos),
        retry_on: retry
            .retry_on
            .iter()
            .map(|condition| encode_condition(*condition))
            .collect(),
        backoff: nanos(retry.backoff),
        ignore_previous_hosts: retry.ignore_previous_hosts,
    }
}

fn decode_retry(retry: proto::RetryPolicy) -> Result<RetryPolicy, FieldError> {
    Ok(RetryPolicy {
        attempts: retry.attempts,
        per_try_timeout: retry.per_try_timeout.map(duration),
        retry_on: each_value("retry_on", retry.retry_on, decode_condition)?,
        backoff: duration(retry.backoff),
        ignore_previous_hosts: retry.ignore_previous_hosts,
    })
}

/// Named conditions have small numbers; statuses stand for themselves.
const FIRST_STATUS: u32 = 100;

fn encode_condition(condition: RetryCondition) -> u32 {
    let named = match condition {
        RetryCondition::Status(status) => return status.as_u16().into(),
        RetryCondition::ServerError => proto::RetryCondition::ServerError,
        RetryCondition::GatewayError => proto::RetryCondition::GatewayError,
        RetryCondition::Reset => proto::RetryCondition::Reset,
        RetryCondition::ResetBeforeRequest => proto::RetryCondition::ResetBeforeRequest,
        RetryCondition::ConnectFailure => proto::RetryCondition::ConnectFailure,
        RetryCondition::Retriable4xx => proto::RetryCondition::Retriable4xx,
        RetryCondition::RefusedStream => proto::RetryCondition::RefusedStream,
        RetryCondition::GrpcCancelled => proto::RetryCondition::GrpcCancelled,
        RetryCondition::GrpcDeadlineExceeded => proto::RetryCondition::GrpcDeadlineExceeded,
        RetryCondition::GrpcInternal => proto::RetryCondition::GrpcInternal,
        RetryCondition::GrpcResourceExhausted => proto::RetryCondition::GrpcResourceExhausted,
        RetryCondition::GrpcUnavailable => proto::RetryCondition::GrpcUnavailable,
        RetryCondition::EnvoyRateLimited => proto::RetryCondition::EnvoyRateLimited,
    };
    i32::from(named).unsigned_abs()
}

fn decode_condition(number: u32) -> Result<RetryCondition, String> {
    let unknown = || format!("condition {number} is unknown to this release");
    if number >= FIRST_STATUS {
        let status = u16::try_from(number)
            .ok()
            .and_then(|number| StatusCode::from_u16(number).ok());
        return status.map(RetryCondition::Status).ok_or_else(unknown);
    }
    let named = i32::try_from(number)
        .ok()
        .and_then(|number| proto::RetryCondition::try_from(number).ok());
    Ok(match named {
        None | Some(proto::RetryCondition::Unspecified) => return Err(unknown()),
        Some(proto::RetryCondition::ServerError) => RetryCondition::ServerError,
        Some(proto::RetryCondition::GatewayError) => RetryCondition::GatewayError,
        Some(proto::RetryCondition::Reset) => RetryCondition::Reset,
        Some(proto::RetryCondition::ResetBeforeRequest) => RetryCondition::ResetBeforeRequest,
        Some(proto::RetryCondition::ConnectFailure) => RetryCondition::ConnectFailure,
        Some(proto::RetryCondition::Retriable4xx) => RetryCondition::Retriable4xx,
        Some(proto::RetryCondition::RefusedStream) => RetryCondition::RefusedStream,
        Some(proto::RetryCondition::GrpcCancelled) => RetryCondition::GrpcCancelled,
        Some(proto::RetryCondition::GrpcDeadlineExceeded) => RetryCondition::GrpcDeadlineExceeded,
        Some(proto::RetryCondition::GrpcInternal) => RetryCondition::GrpcInternal,
        Some(proto::RetryCondition::GrpcResourceExhausted) => RetryCondition::GrpcResourceExhausted,
        Some(proto::RetryCondition::GrpcUnavailable) => RetryCondition::GrpcUnavailable,
        Some(proto::RetryCondition::EnvoyRateLimited) => RetryCondition::EnvoyRateLimited,
    })
}

fn encode_redirect(redirect: &Redirect) -> proto::Redirect {
    proto::Redirect {
        status: redirect.status.as_u16().into(),
        uri: field::owned(redirect.uri.as_ref()),
        prefix_rewrite: field::owned(redirect.prefix_rewrite.as_ref()),
        authority: field::owned(redirect.authority.as_ref()),
        scheme: field::owned(redirect.scheme.as_ref()),
        port: redirect.port.map(|port| match port {
            RedirectPort::Number(number) => Port::Number(number.into()),
            RedirectPort::FromProtocolDefault => Port::FromProtocolDefault(true),
            RedirectPort::FromRequestPort => Port::FromRequestPort(true),
        }),
    }
}

fn decode_redirect(redirect: proto::Redirect) -> Result<Redirect, FieldError> {
    if !matches!(redirect.status, 301 | 302 | 303 | 307 | 308) {
        let status = redirect.status;
        return Err(FieldError::new(
            "status",
            format_args!("{status}: expected 301, 302, 303, 307 or 308"),
        ));
    }
    Ok(Redirect {
        status: status("status", redirect.status)?,
        uri: field::shared(redirect.uri),
        prefix_rewrite: field::shared(redirect.prefix_rewrite),
        authority: field::shared(redirect.authority),
        scheme: field::shared(redirect.scheme),
        port: match redirect.port {
            Some(Port::Number(number)) => Some(RedirectPort::Number(field::port("number", number)?)),
            Some(Port::FromProtocolDefault(_)) => Some(RedirectPort::FromProtocolDefault),
            Some(Port::FromRequestPort(_)) => Some(RedirectPort::FromRequestPort),
            None => None,
        },
    })
}

fn encode_fields(fields: &[(HeaderName, HeaderValue)]) -> Vec<proto::HeaderField> {
    fields
        .iter()
        .map(|(name, value)| proto::HeaderField {
            name: name.as_str().to_owned(),
            value: encode_header_value(value),
        })
        .collect()
}

fn decode_fields(place: &str, fields: Vec<proto::HeaderField>) -> Result<Vec<(HeaderName, HeaderValue)>, FieldError> {
    each(place, fields, |field| {
        Ok((header_name("name", &field.name)?, header_value("value", &field.value)?))
    })
}

fn encode_names(names: &[HeaderName]) -> Vec<String> {
    names.iter().map(|name| name.as_str().to_owned()).collect()
}

fn decode_names(place: &str, names: Vec<String>) -> Result<Vec<HeaderName>, FieldError> {
    each_value(place, names, |name| {
        HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("`{name}` is no header name"))
    })
}

fn encode_ops(ops: &HeaderOps) -> Option<proto::HeaderOps> {
    (*ops != HeaderOps::default()).then(|| proto::HeaderOps {
        request_set: encode_fields(&ops.request_set),
        request_add: encode_fields(&ops.request_add),
        request_remove: encode_names(&ops.request_remove),
        response_set: encode_fields(&ops.response_set),
        response_add: encode_fields(&ops.response_add),
        response_remove: encode_names(&ops.response_remove),
        authority: ops.authority.as_ref().map(encode_header_value),
    })
}

fn decode_ops(ops: Option<proto::HeaderOps>) -> Result<HeaderOps, FieldError> {
    let decode = |ops: proto::HeaderOps| {
        Ok(HeaderOps {
            request_set: decode_fields("request_set", ops.request_set)?,
            request_add: decode_fields("request_add", ops.request_add)?,
            request_remove: decode_names("request_remove", ops.request_remove)?,
            response_set: decode_fields("response_set", ops.response_set)?,
            response_add: decode_fields("response_add", ops.response_add)?,
            response_remove: decode_names("response_remove", ops.response_remove)?,
            authority: decode_authority(ops.authority)?,
        })
    };
    Ok(optional("headers", ops, decode)?.unwrap_or_default())
}

fn encode_fault(fault: &Fault) -> proto::Fault {
    proto::Fault {
        delay: fault.delay.map(|(share, delay)| proto::Delay {
            share_per_million: share.per_million(),
            duration: nanos(delay),
        }),
        abort: fault.abort.map(|(share, abort)| proto::Abort {
            share_per_million: share.per_million(),
            answer: Some(match abort {
                Abort::Http(status) => Answer::HttpStatus(status.as_u16().into()),
                Abort::Grpc(code) => Answer::GrpcStatus(code),
            }),
        }),
    }
}

fn decode_fault(fault: proto::Fault) -> Result<Fault, FieldError> {
    Ok(Fault {
        delay: optional("delay", fault.delay, |delay| {
            let share = field::percentage("share_per_million", delay.share_per_million)?;
            Ok((share, duration(delay.duration)))
        })?,
        abort: optional("abort", fault.abort, |abort| {
            let share = field::percentage("share_per_million", abort.share_per_million)?;
            let answer = match abort.answer {
                Some(Answer::HttpStatus(code)) => Abort::Http(status("http_status", code)?),
                Some(Answer::GrpcStatus(code)) => Abort::Grpc(code),
                None => return field::unspecified("answer"),
            };
            Ok((share, answer))
        })?,
    })
}
