//! Frames as gRPC's C library writes them, and worse.

use super::*;
use proptest::prelude::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
    [&head, payload].concat()
}

/// A field as gRPC's C library writes it.
fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    let length = |text: &[u8]| u8::try_from(text.len()).unwrap();
    [&[0x40, length(name)], name, &[length(value)], value].concat()
}

fn after_preface(frames: &[Vec<u8>]) -> Vec<u8> {
    [PREFACE, &frames.concat()].concat()
}

/// What the connection reads, when bytes arrive in pieces of this size.
fn scanned(bytes: &[u8], piece: usize) -> Vec<u8> {
    let mut scanner = Scanner::default();
    let mut bytes = bytes.to_vec();
    bytes
        .chunks_mut(piece)
        .for_each(|piece| scanner.scan(piece));
    bytes
}

#[test]
fn the_authority_is_made_acceptable_however_its_bytes_arrive() {
    let path = field(b":path", b"/a%2Fb");
    let block = [
        path.clone(),
        field(AUTHORITY, b"run%2Fw%2Esock"),
        vec![0x83, 0x86],
        path,
    ];
    let block = block.concat();
    let others = [
        frame(0x4, 0, &[0; 36]),
        frame(0x8, 0, &[0, 0x3f, 0, 1]),
        frame(0x0, 1, b":authority%"),
    ];
    let padded = [&[4], block.as_slice(), b"%%%%"].concat();
    let with_priority = [&[0, 0, 0, 0, b'%'], block.as_slice()].concat();
    let both = [&[2, 0, 0, 0, 0, b'%'], block.as_slice(), b"%%"].concat();
    let (first, second) = block.split_at(20);
    let headers = [
        vec![frame(HEADERS, 4, &block)],
        vec![frame(HEADERS, 4 | PADDED, &padded)],
        vec![frame(HEADERS, 4 | PRIORITY, &with_priority)],
        vec![frame(HEADERS, 4 | PADDED | PRIORITY, &both)],
        vec![frame(HEADERS, 0, first), frame(CONTINUATION, 4, second)],
    ];
    for headers in headers {
        let sent = after_preface(&[&others[..], &headers, &others, &headers].concat());
        let whole = scanned(&sent, usize::MAX);
        let text = String::from_utf8_lossy(&whole).into_owned();
        assert_eq!(text.matches("run-2Fw-2Esock").count(), 2, "{text}");
        let changed = sent.iter().zip(&whole).filter(|(one, other)| one != other);
        assert_eq!(changed.count(), 4, "two in each authority");
        for piece in 1..40 {
            assert_eq!(scanned(&sent, piece), whole, "{piece}");
        }
    }
}

#[test]
fn a_name_by_its_index_and_long_values_are_followed() {
    let long = "a%".repeat(300);
    let length = long.len() - 127;
    let number = [0x7f, (length % 128) as u8 | 0x80, (length / 128) as u8];
    for first in [0x41, 0x01, 0x11] {
        let block = [&[first], &number[..], long.as_bytes(), &field(b"x", b"%")].concat();
        let whole = scanned(&after_preface(&[frame(HEADERS, 4, &block)]), 7);
        let text = String::from_utf8_lossy(&whole).into_owned();
        assert!(text.contains(&"a-".repeat(300)) && text.ends_with('%'));
    }
}

#[test]
fn huffman_code_and_other_names_are_left_alone() {
    let mut huffman = field(AUTHORITY, b"%%%%");
    huffman[12] |= 0x80;
    let longer = field(b":authority-", b"%");
    let shorter = field(b":authorit", b"%");
    for block in [huffman, longer, shorter, field(b"", b"%")] {
        let sent = after_preface(&[frame(HEADERS, 4, &block)]);
        assert_eq!(scanned(&sent, 3), sent);
    }
}

proptest! {
    #[test]
    fn whatever_arrives_nothing_but_percent_signs_changes(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        headers in any::<bool>(),
        flags in any::<u8>(),
        piece in 1_usize..20,
    ) {
        let sent = if headers {
            after_preface(&[frame(HEADERS, flags, &bytes), bytes])
        } else {
            [PREFACE, &bytes].concat()
        };
        for (one, other) in sent.iter().zip(scanned(&sent, piece)) {
            prop_assert!(*one == other || (*one == b'%' && other == b'-'));
        }
    }
}
