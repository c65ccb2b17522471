//! What a fresh connection carries, from its first bytes: as few as decide, and none of them is lost.
//!
//! TLS is known by its ClientHello, HTTP/2 by its preface, HTTP/1 by a known method, a space and the start of a target
//! (methods alone would take Redis' `GET key` for HTTP). Everything else is opaque. So is a client that says nothing for
//! as long as `timeout`: there the server speaks first.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::{Instant, timeout_at};

use crate::io::Prefixed;
use crate::tls::hello::{Hello, Sniffed, sniff};

/// Most requests' and all usual ClientHello's size or more.
const FIRST_READ: usize = 1024;
/// A ClientHello that has begun must be whole by then, whatever the protocol timeout: a slow network must not turn it
/// into opaque bytes, and a slow attacker must not hold the connection.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// HTTP/2's connection preface (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Methods that announce HTTP/1: those of RFC 9110 and the registered extensions that Envoy knows.
const METHODS: [&[u8]; 34] = [
    b"GET",
    b"POST",
    b"PUT",
    b"HEAD",
    b"DELETE",
    b"OPTIONS",
    b"PATCH",
    b"CONNECT",
    b"TRACE",
    b"ACL",
    b"BIND",
    b"CHECKOUT",
    b"COPY",
    b"LINK",
    b"LOCK",
    b"MERGE",
    b"MKACTIVITY",
    b"MKCALENDAR",
    b"MKCOL",
    b"MOVE",
    b"M-SEARCH",
    b"NOTIFY",
    b"PROPFIND",
    b"PROPPATCH",
    b"PURGE",
    b"REBIND",
    b"REPORT",
    b"SEARCH",
    b"SOURCE",
    b"SUBSCRIBE",
    b"UNBIND",
    b"UNLINK",
    b"UNLOCK",
    b"UNSUBSCRIBE",
];

/// What a connection carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detected {
    /// TLS, with what its ClientHello offers.
    Tls(Hello),
    /// HTTP/1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Anything else, or nothing in time.
    Opaque,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Is(Detected),
    /// A ClientHello that is not whole yet.
    InHello,
    Undecided,
}

/// Reads from `stream` until it is clear what it carries. Without `timeout`, waits for as long as that takes.
///
/// # Errors
/// The stream's own; `InvalidData` for a malformed or over-long ClientHello, `TimedOut` for one that does not become
/// whole within 10 s, `UnexpectedEof` for one that ends early.
pub async fn detect<S>(mut stream: S, timeout: Option<Duration>) -> io::Result<(Detected, Prefixed<S>)>
where
    S: AsyncRead + Unpin,
{
    let mut buffer = BytesMut::with_capacity(FIRST_READ);
    let mut deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut in_hello = false;
    let detected = loop {
        if buffer.capacity() == buffer.len() {
            buffer.reserve(4 * FIRST_READ);
        }
        let read = stream.read_buf(&mut buffer);
        let length = match deadline {
            None => read.await?,
            Some(deadline) => match timeout_at(deadline, read).await {
                Ok(read) => read?,
                Err(_) if in_hello => return Err(io::ErrorKind::TimedOut.into()),
                Err(_) => break Detected::Opaque,
            },
        };
        match (length, in_hello) {
            (0, true) => return Err(io::ErrorKind::UnexpectedEof.into()),
            (0, false) => break Detected::Opaque,
            _ => {}
        }
        match judge(&buffer)? {
            Verdict::Is(detected) => break detected,
            Verdict::InHello if !in_hello => {
                in_hello = true;
                deadline = Some(Instant::now() + HELLO_TIMEOUT);
            }
            Verdict::InHello | Verdict::Undecided => {}
        }
    };
    Ok((detected, Prefixed::new(buffer.freeze(), stream)))
}

fn judge(bytes: &[u8]) -> io::Result<Verdict> {
    match sniff(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))? {
        Sniffed::Hello(hello) => Ok(Verdict::Is(Detected::Tls(hello))),
        Sniffed::NeedMore { certain: true } => Ok(Verdict::InHello),
        Sniffed::NeedMore { certain: false } => Ok(Verdict::Undecided),
        Sniffed::NotTls => Ok(judge_http(bytes)),
    }
}

fn judge_http(bytes: &[u8]) -> Verdict {
    if bytes.starts_with(PREFACE) {
        return Verdict::Is(Detected::Http2);
    }
    if PREFACE.starts_with(bytes) {
        return Verdict::Undecided;
    }
    match METHODS
        .iter()
        .find(|method| bytes.starts_with(method) && bytes.get(method.len()) == Some(&b' '))
    {
        Some(method) => judge_target(method, &bytes[method.len() + 1..]),
        None if METHODS.iter().any(|method| method.starts_with(bytes)) => Verdict::Undecided,
        None => Verdict::Is(Detected::Opaque),
    }
}

/// Origin, absolute, authority or asterisk form (RFC 9112 §3.2), by its first bytes.
fn judge_target(method: &[u8], target: &[u8]) -> Verdict {
    let absolute = [b"http://".as_slice(), b"https://"];
    match target.first() {
        None => Verdict::Undecided,
        Some(b'/') => Verdict::Is(Detected::Http1),
        Some(b'*') if method == b"OPTIONS" => Verdict::Is(Detected::Http1),
        Some(first) if method == b"CONNECT" && first.is_ascii_graphic() => Verdict::Is(Detected::Http1),
        Some(_) => {
            let same = |scheme: &&[u8]| {
                let length = scheme.len().min(target.len());
                scheme[..length].eq_ignore_ascii_case(&target[..length])
            };
            match absolute.iter().find(|scheme| same(scheme)) {
                Some(scheme) if target.len() >= scheme.len() => Verdict::Is(Detected::Http1),
                Some(_) => Verdict::Undecided,
                None => Verdict::Is(Detected::Opaque),
            }
        }
    }
}

#[cfg(test)]
mod tests;
