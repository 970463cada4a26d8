//! SPIFFE identities for Sidewind: who a workload is, what proves it, and how a peer checks that.
//!
//! Nothing here touches the network, a file or the environment; time and bytes come from the caller.
//!
//! # Rooms
//!
//! | room | what is in it |
//! | --- | --- |
//! | [`SpiffeId`], [`TrustDomain`] | the names, parsed byte by byte |
//! | [`SpiffeIdPattern`] | which names a policy means |
//! | [`TaskId`] | the names of Airflow tasks below those of workers |
//! | [`PrivateKey`] | P-256 keys and the signing requests made with them |
//! | [`authority`] | the CA: root → intermediate → SVID |
//! | [`Svid`] | a workload's certificate chain with its key |
//! | [`TrustBundle`], [`TrustBundles`], [`bundle`] | whose certificates are believed, for each trust domain by itself; bundle documents |
//! | [`verify_chain`] | whether a chain proves the ID that it names |
//! | [`jwt`] | tokens: JWT-SVIDs and those of OIDC issuers, read, verified and signed |
//! | [`tls`] | rustls configurations that verify so, and who the peer is |
//!
//! # How they depend on each other
//!
//! ```text
//! SpiffeId ← SpiffeIdPattern
//!    ↑
//!  x509 (parsing) ← TrustBundle ← verify ← authority (checks what it signs)
//!                                    ↑
//!                        PrivateKey ← Svid ← tls
//! ```
//!
//! # The way of an identity
//!
//! A workload makes a [`PrivateKey`] and sends [`PrivateKey::csr_der`]; the control plane attests it and calls
//! [`authority::SigningAuthority::sign`]; the workload joins chain and key to an [`Svid`], and from it and the
//! [`TrustBundles`] makes one [`tls::client_config`] and one [`tls::server_config`] for all connections until the
//! next rotation. After each handshake [`tls::peer_identity`] says who answered.

pub mod authority;
pub mod bundle;
pub mod jwt;
mod key;
mod pattern;
mod pem;
mod spiffe_id;
mod svid;
mod task;
pub mod tls;
mod verify;
mod x509;

pub use bundle::{
    Authority, AuthorityError, BundleError, MAX_AUTHORITIES, TrustBundle, TrustBundles,
};
pub use key::{KeyError, PrivateKey};
pub use pattern::SpiffeIdPattern;
pub use spiffe_id::{
    MAX_SPIFFE_ID_BYTES, MAX_TRUST_DOMAIN_BYTES, SpiffeId, SpiffeIdError, TrustDomain,
};
pub use svid::{Svid, SvidError};
pub use task::{MAX_TASK_NAME_BYTES, TaskId, TaskIdError};
pub use tls::{ClientAuth, PeerIdentity, peer_identity};
pub use verify::{
    MAX_CHAIN_BYTES, MAX_CHAIN_CERTIFICATES, MAX_LEAF_LIFETIME, Usage, VerifyError, VerifyOptions,
    verify_chain,
};
pub use x509::{KeyIds, MalformedCertificate};
