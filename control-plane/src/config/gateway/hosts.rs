//! Hosts that listeners and routes are for.

/// Whether there is a host that both names mean: each is a host, `*.` and one for all below it, or empty for all.
pub(super) fn have_one_in_common(one: &str, other: &str) -> bool {
    let is_below = |host: &str, end: &str| host.len() > end.len() && host.ends_with(end);
    match (one.strip_prefix('*'), other.strip_prefix('*')) {
        _ if one.is_empty() || other.is_empty() => true,
        (None, None) => one == other,
        (None, Some(end)) => is_below(one, end),
        (Some(end), None) => is_below(other, end),
        (Some(one), Some(other)) => one.ends_with(other) || other.ends_with(one),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_in_common_are_found_among_names_and_wildcards() {
        for (one, other, expected) in [
            ("", "a.example.com", true),
            ("*.example.com", "", true),
            ("a.example.com", "a.example.com", true),
            ("a.example.com", "b.example.com", false),
            ("a.example.com", "*.example.com", true),
            ("a.b.example.com", "*.example.com", true),
            ("example.com", "*.example.com", false),
            ("badexample.com", "*.example.com", false),
            ("*.example.com", "*.com", true),
            ("*.example.com", "*.example.org", false),
            ("*.a.example.com", "*.b.example.com", false),
        ] {
            assert_eq!(have_one_in_common(one, other), expected, "{one} {other}");
            assert_eq!(have_one_in_common(other, one), expected, "{other} {one}");
        }
    }
}
