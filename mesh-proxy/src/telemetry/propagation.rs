//! Trace context in headers: W3C Trace Context (`traceparent`) and B3 (single header, or several), and `x-request-id`.
//!
//! In come the headers of a request; out goes what they say of the trace. What is malformed counts as absent, as both
//! specifications ask. W3C wins where both are present. Nothing here decides on sampling.

use std::cell::RefCell;
use std::hash::{BuildHasher, RandomState};

use http::{HeaderMap, HeaderName, HeaderValue};

/// Trace id of 128 bits, never 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TraceId(pub(super) u128);

impl std::fmt::Display for TraceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// `traceparent`.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// `tracestate`.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// `x-request-id`.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// How B3 came in, and so goes out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum B3Style {
    /// No B3 headers.
    #[default]
    None,
    /// `b3`.
    Single,
    /// `x-b3-*`.
    Multi,
}

/// Which headers named the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    W3c,
    B3,
}

/// The caller's span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    pub trace_id: TraceId,
    pub span_id: u64,
    pub origin: Origin,
}

/// What a request's headers say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Incoming {
    /// Caller's span, if a trace has begun.
    pub parent: Option<Parent>,
    /// The caller's decision, if it made one.
    pub sampled: Option<bool>,
    /// B3's debug flag, which asks everybody to sample.
    pub debug: bool,
    pub b3: B3Style,
}

/// Reads the trace context of a request.
pub(super) fn extract(headers: &HeaderMap) -> Incoming {
    let mut incoming = extract_b3(headers);
    if let Some((parent, sampled)) = extract_w3c(headers) {
        incoming.parent = Some(parent);
        incoming.sampled = Some(sampled);
        incoming.debug &= sampled;
    }
    incoming
}

/// Trace Context, section 3.2.
fn extract_w3c(headers: &HeaderMap) -> Option<(Parent, bool)> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let text = value.as_bytes();
    if text.len() < 55 || text[2] != b'-' || text[35] != b'-' || text[52] != b'-' {
        return None;
    }
    let version = hex(&text[..2])?;
    // Version 0 has nothing more; later ones may, after another dash.
    let tail_fits = match version {
        0 => text.len() == 55,
        255 => false,
        _ => text.len() == 55 || text[55] == b'-',
    };
    let parent = Parent {
        trace_id: TraceId(nonzero(hex(&text[3..35])?)?),
        span_id: u64::try_from(nonzero(hex(&text[36..52])?)?).ok()?,
        origin: Origin::W3c,
    };
    let flags = hex(&text[53..55])?;
    tail_fits.then_some((parent, flags & 1 == 1))
}

fn extract_b3(headers: &HeaderMap) -> Incoming {
    if let Some(single) = headers.get(B3).and_then(|value| parse_b3_single(value.as_bytes())) {
        return single;
    }
    let text = |name: HeaderName| headers.get(name).map(HeaderValue::as_bytes);
    let (trace, span) = (text(B3_TRACE_ID), text(B3_SPAN_ID));
    let debug = text(B3_FLAGS) == Some(b"1");
    let sampled = match text(B3_SAMPLED) {
        Some(b"1" | b"true") => Some(true),
        Some(b"0" | b"false") => Some(false),
        _ => None,
    };
    let parent = trace.zip(span).and_then(|(trace, span)| b3_parent(trace, span));
    if parent.is_none() && sampled.is_none() && !debug {
        return Incoming::default();
    }
    Incoming {
        parent,
        sampled: if debug { Some(true) } else { sampled },
        debug,
        b3: B3Style::Multi,
    }
}

/// `{trace}-{span}[-{sampled}[-{parent span}]]`, or a decision alone.
fn parse_b3_single(text: &[u8]) -> Option<Incoming> {
    let decision = |text: &[u8]| match text {
        b"0" => Some((Some(false), false)),
        b"1" => Some((Some(true), false)),
        b"d" => Some((Some(true), true)),
        _ => None,
    };
    let mut incoming = Incoming {
        b3: B3Style::Single,
        ..Incoming::default()
    };
    let mut parts = text.splitn(4, |byte| *byte == b'-');
    let first = parts.next()?;
    let Some(span) = parts.next() else {
        (incoming.sampled, incoming.debug) = decision(first)?;
        return Some(incoming);
    };
    incoming.parent = Some(b3_parent(first, span)?);
    if let Some(text) = parts.next() {
        (incoming.sampled, incoming.debug) = decision(text)?;
    }
    if let Some(parent_span) = parts.next() {
        b3_span(parent_span)?;
    }
    Some(incoming)
}

fn b3_parent(trace: &[u8], span: &[u8]) -> Option<Parent> {
    let trace_id = match trace.len() {
        16 | 32 => TraceId(nonzero(hex_any_case(trace)?)?),
        _ => return None,
    };
    Some(Parent {
        trace_id,
        span_id: b3_span(span)?,
        origin: Origin::B3,
    })
}

fn b3_span(text: &[u8]) -> Option<u64> {
    if text.len() != 16 {
        return None;
    }
    u64::try_from(nonzero(hex_any_case(text)?)?).ok()
}

fn nonzero(value: u128) -> Option<u128> {
    (value != 0).then_some(value)
}

/// Lower-case hexadecimal, which is all that Trace Context allows.
fn hex(text: &[u8]) -> Option<u128> {
    if text.iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    hex_any_case(text)
}

fn hex_any_case(text: &[u8]) -> Option<u128> {
    text.iter().try_fold(0, |value: u128, byte| {
        let digit = char::from(*byte).to_digit(16)?;
        Some(value << 4 | u128::from(digit))
    })
}

/// The span that the next hop becomes a child of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outgoing {
    pub trace_id: TraceId,
    pub span_id: u64,
    /// For `x-b3-parentspanid`.
    pub parent_span_id: Option<u64>,
    pub sampled: bool,
    pub debug: bool,
}

/// Writes `traceparent`.
pub(super) fn inject_w3c(context: &Outgoing, headers: &mut HeaderMap) {
    let mut text = [b'-'; 55];
    text[..2].copy_from_slice(b"00");
    write_hex(&mut text[3..35], context.trace_id.0);
    write_hex(&mut text[36..52], u128::from(context.span_id));
    write_hex(&mut text[53..], u128::from(context.sampled));
    insert(headers, TRACEPARENT, &text);
}

/// Writes B3 in the style that it came in.
pub(super) fn inject_b3(context: &Outgoing, style: B3Style, headers: &mut HeaderMap) {
    let mut trace = [0; 32];
    write_hex(&mut trace, context.trace_id.0);
    let mut span = [0; 16];
    write_hex(&mut span, u128::from(context.span_id));
    let parent = context.parent_span_id.map(|id| {
        let mut text = [0; 16];
        write_hex(&mut text, u128::from(id));
        text
    });
    match style {
        B3Style::None => {}
        B3Style::Single => {
            let mut text = [b'-'; 68];
            text[..32].copy_from_slice(&trace);
            text[33..49].copy_from_slice(&span);
            text[50] = match (context.debug, context.sampled) {
                (true, _) => b'd',
                (false, true) => b'1',
                (false, false) => b'0',
            };
            if let Some(parent) = parent {
                text[52..].copy_from_slice(&parent);
            }
            insert(headers, B3, if parent.is_some() { &text } else { &text[..51] });
        }
        B3Style::Multi => {
            insert(headers, B3_TRACE_ID, &trace);
            insert(headers, B3_SPAN_ID, &span);
            match parent {
                Some(parent) => insert(headers, B3_PARENT_SPAN_ID, &parent),
                None => {
                    headers.remove(B3_PARENT_SPAN_ID);
                }
            }
            if !context.debug {
                // Debug implies the decision (it stays in `x-b3-flags`).
                let sampled = HeaderValue::from_static(if context.sampled { "1" } else { "0" });
                headers.insert(B3_SAMPLED, sampled);
            }
        }
    }
}

/// A random UUID of version 4 (RFC 9562, section 5.4).
pub(super) fn request_id() -> HeaderValue {
    let random = random_u128();
    let id = random & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let mut digits = [0; 32];
    write_hex(&mut digits, id);
    let mut text = [b'-'; 36];
    for (to, from) in [
        (0..8, 0..8),
        (9..13, 8..12),
        (14..18, 12..16),
        (19..23, 16..20),
        (24..36, 20..32),
    ] {
        text[to].copy_from_slice(&digits[from]);
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

/// A trace id.
pub(super) fn new_trace_id() -> TraceId {
    TraceId(random_u128().max(1))
}

/// A span id.
#[allow(clippy::cast_possible_truncation, reason = "half of the random bits")]
pub(super) fn new_span_id() -> u64 {
    (random_u128() as u64).max(1)
}

/// 128 random bits, not for secrets. Two generators of 64 bits of state each, seeded from the system: one alone
/// would repeat ids after some billions of them over the whole mesh.
fn random_u128() -> u128 {
    thread_local! {
        static RANDOM: RefCell<(fastrand::Rng, fastrand::Rng)> = {
            let seed = |half: u8| fastrand::Rng::with_seed(RandomState::new().hash_one(half));
            RefCell::new((seed(0), seed(1)))
        };
    }
    RANDOM.with_borrow_mut(|(high, low)| u128::from(high.u64(..)) << 64 | u128::from(low.u64(..)))
}

fn write_hex(to: &mut [u8], value: u128) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut rest = value;
    for digit in to.iter_mut().rev() {
        *digit = DIGITS[(rest & 0xf) as usize];
        rest >>= 4;
    }
}

fn insert(headers: &mut HeaderMap, name: HeaderName, text: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(text) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests;
