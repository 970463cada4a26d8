//! Inbound: connections to the workload. The way of one, top to bottom:
//!
//! 1. accepted on the mesh port ([`mesh`]: TLS 1.3 with both identities, many streams), or redirected plaintext
//!    ([`plaintext`]: one client, its protocol detected);
//! 2. [`destination`]: the workload's port that it is for;
//! 3. HTTP ([`http`]) or bytes ([`tcp`]): [`authorize`], then forwarded to the workload.

mod authorize;
mod destination;
mod http;
mod mesh;
mod plaintext;
mod tcp;

use std::{net::SocketAddr, rc::Rc};

use ::http::HeaderValue;
use sidewind_identity::{PeerIdentity, SpiffeId};

pub(crate) use self::{
    destination::{Forwarding, take_destination},
    mesh::{MeshPort, serve as serve_mesh},
    plaintext::{PlaintextPort, serve as serve_plaintext},
};
use crate::{
    exchange::{Origin, Party},
    http::headers,
    telemetry::Direction,
    worker::Worker,
};

/// Who is at the other end of an inbound connection.
#[derive(Clone, Debug)]
struct Caller {
    address: SocketAddr,
    /// Where the connection arrived.
    local: SocketAddr,
    /// As mutual TLS proved it; none for plaintext.
    peer: Option<Rc<PeerIdentity>>,
    /// The workload's own.
    own_id: Option<SpiffeId>,
    /// `x-forwarded-client-cert`, which tells the workload the same.
    client_cert: Option<HeaderValue>,
}

impl Caller {
    fn from_mesh(
        address: SocketAddr,
        local: SocketAddr,
        peer: &Rc<PeerIdentity>,
        own_id: &SpiffeId,
    ) -> Self {
        let client_cert = headers::forwarded_client_cert(
            own_id.as_str(),
            &peer.certificate_sha256,
            &peer.subject,
            peer.id.as_str(),
        );
        Self {
            address,
            local,
            peer: Some(Rc::clone(peer)),
            own_id: Some(own_id.clone()),
            client_cert,
        }
    }

    fn from_outside(address: SocketAddr, local: SocketAddr, worker: &Worker) -> Self {
        Self {
            address,
            local,
            peer: None,
            own_id: worker.identity().ok().map(|identity| identity.id.clone()),
            client_cert: None,
        }
    }

    fn id(&self) -> Option<&SpiffeId> {
        self.peer.as_ref().map(|peer| &peer.id)
    }

    fn source(&self) -> Party {
        Party {
            address: Some(self.address),
            id: self.id().cloned(),
        }
    }

    fn destination(&self) -> Party {
        Party {
            address: Some(self.local),
            id: self.own_id.clone(),
        }
    }

    fn origin(&self, worker: &Worker) -> Origin {
        Origin {
            destination: self.destination(),
            tls: self.peer.is_some(),
            ..Origin::new(worker, Direction::Inbound, self.source())
        }
    }
}
