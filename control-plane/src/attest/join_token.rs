//! Join tokens: 256 random bits, good once and for minutes, kept as their SHA-256.

use super::{Answer, Attested, Attestor, Presented, Settlement};
use crate::issuance::Refusal;
use crate::store::{JoinTokenRecord, Redemption, RefusedToken, Registration, Store};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sidewind_api::Reason;
use sidewind_api::v1::attest_request::Evidence;
use std::time::SystemTime;
use zeroize::Zeroizing;

/// Lets tokens be recognised: in a file, by a secret scanner, in a paste.
const PREFIX: &str = "swj_";
const RANDOM_BYTES: usize = 32;

/// Takes join tokens.
#[derive(Debug)]
pub struct JoinTokenAttestor {
    store: Store,
}

impl JoinTokenAttestor {
    /// An attestor of the tokens in a store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    async fn read(&self, sha256: [u8; 32], now: SystemTime) -> Result<JoinTokenRecord, Refusal> {
        let token = self.store.join_token(sha256, now).await;
        token
            .map_err(|error| Refusal::store(&error))?
            .map_err(refusal)
    }
    /// Uses the token up and writes what comes of it, all or nothing.
    ///
    /// # Errors
    /// When it has been used or has ended meanwhile, or the store fails.
    pub(super) async fn settle(
        &self,
        evidence: &Evidence,
        settlement: Settlement<'_>,
    ) -> Result<(), Refusal> {
        let sha256 = sha256_of(evidence)?;
        let redemption = Redemption {
            sha256,
            registration: settlement.registration,
            svid: &settlement.issued.record(),
            audit: settlement.audit,
        };
        let redeemed = self.store.redeem_join_token(&redemption).await;
        if redeemed.map_err(|error| Refusal::store(&error))? {
            return Ok(());
        }
        // Somebody was faster, or its time ended since it was read.
        self.read(sha256, settlement.audit.at).await?;
        Err(refusal(RefusedToken::Used))
    }
}

impl Attestor for JoinTokenAttestor {
    fn attest<'a>(&'a self, presented: Presented<'a>) -> Answer<'a, Attested> {
        Box::pin(async move {
            let token = self
                .read(sha256_of(presented.evidence)?, presented.now)
                .await?;
            Ok(Attested::Granted(Registration {
                svid_ttl: token.svid_ttl,
                services: token.services,
                federates_with: token.federates_with,
                ..Registration::new(token.spiffe_id, "join-token")
            }))
        })
    }
}

fn refusal(refused: RefusedToken) -> Refusal {
    let (reason, message) = match refused {
        RefusedToken::Unknown => (
            Reason::JoinTokenUnknown,
            "this join token was not made by this control plane",
        ),
        RefusedToken::Used => (
            Reason::JoinTokenUsed,
            "this join token has been used; each is good once, so make another with `sidewind token create`",
        ),
        RefusedToken::Expired => (
            Reason::JoinTokenExpired,
            "this join token has expired; make another with `sidewind token create`",
        ),
    };
    Refusal::new(reason, message)
}

/// A new token and the SHA-256 that is kept of it.
///
/// # Errors
/// When the system gives no random bytes.
pub fn mint() -> Result<(Zeroizing<String>, [u8; 32]), Refusal> {
    let mut random = Zeroizing::new([0; RANDOM_BYTES]);
    aws_lc_rs::rand::fill(random.as_mut_slice())
        .map_err(|_| Refusal::new(Reason::Internal, "the system gives no random bytes"))?;
    let encoded = Zeroizing::new(URL_SAFE_NO_PAD.encode(random.as_slice()));
    let token = Zeroizing::new(format!("{PREFIX}{}", *encoded));
    let sha256 = sha256(&token);
    Ok((token, sha256))
}

/// The hash that a token is kept and found by. Finding by hash leaks nothing about the token in its timing.
fn sha256_of(evidence: &Evidence) -> Result<[u8; 32], Refusal> {
    let Evidence::JoinToken(evidence) = evidence else {
        return Err(Refusal::new(
            Reason::EvidenceMissing,
            "this is no join token",
        ));
    };
    let token = evidence.token.trim();
    let length = PREFIX.len() + (RANDOM_BYTES * 8).div_ceil(6);
    if token.len() == length && token.starts_with(PREFIX) {
        Ok(sha256(token))
    } else {
        Err(Refusal::new(
            Reason::JoinTokenUnknown,
            format!("this is no join token: one has {length} characters and starts with {PREFIX}"),
        ))
    }
}

fn sha256(token: &str) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use sidewind_api::v1::JoinToken;

    fn evidence(token: &str) -> Evidence {
        Evidence::JoinToken(JoinToken {
            token: token.to_owned(),
        })
    }

    #[test]
    fn a_minted_token_is_found_by_its_hash_also_with_a_newline_after_it() {
        let (token, sha256) = mint().unwrap();
        assert_eq!(sha256_of(&evidence(&token)), Ok(sha256));
        assert_eq!(sha256_of(&evidence(&format!("{}\n", *token))), Ok(sha256));
        assert_ne!(mint().unwrap().1, sha256);
    }

    #[test]
    fn what_has_another_form_is_no_token() {
        for bad in [
            "",
            "swj_",
            &"x".repeat(47),
            &format!("swj_{}", "a".repeat(100_000)),
        ] {
            let refusal = sha256_of(&evidence(bad)).unwrap_err();
            assert_eq!(refusal.reason, Reason::JoinTokenUnknown);
        }
    }
}
