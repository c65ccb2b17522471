//! What was counted, one `name: value` to a line as Envoy's `/stats` has it, for eyes and for `grep`.
//!
//! Names are those of the metrics, with their labels; `server.…` and `cluster.<name>.…` say the state of the moment in Envoy's
//! names. Buckets of histograms are left to Prometheus. Lines are sorted.

use std::fmt::Write as _;

use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value};

use super::server::{Answer, json, text};
use super::{Admin, percent_decoded};

/// A filter compiles to so much at most.
const MOST_FILTER: usize = 64 * 1024;

pub(super) fn page(admin: &Admin, query: &str) -> Answer {
    let mut filter = None;
    let mut used_only = false;
    let mut as_json = false;
    for pair in query.split('&') {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("format", "prometheus") => return prometheus(admin),
            ("format", "json") => as_json = true,
            ("usedonly", _) => used_only = true,
            ("filter", pattern) => {
                let pattern = percent_decoded(pattern);
                match regex::RegexBuilder::new(&pattern).size_limit(MOST_FILTER).build() {
                    Ok(compiled) => filter = Some(compiled),
                    Err(error) => return text(StatusCode::BAD_REQUEST, format!("filter: {error}\n")),
                }
            }
            _ => {}
        }
    }
    let mut lines = lines(admin);
    lines.retain(|(name, value)| {
        filter.as_ref().is_none_or(|filter| filter.is_match(name)) && !(used_only && value == "0")
    });
    if as_json {
        let stats = lines.into_iter().map(|(name, value)| {
            let value = value.parse().map_or(Value::String(value), Value::Number);
            Value::Object(Map::from_iter([
                ("name".to_owned(), name.into()),
                ("value".to_owned(), value),
            ]))
        });
        return json(format!(
            "{:#}\n",
            serde_json::json!({ "stats": stats.collect::<Vec<_>>() })
        ));
    }
    let mut out = String::with_capacity(lines.len() * 64);
    for (name, value) in lines {
        let _ = writeln!(out, "{name}: {value}");
    }
    text(StatusCode::OK, out)
}

pub(super) fn prometheus(admin: &Admin) -> Answer {
    let mut page = String::with_capacity(64 * 1024);
    admin.telemetry.render_prometheus(&mut page);
    let mut answer = text(StatusCode::OK, page);
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

fn lines(admin: &Admin) -> Vec<(String, String)> {
    let mut page = String::with_capacity(64 * 1024);
    admin.telemetry.render_prometheus(&mut page);
    let mut lines = samples(&page);
    let mut add = |name: String, value: u64| lines.push((name, value.to_string()));
    add("server.live".to_owned(), u64::from(admin.not_ready().is_none()));
    add("server.uptime".to_owned(), admin.started.elapsed().as_secs());
    add("server.total_connections".to_owned(), admin.drain.connections() as u64);
    for cluster in (admin.view)().clusters {
        let available = |endpoint: &&super::EndpointView| {
            !endpoint.ejected && endpoint.facts.health == mesh_api::model::Health::Healthy
        };
        let healthy = cluster.endpoints.iter().filter(available).count();
        let active: u64 = cluster
            .endpoints
            .iter()
            .map(|endpoint| u64::from(endpoint.in_flight))
            .sum();
        let ejections: u64 = cluster.endpoints.iter().map(|endpoint| endpoint.ejections).sum();
        let name = |fact: &str| format!("cluster.{}.{fact}", cluster.name);
        add(name("membership_total"), cluster.endpoints.len() as u64);
        add(name("membership_healthy"), healthy as u64);
        add(name("upstream_rq_active"), active);
        add(name("outlier_detection.ejections_total"), ejections);
    }
    lines.sort_unstable();
    lines
}

/// Samples of a page in Prometheus' format, without buckets.
fn samples(page: &str) -> Vec<(String, String)> {
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ').filter(|_| !line.starts_with('#'))?;
        let name = series.split('{').next().unwrap_or_default();
        (!name.ends_with("_bucket")).then(|| (series.to_owned(), value.to_owned()))
    };
    page.lines().filter_map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_without_buckets_and_comments() {
        let page = "# TYPE a counter\na{x=\"y z\"} 1\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_sum 3.5\nh_count 2\n";
        let expected = [("a{x=\"y z\"}", "1"), ("h_sum", "3.5"), ("h_count", "2")];
        assert_eq!(
            samples(page),
            expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }
}
