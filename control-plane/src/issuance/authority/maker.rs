//! The certificates of one step: made or taken, checked, and what of the slots changes by it.

use super::changes::{
    Event, Worked, activate_signing, check_room, deleted, drop_prepared_signing, find, given_root,
    keep, kept_root, moved, put_away, retire, take_offer,
};
use super::plan::Step;
use super::signer::Signer;
use super::slots::{Slot, Slots};
use super::upstream::Offer;
use super::{AuthorityStartError, ROOT_LIFETIME, RootSource, SIGNING_LIFETIME};
use crate::store::{AuthorityChange, AuthorityRole, AuthorityState, Store};
use AuthorityRole::{Root, Signing};
use AuthorityState::{Active, Prepared};
use rustls_pki_types::CertificateDer;
use sidewind_api::duration;
use sidewind_identity::authority::{
    AuthorityLoadError, RootAuthority, SigningAuthority, generate_root,
};
use sidewind_identity::{KeyIds, PrivateKey, TrustBundle, TrustBundles, TrustDomain};
use std::time::{Duration, SystemTime};

/// Makes authorities, or takes them from where they come from.
#[derive(Debug)]
pub(super) struct Maker {
    pub(super) trust_domain: TrustDomain,
    pub(super) store: Store,
    pub(super) source: RootSource,
}

impl Maker {
    /// Works a step out. Nothing is changed yet.
    pub(super) async fn work(
        &self,
        step: &Step,
        slots: &Slots,
        offer: Option<&Offer>,
        now: SystemTime,
    ) -> Result<Worked, AuthorityStartError> {
        match step {
            Step::Begin => self.begin(slots, offer, now).await,
            Step::PrepareRoot => self.prepare_root(slots, now),
            Step::TakeOffer {
                publish,
                return_to_prepared,
                drop,
            } => take_offer(slots, publish, *return_to_prepared, drop, now),
            Step::SettleOffer => Ok(Worked::default()),
            Step::ActivateRoot(id) => {
                self.activate_root(slots, find(slots, *id)?, offer, now)
                    .await
            }
            Step::PrepareSigning => self.prepare_signing(slots, offer, now).await,
            Step::ActivateSigning(id) => Ok(activate_signing(slots, find(slots, *id)?)),
            Step::ReplaceSigning => self.replace_signing(slots, offer, now).await,
            Step::Retire(id) => Ok(retire(slots, find(slots, *id)?)),
            Step::Forget(id) => Ok(Worked {
                changes: vec![deleted(find(slots, *id)?)],
                ..Worked::default()
            }),
        }
    }

    fn prepare_root(&self, slots: &Slots, now: SystemTime) -> Result<Worked, AuthorityStartError> {
        check_room(slots, 1, now)?;
        let root = self.generate_root(now)?;
        let event = Event::new(Root, "prepared", root.key_id());
        Ok(Worked {
            changes: vec![AuthorityChange::Insert(kept_root(&root, Prepared))],
            raises_bundle: true,
            events: vec![event.detail("in the trust bundle from now on")],
        })
    }

    async fn replace_signing(
        &self,
        slots: &Slots,
        offer: Option<&Offer>,
        now: SystemTime,
    ) -> Result<Worked, AuthorityStartError> {
        let root = slots
            .active(Root)
            .ok_or(AuthorityStartError::NothingSigns)?;
        let mut changes = put_away(slots, Signing);
        changes.extend(drop_prepared_signing(slots));
        let (signing, event) = self.new_signing(slots, root, Active, offer, now).await?;
        changes.push(signing);
        Ok(Worked {
            changes,
            raises_bundle: false,
            events: vec![event],
        })
    }

    /// A root and a signing authority where there is nothing yet.
    async fn begin(
        &self,
        slots: &Slots,
        offer: Option<&Offer>,
        now: SystemTime,
    ) -> Result<Worked, AuthorityStartError> {
        let mut changes = Vec::new();
        let (anchor, signing) = match offer {
            None => {
                let root = self.generate_root(now)?;
                changes.push(AuthorityChange::Insert(kept_root(&root, Active)));
                let signing = issue(&root, now)?;
                (root.certificate().clone(), keep(&signing, Active, true))
            }
            Some(offer) => {
                for der in &offer.roots {
                    let state = if *der == offer.anchor {
                        Active
                    } else {
                        Prepared
                    };
                    changes.push(AuthorityChange::Insert(given_root(der, state)?));
                }
                let signing = self
                    .issue_below(&offer.anchor, offer.not_after, now)
                    .await?;
                (
                    offer.anchor.clone(),
                    keep(&signing, Active, offer.signing.is_none()),
                )
            }
        };
        debug_assert!(slots.iter().next().is_none());
        let key_id = KeyIds::of(&anchor)
            .map(|ids| ids.subject)
            .unwrap_or_default();
        changes.push(AuthorityChange::Insert(signing));
        Ok(Worked {
            changes,
            raises_bundle: true,
            events: vec![Event::new(Root, "activated", &key_id).detail("the first")],
        })
    }

    async fn activate_root(
        &self,
        slots: &Slots,
        prepared: &Slot,
        offer: Option<&Offer>,
        now: SystemTime,
    ) -> Result<Worked, AuthorityStartError> {
        let mut changes = put_away(slots, Root);
        changes.push(moved(prepared, Active));
        changes.extend(put_away(slots, Signing));
        changes.extend(drop_prepared_signing(slots));
        let (signing, event) = self
            .new_signing(slots, prepared, Active, offer, now)
            .await?;
        changes.push(signing);
        Ok(Worked {
            changes,
            raises_bundle: false,
            events: vec![Event::new(Root, "activated", &prepared.key_id), event],
        })
    }

    async fn prepare_signing(
        &self,
        slots: &Slots,
        offer: Option<&Offer>,
        now: SystemTime,
    ) -> Result<Worked, AuthorityStartError> {
        let root = slots
            .active(Root)
            .ok_or(AuthorityStartError::NothingSigns)?;
        let (change, event) = self.new_signing(slots, root, Prepared, offer, now).await?;
        Ok(Worked {
            changes: vec![change],
            raises_bundle: false,
            events: vec![event],
        })
    }

    /// A signing authority below a root, as it is to be kept.
    async fn new_signing(
        &self,
        slots: &Slots,
        root: &Slot,
        state: AuthorityState,
        offer: Option<&Offer>,
        now: SystemTime,
    ) -> Result<(AuthorityChange, Event), AuthorityStartError> {
        let signing = match &self.source {
            RootSource::Generated => {
                let key = self.key_of(root, "root").await?;
                let certificate = CertificateDer::from(root.certificate().to_vec());
                let root = RootAuthority::from_der(self.trust_domain.clone(), certificate, key)
                    .map_err(load("root"))?;
                issue(&root, now)?
            }
            RootSource::Upstream(_) => {
                let certificate = CertificateDer::from(root.certificate().to_vec());
                self.issue_below(&certificate, root.not_after, now).await?
            }
        };
        let is_given = offer.is_some_and(|offer| offer.signing.is_some());
        let life = signing.not_after().duration_since(now).unwrap_or_default();
        let step = if state == Active {
            "activated"
        } else {
            "prepared"
        };
        let event = Event::new(Signing, step, signing.key_id())
            .detail(format!("ends in {}", duration::format(life)));
        let known = signing.chain().first().and_then(|der| slots.signing(der));
        let change = match known {
            Some(known) => moved(known, state),
            None => AuthorityChange::Insert(keep(&signing, state, !is_given)),
        };
        Ok((change, event))
    }

    /// What the upstream gives, checked to be below a root as peers would check it.
    async fn issue_below(
        &self,
        root: &CertificateDer<'_>,
        end: SystemTime,
        now: SystemTime,
    ) -> Result<SigningAuthority, AuthorityStartError> {
        let RootSource::Upstream(upstream) = &self.source else {
            return Err(AuthorityStartError::NothingSigns);
        };
        let signing = upstream.issue(lifetime(end, now), now).await?;
        let root = TrustBundle::from_der(self.trust_domain.clone(), 0, vec![root.to_vec()])?;
        signing
            .check(&TrustBundles::from(root), now)
            .map_err(make("signing certificate"))?;
        Ok(signing)
    }

    fn generate_root(&self, now: SystemTime) -> Result<RootAuthority, AuthorityStartError> {
        generate_root(&self.trust_domain, ROOT_LIFETIME, now).map_err(make("root"))
    }

    async fn key_of(
        &self,
        slot: &Slot,
        which: &'static str,
    ) -> Result<PrivateKey, AuthorityStartError> {
        let key = self.store.authority_key(slot.id).await?;
        let key = key.ok_or(AuthorityStartError::NoKey(which))?;
        PrivateKey::from_pkcs8_der(&key)
            .map_err(|source| AuthorityStartError::Key { which, source })
    }

    /// The signing authority of a slot, ready to sign.
    pub(super) async fn signer(
        &self,
        slots: &Slots,
        slot: &Slot,
        now: SystemTime,
    ) -> Result<Signer, AuthorityStartError> {
        let which = "signing certificate";
        let authority = match &self.source {
            RootSource::Upstream(upstream) if !slot.has_key => {
                let authority = upstream.issue(SIGNING_LIFETIME, now).await?;
                let is_it =
                    authority.chain().first().map(AsRef::as_ref) == Some(slot.certificate());
                is_it
                    .then_some(authority)
                    .ok_or(AuthorityStartError::NoKey(which))?
            }
            _ => {
                let key = self.key_of(slot, which).await?;
                SigningAuthority::from_der(self.trust_domain.clone(), slot.chain.clone(), key)
                    .map_err(load(which))?
            }
        };
        Ok(Signer::new(slots, slot, authority))
    }
}

fn load(which: &'static str) -> impl FnOnce(AuthorityLoadError) -> AuthorityStartError {
    move |source| AuthorityStartError::Load { which, source }
}

fn make(
    which: &'static str,
) -> impl FnOnce(sidewind_identity::authority::SignError) -> AuthorityStartError {
    move |source| AuthorityStartError::Make { which, source }
}

fn issue(root: &RootAuthority, now: SystemTime) -> Result<SigningAuthority, AuthorityStartError> {
    root.issue_intermediate(lifetime(root.not_after(), now), now)
        .map_err(make("signing certificate"))
}

/// How long a signing authority may live below a root that ends then.
pub(super) fn lifetime(end: SystemTime, now: SystemTime) -> Duration {
    // Certificates count in whole seconds, so what is left of the root is rounded down.
    let left = end.duration_since(now).unwrap_or_default();
    SIGNING_LIFETIME.min(Duration::from_secs(left.as_secs()))
}
