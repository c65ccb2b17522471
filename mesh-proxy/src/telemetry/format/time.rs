//! `START_TIME`: ISO 8601 with milliseconds, or a format of its own. Always UTC, as in Envoy.

use std::io::Write as _;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;
use mesh_api::log_format::{TimeFormat, TimePart};

const WEEK_DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// Appends a time.
pub(super) fn write(format: &TimeFormat, time: Timestamp, out: &mut Vec<u8>) {
    let civil = Offset::UTC.to_datetime(time);
    for part in format.parts() {
        write_part(part, time, civil, out);
    }
}

fn write_part(part: &TimePart, time: Timestamp, civil: DateTime, out: &mut Vec<u8>) {
    let two = |number: i8, out: &mut Vec<u8>| {
        let number = number.unsigned_abs();
        out.extend([b'0' + number / 10 % 10, b'0' + number % 10]);
    };
    match part {
        TimePart::Literal(text) => out.extend_from_slice(text.as_bytes()),
        TimePart::Year => {
            let _ = write!(out, "{:04}", civil.year());
        }
        TimePart::Month => two(civil.month(), out),
        TimePart::Day => two(civil.day(), out),
        TimePart::Hour => two(civil.hour(), out),
        TimePart::Minute => two(civil.minute(), out),
        TimePart::Second => two(civil.second(), out),
        TimePart::Fraction(digits) => {
            let nanos = civil.subsec_nanosecond().unsigned_abs();
            let mut divisor = 100_000_000;
            for _ in 0..*digits {
                out.push(b'0' + u8::try_from(nanos / divisor % 10).unwrap_or_default());
                divisor /= 10;
            }
        }
        TimePart::Epoch => {
            let _ = write!(out, "{}", time.as_second());
        }
        TimePart::Offset => out.extend_from_slice(b"+0000"),
        TimePart::Zone => out.extend_from_slice(b"UTC"),
        TimePart::DayOfYear => {
            let _ = write!(out, "{:03}", civil.day_of_year());
        }
        TimePart::WeekDay => {
            let day = usize::try_from(civil.weekday().to_monday_zero_offset()).unwrap_or_default();
            out.extend_from_slice(WEEK_DAYS[day % 7].as_bytes());
        }
        TimePart::MonthName => {
            let month = usize::try_from(civil.month() - 1).unwrap_or_default();
            out.extend_from_slice(MONTHS[month % 12].as_bytes());
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
            write(&TimeFormat::compile(format).unwrap(), time, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text, "{format}");
        }
        assert!(TimeFormat::compile("%Q").unwrap_err().contains("%Q"));
        assert!(TimeFormat::compile("%Y%").is_err());
    }
}
