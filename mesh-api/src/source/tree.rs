//! The YAML text as a tree in which every node knows its position.
//!
//! Bounded in depth and in nodes, aliases counted as often as they are used, so that no text can make it large.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{Event, Options, Parser, ScalarStyle, ScanError, Span, StrInput};

use super::path::Position;
use super::scalar;

/// The deepest nesting that is read; no kind comes near it.
const MAX_DEPTH: usize = 64;

/// The most nodes of one document.
const MAX_NODES: usize = 500_000;

/// A node of a document.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub position: Position,
    pub value: Value,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Node>),
    /// In the order written; a key that is written twice is there twice.
    Map(Vec<Entry>),
}

/// A field of a map.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub key: String,
    pub key_position: Position,
    pub value: Node,
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Node {
    pub fn is_null(&self) -> bool {
        self.value == Value::Null
    }

    pub fn is_map(&self) -> bool {
        matches!(self.value, Value::Map(_))
    }

    pub fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_list(&self) -> Option<&[Node]> {
        match &self.value {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    pub fn field(&self, name: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == name),
            _ => None,
        }
    }

    /// What it is, for messages.
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => format!("the boolean {value}"),
            Value::Number(value) => format!("the number {value}"),
            Value::Text(text) if text.chars().count() > 40 => "a text".to_owned(),
            Value::Text(text) => format!("the text {text:?}"),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "an object".to_owned(),
        }
    }
}

/// Why a document is not read.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub position: Position,
    pub message: String,
}

/// Reads all documents of a text. Each stands for itself: an error in one does not touch the next.
pub(super) fn documents(text: &str) -> Vec<Result<Node, SyntaxError>> {
    let mut found = Vec::new();
    for (first_line, part) in split(text) {
        let mut builder = Builder {
            parser: Parser::new_from_str_with_options(part, options()),
            first_line,
            anchors: HashMap::new(),
            nodes: 0,
        };
        loop {
            match builder.next_document() {
                Ok(Some(node)) => found.push(Ok(node)),
                Ok(None) => break,
                Err(e) => {
                    found.push(Err(e));
                    break;
                }
            }
        }
    }
    found
}

fn options() -> Options {
    let mut options = Options::default();
    options.emit_comments = false;
    options
}

/// Cuts a text at its `---` lines, which YAML allows nowhere but between documents. Gives for each part the number of
/// lines before it. Parts without content are left out, and so are lone directives.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut starts = vec![(0, 0)];
    let mut offset = 0;
    for (line, content) in text.split_inclusive('\n').enumerate() {
        let marker = content
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && offset > 0 {
            starts.push((line, offset));
        }
        offset += content.len();
    }
    let ends = starts
        .iter()
        .skip(1)
        .map(|(_, offset)| *offset)
        .chain(std::iter::once(text.len()));
    let parts = starts
        .iter()
        .zip(ends)
        .map(|((line, start), end)| (*line, &text[*start..end]));
    parts.filter(|(_, part)| part.lines().any(has_content)).collect()
}

fn has_content(line: &str) -> bool {
    let line = line.trim();
    !(line.is_empty() || line.starts_with(['#', '%']) || line == "---" || line == "...")
}

struct Builder<'a> {
    parser: Parser<'a, StrInput<'a>>,
    first_line: usize,
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
}

impl<'a> Builder<'a> {
    fn next_document(&mut self) -> Result<Option<Node>, SyntaxError> {
        loop {
            match self.event()? {
                None | Some((Event::StreamEnd, _)) => return Ok(None),
                Some((Event::StreamStart | Event::DocumentEnd, _)) => {}
                Some((Event::DocumentStart(..), _)) => {
                    self.anchors.clear();
                    self.nodes = 0;
                }
                Some((event, span)) => return self.node(event, span, 0).map(Some),
            }
        }
    }

    fn event(&mut self) -> Result<Option<(Event<'a>, Span)>, SyntaxError> {
        match self.parser.next_event() {
            None => Ok(None),
            Some(Ok(event)) => Ok(Some(event)),
            Some(Err(e)) => Err(self.syntax(&e)),
        }
    }

    fn syntax(&self, error: &ScanError) -> SyntaxError {
        let marker = error.marker();
        SyntaxError {
            position: self.position(marker.line(), marker.col()),
            message: error.info(),
        }
    }

    fn position(&self, line: usize, column: usize) -> Position {
        Position::new(self.first_line + line, column + 1)
    }

    fn start(&self, span: &Span) -> Position {
        self.position(span.start.line(), span.start.col())
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, SyntaxError> {
        let position = self.start(&span);
        let fail = |message: &str| SyntaxError {
            position,
            message: message.to_owned(),
        };
        if depth > MAX_DEPTH {
            return Err(fail("the document is nested too deeply"));
        }
        let before = self.nodes;
        self.count(1, position)?;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = match tag.as_deref().map(|tag| tag.core_suffix()) {
                    Some(None) => return Err(fail("tags of one's own are not supported")),
                    Some(Some("str" | "")) => Value::Text(text.into_owned()),
                    Some(Some("bool" | "int" | "float" | "null")) => scalar::resolve(&text),
                    Some(Some(other)) => return Err(fail(&format!("the tag !!{other} is not supported"))),
                    None if style == ScalarStyle::Plain => scalar::resolve(&text),
                    None => Value::Text(text.into_owned()),
                };
                (value, anchor)
            }
            Event::SequenceStart(_, anchor, _) => (Value::List(self.list(depth)?), anchor),
            Event::MappingStart(_, anchor, _) => (Value::Map(self.map(depth)?), anchor),
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor) else {
                    return Err(fail("an alias cannot stand within what it refers to"));
                };
                let (value, size) = (node.value.clone(), *size);
                self.count(size, position)?;
                (value, 0)
            }
            _ => return Err(fail("a value is missing")),
        };
        let node = Node { position, value };
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), self.nodes - before));
        }
        Ok(node)
    }

    /// Counts before anything is copied: aliases of aliases grow fast.
    fn count(&mut self, nodes: usize, position: Position) -> Result<(), SyntaxError> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err(SyntaxError {
                position,
                message: format!("the document has more than {MAX_NODES} values"),
            });
        }
        Ok(())
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, SyntaxError> {
        let mut items = Vec::new();
        loop {
            match self.event()? {
                None | Some((Event::SequenceEnd, _)) => return Ok(items),
                Some((event, span)) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Entry>, SyntaxError> {
        let mut entries = Vec::new();
        loop {
            let (key, key_position) = match self.event()? {
                None | Some((Event::MappingEnd, _)) => return Ok(entries),
                Some((Event::Scalar(text, ..), span)) => (text.into_owned(), self.start(&span)),
                Some((_, span)) => {
                    let message = "the name of a field must be a text".to_owned();
                    return Err(SyntaxError {
                        position: self.start(&span),
                        message,
                    });
                }
            };
            let Some((event, span)) = self.event()? else {
                return Ok(entries);
            };
            let value = self.node(event, span, depth + 1)?;
            entries.push(Entry {
                key,
                key_position,
                value,
            });
        }
    }
}
