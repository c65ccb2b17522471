//! What a plain YAML scalar means, by the core schema of YAML 1.2.

use serde_json::Number;

use super::tree::Value;

/// The value of a scalar that was written without quotes.
pub(super) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    match number(text) {
        Some(number) => Value::Number(number),
        None => Value::Text(text.to_owned()),
    }
}

fn number(text: &str) -> Option<Number> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).ok().map(Number::from);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return u64::from_str_radix(digits, 8).ok().map(Number::from);
    }
    if unsigned.bytes().all(|b| b.is_ascii_digit()) {
        let exact = text
            .parse::<i64>()
            .map(Number::from)
            .or_else(|_| text.parse::<u64>().map(Number::from));
        return exact.ok().or_else(|| Number::from_f64(text.parse().ok()?));
    }
    let decimal = unsigned
        .bytes()
        .all(|b| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
    // Rust's own parser decides about the rest; infinity and NaN have no place in JSON.
    if decimal {
        Number::from_f64(text.parse().ok()?)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_mean_what_yaml_says() {
        let text = |t: &str| Value::Text(t.to_owned());
        let int = |n: i64| Value::Number(n.into());
        let float = |n: f64| Value::Number(Number::from_f64(n).unwrap());
        let rows = [
            ("", Value::Null),
            ("~", Value::Null),
            ("null", Value::Null),
            ("true", Value::Bool(true)),
            ("FALSE", Value::Bool(false)),
            ("yes", text("yes")),
            ("on", text("on")),
            ("80", int(80)),
            ("-1", int(-1)),
            ("+7", int(7)),
            ("0x1F", int(31)),
            ("0o17", int(15)),
            ("18446744073709551615", Value::Number(u64::MAX.into())),
            ("50.5", float(50.5)),
            (".5", float(0.5)),
            ("1e3", float(1000.0)),
            ("1.2.3", text("1.2.3")),
            ("10.0.0.1", text("10.0.0.1")),
            ("2024-01-01", text("2024-01-01")),
            ("5s", text("5s")),
            ("0xzz", text("0xzz")),
            (".inf", text(".inf")),
            (".", text(".")),
            ("-", text("-")),
            ("*", text("*")),
            ("5xx,connect-failure", text("5xx,connect-failure")),
        ];
        for (written, meant) in rows {
            assert_eq!(resolve(written), meant, "{written:?}");
        }
    }
}
