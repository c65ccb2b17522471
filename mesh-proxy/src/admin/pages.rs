//! The pages that show what the proxy holds.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Admin, Face, Found, View, certificates, json};
use crate::drain::Stage;

/// What a port serves.
pub(super) fn help(face: Face) -> &'static str {
    match face {
        Face::Administration => HELP,
        Face::Metrics | Face::Readiness => HELP_OF_METRICS,
    }
}

const HELP: &str = "\
GET  /config_dump             everything that the control plane said, and certificates
GET  /clusters                endpoints and their state (?format=json)
GET  /certs                   certificates with serial and expiry
GET  /stats                   what was counted, as `name: value` (?filter=REGEX, ?usedonly, ?format=json|prometheus)
GET  /stats/prometheus        the same in Prometheus' format; also /metrics
GET  /debug/pprof/trace       records requests and connections for ?seconds=N, for chrome://tracing or Perfetto
GET  /server_info             version, state, uptime
GET  /healthz/ready           200 when traffic may come
GET  /logging                 filter of the log
POST /logging?level=F         changes it
POST /drain                   ends connections after what they are doing
POST /drain?inboundonly       the same for inbound connections; those of the application go on
POST /quitquitquit            drains and ends
";

const HELP_OF_METRICS: &str = "\
GET  /stats                   what was counted, as `name: value` (?filter=REGEX, ?usedonly, ?format=json|prometheus)
GET  /stats/prometheus        the same in Prometheus' format; also /metrics
";

pub(super) fn config_dump(admin: &Admin, view: &View) -> Value {
    let destinations = view.destinations.iter().map(|(name, found)| {
        let (state, destination) = match found {
            Found::Destination(destination) => ("FOUND", json::destination(destination)),
            Found::Nothing => ("NOT IN MESH", Value::Null),
            Found::Waiting => ("WAITING", Value::Null),
        };
        json!({ "name": name, "state": state, "destination": destination })
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "workload": admin.workload.to_string(),
        "settings": view.settings.as_deref().map(json::settings),
        "inbound": view.inbound.as_deref().map(json::inbound),
        "destinations": destinations.collect::<Vec<_>>(),
        "endpoints": clusters_json(view),
        "certificates": certificates::page(&admin.certificates),
    })
}

pub(super) fn clusters_json(view: &View) -> Value {
    let clusters = view.clusters.iter().map(|cluster| {
        let endpoints = cluster.endpoints.iter().map(|endpoint| {
            json!({
                "address": endpoint.address.to_string(),
                "inFlight": endpoint.in_flight,
                "ejected": endpoint.ejected,
                "ejections": endpoint.ejections,
                "facts": json::endpoint(&endpoint.facts),
            })
        });
        json!({ "cluster": cluster.name, "endpoints": endpoints.collect::<Vec<_>>() })
    });
    Value::Array(clusters.collect())
}

/// Lines `cluster::address::fact::value`, as Envoy has them.
pub(super) fn clusters_text(view: &View) -> String {
    let mut out = String::new();
    for cluster in &view.clusters {
        for endpoint in &cluster.endpoints {
            let health = match (endpoint.ejected, endpoint.facts.health) {
                (true, _) => "/failed_outlier_check",
                (false, mesh_api::model::Health::Healthy) => "healthy",
                (false, mesh_api::model::Health::Draining) => "/draining",
                (false, mesh_api::model::Health::Unhealthy) => "/failed_eds_health",
            };
            let facts: [(&str, &dyn std::fmt::Display); 5] = [
                ("rq_active", &endpoint.in_flight),
                ("weight", &endpoint.facts.weight),
                ("mutual_tls", &endpoint.facts.mutual_tls),
                ("ejections", &endpoint.ejections),
                ("health_flags", &health),
            ];
            for (fact, value) in facts {
                let _ = writeln!(out, "{}::{}::{fact}::{value}", cluster.name, endpoint.address);
            }
        }
    }
    out
}

pub(super) fn server_info(admin: &Admin) -> Value {
    let not_ready = admin.not_ready();
    let state = match not_ready {
        None => "LIVE",
        Some("draining") => "DRAINING",
        Some(_) => "INITIALIZING",
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "state": state,
        "reason": not_ready,
        "workload": admin.workload.to_string(),
        "uptimeSeconds": admin.started.elapsed().as_secs(),
        "pid": std::process::id(),
        "drain": {
            "stage": match admin.drain.stage() {
                Stage::Serving => "SERVING",
                Stage::Draining => "DRAINING",
                Stage::Ending | Stage::Closing => "ENDING",
            },
            "connections": admin.drain.connections(),
            "inboundAccepted": admin.drain.arrivals(),
        },
        "boot": admin.boot,
    })
}
