//! Whether a fetched document takes the place of the present one. Pure: time and both texts come from the caller.

use crate::telemetry::FederationAlarm;
use sidewind_identity::bundle::document::{BundleDocument, DocumentError, Succession};
use sidewind_identity::{TrustBundle, TrustDomain};
use std::time::SystemTime;

/// A fetched document, judged.
#[derive(Debug)]
pub struct Judged {
    /// The document that is to be believed from now on: the fetched one, or the present one.
    pub document: Option<BundleDocument>,
    /// What is to be done.
    pub verdict: Verdict,
    /// What somebody should look into, each with a sentence.
    pub alarms: Vec<(FederationAlarm, String)>,
}

/// What is to be done with a fetched document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It takes the place of the present one.
    Take,
    /// It is the present one.
    Unchanged,
    /// The present one stays, for this reason.
    Refuse(String),
}

/// Judges a document against the present one of its trust domain, and against the bundles of other trust domains, the own
/// one first: no two may share a key, since whoever holds it would speak for both.
///
/// # Errors
/// When the fetched text is no document.
pub fn judge<'a>(
    trust_domain: &TrustDomain,
    fetched: &[u8],
    present: Option<&[u8]>,
    others: impl Iterator<Item = &'a TrustBundle>,
    now: SystemTime,
) -> Result<Judged, DocumentError> {
    let document = BundleDocument::parse(trust_domain.clone(), fetched, now)?;
    let mut alarms: Vec<_> = document
        .findings()
        .iter()
        .filter(|finding| finding.reason.is_alarm())
        .map(|finding| (FederationAlarm::Element, finding.to_string()))
        .collect();
    // Both are read at the same moment, so that a root that has ended meanwhile makes no difference between them.
    let present =
        present.and_then(|text| BundleDocument::parse(trust_domain.clone(), text, now).ok());
    let refused = |present, alarm, reason: String, mut alarms: Vec<_>| {
        alarms.push((alarm, reason.clone()));
        Judged {
            document: present,
            verdict: Verdict::Refuse(reason),
            alarms,
        }
    };
    let mut others = others.filter(|other| other.trust_domain() != trust_domain);
    if let Some(other) = others.find(|other| document.shares_a_key_with(other)) {
        let reason = format!(
            "it has an authority with a key of trust domain {}: one of the two could speak for the other",
            other.trust_domain()
        );
        return Ok(refused(present, FederationAlarm::SharedKey, reason, alarms));
    }
    let Some(present) = present else {
        return Ok(Judged {
            document: Some(document),
            verdict: Verdict::Take,
            alarms,
        });
    };
    let verdict = match document.succeeds(&present) {
        Succession::Accept => Verdict::Take,
        Succession::Unchanged => Verdict::Unchanged,
        Succession::Rollback => {
            let reason = format!(
                "its sequence {} is older than {}, which stays",
                document.sequence(),
                present.sequence()
            );
            return Ok(refused(
                Some(present),
                FederationAlarm::Rollback,
                reason,
                alarms,
            ));
        }
        Succession::SameSequenceOtherContent => {
            let sentence = format!(
                "sequence {} has other keys than before: its publisher does not count, or somebody else publishes",
                document.sequence()
            );
            alarms.push((FederationAlarm::SameSequence, sentence));
            Verdict::Take
        }
    };
    Ok(Judged {
        document: Some(document),
        verdict,
        alarms,
    })
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
