//! Reads Prometheus' text format, as far as tests ask.

/// Sum of all series of a metric that have these labels.
#[must_use]
pub fn sum(page: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    page.lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter(|line| {
            labels
                .iter()
                .all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")))
        })
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn sums_what_fits() {
        let page = "# TYPE a counter\na{x=\"1\",y=\"2\"} 3\na{x=\"1\",y=\"3\"} 4\na{x=\"2\"} 9\nab{x=\"1\"} 7\nc 5\n";
        assert_eq!(sum(page, "a", &[("x", "1")]), 7.0);
        assert_eq!(sum(page, "a", &[("x", "1"), ("y", "2")]), 3.0);
        assert_eq!(sum(page, "c", &[]), 5.0);
        assert_eq!(sum(page, "d", &[]), 0.0);
    }
}
