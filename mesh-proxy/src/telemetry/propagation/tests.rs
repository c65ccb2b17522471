use proptest::prelude::*;

use super::*;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(*name, HeaderValue::from_str(value).unwrap());
    }
    map
}

const T: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const S: &str = "00f067aa0ba902b7";

fn w3c_parent(text: &str) -> Option<bool> {
    extract_w3c(&headers(&[("traceparent", text)])).map(|(parent, sampled)| {
        assert_eq!(parent.trace_id.to_string(), T);
        assert_eq!(parent.span_id, 0x00f0_67aa_0ba9_02b7);
        sampled
    })
}

#[test]
fn traceparent_is_read_as_trace_context_says() {
    for (text, sampled) in [
        (format!("00-{T}-{S}-01"), Some(true)),
        (format!("00-{T}-{S}-00"), Some(false)),
        (format!("00-{T}-{S}-03"), Some(true)),
        // A later version may have more after another dash.
        (format!("01-{T}-{S}-01"), Some(true)),
        (format!("cc-{T}-{S}-01-more"), Some(true)),
        (format!("cc-{T}-{S}-01more"), None),
        (format!("00-{T}-{S}-01-more"), None),
        (format!("ff-{T}-{S}-01"), None),
        (format!("00-{}-{S}-01", T.to_uppercase()), None),
        (format!("00-{}-{S}-01", "0".repeat(32)), None),
        (format!("00-{T}-{}-01", "0".repeat(16)), None),
        (format!("00-{T}-{S}-0"), None),
        (format!("00-{T}-{S}-0g"), None),
        (format!("00_{T}-{S}-01"), None),
        (String::new(), None),
    ] {
        assert_eq!(w3c_parent(&text), sampled, "{text}");
    }
    let value = format!("00-{T}-{S}-01");
    let twice = headers(&[("traceparent", &value), ("traceparent", &value)]);
    assert_eq!(extract_w3c(&twice), None, "two are none");
}

#[test]
fn b3_single_is_read() {
    let parsed = |text: &str| {
        parse_b3_single(text.as_bytes()).map(|incoming| (incoming.parent.is_some(), incoming.sampled, incoming.debug))
    };
    for (text, expected) in [
        (format!("{T}-{S}-1"), Some((true, Some(true), false))),
        (format!("{T}-{S}-0"), Some((true, Some(false), false))),
        (format!("{T}-{S}-d"), Some((true, Some(true), true))),
        (format!("{T}-{S}"), Some((true, None, false))),
        (format!("{T}-{S}-1-05e3ac9a4f6e3b90"), Some((true, Some(true), false))),
        (format!("a3ce929d0e0e4736-{S}-1"), Some((true, Some(true), false))),
        ("0".to_owned(), Some((false, Some(false), false))),
        ("1".to_owned(), Some((false, Some(true), false))),
        ("d".to_owned(), Some((false, Some(true), true))),
        (format!("{T}-{S}-x"), None),
        (format!("{T}-{S}-1-short"), None),
        (format!("{T}-"), None),
        (T.to_owned(), None),
        (String::new(), None),
    ] {
        assert_eq!(parsed(&text), expected, "{text}");
    }
}

#[test]
fn b3_multi_is_read() {
    let ids = [("x-b3-traceid", T), ("x-b3-spanid", S)];
    for (more, parent, sampled, debug) in [
        (&[("x-b3-sampled", "1")][..], true, Some(true), false),
        (&[("x-b3-sampled", "0")], true, Some(false), false),
        (&[("x-b3-sampled", "true")], true, Some(true), false),
        (&[("x-b3-flags", "1")], true, Some(true), true),
        (&[], true, None, false),
    ] {
        let incoming = extract_b3(&headers(&[&ids[..], more].concat()));
        assert_eq!(
            (incoming.parent.is_some(), incoming.sampled, incoming.debug, incoming.b3),
            (parent, sampled, debug, B3Style::Multi),
            "{more:?}"
        );
    }
    let decision = extract_b3(&headers(&[("x-b3-sampled", "0")]));
    assert_eq!((decision.parent, decision.sampled), (None, Some(false)));
    assert_eq!(extract_b3(&headers(&[("x-b3-traceid", T)])), Incoming::default());
}

#[test]
fn w3c_wins_over_b3_and_b3_is_still_answered() {
    let incoming = extract(&headers(&[
        ("traceparent", &format!("00-{T}-{S}-00")),
        ("b3", "463ac35c9f6413ad48485a3953bb6124-0020000000000001-d"),
    ]));
    assert_eq!(
        incoming.parent.map(|parent| parent.trace_id.to_string()).as_deref(),
        Some(T)
    );
    assert_eq!(incoming.sampled, Some(false));
    assert_eq!(incoming.b3, B3Style::Single);
    assert!(!incoming.debug);
}

#[test]
fn request_ids_are_uuids_of_version_4() {
    let mut seen = std::collections::HashSet::new();
    for _ in 0..1_000 {
        let id = request_id();
        let text = id.to_str().unwrap().to_owned();
        let parts: Vec<&str> = text.split('-').collect();
        assert_eq!(
            parts.iter().map(|part| part.len()).collect::<Vec<_>>(),
            [8, 4, 4, 4, 12],
            "{text}"
        );
        assert!(
            text.bytes()
                .all(|c| c == b'-' || c.is_ascii_digit() || matches!(c, b'a'..=b'f')),
            "{text}"
        );
        assert!(parts[2].starts_with('4'), "{text}");
        assert!(matches!(parts[3].as_bytes()[0], b'8' | b'9' | b'a' | b'b'), "{text}");
        assert!(seen.insert(text));
    }
}

proptest! {
    /// What is written is read back, and no header makes reading fail.
    #[test]
    fn contexts_survive_their_headers(trace in 1_u128.., span in 1_u64.., parent in proptest::option::of(1_u64..), sampled: bool, style in 0..3_usize) {
        let style = [B3Style::None, B3Style::Single, B3Style::Multi][style];
        let out = Outgoing { trace_id: TraceId(trace), span_id: span, parent_span_id: parent, sampled, debug: false };
        let mut map = HeaderMap::new();
        inject_b3(&out, style, &mut map);
        let b3 = extract(&map);
        prop_assert_eq!(b3.b3, style);
        if style != B3Style::None {
            prop_assert_eq!(b3.parent, Some(Parent { trace_id: TraceId(trace), span_id: span, origin: Origin::B3 }));
            prop_assert_eq!(b3.sampled, Some(sampled));
        }
        inject_w3c(&out, &mut map);
        let w3c = extract(&map);
        prop_assert_eq!(w3c.parent, Some(Parent { trace_id: TraceId(trace), span_id: span, origin: Origin::W3c }));
        prop_assert_eq!(w3c.sampled, Some(sampled));
    }

    #[test]
    fn any_bytes_are_survived(w3c: Vec<u8>, b3: Vec<u8>, trace: Vec<u8>, span: Vec<u8>) {
        let mut map = HeaderMap::new();
        for (name, bytes) in [(TRACEPARENT, w3c), (B3, b3), (B3_TRACE_ID, trace), (B3_SPAN_ID, span)] {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                map.insert(name, value);
            }
        }
        let _ = extract(&map);
    }
}
