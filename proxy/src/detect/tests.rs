use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A ClientHello for `name`, as a client with a few extensions sends it.
fn client_hello(name: &str) -> Vec<u8> {
    let mut server_name = vec![0, 0];
    let entry = name.len() as u16 + 3;
    server_name.extend((entry + 2).to_be_bytes());
    server_name.extend(entry.to_be_bytes());
    server_name.push(0);
    server_name.extend((name.len() as u16).to_be_bytes());
    server_name.extend(name.as_bytes());

    let mut extensions = vec![0, 43, 0, 3, 2, 3, 4];
    extensions.extend(&server_name);
    extensions.extend([0, 51, 0x05, 0x00]);
    extensions.extend(vec![9; 0x500]);

    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.push(32);
    hello.extend([8; 32]);
    hello.extend([0, 4, 0x13, 1, 0x13, 2, 1, 0]);
    hello.extend((extensions.len() as u16).to_be_bytes());
    hello.extend(extensions);

    let mut record = vec![0x16, 3, 1];
    record.extend((hello.len() as u16 + 4).to_be_bytes());
    record.push(1);
    record.extend(&(hello.len() as u32).to_be_bytes()[1..]);
    record.extend(hello);
    record
}

fn tls(name: Option<&str>) -> Detected {
    Detected::Tls {
        server_name: name.map(str::to_owned),
    }
}

/// First bytes of clients, what they are, and after how many bytes that is certain.
fn samples() -> Vec<(Vec<u8>, Detected, usize)> {
    let hello = client_hello("Api.Example.org");
    let hello_len = hello.len();
    let text = |text: &str, detected, after| (text.as_bytes().to_vec(), detected, after);
    use Detected::{Http1, Http2, Opaque};
    vec![
        text("GET / HTTP/1.1\r\nhost: a\r\n\r\n", Http1, 5),
        text("POST /dags/x/runs HTTP/1.1\r\n", Http1, 6),
        text("PRI / HTTP/1.1\r\n", Http1, 5),
        text("PRI * HTTP/1.1\r\n", Http1, 12),
        text("get http://orders/ HTTP/1.1\r\n", Http1, 11),
        text("GET https://orders/ HTTP/1.1\r\n", Http1, 12),
        text("OPTIONS * HTTP/1.1\r\n", Http1, 10),
        text("CONNECT orders:443 HTTP/1.1\r\n", Http1, 9),
        text("CONNECT [::1]:443 HTTP/1.1\r\n", Http1, 9),
        text("M-SEARCH * HTTP/1.1\r\n", Http1, 11),
        text("\r\nGET / HTTP/1.1\r\n", Http1, 7),
        text("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0", Http2, 24),
        (hello, tls(Some("api.example.org")), hello_len),
        // Redis, as RESP and inline; memcached; SMTP; SSH; AMQP; Postgres SSLRequest.
        text("*2\r\n$5\r\nHELLO\r\n", Opaque, 3),
        text("PING\r\n", Opaque, 5),
        text("GET key\r\n", Opaque, 5),
        text("GET https:key\r\n", Opaque, 11),
        text("EHLO mail\r\n", Opaque, 6),
        text("SSH-2.0-paramiko_3\r\n", Opaque, 19),
        text("AMQP\0\0\u{9}\u{1}", Opaque, 5),
        (vec![0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f], Opaque, 1),
        (vec![0x16, 2, 0, 0, 5, 1, 0], Opaque, 2),
        (vec![0x16, 3, 9, 0, 5, 1, 0], Opaque, 3),
        (vec![0x16, 3, 1, 0, 5, 2, 0], Opaque, 6),
        (vec![0x16, 3, 1, 0xff, 0xff, 1, 0], Opaque, 5),
        (vec![0x16, 3, 1, 0, 0, 1, 0], Opaque, 5),
        (vec![b'A'; 200], Opaque, MAX_METHOD_BYTES + 1),
    ]
}

#[test]
fn every_client_is_recognised_at_its_byte_and_not_one_earlier() {
    for (bytes, detected, after) in samples() {
        for n in 0..=bytes.len() {
            let verdict = classify(&bytes[..n]);
            let text = String::from_utf8_lossy(&bytes[..n]);
            if n < after {
                assert!(
                    !matches!(verdict, Verdict::Is(_)),
                    "{n} {text:?}: {verdict:?}"
                );
            } else {
                assert_eq!(verdict, Verdict::Is(detected.clone()), "{n} {text:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_verdict_is_the_same_wherever_the_bytes_are_split() {
    for (bytes, detected, _) in samples() {
        for split in 0..=bytes.len().min(64) {
            let (mut client, mut io) = duplex(64 * 1024);
            let (first, second) = bytes.split_at(split);
            let (first, second) = (first.to_vec(), second.to_vec());
            let sending = tokio::spawn(async move {
                client.write_all(&first).await.unwrap();
                tokio::time::sleep(SECOND / 10).await;
                // Opaque clients may have been recognised and gone their way.
                let _ = client.write_all(&second).await;
                client
            });
            let detection = detect(&mut io, 8080, SECOND).await.unwrap();
            assert_eq!(detection.protocol, detected, "{split} of {bytes:?}");
            assert!(!detection.timed_out);
            // What was read is given back, then the rest follows.
            let mut replayed = Prefixed::new(detection.prefix, io);
            drop(sending.await.unwrap());
            let mut all = Vec::new();
            replayed.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, bytes);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_opaque_after_the_limit_and_says_so() {
    let (_client, mut io) = duplex(64);
    let began = Instant::now();
    let detection = detect(&mut io, 8080, SECOND).await.unwrap();
    assert_eq!(
        (detection.protocol, detection.timed_out),
        (Detected::Opaque, true)
    );
    assert_eq!(began.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stops_in_mid_word_is_opaque_and_loses_nothing() {
    let (mut client, mut io) = duplex(64);
    client.write_all(b"GE").await.unwrap();
    let detection = detect(&mut io, 8080, SECOND).await.unwrap();
    assert_eq!(
        (detection.protocol, detection.timed_out),
        (Detected::Opaque, true)
    );
    assert_eq!(&detection.prefix[..], b"GE");
}

#[tokio::test(start_paused = true)]
async fn a_trickling_client_does_not_prolong_the_wait() {
    let (mut client, mut io) = duplex(64);
    tokio::spawn(async move {
        for byte in b"PRI * HTTP/2.0\r\n\r\nSM" {
            client.write_all(&[*byte]).await.unwrap();
            tokio::time::sleep(SECOND / 4).await;
        }
    });
    let began = Instant::now();
    assert!(detect(&mut io, 8080, SECOND).await.unwrap().timed_out);
    assert_eq!(began.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_ends_is_what_it_said() {
    for (bytes, detected) in [
        (&b""[..], Detected::Opaque),
        (b"GE", Detected::Opaque),
        (&client_hello("a.b")[..40], tls(None)),
    ] {
        let (mut client, mut io) = duplex(4096);
        client.write_all(bytes).await.unwrap();
        drop(client);
        let detection = detect(&mut io, 8080, SECOND).await.unwrap();
        assert_eq!((detection.protocol, detection.timed_out), (detected, false));
        assert_eq!(&detection.prefix[..], bytes);
    }
}

#[tokio::test(start_paused = true)]
async fn tls_whose_hello_does_not_come_whole_is_tls_all_the_same() {
    let (mut client, mut io) = duplex(4096);
    client.write_all(&client_hello("a.b")[..100]).await.unwrap();
    let detection = detect(&mut io, 8443, SECOND).await.unwrap();
    assert_eq!(
        (detection.protocol, detection.timed_out),
        (tls(None), false)
    );
}

#[tokio::test]
async fn where_the_server_speaks_first_not_a_byte_is_waited_for_or_read() {
    for port in [21, 22, 25, 587, 3306, 4222] {
        let (mut client, mut io) = duplex(64);
        client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let detection = detect(&mut io, port, SECOND).await.unwrap();
        assert_eq!(
            (detection.protocol, detection.timed_out),
            (Detected::Opaque, false)
        );
        assert!(detection.prefix.is_empty());
    }
}

/// First bytes of clients that speak first, and what they are on the port where they belong.
fn first_bytes() -> Vec<(u16, Vec<u8>, Detected)> {
    let opaque = |port, bytes: &[u8]| (port, bytes.to_vec(), Detected::Opaque);
    vec![
        // SSLRequest, GSSENCRequest, CancelRequest, StartupMessage.
        opaque(5432, &[0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f]),
        opaque(6432, &[0, 0, 0, 8, 4, 0xd2, 0x16, 0x30]),
        opaque(
            6543,
            &[0, 0, 0, 16, 4, 0xd2, 0x16, 0x2e, 0, 0, 0, 1, 0, 0, 0, 2],
        ),
        opaque(5432, b"\0\0\0\x08\0\x03\0\0user\0airflow\0\0"),
        opaque(6379, b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n"),
        opaque(6379, b"PING\r\n"),
        opaque(5672, b"AMQP\0\0\x09\x01"),
        // TLS from the first byte: rediss, amqps on AMQP's port, Postgres with sslnegotiation=direct.
        (6379, client_hello("redis.data"), tls(Some("redis.data"))),
        (5432, client_hello("db.data"), tls(Some("db.data"))),
    ]
}

#[tokio::test(start_paused = true)]
async fn where_clients_speak_first_their_first_bytes_decide_wherever_they_are_cut() {
    for (port, bytes, whole) in first_bytes() {
        for cut in 1..=bytes.len() {
            let (mut client, mut io) = duplex(64 * 1024);
            client.write_all(&bytes[..cut]).await.unwrap();
            let began = Instant::now();
            let detection = detect(&mut io, port, SECOND).await.unwrap();
            assert_eq!(began.elapsed(), Duration::ZERO, "{cut} of {bytes:?}");
            assert!(!detection.timed_out);
            assert_eq!(&detection.prefix[..], &bytes[..cut]);
            // A part may say less than the whole, but nothing else.
            let allowed = [whole.clone(), Detected::Opaque, tls(None)];
            let right = match &whole {
                Detected::Opaque => detection.protocol == Detected::Opaque,
                _ => allowed.contains(&detection.protocol),
            };
            assert!(right, "{cut} of {bytes:?}: {:?}", detection.protocol);
            if cut == bytes.len() {
                assert_eq!(detection.protocol, whole);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_connects_before_it_has_anything_to_say_is_no_complaint() {
    for port in [5432, 6379] {
        let (_client, mut io) = duplex(64);
        let began = Instant::now();
        let detection = detect(&mut io, port, SECOND).await.unwrap();
        assert_eq!(
            (detection.protocol, detection.timed_out),
            (Detected::Opaque, false)
        );
        assert_eq!(began.elapsed(), SECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn a_post_quantum_hello_is_read_from_every_split_into_three_segments() {
    // What rustls sends with X25519MLKEM768, in segments of an Ethernet's size and at odd places.
    let hello = real_hello("api.example.org");
    assert!(hello.len() > 1460, "{}", hello.len());
    for first in [1, 5, 6, 11, 43, 517, 1459, 1460] {
        for second in [first + 1, 1461.min(hello.len() - 1), hello.len() - 1] {
            let (mut client, mut io) = duplex(64 * 1024);
            let bytes = hello.clone();
            let sending = tokio::spawn(async move {
                for part in [
                    &bytes[..first],
                    &bytes[first..second.max(first)],
                    &bytes[second.max(first)..],
                ] {
                    client.write_all(part).await.unwrap();
                    tokio::time::sleep(SECOND / 10).await;
                }
                client
            });
            let detection = detect(&mut io, 443, SECOND).await.unwrap();
            assert_eq!(
                detection.protocol,
                tls(Some("api.example.org")),
                "{first} {second}"
            );
            assert_eq!(&detection.prefix[..], &hello[..]);
            drop(sending.await.unwrap());
        }
    }
}

/// What a client of today sends first.
fn real_hello(name: &'static str) -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut client =
        rustls::ClientConnection::new(config.into(), name.try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

/// The same handshake message in records of these sizes, the last of which takes the rest.
fn in_records(hello: &[u8], sizes: impl IntoIterator<Item = usize>) -> Vec<u8> {
    let (mut records, mut message) = (Vec::new(), &hello[5..]);
    let mut sizes = sizes.into_iter();
    while !message.is_empty() {
        let size = sizes.next().unwrap_or(message.len()).min(message.len());
        let (fragment, rest) = message.split_at(size);
        records.extend([0x16, 3, 1]);
        records.extend((fragment.len() as u16).to_be_bytes());
        records.extend(fragment);
        message = rest;
    }
    records
}

#[test]
fn a_hello_in_several_records_has_its_name_wherever_they_are_split() {
    let hello = real_hello("api.example.org");
    let name = Verdict::Is(tls(Some("api.example.org")));
    for size in 1..hello.len() - 5 {
        let records = in_records(&hello, [size]);
        assert_eq!(classify(&records), name, "{size}");
        for cut in [6, size + 4, size + 5, size + 6, size + 9, records.len() - 1] {
            let part = &records[..cut.clamp(6, records.len() - 1)];
            assert_eq!(classify(part), Verdict::TlsWithoutName, "{cut} of {size}");
        }
    }
    for size in [1, 2, 3, 7, 64, 512] {
        let records = in_records(&hello, std::iter::repeat(size));
        assert_eq!(classify(&records), name, "{size}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hello_in_several_records_is_read_to_its_name_however_it_arrives() {
    let hello = in_records(&real_hello("api.example.org"), std::iter::repeat(100));
    for size in [1, 5, 104, 105, 106, 1460] {
        let (mut client, mut io) = duplex(64 * 1024);
        let bytes = hello.clone();
        let sending = tokio::spawn(async move {
            for part in bytes.chunks(size) {
                client.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            client
        });
        let detection = detect(&mut io, 443, SECOND).await.unwrap();
        assert_eq!(detection.protocol, tls(Some("api.example.org")), "{size}");
        drop(sending.await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_hello_that_goes_on_for_ever_or_as_something_else_has_no_name() {
    let hello = client_hello("api.example.org");
    let begun = &in_records(&hello, [100])[..105];
    let mut endless = begun.to_vec();
    endless[6] = 0xff;
    assert_eq!(classify(&endless[..105]), Verdict::Is(tls(None)));
    for next in [
        &[0x15, 3, 3, 0, 2][..],
        &[0x16, 3, 3, 0, 0],
        &[0x16, 3, 3, 0xff, 0xff],
        &[0x15],
    ] {
        let bytes = [begun, next].concat();
        assert_eq!(classify(&bytes), Verdict::Is(tls(None)), "{next:?}");
    }
    // One byte in each record, for as long as it is read.
    let mut large = hello;
    large[6..9].copy_from_slice(&[0, 0x3f, 0xf0]);
    large.resize(5 + 4 + 0x3ff0, 0);
    let (mut client, mut io) = duplex(1024 * 1024);
    client
        .write_all(&in_records(&large, std::iter::repeat(1)))
        .await
        .unwrap();
    let detection = detect(&mut io, 443, SECOND).await.unwrap();
    assert_eq!(detection.protocol, tls(None));
    assert!(detection.prefix.len() < MAX_PREFIX_BYTES + 64 * 1024);
}

#[test]
fn implausible_server_names_are_none() {
    for name in ["", "a b", "a\nb", "a/b", "\u{fc}", &"a".repeat(254)] {
        assert_eq!(
            classify(&client_hello(name)),
            Verdict::Is(tls(None)),
            "{name:?}"
        );
    }
}

proptest! {
    #[test]
    fn any_bytes_get_a_verdict_that_more_bytes_do_not_change(
        start in prop_oneof![
            Just(&b""[..]), Just(&b"GET "[..]), Just(&b"PRI * HTTP/2"[..]), Just(&b"\x16\x03\x01"[..]),
            Just(&b"\x16\x03\x01\x00\x40\x01\x00\x00\x3c\x03\x03"[..]), Just(&b"CONNECT "[..]),
        ],
        rest in vec(any::<u8>(), 0..200),
    ) {
        let bytes = [start, &rest].concat();
        let mut decided = None;
        for n in 0..=bytes.len() {
            let verdict = classify(&bytes[..n]);
            match (&decided, &verdict) {
                (None, Verdict::Is(detected)) => decided = Some(detected.clone()),
                (None, _) => {}
                (Some(before), after) => prop_assert_eq!(&Verdict::Is(before.clone()), after),
            }
        }
    }

    #[test]
    fn the_server_name_is_found_whatever_it_is(name in "[a-z0-9-]{1,60}(\\.[a-z0-9-]{1,60}){0,3}") {
        prop_assert_eq!(classify(&client_hello(&name)), Verdict::Is(tls(Some(&name))));
    }

    #[test]
    fn a_damaged_hello_harms_nothing(at in 0..1400_usize, value in any::<u8>(), cut in 0..1500_usize) {
        let mut hello = client_hello("api.example.org");
        if let Some(byte) = hello.get_mut(at) {
            *byte = value;
        }
        hello.truncate(cut);
        let _ = classify(&hello);
    }
}
