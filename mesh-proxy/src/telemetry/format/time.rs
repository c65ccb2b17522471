//! `START_TIME`: ISO 8601 with milliseconds, or a format of its own. Always UTC, as in Envoy.

use std::io::Write as _;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;

/// A compiled time format.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TimeFormat(Vec<Part>);

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Literal(Box<str>),
    Year,
    Month,
    Day,
    Hour,
    Minute,
    Second,
    /// Digits of the fraction of a second.
    Fraction(u8),
    /// Seconds since 1970.
    Epoch,
    /// `+0000`
    Offset,
    /// `UTC`
    Zone,
    DayOfYear,
    /// `Mon`
    WeekDay,
    /// `Jan`
    MonthName,
}

const DEFAULT: &str = "%Y-%m-%dT%H:%M:%S.%3fZ";
const WEEK_DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

impl TimeFormat {
    /// Compiles a format of `strftime`'s kind; the empty one is the default.
    pub(super) fn compile(format: &str) -> Result<Self, String> {
        let format = if format.is_empty() { DEFAULT } else { format };
        let mut parts = Vec::new();
        let mut chars = format.chars();
        let mut literal = String::new();
        while let Some(c) = chars.next() {
            if c != '%' {
                literal.push(c);
                continue;
            }
            let specifier = chars.next().ok_or("a `%` ends the time format")?;
            let part = match specifier {
                '%' => {
                    literal.push('%');
                    continue;
                }
                'T' => {
                    // The same as %H:%M:%S.
                    push_literal(&mut parts, &mut literal);
                    let colon = || Part::Literal(":".into());
                    parts.extend([Part::Hour, colon(), Part::Minute, colon(), Part::Second]);
                    continue;
                }
                'F' => {
                    push_literal(&mut parts, &mut literal);
                    let dash = || Part::Literal("-".into());
                    parts.extend([Part::Year, dash(), Part::Month, dash(), Part::Day]);
                    continue;
                }
                'Y' => Part::Year,
                'm' => Part::Month,
                'd' => Part::Day,
                'H' => Part::Hour,
                'M' => Part::Minute,
                'S' => Part::Second,
                's' => Part::Epoch,
                'z' => Part::Offset,
                'Z' => Part::Zone,
                'j' => Part::DayOfYear,
                'a' => Part::WeekDay,
                'b' => Part::MonthName,
                'f' => Part::Fraction(9),
                digit @ '1'..='9' if chars.as_str().starts_with('f') => {
                    chars.next();
                    Part::Fraction(digit as u8 - b'0')
                }
                other => return Err(format!("`%{other}` is not known in a time format")),
            };
            push_literal(&mut parts, &mut literal);
            parts.push(part);
        }
        push_literal(&mut parts, &mut literal);
        Ok(Self(parts))
    }

    /// Appends a time.
    pub(super) fn write(&self, time: Timestamp, out: &mut Vec<u8>) {
        let civil = Offset::UTC.to_datetime(time);
        for part in &self.0 {
            part.write(time, civil, out);
        }
    }
}

fn push_literal(parts: &mut Vec<Part>, literal: &mut String) {
    if !literal.is_empty() {
        parts.push(Part::Literal(std::mem::take(literal).into()));
    }
}

impl Part {
    fn write(&self, time: Timestamp, civil: DateTime, out: &mut Vec<u8>) {
        let two = |number: i8, out: &mut Vec<u8>| {
            let number = number.unsigned_abs();
            out.extend([b'0' + number / 10 % 10, b'0' + number % 10]);
        };
        match self {
            Self::Literal(text) => out.extend_from_slice(text.as_bytes()),
            Self::Year => {
                let _ = write!(out, "{:04}", civil.year());
            }
            Self::Month => two(civil.month(), out),
            Self::Day => two(civil.day(), out),
            Self::Hour => two(civil.hour(), out),
            Self::Minute => two(civil.minute(), out),
            Self::Second => two(civil.second(), out),
            Self::Fraction(digits) => {
                let nanos = civil.subsec_nanosecond().unsigned_abs();
                let mut divisor = 100_000_000;
                for _ in 0..*digits {
                    out.push(b'0' + u8::try_from(nanos / divisor % 10).unwrap_or_default());
                    divisor /= 10;
                }
            }
            Self::Epoch => {
                let _ = write!(out, "{}", time.as_second());
            }
            Self::Offset => out.extend_from_slice(b"+0000"),
            Self::Zone => out.extend_from_slice(b"UTC"),
            Self::DayOfYear => {
                let _ = write!(out, "{:03}", civil.day_of_year());
            }
            Self::WeekDay => {
                let day = usize::try_from(civil.weekday().to_monday_zero_offset()).unwrap_or_default();
                out.extend_from_slice(WEEK_DAYS[day % 7].as_bytes());
            }
            Self::MonthName => {
                let month = usize::try_from(civil.month() - 1).unwrap_or_default();
                out.extend_from_slice(MONTHS[month % 12].as_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        let time: Timestamp = "2026-08-03T04:05:06.007089Z".parse().unwrap();
        for (format, text) in [
            ("", "2026-08-03T04:05:06.007Z"),
            ("%Y%m%dT%H%M%S%z", "20260803T040506+0000"),
            ("%Y/%m/%d %T.%3f", "2026/08/03 04:05:06.007"),
            ("%s.%6f", "1785729906.007089"),
            ("%f", "007089000"),
            ("%a, %d %b %Y %j %Z 100%%", "Mon, 03 Aug 2026 215 UTC 100%"),
            ("%F", "2026-08-03"),
        ] {
            let mut out = Vec::new();
            TimeFormat::compile(format).unwrap().write(time, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text, "{format}");
        }
        assert!(TimeFormat::compile("%Q").unwrap_err().contains("%Q"));
        assert!(TimeFormat::compile("%Y%").is_err());
    }
}
