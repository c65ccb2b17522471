//! What is said about objects that fit their schema: one row per rule, the spec in, the findings out.
#![cfg(feature = "crd")]
#![allow(clippy::unwrap_used)]

mod destination_rule;
mod fields;
mod further;
mod security;
mod service_entry;
mod virtual_service;

use mesh_api::crd::Kind;
use mesh_api::source::{Diagnostic, Severity, read};
use mesh_api::validate::analyze;

/// A spec as flow YAML, then `code field: part of the message` of each finding; errors are marked with `!`.
type Row<'a> = (&'a str, &'a [&'a str]);

fn analyze_spec(kind: Kind, spec: &str) -> Vec<Diagnostic> {
    let text = format!(
        "apiVersion: {}/{}\nkind: {kind}\nmetadata: {{name: a}}\nspec:\n{}\n",
        kind.group(),
        kind.version(),
        spec.trim()
            .lines()
            .map(|line| format!("  {line}"))
            .collect::<Vec<_>>()
            .join("\n")
    );
    let contents = read("a.yaml", text.as_bytes(), "default");
    assert_eq!(contents.diagnostics, Vec::new(), "{text}");
    analyze(&contents.objects[0])
}

fn check(kind: Kind, rows: &[Row<'_>]) {
    for (spec, expected) in rows {
        let mut found = analyze_spec(kind, spec);
        for expected in *expected {
            let (severity, rest) = match expected.strip_prefix('!') {
                Some(rest) => (Severity::Error, rest),
                None => (Severity::Warning, *expected),
            };
            let (head, message) = rest.split_once(": ").unwrap();
            let (code, field) = head.split_once(' ').unwrap_or((head, ""));
            let at = found.iter().position(|d| {
                d.severity == severity && d.code == code && d.field.as_str() == field && d.message.contains(message)
            });
            assert!(at.is_some(), "{kind}: {spec}\nnot found: {expected}\n{found:#?}");
            found.remove(at.unwrap());
        }
        assert!(found.is_empty(), "{kind}: {spec}\nnot expected: {found:#?}");
    }
}
