//! Asks the endpoint of one trust domain, for as long as it is configured.

use super::fetch::fetch;
use super::judge::{Judged, Verdict, judge};
use super::relations::{Federation, Present, RefreshError, interval};
use crate::config::federated_trust_domain::read_bootstrap;
use crate::config::{Bootstrap, EndpointProfile, FederatedTrustDomain};
use crate::https::{Server, read_bounded};
use crate::store::{AuditRecord, FederatedBundle, GRANTED, Settlement};
use crate::telemetry::{FederationAlarm, Throttle, chain};
use sidewind_identity::bundle::document::MAX_DOCUMENT_BYTES;
use sidewind_identity::{SpiffeId, TrustBundle, TrustBundles, TrustDomain};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

/// Between the first failure and the next try; doubled with each.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(300);

/// Runs until dropped.
pub(super) async fn run(federation: Weak<Federation>, relation: Arc<FederatedTrustDomain>) {
    let mut failures = 0;
    let mut refused = None;
    loop {
        let Some(federation) = federation.upgrade() else {
            return;
        };
        let outcome = federation.refresh(&relation, &mut refused).await;
        let present = federation.present(&relation.trust_domain);
        let every = interval(Some(&relation), present.as_ref());
        let wait = match &outcome {
            Ok(_) => {
                failures = 0;
                every
            }
            Err(error) => {
                say(&relation.trust_domain, error);
                failures += 1;
                backoff(every, failures)
            }
        };
        federation.note(&relation.trust_domain, &outcome);
        drop(federation);
        tokio::time::sleep(spread(wait)).await;
    }
}

fn say(trust_domain: &TrustDomain, error: &RefreshError) {
    static FAILED: Throttle = Throttle::new();
    if let Some(unsaid) = FAILED.admit("fetch") {
        let error = chain(error);
        tracing::warn!(%trust_domain, error, unsaid, "the bundle of a foreign trust domain is not fetched");
    }
}

/// Several tries fit into one interval, and nobody is asked without a pause.
fn backoff(every: Duration, failures: u32) -> Duration {
    let longest = (every / 4).clamp(FIRST_BACKOFF, LONGEST_BACKOFF);
    let doubled = FIRST_BACKOFF * 2_u32.saturating_pow(failures.saturating_sub(1).min(16));
    doubled.min(longest)
}

/// A moment within the last tenth of a wait, so that replicas that started together do not ask together.
fn spread(wait: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_u128() % 100;
    let part = u32::try_from(random).unwrap_or(0);
    wait - wait / 1000 * part
}

impl Federation {
    /// Fetches the bundle of a trust domain once. `refused` is the sequence that was refused last.
    async fn refresh(
        &self,
        relation: &FederatedTrustDomain,
        refused: &mut Option<Vec<u8>>,
    ) -> Result<Present, RefreshError> {
        let name = relation.trust_domain.as_str();
        let fetched = async {
            let server = self.server(relation).await?;
            Ok::<_, RefreshError>(fetch(relation, &server).await?)
        };
        let result = match fetched.await {
            Ok(document) => self.settle(relation, &document, refused).await,
            Err(error) => Err(error),
        };
        let outcome = match &result {
            Ok((_, outcome)) => outcome,
            Err(RefreshError::Refused(_)) => "refused",
            Err(_) => "failed",
        };
        self.metrics.federation.count_fetch(name, outcome);
        result.map(|(present, _)| present)
    }

    /// Whom the endpoint must prove to be.
    async fn server(&self, relation: &FederatedTrustDomain) -> Result<Server, RefreshError> {
        match &relation.profile {
            EndpointProfile::Web { .. } => Ok(Server::Web),
            EndpointProfile::Spiffe {
                endpoint,
                bootstrap,
            } => {
                let bundle = self
                    .endpoint_bundle(&relation.trust_domain, endpoint, bootstrap.as_ref())
                    .await
                    .map_err(RefreshError::Endpoint)?;
                Ok(Server::Spiffe {
                    expected: endpoint.clone(),
                    bundles: Arc::new(TrustBundles::from(bundle)),
                })
            }
        }
    }

    /// What an endpoint is verified with: the newest bundle of its own trust domain. One that was fetched is never given up
    /// for the bootstrap bundle, which may hold what was taken out since.
    async fn endpoint_bundle(
        &self,
        trust_domain: &TrustDomain,
        endpoint: &SpiffeId,
        bootstrap: Option<&Bootstrap>,
    ) -> Result<TrustBundle, String> {
        let server = endpoint.trust_domain();
        if server == self.authority.trust_domain() {
            return Ok(TrustBundle::clone(&self.authority.bundle()));
        }
        if let Some(present) = self.present(server) {
            let bundle = present.document.x509().clone();
            if bundle.authorities().is_empty() {
                return Err(format!(
                    "the present bundle of {server} distrusts everybody, and so its endpoint; once its operator has told you \
                     the new roots, take the FederatedTrustDomain out, run `sidewind federation forget {server}`, and put it \
                     back with them"
                ));
            }
            return Ok(bundle);
        }
        match bootstrap {
            Some(Bootstrap::Inline(bundle)) => Ok(bundle.clone()),
            Some(Bootstrap::File(path)) => {
                let limit = MAX_DOCUMENT_BYTES as u64;
                let unreadable =
                    |error: &dyn std::fmt::Display| format!("{} {error}", path.display());
                let text = read_bounded(path, limit).await;
                let text = text.map_err(|error| unreadable(&error))?;
                let text = String::from_utf8(text).map_err(|error| unreadable(&error))?;
                read_bootstrap(trust_domain, &text, SystemTime::now())
                    .map_err(|error| unreadable(&error))
            }
            None => Err(format!(
                "there is no bundle of {server} yet to verify {endpoint} with"
            )),
        }
    }

    /// Judges a document against the present one in the store, and keeps it there.
    async fn settle(
        &self,
        relation: &FederatedTrustDomain,
        document: &[u8],
        refused: &mut Option<Vec<u8>>,
    ) -> Result<(Present, &'static str), RefreshError> {
        let now = SystemTime::now();
        let trust_domain = &relation.trust_domain;
        let fetched = FederatedBundle {
            trust_domain: trust_domain.clone(),
            document: document.to_vec(),
            url: relation.url.to_string(),
            taken_at: now,
            confirmed_at: now,
        };
        let own = self.authority.bundle();
        let documents = self.documents();
        let is_news = refused.as_deref() != Some(document);
        let decided = self.store.settle_federated_bundle(&fetched, |stored| {
            let others = documents.iter().map(|document| document.x509());
            let others = std::iter::once(own.as_ref()).chain(others);
            let present = stored.map(|stored| stored.document.as_slice());
            let judged = match judge(trust_domain, document, present, others, now) {
                Ok(judged) => judged,
                Err(error) => return (Settlement::Refuse { audit: None }, Err(error)),
            };
            let settlement = match &judged.verdict {
                Verdict::Unchanged => Settlement::Confirm,
                Verdict::Take => Settlement::Replace {
                    audit: taken(relation, &judged, now),
                },
                Verdict::Refuse(reason) => Settlement::Refuse {
                    audit: is_news.then(|| AuditRecord {
                        outcome: judged
                            .alarms
                            .last()
                            .map_or("refused", |(it, _)| it.as_str()),
                        detail: Some(format!("{trust_domain}: {reason}")),
                        ..record(relation, now)
                    }),
                },
            };
            let taken_at = stored.map(|stored| stored.taken_at);
            (settlement, Ok((judged, taken_at)))
        });
        let (judged, taken_at) = decided.await??;
        let changed = judged.verdict != Verdict::Unchanged;
        for (alarm, sentence) in &judged.alarms {
            // An unchanged document with a bad element is no news.
            if changed || is_news {
                self.alarm(relation, *alarm, sentence);
            }
        }
        let (taken_at, outcome) = match judged.verdict {
            Verdict::Refuse(reason) => {
                *refused = Some(document.to_vec());
                return Err(RefreshError::Refused(reason));
            }
            Verdict::Take => (now, "taken"),
            Verdict::Unchanged => (taken_at.unwrap_or(now), "unchanged"),
        };
        *refused = None;
        let Some(document) = judged.document else {
            return Err(RefreshError::Refused("there is none".to_owned()));
        };
        if outcome == "taken" {
            tracing::info!(
                %trust_domain,
                sequence = document.sequence(),
                x509_authorities = document.x509().authorities().len(),
                jwt_authorities = document.jwt().authorities().len(),
                "a new bundle of a foreign trust domain is in use"
            );
            if document.is_empty() {
                tracing::warn!(
                    %trust_domain,
                    "the bundle is empty: nobody of the trust domain is believed any more"
                );
            }
        }
        let present = Present {
            document: Arc::new(document),
            taken_at,
            confirmed_at: now,
        };
        Ok((present, outcome))
    }

    fn alarm(&self, relation: &FederatedTrustDomain, alarm: FederationAlarm, sentence: &str) {
        static ALARMS: Throttle = Throttle::new();
        let trust_domain = &relation.trust_domain;
        self.metrics
            .federation
            .count_alarm(trust_domain.as_str(), alarm);
        if let Some(unsaid) = ALARMS.admit(alarm.as_str()) {
            tracing::error!(
                %trust_domain,
                url = %relation.url,
                kind = alarm.as_str(),
                problem = sentence,
                unsaid,
                "look into the bundle of a foreign trust domain"
            );
        }
    }
}

/// The record of a document that is taken.
fn taken(relation: &FederatedTrustDomain, judged: &Judged, now: SystemTime) -> AuditRecord {
    let detail = judged.document.as_ref().map(|document| {
        let alarms: Vec<_> = judged
            .alarms
            .iter()
            .map(|(alarm, _)| alarm.as_str())
            .collect();
        let alarms = match alarms.as_slice() {
            [] => String::new(),
            alarms => format!(", alarms: {}", alarms.join(" ")),
        };
        format!(
            "{} sequence {}: {} X.509 and {} JWT authorities{alarms}",
            document.trust_domain(),
            document.sequence(),
            document.x509().authorities().len(),
            document.jwt().authorities().len()
        )
    });
    AuditRecord {
        detail,
        ..record(relation, now)
    }
}

fn record(relation: &FederatedTrustDomain, at: SystemTime) -> AuditRecord {
    AuditRecord {
        at,
        event: "federation-bundle",
        outcome: GRANTED,
        detail: None,
        spiffe_id: None,
        registration: None,
        serial: None,
        not_after: None,
        caller: relation.url.host().to_owned(),
        csr_sha256: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_tries_fit_into_an_interval_and_none_comes_without_a_pause() {
        let seconds = Duration::from_secs;
        for (every, failures, expected) in [
            (seconds(300), 1, seconds(1)),
            (seconds(300), 2, seconds(2)),
            (seconds(300), 7, seconds(64)),
            (seconds(300), 8, seconds(75)),
            (seconds(300), u32::MAX, seconds(75)),
            (seconds(86_400), 30, seconds(300)),
            (seconds(1), 1, seconds(1)),
            (seconds(1), 9, seconds(1)),
        ] {
            assert_eq!(backoff(every, failures), expected, "{every:?} {failures}");
        }
        for _ in 0..100 {
            let wait = spread(seconds(300));
            assert!((seconds(270)..=seconds(300)).contains(&wait), "{wait:?}");
        }
    }
}
