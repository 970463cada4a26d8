//! Knows a list of bans that this control plane made, when a proxy gives it back.
//!
//! A database that is restored from an older copy has lost the bans that were made since. Proxies still have them, but a
//! proxy is not trusted to ban anybody. So each list is sealed, by a key that never leaves the store, and what comes back
//! is believed for its seal alone: a proxy can give back what it was sent, and nothing else.

use aws_lc_rs::hmac;
use prost::Message as _;
use sidewind_api::v1;
use std::fmt;

/// What is sealed with this key, and nothing else is.
const CONTEXT: &[u8] = b"sidewind bans v1\0";

/// Seals lists of bans.
pub(super) struct Sealer(hmac::Key);

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").finish_non_exhaustive()
    }
}

impl Sealer {
    pub(super) fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The seal of a list.
    pub(super) fn seal(&self, bans: &v1::Bans) -> Vec<u8> {
        hmac::sign(&self.0, &sealed(bans)).as_ref().to_vec()
    }

    /// Whether a list has the seal that it was given here.
    pub(super) fn knows(&self, bans: &v1::Bans) -> bool {
        hmac::verify(&self.0, &sealed(bans), &bans.seal).is_ok()
    }
}

/// Every field of the list and its bans, each ban with its length before it.
fn sealed(bans: &v1::Bans) -> Vec<u8> {
    let mut text = CONTEXT.to_vec();
    text.extend_from_slice(&bans.version.to_be_bytes());
    text.extend_from_slice(&(bans.bans.len() as u64).to_be_bytes());
    for ban in &bans.bans {
        // Protobuf writes a message with scalar fields alone in one way: in the order of their numbers.
        text.extend_from_slice(&ban.encode_length_delimited_to_vec());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ban(id: &str) -> v1::Ban {
        v1::Ban {
            subject: Some(v1::ban::Subject::SpiffeId(id.to_owned())),
            reason: "stolen".to_owned(),
            since_unix: 7,
        }
    }

    #[test]
    fn a_list_is_known_as_it_was_sealed_and_in_no_other_form() {
        let sealer = Sealer::new(&[7; 32]);
        let mut list = v1::Bans {
            version: 3,
            bans: vec![ban("spiffe://td/a"), ban("spiffe://td/b")],
            seal: Vec::new(),
        };
        list.seal = sealer.seal(&list);
        assert!(sealer.knows(&list));
        assert!(!Sealer::new(&[8; 32]).knows(&list));
        let changes: [fn(&mut v1::Bans); 7] = [
            |list| list.version = 4,
            |list| drop(list.bans.pop()),
            |list| list.bans.push(ban("spiffe://td/c")),
            |list| list.bans.swap(0, 1),
            |list| list.bans[0].reason.clear(),
            |list| list.bans[0].since_unix = 8,
            |list| list.seal.clear(),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut other = list.clone();
            change(&mut other);
            assert!(!sealer.knows(&other), "change {number}");
        }
    }
}
