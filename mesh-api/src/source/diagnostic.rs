//! Findings about objects, before and after they have a place in a file.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::path::{FieldPath, Position};
use crate::crd::ObjectRef;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The object takes effect, but not as it may have been meant.
    Warning,
    /// The object cannot take effect.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// Something noticed about one object, by field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The field that it is about; the root for the object as a whole.
    pub field: FieldPath,
    /// What it is, as a stable name for scripts.
    pub code: &'static str,
    /// What it is and how to mend it, in a sentence.
    pub message: String,
}

impl Finding {
    /// A finding that keeps the object from taking effect.
    pub fn error(field: FieldPath, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            field,
            code,
            message: message.into(),
        }
    }

    /// A finding that the object works in spite of.
    pub fn warning(field: FieldPath, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            field,
            code,
            message: message.into(),
        }
    }

    /// The finding with its place.
    pub fn into_diagnostic(self, file: &Arc<str>, position: Position, object: Option<ObjectRef>) -> Diagnostic {
        Diagnostic {
            severity: self.severity,
            file: file.clone(),
            line: position.line,
            column: position.column,
            field: self.field,
            object,
            code: self.code,
            message: self.message,
        }
    }
}

/// A finding with its place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file.
    pub file: Arc<str>,
    /// The line, from 1; 0 where there are no lines, as in a cluster.
    pub line: u32,
    /// The column in characters, from 1; 0 as the line.
    pub column: u32,
    /// The field, for instance `spec.http[0].route[0].destination.host`; empty for the document as a whole.
    pub field: FieldPath,
    /// The object, where enough of it could be read.
    pub object: Option<ObjectRef>,
    /// What it is, as a stable name for scripts.
    pub code: &'static str,
    /// What it is and how to mend it, in a sentence.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    /// `policies/reviews.yaml:12:7: error: spec.http[0].timeout: duration "5" lacks a unit… (VirtualService default/reviews)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}: ", self.file, self.severity)?,
            line => write!(f, "{}:{line}:{}: {}: ", self.file, self.column, self.severity)?,
        }
        if !self.field.is_root() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)?;
        match &self.object {
            Some(object) => write!(f, " ({object})"),
            None => Ok(()),
        }
    }
}

impl Serialize for Diagnostic {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut fields = serializer.serialize_struct("Diagnostic", 8)?;
        fields.serialize_field("severity", &self.severity)?;
        fields.serialize_field("file", &*self.file)?;
        fields.serialize_field("line", &self.line)?;
        fields.serialize_field("column", &self.column)?;
        fields.serialize_field("field", self.field.as_str())?;
        fields.serialize_field("object", &self.object)?;
        fields.serialize_field("code", self.code)?;
        fields.serialize_field("message", &self.message)?;
        fields.end()
    }
}
