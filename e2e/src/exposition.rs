//! Prometheus' text exposition format, read as strictly as a scraper does.

use anyhow::{Context as _, bail};

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name of the metric, with `_bucket`, `_sum` or `_count` of a histogram.
    pub name: String,
    /// Labels in the order in which they are printed.
    pub labels: Vec<(String, String)>,
    /// Value.
    pub value: f64,
}

impl Sample {
    /// Value of a label.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Whether it has all of these labels.
    #[must_use]
    pub fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(name, value)| self.label(name) == Some(value))
    }
}

/// Reads a page.
///
/// # Errors
/// With the line that is not in the format.
pub fn parse(page: &str) -> anyhow::Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for line in page.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        samples.push(sample(line).with_context(|| format!("not in the exposition format: {line}"))?);
    }
    Ok(samples)
}

/// Sum of the samples of a metric that have all of these labels; 0 when there are none.
///
/// # Errors
/// As [`parse`].
pub fn sum(page: &str, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
    let samples = parse(page)?;
    let matching = samples
        .iter()
        .filter(|sample| sample.name == name && sample.has(labels));
    Ok(matching.map(|sample| sample.value).sum())
}

fn sample(line: &str) -> anyhow::Result<Sample> {
    let end = line.find(['{', ' ']).context("no value")?;
    let (name, mut rest) = line.split_at(end);
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "_:".contains(c)) {
        bail!("no metric name");
    }
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"").context("no label")?;
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next().context("no end of a label's value")? {
                    (end, '"') => break end,
                    (_, '\\') => match chars.next().context("nothing is escaped")?.1 {
                        'n' => value.push('\n'),
                        escaped @ ('"' | '\\') => value.push(escaped),
                        other => bail!("\\{other} means nothing"),
                    },
                    (_, other) => value.push(other),
                }
            };
            labels.push((label.to_owned(), value));
            rest = &after[end + 1..];
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        rest = &rest[1..];
    }
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value: rest.trim().parse().context("no number")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples() {
        let page = "# TYPE a counter\na{x=\"1\",y=\"q\\\"\\\\\\n,}\"} 2\na{x=\"2\"} 0.5\nb 7\n";
        let samples = parse(page).unwrap();
        assert_eq!(samples[0].label("y"), Some("q\"\\\n,}"));
        assert_eq!(samples[2].value, 7.0);
        assert_eq!(sum(page, "a", &[]).unwrap(), 2.5);
        assert_eq!(sum(page, "a", &[("x", "2")]).unwrap(), 0.5);
        for bad in ["a", "a{x=1} 2", "a{x=\"1} 2", "a b", "a{x=\"\\q\"} 1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
