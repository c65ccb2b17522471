//! `meshctl analyze`: the very checks of the control plane, offline, over files and directories taken together.

use std::collections::HashMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use anyhow::Context as _;
use mesh_api::source::{self, Diagnostic, Severity};
use mesh_api::validate;

use super::Verdict;
use crate::output::{Output, is_colourful, print};

/// Files in one call; more is not a policy directory.
const MAX_FILES: usize = 10_000;
/// Nested directories.
const MAX_DEPTH: usize = 16;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Files, directories with *.yaml, *.yml and *.json files, or `-` for standard input.
    #[arg(required = true, value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,

    /// Namespace of objects that name none.
    #[arg(short, long, default_value = "default", value_name = "NAMESPACE")]
    namespace: String,

    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Verdict> {
    let mut files = Vec::new();
    for path in &args.paths {
        collect(path, 0, true, &mut files)?;
    }
    let mut texts = HashMap::new();
    let mut objects = Vec::new();
    let mut diagnostics = Vec::new();
    for path in &files {
        let bytes = content(path).with_context(|| format!("reading {}", path.display()))?;
        let name = path.display().to_string();
        let contents = source::read(&name, &bytes, &args.namespace);
        objects.extend(contents.objects);
        diagnostics.extend(contents.diagnostics);
        texts.insert(name, String::from_utf8_lossy(&bytes).into_owned());
    }
    for object in &objects {
        diagnostics.extend(validate::analyze(object));
    }
    diagnostics.extend(validate::analyze_set(&objects));
    let order = |d: &Diagnostic| (d.file.clone(), d.line, d.column);
    diagnostics.sort_by_key(order);

    if !args.output.structured(&diagnostics)? {
        print(&report(&diagnostics, &texts, objects.len(), files.len()))?;
    }
    Ok(if validate::has_errors(&diagnostics) {
        Verdict::Findings
    } else {
        Verdict::Well
    })
}

/// The files of an argument, in order of their names; what a directory holds beside YAML and JSON is passed over.
fn collect(path: &Path, depth: usize, named: bool, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if path == Path::new("-") {
        files.push(path.to_owned());
        return Ok(());
    }
    let metadata = fs::metadata(path).with_context(|| path.display().to_string())?;
    if metadata.is_dir() {
        anyhow::ensure!(depth < MAX_DEPTH, "{}: directories are nested too deep", path.display());
        let entries = fs::read_dir(path).with_context(|| path.display().to_string())?;
        let mut entries: Vec<_> = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        entries.sort();
        for entry in entries {
            let hidden = entry
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if !hidden {
                collect(&entry, depth + 1, false, files)?;
            }
        }
    } else if named || is_policy_file(path) {
        files.push(path.to_owned());
        anyhow::ensure!(files.len() <= MAX_FILES, "more than {MAX_FILES} files");
    }
    Ok(())
}

fn is_policy_file(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml" | "json"))
}

fn content(path: &Path) -> std::io::Result<Vec<u8>> {
    let limit = source::MAX_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().take(limit).read_to_end(&mut bytes)?;
    } else {
        fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn report(diagnostics: &[Diagnostic], texts: &HashMap<String, String>, objects: usize, files: usize) -> String {
    let renderer = if is_colourful() {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    let mut out = String::new();
    for diagnostic in diagnostics {
        out += &pretty(
            &renderer,
            diagnostic,
            texts.get(&*diagnostic.file).map_or("", String::as_str),
        );
        out += "\n\n";
    }
    let errors = diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
    let warnings = diagnostics.len() - errors;
    let count = |n: usize, noun: &str| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
    out += &format!(
        "{} and {} in {} of {}\n",
        count(errors, "error"),
        count(warnings, "warning"),
        count(objects, "object"),
        count(files, "file")
    );
    out
}

fn pretty(renderer: &Renderer, diagnostic: &Diagnostic, text: &str) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = if diagnostic.field.is_root() {
        diagnostic.message.clone()
    } else {
        format!("{}: {}", diagnostic.field, diagnostic.message)
    };
    let object = diagnostic.object.as_ref().map(ToString::to_string).unwrap_or_default();
    let annotation = AnnotationKind::Primary.span(span(text, diagnostic.line, diagnostic.column));
    let annotation = if object.is_empty() {
        annotation
    } else {
        annotation.label(object)
    };
    let snippet = Snippet::source(text).path(&*diagnostic.file).annotation(annotation);
    let report = [level.primary_title(title).id(diagnostic.code).element(snippet)];
    renderer.render(&report)
}

/// The bytes of the word at a place that counts lines and characters from 1.
fn span(text: &str, line: u32, column: u32) -> std::ops::Range<usize> {
    let (line, column) = (line.max(1) as usize - 1, column.max(1) as usize - 1);
    let start_of_line: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
    let rest = text.get(start_of_line..).unwrap_or_default();
    let this_line = rest.lines().next().unwrap_or_default();
    let offset = this_line
        .char_indices()
        .nth(column)
        .map_or(this_line.len(), |(at, _)| at);
    let word = this_line[offset..]
        .find([' ', ':', ',', '#'])
        .map_or(this_line.len(), |length| offset + length.max(1));
    start_of_line + offset..start_of_line + word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cover_the_word_at_the_place() {
        let text = "spec:\n  höst: reviews\n";
        assert_eq!(&text[span(text, 2, 3)], "höst");
        assert_eq!(&text[span(text, 2, 9)], "reviews");
        assert_eq!(span("", 7, 3), 0..0);
        assert_eq!(&text[span(text, 1, 40)], "");
    }

    #[test]
    fn directories_are_read_in_order_and_hidden_files_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("b")).unwrap();
        for name in ["b/z.yaml", "a.yml", "c.txt", ".hidden.yaml"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let mut files = Vec::new();
        collect(directory.path(), 0, true, &mut files).unwrap();
        let names: Vec<_> = files
            .iter()
            .map(|file| file.strip_prefix(directory.path()).unwrap())
            .collect();
        assert_eq!(names, [Path::new("a.yml"), Path::new("b/z.yaml")]);
    }
}
