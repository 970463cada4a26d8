//! What is due of the keys' life, decided from the records and the clock alone.

use crate::store::{JwtKeyRecord, JwtKeyState};
use std::time::{Duration, SystemTime};

/// Lifetime of a key, from when it is published.
pub const KEY_LIFETIME: Duration = Duration::from_secs(7 * 86_400);
/// The next key is published when this part of a key's lifetime is left…
const PREPARED_AT_PART: u32 = 2;
/// …and signs when this part is.
const ACTIVATED_AT_PART: u32 = 6;
/// A key is published this long before it signs, so that those who fetch the bundle document have it: several
/// refresh hints (SPIFFE Federation section 4.1).
pub const OVERLAP: Duration = Duration::from_secs(5 * 300);
/// A key that has ended stays published a while: a clock that jumped forward and back harms nobody.
const KEPT_AFTER_END: Duration = Duration::from_secs(86_400);

/// What somebody asks for beyond what time brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Nothing.
    Nothing,
    /// One step further in the rotation.
    Rotate {
        /// Sign with the next key although it was not published for long.
        force: bool,
    },
}

/// Something to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make a key and publish it.
    Prepare,
    /// Make a key and sign with it at once: there is none.
    Begin,
    /// Sign with this prepared key.
    Activate(String),
    /// Take this key out of the bundle: everything that it signed has ended.
    Remove(String),
    /// Nothing yet: the prepared key has to be published for that much longer.
    Wait(Duration),
}

/// The steps that are due, in order. `passed` is the time that has surely passed, which is earlier than `now` when the
/// clock jumped ahead: by it a key is waited for and forgotten.
pub fn due(keys: &[JwtKeyRecord], now: SystemTime, passed: SystemTime, asked: Asked) -> Vec<Step> {
    let mut steps: Vec<Step> = keys
        .iter()
        .filter(|key| key.state == JwtKeyState::Old && key.not_after + KEPT_AFTER_END < passed)
        .map(|key| Step::Remove(key.key_id.clone()))
        .collect();
    let slot = |state| keys.iter().find(|key| key.state == state);
    let left = |key: &JwtKeyRecord| key.not_after.duration_since(now).unwrap_or_default();
    // A prepared key that ended before it was used, because the control plane was away for long, is of no use.
    let prepared = slot(JwtKeyState::Prepared).filter(|key| !left(key).is_zero());
    let active = slot(JwtKeyState::Active).filter(|key| !left(key).is_zero());
    match (active, prepared) {
        (None, None) => steps.push(Step::Begin),
        (None, Some(next)) => steps.push(Step::Activate(next.key_id.clone())),
        (Some(active), None) => {
            if asked != Asked::Nothing || left(active) <= KEY_LIFETIME / PREPARED_AT_PART {
                steps.push(Step::Prepare);
            }
        }
        (Some(active), Some(next)) => {
            // A creation that lies in the future means that the clock has gone back; then the wait begins anew.
            let published = passed.duration_since(next.created_at).unwrap_or_default();
            let waits = OVERLAP.saturating_sub(published);
            let forced = asked == Asked::Rotate { force: true };
            let time_has_come = left(active) <= KEY_LIFETIME / ACTIVATED_AT_PART;
            match asked {
                Asked::Nothing if !time_has_come => {}
                _ if waits.is_zero() || forced => steps.push(Step::Activate(next.key_id.clone())),
                Asked::Nothing => {}
                Asked::Rotate { .. } => steps.push(Step::Wait(waits)),
            }
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(86_400);

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + 20_000 * DAY
    }

    fn key(key_id: &str, state: JwtKeyState, age: Duration) -> JwtKeyRecord {
        let created_at = start() - age;
        JwtKeyRecord {
            key_id: key_id.to_owned(),
            state,
            private_key: None,
            public_key: Vec::new(),
            not_after: created_at + KEY_LIFETIME,
            created_at,
            tainted: false,
        }
    }

    const NOTHING: Asked = Asked::Nothing;
    const ROTATE: Asked = Asked::Rotate { force: false };
    const FORCE: Asked = Asked::Rotate { force: true };

    #[test]
    fn each_step_comes_at_its_time() {
        use JwtKeyState::{Active, Old, Prepared};
        let activate = |key: &str| Step::Activate(key.to_owned());
        let active = |age| key("a", Active, age);
        let prepared = |age| key("b", Prepared, age);
        let second = Duration::from_secs(1);
        let rows: [(&str, Vec<JwtKeyRecord>, Asked, Vec<Step>); 18] = [
            ("the first start", vec![], NOTHING, vec![Step::Begin]),
            ("a young key", vec![active(3 * DAY)], NOTHING, vec![]),
            (
                "half its life",
                vec![active(84 * HOUR)],
                NOTHING,
                vec![Step::Prepare],
            ),
            (
                "asked early",
                vec![active(HOUR)],
                ROTATE,
                vec![Step::Prepare],
            ),
            (
                "both, not yet time",
                vec![active(4 * DAY), prepared(DAY)],
                NOTHING,
                vec![],
            ),
            (
                "a sixth left",
                vec![active(140 * HOUR), prepared(DAY)],
                NOTHING,
                vec![activate("b")],
            ),
            (
                "just before",
                vec![active(140 * HOUR - second), prepared(DAY)],
                NOTHING,
                vec![],
            ),
            (
                "a sixth left, not yet known",
                vec![active(6 * DAY), prepared(HOUR / 4)],
                NOTHING,
                vec![],
            ),
            (
                "asked, known",
                vec![active(DAY), prepared(HOUR)],
                ROTATE,
                vec![activate("b")],
            ),
            (
                "asked, not yet known",
                vec![active(DAY), prepared(OVERLAP - second)],
                ROTATE,
                vec![Step::Wait(second)],
            ),
            (
                "forced",
                vec![active(DAY), prepared(second)],
                FORCE,
                vec![activate("b")],
            ),
            (
                "forced, none prepared",
                vec![active(DAY)],
                FORCE,
                vec![Step::Prepare],
            ),
            (
                "ended, next there",
                vec![active(8 * DAY), prepared(second)],
                NOTHING,
                vec![activate("b")],
            ),
            (
                "ended, none there",
                vec![active(8 * DAY)],
                NOTHING,
                vec![Step::Begin],
            ),
            (
                "both ended",
                vec![active(20 * DAY), prepared(16 * DAY)],
                NOTHING,
                vec![Step::Begin],
            ),
            (
                "an old one that ended",
                vec![active(DAY), key("o", Old, 8 * DAY)],
                NOTHING,
                vec![],
            ),
            (
                "an old one a day later",
                vec![active(DAY), key("o", Old, 8 * DAY + second)],
                NOTHING,
                vec![Step::Remove("o".to_owned())],
            ),
            (
                "only an old one",
                vec![key("o", Old, DAY)],
                NOTHING,
                vec![Step::Begin],
            ),
        ];
        for (name, keys, asked, expected) in rows {
            assert_eq!(due(&keys, start(), start(), asked), expected, "{name}");
        }
    }

    #[test]
    fn a_clock_that_went_back_activates_nothing_early() {
        let active = key("a", JwtKeyState::Active, 6 * DAY);
        let mut next = key("b", JwtKeyState::Prepared, DAY);
        next.created_at = start() + DAY;
        assert_eq!(due(&[active, next], start(), start(), NOTHING), []);
    }

    #[test]
    fn a_clock_that_jumped_ahead_removes_no_key_and_activates_none_early() {
        let old = key("o", JwtKeyState::Old, 8 * DAY - Duration::from_secs(60));
        let active = key("a", JwtKeyState::Active, 4 * DAY);
        let next = key("b", JwtKeyState::Prepared, Duration::from_secs(60));
        let keys = [old, active, next];
        let jumped = start() + 2 * DAY;
        assert_eq!(due(&keys, jumped, start(), NOTHING), []);
        let both = [Step::Remove("o".to_owned()), Step::Activate("b".to_owned())];
        assert_eq!(due(&keys, jumped, jumped, NOTHING), both);
    }
}
