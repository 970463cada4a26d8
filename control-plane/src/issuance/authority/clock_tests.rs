//! A wall clock that jumps: an error that says so, or a certificate that is right; never a wrong one.

use super::*;
use crate::store::tests::empty_store;
use sidewind_identity::authority::MIN_SVID_TTL;
use sidewind_identity::{PrivateKey, Usage, VerifyOptions, verify_chain};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

async fn open(store: &Store, now: SystemTime) -> Result<CertificateAuthority, AuthorityStartError> {
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    CertificateAuthority::open(store.clone(), trust_domain, RootSource::Generated, now).await
}

/// Signs for somebody; what comes out is believed by its own clock, and refused by one that is far from it.
fn sign(authority: &CertificateAuthority, now: SystemTime) -> Result<(), String> {
    let id = SpiffeId::parse("spiffe://example.org/w").unwrap();
    let csr = PrivateKey::generate().unwrap().csr_der().unwrap();
    let issued = authority
        .sign(&csr, &id, MIN_SVID_TTL, now)
        .map_err(|error| error.to_string())?;
    let verify = |then| {
        let (bundles, options) = (authority.bundles(), VerifyOptions::default());
        verify_chain(&issued.chain, &bundles, Usage::Client, then, &options)
    };
    assert_eq!(verify(now).unwrap(), id);
    verify(now - HOUR).unwrap_err();
    verify(now + HOUR).unwrap_err();
    assert!(issued.not_after <= authority.signing().not_after());
    Ok(())
}

#[tokio::test]
async fn a_clock_that_jumps_three_days_yields_an_error_or_a_right_certificate() {
    let now = SystemTime::now();
    for (offset, ahead, expected) in [
        (3 * DAY, true, Ok(())),
        (HOUR, true, Ok(())),
        (Duration::from_secs(10), false, Ok(())),
        (HOUR, false, Err("does the clock agree")),
        (3 * DAY, false, Err("does the clock agree")),
    ] {
        let (_directory, store) = empty_store().await;
        let authority = open(&store, now).await.unwrap();
        let roots = authority.bundle().to_pem();
        let then = if ahead { now + offset } else { now - offset };
        let check = |authority: &CertificateAuthority| match (sign(authority, then), expected) {
            (Ok(()), Ok(())) => {}
            (Err(text), Err(expected)) => assert!(text.contains(expected), "{text}"),
            (actual, expected) => panic!("{offset:?}, {ahead}: {actual:?}, not {expected:?}"),
        };
        check(&authority);
        // Also when it was started under that clock; it makes no new root for it.
        let again = open(&store, then).await.unwrap();
        check(&again);
        assert_eq!(again.bundle().to_pem(), roots);
        // Once the clock is right again, so is everything else.
        sign(&authority, now).unwrap();
        sign(&open(&store, now).await.unwrap(), now).unwrap();
    }
}

#[tokio::test]
async fn a_clock_that_was_months_ahead_for_a_while_yields_no_wrong_certificate() {
    let now = SystemTime::now();
    let (_directory, store) = empty_store().await;
    sign(&open(&store, now).await.unwrap(), now).unwrap();
    // The signing certificate of the present has ended by then, so another is made.
    let months = now + 90 * DAY;
    sign(&open(&store, months).await.unwrap(), months).unwrap();
    // That one begins in the future now; it signs nothing before.
    let refused = match open(&store, now).await {
        Ok(authority) => sign(&authority, now),
        Err(error) => Err(crate::telemetry::chain(&error)),
    };
    if let Err(text) = refused {
        assert!(text.contains("clock"), "{text}");
    }
}
