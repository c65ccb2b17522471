//! Formats of the access log: Envoy's command operators, compiled once.
//!
//! In goes a format as `accessLogFormat` has it, which [`log_format`] reads, out comes a list of literals and operators
//! that a record is printed with.

mod time;
mod value;

use http::HeaderName;
use mesh_api::log_format::{self, HeaderKey, HeaderPlace, Item, OperatorKind};

pub use mesh_api::log_format::FormatError;

use super::record::LogRecord;

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

impl LogFormat {
    /// A text format; a line break is added at the end if there is none.
    ///
    /// # Errors
    /// When an operator is not known, not closed, or has a wrong argument.
    pub fn text(format: &str) -> Result<Self, FormatError> {
        Ok(Self::new(log_format::parse(format)?, Encoding::Text))
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
                            .filter_map(header_name),
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
                    let value = value::of(operator, record);
                    match self.encoding {
                        Encoding::Text => value.write_text(operator.max_length, out),
                        Encoding::Json => value.write_json(operator.max_length, out),
                    }
                }
            }
        }
    }
}

/// The header to keep, where there is one.
fn header_name(key: &HeaderKey) -> Option<HeaderName> {
    match key {
        HeaderKey::Named(name) => Some(name.clone()),
        HeaderKey::OriginalPath => Some(value::ORIGINAL_PATH),
        HeaderKey::UpstreamServiceTime => Some(value::SERVICE_TIME),
        HeaderKey::Authority => Some(http::header::HOST),
        HeaderKey::Method | HeaderKey::Scheme | HeaderKey::Path | HeaderKey::Status => None,
    }
}

#[cfg(test)]
mod tests;
