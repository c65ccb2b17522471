//! One page of metrics out of two: the proxy's and the application's.
//!
//! Both come as text, the application's perhaps as OpenMetrics, whose form the whole then has. A family is declared once.
//! What describes the process of the proxy gets a prefix, since the application describes its own under the same names. What
//! is no page of metrics is refused before it can spoil the other.

use std::fmt::Write as _;

use hashbrown::HashSet;

/// Prefix of the proxy's `process_…`.
const PREFIX: &str = "mesh_proxy_";

/// Form of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Prometheus' text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// OpenMetrics 0.0.1, as some clients still call it.
    OpenMetrics001,
}

impl Form {
    /// By the content type of the application's answer; `None` when that is no text of metrics.
    pub fn of(content_type: Option<&str>) -> Option<Self> {
        let mut parts = content_type.unwrap_or("text/plain").split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        if kind.eq_ignore_ascii_case("application/openmetrics-text") {
            let version = parts.find_map(|part| part.strip_prefix("version="));
            return Some(match version {
                Some("1.0.0") => Self::OpenMetrics,
                _ => Self::OpenMetrics001,
            });
        }
        kind.eq_ignore_ascii_case("text/plain").then_some(Self::Text)
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::OpenMetrics001 => "application/openmetrics-text; version=0.0.1; charset=utf-8",
        }
    }

    fn is_open(self) -> bool {
        self != Self::Text
    }
}

/// The proxy's page alone. Why the application's is missing is said in a comment.
pub(super) fn alone(own: &str, missing: Option<&str>) -> String {
    let mut out = String::with_capacity(own.len() + 1024);
    rewrite_own(own, Form::Text, &mut out);
    if let Some(reason) = missing {
        let reason: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let _ = writeln!(out, "# the application's metrics are missing: {reason}");
    }
    out
}

/// Both pages; why not, when the application's is none.
pub(super) fn merge(own: &str, application: &str, form: Form) -> Result<String, String> {
    let mut out = String::with_capacity(own.len() + application.len() + 1024);
    let declared = rewrite_own(own, form, &mut out);
    for (number, line) in application.lines().enumerate() {
        let line = line.trim_end_matches('\r');
        if line.trim().is_empty() {
            continue;
        }
        if let Some(comment) = line.strip_prefix('#') {
            let mut words = comment.split_ascii_whitespace();
            match (words.next(), words.next()) {
                (Some("EOF"), _) => break,
                (Some("TYPE" | "HELP" | "UNIT"), Some(name)) if declared.contains(name) => continue,
                // OpenMetrics knows no other comments.
                (Some("TYPE" | "HELP" | "UNIT"), _) => {}
                _ if form.is_open() => continue,
                _ => {}
            }
        } else if !is_sample(line) {
            let start: String = line.chars().take(40).collect();
            return Err(format!("line {} is no metric: `{start}`", number + 1));
        }
        out.push_str(line);
        out.push('\n');
    }
    if form.is_open() {
        out.push_str("# EOF\n");
    }
    Ok(out)
}

/// Appends the proxy's page in the form of the whole, and gives the names of its families.
fn rewrite_own<'a>(own: &'a str, form: Form, out: &mut String) -> HashSet<&'a str> {
    let mut declared = HashSet::new();
    for line in own.lines() {
        let Some((word, rest)) = line.strip_prefix("# ").and_then(|rest| rest.split_once(' ')) else {
            if line.starts_with("process_") {
                out.push_str(PREFIX);
            }
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
        // The family of a counter is called without `_total` in OpenMetrics.
        let (name, text) = match (form.is_open(), name.strip_suffix("_total")) {
            (true, Some(family)) => (family, text),
            (true, None) if word == "TYPE" && text == "counter" => (name, "unknown"),
            _ => (name, text),
        };
        let prefix = if name.starts_with("process_") { PREFIX } else { "" };
        if prefix.is_empty() {
            declared.insert(name);
        }
        let _ = writeln!(out, "# {word} {prefix}{name} {text}");
    }
    declared
}

/// Whether a line can be a sample: a name, perhaps labels, and a value.
fn is_sample(line: &str) -> bool {
    let name_begins = |c: char| c.is_ascii_alphabetic() || matches!(c, '_' | ':' | '{');
    line.starts_with(name_begins) && line.contains([' ', '\t'])
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "# TYPE istio_requests_total counter\nistio_requests_total{a=\"b\"} 1\n# HELP process_threads \
                       Threads.\n# TYPE process_threads gauge\nprocess_threads 5\n# TYPE mesh_level gauge\nmesh_level 1\n";

    #[test]
    fn forms() {
        for (kind, form) in [
            (None, Some(Form::Text)),
            (Some("text/plain; version=0.0.4"), Some(Form::Text)),
            (
                Some("application/openmetrics-text; version=1.0.0; charset=utf-8"),
                Some(Form::OpenMetrics),
            ),
            (Some("application/openmetrics-text"), Some(Form::OpenMetrics001)),
            (Some("text/html"), None),
            (Some("application/vnd.google.protobuf"), None),
        ] {
            assert_eq!(Form::of(kind), form, "{kind:?}");
        }
    }

    #[test]
    fn text_and_text() {
        let app = "# HELP mesh_level x\n# TYPE mesh_level gauge\nmesh_level{app=\"1\"} 2\r\n\n# a remark\n# TYPE process_threads \
                   gauge\nprocess_threads 9";
        let expected = "# TYPE istio_requests_total counter\nistio_requests_total{a=\"b\"} 1\n# HELP \
                        mesh_proxy_process_threads Threads.\n# TYPE mesh_proxy_process_threads \
                        gauge\nmesh_proxy_process_threads 5\n# TYPE mesh_level gauge\nmesh_level \
                        1\nmesh_level{app=\"1\"} 2\n# a remark\n# TYPE process_threads gauge\nprocess_threads 9\n";
        assert_eq!(merge(OWN, app, Form::Text).unwrap(), expected);
    }

    #[test]
    fn the_whole_is_open_metrics_when_the_applications_is() {
        let app = "# TYPE foo counter\nfoo_total 1 # {trace_id=\"x\"} 1\n# EOF\nlater 1\n";
        let page = merge(OWN, app, Form::OpenMetrics).unwrap();
        assert!(
            page.starts_with("# TYPE istio_requests counter\nistio_requests_total{a=\"b\"} 1\n"),
            "{page}"
        );
        assert!(page.ends_with("foo_total 1 # {trace_id=\"x\"} 1\n# EOF\n"), "{page}");
    }

    #[test]
    fn what_is_no_page_of_metrics_spoils_nothing() {
        for app in ["<!doctype html>\n<p>hello", "{}", "oops", "up\n"] {
            assert!(merge(OWN, app, Form::Text).is_err(), "{app}");
        }
        let page = alone(OWN, Some("refused\nmesh_evil 1"));
        assert!(
            page.ends_with("mesh_level 1\n# the application's metrics are missing: refused mesh_evil 1\n"),
            "{page}"
        );
    }
}
