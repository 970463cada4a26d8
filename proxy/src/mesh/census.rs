//! Who is at the other ends of this worker's mesh connections, and for how long they may stay.
//!
//! A handshake proves once who a peer is, and a connection may outlive the proof. So every connection has a seat
//! here until it ends, and [`Census::review`] goes through them:
//!
//! - Whoever is banned, or whom nobody vouches for any more that is believed, is cut off at once.
//! - Whose certificate has ended is asked to go, and cut off after [`GRACE`], unless it has proved itself since: by
//!   another handshake between the same two, with a certificate that ends later.
//!
//! A tunnel to a database may live for days, and must not break because a certificate was renewed. Therefore the
//! side that dialled makes such a handshake while both certificates are still good ([`Review::due`]).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, SystemTime};

use sidewind_api::BanList;
use sidewind_identity::{PeerIdentity, SpiffeId};
use tokio::sync::watch;

use super::client::ConnectionState;
use super::vouching::Shown;
use crate::control::MeshIdentity;

/// How long a connection whose peer's certificate has ended may finish what it does.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// The dialling side proves itself again when this part of the time is left.
const PROVEN_AT_PART: u32 = 10;

/// The shortest time between two tries to do so.
const SHORTEST_RETRY: Duration = Duration::from_secs(1);

/// Most peers whose last proof is remembered, a few KiB each. Who is not remembered is cut off at the end of its
/// certificate.
const MAX_PROOFS: usize = 16_384;

/// Until when peers have proved who they are, and by which certificate. Shared by all workers: a peer's next connection may reach another.
/// Locked at handshakes and at the ends of certificates alone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Proofs(Arc<Mutex<HashMap<(SpiffeId, IpAddr), Proof>>>);

/// The certificate of a peer that ends last.
#[derive(Debug, Clone)]
struct Proof {
    until: SystemTime,
    serial_hex: Arc<str>,
    shown: Shown,
}

impl Proofs {
    fn note(&self, peer: &PeerIdentity, shown: &Shown, address: IpAddr) {
        let mut proofs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if proofs.len() >= MAX_PROOFS {
            let now = SystemTime::now();
            proofs.retain(|_, proof| proof.until >= now);
        }
        if proofs.len() >= MAX_PROOFS {
            return;
        }
        let key = (peer.id.clone(), address);
        if proofs
            .get(&key)
            .is_none_or(|known| known.until < peer.not_after)
        {
            let proof = Proof {
                until: peer.not_after,
                serial_hex: peer.serial_hex.as_str().into(),
                shown: shown.clone(),
            };
            proofs.insert(key, proof);
        }
    }

    fn of(&self, id: &SpiffeId, address: IpAddr) -> Option<Proof> {
        let proofs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        proofs.get(&(id.clone(), address)).cloned()
    }
}

/// How a connection's peer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It may stay.
    Good,
    /// Its certificate has ended: no new streams.
    Ending,
    /// It is banned: the connection ends now.
    Banned,
    /// Nobody who is believed vouches for it any more: the connection ends now.
    Distrusted,
    /// Its certificate has ended some time ago: the connection ends now.
    Ended,
}

/// The seats of one worker's mesh connections; clones share them.
#[derive(Clone)]
pub(crate) struct Census(Rc<Inner>);

struct Inner {
    seats: RefCell<HashMap<u64, Rc<Seat>>>,
    next: Cell<u64>,
    bans: watch::Receiver<Arc<BanList>>,
    /// Who is believed; none until the first SVID.
    identity: watch::Receiver<Option<Arc<MeshIdentity>>>,
    proofs: Proofs,
}

/// One connection, as the census sees it.
struct Seat {
    id: SpiffeId,
    serial_hex: String,
    address: IpAddr,
    /// When a certificate ends that the connection rests on.
    end: Cell<SystemTime>,
    /// Serial number of the certificate of a later handshake, if the connection rests on such a one by now.
    proven_by: RefCell<Option<Arc<str>>>,
    /// What its peer showed in the handshake that the connection rests on.
    shown: RefCell<Shown>,
    standing: Cell<Standing>,
    waker: RefCell<Option<Waker>>,
    dialled: Option<Dialled>,
}

struct Dialled {
    endpoint: SocketAddr,
    state: Rc<ConnectionState>,
    prove_at: Cell<SystemTime>,
}

/// A connection's place in the census, given up when it is dropped.
pub(crate) struct Member {
    census: Census,
    number: u64,
    seat: Rc<Seat>,
}

/// What a review has found.
#[derive(Debug, Default)]
pub(crate) struct Review {
    /// Connections cut off because their peers are banned.
    pub(crate) banned: usize,
    /// Connections cut off because nobody who is believed vouches for their peers any more.
    pub(crate) distrusted: usize,
    /// Connections cut off because their peers' certificates have ended.
    pub(crate) ended: usize,
    /// Dialled connections that need another handshake.
    pub(crate) due: Vec<Due>,
}

/// A dialled connection that lives on only with another handshake.
pub(crate) struct Due(Rc<Seat>);

impl fmt::Debug for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Census")
            .field("seats", &self.0.seats.borrow().len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Due {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Due").field(&self.0.id).finish()
    }
}

impl Census {
    pub(crate) fn new(
        bans: watch::Receiver<Arc<BanList>>,
        identity: watch::Receiver<Option<Arc<MeshIdentity>>>,
        proofs: Proofs,
    ) -> Self {
        Self(Rc::new(Inner {
            seats: RefCell::default(),
            next: Cell::new(0),
            bans,
            identity,
            proofs,
        }))
    }

    /// Whether a peer is banned.
    pub(crate) fn refuses(&self, peer: &PeerIdentity) -> bool {
        self.0.bans.borrow().refuses(&peer.id, &peer.serial_hex)
    }

    /// The bans, to wait for their changes.
    pub(crate) fn bans(&self) -> watch::Receiver<Arc<BanList>> {
        self.0.bans.clone()
    }

    /// Seats a connection that was accepted.
    pub(crate) fn accepted(&self, peer: &PeerIdentity, shown: Shown, address: IpAddr) -> Member {
        self.0.proofs.note(peer, &shown, address);
        self.seat(peer, shown, address, peer.not_after, None)
    }

    /// Seats a connection that was dialled under a certificate that ends at `own_end`.
    pub(crate) fn dialled(
        &self,
        endpoint: SocketAddr,
        own_end: SystemTime,
        state: Rc<ConnectionState>,
    ) -> Member {
        let (peer, shown) = (state.peer.clone(), state.shown.clone());
        self.0.proofs.note(&peer, &shown, endpoint.ip());
        let end = own_end.min(peer.not_after);
        let dialled = Dialled {
            endpoint,
            state,
            prove_at: Cell::new(prove_at(end, SystemTime::now())),
        };
        self.seat(&peer, shown, endpoint.ip(), end, Some(dialled))
    }

    fn seat(
        &self,
        peer: &PeerIdentity,
        shown: Shown,
        address: IpAddr,
        end: SystemTime,
        dialled: Option<Dialled>,
    ) -> Member {
        let number = self.0.next.get();
        self.0.next.set(number.wrapping_add(1));
        let seat = Rc::new(Seat {
            id: peer.id.clone(),
            serial_hex: peer.serial_hex.clone(),
            address,
            end: Cell::new(end),
            proven_by: RefCell::default(),
            shown: RefCell::new(shown),
            standing: Cell::new(Standing::Good),
            waker: RefCell::default(),
            dialled,
        });
        self.0.seats.borrow_mut().insert(number, Rc::clone(&seat));
        Member {
            census: self.clone(),
            number,
            seat,
        }
    }

    /// Looks at every connection: who has to go, and whom to meet again.
    pub(crate) fn review(&self, now: SystemTime) -> Review {
        let mut review = Review::default();
        let bans = self.0.bans.borrow().clone();
        let identity = self.0.identity.borrow().clone();
        for seat in self.0.seats.borrow().values() {
            let standing = self.standing(seat, &bans, identity.as_deref(), now);
            if standing != seat.standing.get() {
                seat.enter(standing);
                match standing {
                    Standing::Distrusted => review.distrusted += 1,
                    Standing::Banned => review.banned += 1,
                    Standing::Ended => review.ended += 1,
                    Standing::Good | Standing::Ending => {}
                }
            }
            if seat.is_due(now) {
                review.due.push(Due(Rc::clone(seat)));
            }
        }
        review
    }

    fn standing(
        &self,
        seat: &Seat,
        bans: &BanList,
        own: Option<&MeshIdentity>,
        now: SystemTime,
    ) -> Standing {
        let is_banned = |serial: &str| bans.refuses(&seat.id, serial);
        if is_banned(&seat.serial_hex) || seat.proven_by.borrow().as_deref().is_some_and(is_banned)
        {
            return Standing::Banned;
        }
        let is_vouched_for = |shown: &mut Shown, end: SystemTime| {
            own.is_none_or(|own| {
                shown.holds_under(&own.bundles, seat.id.trust_domain(), now.min(end))
            })
        };
        // It is on its way out.
        if seat.standing.get() == Standing::Distrusted
            || !is_vouched_for(&mut seat.shown.borrow_mut(), seat.end.get())
        {
            return Standing::Distrusted;
        }
        // What the dialling side rests on is renewed by itself alone: its own certificate counts too.
        if seat.dialled.is_none()
            && seat.end.get() < now
            && let Some(mut proof) = self.0.proofs.of(&seat.id, seat.address)
            && proof.until > seat.end.get()
            && !is_banned(&proof.serial_hex)
            && is_vouched_for(&mut proof.shown, proof.until)
        {
            seat.prolong(proof.until, proof.serial_hex, proof.shown);
        }
        let end = seat.end.get();
        if now > end + GRACE {
            Standing::Ended
        } else if now > end {
            Standing::Ending
        } else {
            Standing::Good
        }
    }
}

impl Seat {
    fn enter(&self, standing: Standing) {
        self.standing.set(standing);
        match standing {
            Standing::Distrusted => {
                tracing::warn!(peer = %self.id, address = %self.address, "a mesh connection is cut off: nobody who is believed vouches for its peer any more");
            }
            Standing::Banned => {
                tracing::warn!(peer = %self.id, address = %self.address, "a mesh connection is cut off: its peer is banned");
            }
            Standing::Ended => {
                tracing::warn!(peer = %self.id, address = %self.address, "a mesh connection is cut off: its peer's certificate has ended and the peer has not come with another");
            }
            Standing::Good | Standing::Ending => {}
        }
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Rests on another handshake from now on.
    fn prolong(&self, end: SystemTime, serial_hex: Arc<str>, shown: Shown) {
        self.end.set(end);
        self.shown.replace(shown);
        self.proven_by.replace(Some(serial_hex));
    }

    fn is_due(&self, now: SystemTime) -> bool {
        self.dialled.as_ref().is_some_and(|dialled| {
            let stays = matches!(self.standing.get(), Standing::Good | Standing::Ending);
            stays && now >= dialled.prove_at.get()
        })
    }
}

impl Due {
    /// The connection's peer, which the handshake must find again.
    pub(crate) fn peer(&self) -> &SpiffeId {
        &self.0.id
    }

    /// Whom the connection was made as, and is to be made as again: none of one that was not dialled.
    pub(crate) fn own(&self) -> Option<&SpiffeId> {
        self.0.dialled.as_ref().map(|dialled| &dialled.state.own)
    }

    /// Where it is, and what pool and users share of the connection.
    pub(crate) fn connection(&self) -> Option<(SocketAddr, &Rc<ConnectionState>)> {
        let dialled = self.0.dialled.as_ref()?;
        Some((dialled.endpoint, &dialled.state))
    }

    /// Takes another handshake for proof, in which the peer showed this certificate, and both certificates end at `end`
    /// or later; false when it proves no more than was known.
    pub(crate) fn prove(
        &self,
        end: SystemTime,
        serial_hex: &str,
        shown: Shown,
        now: SystemTime,
    ) -> bool {
        let is_newer = end > self.0.end.get();
        if is_newer {
            self.0.prolong(end, serial_hex.into(), shown);
            self.put_off(now);
        }
        is_newer
    }

    /// When to try next, before the end or after it.
    pub(crate) fn put_off(&self, now: SystemTime) {
        if let Some(dialled) = &self.0.dialled {
            let next = prove_at(self.0.end.get(), now);
            dialled.prove_at.set(next.max(now + SHORTEST_RETRY));
        }
    }
}

/// The first tries come when a tenth is left; later ones when a tenth of what was left then is, and so on.
fn prove_at(end: SystemTime, now: SystemTime) -> SystemTime {
    let left = end.duration_since(now).unwrap_or_default();
    end.checked_sub(left / PROVEN_AT_PART).unwrap_or(now)
}

impl Member {
    /// How the peer stands. The task is woken when that changes.
    pub(crate) fn poll_standing(&self, cx: &mut Context<'_>) -> Standing {
        let mut waker = self.seat.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|known| known.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
        self.seat.standing.get()
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("id", &self.seat.id)
            .field("standing", &self.seat.standing.get())
            .finish_non_exhaustive()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.census.0.seats.borrow_mut().remove(&self.number);
    }
}
