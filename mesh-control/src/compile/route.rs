//! HTTP rules: VirtualService's `http`, and the default route of a service without one.

use std::sync::Arc;

use base64::Engine;
use http::{HeaderName, HeaderValue, StatusCode};
use mesh_api::crd::virtual_service as crd;
use mesh_api::crd::virtual_service::HttpRoute as Rule;
use mesh_api::model::{
    Abort, Fault, Forward, HeaderOps, HttpMatch, HttpRoute, Mirror, PathRewrite, Percentage, Redirect, RedirectPort,
    Rewrite, RouteAction, WeightedCluster,
};
use smallvec::{SmallVec, smallvec};

use super::cluster::Clusters;
use super::{Reader, delegate, matches, retry};
use crate::world::VirtualService;

/// The route of a service without VirtualService: everything to the service.
pub fn default_route(clusters: &mut Clusters<'_, '_>, cluster: usize) -> HttpRoute {
    let policy = clusters.policy(cluster);
    HttpRoute {
        name: "default".into(),
        origin: None,
        matches: Vec::new(),
        action: RouteAction::Forward(Box::new(Forward {
            clusters: smallvec![WeightedCluster {
                cluster,
                weight: 1,
                headers: HeaderOps::default(),
            }],
            timeout: retry::timeout(None, policy),
            retry: retry::policy(None, policy),
            rewrite: Rewrite::default(),
            mirrors: Vec::new(),
        })),
        headers: HeaderOps::default(),
        fault: None,
    }
}

/// Compiles the rules of a VirtualService for the port that the client asked for. Rules that no request of this client can
/// reach are left out.
pub fn routes(
    reader: &Reader<'_>,
    object: &Arc<VirtualService>,
    port: u16,
    clusters: &mut Clusters<'_, '_>,
) -> Vec<HttpRoute> {
    let mut routes = Vec::new();
    for written in delegate::expand(reader, object) {
        let (rule, object) = (&*written.rule, written.object);
        let mut entries: Vec<(Arc<str>, HttpMatch)> = Vec::new();
        let mut catch_all = rule.matches.is_empty();
        for entry in &rule.matches {
            if !matches::concerns(reader, entry, port) {
                continue;
            }
            let Ok(compiled) = matches::compile(entry) else {
                continue;
            };
            catch_all = matches::is_catch_all(&compiled);
            let name = matches::joined_name(rule.name.as_deref(), entry.name.as_deref());
            entries.push((name, compiled));
            if catch_all {
                break;
            }
        }
        if entries.is_empty() && !catch_all {
            continue;
        }
        let Some(action) = action(rule, object, port, clusters) else {
            continue;
        };
        let origin = Some((object.age.origin(), format!("http[{}]", written.index).into()));
        let route = |name, matches| HttpRoute {
            name,
            origin: origin.clone(),
            matches,
            action: action.clone(),
            headers: route_headers(rule, &action),
            fault: rule.fault.as_ref().and_then(fault),
        };
        let named = rule
            .matches
            .iter()
            .any(|entry| entry.name.as_deref().is_some_and(|name| !name.is_empty()));
        if named {
            routes.extend(entries.into_iter().map(|(name, entry)| route(name, vec![entry])));
        } else {
            let name = rule.name.as_deref().unwrap_or_default().into();
            routes.push(route(name, entries.into_iter().map(|(_, entry)| entry).collect()));
        }
        if catch_all {
            break;
        }
    }
    routes
}

/// What a rule does; `None` for a rule that does nothing, which validation refuses. A redirect wins over a direct
/// response, and that over forwarding.
fn action(rule: &Rule, object: &VirtualService, port: u16, clusters: &mut Clusters<'_, '_>) -> Option<RouteAction> {
    if let Some(written) = &rule.redirect {
        return Some(RouteAction::Redirect(Box::new(redirect(written))));
    }
    if let Some(written) = &rule.direct_response {
        return Some(RouteAction::DirectResponse {
            status: u16::try_from(written.status)
                .ok()
                .and_then(|status| StatusCode::from_u16(status).ok())?,
            body: written.body.as_ref().map(body).unwrap_or_default(),
        });
    }
    let namespace = &object.age.namespace;
    let headers = rule.headers.as_ref().map(header_ops).unwrap_or_default();
    let mut rewrite = rule.rewrite.as_ref().map(rewrite).unwrap_or_default();
    if rewrite.authority.is_none() {
        rewrite.authority = headers.authority;
    }
    let mut legs: SmallVec<[WeightedCluster; 2]> = SmallVec::new();
    let single = rule.route.len() == 1;
    for leg in &rule.route {
        let weight = leg.weight.and_then(|weight| u32::try_from(weight).ok()).unwrap_or(0);
        if !single && weight == 0 {
            continue;
        }
        let mut headers = leg.headers.as_ref().map(header_ops).unwrap_or_default();
        if rewrite.authority.is_some() {
            headers.authority = None;
        }
        legs.push(WeightedCluster {
            cluster: clusters.of_destination(&leg.destination, port, namespace)?,
            weight: if single { 1 } else { weight },
            headers,
        });
    }
    let first = legs.first()?.cluster;
    let mut mirrors = Vec::new();
    let single_mirror = rule
        .mirror
        .as_ref()
        .map(|destination| (destination, mirror_share(rule)));
    let listed = rule.mirrors.iter().map(|mirror| {
        let share = mirror.percentage.as_ref().map_or(Percentage::ALL, percentage);
        (&mirror.destination, share)
    });
    for (destination, share) in single_mirror.into_iter().chain(listed) {
        if share == Percentage::default() {
            continue;
        }
        let cluster = clusters.of_destination(destination, port, namespace)?;
        mirrors.push(Mirror { cluster, share });
    }
    let policy = clusters.policy(first);
    Some(RouteAction::Forward(Box::new(Forward {
        clusters: legs,
        timeout: retry::timeout(rule.timeout, policy),
        retry: retry::policy(rule.retries.as_ref(), policy),
        rewrite,
        mirrors,
    })))
}

/// A rule's header operations. When it forwards, a new `Host` is part of the rewrite.
fn route_headers(rule: &Rule, action: &RouteAction) -> HeaderOps {
    let mut headers = rule.headers.as_ref().map(header_ops).unwrap_or_default();
    if matches!(action, RouteAction::Forward(_)) {
        headers.authority = None;
    }
    headers
}

fn mirror_share(rule: &Rule) -> Percentage {
    let older = rule.mirror_percent.or(rule.mirror_percent_alias);
    match (&rule.mirror_percentage, older) {
        (Some(share), _) => percentage(share),
        (None, Some(percent)) => Percentage::from_percent(f64::from(percent)),
        (None, None) => Percentage::ALL,
    }
}

/// A percentage that is written without value is none.
fn percentage(share: &mesh_api::crd::common::Percent) -> Percentage {
    Percentage::from_percent(share.value.unwrap_or(0.0))
}

fn redirect(written: &crd::HttpRedirect) -> Redirect {
    let text = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(Arc::from);
    let port = match written.derive_port {
        Some(crd::RedirectPort::FromProtocolDefault) => Some(RedirectPort::FromProtocolDefault),
        Some(crd::RedirectPort::FromRequestPort) => Some(RedirectPort::FromRequestPort),
        None => written
            .port
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port > 0)
            .map(RedirectPort::Number),
    };
    Redirect {
        status: match written.redirect_code {
            Some(302) => StatusCode::FOUND,
            Some(303) => StatusCode::SEE_OTHER,
            Some(307) => StatusCode::TEMPORARY_REDIRECT,
            Some(308) => StatusCode::PERMANENT_REDIRECT,
            _ => StatusCode::MOVED_PERMANENTLY,
        },
        uri: text(&written.uri),
        prefix_rewrite: text(&written.prefix_rewrite),
        authority: text(&written.authority),
        scheme: text(&written.scheme),
        port,
    }
}

fn body(written: &crd::HttpBody) -> bytes::Bytes {
    if let Some(text) = &written.string {
        return text.clone().into();
    }
    let decoded = written
        .bytes
        .as_deref()
        .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok());
    decoded.unwrap_or_default().into()
}

fn rewrite(written: &crd::HttpRewrite) -> Rewrite {
    let regex = written.uri_regex_rewrite.as_ref().and_then(|regex| {
        let replacement = regex.rewrite.as_deref().unwrap_or_default();
        PathRewrite::new(regex.matches.as_deref()?, replacement).ok()
    });
    Rewrite {
        uri: written.uri.as_deref().filter(|uri| !uri.is_empty()).map(Arc::from),
        regex,
        authority: written
            .authority
            .as_deref()
            .filter(|authority| !authority.is_empty())
            .and_then(|authority| authority.parse().ok()),
    }
}

/// Header operations; `host` and `:authority` become the new authority, `set` before `add`.
fn header_ops(written: &crd::Headers) -> HeaderOps {
    let mut ops = HeaderOps::default();
    let is_authority = |name: &str| name.eq_ignore_ascii_case("host") || name == ":authority";
    let pair = |(name, value): (&String, &String)| {
        let name: HeaderName = name.parse().ok()?;
        // As in Envoy's formats, of which operators are not supported yet: validation reports them.
        let value: HeaderValue = value.replace("%%", "%").parse().ok()?;
        Some((name, value))
    };
    if let Some(request) = &written.request {
        let authority = |map: &std::collections::BTreeMap<String, String>| {
            map.iter()
                .find(|(name, _)| is_authority(name))
                .and_then(|(_, value)| value.parse().ok())
        };
        ops.authority = authority(&request.set).or_else(|| authority(&request.add));
        let others = |entry: &(&String, &String)| !is_authority(entry.0);
        ops.request_set = request.set.iter().filter(others).filter_map(pair).collect();
        ops.request_add = request.add.iter().filter(others).filter_map(pair).collect();
        ops.request_remove = names(&request.remove);
    }
    if let Some(response) = &written.response {
        ops.response_set = response.set.iter().filter_map(pair).collect();
        ops.response_add = response.add.iter().filter_map(pair).collect();
        ops.response_remove = names(&response.remove);
    }
    ops
}

fn names(list: &[String]) -> Vec<HeaderName> {
    list.iter().filter_map(|name| name.parse().ok()).collect()
}

/// Faults with a share of requests; a share that is not written is none.
fn fault(written: &crd::FaultInjection) -> Option<Fault> {
    let delay = written.delay.as_ref().and_then(|delay| {
        let share = match (&delay.percentage, delay.percent) {
            (Some(share), _) => percentage(share),
            (None, Some(percent)) => Percentage::from_percent(f64::from(percent)),
            (None, None) => Percentage::default(),
        };
        let time = delay.fixed_delay.filter(|time| !time.is_zero())?;
        (share > Percentage::default()).then(|| (share, time.into()))
    });
    let abort = written.abort.as_ref().and_then(|abort| {
        let share = abort.percentage.as_ref().map(percentage).unwrap_or_default();
        let how = if let Some(status) = abort.http_status {
            let status = u16::try_from(status).ok()?;
            Abort::Http(StatusCode::from_u16(status).ok()?)
        } else {
            Abort::Grpc(grpc_status(abort.grpc_status.as_deref()?)?)
        };
        (share > Percentage::default()).then_some((share, how))
    });
    (delay.is_some() || abort.is_some()).then_some(Fault { delay, abort })
}

/// A gRPC status by name or number.
fn grpc_status(text: &str) -> Option<i32> {
    const NAMES: [&str; 17] = [
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
    if let Ok(number) = text.parse::<i32>() {
        return (0..=16).contains(&number).then_some(number);
    }
    NAMES
        .iter()
        .position(|name| name.eq_ignore_ascii_case(text))
        .and_then(|at| i32::try_from(at).ok())
}
