use super::*;
use proptest::prelude::*;

fn decode_percent(encoded: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = encoded.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next().unwrap(), rest.next().unwrap()];
            let text = std::str::from_utf8(&digits).unwrap();
            bytes.push(u8::from_str_radix(text, 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}

#[test]
fn an_error_for_an_http_client_is_one_sentence_with_its_code() {
    let error = ProxyError::new(ErrorCode::NoEndpoints, "orders.data has no endpoints.");
    let response: Response<Bytes> = error.into_response(false);
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["sidewind-error"], "no-endpoints");
    assert_eq!(
        response.headers()["content-type"],
        "text/plain; charset=utf-8"
    );
    assert_eq!(
        response.headers()["content-length"],
        response.body().len().to_string()
    );
    assert_eq!(&response.body()[..], b"orders.data has no endpoints.\n");
}

#[test]
fn an_error_for_airflows_client_is_said_in_the_form_of_its_api() {
    let error = ProxyError::new(ErrorCode::PolicyDenied, r#"No rule allows "worker"."#);
    let response: Response<Bytes> = error.in_json().into_response(false);
    assert_eq!(response.status(), 403);
    assert_eq!(response.headers()["sidewind-error"], "policy-denied");
    assert_eq!(response.headers()["content-type"], "application/json");
    let length = response.body().len().to_string();
    assert_eq!(response.headers()["content-length"], length);
    let said = r#"{"detail":"No rule allows \"worker\"."}"#;
    assert_eq!(&response.body()[..], said.as_bytes());
}

#[test]
fn an_error_for_a_grpc_client_is_a_trailers_only_response() {
    let error = ProxyError::new(ErrorCode::PolicyDenied, "50% of ünits\nmay not");
    let response: Response<Bytes> = error.into_response(true);
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/grpc");
    assert_eq!(response.headers()["grpc-status"], "7");
    assert_eq!(
        response.headers()["grpc-message"],
        "50%25 of %C3%BCnits\\nmay not"
    );
    assert_eq!(response.headers()["sidewind-error"], "policy-denied");
    assert!(response.body().is_empty());
}

#[test]
fn retry_after_is_rounded_up_to_whole_seconds() {
    let error = ProxyError::new(ErrorCode::Overloaded, "Too much.");
    let error = error.with_retry_after(Duration::from_millis(1_001));
    let response: Response<Bytes> = error.into_response(false);
    assert_eq!(response.headers()["retry-after"], "2");
}

#[test]
fn a_cause_is_logged_and_never_sent() {
    let cause = std::io::Error::other("password=hunter2");
    let error = ProxyError::new(ErrorCode::ConnectFailed, "10.0.0.1:80 refused.");
    let error = error.with_source(cause);
    assert_eq!(
        error.chain().to_string(),
        "10.0.0.1:80 refused.: password=hunter2"
    );
    let response: Response<Bytes> = error.into_response(false);
    assert!(!String::from_utf8_lossy(response.body()).contains("hunter2"));
}

#[test]
fn what_cannot_be_read_is_answered_with_a_reason_too() {
    let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\n\r\n";
    let answer = unreadable_request(bare, None).unwrap();
    let answer = std::str::from_utf8(&answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"));
    assert!(answer.contains("\r\nsidewind-error: header-too-large\r\n"));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("content-length: {}", body.len())));
    assert_eq!(unreadable_request(b"HTTP/1.1 200 OK\r\n\r\n", None), None);
    assert_eq!(unreadable_request(b"", None), None);
}

#[test]
fn a_message_is_bounded() {
    let error = ProxyError::new(ErrorCode::BadRequest, "é".repeat(10_000));
    assert!(error.message().len() <= MAX_MESSAGE_BYTES + '…'.len_utf8() + 1);
    assert!(error.message().ends_with('…'));
}

#[test]
fn codes_are_unique_and_in_kebab_case() {
    let mut seen = std::collections::HashSet::new();
    for code in ErrorCode::ALL {
        let name = code.as_str();
        assert!(seen.insert(name), "{name} is there twice");
        assert!(
            name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'),
            "{name}"
        );
        assert!(code.http_status().as_u16() >= 400);
        assert_ne!(code.grpc_status(), 0);
    }
    assert_eq!(ErrorCode::ClientClosed.http_status(), 499);
}

#[test]
fn the_documentation_lists_every_code() {
    let page = include_str!("../../../docs/errors.md");
    let rows: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    let expected: Vec<String> = ErrorCode::ALL
        .iter()
        .map(|code| {
            let (http, grpc) = (code.http_status().as_u16(), code.grpc_status());
            let unsent = if code.is_unsent() { "yes" } else { "no" };
            format!("| `{code}` | {http} | {grpc} | {unsent} | {} |", code.doc())
        })
        .collect();
    assert_eq!(rows, expected, "expected rows:\n{}", expected.join("\n"));
}

proptest! {
    #[test]
    fn any_message_makes_a_valid_response_without_control_characters(message in any::<String>()) {
        let text: Response<Bytes> = ProxyError::new(ErrorCode::UpstreamReset, &message).into_response(false);
        let body = String::from_utf8(text.body().to_vec()).unwrap();
        prop_assert!(!body.trim_end_matches('\n').chars().any(char::is_control));
        let error = ProxyError::new(ErrorCode::UpstreamReset, &message);
        let said = error.message().to_owned();
        let grpc: Response<Bytes> = error.into_response(true);
        let encoded = grpc.headers()["grpc-message"].to_str().unwrap();
        prop_assert_eq!(decode_percent(encoded), said);
    }
}
