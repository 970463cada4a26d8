//! The cookie or header field that keeps a client with its endpoint.
//!
//! It holds a name of 16 bytes that means something only when it is the name of an endpoint of the service: it can
//! point to no other address, and tells none. The control plane gives an endpoint its name, so that every proxy knows
//! it by the same one; one that has none (of an older control plane) gets one from its address under a key of this process.

use std::fmt;
use std::sync::OnceLock;

use aws_lc_rs::hmac;
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue};

use super::EndpointDesc;
use super::settings::StickySettings;

const BYTES: usize = 16;

/// An endpoint's name in cookies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Affinity([u8; BYTES]);

/// Names endpoints that the control plane gives no name.
#[derive(Debug)]
struct AffinityKey(hmac::Key);

impl AffinityKey {
    fn of_process() -> &'static Self {
        static KEY: OnceLock<AffinityKey> = OnceLock::new();
        KEY.get_or_init(|| {
            let secret: [u8; 32] = rand::random();
            Self(hmac::Key::new(hmac::HMAC_SHA256, &secret))
        })
    }
}

impl Affinity {
    /// The name of an endpoint: what the control plane calls it, or one of this process' own.
    pub(crate) fn of(desc: &EndpointDesc) -> Self {
        desc.affinity.unwrap_or_else(|| {
            let tag = hmac::sign(
                &AffinityKey::of_process().0,
                desc.address.to_string().as_bytes(),
            );
            Self::from_bytes(tag.as_ref()).unwrap_or(Self([0; BYTES]))
        })
    }

    /// The first bytes of a name that is long enough.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.first_chunk().copied()?))
    }

    /// What a request names, if it names one. Anything that is no name is none.
    pub(crate) fn of_request(headers: &HeaderMap, settings: &StickySettings) -> Option<Self> {
        Self::parse(match &settings.header {
            Some(name) => headers.get(name)?.as_bytes(),
            None => cookie(headers, &settings.cookie)?,
        })
    }

    /// Has a client name the endpoint from now on.
    pub(crate) fn tell(&self, headers: &mut HeaderMap, settings: &StickySettings, secure: bool) {
        match &settings.header {
            Some(name) => {
                if let Ok(value) = HeaderValue::try_from(self.to_string()) {
                    headers.insert(name, value);
                }
            }
            None => {
                if let Some(cookie) = self.set_cookie(settings, secure) {
                    headers.append(SET_COOKIE, cookie);
                }
            }
        }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let mut bytes = [0; BYTES];
        if text.len() != 2 * BYTES {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            let digit = |at: usize| char::from(*pair.get(at)?).to_digit(16);
            *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
        }
        Some(Self(bytes))
    }

    /// The `set-cookie` that names the endpoint from now on: no script reads it, no other site sends it along with
    /// its forms, and over TLS it goes over TLS alone.
    pub(crate) fn set_cookie(
        &self,
        settings: &StickySettings,
        secure: bool,
    ) -> Option<HeaderValue> {
        use std::fmt::Write as _;
        let mut text = format!("{}={self}", settings.cookie);
        text.push_str("; Path=/; HttpOnly; SameSite=Lax");
        if settings.max_age_seconds > 0 {
            write!(text, "; Max-Age={}", settings.max_age_seconds).ok()?;
        }
        if secure {
            text.push_str("; Secure");
        }
        HeaderValue::try_from(text).ok()
    }
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The value of a request's cookie (RFC 6265, section 5.4), without quotes.
pub(crate) fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    let lines = headers.get_all(COOKIE).into_iter();
    let pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    pairs
        .map(<[u8]>::trim_ascii)
        .find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
        .map(|value| {
            let inner = value
                .strip_prefix(b"\"")
                .and_then(|it| it.strip_suffix(b"\""));
            inner.unwrap_or(value)
        })
}
