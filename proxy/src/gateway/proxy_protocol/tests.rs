use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn proxied(source: &str, destination: &str) -> Said {
    Said::Proxied {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
    }
}

fn v2(command: u8, family: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&SIGNATURE[..], &[command, family], &length, content].concat()
}

fn valid() -> Vec<(Vec<u8>, Said)> {
    let four = [10, 1, 2, 3, 10, 0, 0, 9, 0xc0, 0, 1, 0xbb];
    let six = [&[0xfd; 16][..], &[0xfe; 16], &[0, 80, 1, 0xbb]].concat();
    let with_extensions = [&four[..], &[0xea, 0, 3, 1, 2, 3], &[4, 0, 0]].concat();
    let text = |line: &str, said| (line.as_bytes().to_vec(), said);
    let source = proxied("10.1.2.3:49152", "10.0.0.9:443");
    vec![
        text("PROXY TCP4 10.1.2.3 10.0.0.9 49152 443\r\n", source),
        text(
            "PROXY TCP6 fd00::1 ::1 1 65535\r\n",
            proxied("[fd00::1]:1", "[::1]:65535"),
        ),
        text(
            "PROXY TCP4 255.255.255.255 0.0.0.0 0 0\r\n",
            proxied("255.255.255.255:0", "0.0.0.0:0"),
        ),
        text("PROXY UNKNOWN\r\n", Said::Own),
        text("PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Said::Own),
        (v2(0x21, 0x11, &four), source),
        (v2(0x21, 0x11, &with_extensions), source),
        (
            v2(0x21, 0x21, &six),
            Said::Proxied {
                source: SocketAddr::new([0xfd; 16].into(), 80),
                destination: SocketAddr::new([0xfe; 16].into(), 443),
            },
        ),
        (v2(0x20, 0x00, &[]), Said::Own),
        (v2(0x20, 0x11, &four), Said::Own),
        (v2(0x21, 0x00, &[1, 2, 3]), Said::Own),
        // Datagrams, and UNIX sockets.
        (v2(0x21, 0x12, &[0; 12]), Said::Own),
        (v2(0x21, 0x22, &[0; 36]), Said::Own),
        (v2(0x21, 0x31, &[0; 216]), Said::Own),
        (v2(0x21, 0x32, &[0; 216]), Said::Own),
    ]
}

#[test]
fn a_header_is_known_at_its_last_byte_whatever_follows() {
    for (bytes, said) in valid() {
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), Ok(None), "{cut} of {bytes:?}");
        }
        for rest in [&b""[..], b"GET / HTTP/1.1\r\n", b"\0", b"PROXY UNKNOWN\r\n"] {
            let whole = [&bytes[..], rest].concat();
            assert_eq!(parse(&whole), Ok(Some((said, bytes.len()))), "{bytes:?}");
        }
    }
}

#[test]
fn what_is_no_header_is_refused() {
    let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_V1_BYTES));
    let table: Vec<(Vec<u8>, HeaderError)> = vec![
        (b"GET / HTTP/1.1\r\n".to_vec(), HeaderError::Signature),
        (b"proxy TCP4".to_vec(), HeaderError::Signature),
        (b"PROXY\tTCP4".to_vec(), HeaderError::Signature),
        (b"\x16\x03\x01".to_vec(), HeaderError::Signature),
        (long.into_bytes(), HeaderError::TooLong(MAX_V1_BYTES)),
        (b"PROXY TCP4 1.2.3.4\0".to_vec(), HeaderError::Line),
        (v2(0x11, 0x11, &[0; 12]), HeaderError::Version),
        (v2(0x22, 0x11, &[0; 12]), HeaderError::Version),
        (v2(0x21, 0x13, &[0; 12]), HeaderError::Protocol),
        (v2(0x21, 0x41, &[0; 216]), HeaderError::Protocol),
        (v2(0x21, 0x11, &[0; 11]), HeaderError::Length),
        (v2(0x21, 0x21, &[0; 12]), HeaderError::Length),
        // Extensions that end in the middle.
        (v2(0x21, 0x11, &[0; 13]), HeaderError::Length),
        (
            v2(0x21, 0x11, &[&[0; 12][..], &[4, 0, 9, 1]].concat()),
            HeaderError::Length,
        ),
        (
            v2(0x21, 0x11, &[0; 2049]),
            HeaderError::TooLong(MAX_V2_BYTES),
        ),
    ];
    for (bytes, error) in table {
        assert_eq!(
            parse(&bytes),
            Err(error),
            "{:?}",
            String::from_utf8_lossy(&bytes)
        );
    }
    for line in [
        "PROXY TCP4 10.1.2.3 10.0.0.9 1 2 3",
        "PROXY TCP4 10.1.2.3 10.0.0.9 1",
        "PROXY TCP4  10.1.2.3 10.0.0.9 1 2",
        "PROXY TCP4 10.1.2.3 10.0.0.9 1 2 ",
        "PROXY TCP4 10.1.2.03 10.0.0.9 1 2",
        "PROXY TCP4 10.1.2.3 10.0.0.9 01 2",
        "PROXY TCP4 10.1.2.3 10.0.0.9 +1 2",
        "PROXY TCP4 10.1.2.3 10.0.0.9 65536 2",
        "PROXY TCP4 fd00::1 fd00::2 1 2",
        "PROXY TCP6 10.1.2.3 10.0.0.9 1 2",
        "PROXY TCP5 10.1.2.3 10.0.0.9 1 2",
        "PROXY UDP4 10.1.2.3 10.0.0.9 1 2",
        "PROXY UNKNOWNS",
        "PROXY ",
    ] {
        let bytes = format!("{line}\r\n");
        assert_eq!(parse(bytes.as_bytes()), Err(HeaderError::Line), "{line}");
    }
    assert_eq!(parse(b"PROXY UNKNOWN\r\r\n"), Err(HeaderError::Line));
    assert_eq!(parse(b"PROXY UNKNOWN\n"), Err(HeaderError::Line));
}

#[tokio::test(start_paused = true)]
async fn a_header_is_read_from_every_split_and_what_follows_is_kept() {
    for (bytes, said) in valid() {
        let whole = [&bytes[..], b"GET / HTTP/1.1\r\n"].concat();
        for cut in 0..=whole.len() {
            let (mut client, mut io) = duplex(8192);
            let (first, second) = (whole[..cut].to_vec(), whole[cut..].to_vec());
            tokio::spawn(async move {
                client.write_all(&first).await.unwrap();
                tokio::time::sleep(SECOND / 10).await;
                client.write_all(&second).await.unwrap();
            });
            let (read_said, mut rest) = read(&mut io, SECOND).await.unwrap();
            assert_eq!(read_said, said);
            let mut after = Vec::new();
            io.read_to_end(&mut after).await.unwrap();
            rest.extend_from_slice(&after);
            assert_eq!(&rest[..], b"GET / HTTP/1.1\r\n", "{cut}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_say_it_in_time_or_ends_is_not_waited_for() {
    let (mut client, mut io) = duplex(64);
    client.write_all(b"PROXY TCP4 10.").await.unwrap();
    let error = read(&mut io, SECOND).await.unwrap_err();
    assert!(matches!(error, ReadError::Timeout(_)), "{error:?}");
    drop(client);
    let error = read(&mut io, SECOND).await.unwrap_err();
    assert!(matches!(error, ReadError::Ended), "{error:?}");
}

proptest! {
    #[test]
    fn any_bytes_get_an_answer_that_more_bytes_do_not_change(
        start in prop_oneof![
            Just(&b""[..]), Just(&b"PROXY "[..]), Just(&b"PROXY TCP4 1.2.3.4 "[..]), Just(&SIGNATURE[..]),
            Just(&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..]), Just(&b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x30"[..]),
        ],
        rest in vec(any::<u8>(), 0..120),
    ) {
        let bytes = [start, &rest].concat();
        let mut decided = None;
        for cut in 0..=bytes.len() {
            let answer = parse(&bytes[..cut]);
            match (&decided, &answer) {
                (None, Ok(None)) => {}
                (None, _) => decided = Some(answer),
                (Some(before), after) => prop_assert_eq!(before, after),
            }
        }
        if bytes.len() >= MAX_V2_BYTES {
            prop_assert!(decided.is_some());
        }
    }

    #[test]
    fn what_is_written_as_version_1_is_read_back(source: SocketAddr, destination: SocketAddr) {
        // The kinds of both addresses are the same, and scopes and flow labels have no place there.
        prop_assume!(source.is_ipv4() == destination.is_ipv4());
        let plain = |address: SocketAddr| SocketAddr::new(address.ip(), address.port());
        let (source, destination) = (plain(source), plain(destination));
        let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
        let line = format!(
            "PROXY {family} {} {} {} {}\r\n",
            source.ip(), destination.ip(), source.port(), destination.port()
        );
        let said = Said::Proxied { source, destination };
        prop_assert_eq!(parse(line.as_bytes()), Ok(Some((said, line.len()))));
    }
}
