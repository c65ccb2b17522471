//! Formats of the access log: Envoy's command operators, compiled once.
//!
//! In goes a format as `accessLogFormat` has it, out comes a list of literals and fields that a record is printed with.
//! An operator that is not known is an error that names it, never text that is printed as it stands.

mod time;
mod value;

use std::str::FromStr;

use http::HeaderName;

use super::record::LogRecord;
use time::TimeFormat;
use value::Field;

/// Istio's default (`EnvoyTextLogFormat`).
pub const ISTIO_TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
    \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
    \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% \
    %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// Istio's JSON keys, then the mesh's own.
const JSON: &[(&str, &str)] = &[
    ("start_time", "START_TIME"),
    ("route_name", "ROUTE_NAME"),
    ("method", "REQ(:METHOD)"),
    ("path", "REQ(X-ENVOY-ORIGINAL-PATH?:PATH)"),
    ("protocol", "PROTOCOL"),
    ("response_code", "RESPONSE_CODE"),
    ("response_flags", "RESPONSE_FLAGS"),
    ("response_code_details", "RESPONSE_CODE_DETAILS"),
    ("connection_termination_details", "CONNECTION_TERMINATION_DETAILS"),
    ("bytes_received", "BYTES_RECEIVED"),
    ("bytes_sent", "BYTES_SENT"),
    ("duration", "DURATION"),
    ("upstream_service_time", "RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)"),
    ("x_forwarded_for", "REQ(X-FORWARDED-FOR)"),
    ("user_agent", "REQ(USER-AGENT)"),
    ("request_id", "REQ(X-REQUEST-ID)"),
    ("authority", "REQ(:AUTHORITY)"),
    ("upstream_host", "UPSTREAM_HOST"),
    ("upstream_cluster", "UPSTREAM_CLUSTER_RAW"),
    ("upstream_local_address", "UPSTREAM_LOCAL_ADDRESS"),
    ("downstream_local_address", "DOWNSTREAM_LOCAL_ADDRESS"),
    ("downstream_remote_address", "DOWNSTREAM_REMOTE_ADDRESS"),
    ("requested_server_name", "REQUESTED_SERVER_NAME"),
    ("upstream_transport_failure_reason", "UPSTREAM_TRANSPORT_FAILURE_REASON"),
    ("trace_id", "TRACE_ID"),
    ("policy", "MESH_POLICY"),
    ("rule", "MESH_RULE"),
    ("reason", "MESH_REASON"),
];

/// Longest format that is taken, in bytes.
const MAX_FORMAT: usize = 16 * 1024;

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

/// A compiled format.
#[derive(Debug)]
pub struct LogFormat {
    items: Vec<Item>,
    encoding: Encoding,
    request_headers: Vec<HeaderName>,
    response_headers: Vec<HeaderName>,
    trailers: Vec<HeaderName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Text,
    Json,
}

#[derive(Debug)]
enum Item {
    Literal(Box<str>),
    Operator(Operator),
}

#[derive(Debug)]
struct Operator {
    kind: OperatorKind,
    /// `:Z`, in bytes.
    max_length: Option<usize>,
}

#[derive(Debug)]
enum OperatorKind {
    StartTime(TimeFormat),
    Field(Field),
    Header {
        place: HeaderPlace,
        main: HeaderKey,
        alternative: Option<HeaderKey>,
    },
}

/// Where a header is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeaderPlace {
    Request,
    Response,
    Trailer,
}

/// What `REQ`, `RESP` and `TRAILER` name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum HeaderKey {
    Method,
    Scheme,
    Authority,
    Path,
    Status,
    /// `x-envoy-original-path`, which a rewrite sets.
    OriginalPath,
    /// `x-envoy-upstream-service-time`.
    UpstreamServiceTime,
    Named(HeaderName),
}

impl LogFormat {
    /// A text format; a line break is added at the end if there is none.
    ///
    /// # Errors
    /// When an operator is not known, not closed, or has a wrong argument.
    pub fn text(format: &str) -> Result<Self, FormatError> {
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
        Ok(Self::new(items, Encoding::Text))
    }

    /// One JSON object a line.
    ///
    /// # Errors
    /// Never, as long as the keys of this module name operators that exist.
    pub fn json() -> Result<Self, FormatError> {
        let mut items = Vec::with_capacity(JSON.len() * 2 + 1);
        let mut separator = '{';
        for (key, operator) in JSON {
            items.push(Item::Literal(format!("{separator}\"{key}\":").into()));
            items.push(Item::Operator(operator.parse()?));
            separator = ',';
        }
        items.push(Item::Literal("}\n".into()));
        Ok(Self::new(items, Encoding::Json))
    }

    fn new(items: Vec<Item>, encoding: Encoding) -> Self {
        let names = |wanted: HeaderPlace| {
            let mut names = Vec::new();
            for item in &items {
                let Item::Operator(operator) = item else { continue };
                if let OperatorKind::Header {
                    place,
                    main,
                    alternative,
                } = &operator.kind
                    && *place == wanted
                {
                    names.extend(
                        [Some(main), alternative.as_ref()]
                            .into_iter()
                            .flatten()
                            .filter_map(HeaderKey::name),
                    );
                }
            }
            names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
            names.dedup();
            names
        };
        Self {
            request_headers: names(HeaderPlace::Request),
            response_headers: names(HeaderPlace::Response),
            trailers: names(HeaderPlace::Trailer),
            items,
            encoding,
        }
    }

    /// Request headers that the format prints.
    #[must_use]
    pub fn request_headers(&self) -> &[HeaderName] {
        &self.request_headers
    }

    /// Response headers that the format prints.
    #[must_use]
    pub fn response_headers(&self) -> &[HeaderName] {
        &self.response_headers
    }

    /// Response trailers that the format prints.
    #[must_use]
    pub fn trailers(&self) -> &[HeaderName] {
        &self.trailers
    }

    /// Appends the line of a record.
    pub fn write(&self, record: &LogRecord<'_>, out: &mut Vec<u8>) {
        for item in &self.items {
            match item {
                Item::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Item::Operator(operator) => {
                    let value = operator.value(record);
                    match self.encoding {
                        Encoding::Text => value.write_text(operator.max_length, out),
                        Encoding::Json => value.write_json(operator.max_length, out),
                    }
                }
            }
        }
    }
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

    /// The header to keep, where there is one.
    fn name(&self) -> Option<HeaderName> {
        match self {
            Self::Named(name) => Some(name.clone()),
            Self::OriginalPath => Some(value::ORIGINAL_PATH),
            Self::UpstreamServiceTime => Some(value::SERVICE_TIME),
            Self::Authority => Some(http::header::HOST),
            Self::Method | Self::Scheme | Self::Path | Self::Status => None,
        }
    }
}

#[cfg(test)]
mod tests;
