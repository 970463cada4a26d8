use crate::detect::{Verdict, classify};

/// Whether the first bytes of a client say what it speaks.
pub fn is_decided(first_bytes: &[u8]) -> bool {
    matches!(classify(first_bytes), Verdict::Is(_))
}
