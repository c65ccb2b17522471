//! Istio's metrics in the Prometheus text format.
//!
//! Labels were rendered when edges and their label sets were made, so that a scrape only copies text and adds numbers
//! up. A family is printed whole, as the format asks, and left out when it has no series.

use std::fmt::Write as _;
use std::sync::Arc;

use super::edge::{Edge, Overflow};
use super::series::{BOUND_TEXTS, HistogramTotal, HttpTotal, MessageTotal, TcpTotal};

/// Appends the metrics of all edges.
pub(super) fn render_edges(edges: &[Arc<Edge>], overflow: &[Overflow], out: &mut String) {
    let mut http = Vec::new();
    let mut tcp = Vec::new();
    let mut messages = Vec::new();
    for edge in edges {
        let Some(labels) = edge.labels.as_deref() else { continue };
        http.extend(
            edge.http
                .iter()
                .filter_map(|node| Some((labels, &*node.labels, node.series.total()?))),
        );
        tcp.extend(
            edge.tcp
                .iter()
                .filter_map(|node| Some((labels, &*node.labels, node.series.total()?))),
        );
        messages.extend(edge.messages.total().map(|total| (labels, "", total)));
    }
    for other in overflow {
        let nodes = [&other.http, &other.grpc];
        http.extend(
            nodes
                .iter()
                .filter_map(|node| Some((&*other.labels, &*node.labels, node.series.total()?))),
        );
        tcp.extend(
            other
                .tcp
                .series
                .total()
                .map(|total| (&*other.labels, &*other.tcp.labels, total)),
        );
        messages.extend(other.messages.total().map(|total| (&*other.labels, "", total)));
    }
    render_http(&http, out);
    render_messages(&messages, out);
    render_tcp(&tcp, out);
}

/// The edge's labels, the label set's own, and what was counted.
type Row<'a, T> = (&'a str, &'a str, T);

fn render_http(rows: &[Row<'_, HttpTotal>], out: &mut String) {
    counters(out, "istio_requests_total", rows, |total| total.duration.count());
    let name = "istio_request_duration_milliseconds";
    histograms(out, name, rows, |total| (&total.duration, Sum::Thousandths));
    histograms(out, "istio_request_bytes", rows, |total| {
        (&total.request_bytes, Sum::Whole)
    });
    histograms(out, "istio_response_bytes", rows, |total| {
        (&total.response_bytes, Sum::Whole)
    });
}

fn render_messages(rows: &[Row<'_, MessageTotal>], out: &mut String) {
    counters(out, "istio_request_messages_total", rows, |total| total.requests);
    counters(out, "istio_response_messages_total", rows, |total| total.responses);
}

fn render_tcp(rows: &[Row<'_, TcpTotal>], out: &mut String) {
    counters(out, "istio_tcp_sent_bytes_total", rows, |total| total.sent);
    counters(out, "istio_tcp_received_bytes_total", rows, |total| total.received);
    counters(out, "istio_tcp_connections_opened_total", rows, |total| total.opened);
    counters(out, "istio_tcp_connections_closed_total", rows, |total| total.closed);
}

fn counters<T>(out: &mut String, name: &str, rows: &[Row<'_, T>], value: impl Fn(&T) -> u64) {
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(out, "# TYPE {name} counter");
    for (edge, own, total) in rows {
        let _ = writeln!(out, "{name}{} {}", Braces(edge, own, ""), value(total));
    }
}

/// Unit of a histogram's sum, in terms of the metric's.
#[derive(Clone, Copy)]
enum Sum {
    Whole,
    Thousandths,
}

fn histograms<T>(out: &mut String, name: &str, rows: &[Row<'_, T>], value: impl Fn(&T) -> (&HistogramTotal, Sum)) {
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(out, "# TYPE {name} histogram");
    for (edge, own, total) in rows {
        let (histogram, unit) = value(total);
        let mut count = 0;
        for (bucket, bound) in histogram.buckets.iter().zip(BOUND_TEXTS.iter().chain(&["+Inf"])) {
            count += bucket;
            let _ = writeln!(out, "{name}_bucket{} {count}", Braces(edge, own, bound));
        }
        let braces = Braces(edge, own, "");
        let _ = match unit {
            Sum::Whole => writeln!(out, "{name}_sum{braces} {}", histogram.sum),
            Sum::Thousandths => {
                let (whole, thousandths) = (histogram.sum / 1_000, histogram.sum % 1_000);
                writeln!(out, "{name}_sum{braces} {whole}.{thousandths:03}")
            }
        };
        let _ = writeln!(out, "{name}_count{braces} {count}");
    }
}

/// Labels of the edge, of the label set, and the bound of a bucket; the latter two may be empty.
struct Braces<'a>(&'a str, &'a str, &'a str);

impl std::fmt::Display for Braces<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(edge, own, bound) = self;
        f.write_str("{")?;
        f.write_str(edge)?;
        if !own.is_empty() {
            f.write_str(",")?;
            f.write_str(own)?;
        }
        if !bound.is_empty() {
            f.write_str(",le=\"")?;
            f.write_str(bound)?;
            f.write_str("\"")?;
        }
        f.write_str("}")
    }
}
