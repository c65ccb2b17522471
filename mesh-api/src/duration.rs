//! Durations as policy objects write them: Go's syntax (`1h30m`, `1.5s`, `100ms`) comes in, a length of time goes out.
//!
//! Never negative, and never more than a signed 64-bit count of nanoseconds (292 years), as in Go.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The shape of a duration as a regular expression, for schemas; what it lets through can still be too long.
pub const PATTERN: &str = r"^\+?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$";

const NANOS_PER_MICRO: u64 = 1_000;
const NANOS_PER_MILLI: u64 = 1_000_000;
const NANOS_PER_SECOND: u64 = 1_000_000_000;
const NANOS_PER_MINUTE: u64 = 60 * NANOS_PER_SECOND;
const NANOS_PER_HOUR: u64 = 60 * NANOS_PER_MINUTE;
const MAX_NANOS: u64 = i64::MAX as u64;

/// A length of time, written as Go writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(std::time::Duration);

impl Duration {
    /// No time at all.
    pub const ZERO: Self = Self(std::time::Duration::ZERO);

    /// So many seconds.
    pub const fn from_secs(seconds: u32) -> Self {
        Self(std::time::Duration::from_secs(seconds as u64))
    }

    /// So many milliseconds.
    pub const fn from_millis(millis: u32) -> Self {
        Self(std::time::Duration::from_millis(millis as u64))
    }

    /// The same length as the standard library's type.
    pub const fn as_std(self) -> std::time::Duration {
        self.0
    }

    /// Whether it is no time at all.
    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }

    fn nanos(self) -> u64 {
        // Construction bounds the value; saturation only keeps this total.
        u64::try_from(self.0.as_nanos()).unwrap_or(MAX_NANOS)
    }
}

impl From<Duration> for std::time::Duration {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

/// A text that is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Nothing, or only a sign.
    #[error("an empty text is no duration; write for instance \"5s\"")]
    Empty,
    /// Below zero.
    #[error("duration {0:?} is negative")]
    Negative(String),
    /// A number without unit.
    #[error("duration {0:?} lacks a unit (ns, us, ms, s, m, h); write for instance \"{0}s\"")]
    NoUnit(String),
    /// A unit that does not exist.
    #[error("duration {text:?} has the unknown unit {unit:?}; known are ns, us, ms, s, m, h")]
    UnknownUnit {
        /// The whole text.
        text: String,
        /// What stands where a unit should.
        unit: String,
    },
    /// A unit without number, or a number that is none.
    #[error("{0:?} is no duration; write for instance \"1h30m\", \"1.5s\" or \"100ms\"")]
    Malformed(String),
    /// More than 292 years.
    #[error("duration {0:?} is too long; at most 292 years can be expressed")]
    TooLong(String),
}

impl FromStr for Duration {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.starts_with('-') {
            return Err(ParseError::Negative(text.to_owned()));
        }
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        match rest {
            "" => return Err(ParseError::Empty),
            "0" => return Ok(Self::ZERO),
            _ => {}
        }
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let (nanos, tail) = component(text, rest)?;
            total = total
                .checked_add(nanos)
                .filter(|total| *total <= MAX_NANOS)
                .ok_or_else(|| ParseError::TooLong(text.to_owned()))?;
            rest = tail;
        }
        Ok(Self(std::time::Duration::from_nanos(total)))
    }
}

impl fmt::Display for Duration {
    /// The largest units first, without zero parts: `1h30m`, `1.5s`, `100ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.nanos();
        if nanos == 0 {
            return f.write_str("0s");
        }
        let (hours, nanos) = (nanos / NANOS_PER_HOUR, nanos % NANOS_PER_HOUR);
        let (minutes, nanos) = (nanos / NANOS_PER_MINUTE, nanos % NANOS_PER_MINUTE);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        match nanos {
            0 => Ok(()),
            n if n >= NANOS_PER_SECOND => decimal(f, n, NANOS_PER_SECOND, "s"),
            n if n >= NANOS_PER_MILLI => decimal(f, n, NANOS_PER_MILLI, "ms"),
            n if n >= NANOS_PER_MICRO => decimal(f, n, NANOS_PER_MICRO, "us"),
            n => write!(f, "{n}ns"),
        }
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(feature = "crd")]
impl schemars::JsonSchema for Duration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": PATTERN })
    }
}

/// Reads one number with its unit from the front of `rest`; gives its nanoseconds and what follows.
fn component<'a>(text: &str, rest: &'a str) -> Result<(u64, &'a str), ParseError> {
    let malformed = || ParseError::Malformed(text.to_owned());
    let too_long = || ParseError::TooLong(text.to_owned());
    let digits = |s: &str| s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());

    let (whole, rest) = rest.split_at(digits(rest));
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(after) => after.split_at(digits(after)),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(malformed());
    }
    let (unit, rest) = rest.split_at(
        rest.find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len()),
    );
    let scale = match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => NANOS_PER_MICRO,
        "ms" => NANOS_PER_MILLI,
        "s" => NANOS_PER_SECOND,
        "m" => NANOS_PER_MINUTE,
        "h" => NANOS_PER_HOUR,
        "" => return Err(ParseError::NoUnit(text.to_owned())),
        _ => {
            return Err(ParseError::UnknownUnit {
                text: text.to_owned(),
                unit: unit.to_owned(),
            });
        }
    };
    let whole: u64 = if whole.is_empty() {
        0
    } else {
        whole.parse().map_err(|_| too_long())?
    };
    let mut nanos = whole.checked_mul(scale).ok_or_else(too_long)?;
    // Digits below a nanosecond are dropped, as Go does.
    let (mut numerator, mut denominator) = (0u64, 1u64);
    for digit in fraction.bytes().take(15) {
        numerator = numerator * 10 + u64::from(digit - b'0');
        denominator *= 10;
    }
    let part = u128::from(numerator) * u128::from(scale) / u128::from(denominator);
    nanos = nanos
        .checked_add(u64::try_from(part).map_err(|_| too_long())?)
        .ok_or_else(too_long)?;
    Ok((nanos, rest))
}

fn decimal(f: &mut fmt::Formatter<'_>, nanos: u64, scale: u64, unit: &str) -> fmt::Result {
    let (whole, mut fraction) = (nanos / scale, nanos % scale);
    if fraction == 0 {
        return write!(f, "{whole}{unit}");
    }
    let mut width = scale.ilog10() as usize;
    while fraction % 10 == 0 {
        fraction /= 10;
        width -= 1;
    }
    write!(f, "{whole}.{fraction:0width$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nanos(text: &str) -> u64 {
        text.parse::<Duration>().unwrap().nanos()
    }

    #[test]
    fn reads_what_go_reads() {
        let rows: &[(&str, u64)] = &[
            ("0", 0),
            ("0s", 0),
            ("5s", 5 * NANOS_PER_SECOND),
            ("+5s", 5 * NANOS_PER_SECOND),
            ("1h", NANOS_PER_HOUR),
            ("5m", 5 * NANOS_PER_MINUTE),
            ("1.5s", 1_500_000_000),
            ("100ms", 100_000_000),
            ("1h30m", 90 * NANOS_PER_MINUTE),
            ("1h15m30.918s", 75 * NANOS_PER_MINUTE + 30_918_000_000),
            (".5s", 500_000_000),
            ("1.s", NANOS_PER_SECOND),
            ("52763797000ns", 52_763_797_000),
            ("10us", 10_000),
            ("10µs", 10_000),
            ("0.100000000000000000000h", 6 * NANOS_PER_MINUTE),
            ("2562047h47m16.854775807s", MAX_NANOS),
        ];
        for (text, expected) in rows {
            assert_eq!(nanos(text), *expected, "{text}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        let rows: &[(&str, &str)] = &[
            ("", "empty"),
            ("-5s", "negative"),
            ("5", "lacks a unit"),
            ("1h30", "lacks a unit"),
            ("5x", "unknown unit \"x\""),
            ("5 s", "unknown unit"),
            ("s", "is no duration"),
            (".s", "is no duration"),
            ("1s m", "unknown unit"),
            ("2562047h47m16.854775808s", "too long"),
            ("99999999999999999999h", "too long"),
        ];
        for (text, expected) in rows {
            let message = text.parse::<Duration>().unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }

    #[test]
    fn writes_the_short_form() {
        for text in [
            "0s",
            "5s",
            "1h30m",
            "1.5s",
            "100ms",
            "1m0.000000001s",
            "1h",
            "2.5us",
            "7ns",
            "1h2m3.004s",
        ] {
            let expected = if text == "1m0.000000001s" { "1m1ns" } else { text };
            assert_eq!(text.parse::<Duration>().unwrap().to_string(), expected);
        }
    }

    proptest! {
        #[test]
        fn written_durations_read_back(nanos in 0..=MAX_NANOS) {
            let duration = Duration(std::time::Duration::from_nanos(nanos));
            prop_assert_eq!(duration.to_string().parse::<Duration>(), Ok(duration));
        }

        #[test]
        fn any_text_is_read_or_refused_as_the_pattern_says(text in r"[+\-0-9.a-zµ ]{0,12}") {
            let pattern = regex::Regex::new(PATTERN).unwrap();
            match text.parse::<Duration>() {
                Ok(_) => prop_assert!(pattern.is_match(&text)),
                Err(ParseError::TooLong(_)) => {}
                Err(_) => prop_assert!(!pattern.is_match(&text)),
            }
        }
    }
}
