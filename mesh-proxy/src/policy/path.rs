//! Path normalization, so that what policy looks at is what the application will look at.
//!
//! Istio's default (`BASE`): RFC 3986 §6.2.2 without case normalization, and `\` counts as `/`. Slashes are not merged.

/// A path that no application should see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPath {
    /// `%00`.
    #[error("the path holds an encoded NUL")]
    Nul,
    /// Such as `%6%31`: decoded once it is `%61`, and whoever decodes it again sees another path than policy did.
    #[error("the path holds an encoding within an encoding")]
    NestedEncoding,
}

/// The normal form of a path with its query, or `None` when it is normal already (which does not allocate).
///
/// Encoded unreserved characters are decoded, `\` becomes `/`, dot segments are resolved; the query is not touched. What
/// does not begin with `/` (such as `*`) stays.
///
/// # Errors
/// [`InvalidPath`], which is to be answered with 400.
pub fn normalize_path(path_and_query: &str) -> Result<Option<String>, InvalidPath> {
    let (path, query) = match path_and_query.find('?') {
        Some(at) => path_and_query.split_at(at),
        None => (path_and_query, ""),
    };
    let suspicious = path.bytes().any(|c| matches!(c, b'%' | b'\\')) || path.contains("/.");
    if !suspicious || !path.starts_with(['/', '\\']) {
        return Ok(None);
    }
    let decoded = decode_unreserved(path)?;
    if decode_unreserved(&decoded)? != decoded {
        return Err(InvalidPath::NestedEncoding);
    }
    let mut normal = resolve_dots(&decoded);
    if normal == path {
        return Ok(None);
    }
    normal.push_str(query);
    Ok(Some(normal))
}

/// Decodes `%41` and the like, and turns backslashes.
fn decode_unreserved(path: &str) -> Result<String, InvalidPath> {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find(['%', '\\']) {
        decoded.push_str(&rest[..at]);
        let tail = &rest[at..];
        if let Some(after) = tail.strip_prefix('\\') {
            decoded.push('/');
            rest = after;
            continue;
        }
        let code = tail
            .get(1..3)
            .filter(|hex| hex.bytes().all(|c| c.is_ascii_hexdigit()))
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code {
            Some(0) => return Err(InvalidPath::Nul),
            Some(c) if c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_' | b'~') => {
                decoded.push(char::from(c));
                rest = &tail[3..];
            }
            _ => {
                decoded.push('%');
                rest = &tail[1..];
            }
        }
    }
    decoded.push_str(rest);
    Ok(decoded)
}

/// RFC 3986 §5.2.4 for a path that begins with `/`.
fn resolve_dots(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let mut parts = path.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            "." | ".." => {
                if part == ".." {
                    segments.pop();
                }
                if last {
                    segments.push("");
                }
            }
            part => segments.push(part),
        }
    }
    let mut resolved = String::with_capacity(path.len());
    for segment in segments {
        resolved.push('/');
        resolved.push_str(segment);
    }
    if resolved.is_empty() {
        resolved.push('/');
    }
    resolved
}
