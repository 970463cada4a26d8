//! Prometheus text, as far as the tests read it.

use std::collections::BTreeMap;

/// One line: a name, its labels and a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name with its suffix, such as `_total` or `_bucket`.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}

/// A whole page.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
    described: Vec<String>,
}

impl Metrics {
    /// Reads a page.
    ///
    /// # Panics
    /// At the first line that is not of the format.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(comment) = line.strip_prefix("# ") {
                if let Some(name) = comment
                    .strip_prefix("HELP ")
                    .and_then(|rest| rest.split(' ').next())
                {
                    metrics.described.push(name.into());
                }
                continue;
            }
            let sample = sample(line).unwrap_or_else(|| panic!("not a metric: {line:?}"));
            metrics.samples.push(sample);
        }
        metrics
    }

    /// All samples.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// The families that have a help text.
    pub fn described(&self) -> &[String] {
        &self.described
    }

    /// The sum over all samples of that name whose labels have these values.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let matching = self.samples.iter().filter(|sample| {
            let has = |(key, value): &(&str, &str)| {
                sample.labels.get(*key).is_some_and(|own| own == value)
            };
            sample.name == name && labels.iter().all(has)
        });
        matching.map(|sample| sample.value).sum()
    }

    /// The value of a metric that has no labels.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.samples
            .iter()
            .find(|sample| sample.name == name)
            .map(|sample| sample.value)
    }
}

fn sample(line: &str) -> Option<Sample> {
    let end_of_name = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end_of_name);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let value = match rest.split_whitespace().next()? {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().ok()?,
    };
    Some(Sample {
        name: name.into(),
        labels,
        value,
    })
}

/// `key="value",…}` and what follows.
fn labels(mut text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        text = text.trim_start_matches(',');
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (key, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = rest.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.insert(key.into(), value);
        text = rest.get(end + 1..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_with_its_labels_and_escapes() {
        let page = concat!(
            "# HELP sidewind_requests Requests.\n# TYPE sidewind_requests counter\n",
            "sidewind_requests_total{service=\"a.b\",status=\"2xx\"} 3\n",
            "sidewind_requests_total{service=\"a.b\",status=\"5xx\"} 1\n",
            "sidewind_odd{text=\"a\\\"b,c}\\\\\"} 1.5e3 1700000000\nup 1\n# EOF\n",
        );
        let metrics = Metrics::parse(page);
        assert_eq!(
            metrics.sum("sidewind_requests_total", &[("service", "a.b")]),
            4.0
        );
        assert_eq!(
            metrics.sum("sidewind_requests_total", &[("status", "5xx")]),
            1.0
        );
        assert_eq!(
            metrics.sum("sidewind_odd", &[("text", "a\"b,c}\\")]),
            1500.0
        );
        assert_eq!(metrics.value("up"), Some(1.0));
        assert_eq!(metrics.described(), ["sidewind_requests"]);
    }

    #[test]
    #[should_panic(expected = "not a metric")]
    fn a_line_that_is_no_metric_is_refused() {
        Metrics::parse("sidewind_requests_total{service=\"a\n");
    }
}
