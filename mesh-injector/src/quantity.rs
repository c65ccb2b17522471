//! Amounts of CPU and memory as Kubernetes writes them (`100m`, `1.5`, `128Mi`), to tell valid from invalid and more
//! from less. The text itself is what goes into pods.

/// Why a text is no amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no amount: expected a number with an optional unit, such as 100m, 0.5, 128Mi or 1Gi")]
pub struct InvalidQuantity(String);

const UNITS: [(&str, f64); 16] = [
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
    ("n", 1e-9),
    ("u", 1e-6),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
    ("", 1.0),
];

/// Reads an amount. The value is for comparison only.
///
/// # Errors
/// When it is not written as Kubernetes does, or negative.
pub fn parse(text: &str) -> Result<f64, InvalidQuantity> {
    let invalid = || InvalidQuantity(text.to_owned());
    let digits = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, suffix) = text.split_at(digits);
    let value: f64 = number.parse().map_err(|_| invalid())?;
    if let Some(exponent) = suffix.strip_prefix(['e', 'E']).filter(|rest| !rest.is_empty()) {
        let exponent: i32 = exponent.parse().map_err(|_| invalid())?;
        return (exponent.abs() <= 30)
            .then(|| value * 10f64.powi(exponent))
            .ok_or_else(invalid);
    }
    UNITS
        .iter()
        .find(|(unit, _)| *unit == suffix)
        .map(|(_, factor)| value * factor)
        .ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        for (text, value) in [
            ("0", 0.0),
            ("2", 2.0),
            ("100m", 0.1),
            ("1.5", 1.5),
            ("128Mi", 134_217_728.0),
            ("1e3", 1000.0),
            ("1E", 1e18),
        ] {
            assert!((parse(text).unwrap() - value).abs() <= value * 1e-12, "{text}");
        }
        for text in ["", "m", "-1", "1 Gi", "1.2.3", "1GB", "1mi", ".", "1e", "0x10", "1e999"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
