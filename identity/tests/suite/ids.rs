//! SPIFFE IDs: the vectors, every byte, and properties.

use proptest::prelude::*;
use serde::Deserialize;
use sidewind_identity::{SpiffeId, SpiffeIdError, TrustDomain};

#[derive(Deserialize)]
struct Vectors {
    valid: Vec<Valid>,
    invalid: Vec<Invalid>,
}

#[derive(Deserialize)]
struct Valid {
    id: String,
    note: String,
    workload: bool,
}

#[derive(Deserialize)]
struct Invalid {
    id: String,
    reason: String,
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("../vectors/spiffe-ids.json")).unwrap()
}

#[test]
fn every_valid_vector_is_accepted_and_kept_as_it_is() {
    let rows = vectors().valid;
    assert!(rows.len() >= 10);
    for row in rows {
        let id =
            SpiffeId::parse(&row.id).unwrap_or_else(|e| panic!("{:?} ({}): {e}", row.id, row.note));
        assert_eq!(id.to_string(), row.id);
        assert_eq!(id.is_workload(), row.workload, "{:?}", row.id);
        let rebuilt = SpiffeId::from_parts(id.trust_domain(), id.path());
        assert_eq!(rebuilt.as_ref(), Ok(&id));
    }
}

#[test]
fn every_invalid_vector_is_refused() {
    let rows = vectors().invalid;
    assert!(rows.len() >= 60);
    for row in rows {
        assert!(
            SpiffeId::parse(&row.id).is_err(),
            "{:?} ({})",
            row.id,
            row.reason
        );
    }
}

#[test]
fn of_all_bytes_only_the_allowed_ones_pass_in_a_path_and_in_a_trust_domain() {
    for byte in 0..=u8::MAX {
        let in_path = [b"spiffe://td/x".as_slice(), &[byte], b"y"].concat();
        let in_trust_domain = [b"spiffe://t".as_slice(), &[byte], b"d/x"].concat();
        let parses = |bytes: &[u8]| {
            std::str::from_utf8(bytes).is_ok_and(|text| SpiffeId::parse(text).is_ok())
        };
        let path_byte = byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
        let trust_domain_byte =
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-/".contains(&byte);
        assert_eq!(parses(&in_path), path_byte, "byte {byte:#04x} in a path");
        assert_eq!(
            parses(&in_trust_domain),
            trust_domain_byte,
            "byte {byte:#04x} in a trust domain"
        );
        // As a character, which for the upper half is two bytes.
        let character = char::from(byte);
        assert_eq!(
            SpiffeId::parse(&format!("spiffe://td/x{character}y")).is_ok(),
            path_byte
        );
    }
}

#[test]
fn an_error_names_the_rule_that_is_broken() {
    let rows = [
        ("", SpiffeIdError::Scheme),
        ("SPIFFE://td/x", SpiffeIdError::Scheme),
        ("spiffe:///x", SpiffeIdError::EmptyTrustDomain),
        ("spiffe://td:443/x", SpiffeIdError::TrustDomainByte(b':')),
        ("spiffe://td/x/", SpiffeIdError::TrailingSlash),
        ("spiffe://td/", SpiffeIdError::TrailingSlash),
        ("spiffe://td//x", SpiffeIdError::EmptySegment),
        ("spiffe://td/a/../x", SpiffeIdError::RelativeSegment),
        ("spiffe://td/%2e", SpiffeIdError::PathByte(b'%')),
        ("spiffe://td/a*", SpiffeIdError::PathByte(b'*')),
    ];
    for (text, error) in rows {
        assert_eq!(SpiffeId::parse(text), Err(error), "{text:?}");
    }
}

#[test]
fn a_value_put_into_a_template_cannot_add_what_is_no_segment() {
    let trust_domain = TrustDomain::parse("td").unwrap();
    for value in [
        "..",
        ".",
        "",
        "a//b",
        "a/",
        "a%2fb",
        "a b",
        "manual__2026-08-22T10:00:00+00:00",
    ] {
        let path = format!("/ns/airflow/sa/{value}");
        assert!(
            SpiffeId::from_parts(&trust_domain, &path).is_err(),
            "{value:?}"
        );
    }
    let without_slash = SpiffeId::from_parts(&trust_domain, "ns/airflow");
    assert_eq!(without_slash, Err(SpiffeIdError::PathWithoutSlash));
    // A trust domain that would swallow a path.
    assert!(TrustDomain::parse("td/ns").is_err());
}

#[test]
fn the_id_of_a_trust_domain_has_no_path() {
    let trust_domain = TrustDomain::parse("sidewind.local").unwrap();
    let id = trust_domain.id();
    assert_eq!(id.as_str(), "spiffe://sidewind.local");
    assert_eq!(SpiffeId::parse("spiffe://sidewind.local"), Ok(id.clone()));
    assert!(!id.is_workload());
    assert_eq!(id.segments().count(), 0);
}

proptest! {
    #[test]
    fn whatever_parses_is_written_as_it_was_read(text in "(spiffe://)?[a-zA-Z0-9._/%:@-]{0,80}") {
        if let Ok(id) = SpiffeId::parse(&text) {
            prop_assert_eq!(id.as_str(), &text);
            prop_assert_eq!(id.to_string().parse::<SpiffeId>(), Ok(id.clone()));
            let joined = format!("spiffe://{}{}", id.trust_domain(), id.path());
            prop_assert_eq!(joined, text);
        }
    }

    #[test]
    fn whatever_is_built_by_the_rules_parses(
        trust_domain in "[a-z0-9._-]{1,60}",
        segments in prop::collection::vec("[a-zA-Z0-9._-]{1,20}", 0..6),
    ) {
        prop_assume!(segments.iter().all(|segment| segment != "." && segment != ".."));
        let path: String = segments.iter().map(|segment| format!("/{segment}")).collect();
        let id = SpiffeId::parse(&format!("spiffe://{trust_domain}{path}")).unwrap();
        prop_assert_eq!(id.trust_domain().as_str(), trust_domain);
        prop_assert_eq!(id.segments().collect::<Vec<_>>(), segments);
    }

    #[test]
    fn no_text_makes_the_parsers_panic(text in any::<String>()) {
        let _ = SpiffeId::parse(&text);
        let _ = SpiffeId::parse(&format!("spiffe://{text}"));
        let _ = TrustDomain::parse(&text);
        let _ = sidewind_identity::SpiffeIdPattern::parse(&format!("spiffe://{text}"));
    }
}
