//! Paths of fields within an object, and where in a file each of them stands.

use std::collections::BTreeMap;
use std::fmt;

use super::tree::{Node, Value};

/// A field of an object: `spec.http[0].match[1].headers["x.y"]`. The root is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldPath(String);

impl FieldPath {
    /// The object itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// A path that is already written out.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// A field, or an entry of a map, below this one.
    #[must_use]
    pub fn field(&self, name: &str) -> Self {
        let plain = !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        Self(match (plain, self.0.is_empty()) {
            (true, true) => name.to_owned(),
            (true, false) => format!("{}.{name}", self.0),
            (false, _) => format!("{}[{name:?}]", self.0),
        })
    }

    /// An entry of the list at this path.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// Whether it is the object itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path without its last step; none at the root.
    fn parent(&self) -> Option<Self> {
        if self.0.is_empty() {
            return None;
        }
        let cut = self.0.rfind(['.', '[']).unwrap_or(0);
        Some(Self(self.0[..cut].to_owned()))
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
}

impl Position {
    /// The start of a file.
    pub const START: Self = Self { line: 1, column: 1 };

    /// A place from counts, which saturate.
    pub(super) fn new(line: usize, column: usize) -> Self {
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            line: narrow(line),
            column: narrow(column),
        }
    }
}

/// Where each field of one object stands: a field at its name, an entry of a list at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Positions {
    start: Position,
    fields: BTreeMap<FieldPath, Position>,
}

impl Positions {
    /// Of an object whose fields stand nowhere.
    pub(super) fn none() -> Self {
        Self {
            start: Position::START,
            fields: BTreeMap::new(),
        }
    }

    pub(super) fn of_tree(node: &Node) -> Self {
        let mut positions = Self {
            start: node.position,
            fields: BTreeMap::new(),
        };
        positions.collect(&FieldPath::root(), node);
        positions
    }

    fn collect(&mut self, path: &FieldPath, node: &Node) {
        match &node.value {
            Value::Map(entries) => {
                for entry in entries {
                    let path = path.field(&entry.key);
                    self.collect(&path, &entry.value);
                    self.fields.entry(path).or_insert(entry.key_position);
                }
            }
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    let path = path.index(index);
                    self.collect(&path, item);
                    self.fields.insert(path, item.position);
                }
            }
            _ => {}
        }
    }

    /// Where a field stands; for one that is not there, the nearest that it would be in.
    pub fn of(&self, field: &FieldPath) -> Position {
        let mut at = Some(field.clone());
        while let Some(path) = at {
            if let Some(position) = self.fields.get(&path) {
                return *position;
            }
            at = path.parent();
        }
        self.start
    }
}
