//! JWT-SVIDs and OIDC tokens, and SPIFFE IDs.
#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use sidewind_identity::SpiffeId;
use sidewind_identity::jwt::jwks::JwkSet;
use sidewind_identity::jwt::jws::{Rules, claimed_issuer, verify};

static KEYS: LazyLock<JwkSet> = LazyLock::new(|| {
    let keys = include_bytes!("../corpus/bundles/jwks.json");
    JwkSet::parse(keys).unwrap_or_else(|error| panic!("the keys of the corpus: {error}"))
});

libfuzzer_sys::fuzz_target!(|token: &str| {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let _ = claimed_issuer(token);
    if let Ok(rules) = Rules::svid("fuzz") {
        // Nobody has the key.
        assert!(verify(token, &KEYS, &rules, now).is_err());
    }
    if let Ok(id) = SpiffeId::parse(token) {
        assert_eq!(id.to_string(), token);
    }
});
