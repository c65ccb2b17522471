//! A recording of live events: what requests and connections ended within some seconds, and how their time was spent.
//!
//! The page is in Chrome's trace event format (JSON), which `chrome://tracing` and Perfetto show as a timeline: each request
//! or connection is a nestable async event, and within it the time that its upstream took. While nobody records, all of this
//! is one load of a flag a request. While somebody does, workers share a lock for as long as it takes to append an event; what
//! exceeds the bound is dropped and counted on the page.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::record::LogRecord;
use super::series::thread_number;
use super::trace::SpanKind;

/// Most bytes of a recording.
const MOST_BYTES: usize = 8 * 1024 * 1024;
/// Most bytes of a path in it.
const MOST_PATH: usize = 256;

/// Where events go while somebody records them.
#[derive(Default)]
pub(super) struct Events {
    wanted: AtomicBool,
    next_id: AtomicU64,
    buffer: Mutex<Buffer>,
}

#[derive(Default)]
struct Buffer {
    /// Objects, each followed by a comma and a line's end.
    text: Vec<u8>,
    events: u64,
    dropped: u64,
    begun: jiff::Timestamp,
}

/// A recording under way; it ends with the value.
pub struct Recording {
    events: Arc<Events>,
    ended: bool,
}

impl Events {
    pub(super) fn are_wanted(&self) -> bool {
        self.wanted.load(Relaxed)
    }

    pub(super) fn begin(self: &Arc<Self>) -> Option<Recording> {
        let mut buffer = self.lock();
        if self.wanted.load(Relaxed) {
            return None;
        }
        *buffer = Buffer {
            begun: jiff::Timestamp::now(),
            ..Buffer::default()
        };
        self.wanted.store(true, Relaxed);
        Some(Recording {
            events: Arc::clone(self),
            ended: false,
        })
    }

    /// Appends what a finished request or connection was.
    pub(super) fn note(&self, kind: SpanKind, record: &LogRecord<'_>) {
        let id = self.next_id.fetch_add(1, Relaxed);
        // Formatted before the lock is taken.
        let mut text = Vec::with_capacity(1024);
        for event in events_of(kind, record, id) {
            // Values of our own making always serialize.
            let _ = serde_json::to_writer(&mut text, &event);
            text.extend_from_slice(b",\n");
        }
        let mut buffer = self.lock();
        if !self.are_wanted() {
            return;
        }
        if buffer.text.len() + text.len() > MOST_BYTES {
            buffer.dropped += 1;
        } else {
            buffer.events += 1;
            buffer.text.extend_from_slice(&text);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recording {
    /// Ends the recording and gives its page. `process` names the proxy in it.
    #[must_use]
    pub fn finish(mut self, process: &str) -> Vec<u8> {
        let buffer = self.end();
        let facts = json!({
            "process": process,
            "version": env!("CARGO_PKG_VERSION"),
            "begun": buffer.begun.to_string(),
            "ended": jiff::Timestamp::now().to_string(),
            "events": buffer.events,
            "dropped": buffer.dropped,
        });
        let name = json!({ "ph": "M", "name": "process_name", "pid": 1, "args": { "name": process } });
        let mut page = format!("{{\"displayTimeUnit\":\"ms\",\"otherData\":{facts},\"traceEvents\":[\n").into_bytes();
        page.extend_from_slice(&buffer.text);
        page.extend_from_slice(name.to_string().as_bytes());
        page.extend_from_slice(b"\n]}\n");
        page
    }
}

impl Recording {
    fn end(&mut self) -> Buffer {
        self.ended = true;
        let mut buffer = self.events.lock();
        self.events.wanted.store(false, Relaxed);
        std::mem::take(&mut *buffer)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // Whoever began another after this one had ended keeps it.
        if !self.ended {
            self.end();
        }
    }
}

/// The events of a request or connection: it, and within it the time of its upstream.
fn events_of(kind: SpanKind, record: &LogRecord<'_>, id: u64) -> Vec<Value> {
    let side = match kind {
        SpanKind::Server => "inbound",
        SpanKind::Client => "outbound",
    };
    let start = record.start.as_nanosecond();
    let event = |phase: &str, name: &str, at: Duration| {
        // The format counts in microseconds; digits beyond a double's are lost.
        let nanos = start.saturating_add_unsigned(at.as_nanos());
        let micros = nanos as f64 / 1_000.0;
        json!({ "ph": phase, "cat": side, "name": name, "id": id, "pid": 1, "tid": thread_number(), "ts": micros })
    };
    let name = match record.method {
        None => "TCP".to_owned(),
        Some(method) => {
            let path = record.path.unwrap_or("/").split('?').next().unwrap_or_default();
            let path: String = path.chars().take(MOST_PATH).collect();
            format!("{method} {path}")
        }
    };
    let mut begin = event("b", &name, Duration::ZERO);
    if let Value::Object(begin) = &mut begin {
        begin.insert("args".to_owned(), facts_of(record));
    }
    let mut events = vec![begin];
    if let (Some(head), Some(service)) = (record.response_duration, record.upstream_service_time) {
        events.push(event("b", "upstream", head.saturating_sub(service)));
        events.push(event("e", "upstream", head));
    }
    events.push(event("e", &name, record.duration));
    events
}

fn facts_of(record: &LogRecord<'_>) -> Value {
    let mut facts = json!({
        "authority": record.authority,
        "status": record.response_code,
        "grpcStatus": record.grpc_status,
        "flags": (!record.flags.is_empty()).then(|| record.flags.to_string()),
        "details": record.response_code_details.or(record.connection_termination_details),
        "failure": record.upstream_transport_failure_reason,
        "reason": record.reason,
        "cluster": record.upstream_cluster,
        "upstream": record.upstream_host.map(|address| address.to_string()),
        "attempts": (record.upstream_attempts > 1).then_some(record.upstream_attempts),
        "downstream": record.downstream_remote_address.map(|address| address.to_string()),
        "peer": record.downstream_peer.or(record.upstream_peer).map(ToString::to_string),
        "route": record.route_name,
        "bytesReceived": record.bytes_received,
        "bytesSent": record.bytes_sent,
    });
    if let Value::Object(facts) = &mut facts {
        facts.retain(|_, value| !value.is_null());
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(events: &Events, path: &str) {
        let record = LogRecord {
            start: jiff::Timestamp::from_second(1_000).unwrap(),
            duration: Duration::from_millis(30),
            response_duration: Some(Duration::from_millis(25)),
            upstream_service_time: Some(Duration::from_millis(20)),
            method: Some(&http::Method::GET),
            path: Some(path),
            response_code: Some(200),
            ..LogRecord::default()
        };
        events.note(SpanKind::Server, &record);
    }

    #[test]
    fn a_recording_is_a_trace_of_chromes_format() {
        let events = Arc::new(Events::default());
        let recording = events.begin().unwrap();
        assert!(events.are_wanted());
        assert!(events.begin().is_none());
        note(&events, "/a?secret=1");
        let page: Value = serde_json::from_slice(&recording.finish("reviews-v1.default")).unwrap();
        assert!(!events.are_wanted());
        let list = page["traceEvents"].as_array().unwrap();
        let seen: Vec<_> = list
            .iter()
            .map(|event| {
                (
                    event["ph"].as_str().unwrap(),
                    event["name"].as_str().unwrap(),
                    event["ts"].as_f64(),
                )
            })
            .collect();
        let expected = [
            ("b", "GET /a", Some(1e9)),
            ("b", "upstream", Some(1e9 + 5_000.0)),
            ("e", "upstream", Some(1e9 + 25_000.0)),
            ("e", "GET /a", Some(1e9 + 30_000.0)),
            ("M", "process_name", None),
        ];
        assert_eq!(seen, expected);
        assert_eq!(list[0]["args"]["status"], 200);
        assert_eq!(page["otherData"]["events"], 1);
    }

    #[test]
    fn a_recording_is_bounded_and_ends_with_who_asked() {
        let events = Arc::new(Events::default());
        let recording = events.begin().unwrap();
        let path = "/".repeat(MOST_PATH);
        for _ in 0..MOST_BYTES / 512 {
            note(&events, &path);
        }
        let page: Value = serde_json::from_slice(&recording.finish("x")).unwrap();
        assert!(page["otherData"]["dropped"].as_u64().unwrap() > 0);

        drop(events.begin().unwrap());
        assert!(!events.are_wanted());
        let page: Value = serde_json::from_slice(&events.begin().unwrap().finish("x")).unwrap();
        assert_eq!(page["otherData"]["events"], 0);
    }
}
