//! The certificate authorities at work: looked after every few seconds, changed by the command line, and every
//! change told to proxies, to the trust bundle's file, to metrics and to the audit.

use crate::issuance::Refusal;
use crate::issuance::authority::{
    Actor, AuthorityStartError, CertificateAuthority, Event, RotateOptions, Rotation,
};
use crate::issuance::jwt::{JwtKeys, JwtRotation};
use crate::issuance::own::OwnIdentity;
use crate::registry::Registry;
use crate::store::writer::Writer;
use crate::store::{AuthorityRole, LARGEST_STEP, StateDir, Store};
use crate::telemetry::{Metrics, Throttle, lasting_fault};
use sidewind_api::Reason;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Keeps everything that depends on the authorities up to date.
#[derive(Debug)]
pub(super) struct Authorities {
    pub(super) authority: Arc<CertificateAuthority>,
    pub(super) jwt_keys: Arc<JwtKeys>,
    pub(super) own: Arc<OwnIdentity>,
    pub(super) registry: Arc<Registry>,
    pub(super) state: Arc<StateDir>,
    pub(super) store: Store,
    pub(super) writer: Writer,
    pub(super) metrics: Arc<Metrics>,
    /// What everybody was told of.
    pub(super) published: Mutex<Option<Published>>,
    /// When the sequence was raised for what a proxy said, of late.
    pub(super) followed: Followed,
}

/// What everybody was told of.
#[derive(Debug)]
pub(super) struct Published {
    /// Version of the slots, and sequence of the bundle.
    present: (u64, u64),
    /// Who signed certificates then.
    signers: Vec<String>,
}

/// How often what proxies say raises the trust bundle's sequence: after a restart from an older copy once or twice, as
/// those come back that have seen the latest. A proxy that was broken into can have every other read the bundle again so
/// often, and no more.
const FOLLOWED_AT_ONCE: usize = 3;
const FOLLOWED_WITHIN: Duration = Duration::from_secs(1800);

/// When the sequence was raised for what a proxy said, of late.
#[derive(Debug, Default)]
pub(super) struct Followed(std::sync::Mutex<Vec<Instant>>);

impl Followed {
    fn may_again(&self) -> bool {
        let mut followed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        followed.retain(|at| at.elapsed() < FOLLOWED_WITHIN);
        followed.len() < FOLLOWED_AT_ONCE
    }

    fn note(&self) {
        let mut followed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        followed.push(Instant::now());
    }
}

impl Authorities {
    /// Makes what is due, and tells of it.
    pub(super) async fn maintain(&self, now: SystemTime) {
        match self.authority.maintain(now, self.registry.as_ref()).await {
            Ok(maintenance) => {
                self.count(&maintenance.events);
                self.judge_given(maintenance.refused);
            }
            Err(error) => lasting_fault(
                "the certificate authorities cannot be looked after; those in use stay so",
                &error,
            ),
        }
        self.publish().await;
        if let Err(error) = self.own.maintain(now) {
            lasting_fault("the control plane's own certificate is not renewed", &error);
        }
        self.watch_sequence().await;
        self.measure();
    }

    /// `ca rotate`.
    pub(super) async fn rotate(
        &self,
        role: AuthorityRole,
        options: RotateOptions,
        caller: &str,
    ) -> Result<Rotation, Refusal> {
        let (actor, now) = (actor("ca-rotate", caller), SystemTime::now());
        let registry = self.registry.as_ref();
        let result = self
            .authority
            .rotate(role, options, registry, &actor, now)
            .await;
        if let Ok(rotation) = &result
            && rotation.is_waiting
            && !options.dry_run
        {
            let sentence = rotation.steps.join("; ");
            self.writer
                .audit(actor.audit(Reason::AuthorityRefused.as_str(), sentence, now));
        }
        let events = |rotation: &Rotation| rotation.events.clone();
        self.conclude(result, events, &actor, now).await
    }

    /// `ca taint`: how many connected proxies are to renew.
    pub(super) async fn taint(&self, key_id: &str, caller: &str) -> Result<usize, Refusal> {
        let (actor, now) = (actor("ca-taint", caller), SystemTime::now());
        let registry = self.registry.as_ref();
        let result = self.authority.taint(key_id, registry, &actor, now).await;
        let (affected, _) = self
            .conclude(result, |(_, events)| events.clone(), &actor, now)
            .await?;
        Ok(affected)
    }

    /// `ca revoke`: the bundle's sequence after it.
    pub(super) async fn revoke(
        &self,
        key_id: &str,
        force: bool,
        caller: &str,
    ) -> Result<u64, Refusal> {
        let (actor, now) = (actor("ca-revoke", caller), SystemTime::now());
        let registry = self.registry.as_ref();
        let result = self
            .authority
            .revoke(key_id, force, registry, &actor, now)
            .await;
        let (sequence, _) = self
            .conclude(result, |(_, events)| events.clone(), &actor, now)
            .await?;
        Ok(sequence)
    }

    /// `ca rotate --jwt`.
    pub(super) async fn rotate_jwt(
        &self,
        options: RotateOptions,
        caller: &str,
    ) -> Result<JwtRotation, Refusal> {
        let (actor, now) = (actor("ca-rotate", caller), SystemTime::now());
        let result = self.jwt_keys.rotate(options, &actor, now).await;
        if let Ok(rotation) = &result {
            for step in &rotation.done {
                self.metrics.authority.count_step("jwt", step);
            }
        }
        self.conclude_jwt(result, &actor, now)
    }

    /// `ca taint` of a key of JWT-SVIDs.
    pub(super) async fn taint_jwt(&self, key_id: &str, caller: &str) -> Result<(), Refusal> {
        let (actor, now) = (actor("ca-taint", caller), SystemTime::now());
        let result = self.jwt_keys.taint(key_id, &actor, now).await;
        self.conclude_jwt(result, &actor, now)?;
        self.metrics.authority.count_step("jwt", "tainted");
        Ok(())
    }

    /// `ca revoke` of a key of JWT-SVIDs: the bundle's sequence after it.
    pub(super) async fn revoke_jwt(
        &self,
        key_id: &str,
        force: bool,
        caller: &str,
    ) -> Result<u64, Refusal> {
        let (actor, now) = (actor("ca-revoke", caller), SystemTime::now());
        let result = self.jwt_keys.revoke(key_id, force, &actor, now).await;
        self.conclude_jwt(result, &actor, now)?;
        self.metrics.authority.count_step("jwt", "revoked");
        Ok(self.authority.published_sequence())
    }

    fn conclude_jwt<T>(
        &self,
        result: Result<T, Refusal>,
        actor: &Actor<'_>,
        now: SystemTime,
    ) -> Result<T, Refusal> {
        match &result {
            Ok(_) => self.publish_jwt_keys(),
            Err(refusal) => self.record_refusal(actor, refusal, now),
        }
        result
    }

    /// Tells proxies of the keys of JWT-SVIDs as they are now.
    pub(super) fn publish_jwt_keys(&self) {
        self.authority.set_jwt_keys(self.jwt_keys.published());
        self.registry.set_bundles(self.authority.api_bundles());
    }

    fn record_refusal(&self, actor: &Actor<'_>, refusal: &Refusal, now: SystemTime) {
        let outcome = refusal.reason.as_str();
        self.metrics.count_refused(actor.event, outcome);
        self.writer
            .audit(actor.audit(outcome, refusal.message.clone(), now));
    }

    /// Tells of what was done, or records why not.
    async fn conclude<T>(
        &self,
        result: Result<T, Refusal>,
        events: impl Fn(&T) -> Vec<Event>,
        actor: &Actor<'_>,
        now: SystemTime,
    ) -> Result<T, Refusal> {
        match &result {
            Ok(done) => {
                self.count(&events(done));
                self.publish().await;
                if let Err(error) = self.own.maintain(now) {
                    lasting_fault("the control plane's own certificate is not renewed", &error);
                }
                self.measure();
            }
            Err(refusal) => self.record_refusal(actor, refusal, now),
        }
        result
    }

    /// Tells proxies and the trust bundle's file of what they have not been told.
    pub(super) async fn publish(&self) {
        let mut published = self.published.lock().await;
        let (slots, bundle) = (self.authority.slots(), self.authority.bundle());
        let present = (slots.version, bundle.sequence());
        if published
            .as_ref()
            .is_some_and(|told| told.present == present)
        {
            return;
        }
        self.registry.set_bundles(self.authority.api_bundles());
        self.registry.set_tainted(self.authority.api_tainted());
        // A signing authority goes when all that it has signed has ended, or with a root that is revoked: whoever has that
        // one's key must not go on to hear what the mesh does.
        if let Some(before) = &*published {
            let signers = before.signers.iter();
            let gone = signers.filter(|id| !slots.signers().any(|signer| signer == id.as_str()));
            self.registry.end_using(&gone.cloned().collect::<Vec<_>>());
        }
        match self.state.write_trust_bundle(&bundle.to_pem()) {
            Ok(()) => {
                *published = Some(Published {
                    present,
                    signers: slots.signers().map(str::to_owned).collect(),
                });
            }
            // Tried again at the next look.
            Err(error) => lasting_fault("the trust bundle's file is old", &error),
        }
    }

    fn judge_given(&self, refused: Option<AuthorityStartError>) {
        if !self.authority.is_given() {
            return;
        }
        self.metrics.authority.count_given(refused.is_none());
        if let Some(error) = refused {
            lasting_fault(
                "the root or signing certificate that is given is not taken; the one before stays in use",
                &error,
            );
        }
    }

    /// A store that is older than what proxies have seen was restored from a copy.
    async fn watch_sequence(&self) {
        static BEHIND: Throttle = Throttle::new();
        let own = self.authority.published_sequence();
        // One that claims more than there can be must not hide what the others have.
        let credible = own.saturating_add(LARGEST_STEP);
        let latest = self
            .registry
            .latest_acknowledged(self.authority.trust_domain(), credible);
        let Some(latest) = latest.filter(|latest| *latest > own) else {
            return;
        };
        // A copy that signs by what was distrusted must not be brought to them by a higher number.
        if let Err(error) = self.store.look_for_loss(SystemTime::now()).await {
            lasting_fault("the trust bundle's sequence cannot be raised", &error);
            return;
        }
        if !self.followed.may_again() {
            return;
        }
        match self.store.follow_acknowledged(latest).await {
            Ok(true) => self.followed.note(),
            Ok(false) => {}
            Err(error) => lasting_fault("the trust bundle's sequence cannot be raised", &error),
        }
        if let Some(unsaid) = BEHIND.admit("sequence") {
            tracing::error!(
                own,
                latest,
                unsaid,
                "proxies have a later trust bundle than the store: was it restored from an older copy? \
                 The sequence is raised past theirs, since they take no older one"
            );
        }
    }

    pub(super) fn measure(&self) {
        let (root, signing) = self.authority.ends();
        self.metrics.set_certificate_expiry("root", root);
        self.metrics.set_certificate_expiry("signing", signing);
        let slots = self.authority.slots();
        let metrics = &self.metrics.authority;
        metrics.set_expiries(
            slots
                .iter()
                .map(|slot| (slot.role.as_str(), slot.state.as_str(), slot.not_after)),
        );
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        metrics.bundle_sequence.set(number(slots.bundle_sequence));
        metrics
            .laggards
            .set(number(self.authority.waiting().number as u64));
    }

    fn count(&self, events: &[Event]) {
        for event in events {
            self.metrics
                .authority
                .count_step(event.role.as_str(), event.step);
        }
    }
}

fn actor<'a>(event: &'static str, caller: &'a str) -> Actor<'a> {
    Actor { event, caller }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_proxies_say_is_followed_a_few_times_and_then_once_in_a_while() {
        let followed = Followed::default();
        for _ in 0..FOLLOWED_AT_ONCE {
            assert!(followed.may_again());
            followed.note();
        }
        assert!(!followed.may_again());
        tokio::time::advance(FOLLOWED_WITHIN).await;
        assert!(followed.may_again());
    }
}
