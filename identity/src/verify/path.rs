//! Path validation (RFC 5280 section 6) by rustls-webpki, and what it leaves to its callers.
//!
//! rustls-webpki forgets an anchor's validity and path length when it loads it, does not look at the key usage
//! of intermediates, and knows nothing of trust domains (each measured; the cases are in `tests/suite/conformance.rs`).

use std::cell::RefCell;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use super::{Usage, VerifyError};
use crate::bundle::{AuthorityError, TrustBundle, check_authority};
use crate::tls::provider;
use crate::x509::{self, MalformedCertificate};

/// Finds a path from the leaf to an authority of the bundle.
pub(super) fn verify(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    usage: Usage,
    now: SystemTime,
) -> Result<(), VerifyError> {
    let key_usage = match usage {
        Usage::Server => KeyUsage::server_auth(),
        Usage::Client => KeyUsage::client_auth(),
    };
    // webpki's own error type has no room for the reason, so it is kept beside.
    let refusal = RefCell::new(None);
    let check = |path: &VerifiedPath<'_>| {
        check_path(path, bundle, now).map_err(|reason| {
            refusal.borrow_mut().get_or_insert(reason);
            webpki::Error::UnknownIssuer
        })
    };
    let end_entity = EndEntityCert::try_from(leaf).map_err(VerifyError::Path)?;
    let result = end_entity.verify_for_usage(
        provider().signature_verification_algorithms.all,
        bundle.anchors(),
        intermediates,
        x509::unix_time(now),
        key_usage,
        None,
        Some(&check),
    );
    match result {
        Ok(_) => Ok(()),
        Err(error) => Err(refusal
            .take()
            .unwrap_or_else(|| explain(error, leaf, intermediates, bundle))),
    }
}

fn check_path(
    path: &VerifiedPath<'_>,
    bundle: &TrustBundle,
    now: SystemTime,
) -> Result<(), VerifyError> {
    let authority = bundle
        .authority_of(path.anchor())
        .ok_or(VerifyError::Path(webpki::Error::UnknownIssuer))?;
    if !authority.is_valid_at(now) {
        return Err(VerifyError::AuthorityNotValid(
            authority.subject().to_owned(),
        ));
    }
    let depth = path.intermediate_certificates().count();
    let allowed = authority
        .path_length()
        .map_or(usize::MAX, |length| length as usize);
    if depth > allowed {
        return Err(VerifyError::AuthorityPathLength(
            authority.subject().to_owned(),
        ));
    }
    path.intermediate_certificates()
        .try_for_each(|intermediate| {
            check_intermediate(&intermediate.der(), bundle).map_err(|reason| {
                VerifyError::Intermediate {
                    trust_domain: bundle.trust_domain().clone(),
                    reason: reason.to_string(),
                }
            })
        })
}

fn check_intermediate(der: &[u8], bundle: &TrustBundle) -> Result<(), AuthorityError> {
    let certificate = x509::parse(der)?;
    check_authority(&certificate, bundle.trust_domain())?;
    Ok(())
}

/// Puts webpki's verdict in words that say what to do.
fn explain(
    error: webpki::Error,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &TrustBundle,
) -> VerifyError {
    match error {
        webpki::Error::CertExpired { time, not_after } => VerifyError::Expired {
            seconds: time.as_secs().saturating_sub(not_after.as_secs()),
            not_after: x509::system_time_of(not_after),
        },
        webpki::Error::CertNotValidYet { time, not_before } => VerifyError::NotYetValid {
            seconds: not_before.as_secs().saturating_sub(time.as_secs()),
            not_before: x509::system_time_of(not_before),
        },
        webpki::Error::UnknownIssuer => {
            unknown_issuer(intermediates.last().unwrap_or(leaf), bundle)
        }
        other => VerifyError::Path(other),
    }
}

fn unknown_issuer(last: &CertificateDer<'_>, bundle: &TrustBundle) -> VerifyError {
    let trusted: Vec<_> = bundle
        .authorities()
        .iter()
        .map(|authority| format!("'{}'", authority.subject()))
        .collect();
    match x509::parse(last) {
        Ok(certificate) => VerifyError::UnknownIssuer {
            trust_domain: bundle.trust_domain().clone(),
            issuer: x509::readable(certificate.issuer()),
            trusted: trusted.join(", "),
        },
        Err(_) => VerifyError::Malformed(MalformedCertificate::Der),
    }
}
