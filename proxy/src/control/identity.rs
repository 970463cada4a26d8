//! Keeps this workload's SVID fresh: attests, renews early, attests again where renewal has failed for too long, and
//! never gives up.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sidewind_identity::{Svid, TrustBundle};
use tokio::sync::watch;

use super::Shared;
use super::backoff::{Backoff, as_asked};
use super::bundle_cache::{BundleCache, Kept, digest};
use super::calling::is_passed_over;
use super::dial::Dialler;
use super::error::ControlError;
use super::issuing::{self, Issued};
use super::occasionally::Occasionally;
use super::status::IdentityStatus;
use crate::config::{
    ControlConfig, ControlPlaneAddress, EvidenceSource, JoinToken, JoinTokenSource,
};

const BUNDLE_POLL: Duration = Duration::from_secs(1);
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// No wait is shorter, whatever a certificate says.
const SHORTEST_WAIT: Duration = Duration::from_millis(500);
/// In the last tenth of an SVID's life, at most this long between tries.
const LONGEST_BACKOFF_NEAR_EXPIRY: Duration = Duration::from_secs(10);

/// When an authority is tainted, its SVIDs are renewed within this time.
const LONGEST_TAINT_DELAY: Duration = Duration::from_secs(10);

/// The task that owns the SVID.
#[derive(Debug)]
pub(super) struct IdentityTask {
    config: ControlConfig,
    dialler: Dialler,
    shared: Arc<Shared>,
    /// Which of the control planes is asked next.
    next: usize,
    backoff: Backoff,
    /// The token that brought the SVID: it cannot bring another.
    used_token: Option<JoinToken>,
    /// The trust bundle file as it was last taken.
    bundle_pem: String,
    /// Where the trust bundle is kept for a restart; none once it was read.
    cache: Option<BundleCache>,
    /// The trust bundle of the last run, until the operator's file was read.
    kept: Option<Kept>,
    /// When the present SVID was received.
    received: SystemTime,
    warning: Occasionally,
}

impl IdentityTask {
    pub(super) fn new(
        config: ControlConfig,
        dialler: Dialler,
        shared: Arc<Shared>,
        cache: Option<BundleCache>,
    ) -> Self {
        Self {
            config,
            dialler,
            next: 0,
            backoff: Backoff::new(FIRST_BACKOFF, LONGEST_BACKOFF),
            used_token: None,
            bundle_pem: String::new(),
            cache,
            kept: None,
            received: shared.clock.now(),
            shared,
            warning: Occasionally::default(),
        }
    }

    /// Runs for as long as the process does.
    pub(super) async fn run(mut self) {
        self.wait_for_trust_bundle().await;
        let mut tainted = self.shared.tainted.subscribe();
        loop {
            let (mut wait, renewed) = match self.issue().await {
                Ok(issued) => (self.take(issued), true),
                Err(error) => (self.fail(&error), false),
            };
            // Another process of the control plane may sign by an authority that was tainted a moment ago.
            if renewed && self.is_tainted(&tainted.borrow_and_update()) {
                wait = wait.min(LONGEST_BACKOFF);
            }
            self.wait(wait, renewed, &mut tainted).await;
        }
    }

    /// Waits for the next try: until it is time, a moment after the authority of the SVID was tainted, or until the
    /// control plane has said, after the last try has succeeded, that there is to be no identity.
    async fn wait(
        &self,
        wait: Duration,
        renewed: bool,
        tainted: &mut watch::Receiver<BTreeSet<String>>,
    ) {
        let clock = &self.shared.clock;
        let sleep = clock.sleep(wait);
        tokio::pin!(sleep);
        loop {
            tokio::select! {
                () = &mut sleep => return,
                () = self.shared.doubt.notified(), if renewed => return,
                Ok(()) = tainted.changed() => {
                    if self.is_tainted(&tainted.borrow_and_update()) {
                        break;
                    }
                }
            }
        }
        let left = self.valid_svid().map_or(Duration::ZERO, |svid| {
            svid.not_after()
                .duration_since(clock.now())
                .unwrap_or_default()
        });
        let moment = taint_delay(left);
        tracing::warn!(
            renewal_in_seconds = moment.as_secs_f64(),
            "an authority that the SVID chains through is tainted; renewing at once"
        );
        tokio::select! {
            () = &mut sleep => {}
            () = clock.sleep(moment) => {}
        }
    }

    /// Whether the SVID chains through an authority that is not to be relied on.
    fn is_tainted(&self, tainted: &BTreeSet<String>) -> bool {
        let svid = (!tainted.is_empty()).then(|| self.shared.publisher.svid());
        svid.flatten()
            .is_some_and(|svid| !svid.authority_key_ids().is_disjoint(tainted))
    }

    /// Begins with the operator's file, or with what was kept from the last run.
    async fn wait_for_trust_bundle(&mut self) {
        if let Some(cache) = self.cache.take() {
            self.kept = cache.load(self.shared.clock.now()).await;
        }
        let mut waiting = Occasionally::default();
        while let Err(error) = self
            .read_trust_bundle()
            .or_else(|error| self.go_on_with_kept(error))
        {
            if waiting.count().is_some() {
                tracing::warn!(error = %error, "waiting for the trust bundle");
            }
            let text = error.to_string();
            self.shared
                .status
                .send_modify(|status| status.identity_error = Some(text));
            self.shared.clock.sleep(BUNDLE_POLL).await;
        }
    }

    /// Takes the trust bundle of the last run where the operator's file cannot be had.
    fn go_on_with_kept(&mut self, error: ControlError) -> Result<(), ControlError> {
        let Some(kept) = &self.kept else {
            return Err(error);
        };
        tracing::warn!(error = %error, "going on with the trust bundle of the last run");
        self.shared
            .publisher
            .replace_own_bundle(kept.bundle.clone())
    }

    /// Takes the trust bundle file when it has changed since it was last taken.
    fn read_trust_bundle(&mut self) -> Result<(), ControlError> {
        let path = self.config.trust_bundle.display();
        let pem = std::fs::read_to_string(&self.config.trust_bundle).map_err(|error| {
            ControlError::NoTrustBundle(format!("the trust bundle {path} cannot be read: {error}"))
        })?;
        if pem == self.bundle_pem {
            return Ok(());
        }
        let bundle =
            TrustBundle::from_pem(self.config.trust_domain.clone(), &pem).map_err(|error| {
                ControlError::NoTrustBundle(format!(
                    "the trust bundle {path} is not usable: {error}"
                ))
            })?;
        let file = digest(pem.as_bytes());
        // A new file is the operator's word, against which nothing counts that was kept. What was kept under this one
        // came after it, from a control plane that it vouched for.
        let kept = self.kept.take().filter(|kept| kept.operator_bundle == file);
        let is_begun = !self.shared.publisher.bundles().is_empty();
        tracing::info!(
            file = %path,
            authorities = bundle.authorities().len(),
            kept_sequence = kept.as_ref().map(|kept| kept.bundle.sequence()),
            "trust bundle read"
        );
        match kept {
            // The file could not be had before, so this has begun with what was kept.
            Some(_) if is_begun => {}
            Some(kept) => self.shared.publisher.replace_own_bundle(kept.bundle)?,
            None => self.shared.publisher.replace_own_bundle(bundle)?,
        }
        self.shared.operator_bundle.send_replace(Some(file));
        self.bundle_pem = pem;
        Ok(())
    }

    /// One try at the next control plane: renewal while the SVID is valid, else attestation.
    async fn issue(&mut self) -> Result<Issued, ControlError> {
        let addresses = &self.config.control_planes;
        let Some(address) = addresses.get(self.next % addresses.len().max(1)).cloned() else {
            return Err(ControlError::NoEvidence(
                "no control plane is configured".to_owned(),
            ));
        };
        if let Some(svid) = self.valid_svid() {
            let renewed = self.renew(&address, &svid).await;
            // The certificate is good and worth nothing any more: evidence may be worth another.
            let attest = matches!(&renewed, Err(error) if error.needs_attestation());
            // A join token serves once: there must be another.
            if !attest || self.evidence().is_err() {
                return renewed;
            }
        }
        // Operators mend a lost trust domain by a new file, which only counts while there is nothing better.
        let read = self.read_trust_bundle();
        let bundles = self.shared.publisher.bundles();
        // A file that is gone takes nothing back.
        if bundles.get(&self.config.trust_domain).is_none() {
            read?;
        }
        let (source, token) = match (self.evidence(), self.shared.publisher.svid()) {
            (Ok(evidence), _) => evidence,
            (Err(error), None) => return Err(error),
            // Whether it has expired is for the control plane's clock to say: this one may be wrong.
            (Err(error), Some(expired)) => {
                return issuing::renew(&self.dialler, &address, &bundles, &expired)
                    .await
                    .map_err(|refused| ControlError::NoEvidence(format!("{error} ({refused})")));
            }
        };
        let now = self.shared.clock.now();
        let issued = issuing::attest(&self.dialler, &address, &bundles, &source, now).await?;
        self.used_token = token;
        if issued.svid.id().trust_domain() != &self.config.trust_domain {
            return Err(ControlError::BadAnswer {
                address: address.to_string(),
                problem: format!(
                    "an SVID for {}, which is not of trust domain {}",
                    issued.svid.id(),
                    self.config.trust_domain
                ),
            });
        }
        Ok(issued)
    }

    /// Renews on the connection of the stream, which spares both sides a handshake; on one of its own where there is no
    /// stream, or its control plane is out of order.
    async fn renew(
        &self,
        address: &ControlPlaneAddress,
        svid: &Svid,
    ) -> Result<Issued, ControlError> {
        let open = self.shared.stream.borrow().clone();
        if let Some(open) = open.filter(|open| open.serial_hex == svid.serial_hex()) {
            let renewed = issuing::renew_on(&open.dialled, &open.address, svid).await;
            if !matches!(&renewed, Err(error) if is_passed_over(error)) {
                return renewed;
            }
        }
        let bundles = self.shared.publisher.bundles();
        issuing::renew(&self.dialler, address, &bundles, svid).await
    }

    fn valid_svid(&self) -> Option<Svid> {
        self.shared
            .publisher
            .svid()
            .filter(|svid| svid.not_after() >= self.shared.clock.now())
    }

    /// Where evidence is to be had; of a join token, one that has not been used yet, which it then names too.
    fn evidence(&self) -> Result<(EvidenceSource, Option<JoinToken>), ControlError> {
        let EvidenceSource::JoinToken(source) = &self.config.evidence else {
            return Ok((self.config.evidence.clone(), None));
        };
        let token = source.read().map_err(ControlError::NoEvidence)?;
        if self.used_token.as_ref() != Some(&token) {
            let this = JoinTokenSource::Variable(token.clone());
            return Ok((EvidenceSource::JoinToken(this), Some(token)));
        }
        let id = self
            .shared
            .publisher
            .svid()
            .map(|svid| svid.id().to_string());
        let id = id.as_deref().unwrap_or("ID");
        let remedy = match source {
            JoinTokenSource::File(path) => format!("write its token to {}", path.display()),
            JoinTokenSource::Variable(_) => {
                "restart this proxy with its token in SIDEWIND_JOIN_TOKEN".to_owned()
            }
        };
        Err(ControlError::NoEvidence(format!(
            "the SVID has expired and the join token is used up: run `sidewind token create --spiffe-id {id}` and \
             {remedy}"
        )))
    }

    /// Publishes the SVID, and says how long to wait before its renewal.
    fn take(&mut self, issued: Issued) -> Duration {
        let now = self.shared.clock.now();
        let svid = issued.svid.clone();
        let life = svid.not_after().duration_since(now).unwrap_or_default();
        if life.is_zero() {
            return self.fail(&ControlError::Local {
                what: "use the SVID",
                problem: "it has expired already by this machine's clock; check the clock"
                    .to_owned(),
            });
        }
        // What is good now is not given up for what is not good yet.
        let is_good = |present: &Svid| present.not_before() <= now;
        if svid.not_before() > now && self.valid_svid().as_ref().is_some_and(is_good) {
            return self.fail(&ControlError::Local {
                what: "use the SVID",
                problem: "it is not valid yet by this machine's clock, and the present one is; check the clocks"
                    .to_owned(),
            });
        }
        let installed = (self.shared.publisher).install(issued.svid, issued.bundles, issued.tasks);
        match installed {
            Ok(update) => {
                for problem in update.problems {
                    tracing::warn!(problem, "part of the trust bundles was not taken");
                }
            }
            Err(error) => return self.fail(&error),
        }
        self.received = now;
        self.backoff.reset();
        self.warning.reset();
        self.shared
            .compare_clock(&issued.control_plane, issued.now_unix_ms);
        self.shared.status.send_modify(|status| {
            status.identity = Some(IdentityStatus {
                id: svid.id().clone(),
                serial_hex: svid.serial_hex().to_owned(),
                not_after: svid.not_after(),
            });
            status.identity_error = None;
            status.identity_refusal = None;
            status.local_address = Some(issued.local);
            status.svids_issued += 1;
        });
        let wait = renewal_delay(life);
        tracing::info!(
            spiffe_id = %svid.id(),
            serial = svid.serial_hex(),
            valid_seconds = life.as_secs(),
            renewal_in_seconds = wait.as_secs(),
            control_plane_version = issued.control_plane_version,
            "SVID issued"
        );
        wait
    }

    /// Says what failed, and how long to wait before the next try.
    fn fail(&mut self, error: &ControlError) -> Duration {
        self.next = self.next.wrapping_add(1);
        let left = self.valid_svid().map(|svid| {
            svid.not_after()
                .duration_since(self.shared.clock.now())
                .unwrap_or_default()
        });
        let life = self
            .shared
            .publisher
            .svid()
            .and_then(|svid| svid.not_after().duration_since(self.received).ok());
        let asked = error.retry_after();
        if asked.is_some() {
            // It is there, and knows when there is a place.
            self.backoff.reset();
        }
        let own = bounded_wait(self.backoff.next(), left, life.unwrap_or_default());
        let wait = own.max(asked.map(as_asked).unwrap_or_default());
        let text = error.to_string();
        if let Some(times) = self.warning.count() {
            tracing::warn!(
                error = text,
                times,
                svid_seconds_left = left.map(|left| left.as_secs()),
                retry_in_seconds = wait.as_secs_f64(),
                "no new SVID"
            );
        }
        let refused = error.is_refusal_of_identity(left.is_some());
        self.shared.status.send_modify(|status| {
            // A control plane that cannot be reached afterwards takes nothing back.
            if refused {
                status.identity_refusal = Some(text.clone());
            }
            status.identity_error = Some(text);
            status.svid_failures += 1;
        });
        wait
    }
}

/// A point drawn between a quarter and a third of the life that is left when the SVID arrives.
pub(super) fn renewal_delay(life: Duration) -> Duration {
    life.mul_f64(rand::random_range(0.25..=1.0 / 3.0))
        .max(SHORTEST_WAIT)
}

/// A moment within which a whole fleet renews: at most ten seconds, and a tenth of the life that is left.
fn taint_delay(left: Duration) -> Duration {
    LONGEST_TAINT_DELAY
        .min(left / 10)
        .mul_f64(rand::random_range(0.0..=1.0))
}

/// The backoff, shortened while an SVID is about to expire, so that several tries always fit into what is left.
fn bounded_wait(backoff: Duration, left: Option<Duration>, life: Duration) -> Duration {
    let Some(left) = left else {
        return backoff;
    };
    let mut bound = left / 10;
    if left < life / 10 {
        bound = bound.min(LONGEST_BACKOFF_NEAR_EXPIRY);
    }
    backoff.min(bound.max(SHORTEST_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_comes_between_a_quarter_and_a_third_of_the_life() {
        let hour = Duration::from_secs(3600);
        let draws: Vec<_> = (0..1000).map(|_| renewal_delay(hour)).collect();
        assert!(
            draws
                .iter()
                .all(|draw| (900..=1200).contains(&draw.as_secs()))
        );
        let spread = draws
            .iter()
            .max()
            .unwrap()
            .abs_diff(*draws.iter().min().unwrap());
        assert!(spread.as_secs() > 200, "drawn anew for each certificate");
        assert_eq!(renewal_delay(Duration::from_millis(1)), SHORTEST_WAIT);
    }

    #[test]
    fn a_fleet_renews_within_ten_seconds_and_sooner_when_little_life_is_left() {
        let seconds = Duration::from_secs;
        let longest = |left| (0..1000).map(|_| taint_delay(left)).max().unwrap();
        assert!((seconds(9)..=seconds(10)).contains(&longest(seconds(3600))));
        assert!((seconds(2)..=seconds(3)).contains(&longest(seconds(30))));
        assert_eq!(longest(Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn tries_come_closer_together_as_the_end_does() {
        let seconds = Duration::from_secs;
        let hour = seconds(3600);
        for (backoff, left, life, expected) in [
            (seconds(60), None, Duration::ZERO, seconds(60)),
            (seconds(60), Some(seconds(2400)), hour, seconds(60)),
            (seconds(60), Some(seconds(359)), hour, seconds(10)),
            (seconds(60), Some(seconds(30)), hour, seconds(3)),
            (seconds(60), Some(seconds(40)), seconds(60), seconds(4)),
            (seconds(60), Some(seconds(1)), hour, SHORTEST_WAIT),
            (seconds(1), Some(seconds(2400)), hour, seconds(1)),
        ] {
            assert_eq!(
                bounded_wait(backoff, left, life),
                expected,
                "{left:?} of {life:?}"
            );
        }
    }
}
