//! What of the slots changes by a step, and what is said of it.

use super::AuthorityStartError;
use super::slots::{Slot, Slots, validity};
use crate::store::{AuthorityChange, AuthorityRole, AuthorityState, NewAuthority, StoreError};
use AuthorityRole::{Root, Signing};
use AuthorityState::{Active, Old, Prepared};
use rustls_pki_types::CertificateDer;
use sidewind_identity::authority::{RootAuthority, SigningAuthority};
use sidewind_identity::{KeyIds, MAX_AUTHORITIES};
use std::fmt;
use std::time::SystemTime;

/// Something that was done with an authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Whose step it is.
    pub role: AuthorityRole,
    /// `prepared`, `activated`, `retired`, `tainted` or `revoked`.
    pub step: &'static str,
    /// Key identifier of the authority.
    pub key_id: String,
    /// What there is to know beside; may be empty.
    pub detail: String,
}

impl Event {
    pub(super) fn new(role: AuthorityRole, step: &'static str, key_id: &str) -> Self {
        Self {
            role,
            step,
            key_id: key_id.to_owned(),
            detail: String::new(),
        }
    }

    pub(super) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (step, role, key_id) = (self.step, self.role, &self.key_id);
        write!(f, "{step} {role} certificate {key_id}")?;
        if self.detail.is_empty() {
            return Ok(());
        }
        write!(f, " ({})", self.detail)
    }
}

/// A step worked out: what changes, and what to say of it.
#[derive(Debug, Default)]
pub(super) struct Worked {
    pub(super) changes: Vec<AuthorityChange>,
    pub(super) raises_bundle: bool,
    pub(super) events: Vec<Event>,
}

pub(super) fn find(slots: &Slots, id: i64) -> Result<&Slot, AuthorityStartError> {
    let corrupt = || StoreError::Corrupt {
        what: "certificate authority",
        why: format!("number {id} is not there"),
    };
    let found = slots.iter().find(|slot| slot.id == id);
    Ok(found.ok_or_else(corrupt)?)
}

pub(super) fn check_room(
    slots: &Slots,
    more: usize,
    now: SystemTime,
) -> Result<(), AuthorityStartError> {
    let present = slots.trusted(now).count();
    if present + more > MAX_AUTHORITIES {
        return Err(AuthorityStartError::BundleFull(present));
    }
    Ok(())
}

pub(super) fn take_offer(
    slots: &Slots,
    publish: &[CertificateDer<'static>],
    return_to_prepared: Option<i64>,
    drop: &[i64],
    now: SystemTime,
) -> Result<Worked, AuthorityStartError> {
    check_room(slots, publish.len().saturating_sub(drop.len()), now)?;
    let mut worked = Worked {
        changes: Vec::new(),
        raises_bundle: !publish.is_empty() || !drop.is_empty(),
        events: Vec::new(),
    };
    for id in drop {
        let slot = find(slots, *id)?;
        worked.changes.push(deleted(slot));
        let event = Event::new(Root, "retired", &slot.key_id);
        worked
            .events
            .push(event.detail("not given any more, and nothing was signed below it"));
    }
    for der in publish {
        let ids = KeyIds::of(der).map_err(|_| unreadable())?;
        worked
            .changes
            .push(AuthorityChange::Insert(given_root(der, Prepared)?));
        let event = Event::new(Root, "prepared", &ids.subject);
        worked
            .events
            .push(event.detail("given, and in the trust bundle from now on"));
    }
    if let Some(id) = return_to_prepared {
        let slot = find(slots, id)?;
        worked.changes.push(moved(slot, Prepared));
        let event = Event::new(Root, "prepared", &slot.key_id);
        worked.events.push(event.detail("given again"));
    }
    Ok(worked)
}

/// The one in use is so no more.
pub(super) fn put_away(slots: &Slots, role: AuthorityRole) -> Vec<AuthorityChange> {
    slots
        .active(role)
        .map(|active| moved(active, Old))
        .into_iter()
        .collect()
}

pub(super) fn drop_prepared_signing(slots: &Slots) -> impl Iterator<Item = AuthorityChange> {
    slots.all(Signing, Prepared).map(deleted)
}

pub(super) fn moved(slot: &Slot, to: AuthorityState) -> AuthorityChange {
    AuthorityChange::Move {
        id: slot.id,
        from: slot.state,
        to,
    }
}

pub(super) fn deleted(slot: &Slot) -> AuthorityChange {
    AuthorityChange::Delete {
        id: slot.id,
        state: slot.state,
    }
}

pub(super) fn kept_root(root: &RootAuthority, state: AuthorityState) -> NewAuthority {
    NewAuthority {
        role: Root,
        state,
        certificate: root.certificate().to_vec(),
        intermediates: Vec::new(),
        private_key: Some(root.key().to_pkcs8_der()),
        not_after: root.not_after(),
    }
}

pub(super) fn given_root(
    der: &CertificateDer<'_>,
    state: AuthorityState,
) -> Result<NewAuthority, AuthorityStartError> {
    let (_, not_after) = validity(der).ok_or_else(unreadable)?;
    Ok(NewAuthority {
        role: Root,
        state,
        certificate: der.to_vec(),
        intermediates: Vec::new(),
        private_key: None,
        not_after,
    })
}

fn unreadable() -> StoreError {
    StoreError::Corrupt {
        what: "certificate that is given",
        why: "it cannot be read".to_owned(),
    }
}

pub(super) fn keep(
    signing: &SigningAuthority,
    state: AuthorityState,
    with_key: bool,
) -> NewAuthority {
    let mut chain = signing.chain().iter();
    NewAuthority {
        role: Signing,
        state,
        certificate: chain.next().map(|der| der.to_vec()).unwrap_or_default(),
        intermediates: chain.flat_map(|der| der.to_vec()).collect(),
        private_key: with_key.then(|| signing.key().to_pkcs8_der()),
        not_after: signing.not_after(),
    }
}

/// The prepared signing authority in the place of the one in use.
pub(super) fn activate_signing(slots: &Slots, prepared: &Slot) -> Worked {
    let mut changes = put_away(slots, Signing);
    changes.push(moved(prepared, Active));
    Worked {
        changes,
        raises_bundle: false,
        events: vec![Event::new(Signing, "activated", &prepared.key_id)],
    }
}

/// A root leaves the bundle, and with it what is left of the signing authorities below it.
pub(super) fn retire(slots: &Slots, root: &Slot) -> Worked {
    let shares_key = slots
        .iter()
        .any(|other| other.role == Root && other.id != root.id && other.key_id == root.key_id);
    let below = slots.iter().filter(|signing| {
        !shares_key
            && signing.role == Signing
            && signing.state != Active
            && signing.root_key_id == root.key_id
    });
    let event = Event::new(Root, "retired", &root.key_id);
    Worked {
        changes: std::iter::once(deleted(root))
            .chain(below.map(deleted))
            .collect(),
        raises_bundle: true,
        events: vec![event.detail("not in the trust bundle any more")],
    }
}
