//! Trust bundle documents of other trust domains, and the key sets of issuers.
#![no_main]

use std::time::{Duration, SystemTime};

use sidewind_identity::TrustDomain;
use sidewind_identity::bundle::document::BundleDocument;
use sidewind_identity::jwt::jwks::JwkSet;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let _ = JwkSet::parse(bytes);
    let Ok(domain) = TrustDomain::parse("fuzz.local") else {
        return;
    };
    if let Ok(document) = BundleDocument::parse(domain.clone(), bytes, now) {
        // What was understood is understood again.
        let again = BundleDocument::parse(domain, document.to_json().as_bytes(), now);
        assert!(again.is_ok_and(|again| again.findings().is_empty()));
    }
});
