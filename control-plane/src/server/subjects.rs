//! How often what was attested may be attested again, and how much is signed for it.
//!
//! Calls are counted by registration after authentication, and each attestation makes another registration. Whoever has
//! stolen what a workload proves itself by could attest again and again, from as many addresses as it likes, and have as
//! many certificates for each. So what was attested is counted as well: all that the attestor found out, which is the same
//! each time. Many proxies may share it (each task of an AWS role does, as pods do not), so that the bounds are those of
//! many: as many attestations as one address may make, and a third of what a control plane signs. A join token is used
//! once, and its proxy is one.

use super::limits::{Buckets, Limits};
use crate::store::Registration;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// How many registrations' worth of certificates may be signed for one subject.
const REGISTRATIONS: f64 = 10.0;

/// Who was attested, by a hash that nobody outside can foresee.
#[derive(Debug)]
pub(super) struct Subjects {
    hasher: RandomState,
    attest: Buckets<u64>,
    sign: Buckets<u64>,
}

impl Subjects {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            hasher: RandomState::new(),
            attest: Buckets::new(f64::from(limits.attest_per_second.get())),
            sign: Buckets::new(f64::from(limits.sign_per_second.get()) * REGISTRATIONS),
        }
    }

    /// Takes a token for an attestation that has this result.
    ///
    /// # Errors
    /// How long it takes until there is one.
    pub(super) fn attest(&self, registration: &Registration) -> Result<(), Duration> {
        match self.of(registration) {
            Some(subject) => self.attest.take(subject),
            None => Ok(()),
        }
    }

    /// Takes a token for a certificate of a registration.
    ///
    /// # Errors
    /// How long it takes until there is one.
    pub(super) fn sign(&self, registration: &Registration) -> Result<(), Duration> {
        match self.of(registration) {
            Some(subject) => self.sign.take(subject),
            None => Ok(()),
        }
    }

    /// None for what is attested once.
    fn of(&self, registration: &Registration) -> Option<u64> {
        let attested = (registration.attestor, &registration.selectors);
        let again = registration.document.is_some();
        again.then(|| self.hasher.hash_one(attested))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sidewind_identity::SpiffeId;

    fn attested(attestor: &'static str, selectors: &[(&str, &str)]) -> Registration {
        let id = SpiffeId::parse("spiffe://example.org/x").unwrap();
        let selectors = selectors.iter();
        let selectors = selectors.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Registration {
            document: Some("data/x".to_owned()),
            selectors: selectors.collect(),
            ..Registration::new(id, attestor)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_attested_again_and_again_is_bounded_whatever_registrations_come_of_it() {
        let limits = Limits {
            attest_per_second: 2.try_into().unwrap(),
            sign_per_second: 1.try_into().unwrap(),
        };
        let subjects = Subjects::new(limits);
        let role = [("aws-iam:account", "1"), ("aws-iam:role", "worker")];
        let new = || attested("aws-iam", &role);
        assert_ne!(new().id, new().id);
        let times = |act: &dyn Fn() -> bool| (0..200).filter(|_| act()).count();
        assert_eq!(times(&|| subjects.attest(&new()).is_ok()), 10);
        assert_eq!(times(&|| subjects.sign(&new()).is_ok()), 50);
        assert_eq!(subjects.attest(&new()), Err(Duration::from_millis(500)));
        // Others are not held up by it, and what is used once is bounded by that.
        for other in [
            attested("oidc", &role),
            attested("aws-iam", &[role[0], ("aws-iam:role", "web")]),
        ] {
            assert_eq!(subjects.attest(&other), Ok(()));
        }
        let token = Registration {
            document: None,
            ..new()
        };
        assert_eq!(times(&|| subjects.attest(&token).is_ok()), 200);
    }
}
