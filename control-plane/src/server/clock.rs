//! Whether the wall clock can be believed: at the start, while the process runs, and beside those of the others.
//!
//! Certificates say when they are good. A clock that is wrong signs what nobody believes, or believes what has ended, so
//! one that is surely wrong keeps the control plane from starting, and one that becomes so is an alarm.

use crate::issuance::authority::slots::{Slot, Slots};
use crate::store::{AuthorityRole, AuthorityState, ClockDifferences, Store, from_unix_seconds};
use crate::telemetry::{Metrics, Throttle};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// When this program was built, in seconds since 1970.
const BUILT_AT: &str = env!("SIDEWIND_BUILT_AT");
/// What clocks may differ by; certificates begin 30 s early for it.
const TOLERANCE: Duration = Duration::from_secs(30);
/// How often a clock is compared with the time that has passed.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// How often it is compared with others.
const COMPARE_INTERVAL: Duration = Duration::from_secs(10);

/// The clock is behind what has surely happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClockError {
    /// It is before the build of this program.
    #[error(
        "the clock of this machine says {now}, but this program was built at {built}: set the clock, or start with --trust-clock if that is wrong"
    )]
    BeforeBuild {
        /// What the clock says.
        now: String,
        /// When the program was built.
        built: String,
    },
    /// It is before the begin of a certificate that is in the store already.
    #[error(
        "the clock of this machine says {now}, but {role} certificate {key_id} in the store was made for {begin} and later: set the clock. If it is right, and was ahead when that certificate was made, start with --trust-clock and replace the certificate: `sidewind ca rotate{flag}`, twice"
    )]
    BeforeCertificate {
        /// What the clock says.
        now: String,
        /// `root` or `signing`.
        role: AuthorityRole,
        /// The certificate's key identifier.
        key_id: String,
        /// From when on it is good.
        begin: String,
        /// What rotates it.
        flag: &'static str,
    },
}

/// Checks a clock against the program and the certificates of the store.
///
/// # Errors
/// When it is surely wrong.
pub(super) fn check(now: SystemTime, slots: &Slots) -> Result<(), ClockError> {
    check_with(now, built_at(), slots)
}

fn check_with(now: SystemTime, built: SystemTime, slots: &Slots) -> Result<(), ClockError> {
    if now + TOLERANCE < built {
        return Err(ClockError::BeforeBuild {
            now: written(now),
            built: written(built),
        });
    }
    let in_use = |slot: &&Slot| slot.state != AuthorityState::Revoked;
    let newest = slots.iter().filter(in_use).max_by_key(|it| it.not_before);
    match newest.filter(|newest| now < newest.not_before) {
        None => Ok(()),
        Some(newest) => Err(ClockError::BeforeCertificate {
            now: written(now),
            role: newest.role,
            key_id: newest.key_id.clone(),
            begin: written(newest.not_before),
            flag: match newest.role {
                AuthorityRole::Root => " --root",
                AuthorityRole::Signing => "",
            },
        }),
    }
}

/// A build that does not say so was in 1970.
fn built_at() -> SystemTime {
    from_unix_seconds(BUILT_AT.parse().unwrap_or(0))
}

/// RFC 3339, in whole seconds.
fn written(time: SystemTime) -> String {
    let seconds = jiff::Timestamp::try_from(time).map(|time| time.as_second());
    let time = seconds.and_then(jiff::Timestamp::from_second);
    time.map_or_else(
        |_| "a time beyond all calendars".to_owned(),
        |time| time.to_string(),
    )
}

/// Compares the wall clock with the time that has passed.
#[derive(Debug)]
struct Watch {
    wall: SystemTime,
    passed: Instant,
}

impl Watch {
    fn new(wall: SystemTime) -> Self {
        let passed = Instant::now();
        Self { wall, passed }
    }

    /// How far the wall clock has gone ahead of the time that passed since the last look, in seconds; negative when it
    /// was put back. Nothing within what clocks are corrected by.
    fn look(&mut self, wall: SystemTime) -> Option<i64> {
        let before = std::mem::replace(self, Self::new(wall));
        let expected = before.wall + self.passed.duration_since(before.passed);
        let jump = ahead(wall, expected);
        (jump.unsigned_abs() > TOLERANCE.as_secs()).then_some(jump)
    }
}

/// How far one time is after another, in seconds.
fn ahead(time: SystemTime, other: SystemTime) -> i64 {
    let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(other) {
        Ok(span) => seconds(span),
        Err(error) => -seconds(error.duration()),
    }
}

/// Says so when the wall clock jumps. Runs until dropped.
pub(super) async fn watch(metrics: Arc<Metrics>) {
    static JUMPED: Throttle = Throttle::new();
    let mut watch = Watch::new(SystemTime::now());
    let mut interval = tokio::time::interval(LOOK_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let wall = SystemTime::now();
        let Some(jump_seconds) = watch.look(wall) else {
            continue;
        };
        metrics.clock_jumps.inc();
        if let Some(unsaid) = JUMPED.admit("jump") {
            let now = written(wall);
            tracing::error!(
                jump_seconds,
                now,
                unsaid,
                "the clock of this machine has jumped (or the machine was suspended): certificates are signed by it, so \
                 look that it is right"
            );
        }
    }
}

/// Compares the clock with the store's and with those of the other replicas. Runs until dropped; with SQLite there are
/// no others.
pub(super) async fn compare(store: Store, metrics: Arc<Metrics>) {
    let mut interval = tokio::time::interval(COMPARE_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        // That the store is away is said elsewhere.
        let compared = store.compare_clocks(SystemTime::now).await;
        if let Ok(Some(differences)) = compared {
            judge(&differences, &metrics);
        }
    }
}

fn judge(differences: &ClockDifferences, metrics: &Metrics) {
    static DIFFERS: Throttle = Throttle::new();
    let replica = differences.replica.as_ref();
    let others = [
        ("store", Some(differences.store_ms)),
        ("replica", replica.map(|(_, ms)| *ms)),
    ];
    for (of, ahead_ms) in others {
        metrics.set_clock_ahead(of, ahead_ms.unwrap_or_default() as f64 / 1000.0);
        let Some(ahead_ms) = ahead_ms.filter(|ms| is_beyond(*ms)) else {
            continue;
        };
        if let Some(unsaid) = DIFFERS.admit(of) {
            let replica = replica.filter(|_| of == "replica");
            let replica = replica.map(|(id, _)| tracing::field::display(id));
            tracing::error!(
                of,
                ahead_ms,
                replica,
                unsaid,
                "this machine's clock differs from another's: one of them is wrong, and certificates that it signs or \
                 checks with it"
            );
        }
    }
}

fn is_beyond(milliseconds: i64) -> bool {
    Duration::from_millis(milliseconds.unsigned_abs()) > TOLERANCE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuance::authority::{CertificateAuthority, RootSource};
    use crate::store::tests::empty_store;
    use sidewind_identity::TrustDomain;

    const DAY: Duration = Duration::from_secs(86_400);

    #[tokio::test]
    async fn a_clock_before_the_build_or_the_newest_certificate_is_refused_and_told_which() {
        let (_directory, store) = empty_store().await;
        let made = SystemTime::now();
        let empty = Slots::read(store.authorities().await.unwrap()).unwrap();
        check_with(made - DAY, made - 3 * DAY, &empty).unwrap();
        let domain = TrustDomain::parse("example.org").unwrap();
        let source = RootSource::Generated;
        let authority = CertificateAuthority::open(store, domain, source, made)
            .await
            .unwrap();
        let slots = authority.slots();
        let second = Duration::from_secs(1);
        let table = [
            (made, made - DAY, ""),
            (made + 3 * DAY, made, ""),
            // Ten seconds of difference harm nobody.
            (made - 10 * second, made, ""),
            (made - 3 * DAY, made - 9 * DAY, "certificate"),
            (made - 60 * second, made - DAY, "certificate"),
            (made - 3 * DAY, made - DAY, "built"),
            (SystemTime::UNIX_EPOCH, made, "built"),
        ];
        for (now, built, expected) in table {
            match check_with(now, built, &slots) {
                Ok(()) => assert_eq!(expected, "", "{now:?}"),
                Err(error) => {
                    let text = error.to_string();
                    assert!(!expected.is_empty() && text.contains(expected), "{text}");
                    assert!(text.contains(&written(now)), "{text}");
                    assert!(text.contains("--trust-clock"), "{text}");
                }
            }
        }
    }

    #[test]
    fn this_build_has_a_time_and_it_has_come() {
        assert!(built_at() > from_unix_seconds(1_700_000_000));
        assert!(built_at() <= SystemTime::now());
    }

    #[tokio::test(start_paused = true)]
    async fn a_jump_is_told_from_time_that_passes_and_small_corrections_are_none() {
        let start = SystemTime::now();
        let mut watch = Watch::new(start);
        let five = Duration::from_secs(5);
        let (mut wall, day) = (start, 86_400);
        for (jump, expected) in [
            (0_i64, None),
            (29, None),
            (-29, None),
            (3 * day, Some(3 * day)),
            (0, None),
            (-3 * day, Some(-3 * day)),
            (60, Some(60)),
        ] {
            tokio::time::advance(five).await;
            wall += five;
            let by = Duration::from_secs(jump.unsigned_abs());
            wall = if jump < 0 { wall - by } else { wall + by };
            assert_eq!(watch.look(wall), expected, "{jump}");
        }
        tokio::time::advance(30 * DAY).await;
        assert_eq!(watch.look(wall + 30 * DAY), None);
    }
}
