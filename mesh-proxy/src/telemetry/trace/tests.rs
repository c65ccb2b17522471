use http::HeaderValue;

use super::*;

const W3C: &str = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
const B3: &str = "b3: 463ac35c9f6413ad48485a3953bb6124-0020000000000001";

fn headers(lines: &[String]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        map.insert(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    map
}

/// Headers of the next hop without `x-request-id`, sorted, with ids that were made here as `<trace>` and `<span>`.
fn next_hop(lines: &[String], drawn: bool) -> Vec<String> {
    let mut map = headers(lines);
    let incoming = propagation::extract(&map);
    let made_trace = incoming.parent.is_none();
    let parent_span = incoming.parent.map(|parent| parent.span_id);
    let hop = Hop::new(incoming, incoming.sampled.unwrap_or(drawn));
    let (trace, span) = (hop.out.trace_id.to_string(), format!("{:016x}", hop.out.span_id));
    let made_span = parent_span != Some(hop.out.span_id);
    let context = TraceContext {
        kind: SpanKind::Client,
        hop: Some(hop),
    };
    context.inject(&mut map);
    assert_eq!(map.remove(REQUEST_ID).unwrap().len(), 36);
    let mut lines: Vec<String> = map
        .iter()
        .map(|(name, value)| {
            let mut line = format!("{name}: {}", value.to_str().unwrap());
            if made_trace {
                line = line.replace(&trace, "<trace>");
            }
            if made_span {
                line = line.replace(&span, "<span>");
            }
            line
        })
        .collect();
    lines.sort();
    lines
}

#[test]
fn what_the_next_hop_gets() {
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let b3_trace = "463ac35c9f6413ad48485a3953bb6124";
    let state = "tracestate: a=1".to_owned();
    let multi = |more: &str| {
        vec![
            format!("x-b3-traceid: {b3_trace}"),
            "x-b3-spanid: 0020000000000001".to_owned(),
            more.to_owned(),
        ]
    };
    let table: [(&str, Vec<String>, bool, Vec<String>); 13] = [
        (
            "a trace begins, sampled",
            vec![],
            true,
            vec!["traceparent: 00-<trace>-<span>-01".into()],
        ),
        (
            "a trace begins, not sampled",
            vec![],
            false,
            vec!["traceparent: 00-<trace>-<span>-00".into()],
        ),
        (
            "W3C sampled: a span of ours, whatever was drawn",
            vec![format!("{W3C}-01"), state.clone()],
            false,
            vec![format!("traceparent: 00-{trace}-<span>-01"), state.clone()],
        ),
        (
            "W3C not sampled: nothing changes, whatever was drawn",
            vec![format!("{W3C}-00"), state.clone()],
            true,
            vec![format!("{W3C}-00"), state.clone()],
        ),
        (
            "malformed W3C: a new trace, and its state is dropped",
            vec!["traceparent: 00-0-0-01".into(), state.clone()],
            true,
            vec!["traceparent: 00-<trace>-<span>-01".into()],
        ),
        (
            "B3 sampled: both go out",
            vec![format!("{B3}-1")],
            false,
            vec![
                format!("b3: {b3_trace}-<span>-1-0020000000000001"),
                format!("traceparent: 00-{b3_trace}-<span>-01"),
            ],
        ),
        (
            "B3 not sampled: W3C says the same",
            vec![format!("{B3}-0")],
            true,
            vec![
                format!("{B3}-0"),
                format!("traceparent: 00-{b3_trace}-0020000000000001-00"),
            ],
        ),
        (
            "B3 debug stays debug",
            vec![format!("{B3}-d")],
            false,
            vec![
                format!("b3: {b3_trace}-<span>-d-0020000000000001"),
                format!("traceparent: 00-{b3_trace}-<span>-01"),
            ],
        ),
        (
            "B3 leaves the decision to us",
            vec![B3.to_owned()],
            false,
            vec![
                format!("{B3}-0"),
                format!("traceparent: 00-{b3_trace}-0020000000000001-00"),
            ],
        ),
        (
            "B3 decision without ids",
            vec!["b3: 0".into()],
            true,
            vec!["b3: 0".into(), "traceparent: 00-<trace>-<span>-00".into()],
        ),
        (
            "B3 in several headers",
            multi("x-b3-sampled: 1"),
            false,
            vec![
                format!("traceparent: 00-{b3_trace}-<span>-01"),
                "x-b3-parentspanid: 0020000000000001".into(),
                "x-b3-sampled: 1".into(),
                "x-b3-spanid: <span>".into(),
                format!("x-b3-traceid: {b3_trace}"),
            ],
        ),
        (
            "B3 debug in several headers",
            multi("x-b3-flags: 1"),
            false,
            vec![
                format!("traceparent: 00-{b3_trace}-<span>-01"),
                "x-b3-flags: 1".into(),
                "x-b3-parentspanid: 0020000000000001".into(),
                "x-b3-spanid: <span>".into(),
                format!("x-b3-traceid: {b3_trace}"),
            ],
        ),
        (
            "W3C wins, and B3 is told",
            vec![format!("{W3C}-01"), format!("{B3}-0")],
            false,
            vec![
                format!("b3: {trace}-<span>-1-00f067aa0ba902b7"),
                format!("traceparent: 00-{trace}-<span>-01"),
            ],
        ),
    ];
    for (name, incoming, drawn, mut expected) in table {
        expected.sort();
        assert_eq!(next_hop(&incoming, drawn), expected, "{name}");
    }
}

#[test]
fn without_a_provider_headers_pass_as_they_are() {
    let tracer = Tracer::off();
    let mut map = headers(&[format!("{W3C}-01"), "x-request-id: mine".to_owned()]);
    let before = map.clone();
    let context = tracer.begin(&map, SpanKind::Server);
    assert!(!context.is_sampled());
    assert_eq!(context.trace_id(), None);
    context.inject(&mut map);
    assert_eq!(map, before);
    map.remove(REQUEST_ID);
    context.inject(&mut map);
    assert_eq!(map[REQUEST_ID].len(), 36, "one is made where there is none");
}
