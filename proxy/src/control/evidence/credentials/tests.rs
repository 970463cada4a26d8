use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

/// An endpoint that answers one request so, and gives back what it was asked.
async fn endpoint(answer: String) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.unwrap() > 0 {}
        // The client may have had enough of it before its end.
        let _ = stream.write_all(answer.as_bytes()).await;
        String::from_utf8(request).unwrap()
    });
    (address, asked)
}

fn source(address: SocketAddr, authorization: ContainerAuthorization) -> AwsCredentialsSource {
    AwsCredentialsSource::Container(ContainerCredentials {
        address,
        path: Secret::new("/v2/credentials/0f5c-secret?x=1"),
        authorization,
    })
}

fn http(status: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nlocation: http://127.0.0.1:1/\r\n\r\n{body}"
    )
}

const GOOD: &str = r#"{"RoleArn":"arn:aws:iam::123456789012:role/orders","AccessKeyId":"ASIAEXAMPLE","SecretAccessKey":"s3cret","Token":"t0ken","Expiration":"2026-01-31T23:59:59Z"}"#;

#[tokio::test]
async fn the_endpoint_gives_credentials_to_whoever_shows_the_token() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "from-file\n").unwrap();
    for (authorization, expected) in [
        (ContainerAuthorization::Nothing, None),
        (
            ContainerAuthorization::Token(Secret::new("given")),
            Some("given"),
        ),
        (ContainerAuthorization::File(file), Some("from-file")),
    ] {
        let (address, asked) = endpoint(http("200 OK", GOOD)).await;
        let credentials = get(&source(address, authorization)).await.unwrap();
        assert_eq!(credentials.access_key_id.expose(), "ASIAEXAMPLE");
        assert_eq!(credentials.secret_access_key.expose(), "s3cret");
        assert_eq!(credentials.session_token.unwrap().expose(), "t0ken");
        let asked = asked.await.unwrap();
        assert!(
            asked.starts_with("GET /v2/credentials/0f5c-secret?x=1 HTTP/1.1\r\n"),
            "{asked}"
        );
        let shown = asked
            .lines()
            .find_map(|line| line.strip_prefix("authorization: "));
        assert_eq!(shown, expected);
    }
}

#[tokio::test]
async fn answers_without_usable_credentials_are_errors_that_show_nothing_of_them() {
    let unusable = GOOD.replace("t0ken", "t0ken\\r\\nx: y");
    for (answer, says) in [
        (http("404 Not Found", "s3cret"), "answered 404"),
        (http("302 Found", GOOD), "answered 302"),
        (http("200 OK", ""), "gave no credentials"),
        (http("200 OK", "{}"), "gave no credentials"),
        (
            http(
                "200 OK",
                r#"{"AccessKeyId":"a","SecretAccessKey":"s3cret"}"#,
            ),
            "gave no credentials",
        ),
        (http("200 OK", &GOOD.replace("t0ken", "")), "cannot be used"),
        (http("200 OK", &unusable), "cannot be used"),
        (
            http("200 OK", &format!("{GOOD}{}", " ".repeat(70_000))),
            "broke its answer off",
        ),
        ("s3cret".to_owned(), "does not answer"),
        (String::new(), "does not answer"),
    ] {
        let (address, _asked) = endpoint(answer.clone()).await;
        let error = get(&source(address, ContainerAuthorization::Nothing)).await;
        let error = error.expect_err(says);
        assert!(
            error.contains(says) && error.contains(&address.to_string()),
            "{error}"
        );
        for secret in ["s3cret", "t0ken", "0f5c"] {
            assert!(!error.contains(secret), "{error}");
        }
    }
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = get(&source(address, ContainerAuthorization::Nothing))
        .await
        .unwrap_err();
    assert!(error.contains("cannot be reached"), "{error}");
    let missing = ContainerAuthorization::File("/nowhere/token".into());
    let (address, _asked) = endpoint(http("200 OK", GOOD)).await;
    let error = get(&source(address, missing)).await.unwrap_err();
    assert!(error.contains("/nowhere/token"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_silent_is_given_five_seconds() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let error = get(&source(address, ContainerAuthorization::Nothing))
        .await
        .unwrap_err();
    assert!(error.ends_with("does not answer"), "{error}");
}
