//! Reads what a TLS ClientHello offers, from the first bytes of a connection, without taking part in the handshake.
//!
//! ```text
//! record (RFC 8446 §5.1):     22, version (2), length (2), then a fragment of
//! handshake message (§4):     1, length (3), then
//! ClientHello (§4.1.2):       version (2), random (32), session id, cipher suites, compression methods, extensions
//! ```
//!
//! The hello decides whether a connection is the mesh's and whether it carries HTTP; it proves nothing about the peer.

use std::borrow::Cow;

use super::AlpnKind;

/// A hello beyond this is no browser's and no sidecar's, post-quantum keys included.
const MAX_MESSAGE: usize = 16 * 1024;
/// What is looked at before giving up: the longest hello, in a few records.
pub const MAX_SNIFFED: usize = MAX_MESSAGE + 1024;

const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const MAX_RECORD: usize = 1 << 14;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;

/// What a client offers in its first message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hello {
    /// Server name indication, as sent.
    pub sni: Option<String>,
    /// Application protocols in the client's order.
    pub alpn: Vec<Vec<u8>>,
}

/// What the first bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sniffed {
    /// Cannot tell yet. `certain` when it is a ClientHello of which only the end is missing.
    NeedMore {
        /// Whether the bytes so far can be nothing else than a ClientHello.
        certain: bool,
    },
    /// Not TLS.
    NotTls,
    /// A whole ClientHello.
    Hello(Hello),
}

/// Bytes that begin as a ClientHello and do not go on as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed TLS ClientHello: {0}")]
pub struct MalformedHello(&'static str);

impl Hello {
    /// What the mesh would carry in this connection: `None` when no `istio` protocol is offered, and the TLS is the
    /// application's own.
    #[must_use]
    pub fn mesh_protocol(&self) -> Option<AlpnKind> {
        let offers = |name: &[u8]| self.alpn.iter().any(|offered| offered == name);
        if offers(b"istio-h2") {
            Some(AlpnKind::Http2)
        } else if offers(b"istio-http/1.1") || offers(b"istio-http/1.0") {
            Some(AlpnKind::Http1)
        } else if self.alpn.iter().any(|offered| offered.starts_with(b"istio")) {
            Some(AlpnKind::Tcp)
        } else {
            None
        }
    }
}

/// Reads the first bytes of a connection; pure, and cheap enough to repeat as more arrive.
///
/// # Errors
/// When the bytes begin as a ClientHello but are malformed, or longer than 16 KiB.
pub fn sniff(bytes: &[u8]) -> Result<Sniffed, MalformedHello> {
    let begins = [
        |b: u8| b == HANDSHAKE_RECORD,
        |b: u8| b == 3,
        |b: u8| b <= 4,
        |b: u8| usize::from(b) <= MAX_RECORD >> 8,
        |_: u8| true,
        |b: u8| b == CLIENT_HELLO,
    ];
    if bytes.iter().zip(begins).any(|(byte, expected)| !expected(*byte)) || bytes.get(3..5) == Some(&[0, 0]) {
        return Ok(Sniffed::NotTls);
    }
    if bytes.len() < begins.len() {
        return Ok(Sniffed::NeedMore { certain: false });
    }
    match message(bytes)? {
        Some(message) => parse(&message).map(Sniffed::Hello),
        None if bytes.len() >= MAX_SNIFFED => Err(MalformedHello("not whole within 17 KiB")),
        None => Ok(Sniffed::NeedMore { certain: true }),
    }
}

/// The handshake message that the records carry, without its header; `None` while it is not whole.
fn message(bytes: &[u8]) -> Result<Option<Cow<'_, [u8]>>, MalformedHello> {
    let mut rest = Reader(bytes);
    let mut collected: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    while !rest.0.is_empty() {
        let header = (rest.u8(), rest.u8(), rest.u8(), rest.u16());
        let (Some(kind), Some(major), Some(_), Some(length)) = header else {
            return Ok(None);
        };
        if kind != HANDSHAKE_RECORD || major != 3 || length == 0 || usize::from(length) > MAX_RECORD {
            return Err(MalformedHello("a record of another kind in the middle"));
        }
        let fragment = &rest.0[..usize::from(length).min(rest.0.len())];
        let whole = fragment.len() == usize::from(length);
        rest.0 = &rest.0[fragment.len()..];
        if collected.is_empty() {
            collected = Cow::Borrowed(fragment);
        } else {
            collected.to_mut().extend_from_slice(fragment);
        }
        if let [_, high, middle, low, body @ ..] = &*collected {
            let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
            if length > MAX_MESSAGE {
                return Err(MalformedHello("longer than 16 KiB"));
            }
            if body.len() >= length {
                return Ok(Some(match collected {
                    Cow::Borrowed(message) => Cow::Borrowed(&message[4..4 + length]),
                    Cow::Owned(mut message) => {
                        message.truncate(4 + length);
                        Cow::Owned(message.split_off(4))
                    }
                }));
            }
        }
        if !whole {
            return Ok(None);
        }
    }
    Ok(None)
}

fn parse(message: &[u8]) -> Result<Hello, MalformedHello> {
    let short = MalformedHello("a length in it exceeds it");
    let mut rest = Reader(message);
    rest.take(2 + 32).ok_or(short)?;
    rest.vector8().ok_or(short)?;
    rest.vector16().ok_or(short)?;
    rest.vector8().ok_or(short)?;
    let mut hello = Hello::default();
    if rest.0.is_empty() {
        return Ok(hello);
    }
    let mut extensions = Reader(rest.vector16().ok_or(short)?);
    if !rest.0.is_empty() {
        return Err(MalformedHello("bytes after its end"));
    }
    let (mut seen_name, mut seen_alpn) = (false, false);
    while !extensions.0.is_empty() {
        let kind = extensions.u16().ok_or(short)?;
        let body = extensions.vector16().ok_or(short)?;
        let again = match kind {
            SERVER_NAME => {
                hello.sni = server_name(body)?;
                std::mem::replace(&mut seen_name, true)
            }
            ALPN => {
                hello.alpn = protocols(body)?;
                std::mem::replace(&mut seen_alpn, true)
            }
            _ => false,
        };
        if again {
            return Err(MalformedHello("an extension occurs twice"));
        }
    }
    Ok(hello)
}

/// RFC 6066 §3.
fn server_name(body: &[u8]) -> Result<Option<String>, MalformedHello> {
    let malformed = MalformedHello("server name");
    let mut body = Reader(body);
    let mut names = Reader(body.vector16().ok_or(malformed)?);
    while !names.0.is_empty() {
        let kind = names.u8().ok_or(malformed)?;
        let name = names.vector16().ok_or(malformed)?;
        if kind == 0 {
            let name = std::str::from_utf8(name).map_err(|_| malformed)?;
            return if name.is_ascii() && !name.is_empty() {
                Ok(Some(name.to_owned()))
            } else {
                Err(malformed)
            };
        }
    }
    Ok(None)
}

/// RFC 7301 §3.1.
fn protocols(body: &[u8]) -> Result<Vec<Vec<u8>>, MalformedHello> {
    let malformed = MalformedHello("application protocols");
    let mut body = Reader(body);
    let mut list = Reader(body.vector16().ok_or(malformed)?);
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        match list.vector8() {
            Some(name) if !name.is_empty() => protocols.push(name.to_vec()),
            _ => return Err(malformed),
        }
    }
    Ok(protocols)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }
}

#[cfg(test)]
pub(crate) mod tests;
