//! Values of operators, and how they are printed: as text, where a missing one is `-`, and as JSON, where it is `null`.
//!
//! What peers can choose (headers, paths, names) is escaped, so that nobody can forge a line or a field: in text, quotes,
//! backslashes, control characters and bytes that are not UTF-8 become `\xNN`.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::{HeaderName, Version};
use jiff::Timestamp;
use mesh_api::identity::SpiffeId;
use mesh_api::log_format::{Field, HeaderKey, HeaderPlace, Operator, OperatorKind, TimeFormat};
use mesh_api::names::ObjectRef;

use super::super::record::{Headers, LogRecord};
use super::super::trace::TraceId;
use super::time;
use crate::flags::ResponseFlags;

pub(super) const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
pub(super) const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

/// A value to print.
pub(super) enum Value<'a> {
    Missing,
    /// Chosen by a peer: to be escaped.
    Bytes(&'a [u8]),
    /// A detail, in which Envoy writes `_` for white space.
    Detail(&'a str),
    Static(&'static str),
    Number(u64),
    /// A number that is text in JSON.
    NumberText(u64),
    Address(SocketAddr),
    Ip(IpAddr),
    Flags(ResponseFlags),
    Trace(TraceId),
    Object(&'a ObjectRef),
    Time(Timestamp, &'a TimeFormat),
}

/// gRPC's status names, as Envoy prints them.
const GRPC_NAMES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// What an operator prints of a record.
pub(super) fn of<'a>(operator: &'a Operator, record: &LogRecord<'a>) -> Value<'a> {
    match &operator.kind {
        OperatorKind::StartTime(format) => Value::Time(record.start, format),
        OperatorKind::Field(name) => field(*name, record),
        OperatorKind::Header {
            place,
            main,
            alternative,
        } => match (named_header(main, *place, record), alternative) {
            (Value::Missing, Some(alternative)) => named_header(alternative, *place, record),
            (value, _) => value,
        },
    }
}

fn field<'a>(field: Field, record: &LogRecord<'a>) -> Value<'a> {
    match field {
        Field::Protocol => record.protocol.map_or(Value::Missing, |v| Value::Static(protocol(v))),
        Field::ResponseCode => Value::Number(record.response_code.unwrap_or(0).into()),
        Field::ResponseFlags => Value::Flags(record.flags),
        Field::ResponseCodeDetails => detail(record.response_code_details),
        Field::ConnectionTerminationDetails => detail(record.connection_termination_details),
        Field::UpstreamTransportFailureReason => text(record.upstream_transport_failure_reason),
        Field::BytesReceived => Value::Number(record.bytes_received),
        Field::BytesSent => Value::Number(record.bytes_sent),
        Field::Duration => Value::Number(millis(record.duration)),
        Field::RequestDuration => duration(record.request_duration),
        Field::ResponseDuration => duration(record.response_duration),
        Field::ResponseTxDuration => duration(
            record
                .response_duration
                .map(|first| record.duration.saturating_sub(first)),
        ),
        Field::UpstreamHost | Field::UpstreamRemoteAddress => address(record.upstream_host),
        Field::UpstreamRemoteIp => ip(record.upstream_host),
        Field::UpstreamRemotePort => port(record.upstream_host),
        Field::UpstreamCluster | Field::UpstreamClusterRaw => text(record.upstream_cluster),
        Field::UpstreamLocalAddress => address(record.upstream_local_address),
        Field::UpstreamLocalIp => ip(record.upstream_local_address),
        Field::UpstreamLocalPort => port(record.upstream_local_address),
        Field::UpstreamAttempts => Value::Number(record.upstream_attempts.into()),
        Field::UpstreamPeer => identity(record.upstream_peer),
        Field::UpstreamLocal => identity(record.upstream_local),
        Field::DownstreamLocalAddress => address(record.downstream_local_address),
        Field::DownstreamLocalIp => ip(record.downstream_local_address),
        Field::DownstreamLocalPort => port(record.downstream_local_address),
        Field::DownstreamRemoteAddress => address(record.downstream_remote_address),
        Field::DownstreamRemoteIp => ip(record.downstream_remote_address),
        Field::DownstreamRemotePort => port(record.downstream_remote_address),
        Field::DownstreamDirectRemoteAddress => address(direct(record)),
        Field::DownstreamDirectRemoteIp => ip(direct(record)),
        Field::DownstreamPeer => identity(record.downstream_peer),
        Field::DownstreamLocal => identity(record.downstream_local),
        Field::DownstreamTlsVersion => text(record.downstream_tls_version),
        Field::RequestedServerName => text(record.requested_server_name),
        Field::RouteName => text(record.route_name),
        Field::GrpcStatus => record.grpc_status.map_or(Value::Missing, |status| {
            let name = usize::try_from(status).ok().and_then(|status| GRPC_NAMES.get(status));
            Value::Static(name.copied().unwrap_or("InvalidCode"))
        }),
        Field::GrpcStatusNumber => record
            .grpc_status
            .and_then(|status| u64::try_from(status).ok())
            .map_or(Value::Missing, Value::Number),
        Field::Method => text(record.method.map(http::Method::as_str)),
        Field::Path => text(record.path),
        Field::TraceId => record.trace_id.map_or(Value::Missing, Value::Trace),
        Field::Policy => record.policy.map_or(Value::Missing, Value::Object),
        Field::Rule => text(record.rule),
        Field::Reason => text(record.reason),
    }
}

fn named_header<'a>(key: &HeaderKey, place: HeaderPlace, record: &LogRecord<'a>) -> Value<'a> {
    let headers = match place {
        HeaderPlace::Request => record.request_headers,
        HeaderPlace::Response => record.response_headers,
        HeaderPlace::Trailer => record.response_trailers,
    };
    match (place, key) {
        (HeaderPlace::Request, HeaderKey::Method) => text(record.method.map(http::Method::as_str)),
        (HeaderPlace::Request, HeaderKey::Scheme) => text(record.scheme),
        (HeaderPlace::Request, HeaderKey::Path) => text(record.path),
        (HeaderPlace::Request, HeaderKey::Authority) => match record.authority {
            Some(authority) => Value::Bytes(authority.as_bytes()),
            None => header(headers, &http::header::HOST),
        },
        (HeaderPlace::Request, HeaderKey::OriginalPath) => match record.original_path {
            Some(path) => Value::Bytes(path.as_bytes()),
            None => header(headers, &ORIGINAL_PATH),
        },
        (HeaderPlace::Response, HeaderKey::Status) => record
            .response_code
            .map_or(Value::Missing, |code| Value::NumberText(code.into())),
        (HeaderPlace::Response, HeaderKey::UpstreamServiceTime) => match record.upstream_service_time {
            Some(time) => Value::NumberText(millis(time)),
            None => header(headers, &SERVICE_TIME),
        },
        (_, HeaderKey::OriginalPath) => header(headers, &ORIGINAL_PATH),
        (_, HeaderKey::UpstreamServiceTime) => header(headers, &SERVICE_TIME),
        (_, HeaderKey::Named(name)) => header(headers, name),
        (_, HeaderKey::Method | HeaderKey::Scheme | HeaderKey::Path | HeaderKey::Authority | HeaderKey::Status) => {
            Value::Missing
        }
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

fn header<'a>(headers: Headers<'a>, name: &HeaderName) -> Value<'a> {
    headers
        .get(name)
        .map_or(Value::Missing, |value| Value::Bytes(value.as_bytes()))
}

fn text(value: Option<&str>) -> Value<'_> {
    value
        .filter(|value| !value.is_empty())
        .map_or(Value::Missing, |value| Value::Bytes(value.as_bytes()))
}

fn detail(value: Option<&str>) -> Value<'_> {
    value
        .filter(|value| !value.is_empty())
        .map_or(Value::Missing, Value::Detail)
}

fn identity(id: Option<&SpiffeId>) -> Value<'_> {
    text(id.map(SpiffeId::as_str))
}

fn address<'a>(address: Option<SocketAddr>) -> Value<'a> {
    address.map_or(Value::Missing, Value::Address)
}

fn ip<'a>(address: Option<SocketAddr>) -> Value<'a> {
    address.map_or(Value::Missing, |address| Value::Ip(address.ip()))
}

fn port<'a>(address: Option<SocketAddr>) -> Value<'a> {
    address.map_or(Value::Missing, |address| Value::Number(address.port().into()))
}

fn direct(record: &LogRecord<'_>) -> Option<SocketAddr> {
    record
        .downstream_direct_remote_address
        .or(record.downstream_remote_address)
}

fn duration<'a>(duration: Option<Duration>) -> Value<'a> {
    duration.map_or(Value::Missing, |duration| Value::Number(millis(duration)))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Value<'_> {
    /// Appends the value as text, at most `max` bytes of it.
    pub(super) fn write_text(&self, max: Option<usize>, out: &mut Vec<u8>) {
        match self {
            Self::Missing => out.push(b'-'),
            Self::Bytes(bytes) => escape_text(truncated(bytes, max), false, out),
            Self::Detail(detail) => escape_text(truncated(detail.as_bytes(), max), true, out),
            other => {
                let start = out.len();
                other.write_plain(out);
                out.truncate(max.map_or(out.len(), |max| start.saturating_add(max).min(out.len())));
            }
        }
    }

    /// Appends the value as JSON, at most `max` bytes of a text.
    pub(super) fn write_json(&self, max: Option<usize>, out: &mut Vec<u8>) {
        match self {
            Self::Missing => out.extend_from_slice(b"null"),
            Self::Number(_) => self.write_plain(out),
            Self::Bytes(bytes) => write_json_string(truncated(bytes, max), out),
            Self::Detail(detail) => {
                let start = out.len();
                write_json_string(truncated(detail.as_bytes(), max), out);
                out[start..]
                    .iter_mut()
                    .filter(|byte| **byte == b' ')
                    .for_each(|byte| *byte = b'_');
            }
            Self::Object(object) => write_json_string(object.to_string().as_bytes(), out),
            plain => {
                out.push(b'"');
                plain.write_plain(out);
                out.push(b'"');
            }
        }
    }

    /// Appends a value that holds nothing to escape.
    fn write_plain(&self, out: &mut Vec<u8>) {
        let _ = match self {
            Self::Missing | Self::Bytes(_) | Self::Detail(_) => Ok(()),
            Self::Static(text) => out.write_all(text.as_bytes()),
            Self::Number(number) | Self::NumberText(number) => {
                write_decimal(*number, out);
                Ok(())
            }
            Self::Address(SocketAddr::V4(address)) => {
                for (index, part) in address.ip().octets().into_iter().enumerate() {
                    if index > 0 {
                        out.push(b'.');
                    }
                    write_decimal(part.into(), out);
                }
                out.push(b':');
                write_decimal(address.port().into(), out);
                Ok(())
            }
            Self::Address(address) => write!(out, "{address}"),
            Self::Flags(flags) if flags.is_empty() => out.write_all(b"-"),
            Self::Ip(ip) => write!(out, "{ip}"),
            Self::Flags(flags) => write!(out, "{flags}"),
            Self::Trace(id) => write!(out, "{id}"),
            Self::Object(object) => write!(out, "{object}"),
            Self::Time(at, format) => {
                time::write(format, *at, out);
                Ok(())
            }
        };
    }
}

/// The machinery of `write!` costs several times the digits, and a line has a dozen numbers.
fn write_decimal(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

fn truncated(bytes: &[u8], max: Option<usize>) -> &[u8] {
    &bytes[..max.map_or(bytes.len(), |max| max.min(bytes.len()))]
}

fn escape_text(bytes: &[u8], spaces: bool, out: &mut Vec<u8>) {
    let plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\') && !(spaces && *byte == b' ');
    if bytes.iter().all(plain) {
        out.extend_from_slice(bytes);
        return;
    }
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            let mut buffer = [0; 4];
            let encoded = c.encode_utf8(&mut buffer).as_bytes();
            if spaces && c.is_ascii_whitespace() {
                out.push(b'_');
            } else if c.is_control() || matches!(c, '"' | '\\') {
                encoded.iter().for_each(|byte| escape_byte(*byte, out));
            } else {
                out.extend_from_slice(encoded);
            }
        }
        chunk.invalid().iter().for_each(|byte| escape_byte(*byte, out));
    }
}

fn escape_byte(byte: u8, out: &mut Vec<u8>) {
    let _ = write!(out, "\\x{byte:02X}");
}

/// Appends a JSON string; bytes that are not UTF-8 become U+FFFD.
fn write_json_string(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    if bytes
        .iter()
        .all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'))
    {
        out.extend_from_slice(bytes);
        out.push(b'"');
        return;
    }
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                '\n' => out.extend_from_slice(b"\\n"),
                '\r' => out.extend_from_slice(b"\\r"),
                '\t' => out.extend_from_slice(b"\\t"),
                c if c.is_control() => {
                    let _ = write!(out, "\\u{:04x}", u32::from(c));
                }
                c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    out.push(b'"');
}
