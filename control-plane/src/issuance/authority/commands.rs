//! What people do with the authorities: one step of a rotation, taint, revoke.

use super::changes::{Event, Worked, deleted, moved};
use super::plan::{Step, View};
use super::rotation::Turn;
use super::slots::{Slot, Slots};
use super::{AuthorityStartError, CertificateAuthority, Followers, RootSource, Waiting};
use crate::issuance::Refusal;
use crate::store::{
    AuditRecord, AuthorityChange, AuthorityRole, AuthorityState, GRANTED, unix_seconds,
};
use AuthorityRole::{Root, Signing};
use AuthorityState::{Active, Old, Prepared, Revoked};
use sidewind_api::Reason;
use std::time::SystemTime;

/// Who does something, and what it is, for the audit.
#[derive(Debug, Clone, Copy)]
pub struct Actor<'a> {
    /// `ca-rotate`, `ca-taint` or `ca-revoke`.
    pub event: &'static str,
    /// Who asked.
    pub caller: &'a str,
}

impl Actor<'_> {
    /// The control plane by itself, because it is time.
    pub(super) const ITSELF: Actor<'static> = Actor {
        event: "ca-rotate",
        caller: "the control plane itself",
    };

    /// The record of what was done, or of its refusal.
    #[must_use]
    pub fn audit(&self, outcome: &'static str, detail: String, now: SystemTime) -> AuditRecord {
        AuditRecord {
            at: now,
            event: self.event,
            outcome,
            detail: Some(detail),
            spiffe_id: None,
            registration: None,
            serial: None,
            not_after: None,
            caller: self.caller.to_owned(),
            csr_sha256: None,
        }
    }

    /// The record of what was done; none of what nobody needs to know.
    pub(super) fn record(&self, events: &[Event], now: SystemTime) -> Option<AuditRecord> {
        let sentences: Vec<String> = events.iter().map(ToString::to_string).collect();
        (!sentences.is_empty()).then(|| self.audit(GRANTED, sentences.join("; "), now))
    }
}

/// How a step is to be made.
#[derive(Debug, Clone, Copy, Default)]
pub struct RotateOptions {
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
    /// Activate although proxies have not acknowledged.
    pub force: bool,
}

/// What became of a request for a step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rotation {
    /// What was done or would be, each a sentence.
    pub steps: Vec<String>,
    /// Live proxies that have not acknowledged the prepared root.
    pub laggards: Vec<String>,
    /// Nothing was done, because of them.
    pub is_waiting: bool,
    /// What was done, for metrics.
    pub events: Vec<Event>,
}

impl CertificateAuthority {
    /// Goes one step further: prepares the next authority, or activates the prepared one.
    ///
    /// # Errors
    /// Why there is no such step.
    pub async fn rotate(
        &self,
        role: AuthorityRole,
        options: RotateOptions,
        followers: &dyn Followers,
        actor: &Actor<'_>,
        now: SystemTime,
    ) -> Result<Rotation, Refusal> {
        let mut turn = self.turn.lock().await;
        self.read_slots(&mut turn, now)
            .await
            .map_err(|error| failed(&error))?;
        let slots = self.slots();
        let waiting = self.look_for_laggards(&slots, followers, now).await;
        let waiting = waiting.map_err(|error| failed(&error))?;
        let view = self.view(&turn, &slots, &waiting, now);
        let step = match role {
            Root => self.root_step(&view)?,
            Signing => signing_step(&view)?,
        };
        let mut rotation = Rotation::default();
        if role == Root {
            rotation.laggards.clone_from(&waiting.laggards);
        }
        if let Step::ActivateRoot(id) = step
            && let Some(root) = slots.iter().find(|slot| slot.id == id)
            && !options.force
            && !view.has_arrived(root)
        {
            rotation.is_waiting = true;
            rotation.steps.push(waits(&view, root, &waiting));
            return Ok(rotation);
        }
        if options.dry_run {
            rotation.steps = would(&step, &slots);
            return Ok(rotation);
        }
        let made = self.make(&turn, &slots, &step, actor, &waiting, now).await;
        let made = made.map_err(|error| failed(&error))?;
        self.read_slots(&mut turn, now)
            .await
            .map_err(|error| failed(&error))?;
        rotation.events = made.ok_or_else(somebody_was_faster)?;
        rotation.steps = rotation.events.iter().map(ToString::to_string).collect();
        if step == Step::PrepareRoot {
            rotation.steps.push(
                "give the new trust-bundle.pem to whatever starts proxies, then run this again to sign by the new root"
                    .to_owned(),
            );
        }
        Ok(rotation)
    }

    fn root_step(&self, view: &View<'_>) -> Result<Step, Refusal> {
        if let Some(candidate) = view.candidate() {
            return Ok(Step::ActivateRoot(candidate.id));
        }
        match &self.maker.source {
            RootSource::Generated => Ok(Step::PrepareRoot),
            RootSource::Upstream(upstream) => Err(refused(format!(
                "the root is given by {}: put a new certificate and key there, and they are taken up by themselves within seconds",
                upstream.name()
            ))),
        }
    }

    /// Marks an old authority as not to be relied on: every proxy whose certificate chains through it renews at
    /// once. Gives back how many connected ones that are.
    ///
    /// # Errors
    /// Why it cannot be, and what to do first.
    pub async fn taint(
        &self,
        key_id: &str,
        followers: &dyn Followers,
        actor: &Actor<'_>,
        now: SystemTime,
    ) -> Result<(usize, Vec<Event>), Refusal> {
        let mut turn = self.turn.lock().await;
        self.read_slots(&mut turn, now)
            .await
            .map_err(|error| failed(&error))?;
        let slots = self.slots();
        let found = find(&slots, key_id)?;
        for slot in &found {
            check_taint(slot)?;
        }
        let affected: Vec<String> = found.iter().flat_map(|slot| slots.below(slot)).collect();
        let affected = followers.using(&affected).len();
        let fresh = found.iter().filter(|slot| !slot.tainted);
        let worked = Worked {
            changes: fresh
                .clone()
                .map(|slot| AuthorityChange::Taint { id: slot.id })
                .collect(),
            raises_bundle: false,
            events: fresh
                .map(|slot| {
                    Event::new(slot.role, "tainted", &slot.key_id)
                        .detail(format!("{affected} connected proxies are to renew"))
                })
                .collect(),
        };
        let events = self.write(&mut turn, worked, &slots, actor, now).await?;
        Ok((affected, events))
    }

    /// Takes a root out of the trust bundle for good. Gives back the bundle's sequence.
    ///
    /// # Errors
    /// Why it cannot be, and what to do first.
    pub async fn revoke(
        &self,
        key_id: &str,
        force: bool,
        followers: &dyn Followers,
        actor: &Actor<'_>,
        now: SystemTime,
    ) -> Result<(u64, Vec<Event>), Refusal> {
        let mut turn = self.turn.lock().await;
        // What was signed in the last seconds counts, too.
        self.note_signed(&mut turn, now)
            .await
            .map_err(|error| failed(&error))?;
        self.read_slots(&mut turn, now)
            .await
            .map_err(|error| failed(&error))?;
        let slots = self.slots();
        let found = find(&slots, key_id)?;
        let mut changes = Vec::new();
        let mut events = Vec::new();
        for slot in found {
            check_revoke(slot)?;
            if !force {
                check_unused(&slots, slot, followers, now)?;
            }
            changes.push(moved(slot, Revoked));
            let event = Event::new(Root, "revoked", &slot.key_id);
            events.push(event.detail("not in the trust bundle any more"));
        }
        let below = slots
            .all(Signing, Old)
            .filter(|signing| is_below(signing, key_id));
        changes.extend(below.map(deleted));
        let worked = Worked {
            changes,
            raises_bundle: true,
            events,
        };
        let events = self.write(&mut turn, worked, &slots, actor, now).await?;
        Ok((self.bundle().sequence(), events))
    }

    async fn write(
        &self,
        turn: &mut Turn,
        worked: Worked,
        slots: &Slots,
        actor: &Actor<'_>,
        now: SystemTime,
    ) -> Result<Vec<Event>, Refusal> {
        let written = self.maker.write(worked, slots, actor, now).await;
        let written = written.map_err(|error| failed(&error))?;
        self.read_slots(turn, now)
            .await
            .map_err(|error| failed(&error))?;
        written.ok_or_else(somebody_was_faster)
    }
}

fn signing_step(view: &View<'_>) -> Result<Step, Refusal> {
    if let Some(prepared) = view.slots.prepared(Signing) {
        return Ok(Step::ActivateSigning(prepared.id));
    }
    if view.gives_one_signing() {
        return Err(refused(
            "the signing certificate is given by --root-cert: renew it there, and it is taken up by itself within seconds",
        ));
    }
    if !view.can_issue() {
        return Err(refused(
            "the key of the root in use is not here any more, since another pair is given; the given root is activated first: run `sidewind ca rotate --root`",
        ));
    }
    Ok(Step::PrepareSigning)
}

/// What a step would do.
fn would(step: &Step, slots: &Slots) -> Vec<String> {
    let key_id = |id: &i64| {
        let slot = slots.iter().find(|slot| slot.id == *id);
        slot.map_or("", |slot| slot.key_id.as_str())
    };
    let active = |role| {
        slots
            .active(role)
            .map_or("none", |slot| slot.key_id.as_str())
    };
    let sentence = match step {
        Step::PrepareRoot => format!(
            "would make a root certificate and put it into the trust bundle as sequence {}; it signs nothing before the next step",
            slots.bundle_sequence + 1
        ),
        Step::ActivateRoot(id) => format!(
            "would sign below root certificate {} from now on; {} stays in the trust bundle until what it signed has ended",
            key_id(id),
            active(Root)
        ),
        Step::PrepareSigning => format!(
            "would make a signing certificate below root {}, to be used from the next step on",
            active(Root)
        ),
        Step::ActivateSigning(id) => format!(
            "would sign by signing certificate {} in place of {}",
            key_id(id),
            active(Signing)
        ),
        _ => return Vec::new(),
    };
    vec![sentence]
}

fn waits(view: &View<'_>, root: &Slot, waiting: &Waiting) -> String {
    let Slot {
        key_id, introduced, ..
    } = root;
    let who = match waiting.number {
        0 => "the other processes of the control plane have not said yet whether their proxies have it".to_owned(),
        1 => "1 live proxy has not acknowledged it".to_owned(),
        number => format!("{number} live proxies have not acknowledged it"),
    };
    let until = view.deadline_of(root).map(|deadline| {
        let left = deadline.duration_since(view.now).unwrap_or_default();
        format!(
            ", or wait {} for the deadline",
            sidewind_api::duration::format(left)
        )
    });
    format!(
        "root certificate {key_id} is in the trust bundle since sequence {introduced}, and is not activated: {who}; run this again later, or with --force{}",
        until.unwrap_or_default()
    )
}

/// The authorities with a key.
fn find<'a>(slots: &'a Slots, key_id: &str) -> Result<Vec<&'a Slot>, Refusal> {
    let found: Vec<_> = slots.iter().filter(|slot| slot.key_id == key_id).collect();
    if found.is_empty() {
        let key_id: String = key_id.chars().take(64).collect();
        return Err(refused(format!(
            "no authority has the key id {key_id:?}; `sidewind ca show` lists them"
        )));
    }
    Ok(found)
}

fn check_taint(slot: &Slot) -> Result<(), Refusal> {
    let Slot { role, key_id, .. } = slot;
    let flag = if *role == Root { " --root" } else { "" };
    match slot.state {
        Old => Ok(()),
        Active => Err(refused(format!(
            "{role} certificate {key_id} is the one in use, and only an old one can be tainted; bring another one into use first: `sidewind ca rotate{flag}`, twice"
        ))),
        Prepared => Err(refused(format!(
            "{role} certificate {key_id} is prepared and has signed nothing; {}",
            if *role == Root {
                "to be rid of it, run `sidewind ca revoke` with its key id"
            } else {
                "it goes with the root that it is below: see `sidewind ca rotate --root`"
            }
        ))),
        Revoked => Err(refused(format!(
            "{role} certificate {key_id} is revoked already"
        ))),
    }
}

fn check_revoke(slot: &Slot) -> Result<(), Refusal> {
    let key_id = &slot.key_id;
    match (slot.role, slot.state) {
        (Signing, _) => Err(refused(format!(
            "signing certificate {key_id} is not in the trust bundle, so it can't be taken out; what it signed is believed because of root {}: bring another root into use (`sidewind ca rotate --root`, twice), and revoke that one",
            slot.root_key_id
        ))),
        (Root, Active) => Err(refused(format!(
            "root certificate {key_id} is the one in use; bring another one into use first (`sidewind ca rotate --root`, twice), then taint this one (`sidewind ca taint {key_id}`), and revoke it when nobody uses it any more"
        ))),
        (Root, Revoked) => Err(refused(format!(
            "root certificate {key_id} is revoked already"
        ))),
        (Root, Prepared | Old) => Ok(()),
    }
}

/// Nobody would be cut off.
fn check_unused(
    slots: &Slots,
    slot: &Slot,
    followers: &dyn Followers,
    now: SystemTime,
) -> Result<(), Refusal> {
    let key_id = &slot.key_id;
    let using = followers.using(&slots.below(slot));
    if let Some(first) = using.first() {
        return Err(refused(format!(
            "{} connected proxies have certificates below root {key_id}, {first} among them, and nobody would believe them any more; replace them first (`sidewind ca taint {key_id}`), or give --force",
            using.len()
        )));
    }
    let left = slot.signed_until.duration_since(now).unwrap_or_default();
    if !left.is_zero() {
        return Err(refused(format!(
            "certificates below root {key_id} are good for another {} (until {} in Unix time); those of connected proxies are replaced, so wait for the others to end, or give --force",
            sidewind_api::duration::format(left),
            unix_seconds(slot.signed_until)
        )));
    }
    Ok(())
}

fn is_below(signing: &Slot, root_key_id: &str) -> bool {
    signing.root_key_id == root_key_id
}

fn refused(message: impl Into<String>) -> Refusal {
    Refusal::new(Reason::AuthorityRefused, message)
}

fn somebody_was_faster() -> Refusal {
    refused(
        "another process of the control plane changed the authorities at the same moment, and nothing was done here; look with `sidewind ca show`, and try again",
    )
}

fn failed(error: &AuthorityStartError) -> Refusal {
    match error {
        AuthorityStartError::Store(error) => Refusal::store(error),
        error => refused(crate::telemetry::chain(error)),
    }
}
