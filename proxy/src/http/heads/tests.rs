use proptest::prelude::*;

use super::*;

const LIMIT: usize = 64 * 1024;

/// Where in `bytes`, read in pieces of these sizes, the first request with two lengths begins. Of a head that came
/// in pieces that is where its last piece begins.
fn refused_at(bytes: &[u8], sizes: impl IntoIterator<Item = usize>) -> Option<usize> {
    let mut heads = Heads::new(LIMIT);
    let mut at = 0;
    let mut sizes = sizes.into_iter();
    while at < bytes.len() {
        let size = sizes
            .next()
            .unwrap_or(bytes.len())
            .clamp(1, bytes.len() - at);
        if let Some(good) = heads.read(&bytes[at..at + size]) {
            return Some(at + good);
        }
        at += size;
    }
    None
}

const TWO_LENGTHS: &str = "POST / HTTP/1.1\r\nhost: a\r\nContent-Length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";

/// Requests after which the next one begins where it seems to.
const HARMLESS: [&str; 9] = [
    "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "\r\nGET / HTTP/1.1\r\nhost: a\r\nx-length: content-length\r\n\r\n",
    "GET / HTTP/1.1\nhost: a\n\n",
    "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "POST / HTTP/1.1\r\nhost: a\r\nCONTENT-LENGTH:  7 \r\n\r\nGET / H",
    "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\
     5;name=\"value\"\r\nhello\r\n1a \t\r\nPOST / HTTP/1.1\r\nhost: a\r\n\r\n0\r\nx: y\r\nz: \r\n\r\n",
    "PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n00C\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 84\r\n\r\n\
     POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n....",
];

#[test]
fn the_order_and_spelling_of_the_two_lengths_do_not_matter() {
    for fields in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "Transfer-Encoding:chunked\r\nx: y\r\nCONTENT-LENGTH:\t5",
        "transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\ncontent-length: 5",
        "content-length: nonsense\r\ntransfer-encoding: chunked",
    ] {
        let request = format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n0\r\n\r\n");
        assert_eq!(refused_at(request.as_bytes(), []), Some(0), "{fields}");
    }
}

#[test]
fn what_follows_what_is_no_request_is_not_looked_at() {
    for first in [
        "\u{16}\u{3}\u{1} nonsense\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: many\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nnone\r\n",
    ] {
        let bytes = format!("{first}{TWO_LENGTHS}");
        assert_eq!(refused_at(bytes.as_bytes(), []), None, "{first:?}");
    }
    let mut heads = Heads::new(LIMIT);
    heads.stop();
    assert_eq!(heads.read(TWO_LENGTHS.as_bytes()), None);
}

#[test]
fn a_head_without_end_is_not_kept() {
    let mut heads = Heads::new(LIMIT);
    heads.read(b"GET / HTTP/1.1\r\n");
    for _ in 0..LIMIT {
        heads.read(b"x: y\r\n");
    }
    assert!(matches!(heads.state, State::Blind), "{heads:?}");
}

proptest! {
    #[test]
    fn a_request_with_two_lengths_is_found_after_any_others_and_in_any_pieces(
        before in prop::collection::vec(prop::sample::select(&HARMLESS[..]), 0..6),
        after in prop::sample::select(&HARMLESS[..]),
        sizes in prop::collection::vec(1_usize..200, 0..40),
        small in any::<bool>(),
    ) {
        let before = before.concat();
        let harmless = format!("{before}{after}");
        let bytes = format!("{before}{TWO_LENGTHS}{after}");
        let sizes = if small { vec![1; bytes.len()] } else { sizes };
        prop_assert_eq!(refused_at(harmless.as_bytes(), sizes.iter().copied()), None);
        let found = refused_at(bytes.as_bytes(), sizes);
        let head_ends = before.len() + TWO_LENGTHS.find("\r\n\r\n").unwrap() + 4;
        prop_assert!(
            found.is_some_and(|at| (before.len()..head_ends).contains(&at)),
            "{:?} in {}..{}", found, before.len(), head_ends,
        );
    }

    #[test]
    fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut heads = Heads::new(100);
        for piece in bytes.chunks(7) {
            if heads.read(piece).is_some() {
                break;
            }
        }
    }
}
