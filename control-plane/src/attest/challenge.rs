//! Challenges: nonces that evidence is signed over, so that it is good for one occasion.

use crate::issuance::Refusal;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sidewind_api::Reason;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

/// How long a nonce is good.
pub const LIFETIME: Duration = Duration::from_secs(60);
const RANDOM_BYTES: usize = 32;
/// Characters of a nonce: 256 bits in base64url without padding (RFC 4648, section 5).
const NONCE_CHARACTERS: usize = (RANDOM_BYTES * 8).div_ceil(6);
/// Most nonces that are outstanding at once; a further one takes the place of the oldest.
const MOST: usize = 65_536;
/// Most of one source, which may be a whole data centre behind one address; likewise.
const MOST_OF_ONE_SOURCE: usize = 8_192;

/// The nonces that this process has given and not seen again.
///
/// They are found by their SHA-256, which is all that is kept of them. Whatever a flood pushes out costs an
/// honest proxy one more try: forgetting a nonce refuses, and never lets in.
#[derive(Debug)]
pub struct Challenges {
    server_id: String,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// The number that the next nonce gets; numbers grow with time.
    next: u64,
    given: BTreeMap<u64, Given>,
    by_sha256: HashMap<[u8; 32], u64>,
    by_source: HashMap<IpAddr, BTreeSet<u64>>,
}

#[derive(Debug)]
struct Given {
    sha256: [u8; 32],
    source: IpAddr,
    until: Instant,
}

impl Challenges {
    /// Nonces for evidence that names `server_id`.
    #[must_use]
    pub fn new(server_id: String) -> Self {
        Self {
            server_id,
            table: Mutex::default(),
        }
    }

    /// Which control plane evidence must be for.
    #[must_use]
    pub fn server_id(&self) -> &str {
        &self.server_id
    }

    /// A new nonce for whoever calls from `caller`.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn give(&self, caller: IpAddr) -> Result<String, Refusal> {
        let mut random = [0; RANDOM_BYTES];
        aws_lc_rs::rand::fill(&mut random)
            .map_err(|_| Refusal::new(Reason::Internal, "the system gives no random bytes"))?;
        let nonce = URL_SAFE_NO_PAD.encode(random);
        self.table()
            .insert(sha256(nonce.as_bytes()), source(caller), Instant::now());
        Ok(nonce)
    }

    /// Uses a nonce up. Whatever comes of the evidence, it cannot be brought again.
    ///
    /// # Errors
    /// When this process did not give it, it has been used, or its time is over.
    pub fn take(&self, nonce: &str) -> Result<(), Refusal> {
        let known = nonce.len() == NONCE_CHARACTERS
            && self
                .table()
                .remove(&sha256(nonce.as_bytes()), Instant::now());
        if known {
            return Ok(());
        }
        Err(Refusal::new(
            Reason::ChallengeUnknown,
            "the nonce was not given by this process, has been used, or is older than a minute: ask for another challenge on the connection that the evidence goes over",
        ))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn insert(&mut self, sha256: [u8; 32], source: IpAddr, now: Instant) {
        while let Some(oldest) = self.given.first_entry()
            && oldest.get().until <= now
        {
            let number = *oldest.key();
            self.forget(number);
        }
        let of_source = self.by_source.get(&source);
        if let Some(numbers) = of_source.filter(|n| n.len() >= MOST_OF_ONE_SOURCE)
            && let Some(oldest) = numbers.first().copied()
        {
            self.forget(oldest);
        }
        if self.given.len() >= MOST
            && let Some((oldest, _)) = self.given.first_key_value()
        {
            let oldest = *oldest;
            self.forget(oldest);
        }
        let number = self.next;
        self.next += 1;
        let until = now + LIFETIME;
        let given = Given {
            sha256,
            source,
            until,
        };
        self.given.insert(number, given);
        self.by_sha256.insert(sha256, number);
        self.by_source.entry(source).or_default().insert(number);
    }

    /// Forgets a nonce; whether it was good.
    fn remove(&mut self, sha256: &[u8; 32], now: Instant) -> bool {
        let number = self.by_sha256.get(sha256).copied();
        let given = number.and_then(|number| self.forget(number));
        given.is_some_and(|given| now < given.until)
    }

    fn forget(&mut self, number: u64) -> Option<Given> {
        let given = self.given.remove(&number)?;
        self.by_sha256.remove(&given.sha256);
        if let Some(numbers) = self.by_source.get_mut(&given.source) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_source.remove(&given.source);
            }
        }
        Some(given)
    }
}

/// Whoever has one address of an IPv6 network of 64 bits has all of them.
fn source(caller: IpAddr) -> IpAddr {
    match caller.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        address => address,
    }
}

/// The SubjectPublicKeyInfo of a signing request in DER, as it stands there. Whether its sender holds the key
/// is checked when it is signed.
///
/// # Errors
/// When the request cannot be read.
pub(super) fn csr_key(csr: &[u8]) -> Result<&[u8], Refusal> {
    let parsed = X509CertificationRequest::from_der(csr);
    match parsed {
        Ok((_, csr)) => Ok(csr.certification_request_info.subject_pki.raw),
        Err(_) => Err(Refusal::new(
            Reason::CsrRefused,
            "the certificate signing request cannot be read",
        )),
    }
}

/// SHA-256 of bytes (FIPS 180-4).
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut array = [0; 32];
    array.copy_from_slice(digest.as_ref());
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn fresh() -> Challenges {
        Challenges::new("sidewind://example.org".to_owned())
    }

    fn refused(challenges: &Challenges, nonce: &str) -> bool {
        let answer = challenges.take(nonce);
        answer.is_err_and(|refusal| refusal.reason == Reason::ChallengeUnknown)
    }

    #[tokio::test(start_paused = true)]
    async fn a_nonce_is_good_once() {
        let challenges = fresh();
        let nonce = challenges.give(CALLER).unwrap();
        assert_eq!(nonce.len(), 43, "256 bits");
        assert_ne!(challenges.give(CALLER).unwrap(), nonce);
        assert_eq!(challenges.take(&nonce), Ok(()));
        assert!(refused(&challenges, &nonce));
    }

    #[tokio::test(start_paused = true)]
    async fn a_nonce_is_good_for_a_minute() {
        let challenges = fresh();
        let (first, second) = (challenges.give(CALLER), challenges.give(CALLER));
        tokio::time::advance(LIFETIME - Duration::from_millis(1)).await;
        assert_eq!(challenges.take(&first.unwrap()), Ok(()));
        tokio::time::advance(Duration::from_millis(1)).await;
        let second = second.unwrap();
        assert!(refused(&challenges, &second));
        assert!(refused(&challenges, &second), "and stays so");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_given_is_unknown() {
        let challenges = fresh();
        let nonce = challenges.give(CALLER).unwrap();
        let other_process = fresh().give(CALLER).unwrap();
        let near_misses = [
            String::new(),
            other_process,
            format!("{nonce}="),
            format!(" {nonce}"),
            nonce.to_lowercase(),
            nonce[..42].to_owned(),
            "x".repeat(1 << 20),
        ];
        for near_miss in near_misses.iter().filter(|miss| **miss != nonce) {
            assert!(refused(&challenges, near_miss), "{near_miss:.50}");
        }
        assert_eq!(challenges.take(&nonce), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_at_once_take_a_nonce_once() {
        let challenges = std::sync::Arc::new(fresh());
        let nonce = challenges.give(CALLER).unwrap();
        let takers: Vec<_> = (0..100)
            .map(|_| {
                let (challenges, nonce) = (challenges.clone(), nonce.clone());
                std::thread::spawn(move || challenges.take(&nonce).is_ok())
            })
            .collect();
        let taken = takers.into_iter().map(|taker| taker.join().unwrap());
        assert_eq!(taken.filter(|taken| *taken).count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_asks_too_often_loses_its_own_oldest_alone() {
        let challenges = fresh();
        let elsewhere = challenges.give("10.0.0.9".parse().unwrap()).unwrap();
        // Addresses of one IPv6 network are one source.
        let flood = |n: usize| IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) + n as u128));
        let nonces: Vec<_> = (0..=MOST_OF_ONE_SOURCE)
            .map(|n| challenges.give(flood(n)).unwrap())
            .collect();
        assert!(refused(&challenges, &nonces[0]));
        assert_eq!(challenges.take(&nonces[1]), Ok(()));
        assert_eq!(challenges.take(&elsewhere), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_is_bounded_and_forgets_what_has_ended() {
        let challenges = fresh();
        let source = |n: usize| IpAddr::V4(std::net::Ipv4Addr::from_bits(n as u32));
        let first = challenges.give(source(0)).unwrap();
        for n in 1..=MOST {
            challenges.give(source(n)).unwrap();
        }
        assert!(refused(&challenges, &first));
        assert_eq!(challenges.table().given.len(), MOST);
        tokio::time::advance(LIFETIME).await;
        challenges.give(CALLER).unwrap();
        let table = challenges.table();
        let sizes = (
            table.given.len(),
            table.by_sha256.len(),
            table.by_source.len(),
        );
        assert_eq!(sizes, (1, 1, 1));
    }
}
