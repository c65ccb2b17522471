//! Time formats of `strftime`'s kind, as far as Envoy's `START_TIME` has them.

/// A compiled time format.
#[derive(Debug, PartialEq, Eq)]
pub struct TimeFormat(Vec<TimePart>);

/// A part of a time format.
#[derive(Debug, PartialEq, Eq)]
pub enum TimePart {
    /// Text that is printed as it stands.
    Literal(Box<str>),
    /// `%Y`
    Year,
    /// `%m`
    Month,
    /// `%d`
    Day,
    /// `%H`
    Hour,
    /// `%M`
    Minute,
    /// `%S`
    Second,
    /// Digits of the fraction of a second.
    Fraction(u8),
    /// Seconds since 1970.
    Epoch,
    /// `+0000`
    Offset,
    /// `UTC`
    Zone,
    /// `%j`
    DayOfYear,
    /// `Mon`
    WeekDay,
    /// `Jan`
    MonthName,
}

/// ISO 8601 with milliseconds.
const DEFAULT: &str = "%Y-%m-%dT%H:%M:%S.%3fZ";

impl TimeFormat {
    /// The parts, in order.
    #[must_use]
    pub fn parts(&self) -> &[TimePart] {
        &self.0
    }

    /// Compiles a format; the empty one is the default.
    ///
    /// # Errors
    /// Says what is not known.
    pub fn compile(format: &str) -> Result<Self, String> {
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
                    let colon = || TimePart::Literal(":".into());
                    parts.extend([TimePart::Hour, colon(), TimePart::Minute, colon(), TimePart::Second]);
                    continue;
                }
                'F' => {
                    push_literal(&mut parts, &mut literal);
                    let dash = || TimePart::Literal("-".into());
                    parts.extend([TimePart::Year, dash(), TimePart::Month, dash(), TimePart::Day]);
                    continue;
                }
                'Y' => TimePart::Year,
                'm' => TimePart::Month,
                'd' => TimePart::Day,
                'H' => TimePart::Hour,
                'M' => TimePart::Minute,
                'S' => TimePart::Second,
                's' => TimePart::Epoch,
                'z' => TimePart::Offset,
                'Z' => TimePart::Zone,
                'j' => TimePart::DayOfYear,
                'a' => TimePart::WeekDay,
                'b' => TimePart::MonthName,
                'f' => TimePart::Fraction(9),
                digit @ '1'..='9' if chars.as_str().starts_with('f') => {
                    chars.next();
                    TimePart::Fraction(digit as u8 - b'0')
                }
                other => return Err(format!("`%{other}` is not known in a time format")),
            };
            push_literal(&mut parts, &mut literal);
            parts.push(part);
        }
        push_literal(&mut parts, &mut literal);
        Ok(Self(parts))
    }
}

fn push_literal(parts: &mut Vec<TimePart>, literal: &mut String) {
    if !literal.is_empty() {
        parts.push(TimePart::Literal(std::mem::take(literal).into()));
    }
}
