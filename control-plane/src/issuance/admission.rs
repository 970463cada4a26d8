//! Which registration a workload's facts come to.
//!
//! Of the registrations that match, the one with the most conditions decides. Two that are as specific as
//! each other and name different identities decide nothing: that is refused, and both are named.

use super::Refusal;
use crate::attest::{Facts, Pin, Selectors};
use crate::config::{Config, Live, RegistrationRule};
use crate::store::{PinnedFact, Registration};
use sidewind_api::{Reason, ServiceName};
use sidewind_identity::{SpiffeId, TrustDomain};
use std::sync::Arc;
use std::time::Duration;

/// A workload that is let in.
#[derive(Debug)]
pub struct Admitted {
    /// What it may have.
    pub registration: Registration,
    /// What is held to from now on.
    pub pins: Vec<PinnedFact>,
}

/// Decides by the registrations of the configuration.
#[derive(Debug)]
pub struct Admission {
    config: Live,
    trust_domain: TrustDomain,
    /// Lifetime of certificates whose registration says nothing else.
    svid_ttl: Duration,
}

impl Admission {
    /// Decides for a trust domain.
    #[must_use]
    pub fn new(config: Live, trust_domain: TrustDomain, svid_ttl: Duration) -> Self {
        Self {
            config,
            trust_domain,
            svid_ttl,
        }
    }

    /// What the facts come to.
    ///
    /// # Errors
    /// When no registration has them, with what was attested; or when two do, with both.
    pub fn admit(&self, facts: &Facts) -> Result<Admitted, Refusal> {
        let config = self.config.load();
        let (rule, registration) = self.decide(&config, facts.attestor, &facts.selectors)?;
        let named = |pin: &Pin| rule.is_some_and(|rule| rule.names(pin.fact.key()));
        let pins = facts.pins.iter();
        let pins = pins.map(|pin| pin.to_stored(named(pin))).collect();
        Ok(Admitted { registration, pins })
    }

    /// What a registration comes to by the documents of now. Gives back the same one where nothing has
    /// changed. What names its identity itself stays as it is.
    ///
    /// # Errors
    /// When no document allows the identity any more: it has to be attested again.
    pub fn again(&self, registration: &Arc<Registration>) -> Result<Arc<Registration>, Refusal> {
        if registration.document.is_none() {
            return Ok(Arc::clone(registration));
        }
        let config = self.config.load();
        let (attestor, selectors) = (registration.attestor, &registration.selectors);
        let not_any_more = |why: String| {
            let message = format!(
                "{} is not registered any more, attest again: {why}",
                registration.spiffe_id
            );
            Refusal::new(Reason::NotRegistered, message)
        };
        let (_, mut now) = self
            .decide(&config, attestor, selectors)
            .map_err(|refusal| not_any_more(refusal.message))?;
        if now.spiffe_id != registration.spiffe_id {
            let message = format!("registrations give it {} now", now.spiffe_id);
            return Err(not_any_more(message));
        }
        now.id = registration.id.clone();
        if now == **registration {
            return Ok(Arc::clone(registration));
        }
        Ok(Arc::new(now))
    }

    /// The registration, and the rule that it came from unless it is a cluster's default identity.
    fn decide<'a>(
        &self,
        config: &'a Config,
        attestor: &'static str,
        selectors: &Selectors,
    ) -> Result<(Option<&'a RegistrationRule>, Registration), Refusal> {
        let mut matching = config
            .registrations()
            .iter()
            .filter(|rule| rule.matches(attestor, selectors));
        let Some(rule) = matching.next() else {
            let id = self.default_identity(config, attestor, selectors);
            let id = id.ok_or_else(|| unmatched(selectors))?;
            let registration = Registration {
                svid_ttl: self.svid_ttl,
                document: Some("default identities".to_owned()),
                selectors: selectors.clone(),
                ..Registration::new(id, attestor)
            };
            return Ok((None, registration));
        };
        let id = identity(rule, selectors)?;
        // They come with the most conditions first, so those of the same number follow at once.
        for other in matching.take_while(|other| other.conditions.len() == rule.conditions.len()) {
            let other_id = identity(other, selectors)?;
            if other_id != id {
                return Err(tie(rule, &id, other, &other_id, selectors));
            }
        }
        Ok((Some(rule), self.registration(rule, &id, selectors)?))
    }

    fn registration(
        &self,
        rule: &RegistrationRule,
        id: &SpiffeId,
        selectors: &Selectors,
    ) -> Result<Registration, Refusal> {
        let services = rule.services.iter();
        let services = services.map(|template| template.service(selectors));
        let services: Result<Vec<ServiceName>, _> = services.collect();
        let dns_names = rule.dns_names.iter();
        let dns_names = dns_names.map(|template| template.dns_name(selectors));
        let dns_names: Result<Vec<String>, _> = dns_names.collect();
        let failed = |error| cannot_name(rule, &error);
        Ok(Registration {
            svid_ttl: rule.svid_ttl.unwrap_or(self.svid_ttl),
            services: services.map_err(failed)?,
            dns_names: dns_names.map_err(failed)?,
            task_identities: rule.task_identities.clone(),
            jwt_ttl: rule.jwt_ttl,
            federates_with: rule.federates_with.clone(),
            document: Some(rule.name.clone()),
            selectors: selectors.clone(),
            ..Registration::new(id.clone(), rule.attestor)
        })
    }

    /// `/ns/NAMESPACE/sa/SERVICE-ACCOUNT`, where the workload's cluster gives default identities.
    fn default_identity(
        &self,
        config: &Config,
        attestor: &str,
        selectors: &Selectors,
    ) -> Option<SpiffeId> {
        if attestor != "kubernetes" {
            return None;
        }
        let cluster = selectors.only("kubernetes:cluster")?;
        let mut clusters = config.attestors().kubernetes.iter();
        clusters.find(|known| known.default_identities && known.cluster == cluster)?;
        let namespace = selectors.only("kubernetes:namespace")?;
        let account = selectors.only("kubernetes:service-account")?;
        // Kubernetes' names are legal segments and never `.` or `..`; the parser sees to it all the same,
        // and a slash would make another shape.
        if namespace.contains('/') || account.contains('/') {
            return None;
        }
        let path = format!("/ns/{namespace}/sa/{account}");
        SpiffeId::from_parts(&self.trust_domain, &path).ok()
    }
}

fn identity(rule: &RegistrationRule, selectors: &Selectors) -> Result<SpiffeId, Refusal> {
    let id = rule.spiffe_id.expand(selectors);
    id.map_err(|error| cannot_name(rule, &error))
}

fn cannot_name(rule: &RegistrationRule, error: &dyn std::error::Error) -> Refusal {
    let message = format!(
        "Registration {} matches, but cannot name this workload: {error}",
        rule.name
    );
    Refusal::new(Reason::NoRegistrationMatches, message)
}

fn tie(
    rule: &RegistrationRule,
    id: &SpiffeId,
    other: &RegistrationRule,
    other_id: &SpiffeId,
    selectors: &Selectors,
) -> Refusal {
    let message = format!(
        "Registration {} gives {id} and Registration {} gives {other_id}, each with {} conditions; make one of the two more specific. Attested were: {selectors}",
        rule.name,
        other.name,
        rule.conditions.len()
    );
    Refusal::new(Reason::NoRegistrationMatches, message)
}

fn unmatched(selectors: &Selectors) -> Refusal {
    let message = format!("no registration matches. Attested were: {selectors}");
    Refusal::new(Reason::NoRegistrationMatches, message)
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
