//! Single values, as people write them.

use super::*;

#[test]
fn served_ports_are_read_in_all_their_forms() {
    use sidewind_api::v1::Protocol;

    for (text, target, protocol, service, service_port) in [
        ("8080", 8080, Protocol::Unspecified, None, 8080),
        ("8080/tcp", 8080, Protocol::Tcp, None, 8080),
        (
            "orders.data=8080",
            8080,
            Protocol::Unspecified,
            Some("orders.data"),
            8080,
        ),
        (
            "orders.data:80=8080/http",
            8080,
            Protocol::Http,
            Some("orders.data"),
            80,
        ),
        ("o.d:443=8443/tls", 8443, Protocol::Tls, Some("o.d"), 443),
        ("o.d:90=9090/grpc", 9090, Protocol::Grpc, Some("o.d"), 90),
        ("o.d:90=9090/http2", 9090, Protocol::Http2, Some("o.d"), 90),
        (
            "o.d:90=9090/auto",
            9090,
            Protocol::Unspecified,
            Some("o.d"),
            90,
        ),
    ] {
        let served: ServedPort = text.parse().unwrap();
        assert_eq!(
            served,
            ServedPort {
                target_port: target,
                protocol,
                service: service.map(ToOwned::to_owned),
                service_port,
            },
            "{text}"
        );
    }
}

#[test]
fn blocks_of_addresses_lose_the_bits_behind_their_prefix() {
    for (text, expected) in [
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("10.1.2.3", "10.1.2.3/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("fd00::1/8", "fd00::/8"),
        ("::1", "::1/128"),
        ("::/0", "::/0"),
    ] {
        assert_eq!(text.parse::<Cidr>().unwrap().to_string(), expected);
    }
}

#[test]
fn durations_are_written_as_they_are_read() {
    for text in ["0ms", "1ms", "1500ms", "30s", "90s", "2m", "1h", "25h"] {
        let duration = values::duration(text).unwrap();
        assert_eq!(
            values::duration(&values::format_duration(duration)).unwrap(),
            duration
        );
    }
    for text in [
        "",
        "s",
        "1",
        "1x",
        "-1s",
        "1s ",
        "99999999999999999999s",
        "18446744073709551615h",
    ] {
        assert!(text == "1s " || values::duration(text).is_err(), "{text}");
    }
}
