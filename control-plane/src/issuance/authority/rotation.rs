//! Steps made, one after the other, until none is due.

use super::changes::{Event, Worked};
use super::commands::Actor;
use super::error::LifetimeError;
use super::maker::{Maker, lifetime};
use super::plan::{Arrival, SHORTEST_LIFE, Source, Step, View};
use super::signer::Signer;
use super::slots::Slots;
use super::upstream::Offer;
use super::{
    AuthorityStartError, CertificateAuthority, Current, Followers, ROTATION_DEADLINE, RootSource,
    Waiting,
};
use crate::issuance::jwt::plan::OVERLAP;
use crate::store::{AuthorityRole, AuthorityState, AuthorityStep, Store};
use crate::telemetry::{Throttle, lasting_fault};
use arc_swap::ArcSwap;
use sidewind_identity::{TrustBundle, TrustDomain};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::Mutex;

/// Proxies are given this long to come back after a start, before a deadline that has passed counts.
const RETURN_TIME: Duration = Duration::from_secs(60);
/// More steps than can be due at once, losses to other processes included.
const MAX_STEPS: usize = 16;

/// What only the one who has the turn uses.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) offer: Option<Arc<Offer>>,
    /// Whether the offer is one that was not acted upon yet.
    offer_is_new: bool,
    /// Everything that may still sign, or has signed what is not noted yet.
    signers: Vec<Arc<Signer>>,
}

impl Turn {
    fn source(&self, source: &RootSource) -> Source<'_> {
        match source {
            RootSource::Generated => Source::Generated,
            RootSource::Upstream(_) => Source::Upstream {
                offer: self.offer.as_deref(),
                is_new: self.offer_is_new,
            },
        }
    }
}

/// Takes the authority up where it was left, or makes it anew.
pub(super) async fn open(
    store: Store,
    trust_domain: TrustDomain,
    source: RootSource,
    now: SystemTime,
) -> Result<CertificateAuthority, AuthorityStartError> {
    let (is_shared, opened) = (store.is_shared(), store.passed(now));
    let maker = Maker {
        trust_domain,
        store,
        source,
    };
    let mut turn = Turn::default();
    let mut slots = maker.slots().await?;
    if let RootSource::Upstream(upstream) = &maker.source {
        let offer = upstream.offer(&maker.trust_domain, now).await?;
        check_offer(&offer, &slots, Duration::ZERO, now)?;
        (turn.offer, turn.offer_is_new) = (Some(offer), true);
    }
    check_root(&maker.source, &slots, now)?;
    for _ in 0..MAX_STEPS {
        let view = View {
            slots: &slots,
            source: turn.source(&maker.source),
            arrival: Arrival::Waiting,
            now,
            // A start forgets nothing.
            passed: SystemTime::UNIX_EPOCH,
            deadline: None,
            overlap: None,
        };
        let Some(step) = view.next() else { break };
        turn.offer_is_new &= step != Step::SettleOffer;
        let worked = maker
            .work(&step, &slots, turn.offer.as_deref(), now)
            .await?;
        maker.write(worked, &slots, &Actor::ITSELF, now).await?;
        slots = maker.slots().await?;
    }
    let active = slots.active(AuthorityRole::Signing);
    let slot = active.ok_or(AuthorityStartError::NothingSigns)?;
    let signer = Arc::new(maker.signer(&slots, slot, now).await?);
    let given = |offer: &Arc<Offer>| given_lifetime(offer, &slots, now);
    let given = turn.offer.as_ref().map_or(Duration::MAX, given);
    turn.signers.push(Arc::clone(&signer));
    let current = Current {
        bundle: Arc::new(maker.bundle(&slots, now)?),
        slots,
        signer,
    };
    Ok(CertificateAuthority {
        maker,
        jwt_keys: ArcSwap::default(),
        is_shared,
        deadline: ROTATION_DEADLINE,
        has_partners: false,
        process: uuid::Uuid::new_v4().to_string(),
        opened,
        current: ArcSwap::from_pointee(current),
        waiting: ArcSwap::default(),
        promised: AtomicU64::new(0),
        given_lifetime: AtomicU64::new(given.as_secs()),
        turn: Mutex::new(turn),
    })
}

/// What the start refuses to begin with.
fn check_root(
    source: &RootSource,
    slots: &Slots,
    now: SystemTime,
) -> Result<(), AuthorityStartError> {
    let Some(active) = slots.active(AuthorityRole::Root) else {
        return Ok(());
    };
    if let RootSource::Generated = source {
        if !active.has_key {
            return Err(AuthorityStartError::RootKeyElsewhere);
        }
        if active.left(now) < SHORTEST_LIFE && slots.prepared(AuthorityRole::Root).is_none() {
            return Err(AuthorityStartError::RootEnded);
        }
    }
    Ok(())
}

/// What is given must be trusted, and live long enough for what was promised.
fn check_offer(
    offer: &Offer,
    slots: &Slots,
    promised: Duration,
    now: SystemTime,
) -> Result<(), AuthorityStartError> {
    let known = slots.root(&offer.anchor);
    let what = match known.map(|root| (root.state, root.tainted)) {
        Some((AuthorityState::Revoked, _)) => Some("revoked"),
        Some((_, true)) => Some("tainted"),
        _ => None,
    };
    if let (Some(root), Some(what)) = (known, what) {
        return Err(AuthorityStartError::Distrusted {
            key_id: root.key_id.clone(),
            what,
        });
    }
    let given = given_lifetime(offer, slots, now);
    Ok(LifetimeError::check(promised, given)?)
}

/// How long signing authorities live below what is given, unless it is in use already.
fn given_lifetime(offer: &Offer, slots: &Slots, now: SystemTime) -> Duration {
    let known = slots.root(&offer.anchor);
    if known.is_some_and(|root| root.state == AuthorityState::Active) {
        return Duration::MAX;
    }
    lifetime(offer.not_after, now)
}

impl Maker {
    pub(super) async fn slots(&self) -> Result<Arc<Slots>, AuthorityStartError> {
        Ok(Arc::new(Slots::read(self.store.authorities().await?)?))
    }

    fn bundle(&self, slots: &Slots, now: SystemTime) -> Result<TrustBundle, AuthorityStartError> {
        let roots = slots.trusted(now).map(|root| root.certificate().to_vec());
        let trust_domain = self.trust_domain.clone();
        Ok(TrustBundle::from_der(
            trust_domain,
            slots.bundle_sequence,
            roots.collect(),
        )?)
    }

    /// Makes a step that was worked out. None: another process was faster.
    pub(super) async fn write(
        &self,
        worked: Worked,
        slots: &Slots,
        actor: &Actor<'_>,
        now: SystemTime,
    ) -> Result<Option<Vec<Event>>, AuthorityStartError> {
        if worked.changes.is_empty() {
            return Ok(Some(worked.events));
        }
        let audit = actor.record(&worked.events, now);
        let step = AuthorityStep {
            version: slots.version,
            changes: worked.changes,
            raises_bundle: worked.raises_bundle,
            audit: audit.as_ref(),
            now,
        };
        if !self.store.change_authorities(step).await? {
            return Ok(None);
        }
        if let Some(audit) = audit {
            audit.log();
        }
        Ok(Some(worked.events))
    }
}

impl CertificateAuthority {
    /// Takes the slots as they are now, and signs by the one that is in use. `true` when anything is another.
    pub(super) async fn read_slots(
        &self,
        turn: &mut Turn,
        now: SystemTime,
    ) -> Result<bool, AuthorityStartError> {
        let present = self.current.load_full();
        let mut slots = self.maker.slots().await?;
        let position = |slots: &Slots| (slots.version, slots.bundle_sequence);
        if position(&slots) != position(&present.slots) {
            // They may be those of an older copy that was restored, in which what was revoked since is trusted.
            self.maker.store.look_for_loss(now).await?;
            slots = self.maker.slots().await?;
        }
        let mut signer = Arc::clone(&present.signer);
        if let Some(slot) = slots.active(AuthorityRole::Signing)
            && slot.id != signer.id
        {
            match self.maker.signer(&slots, slot, now).await {
                Ok(another) => {
                    signer = Arc::new(another);
                    turn.signers.push(Arc::clone(&signer));
                }
                // Of several processes with files, one sees a new pair before the others.
                Err(error) => lasting_fault(
                    "the signing certificate in use is not here yet; the one before signs",
                    &error,
                ),
            }
        }
        let bundle = Arc::new(self.maker.bundle(&slots, now)?);
        let is_another = signer.id != present.signer.id
            || bundle != present.bundle
            || slots.version != present.slots.version;
        self.current.store(Arc::new(Current {
            slots,
            bundle,
            signer,
        }));
        Ok(is_another)
    }

    /// Writes down how long what was signed is good.
    pub(super) async fn note_signed(
        &self,
        turn: &mut Turn,
        now: SystemTime,
    ) -> Result<(), AuthorityStartError> {
        let in_use = self.current.load().signer.id;
        for signer in &turn.signers {
            signer.write(&self.maker.store).await?;
        }
        turn.signers
            .retain(|signer| signer.id == in_use || !signer.has_ended(now));
        Ok(())
    }

    /// Asks the upstream what it has at present.
    pub(super) async fn look_upstream(
        &self,
        turn: &mut Turn,
        now: SystemTime,
    ) -> Result<(), AuthorityStartError> {
        let RootSource::Upstream(upstream) = &self.maker.source else {
            return Ok(());
        };
        let offer = upstream.offer(&self.maker.trust_domain, now).await?;
        if turn
            .offer
            .as_ref()
            .is_some_and(|known| Arc::ptr_eq(known, &offer))
        {
            return Ok(());
        }
        let promised = Duration::from_secs(self.promised.load(Ordering::Relaxed));
        check_offer(&offer, &self.slots(), promised, now)?;
        let given = given_lifetime(&offer, &self.slots(), now).as_secs();
        self.given_lifetime.store(given, Ordering::Relaxed);
        tracing::info!(
            upstream = upstream.name(),
            "another root or signing certificate is given"
        );
        (turn.offer, turn.offer_is_new) = (Some(offer), true);
        Ok(())
    }

    /// Makes every step that is due.
    pub(super) async fn advance(
        &self,
        turn: &mut Turn,
        now: SystemTime,
        followers: &dyn Followers,
    ) -> Result<Vec<Event>, AuthorityStartError> {
        let mut events = Vec::new();
        for _ in 0..MAX_STEPS {
            let slots = self.slots();
            let waiting = self.look_for_laggards(&slots, followers, now).await?;
            let Some(step) = self.view(turn, &slots, &waiting, now).next() else {
                break;
            };
            if step == Step::SettleOffer {
                turn.offer_is_new = false;
                continue;
            }
            let made = self
                .make(turn, &slots, &step, &Actor::ITSELF, &waiting, now)
                .await?;
            self.read_slots(turn, now).await?;
            events.extend(made.into_iter().flatten());
        }
        Ok(events)
    }

    /// Everything that the next step is decided on.
    pub(super) fn view<'a>(
        &'a self,
        turn: &'a Turn,
        slots: &'a Slots,
        waiting: &Waiting,
        now: SystemTime,
    ) -> View<'a> {
        let is_over = waiting.is_over();
        let passed = self.maker.store.passed(now);
        View {
            slots,
            source: turn.source(&self.maker.source),
            arrival: if is_over {
                Arrival::Everywhere
            } else {
                Arrival::Waiting
            },
            now,
            passed,
            deadline: (passed >= self.opened + RETURN_TIME).then_some(self.deadline),
            overlap: self.has_partners.then_some(OVERLAP),
        }
    }

    /// Makes a step. None: another process was faster.
    pub(super) async fn make(
        &self,
        turn: &Turn,
        slots: &Slots,
        step: &Step,
        actor: &Actor<'_>,
        waiting: &Waiting,
        now: SystemTime,
    ) -> Result<Option<Vec<Event>>, AuthorityStartError> {
        let offer = turn.offer.as_deref();
        let mut worked = self.maker.work(step, slots, offer, now).await?;
        if let (Step::ActivateRoot(_), false) = (step, waiting.number == 0) {
            let laggards = waiting.to_string();
            tracing::warn!(
                waiting = waiting.number,
                laggards,
                "a root is activated although proxies have not acknowledged it"
            );
            if let Some(event) = worked.events.first_mut() {
                event.detail = format!("although not acknowledged by {laggards}");
            }
        }
        self.maker.write(worked, slots, actor, now).await
    }

    /// Who has not got the bundle that first had the root that is prepared.
    pub(super) async fn look_for_laggards(
        &self,
        slots: &Slots,
        followers: &dyn Followers,
        now: SystemTime,
    ) -> Result<Waiting, AuthorityStartError> {
        static WAITING: Throttle = Throttle::new();
        let waiting = match slots.prepared(AuthorityRole::Root) {
            None => Waiting::default(),
            Some(prepared) => {
                let sequence = prepared.introduced;
                let here = Waiting::here(followers, &self.maker.trust_domain, sequence);
                let prepared_at = prepared.changed_at;
                let waiting = if self.is_shared {
                    let store = &self.maker.store;
                    here.exchange(store, &self.process, sequence, prepared_at, now)
                        .await?
                } else {
                    here
                };
                if waiting.number > 0
                    && let Some(unsaid) = WAITING.admit("laggards")
                {
                    tracing::info!(
                        waiting = waiting.number,
                        laggards = waiting.to_string(),
                        bundle_sequence = sequence,
                        unsaid,
                        "a prepared root is not acknowledged by every live proxy yet"
                    );
                }
                waiting
            }
        };
        self.waiting.store(Arc::new(waiting.clone()));
        Ok(waiting)
    }
}
