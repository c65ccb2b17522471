//! Formats of access logs: Envoy's command operators, as `accessLogFormat` has them.
//!
//! In goes a format, out comes a list of literals and operators. An operator that is not known is an error that names it,
//! never text that is printed as it stands. What an operator prints is the proxy's.

mod time;

use std::str::FromStr;

use http::HeaderName;

pub use time::{TimeFormat, TimePart};

/// Longest format that is taken, in bytes.
pub const MAX_FORMAT: usize = 16 * 1024;

/// Why a format is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A `%` without its second.
    #[error(
        "access log format: the operator at byte {at} (`{text}`) has no closing `%`; write `%%` for a percent sign"
    )]
    Unclosed {
        /// Where it starts.
        at: usize,
        /// Its beginning.
        text: String,
    },
    /// No such operator.
    #[error("access log format: operator `%{0}%` is not known, or takes no arguments")]
    Unknown(String),
    /// The argument is missing or does not fit.
    #[error("access log format: operator `%{operator}%`: {reason}")]
    Argument {
        /// The operator.
        operator: String,
        /// What is wrong.
        reason: String,
    },
    /// It is too long.
    #[error("access log format: {0} bytes long, at most {MAX_FORMAT} are taken")]
    TooLong(usize),
}

/// A part of a format.
#[derive(Debug)]
pub enum Item {
    /// Text that is printed as it stands.
    Literal(Box<str>),
    /// What is printed of a request.
    Operator(Operator),
}

/// What is printed of a request, and how much of it.
#[derive(Debug)]
pub struct Operator {
    /// What.
    pub kind: OperatorKind,
    /// `:Z`, in bytes.
    pub max_length: Option<usize>,
}

/// What an operator prints.
#[derive(Debug)]
pub enum OperatorKind {
    /// When the request began.
    StartTime(TimeFormat),
    /// A fact that needs no argument.
    Field(Field),
    /// A header.
    Header {
        /// Whose.
        place: HeaderPlace,
        /// The header.
        main: HeaderKey,
        /// The one that is printed where `main` is missing.
        alternative: Option<HeaderKey>,
    },
}

/// Where a header is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderPlace {
    /// `REQ`
    Request,
    /// `RESP`
    Response,
    /// `TRAILER`
    Trailer,
}

/// What `REQ`, `RESP` and `TRAILER` name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderKey {
    /// `:method`
    Method,
    /// `:scheme`
    Scheme,
    /// `:authority`
    Authority,
    /// `:path`
    Path,
    /// `:status`
    Status,
    /// `x-envoy-original-path`, which a rewrite sets.
    OriginalPath,
    /// `x-envoy-upstream-service-time`.
    UpstreamServiceTime,
    /// Any other.
    Named(HeaderName),
}

macro_rules! fields {
    ($($field:ident = $name:literal),* $(,)?) => {
        /// An operator without arguments.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Field {
            $(#[doc = concat!("`", $name, "`.")] $field),*
        }

        impl Field {
            fn of_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$field),)*
                    _ => None,
                }
            }
        }
    };
}

fields! {
    Protocol = "PROTOCOL",
    ResponseCode = "RESPONSE_CODE",
    ResponseFlags = "RESPONSE_FLAGS",
    ResponseCodeDetails = "RESPONSE_CODE_DETAILS",
    ConnectionTerminationDetails = "CONNECTION_TERMINATION_DETAILS",
    UpstreamTransportFailureReason = "UPSTREAM_TRANSPORT_FAILURE_REASON",
    BytesReceived = "BYTES_RECEIVED",
    BytesSent = "BYTES_SENT",
    Duration = "DURATION",
    RequestDuration = "REQUEST_DURATION",
    ResponseDuration = "RESPONSE_DURATION",
    ResponseTxDuration = "RESPONSE_TX_DURATION",
    UpstreamHost = "UPSTREAM_HOST",
    UpstreamRemoteAddress = "UPSTREAM_REMOTE_ADDRESS",
    UpstreamRemoteIp = "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    UpstreamRemotePort = "UPSTREAM_REMOTE_PORT",
    UpstreamCluster = "UPSTREAM_CLUSTER",
    UpstreamClusterRaw = "UPSTREAM_CLUSTER_RAW",
    UpstreamLocalAddress = "UPSTREAM_LOCAL_ADDRESS",
    UpstreamLocalIp = "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    UpstreamLocalPort = "UPSTREAM_LOCAL_PORT",
    UpstreamAttempts = "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    UpstreamPeer = "UPSTREAM_PEER_URI_SAN",
    UpstreamLocal = "UPSTREAM_LOCAL_URI_SAN",
    DownstreamLocalAddress = "DOWNSTREAM_LOCAL_ADDRESS",
    DownstreamLocalIp = "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    DownstreamLocalPort = "DOWNSTREAM_LOCAL_PORT",
    DownstreamRemoteAddress = "DOWNSTREAM_REMOTE_ADDRESS",
    DownstreamRemoteIp = "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    DownstreamRemotePort = "DOWNSTREAM_REMOTE_PORT",
    DownstreamDirectRemoteAddress = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
    DownstreamDirectRemoteIp = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
    DownstreamPeer = "DOWNSTREAM_PEER_URI_SAN",
    DownstreamLocal = "DOWNSTREAM_LOCAL_URI_SAN",
    DownstreamTlsVersion = "DOWNSTREAM_TLS_VERSION",
    RequestedServerName = "REQUESTED_SERVER_NAME",
    RouteName = "ROUTE_NAME",
    GrpcStatus = "GRPC_STATUS",
    GrpcStatusNumber = "GRPC_STATUS_NUMBER",
    Method = "METHOD",
    Path = "PATH",
    TraceId = "TRACE_ID",
    Policy = "MESH_POLICY",
    Rule = "MESH_RULE",
    Reason = "MESH_REASON",
}

/// Reads a text format; a line break is added at the end if there is none.
///
/// # Errors
/// When an operator is not known, not closed, or has a wrong argument.
pub fn parse(format: &str) -> Result<Vec<Item>, FormatError> {
    if format.len() > MAX_FORMAT {
        return Err(FormatError::TooLong(format.len()));
    }
    let mut items = Vec::new();
    let mut literal = String::new();
    let mut rest = format;
    while let Some(percent) = rest.find('%') {
        literal.push_str(&rest[..percent]);
        rest = &rest[percent..];
        if let Some(after) = rest.strip_prefix("%%") {
            literal.push('%');
            rest = after;
            continue;
        }
        let (text, after) = split_operator(rest).ok_or_else(|| FormatError::Unclosed {
            at: format.len() - rest.len(),
            text: rest.chars().take(40).collect(),
        })?;
        if !literal.is_empty() {
            items.push(Item::Literal(std::mem::take(&mut literal).into()));
        }
        items.push(Item::Operator(text.parse()?));
        rest = after;
    }
    literal.push_str(rest);
    if !literal.ends_with('\n') {
        literal.push('\n');
    }
    items.push(Item::Literal(literal.into()));
    Ok(items)
}

/// Splits `%NAME(arguments):Z%…` into what is between the signs and what follows. Arguments may hold `%`.
fn split_operator(text: &str) -> Option<(&str, &str)> {
    let inner = text.strip_prefix('%')?;
    let name_end = inner.find(['%', '('])?;
    let end = if inner[name_end..].starts_with('(') {
        let arguments_end = name_end + inner[name_end..].find(')')?;
        arguments_end + inner[arguments_end..].find('%')?
    } else {
        name_end
    };
    Some((&inner[..end], &inner[end + 1..]))
}

impl FromStr for Operator {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let unknown = || FormatError::Unknown(text.to_owned());
        let wrong = |reason: String| FormatError::Argument {
            operator: text.to_owned(),
            reason,
        };
        let (name, arguments, tail) = match text.split_once('(') {
            Some((name, rest)) => {
                let (arguments, tail) = rest.rsplit_once(')').ok_or_else(unknown)?;
                (name, Some(arguments), tail)
            }
            None => match text.split_once(':') {
                Some((name, _)) => (name, None, &text[name.len()..]),
                None => (text, None, ""),
            },
        };
        let max_length = match tail {
            "" => None,
            tail => {
                let number = tail.strip_prefix(':').and_then(|number| number.parse().ok());
                Some(number.ok_or_else(|| wrong(format!("`{tail}` is not a maximal length such as `:10`")))?)
            }
        };
        let place = match name {
            "REQ" => Some(HeaderPlace::Request),
            "RESP" => Some(HeaderPlace::Response),
            "TRAILER" => Some(HeaderPlace::Trailer),
            _ => None,
        };
        let kind = match (name, place, arguments) {
            ("START_TIME", _, format) => {
                OperatorKind::StartTime(TimeFormat::compile(format.unwrap_or_default()).map_err(wrong)?)
            }
            (_, Some(place), Some(arguments)) => {
                let (main, alternative) = match arguments.split_once('?') {
                    Some((main, alternative)) => (main, Some(alternative)),
                    None => (arguments, None),
                };
                let key = |name: &str| HeaderKey::parse(name).ok_or_else(|| wrong(format!("`{name}` is no header")));
                OperatorKind::Header {
                    place,
                    main: key(main)?,
                    alternative: alternative.map(key).transpose()?,
                }
            }
            (_, Some(_), None) => return Err(wrong("it needs a header name in brackets".to_owned())),
            (name, None, arguments) => OperatorKind::Field(Field::parse(name, arguments).ok_or_else(unknown)?),
        };
        Ok(Self { kind, max_length })
    }
}

impl HeaderKey {
    fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            ":method" => Self::Method,
            ":scheme" => Self::Scheme,
            ":authority" => Self::Authority,
            ":path" => Self::Path,
            ":status" => Self::Status,
            "x-envoy-original-path" => Self::OriginalPath,
            "x-envoy-upstream-service-time" => Self::UpstreamServiceTime,
            lower => Self::Named(HeaderName::from_bytes(lower.as_bytes()).ok()?),
        })
    }
}

impl Field {
    fn parse(name: &str, arguments: Option<&str>) -> Option<Self> {
        match (Self::of_name(name)?, arguments) {
            // Envoy's default spelling, asked for by name.
            (Self::GrpcStatus, Some("CAMEL_STRING")) => Some(Self::GrpcStatus),
            (Self::GrpcStatus, Some("NUMBER")) => Some(Self::GrpcStatusNumber),
            (_, Some(_)) => None,
            (field, None) => Some(field),
        }
    }
}
