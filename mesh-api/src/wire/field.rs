//! What all conversions share: errors that name a field, and checks of single values.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use super::proto;
use crate::model::{Labels, Percentage, ServiceRef};
use crate::names::ObjectRef;

/// What is wrong with which field; the path grows from the inside out.
#[derive(Debug)]
pub(super) struct FieldError {
    pub(super) path: String,
    pub(super) reason: String,
}

impl FieldError {
    pub(super) fn new(field: &str, reason: impl Display) -> Self {
        Self {
            path: field.to_owned(),
            reason: reason.to_string(),
        }
    }

    fn within(mut self, outer: &str) -> Self {
        self.path.insert(0, '.');
        self.path.insert_str(0, outer);
        self
    }
}

/// Prefixes the errors of a message with the field that holds it.
pub(super) trait Within<T> {
    fn within(self, outer: &str) -> Result<T, FieldError>;
}

impl<T> Within<T> for Result<T, FieldError> {
    fn within(self, outer: &str) -> Self {
        self.map_err(|error| error.within(outer))
    }
}

/// Gives an error of a parser its field.
pub(super) trait InField<T> {
    fn field(self, field: &str) -> Result<T, FieldError>;
}

impl<T, E: Display> InField<T> for Result<T, E> {
    fn field(self, field: &str) -> Result<T, FieldError> {
        self.map_err(|error| FieldError::new(field, error))
    }
}

/// Converts a list of messages; errors name the index.
pub(super) fn each<P, M, C: FromIterator<M>>(
    field: &str,
    items: Vec<P>,
    mut convert: impl FnMut(P) -> Result<M, FieldError>,
) -> Result<C, FieldError> {
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| convert(item).map_err(|error| error.within(&format!("{field}[{index}]"))))
        .collect()
}

/// Parses a list of values; errors name the index.
pub(super) fn each_value<P, M, E: Display, C: FromIterator<M>>(
    field: &str,
    items: Vec<P>,
    mut parse: impl FnMut(P) -> Result<M, E>,
) -> Result<C, FieldError> {
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| parse(item).map_err(|error| FieldError::new(&format!("{field}[{index}]"), error)))
        .collect()
}

/// Converts a message that has to be there.
pub(super) fn required<P, M>(
    field: &str,
    message: Option<P>,
    convert: impl FnOnce(P) -> Result<M, FieldError>,
) -> Result<M, FieldError> {
    convert(message.ok_or_else(|| FieldError::new(field, "is missing"))?).within(field)
}

/// Converts a message that may be absent.
pub(super) fn optional<P, M>(
    field: &str,
    message: Option<P>,
    convert: impl FnOnce(P) -> Result<M, FieldError>,
) -> Result<Option<M>, FieldError> {
    message.map(convert).transpose().within(field)
}

/// An enum value that this release knows.
pub(super) fn known<E: TryFrom<i32>>(field: &str, value: i32) -> Result<E, FieldError> {
    E::try_from(value).map_err(|_| FieldError::new(field, format_args!("unknown value {value}")))
}

/// The error of an enum that was left out.
pub(super) fn unspecified<T>(field: &str) -> Result<T, FieldError> {
    Err(FieldError::new(field, "is missing"))
}

pub(super) fn port(field: &str, value: u32) -> Result<u16, FieldError> {
    match u16::try_from(value) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(FieldError::new(
            field,
            format_args!("{value} is not a port: expected 1 to 65535"),
        )),
    }
}

pub(super) fn percentage(field: &str, per_million: u32) -> Result<Percentage, FieldError> {
    if per_million > 1_000_000 {
        return Err(FieldError::new(field, format_args!("{per_million} per million")));
    }
    Ok(Percentage::from_per_million(per_million))
}

/// Nanoseconds; what is longer than 584 years is as long as that.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn duration(nanos: u64) -> Duration {
    Duration::from_nanos(nanos)
}

/// A shared text; absent stays absent.
pub(super) fn shared(text: Option<String>) -> Option<Arc<str>> {
    text.map(Arc::from)
}

pub(super) fn owned(text: Option<&Arc<str>>) -> Option<String> {
    text.map(|text| text.to_string())
}

pub(super) fn strings(texts: &[Arc<str>]) -> Vec<String> {
    texts.iter().map(|text| text.to_string()).collect()
}

pub(super) fn shared_all(texts: Vec<String>) -> Vec<Arc<str>> {
    texts.into_iter().map(Arc::from).collect()
}

pub(super) fn encode_labels(labels: &Labels) -> Vec<proto::Label> {
    labels
        .iter()
        .map(|(key, value)| proto::Label {
            key: key.to_string(),
            value: value.to_string(),
        })
        .collect()
}

pub(super) fn decode_labels(labels: Vec<proto::Label>) -> Labels {
    labels
        .into_iter()
        .map(|label| (label.key.into(), label.value.into()))
        .collect()
}

pub(super) fn encode_object(object: &ObjectRef) -> proto::ObjectRef {
    proto::ObjectRef {
        kind: object.kind.to_string(),
        namespace: object.namespace.to_string(),
        name: object.name.to_string(),
    }
}

pub(super) fn decode_object(object: proto::ObjectRef) -> Result<ObjectRef, FieldError> {
    Ok(ObjectRef {
        kind: object.kind.into(),
        namespace: object.namespace.into(),
        name: object.name.into(),
    })
}

pub(super) fn encode_service(service: &ServiceRef) -> proto::ServiceRef {
    proto::ServiceRef {
        host: service.host.to_string(),
        name: service.name.to_string(),
        namespace: service.namespace.to_string(),
    }
}

pub(super) fn decode_service(service: proto::ServiceRef) -> Result<ServiceRef, FieldError> {
    Ok(ServiceRef {
        host: service.host.parse().field("host")?,
        name: service.name.into(),
        namespace: service.namespace.into(),
    })
}
