//! Interim responses (RFC 9110, section 15.2) on their way from a server to the client.
//!
//! They come while the head of the final response is waited for, deep within a poll of whoever answers the client; and
//! there they are given up to it, through this thread's hands. What comes in any other poll, a mirror's say, is for
//! nobody.

use std::cell::RefCell;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::headers::{Upgrade, examine_response};

/// Most of them for one request; a server may send any number.
pub(super) const MOST: usize = 16;

thread_local! {
    /// What came in the present poll, where somebody is to be given it.
    static CAME: RefCell<Option<Vec<Response<()>>>> = const { RefCell::new(None) };
}

/// Runs `poll`, and gives back what interim responses came meanwhile.
pub(super) fn collect<R>(poll: impl FnOnce() -> R) -> (R, Vec<Response<()>>) {
    let outer = CAME.replace(Some(Vec::new()));
    let result = poll();
    let came = CAME.replace(outer);
    (result, came.unwrap_or_default())
}

/// An interim response came from a server. What concerned only its connection, and what only proxies may say, is taken
/// from it.
pub(super) fn came(status: StatusCode, headers: HeaderMap) {
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return;
    }
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    let Ok(examined) = examine_response(&response) else {
        return;
    };
    examined.strip_reserved(response.headers_mut());
    examined.strip_hop_by_hop(response.headers_mut(), Upgrade::Strip);
    CAME.with_borrow_mut(|came| {
        if let Some(came) = came.as_mut().filter(|came| came.len() < MOST) {
            came.push(response);
        }
    });
}

/// An interim response as the bytes of HTTP/1.1.
pub(super) fn to_http1(response: &Response<()>) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {}\r\n", response.status()).into_bytes();
    for (name, value) in response.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

/// The interim responses that a server begins with, whose bytes come in pieces of `size`, as they are passed on.
pub(crate) fn at_the_beginning(bytes: &[u8], size: usize) -> Vec<Vec<u8>> {
    let mut interims = Interims::default();
    let ((), found) = collect(|| {
        for piece in bytes.chunks(size.max(1)) {
            if interims.read(piece, came) == Beginning::Other && !interims.is_within() {
                return;
            }
        }
    });
    found.iter().map(to_http1).collect()
}

/// Follows the beginning of a response in HTTP/1, for the interim ones that hyper passes over.
#[derive(Debug, Default)]
pub(super) struct Interims {
    /// The beginning of one.
    begun: Vec<u8>,
}

/// What the beginning of a response is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    /// Interim responses, whole, and nothing else.
    Interim,
    /// The final response has begun, or one of whichever kind.
    Other,
}

impl Interims {
    /// Most bytes of one.
    const MOST_BYTES: usize = 16 * 1024;

    /// Takes the next bytes of what has been interim so far; `on` is called for each interim response.
    pub(super) fn read(
        &mut self,
        bytes: &[u8],
        mut on: impl FnMut(StatusCode, HeaderMap),
    ) -> Beginning {
        const INTERIM: &[u8] = b"HTTP/1.1 1";
        // Nearly always it is none.
        if self.begun.is_empty() && !bytes.starts_with(INTERIM) {
            return Beginning::Other;
        }
        self.begun.extend_from_slice(bytes);
        let mut begun = std::mem::take(&mut self.begun);
        let mut at = 0;
        while let Some(rest) = begun.get(at..).filter(|rest| rest.starts_with(INTERIM)) {
            let mut fields = [httparse::EMPTY_HEADER; super::MAX_HEADERS];
            let mut response = httparse::Response::new(&mut fields);
            let Ok(httparse::Status::Complete(length)) = response.parse(rest) else {
                break;
            };
            at += length;
            let status = response
                .code
                .and_then(|code| StatusCode::from_u16(code).ok());
            let Some(status) = status.filter(|it| *it != StatusCode::SWITCHING_PROTOCOLS) else {
                return Beginning::Other;
            };
            let mut headers = HeaderMap::new();
            for field in response.headers.iter() {
                let (name, value) = (field.name.parse(), HeaderValue::from_bytes(field.value));
                if let (Ok(name), Ok(value)) = (name, value) {
                    headers.append::<HeaderName>(name, value);
                }
            }
            on(status, headers);
        }
        begun.drain(..at);
        if begun.is_empty() {
            return Beginning::Interim;
        }
        if begun.len() <= Self::MOST_BYTES
            && (begun.starts_with(INTERIM) || INTERIM.starts_with(&begun))
        {
            self.begun = begun;
        }
        Beginning::Other
    }

    /// True between two reads of one interim response.
    pub(super) fn is_within(&self) -> bool {
        !self.begun.is_empty()
    }

    /// Another response is to come.
    pub(super) fn reset(&mut self) {
        self.begun = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HINTS: &str =
        "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nsidewind-error: no-route\r\n\r\n";
    const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";

    #[test]
    fn interim_responses_are_found_wherever_the_bytes_are_cut() {
        let cases = [
            (
                format!("{CONTINUE}{HINTS}"),
                vec![100, 103],
                Beginning::Interim,
            ),
            (
                format!("{HINTS}HTTP/1.1 200 OK\r\n\r\n"),
                vec![103],
                Beginning::Other,
            ),
            (
                "HTTP/1.1 200 OK\r\n\r\n".to_owned(),
                vec![],
                Beginning::Other,
            ),
            (
                "HTTP/1.1 101 Switching Protocols\r\n\r\nHTTP/1.1 103 x\r\n\r\n".to_owned(),
                vec![],
                Beginning::Other,
            ),
        ];
        for (wire, expected, end) in cases {
            for size in 10..=wire.len() {
                let mut interims = Interims::default();
                let mut found = Vec::new();
                let mut beginning = Beginning::Interim;
                for piece in wire.as_bytes().chunks(size) {
                    if beginning == Beginning::Other && !interims.is_within() {
                        break;
                    }
                    beginning = interims.read(piece, |status, _| found.push(status.as_u16()));
                }
                assert_eq!((&found, beginning), (&expected, end), "{wire:?} by {size}");
            }
        }
    }

    #[test]
    fn only_who_polls_is_given_what_came_and_no_word_that_is_for_proxies() {
        let mut headers = HeaderMap::new();
        headers.insert("link", HeaderValue::from_static("</a>"));
        headers.insert("sidewind-error", HeaderValue::from_static("no-route"));
        came(StatusCode::EARLY_HINTS, headers.clone());
        let ((), came_meanwhile) = collect(|| {
            for _ in 0..100 {
                came(StatusCode::EARLY_HINTS, headers.clone());
            }
        });
        assert_eq!(came_meanwhile.len(), MOST);
        let bytes = to_http1(&came_meanwhile[0]);
        assert_eq!(bytes, b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
    }
}
