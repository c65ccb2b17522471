//! What the sidecars counted: their Prometheus pages in, figures per destination out.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// A destination as the table shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// `reviews`.
    pub service: String,
    /// `v1`; empty for requests that reached no workload.
    pub version: String,
}

/// Counts towards one destination.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Requests, as clients report them.
    pub requests: f64,
    /// Those answered with 5xx, or not at all.
    pub errors: f64,
    /// Upper bounds in milliseconds, and requests up to them.
    pub buckets: Vec<(f64, f64)>,
    /// Requests, as servers report them.
    pub received: f64,
    /// Those over mutual TLS.
    pub secured: f64,
}

/// Counts by destination.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures(pub BTreeMap<Destination, Counts>);

impl Figures {
    /// Reads a page of one sidecar.
    #[must_use]
    pub fn parse(page: &str) -> Self {
        let mut figures = Self::default();
        for sample in page.lines().filter_map(Sample::parse) {
            match sample.name {
                "istio_requests_total" => figures.add_requests(&sample),
                "istio_request_duration_milliseconds_bucket" => figures.add_bucket(&sample),
                _ => {}
            }
        }
        figures
    }

    fn add_requests(&mut self, sample: &Sample<'_>) {
        let counts = self.counts_of(sample);
        if sample.label("reporter") == "source" {
            counts.requests += sample.value;
            let code: u16 = sample.label("response_code").parse().unwrap_or(0);
            if code == 0 || code >= 500 {
                counts.errors += sample.value;
            }
        } else {
            counts.received += sample.value;
            if sample.label("connection_security_policy") == "mutual_tls" {
                counts.secured += sample.value;
            }
        }
    }

    fn add_bucket(&mut self, sample: &Sample<'_>) {
        if sample.label("reporter") != "source" {
            return;
        }
        let Ok(bound) = sample.label("le").replace("+Inf", "inf").parse::<f64>() else {
            return;
        };
        let buckets = &mut self.counts_of(sample).buckets;
        match buckets.iter_mut().find(|(known, _)| *known == bound) {
            Some((_, count)) => *count += sample.value,
            None => buckets.push((bound, sample.value)),
        }
    }

    fn counts_of(&mut self, sample: &Sample<'_>) -> &mut Counts {
        let destination = Destination {
            service: known(sample.label("destination_service_name")),
            version: known(sample.label("destination_version")),
        };
        self.0.entry(destination).or_default()
    }

    /// What was counted since an earlier page of the same sidecar; one that started anew in between counts from zero.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let differences = self.0.iter().map(|(destination, now)| {
            let before = earlier.0.get(destination);
            let counts =
                match before.filter(|before| before.requests <= now.requests && before.received <= now.received) {
                    Some(before) => now.minus(before),
                    None => now.clone(),
                };
            (destination.clone(), counts)
        });
        Self(differences.collect())
    }

    /// Adds the figures of another sidecar.
    pub fn add(&mut self, other: &Self) {
        for (destination, counts) in &other.0 {
            self.0.entry(destination.clone()).or_default().add(counts);
        }
    }

    /// Of all requests that servers report, the share over mutual TLS; `None` without requests.
    #[must_use]
    pub fn mutual_tls(&self) -> Option<f64> {
        let received: f64 = self.0.values().map(|counts| counts.received).sum();
        let secured: f64 = self.0.values().map(|counts| counts.secured).sum();
        (received > 0.0).then(|| secured / received)
    }
}

impl Counts {
    fn minus(&self, before: &Self) -> Self {
        let of_bound = |bound: f64| {
            before
                .buckets
                .iter()
                .find(|(known, _)| *known == bound)
                .map_or(0.0, |(_, count)| *count)
        };
        Self {
            requests: self.requests - before.requests,
            errors: self.errors - before.errors,
            buckets: self
                .buckets
                .iter()
                .map(|(bound, count)| (*bound, count - of_bound(*bound)))
                .collect(),
            received: self.received - before.received,
            secured: self.secured - before.secured,
        }
    }

    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.received += other.received;
        self.secured += other.secured;
        for (bound, count) in &other.buckets {
            match self.buckets.iter_mut().find(|(known, _)| known == bound) {
                Some((_, sum)) => *sum += count,
                None => self.buckets.push((*bound, *count)),
            }
        }
    }

    /// Share of requests that were answered below 500.
    #[must_use]
    pub fn success_rate(&self) -> Option<f64> {
        (self.requests > 0.0).then(|| 1.0 - self.errors / self.requests)
    }

    /// Share of requests over mutual TLS.
    #[must_use]
    pub fn mutual_tls(&self) -> Option<f64> {
        (self.received > 0.0).then(|| self.secured / self.received)
    }

    /// The latency in milliseconds that a share of requests stays below, interpolated within its bucket.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let mut buckets = self.buckets.clone();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let total = buckets.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
        let wanted = share * total;
        let (mut below, mut count_below) = (0.0, 0.0);
        for (bound, count) in buckets {
            if count >= wanted && count > count_below {
                if bound.is_infinite() {
                    return Some(below);
                }
                return Some(below + (bound - below) * (wanted - count_below) / (count - count_below));
            }
            (below, count_below) = (bound, count);
        }
        None
    }
}

fn known(value: &str) -> String {
    if value == "unknown" {
        String::new()
    } else {
        value.to_owned()
    }
}

/// Name and value.
type Label<'a> = (&'a str, Cow<'a, str>);

/// One line of a page.
struct Sample<'a> {
    name: &'a str,
    labels: Vec<Label<'a>>,
    value: f64,
}

impl<'a> Sample<'a> {
    /// `None` for comments, and lines that are none.
    fn parse(line: &'a str) -> Option<Self> {
        let end_of_name = line.find(['{', ' '])?;
        let (name, rest) = line.split_at(end_of_name);
        if name.is_empty() || name.starts_with('#') {
            return None;
        }
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest)?,
            None => (Vec::new(), rest),
        };
        let value = rest.split_whitespace().next()?.parse().ok()?;
        Some(Self { name, labels, value })
    }

    fn label(&self, name: &str) -> &str {
        self.labels
            .iter()
            .find(|(known, _)| *known == name)
            .map_or("", |(_, value)| value)
    }
}

/// The labels after an opening brace, and what follows the closing one.
fn labels(mut text: &str) -> Option<(Vec<Label<'_>>, &str)> {
    let mut labels = Vec::new();
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, rest) = text.split_once("=\"")?;
        let mut escaped = false;
        let end = rest.char_indices().find_map(|(at, c)| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends.then_some(at)
        })?;
        labels.push((name, unescaped(&rest[..end])));
        text = &rest[end + 1..];
    }
}

fn unescaped(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => match chars.next() {
                Some('n') => out.push('\n'),
                Some(other) => out.push(other),
                None => {}
            },
            (c, false) => out.push(c),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"# TYPE istio_requests_total counter
istio_requests_total{reporter="source",destination_service_name="reviews",destination_version="v1",response_code="200",connection_security_policy="unknown"} 8
istio_requests_total{reporter="source",destination_service_name="reviews",destination_version="v1",response_code="503",connection_security_policy="unknown"} 2
istio_requests_total{reporter="destination",destination_service_name="reviews",destination_version="v1",response_code="200",connection_security_policy="mutual_tls"} 6
istio_requests_total{reporter="destination",destination_service_name="reviews",destination_version="v1",response_code="200",connection_security_policy="none"} 2
istio_request_duration_milliseconds_bucket{reporter="source",destination_service_name="reviews",destination_version="v1",le="1"} 5
istio_request_duration_milliseconds_bucket{reporter="source",destination_service_name="reviews",destination_version="v1",le="5"} 10
istio_request_duration_milliseconds_bucket{reporter="source",destination_service_name="reviews",destination_version="v1",le="+Inf"} 10
istio_request_duration_milliseconds_bucket{reporter="destination",destination_service_name="reviews",destination_version="v1",le="1"} 99
process_open_fds 12
"#;

    fn reviews() -> Destination {
        Destination {
            service: "reviews".to_owned(),
            version: "v1".to_owned(),
        }
    }

    #[test]
    fn a_page_becomes_figures() {
        let figures = Figures::parse(PAGE);
        let counts = &figures.0[&reviews()];
        assert_eq!((counts.requests, counts.errors, counts.received), (10.0, 2.0, 8.0));
        assert_eq!(counts.success_rate(), Some(0.8));
        assert_eq!(counts.mutual_tls(), Some(0.75));
        assert_eq!(figures.mutual_tls(), Some(0.75));
        assert_eq!(counts.quantile(0.5), Some(1.0));
        assert_eq!(counts.quantile(0.75), Some(3.0));
    }

    #[test]
    fn differences_survive_a_restart() {
        let now = Figures::parse(PAGE);
        let none = now.since(&now);
        assert_eq!(none.0[&reviews()].requests, 0.0);
        assert_eq!(none.0[&reviews()].quantile(0.5), None);
        let mut before = now.clone();
        before.0.get_mut(&reviews()).unwrap().requests = 1_000.0;
        assert_eq!(now.since(&before), now, "the sidecar has started anew");
        let mut twice = now.clone();
        twice.add(&now);
        assert_eq!(twice.since(&now), now);
    }

    #[test]
    fn labels_may_hold_anything() {
        let sample = Sample::parse(r#"a{x="1,\"}\\",y="é"} 2 1700000000"#).unwrap();
        assert_eq!(
            (sample.label("x"), sample.label("y"), sample.value),
            ("1,\"}\\", "é", 2.0)
        );
        for line in ["", "# HELP a b", "a", "a{", "a{x=\"1\"", "a{x} 1", "a b"] {
            assert!(Sample::parse(line).is_none(), "{line}");
        }
    }
}
