//! A list of bans as a proxy gives it back, part by part.

use sidewind_api::bans::MAX_BANS;
use sidewind_api::v1;

/// What has come of a list that a stream was asked for.
#[derive(Debug, Default)]
pub struct Returned {
    list: v1::Bans,
    /// Nothing more is taken.
    is_over: bool,
}

/// A proxy gave back what it was not asked for, or more than there can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bans that were not asked for, or more than {MAX_BANS}")]
pub struct TooMuch;

impl Returned {
    /// Takes a part; the list, once it is whole.
    ///
    /// # Errors
    /// When there was more than there can be.
    pub fn take(&mut self, part: v1::KnownBans) -> Result<Option<v1::Bans>, TooMuch> {
        if self.is_over || self.list.bans.len() + part.bans.len() > MAX_BANS {
            return Err(TooMuch);
        }
        self.list.bans.extend(part.bans);
        if !part.last {
            return Ok(None);
        }
        self.is_over = true;
        self.list.version = part.version;
        self.list.seal = part.seal;
        Ok(Some(std::mem::take(&mut self.list)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(bans: usize, last: bool) -> v1::KnownBans {
        v1::KnownBans {
            version: 7,
            seal: vec![1],
            bans: vec![v1::Ban::default(); bans],
            last,
        }
    }

    #[test]
    fn a_list_in_parts_is_whole_with_its_last_and_bounded() {
        let mut returned = Returned::default();
        assert_eq!(returned.take(part(2, false)), Ok(None));
        let list = returned.take(part(1, true)).unwrap().unwrap();
        assert_eq!((list.version, list.bans.len(), list.seal), (7, 3, vec![1]));
        assert_eq!(returned.take(part(0, true)), Err(TooMuch));

        let mut returned = Returned::default();
        assert_eq!(returned.take(part(MAX_BANS, false)), Ok(None));
        assert_eq!(returned.take(part(1, true)), Err(TooMuch));
    }
}
