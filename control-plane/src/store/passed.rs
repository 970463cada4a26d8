//! The time that has surely passed, which is what things are forgotten by.
//!
//! A wall clock that jumps forward says of everything that its time is over. Forgetting does not come back when the clock
//! does, so it goes by another time: one that follows the wall clock while that goes on as time does, and that runs on by
//! itself where the clock jumps ahead, until the clock has stayed there for two days: as long as anything that is
//! forgotten by it could still be used. It is kept in the store, so that a restart does not take the jump for time that
//! passed in between (nor time that did pass, of which it cannot know; then it stays behind by the length of the pause for
//! two days, and things are kept for that much longer). Replicas tell one another how far they have come, so that one which
//! was suspended is not behind for long.

use super::{Store, StoreError, from_unix_seconds, unix_seconds};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// What clocks are corrected by without being wrong.
const TOLERANCE: Duration = Duration::from_secs(30);
/// How long a clock must have been ahead to be believed: twice as long as any certificate lives.
const BELIEVED_AFTER: Duration = Duration::from_secs(2 * 86_400);
const NAME: &str = "time_passed";

/// The time that has passed; nothing is known of it until it [begins](Store::begin_time), and the wall clock is believed.
#[derive(Debug, Default)]
pub(super) struct Passed(Mutex<Option<Line>>);

#[derive(Debug, Clone, Copy)]
struct Line {
    /// What had passed when it was last looked at, and when that was.
    at: SystemTime,
    seen: Instant,
    /// When a jump ahead was noticed, and what the wall clock said then.
    jumped: Option<(Instant, SystemTime)>,
}

impl Line {
    fn now(&self) -> SystemTime {
        self.at + self.seen.elapsed()
    }

    /// What has passed while the wall clock says a time: never more than that.
    fn under(&self, wall: SystemTime) -> SystemTime {
        let now = self.now();
        if wall <= now + TOLERANCE { wall } else { now }
    }

    /// Follows the wall clock.
    fn look(&mut self, wall: SystemTime) {
        let (at, seen) = (self.under(wall), Instant::now());
        *self = if at == wall {
            Self {
                at,
                seen,
                jumped: None,
            }
        } else {
            // One that jumps once more has to stay for as long again.
            let goes_on =
                |(since, then): &(Instant, SystemTime)| wall <= *then + since.elapsed() + TOLERANCE;
            let jumped = self.jumped.filter(goes_on).unwrap_or((seen, wall));
            if jumped.0.elapsed() < BELIEVED_AFTER {
                let jumped = Some(jumped);
                Self { at, seen, jumped }
            } else {
                let (at, jumped) = (wall, None);
                Self { at, seen, jumped }
            }
        };
    }
}

impl Passed {
    fn line(&self) -> MutexGuard<'_, Option<Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// The time that has surely passed while the wall clock says a time: that one, or an earlier one.
    #[must_use]
    pub fn passed(&self, wall: SystemTime) -> SystemTime {
        self.passed.line().map_or(wall, |line| line.under(wall))
    }

    /// The later of the wall clock's time and that which has passed: what is kept from then on is not kept too short
    /// by a clock that is behind.
    #[must_use]
    pub fn latest(&self, wall: SystemTime) -> SystemTime {
        self.passed.line().map_or(wall, |line| line.now().max(wall))
    }

    /// Takes the time up where the store has it.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn begin_time(&self, wall: SystemTime) -> Result<(), StoreError> {
        let mut line = Line {
            at: self.time_passed().await?.unwrap_or(wall),
            seen: Instant::now(),
            jumped: None,
        };
        line.look(wall);
        *self.passed.line() = Some(line);
        self.keep_time(wall).await
    }

    /// Follows the wall clock, and keeps how far time has come. Before it [began](Self::begin_time) it does nothing.
    ///
    /// # Errors
    /// When the store fails; the clock is followed all the same.
    pub async fn keep_time(&self, wall: SystemTime) -> Result<(), StoreError> {
        let looked = self.passed.line().as_mut().map(|line| {
            line.look(wall);
            line.at
        });
        let Some(at) = looked else {
            return Ok(());
        };
        // A clock that was put back takes the time of its process along. Among replicas it is one of several.
        let statement = if self.is_shared() {
            "INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE
             SET value = CAST(greatest(CAST(settings.value AS BIGINT), CAST($2 AS BIGINT)) AS TEXT)"
        } else {
            "INSERT INTO settings (name, value) VALUES ($1, $2)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value"
        };
        sqlx::query(statement)
            .bind(NAME)
            .bind(unix_seconds(at).to_string())
            .execute(&self.pool)
            .await?;
        if self.is_shared()
            && let Some(others) = self.time_passed().await?
            && let Some(line) = self.passed.line().as_mut()
            && others > line.now()
        {
            (line.at, line.seen) = (others, Instant::now());
        }
        Ok(())
    }

    /// Takes a time for the one that has passed.
    #[cfg(test)]
    pub(crate) fn set_passed(&self, at: SystemTime) {
        let (seen, jumped) = (Instant::now(), None);
        *self.passed.line() = Some(Line { at, seen, jumped });
    }

    async fn time_passed(&self) -> Result<Option<SystemTime>, StoreError> {
        let text = self.setting(NAME).await?;
        let seconds = text.map(|text| text.parse().map(from_unix_seconds));
        seconds.transpose().map_err(|_| StoreError::Corrupt {
            what: "time that has passed",
            why: "it is not a number of seconds".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{each_store, state_dir};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(86_400);

    /// Whole seconds, as the store has them.
    fn start() -> SystemTime {
        from_unix_seconds(1_800_000_000)
    }

    /// Lets time pass, with a look at a clock that is so far ahead each hour.
    async fn pass(line: &mut Line, wall: &mut SystemTime, time: Duration) {
        let mut left = time;
        while !left.is_zero() {
            let step = left.min(HOUR);
            tokio::time::advance(step).await;
            (*wall, left) = (*wall + step, left - step);
            line.look(*wall);
        }
    }

    fn line() -> Line {
        Line {
            at: start(),
            seen: Instant::now(),
            jumped: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_jump_is_no_time_until_it_has_lasted_for_two_days() {
        let (mut line, mut wall) = (line(), start());
        pass(&mut line, &mut wall, 5 * DAY).await;
        assert_eq!(line.under(wall), start() + 5 * DAY);
        wall += 3 * DAY;
        // Before it was looked at, and after.
        assert_eq!(line.under(wall), start() + 5 * DAY);
        pass(&mut line, &mut wall, 2 * DAY).await;
        assert_eq!(line.under(wall), start() + 7 * DAY);
        pass(&mut line, &mut wall, HOUR).await;
        assert_eq!(line.under(wall), wall);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_goes_on_jumping_is_not_believed_and_one_that_returns_is() {
        let (mut line, mut wall) = (line(), start());
        for day in 1..=6 {
            wall += DAY;
            pass(&mut line, &mut wall, DAY).await;
            assert_eq!(line.under(wall), start() + day * DAY, "{day}");
        }
        wall = start() + 6 * DAY;
        pass(&mut line, &mut wall, HOUR).await;
        assert_eq!(line.under(wall), wall);
        // Small corrections are none of it; and nothing has passed that the clock does not say.
        assert_eq!(line.under(wall + 20 * SECOND), wall + 20 * SECOND);
        assert_eq!(line.under(wall - DAY), wall - DAY);
        wall -= 3 * DAY;
        pass(&mut line, &mut wall, HOUR).await;
        wall += 3 * DAY;
        assert_eq!(line.under(wall), wall - 3 * DAY);
    }

    #[tokio::test]
    async fn a_restart_under_a_clock_that_jumped_goes_on_from_what_the_store_has() {
        let (_directory, state) = state_dir();
        let before = Store::open(&state).await.unwrap();
        assert_eq!(before.passed(start()), start(), "it has not begun");
        before.begin_time(start()).await.unwrap();
        before.close().await;
        drop(before);
        let after = Store::open(&state).await.unwrap();
        after.begin_time(start() + 3 * DAY).await.unwrap();
        let passed = after.passed(start() + 3 * DAY);
        assert!(passed < start() + HOUR, "{passed:?}");
        assert_eq!(after.passed(start() + SECOND), start() + SECOND);
    }

    #[tokio::test]
    async fn a_replica_hears_from_the_others_how_much_time_has_passed() {
        for store in each_store().await {
            let other = store.second_replica().await;
            store.begin_time(start()).await.unwrap();
            if !store.is_shared() {
                continue;
            }
            other.begin_time(start()).await.unwrap();
            // This one was suspended for an hour; it cannot know that its clock is right.
            let now = start() + HOUR;
            assert!(store.passed(now) < now);
            other.set_passed(now);
            other.keep_time(now).await.unwrap();
            store.keep_time(now).await.unwrap();
            assert_eq!(store.passed(now), now);
            // And one whose clock was put back bans nobody for too short a time.
            other.keep_time(start() - 3 * DAY).await.unwrap();
            assert!(other.latest(start() - 3 * DAY) >= now);
            assert_eq!(other.passed(start() - 3 * DAY), start() - 3 * DAY);
        }
    }
}
