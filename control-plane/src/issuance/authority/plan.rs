//! What is to be done next with the authorities: decided from what is seen, with nothing done.
//!
//! A root is *prepared* when it enters the trust bundle, *active* once it signs, *old* when another does, and it
//! *retires* from the bundle when everything below it has ended. A signing authority has the first three: nobody
//! needs to know it beforehand, since its certificate travels in the chain.

use super::slots::{Slot, Slots, validity};
use super::upstream::Offer;
use super::{REPLACED_AT_PART, SIGNING_LIFETIME};
use crate::store::{AuthorityRole, AuthorityState};
use rustls_pki_types::CertificateDer;
use sidewind_identity::authority::MAX_SVID_TTL;
use std::time::{Duration, SystemTime};

/// A prepared root that is generated is made this long before its predecessor's end, or at half its life.
const ROOT_PREPARED_BEFORE: Duration = Duration::from_secs(180 * 86_400);
/// A generated root takes over this long before its predecessor's end, or when a sixth is left.
const ROOT_ACTIVATED_BEFORE: Duration = Duration::from_secs(90 * 86_400);
/// Nothing is signed by what ends sooner.
pub(super) const SHORTEST_LIFE: Duration = Duration::from_secs(300);
/// What is not worth it: a successor that lives less than this longer.
const LEAST_GAIN: Duration = Duration::from_secs(60);
/// Clocks differ, and what was signed in the last moments before a crash was not noted.
const RETIREMENT_MARGIN: Duration = Duration::from_secs(600);

/// Where new authorities come from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    /// Roots are generated, and their keys are in the store.
    Generated,
    /// An upstream gives them.
    Upstream {
        /// What it has; none when it could not be asked yet.
        offer: Option<&'a Offer>,
        /// Whether this process has not acted upon it yet.
        is_new: bool,
    },
}

/// Whether the trust bundle that has a prepared root has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Every live proxy has it.
    Everywhere,
    /// Some have not said so.
    Waiting,
}

/// Everything that is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) slots: &'a Slots,
    pub(super) source: Source<'a>,
    pub(super) arrival: Arrival,
    pub(super) now: SystemTime,
    /// The time that has surely passed: what a clock that jumped says of it must neither end a wait nor make anything
    /// forgotten.
    pub(super) passed: SystemTime,
    /// How long a prepared root waits for proxies; none: for as long as it takes.
    pub(super) deadline: Option<Duration>,
    /// How long it takes until partners have the bundle as well; none where it is served to none.
    pub(super) overlap: Option<Duration>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Make everything: there is nothing yet.
    Begin,
    /// Make a root and publish it.
    PrepareRoot,
    /// Publish the roots of the offer that are not known, and drop what it no longer has and nothing came of.
    TakeOffer {
        publish: Vec<CertificateDer<'static>>,
        return_to_prepared: Option<i64>,
        drop: Vec<i64>,
    },
    /// Nothing of the offer is new.
    SettleOffer,
    /// Sign by a prepared root.
    ActivateRoot(i64),
    /// Make a signing authority, to be used later.
    PrepareSigning,
    /// Use the prepared signing authority.
    ActivateSigning(i64),
    /// Make a signing authority and use it at once, or take the one that the upstream has.
    ReplaceSigning,
    /// Take a root out of the trust bundle.
    Retire(i64),
    /// Forget an authority that is not in the trust bundle.
    Forget(i64),
}

impl View<'_> {
    /// The next step, if there is one to make by itself.
    pub(super) fn next(&self) -> Option<Step> {
        if self.slots.iter().next().is_none() {
            return Some(Step::Begin);
        }
        self.offer()
            .or_else(|| self.root_activation())
            .or_else(|| self.root_preparation())
            .or_else(|| self.signing())
            .or_else(|| self.end())
    }

    fn offer(&self) -> Option<Step> {
        let Source::Upstream {
            offer: Some(offer),
            is_new: true,
        } = self.source
        else {
            return None;
        };
        let root = |der: &CertificateDer<'_>| self.slots.root(der);
        let publish: Vec<_> = offer
            .roots
            .iter()
            .filter(|der| root(der).is_none() && self.is_living(der))
            .cloned()
            .collect();
        let anchor = root(&offer.anchor);
        let is_old = |slot: &&Slot| slot.state == AuthorityState::Old && !slot.tainted;
        let return_to_prepared = anchor.filter(is_old).map(|anchor| anchor.id);
        let prepared = self
            .slots
            .all(AuthorityRole::Root, AuthorityState::Prepared);
        let drop: Vec<_> = prepared
            .filter(|slot| {
                !offer
                    .roots
                    .iter()
                    .any(|der| slot.certificate() == der.as_ref())
            })
            .map(|slot| slot.id)
            .collect();
        if publish.is_empty() && return_to_prepared.is_none() && drop.is_empty() {
            return Some(Step::SettleOffer);
        }
        Some(Step::TakeOffer {
            publish,
            return_to_prepared,
            drop,
        })
    }

    /// Whether a certificate has not ended: one that has is not worth a place in the bundle.
    fn is_living(&self, der: &CertificateDer<'_>) -> bool {
        validity(der).is_none_or(|(_, not_after)| not_after >= self.now)
    }

    /// The prepared root that this process could sign by.
    pub(super) fn candidate(&self) -> Option<&Slot> {
        match self.source {
            Source::Generated => {
                let mut prepared = self
                    .slots
                    .all(AuthorityRole::Root, AuthorityState::Prepared);
                prepared.rfind(|root| root.has_key)
            }
            Source::Upstream { offer, .. } => {
                let anchor = self.slots.root(&offer?.anchor)?;
                (anchor.state == AuthorityState::Prepared).then_some(anchor)
            }
        }
    }

    /// When a prepared root takes over although proxies have not got it.
    pub(super) fn deadline_of(&self, root: &Slot) -> Option<SystemTime> {
        root.changed_at.checked_add(self.deadline?)
    }

    /// Whether a prepared root may sign: every live proxy knows it, or has had its time.
    pub(super) fn has_arrived(&self, root: &Slot) -> bool {
        let is_over = |deadline| self.passed >= deadline;
        self.arrival == Arrival::Everywhere || self.deadline_of(root).is_some_and(is_over)
    }

    /// Whether partners, who fetch the bundle and acknowledge nothing, have had the time to.
    fn is_known_to_partners(&self, root: &Slot) -> bool {
        self.overlap.is_none_or(|overlap| {
            let published = self.passed.duration_since(root.changed_at);
            published.is_ok_and(|published| published >= overlap)
        })
    }

    fn root_activation(&self) -> Option<Step> {
        let candidate = self.candidate()?;
        let nothing_signs = self.usable_signing().is_none() && !self.can_issue();
        let is_due = match self.source {
            // Its owner has put it there to be used.
            Source::Upstream { .. } => self.is_known_to_partners(candidate),
            Source::Generated => self.slots.active(AuthorityRole::Root).is_none_or(|active| {
                let sixth = active.lifetime() / REPLACED_AT_PART;
                active.left(self.now) <= sixth.min(ROOT_ACTIVATED_BEFORE)
            }),
        };
        (nothing_signs || (is_due && self.has_arrived(candidate)))
            .then_some(Step::ActivateRoot(candidate.id))
    }

    fn root_preparation(&self) -> Option<Step> {
        let Source::Generated = self.source else {
            return None;
        };
        let active = self.slots.active(AuthorityRole::Root)?;
        let half = active.lifetime() / 2;
        let is_due = active.left(self.now) <= half.min(ROOT_PREPARED_BEFORE);
        let none = self.slots.prepared(AuthorityRole::Root).is_none();
        (is_due && none).then_some(Step::PrepareRoot)
    }

    /// The signing authority in use, unless it has ended.
    fn usable_signing(&self) -> Option<&Slot> {
        let active = self.slots.active(AuthorityRole::Signing)?;
        (active.not_after > self.now).then_some(active)
    }

    fn signing(&self) -> Option<Step> {
        let Some(active) = self.usable_signing() else {
            return self.can_issue().then_some(Step::ReplaceSigning);
        };
        if let Some(given) = self.given_signing() {
            // It is renewed where it comes from.
            let is_another = active.certificate() != given.as_ref();
            return (is_another && self.can_issue()).then_some(Step::ReplaceSigning);
        }
        let left = active.left(self.now);
        let (half, sixth) = (active.lifetime() / 2, active.lifetime() / REPLACED_AT_PART);
        match self.slots.prepared(AuthorityRole::Signing) {
            Some(prepared) => (left <= sixth).then_some(Step::ActivateSigning(prepared.id)),
            None => {
                let least = if left <= sixth { LEAST_GAIN } else { sixth };
                let gains = self.successor_end()? >= active.not_after + least;
                (left <= half && gains).then_some(Step::PrepareSigning)
            }
        }
    }

    /// The one signing authority that the upstream has, where it makes none on demand.
    fn given_signing(&self) -> Option<&CertificateDer<'static>> {
        match self.source {
            Source::Upstream { offer, .. } => offer?.signing.as_ref(),
            Source::Generated => None,
        }
    }

    /// Whether signing authorities are given and not made on demand.
    pub(super) fn gives_one_signing(&self) -> bool {
        self.given_signing().is_some()
    }

    /// Whether this process can make signing authorities below the active root.
    pub(super) fn can_issue(&self) -> bool {
        let Some(active) = self.slots.active(AuthorityRole::Root) else {
            return false;
        };
        if active.left(self.now) < SHORTEST_LIFE {
            return false;
        }
        match self.source {
            Source::Generated => active.has_key,
            Source::Upstream { offer, .. } => {
                offer.is_some_and(|offer| active.certificate() == offer.anchor.as_ref())
            }
        }
    }

    /// When a signing authority that were made now would end.
    fn successor_end(&self) -> Option<SystemTime> {
        if !self.can_issue() {
            return None;
        }
        let root = self.slots.active(AuthorityRole::Root)?;
        Some(root.not_after.min(self.now + SIGNING_LIFETIME))
    }

    fn end(&self) -> Option<Step> {
        let offered = |slot: &Slot| match self.source {
            Source::Upstream { offer, .. } => offer.is_none_or(|offer| {
                offer
                    .roots
                    .iter()
                    .any(|der| slot.certificate() == der.as_ref())
            }),
            Source::Generated => false,
        };
        self.slots.iter().find_map(|slot| {
            let has_ended = slot.not_after < self.passed;
            let is_done = has_ended || self.passed > last_use(slot);
            match (slot.role, slot.state) {
                (_, AuthorityState::Active) => None,
                (AuthorityRole::Root, AuthorityState::Revoked) => {
                    has_ended.then_some(Step::Forget(slot.id))
                }
                (AuthorityRole::Root, AuthorityState::Prepared) => {
                    has_ended.then_some(Step::Retire(slot.id))
                }
                (AuthorityRole::Root, AuthorityState::Old) => {
                    let retires = has_ended || (is_done && !offered(slot));
                    retires.then_some(Step::Retire(slot.id))
                }
                (AuthorityRole::Signing, AuthorityState::Prepared) => {
                    has_ended.then_some(Step::Forget(slot.id))
                }
                (AuthorityRole::Signing, _) => is_done.then_some(Step::Forget(slot.id)),
            }
        })
    }
}

/// When the last SVID below an authority that signs no more has ended for sure. What a process signed that could not
/// note it lives a day at most.
fn last_use(slot: &Slot) -> SystemTime {
    (slot.changed_at + MAX_SVID_TTL).max(slot.signed_until) + RETIREMENT_MARGIN
}
