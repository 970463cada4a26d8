use proptest::prelude::*;

use super::*;

const LIMIT: usize = 64 * 1024;

/// Where in `bytes`, read in pieces of these sizes, the first request begins that is refused. Of a head that came
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
        if let Err(refused) = heads.read(&bytes[at..at + size]) {
            return Some(at + refused.good);
        }
        at += size;
    }
    None
}

const TWO_LENGTHS: &str = "POST / HTTP/1.1\r\nhost: a\r\nContent-Length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";

/// Requests after which the next one begins where it seems to.
const HARMLESS: [&str; 8] = [
    "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "\r\nGET / HTTP/1.1\r\nhost: a\r\nx-length: content-length\r\n\r\n",
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
fn what_hyper_would_take_and_others_read_differently_is_refused() {
    let cases = [
        ("host: a\n\n", BadRequest::BareLineFeed),
        ("host: a\r\nx: y\n\r\n", BadRequest::BareLineFeed),
        (
            "host: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            BadRequest::UnsupportedEncoding,
        ),
        (
            "host: a\r\ntransfer-encoding: chunked, chunked\r\n\r\n",
            BadRequest::UnsupportedEncoding,
        ),
        (
            "host: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
            BadRequest::UnsupportedEncoding,
        ),
    ];
    for (rest, why) in cases {
        let request = format!("POST / HTTP/1.1\r\n{rest}0\r\n\r\n");
        let refused = Heads::new(LIMIT).read(request.as_bytes());
        assert_eq!(refused, Err(Refused { good: 0, why }), "{rest:?}");
    }
}

#[test]
fn a_chunked_body_breaks_off_before_the_byte_that_must_not_be_there() {
    let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    for (good, bad) in [
        ("", "none\r\n"),
        ("5", "\nhello\r\n0\r\n\r\n"),
        ("5;a", "\nhello\r\n0\r\n\r\n"),
        ("5;a\r", "b\r\nhello\r\n0\r\n\r\n"),
        ("5\r\nhello", "\n0\r\n\r\n"),
        ("5\r\nhello", "X\r\n0\r\n\r\n"),
        ("FFFFFFFFFFFFFFFF", "5\r\n"),
        ("0\r\n", "\nGET / HTTP/1.1\r\nhost: a\r\n\r\n"),
        ("0\r\nx: y", "\n\r\n"),
    ] {
        let request = format!("{head}{good}{bad}");
        let refused = Heads::new(LIMIT).read(request.as_bytes());
        let expected = Refused {
            good: head.len() + good.len(),
            why: BadRequest::InvalidChunk,
        };
        assert_eq!(refused, Err(expected), "{good:?} and {bad:?}");
    }
}

#[test]
fn what_follows_what_is_no_request_is_not_looked_at() {
    for first in [
        "\u{16}\u{3}\u{1} nonsense\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: many\r\n\r\n",
    ] {
        let bytes = format!("{first}{TWO_LENGTHS}");
        assert_eq!(refused_at(bytes.as_bytes(), []), None, "{first:?}");
    }
    let mut heads = Heads::new(LIMIT);
    heads.stop();
    assert_eq!(heads.read(TWO_LENGTHS.as_bytes()), Ok(()));
}

#[test]
fn a_head_without_end_is_not_kept() {
    let mut heads = Heads::new(LIMIT);
    assert_eq!(heads.read(b"GET / HTTP/1.1\r\n"), Ok(()));
    for _ in 0..LIMIT {
        assert_eq!(heads.read(b"x: y\r\n"), Ok(()));
    }
    assert!(heads.take_unreadable().is_some(), "{heads:?}");
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
            if heads.read(piece).is_err() {
                break;
            }
        }
    }
}
