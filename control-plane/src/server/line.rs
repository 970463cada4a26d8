//! Attestations wait in line, so many at once are served, and who finds the line too long is told when to come again.
//!
//! After an outage every proxy that lost its certificate comes at once. Each that is turned away has cost a handshake,
//! as much as what it came for, so that turning it away twice is what makes a crowd last. So those who are turned away
//! get appointments, one after the other at the pace at which the line moves.

use crate::attest::ASKING_AT_ONCE;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// Attestations under way at once. Not all of them may wait for others.
const AT_ONCE: u32 = 64;
const _: () = assert!(ASKING_AT_ONCE < AT_ONCE as usize);
/// How long the line may be: two thirds of the time that a proxy gives a call.
const LONGEST_LINE: Duration = Duration::from_secs(10);
/// How long somebody stands in line, should it move more slowly than it did.
const LONGEST_WAIT: Duration = Duration::from_secs(12);
/// The latest appointment; a proxy waits no longer for being asked to, either.
const LATEST_APPOINTMENT: Duration = Duration::from_secs(60);
/// What is asked for is this part of the time until an appointment: a proxy waits for as long as it is asked to and up
/// to half as much again, so that the middle of it is the appointment.
const ASKED_PART: f64 = 0.8;
/// How long an attestation takes before one was measured.
const FIRST_GUESS: Duration = Duration::from_millis(20);
/// How much the latest measurement counts.
const WEIGHT: f64 = 0.05;

/// The line of attestations.
#[derive(Debug)]
pub(super) struct Line {
    places: Semaphore,
    waiting: AtomicUsize,
    pace: Mutex<Pace>,
}

#[derive(Debug)]
struct Pace {
    /// How long an attestation takes, of late.
    takes: Duration,
    /// The last appointment that was given.
    appointment: Instant,
}

/// A turn; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    line: &'a Line,
    since: Instant,
    _place: SemaphorePermit<'a>,
}

/// Counts somebody who stands in line, also when they go away.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Line {
    pub(super) fn new() -> Self {
        Self {
            places: Semaphore::new(AT_ONCE as usize),
            waiting: AtomicUsize::new(0),
            pace: Mutex::new(Pace {
                takes: FIRST_GUESS,
                appointment: Instant::now(),
            }),
        }
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// How long to stay away, when the line is too long.
    pub(super) async fn turn(&self) -> Result<Turn<'_>, Duration> {
        if self.expected_wait() > LONGEST_LINE {
            return Err(self.appointment());
        }
        let waiting = Waiting::begin(&self.waiting);
        let place = tokio::time::timeout(LONGEST_WAIT, self.places.acquire()).await;
        drop(waiting);
        let Ok(Ok(place)) = place else {
            return Err(self.appointment());
        };
        Ok(Turn {
            line: self,
            since: Instant::now(),
            _place: place,
        })
    }

    /// How long to stay away for an appointment behind everybody who is in line or has one.
    pub(super) fn appointment(&self) -> Duration {
        let now = Instant::now();
        let behind_the_line = now + self.expected_wait();
        let mut pace = self.pace();
        let next = pace.appointment.max(behind_the_line) + pace.takes / AT_ONCE;
        pace.appointment = next.min(now + LATEST_APPOINTMENT);
        (pace.appointment - now).mul_f64(ASKED_PART)
    }

    fn expected_wait(&self) -> Duration {
        let waiting = u32::try_from(self.waiting.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        self.pace().takes.saturating_mul(waiting) / AT_ONCE
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let took = self.since.elapsed();
        let mut pace = self.line.pace();
        pace.takes = pace.takes.mul_f64(1.0 - WEIGHT) + took.mul_f64(WEIGHT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const SECOND: Duration = Duration::from_secs(1);

    /// So many come at once, and each takes a second; how long those who are turned away are asked to stay away.
    async fn crowd(line: &Arc<Line>, number: usize) -> Vec<Duration> {
        let mut comers = tokio::task::JoinSet::new();
        for _ in 0..number {
            let line = Arc::clone(line);
            comers.spawn(async move {
                let turn = line.turn().await?;
                tokio::time::sleep(SECOND).await;
                drop(turn);
                Ok(())
            });
        }
        let mut asked: Vec<_> = comers
            .join_all()
            .await
            .into_iter()
            .filter_map(Result::err)
            .collect();
        asked.sort();
        asked
    }

    /// A line that knows that an attestation takes a second.
    fn line() -> Arc<Line> {
        let line = Arc::new(Line::new());
        line.pace().takes = SECOND;
        line
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_as_are_served_in_time_wait_and_nobody_is_turned_away() {
        let line = line();
        assert!(crowd(&line, 10 * AT_ONCE as usize).await.is_empty());
        assert_eq!(line.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_are_turned_away_come_back_one_after_the_other_at_the_pace_of_the_line() {
        let line = line();
        let asked = crowd(&line, 30 * AT_ONCE as usize).await;
        // About ten seconds' worth are served; the others come back over the twenty seconds after those.
        let expected = 18 * AT_ONCE as usize..=20 * AT_ONCE as usize;
        assert!(expected.contains(&asked.len()), "{}", asked.len());
        let (first, last) = (asked[0], asked[asked.len() - 1]);
        assert!((7 * SECOND..9 * SECOND).contains(&first), "{first:?}");
        assert!((22 * SECOND..25 * SECOND).contains(&last), "{last:?}");
        let in_each_second = |second: u32| {
            let within = second * SECOND..(second + 1) * SECOND;
            asked.iter().filter(|asked| within.contains(*asked)).count()
        };
        for second in 9..22 {
            let number = in_each_second(second);
            // Those asked to wait 0.8 s apart come a second apart in the middle.
            assert!((70..=90).contains(&number), "{second}: {number}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_to_stay_away_for_longer_than_a_minute() {
        let line = line();
        let asked = crowd(&line, 200 * AT_ONCE as usize).await;
        assert!(asked.iter().all(|asked| *asked <= 60 * SECOND));
        tokio::time::advance(100 * SECOND).await;
        let asked = crowd(&line, 12 * AT_ONCE as usize).await;
        assert!(asked.iter().all(|asked| *asked < 12 * SECOND), "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_line_learns_how_long_an_attestation_takes() {
        let line = Arc::new(Line::new());
        crowd(&line, 4 * AT_ONCE as usize).await;
        let takes = line.pace().takes;
        assert!(takes > SECOND.mul_f64(0.95), "{takes:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_waiting_leaves_the_line() {
        let line = line();
        let mut turns = Vec::new();
        for _ in 0..AT_ONCE {
            turns.push(line.turn().await.unwrap());
        }
        let gave_up = tokio::time::timeout(SECOND, line.turn()).await;
        assert!(gave_up.is_err());
        assert_eq!(line.waiting.load(Ordering::Relaxed), 0);
    }
}
