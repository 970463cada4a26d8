//! HTTP/2's connection preface (RFC 9113 section 3.4), so that what is no HTTP/2 is told from what is.

/// What every client begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How much of the preface has come.
#[derive(Debug, Default)]
pub(super) struct Preface {
    come: usize,
}

/// Something else came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it does not speak HTTP/2")]
pub(super) struct PrefaceError;

impl Preface {
    /// Whether all of it has come.
    pub(super) fn is_complete(&self) -> bool {
        self.come >= PREFACE.len()
    }

    /// Takes the next bytes of a connection; `true` when the preface ends with or in them.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<bool, PrefaceError> {
        let awaited = PREFACE.get(self.come..).unwrap_or_default();
        let number = awaited.len().min(bytes.len());
        if awaited.get(..number) != bytes.get(..number) {
            return Err(PrefaceError);
        }
        self.come += number;
        Ok(self.is_complete())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preface_is_known_however_it_is_cut() {
        for cut in 0..=PREFACE.len() {
            let mut preface = Preface::default();
            let (begin, end) = PREFACE.split_at(cut);
            assert_eq!(preface.take(begin), Ok(cut == PREFACE.len()));
            assert_eq!(preface.take(&[end, b"frames"].concat()), Ok(true));
            assert!(preface.is_complete());
        }
    }

    #[test]
    fn one_wrong_byte_is_enough() {
        for wrong in 0..PREFACE.len() {
            let mut bytes = PREFACE.to_vec();
            bytes[wrong] ^= 1;
            assert_eq!(Preface::default().take(&bytes), Err(PrefaceError));
        }
        assert_eq!(
            Preface::default().take(b"GET / HTTP/1.1"),
            Err(PrefaceError)
        );
    }
}
