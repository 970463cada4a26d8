//! Writing PEM (RFC 7468); reading it is rustls-pki-types' work.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use zeroize::Zeroizing;

const LINE_BYTES: usize = 64;

/// One PEM section with a final newline.
///
/// Leaves no copy of the text behind, so that private keys may be written by it.
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    let base64 = Zeroizing::new(STANDARD.encode(der));
    let frame = "-----BEGIN -----\n-----END -----\n".len() + 2 * label.len();
    // The whole size at once: growing would leave earlier copies in freed memory.
    let mut text = String::with_capacity(frame + base64.len() + base64.len() / LINE_BYTES + 1);
    text.extend(["-----BEGIN ", label, "-----\n"]);
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE_BYTES));
        text.extend([line, "\n"]);
        rest = after;
    }
    text.extend(["-----END ", label, "-----\n"]);
    text
}

#[cfg(test)]
mod tests {
    use super::encode;

    #[test]
    fn the_text_is_made_without_growing() {
        for length in 0..200 {
            let text = encode("CERTIFICATE", &vec![0x5a; length]);
            assert!(text.capacity() - text.len() <= 1, "{length}");
        }
    }
}
