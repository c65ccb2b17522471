//! HTTP routes, with the words of VirtualService.

use std::sync::Arc;

use mesh_api::model::{
    Abort, Cluster, Fault, Forward, HeaderMatch, HeaderOps, HttpMatch, HttpRoute, PathRewrite, Redirect, RedirectPort,
    RetryCondition, RetryPolicy, Rewrite, RouteAction, TextMatch, WeightedCluster,
};
use serde_json::{Map, Value, json};

use super::{duration, header_value, headers, object, optional, percent, put, strings};

/// One route; `clusters` are the destination's.
pub(super) fn route(route: &HttpRoute, clusters: &[Arc<Cluster>]) -> Value {
    let mut map = Map::new();
    put(&mut map, "name", &*route.name);
    if let Some((origin, rule)) = &route.origin {
        put(&mut map, "origin", object(origin));
        put(&mut map, "rule", &**rule);
    }
    put(
        &mut map,
        "match",
        route.matches.iter().map(http_match).collect::<Vec<_>>(),
    );
    match &route.action {
        RouteAction::Forward(action) => forward(&mut map, action, clusters),
        RouteAction::Redirect(action) => put(&mut map, "redirect", redirect(action)),
        RouteAction::DirectResponse { status, body } => {
            let body = String::from_utf8_lossy(body);
            put(
                &mut map,
                "directResponse",
                json!({ "status": status.as_u16(), "body": body }),
            );
        }
    }
    put(&mut map, "headers", operations(&route.headers));
    put(&mut map, "fault", route.fault.as_ref().map(fault));
    Value::Object(map)
}

/// One leg of a split.
pub(super) fn leg(leg: &WeightedCluster, clusters: &[Arc<Cluster>]) -> Value {
    let mut map = Map::new();
    put(&mut map, "cluster", cluster_name(leg.cluster, clusters));
    put(&mut map, "weight", leg.weight);
    put(&mut map, "headers", operations(&leg.headers));
    Value::Object(map)
}

fn cluster_name(index: usize, clusters: &[Arc<Cluster>]) -> Value {
    clusters.get(index).map_or(Value::Null, |cluster| cluster.name().into())
}

fn forward(map: &mut Map<String, Value>, forward: &Forward, clusters: &[Arc<Cluster>]) {
    let legs: Vec<_> = forward.clusters.iter().map(|each| leg(each, clusters)).collect();
    put(map, "route", legs);
    put(map, "timeout", optional(forward.timeout));
    put(map, "retries", forward.retry.as_ref().map(retries));
    put(map, "rewrite", rewrite(&forward.rewrite));
    let mirrors: Vec<_> = forward
        .mirrors
        .iter()
        .map(|mirror| {
            json!({
                "cluster": cluster_name(mirror.cluster, clusters),
                "percentage": percent(mirror.share.per_million()),
            })
        })
        .collect();
    put(map, "mirrors", mirrors);
}

fn rewrite(rewrite: &Rewrite) -> Value {
    let mut map = Map::new();
    put(&mut map, "uri", rewrite.uri.as_deref());
    if let Some((expression, replacement)) = rewrite.regex.as_ref().map(PathRewrite::parts) {
        put(
            &mut map,
            "uriRegexRewrite",
            json!({ "match": expression, "rewrite": replacement }),
        );
    }
    put(&mut map, "authority", rewrite.authority.as_ref().map(header_value));
    Value::Object(map)
}

fn retries(retries: &RetryPolicy) -> Value {
    json!({
        "attempts": retries.attempts,
        "perTryTimeout": optional(retries.per_try_timeout),
        "retryOn": retries.retry_on.iter().map(retry_condition).collect::<Vec<_>>().join(","),
        "backoff": duration(retries.backoff),
        "retryIgnorePreviousHosts": retries.ignore_previous_hosts,
    })
}

fn retry_condition(condition: &RetryCondition) -> String {
    let text = match condition {
        RetryCondition::ServerError => "5xx",
        RetryCondition::GatewayError => "gateway-error",
        RetryCondition::Reset => "reset",
        RetryCondition::ResetBeforeRequest => "reset-before-request",
        RetryCondition::ConnectFailure => "connect-failure",
        RetryCondition::Retriable4xx => "retriable-4xx",
        RetryCondition::RefusedStream => "refused-stream",
        RetryCondition::Status(status) => return status.as_u16().to_string(),
        RetryCondition::GrpcCancelled => "cancelled",
        RetryCondition::GrpcDeadlineExceeded => "deadline-exceeded",
        RetryCondition::GrpcInternal => "internal",
        RetryCondition::GrpcResourceExhausted => "resource-exhausted",
        RetryCondition::GrpcUnavailable => "unavailable",
        RetryCondition::EnvoyRateLimited => "envoy-ratelimited",
    };
    text.to_owned()
}

fn redirect(redirect: &Redirect) -> Value {
    let mut map = Map::new();
    put(&mut map, "redirectCode", redirect.status.as_u16());
    put(&mut map, "uri", redirect.uri.as_deref());
    put(&mut map, "prefixRewrite", redirect.prefix_rewrite.as_deref());
    put(&mut map, "authority", redirect.authority.as_deref());
    put(&mut map, "scheme", redirect.scheme.as_deref());
    match redirect.port {
        Some(RedirectPort::Number(port)) => put(&mut map, "port", port),
        Some(RedirectPort::FromProtocolDefault) => put(&mut map, "derivePort", "FROM_PROTOCOL_DEFAULT"),
        Some(RedirectPort::FromRequestPort) => put(&mut map, "derivePort", "FROM_REQUEST_PORT"),
        None => {}
    }
    Value::Object(map)
}

fn http_match(one: &HttpMatch) -> Value {
    let mut map = Map::new();
    put(&mut map, "uri", one.path.as_ref().map(text));
    put(&mut map, "scheme", one.scheme.as_ref().map(text));
    put(&mut map, "method", one.method.as_ref().map(text));
    put(&mut map, "authority", one.authority.as_ref().map(text));
    put(&mut map, "headers", header_matches(&one.headers));
    put(&mut map, "withoutHeaders", header_matches(&one.without_headers));
    let query = one.query.iter().map(|(name, value)| (name.to_string(), text(value)));
    put(&mut map, "queryParams", Value::Object(query.collect()));
    Value::Object(map)
}

fn header_matches(matches: &[HeaderMatch]) -> Value {
    let matches = matches
        .iter()
        .map(|header| (header.name.to_string(), text(&header.value)));
    Value::Object(matches.collect())
}

fn text(text: &TextMatch) -> Value {
    match text {
        TextMatch::Exact(value) => json!({ "exact": &**value }),
        TextMatch::Prefix(value) => json!({ "prefix": &**value }),
        TextMatch::Regex(regex) => json!({ "regex": regex.as_str() }),
        TextMatch::ExactIgnoreCase(value) => json!({ "exact": &**value, "ignoreCase": true }),
        TextMatch::PrefixIgnoreCase(value) => json!({ "prefix": &**value, "ignoreCase": true }),
        TextMatch::Present => json!({ "present": true }),
    }
}

fn operations(operations: &HeaderOps) -> Value {
    let mut request = Map::new();
    put(&mut request, "set", headers(&operations.request_set));
    put(&mut request, "add", headers(&operations.request_add));
    put(&mut request, "remove", strings(&operations.request_remove));
    put(
        &mut request,
        "authority",
        operations.authority.as_ref().map(header_value),
    );
    let mut response = Map::new();
    put(&mut response, "set", headers(&operations.response_set));
    put(&mut response, "add", headers(&operations.response_add));
    put(&mut response, "remove", strings(&operations.response_remove));
    let mut map = Map::new();
    put(&mut map, "request", request);
    put(&mut map, "response", response);
    Value::Object(map)
}

fn fault(fault: &Fault) -> Value {
    let mut map = Map::new();
    if let Some((share, delay)) = fault.delay {
        put(
            &mut map,
            "delay",
            json!({ "percentage": percent(share.per_million()), "fixedDelay": duration(delay) }),
        );
    }
    if let Some((share, abort)) = &fault.abort {
        let (key, code) = match abort {
            Abort::Http(status) => ("httpStatus", i32::from(status.as_u16())),
            Abort::Grpc(code) => ("grpcStatus", *code),
        };
        put(
            &mut map,
            "abort",
            json!({ "percentage": percent(share.per_million()), key: code }),
        );
    }
    Value::Object(map)
}
