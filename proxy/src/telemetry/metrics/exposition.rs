//! The formats in which metrics are served.

use std::fmt::Write as _;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// A format that a scraper may ask for by `Accept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The Prometheus text format 0.0.4, which everything reads.
    PrometheusText,
    /// OpenMetrics 1.0, which Prometheus prefers.
    OpenMetrics,
}

impl Format {
    /// The format for a request with this `Accept` header.
    pub(crate) fn for_accept(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::PrometheusText,
        }
    }

    /// The `Content-Type` of the response.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::PrometheusText => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Writes every family.
pub(super) fn encode(registry: &Registry, format: Format) -> String {
    let mut page = String::with_capacity(16 * 1024);
    // Writing into a string cannot fail, and no label encoder of ours does.
    let _ = match format {
        Format::OpenMetrics => text::encode(&mut page, registry),
        Format::PrometheusText => text::encode_registry(&mut page, registry),
    };
    match format {
        Format::OpenMetrics => page,
        Format::PrometheusText => to_prometheus_text(&page),
    }
}

/// OpenMetrics announces a counter without the `_total` that its samples have; the older format
/// announces it with it. Samples are the same in both.
fn to_prometheus_text(page: &str) -> String {
    let mut text = String::with_capacity(page.len() + 1024);
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        let announced = line
            .strip_prefix("# HELP ")
            .and_then(|rest| rest.split_once(' '));
        let Some((name, help)) = announced else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        let kind = lines
            .next_if(|next| next.starts_with("# TYPE "))
            .and_then(|next| next.rsplit(' ').next())
            .unwrap_or("untyped");
        let suffix = if kind == "counter" { "_total" } else { "" };
        let _ = writeln!(
            text,
            "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_announced_with_their_full_name_in_the_older_format() {
        let page = "# HELP a_b Things.\n# TYPE a_b counter\na_b_total{x=\"y\"} 3\n\
                    # HELP c Now.\n# TYPE c gauge\nc 4\n";
        let expected = "# HELP a_b_total Things.\n# TYPE a_b_total counter\na_b_total{x=\"y\"} 3\n\
                        # HELP c Now.\n# TYPE c gauge\nc 4\n";
        assert_eq!(to_prometheus_text(page), expected);
    }

    #[test]
    fn openmetrics_is_served_to_those_who_ask() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.4";
        assert_eq!(Format::for_accept(Some(prometheus)), Format::OpenMetrics);
        assert_eq!(Format::for_accept(Some("*/*")), Format::PrometheusText);
        assert_eq!(Format::for_accept(None), Format::PrometheusText);
    }
}
