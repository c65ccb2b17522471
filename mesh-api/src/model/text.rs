//! Matchers of text and addresses, compiled once.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use regex::Regex;

/// Upper bound of one compiled expression, in bytes: beyond it a policy is refused.
const REGEX_SIZE_LIMIT: usize = 1 << 20;

/// A regular expression (RE2 syntax) that must match the whole text, as Istio's do.
#[derive(Clone)]
pub struct FullRegex {
    source: Arc<str>,
    regex: Regex,
}

/// Why an expression is refused.
#[derive(Debug, Clone, thiserror::Error)]
#[error("regular expression `{expression}`: {reason}")]
pub struct InvalidRegex {
    expression: String,
    reason: String,
}

impl FullRegex {
    /// Compiles an expression; matching takes time linear in the text.
    ///
    /// # Errors
    /// When the expression does not parse or is too large.
    pub fn new(source: &str) -> Result<Self, InvalidRegex> {
        let compile = |expression: &str| {
            regex::RegexBuilder::new(expression)
                .size_limit(REGEX_SIZE_LIMIT)
                .build()
                .map_err(|error| InvalidRegex {
                    expression: source.to_owned(),
                    reason: error.to_string(),
                })
        };
        // By itself first: `a)|(b` is only an expression between the brackets, and would escape the anchors.
        compile(source)?;
        let regex = compile(&format!("^(?:{source})$"))?;
        Ok(Self {
            source: source.into(),
            regex,
        })
    }

    /// Whether the whole text matches.
    #[must_use]
    pub fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// The expression as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.source
    }
}

impl PartialEq for FullRegex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for FullRegex {}

impl fmt::Debug for FullRegex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.source)
    }
}

/// Istio's `StringMatch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextMatch {
    /// Equal.
    Exact(Arc<str>),
    /// Starts with; a plain string prefix.
    Prefix(Arc<str>),
    /// Matches as a whole.
    Regex(FullRegex),
    /// Equal, ASCII case ignored (`ignoreUriCase`).
    ExactIgnoreCase(Arc<str>),
    /// Starts with, ASCII case ignored (`ignoreUriCase`).
    PrefixIgnoreCase(Arc<str>),
    /// Is there at all, whatever the value (header value `{}`, or regex `*`).
    Present,
}

impl TextMatch {
    /// Whether a value that is there matches.
    #[must_use]
    pub fn is_match(&self, text: &str) -> bool {
        match self {
            Self::Exact(value) => text == &**value,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Regex(regex) => regex.is_match(text),
            Self::ExactIgnoreCase(value) => text.eq_ignore_ascii_case(value),
            Self::PrefixIgnoreCase(prefix) => text
                .get(..prefix.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(prefix)),
            Self::Present => true,
        }
    }
}

/// `uriRegexRewrite`: replaces every match in the path; `\1` to `\9` are captures in the replacement.
#[derive(Clone)]
pub struct PathRewrite {
    source: Arc<str>,
    replacement: Arc<str>,
    regex: Regex,
    /// The replacement in the regex crate's syntax.
    template: Arc<str>,
}

impl PathRewrite {
    /// Compiles expression and replacement.
    ///
    /// # Errors
    /// When the expression does not parse or is too large.
    pub fn new(source: &str, replacement: &str) -> Result<Self, InvalidRegex> {
        let regex = regex::RegexBuilder::new(source)
            .size_limit(REGEX_SIZE_LIMIT)
            .build()
            .map_err(|error| InvalidRegex {
                expression: source.to_owned(),
                reason: error.to_string(),
            })?;
        let mut template = String::with_capacity(replacement.len() + 8);
        let mut chars = replacement.chars();
        while let Some(c) = chars.next() {
            match c {
                '$' => template.push_str("$$"),
                '\\' => match chars.next() {
                    Some(digit) if digit.is_ascii_digit() => {
                        template.push_str("${");
                        template.push(digit);
                        template.push('}');
                    }
                    Some(other) => template.push(other),
                    None => template.push('\\'),
                },
                other => template.push(other),
            }
        }
        Ok(Self {
            source: source.into(),
            replacement: replacement.into(),
            regex,
            template: template.into(),
        })
    }

    /// The rewritten path (query excluded).
    #[must_use]
    pub fn apply<'a>(&self, path: &'a str) -> std::borrow::Cow<'a, str> {
        self.regex.replace_all(path, &*self.template)
    }

    /// Expression and replacement as written.
    #[must_use]
    pub fn parts(&self) -> (&str, &str) {
        (&self.source, &self.replacement)
    }
}

impl PartialEq for PathRewrite {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.replacement == other.replacement
    }
}

impl Eq for PathRewrite {}

impl fmt::Debug for PathRewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/ -> {}", self.source, self.replacement)
    }
}

/// A term of an AuthorizationPolicy: exact, `prefix*`, `*suffix`, or `*` for present and not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TermMatch {
    /// Equal.
    Exact(Arc<str>),
    /// Starts with.
    Prefix(Arc<str>),
    /// Ends with.
    Suffix(Arc<str>),
    /// Anything that is not empty.
    Present,
    /// A `*` somewhere in the middle (namespaces only).
    Regex(FullRegex),
}

impl TermMatch {
    /// Reads a term; `*` in the middle is literal.
    #[must_use]
    pub fn parse(term: &str) -> Self {
        if term == "*" {
            Self::Present
        } else if let Some(suffix) = term.strip_prefix('*') {
            Self::Suffix(suffix.into())
        } else if let Some(prefix) = term.strip_suffix('*') {
            Self::Prefix(prefix.into())
        } else {
            Self::Exact(term.into())
        }
    }

    /// Whether a value matches.
    #[must_use]
    pub fn is_match(&self, text: &str) -> bool {
        match self {
            Self::Exact(value) => text == &**value,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Present => !text.is_empty(),
            Self::Regex(regex) => regex.is_match(text),
        }
    }

    /// Whether a value matches, ASCII case ignored (hosts).
    #[must_use]
    pub fn is_match_ignore_case(&self, text: &str) -> bool {
        let edge = |part: &str, start: bool| {
            let range = if start {
                text.get(..part.len())
            } else {
                text.len().checked_sub(part.len()).and_then(|at| text.get(at..))
            };
            range.is_some_and(|range| range.eq_ignore_ascii_case(part))
        };
        match self {
            Self::Exact(value) => text.eq_ignore_ascii_case(value),
            Self::Prefix(prefix) => edge(prefix, true),
            Self::Suffix(suffix) => edge(suffix, false),
            Self::Present => !text.is_empty(),
            Self::Regex(regex) => regex.is_match(&text.to_ascii_lowercase()),
        }
    }
}

/// A list of address ranges; a bare address is its own range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpBlocks(pub Vec<IpNet>);

impl IpBlocks {
    /// Whether any range holds the address; IPv4-mapped addresses count as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|range| range.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_match_the_whole_text() {
        let matches = |source: &str, text: &str| FullRegex::new(source).unwrap().is_match(text);
        assert!(matches("a|b", "b"));
        assert!(!matches("a|b", "ab"));
        assert!(!matches("a", "a\n"));
        assert!(matches("", ""));
        assert!(!matches("", "a"));
    }

    #[test]
    fn expressions_that_escape_the_anchors_are_refused() {
        for source in ["a)|(b", "a)|(?:b", "(", "[", "a{99999999}"] {
            assert!(FullRegex::new(source).is_err(), "{source}");
        }
    }
}
