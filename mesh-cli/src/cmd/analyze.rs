//! `meshctl analyze`: the very checks of the control plane, over files and directories taken together, or over what a
//! cluster holds.

mod cluster;

use std::collections::HashMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use anyhow::Context as _;
use mesh_api::source::{self, Diagnostic, Loaded, Severity};
use mesh_api::validate;

use super::Verdict;
use crate::cluster::{Access, Cluster};
use crate::output::{Output, is_colourful, print};

/// Files in one call; more is not a policy directory.
const MAX_FILES: usize = 10_000;
/// Nested directories.
const MAX_DEPTH: usize = 16;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Files, directories with *.yaml, *.yml and *.json files, or `-` for standard input; without any, the cluster's
    /// objects.
    #[arg(value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,

    /// Namespace of objects in files that name none; of the cluster, the only namespace that is looked at.
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,

    #[command(flatten)]
    access: Access,

    #[command(flatten)]
    output: Output,
}

/// What is judged, and where its text can be shown from.
#[derive(Default)]
struct Read {
    objects: Vec<Loaded>,
    /// What is known of others, which are not judged themselves.
    known: Vec<Loaded>,
    diagnostics: Vec<Diagnostic>,
    texts: HashMap<String, String>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Verdict> {
    let (mut read, from) = if args.paths.is_empty() {
        let read = super::block_on(cluster::read(&args.access, args.namespace.as_deref()))?;
        (read, "the cluster".to_owned())
    } else {
        let read = read_files(&args.paths, args.namespace.as_deref().unwrap_or("default"))?;
        let from = count(read.texts.len(), "file");
        (read, from)
    };
    judge(&mut read);
    if !args.output.structured(&read.diagnostics)? {
        print(&report(&read, &from))?;
    }
    Ok(if validate::has_errors(&read.diagnostics) {
        Verdict::Findings
    } else {
        Verdict::Well
    })
}

/// What is found in a cluster, for other commands.
pub(super) async fn of_cluster(cluster: &Cluster) -> anyhow::Result<Vec<Diagnostic>> {
    let mut read = cluster::read_from(cluster, None).await?;
    judge(&mut read);
    Ok(read.diagnostics)
}

fn read_files(paths: &[PathBuf], namespace: &str) -> anyhow::Result<Read> {
    let mut files = Vec::new();
    for path in paths {
        collect(path, 0, true, &mut files)?;
    }
    let mut read = Read::default();
    for path in &files {
        let bytes = content(path).with_context(|| format!("reading {}", path.display()))?;
        read.take(&path.display().to_string(), &bytes, namespace);
    }
    Ok(read)
}

impl Read {
    fn take(&mut self, name: &str, bytes: &[u8], namespace: &str) {
        let contents = source::read(name, bytes, namespace);
        self.objects.extend(contents.objects);
        self.diagnostics.extend(contents.diagnostics);
        self.texts
            .insert(name.to_owned(), String::from_utf8_lossy(bytes).into_owned());
    }
}

/// What the control plane would say of the objects, each by itself and all together.
fn judge(read: &mut Read) {
    for object in &read.objects {
        read.diagnostics.extend(validate::analyze(object));
    }
    let judged = read.objects.len();
    let mut all = std::mem::take(&mut read.objects);
    all.append(&mut read.known);
    let together = validate::analyze_set(&all);
    read.diagnostics
        .extend(together.into_iter().filter(|d| read.texts.contains_key(&*d.file)));
    all.truncate(judged);
    read.objects = all;
    read.diagnostics
        .sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
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

fn report(read: &Read, from: &str) -> String {
    let renderer = if is_colourful() {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    let mut out = String::new();
    for diagnostic in &read.diagnostics {
        let text = read.texts.get(&*diagnostic.file).map_or("", String::as_str);
        out += &pretty(&renderer, diagnostic, text);
        out += "\n\n";
    }
    let is_error = |d: &&Diagnostic| d.severity == Severity::Error;
    let errors = read.diagnostics.iter().filter(is_error).count();
    let warnings = read.diagnostics.len() - errors;
    out += &format!(
        "{} and {} in {} of {from}\n",
        count(errors, "error"),
        count(warnings, "warning"),
        count(read.objects.len(), "object"),
    );
    out
}

fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
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
