//! Reads proxies' metrics pages, as far as tests of traffic ask.

use crate::exposition;

/// Sum of all series of a metric that have these labels. A page that is not in the format equals no number.
#[must_use]
pub fn sum(page: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    exposition::sum(page, name, labels).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn a_broken_page_equals_nothing() {
        assert_eq!(sum("a{x=\"1\"} 3\na{x=\"2\"} 4\n", "a", &[]), 7.0);
        assert!(sum("a{x=1} 3\n", "b", &[]).is_nan());
    }
}
