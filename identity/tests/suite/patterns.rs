//! Patterns for SPIFFE IDs: near misses, and a naive model to compare with.

use proptest::prelude::*;
use sidewind_identity::{SpiffeId, SpiffeIdError, SpiffeIdPattern};

fn matches(pattern: &str, id: &str) -> bool {
    let pattern = SpiffeIdPattern::parse(pattern).unwrap_or_else(|e| panic!("{pattern}: {e}"));
    pattern.matches(&SpiffeId::parse(id).unwrap_or_else(|e| panic!("{id}: {e}")))
}

#[test]
fn a_pattern_matches_what_it_says_and_no_near_miss() {
    let rows = [
        // A literal is itself alone.
        ("spiffe://td/ns/a", "spiffe://td/ns/a", true),
        ("spiffe://td/ns/a", "spiffe://td/ns/ab", false),
        ("spiffe://td/ns/a", "spiffe://td/ns", false),
        ("spiffe://td/ns/a", "spiffe://td/ns/a/b", false),
        ("spiffe://td/ns/a", "spiffe://td/ns/A", false),
        ("spiffe://td/ns/a", "spiffe://td/NS/a", false),
        ("spiffe://td/ns/a", "spiffe://td2/ns/a", false),
        ("spiffe://td/ns/a", "spiffe://t/ns/a", false),
        ("spiffe://td", "spiffe://td", true),
        ("spiffe://td", "spiffe://td/x", false),
        // A wildcard inside is one segment, never none, never two.
        ("spiffe://td/ns/*/sa/w", "spiffe://td/ns/a/sa/w", true),
        ("spiffe://td/ns/*/sa/w", "spiffe://td/ns/a/b/sa/w", false),
        ("spiffe://td/ns/*/sa/w", "spiffe://td/ns/sa/w", false),
        ("spiffe://td/ns/*/sa/w", "spiffe://td/ns/a/sa/w2", false),
        (
            "spiffe://td/ns/*/sa/w",
            "spiffe://td/ns/a/sa/w/dag/d",
            false,
        ),
        ("spiffe://td/*/x", "spiffe://td/x", false),
        ("spiffe://td/*/x", "spiffe://td/x/x", true),
        // A final wildcard is one or more.
        ("spiffe://td/ns/a/*", "spiffe://td/ns/a/sa", true),
        (
            "spiffe://td/ns/a/*",
            "spiffe://td/ns/a/sa/w/dag/d/task/t",
            true,
        ),
        ("spiffe://td/ns/a/*", "spiffe://td/ns/a", false),
        ("spiffe://td/ns/a/*", "spiffe://td/ns/ab/sa", false),
        ("spiffe://td/ns/a/*", "spiffe://td2/ns/a/sa", false),
        ("spiffe://td/*", "spiffe://td", false),
        ("spiffe://td/*", "spiffe://td/x", true),
        ("spiffe://td/*/*", "spiffe://td/x", false),
        ("spiffe://td/*/*", "spiffe://td/x/y/z", true),
        // Dots are bytes, not "any".
        ("spiffe://a.b/x", "spiffe://a-b/x", false),
        ("spiffe://td/a.b", "spiffe://td/a-b", false),
    ];
    for (pattern, id, expected) in rows {
        assert_eq!(matches(pattern, id), expected, "{pattern} on {id}");
    }
}

#[test]
fn a_pattern_that_means_more_than_it_says_is_refused() {
    let rows = [
        ("*", SpiffeIdError::Scheme),
        ("", SpiffeIdError::Scheme),
        ("/ns/airflow/*", SpiffeIdError::Scheme),
        ("spiffe://*/ns/a", SpiffeIdError::TrustDomainByte(b'*')),
        ("spiffe://*", SpiffeIdError::TrustDomainByte(b'*')),
        ("spiffe:///ns/a", SpiffeIdError::EmptyTrustDomain),
        ("spiffe://td/ns/a*", SpiffeIdError::PartialWildcard),
        ("spiffe://td/ns/*a/x", SpiffeIdError::PartialWildcard),
        ("spiffe://td/**", SpiffeIdError::PartialWildcard),
        ("spiffe://td/ns/", SpiffeIdError::TrailingSlash),
        ("spiffe://td/*/", SpiffeIdError::TrailingSlash),
        ("spiffe://td//x", SpiffeIdError::EmptySegment),
        ("spiffe://td/../x", SpiffeIdError::RelativeSegment),
        ("spiffe://td/a?", SpiffeIdError::PathByte(b'?')),
        ("spiffe://td/[a-z]", SpiffeIdError::PathByte(b'[')),
        ("spiffe://TD/x", SpiffeIdError::TrustDomainByte(b'T')),
    ];
    for (text, error) in rows {
        assert_eq!(SpiffeIdPattern::parse(text), Err(error), "{text:?}");
    }
}

#[test]
fn the_pattern_of_an_id_matches_that_id_alone() {
    let id = SpiffeId::parse("spiffe://td/ns/a/sa/w").unwrap();
    let pattern = SpiffeIdPattern::from(&id);
    assert!(pattern.matches(&id));
    assert!(!pattern.matches(&SpiffeId::parse("spiffe://td/ns/a/sa/w/dag/d").unwrap()));
    assert_eq!(SpiffeIdPattern::parse(id.as_str()), Ok(pattern));
}

/// What a pattern means, written down as plainly as possible.
fn model(pattern: &[&str], id: &[&str]) -> bool {
    match (pattern, id) {
        ([], []) => true,
        ([], _) | (_, []) => false,
        (["*"], _) => true,
        ([first, pattern @ ..], [segment, id @ ..]) => {
            (*first == "*" || first == segment) && model(pattern, id)
        }
    }
}

fn uri(segments: &[&str]) -> String {
    let path: String = segments
        .iter()
        .map(|segment| format!("/{segment}"))
        .collect();
    format!("spiffe://td{path}")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    // Few, short and similar segments, so that matches and near misses are both common.
    #[test]
    fn matching_agrees_with_the_model(
        pattern in prop::collection::vec(prop::sample::select(vec!["a", "ab", "A", "*"]), 0..5),
        id in prop::collection::vec(prop::sample::select(vec!["a", "ab", "A"]), 0..6),
    ) {
        prop_assert_eq!(matches(&uri(&pattern), &uri(&id)), model(&pattern, &id));
    }

    #[test]
    fn another_trust_domain_never_matches(
        segments in prop::collection::vec(prop::sample::select(vec!["a", "b"]), 0..4),
    ) {
        let elsewhere = uri(&segments).replace("//td", "//td.evil");
        prop_assert!(!matches(&uri(&segments), &elsewhere));
    }
}
