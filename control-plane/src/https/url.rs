//! Addresses of HTTPS servers, as configurations name them.

use http::Uri;
use std::fmt;

/// An `https://` URL with a host, and without user, query or fragment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HttpsUrl {
    host: String,
    port: u16,
    path: String,
}

/// Why a text is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} {why}")]
pub struct HttpsUrlError {
    text: String,
    why: &'static str,
}

/// More than any that is meant.
const MAX_BYTES: usize = 2048;

impl HttpsUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// When it is not one, or has what it must not have.
    pub fn parse(text: &str) -> Result<Self, HttpsUrlError> {
        let error = |why| HttpsUrlError {
            text: text.chars().take(128).collect(),
            why,
        };
        if text.len() > MAX_BYTES {
            return Err(error("is too long"));
        }
        if !text.starts_with("https://") {
            return Err(error("must begin with https://"));
        }
        if text.contains(['#', '?', '@', '\\']) || !text.is_ascii() {
            return Err(error("must have no user, query or fragment"));
        }
        let uri: Uri = text.parse().map_err(|_| error("is not a URL"))?;
        let host = uri.host().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| error("names no host"))?;
        let port = match uri.port() {
            None if uri.authority().is_some_and(|a| a.as_str() != host) => {
                return Err(error("has a port that is no number"));
            }
            None => 443,
            Some(port) if port.as_u16() == 0 => return Err(error("has port 0")),
            Some(port) => port.as_u16(),
        };
        Ok(Self {
            host: host.to_ascii_lowercase(),
            port,
            path: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// Reads a URL whose path is kept as it is, with a query where there is one: that of a document, and not of a server.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_exact(text: &str) -> Result<Self, HttpsUrlError> {
        let (before, query) = match text.split_once('?') {
            Some((before, query)) => (before, Some(query)),
            None => (text, None),
        };
        let mut url = Self::parse(before)?;
        let uri: Uri = match query {
            Some(_) => text.parse(),
            None => before.parse(),
        }
        .map_err(|_| HttpsUrlError {
            text: text.chars().take(128).collect(),
            why: "is not a URL",
        })?;
        let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.len() > MAX_BYTES || !printable || text.contains(['#', '\\']) {
            return Err(HttpsUrlError {
                text: text.chars().take(128).collect(),
                why: "is too long, or has a fragment or characters that a URL does not have",
            });
        }
        let path = uri.path_and_query();
        let path = path.map_or("", http::uri::PathAndQuery::as_str);
        let slash = if path.starts_with('/') { "" } else { "/" };
        url.path = format!("{slash}{path}");
        Ok(url)
    }

    /// Another document of the same server.
    #[must_use]
    pub fn with_path(&self, path: &str) -> Option<Self> {
        Self::parse_exact(&format!("https://{}{path}", self.authority())).ok()
    }

    /// A URL of parts; the path begins with a slash or is empty.
    ///
    /// # Errors
    /// When the parts make no URL.
    pub fn from_host(host: &str, port: u16) -> Result<Self, HttpsUrlError> {
        if host.contains(':') {
            return Self::parse(&format!("https://[{host}]:{port}"));
        }
        Self::parse(&format!("https://{host}:{port}"))
    }

    /// The same server, with more behind the path.
    #[must_use]
    pub fn join(&self, path: &str) -> Self {
        Self {
            path: format!("{}{path}", self.path),
            ..self.clone()
        }
    }

    /// Host as it goes into the `host` header: an IPv6 address in brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Host and port, as the `host` header has them.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.port == 443 {
            self.host.clone()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Path, at least a slash.
    #[must_use]
    pub fn path(&self) -> &str {
        if self.path.is_empty() {
            "/"
        } else {
            &self.path
        }
    }
}

impl fmt::Display for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}{}", self.authority(), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_plain_https_url_is_refused() {
        for bad in [
            "",
            "http://a",
            "https://",
            "https:///x",
            "https://user@host/",
            "https://sts.amazonaws.com@evil/",
            "https://a/?x",
            "https://a/#x",
            "https://a:0",
            "https://a:x",
            "https://a:",
            "https://a:99999",
            "https://a b",
            "https://ä.example",
            "HTTPS://a",
            &format!("https://a/{}", "x".repeat(3000)),
        ] {
            assert!(HttpsUrl::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_documents_url_keeps_its_path_and_query_and_has_no_user_or_fragment() {
        for (text, path) in [
            ("https://a", "/"),
            ("https://a/", "/"),
            ("https://a/b/", "/b/"),
            ("https://a/b?c=d@e", "/b?c=d@e"),
            ("https://a?c", "/?c"),
        ] {
            let url = HttpsUrl::parse_exact(text).unwrap();
            assert_eq!((url.host(), url.path()), ("a", path), "{text}");
        }
        for bad in [
            "http://a/",
            "https://u@a/",
            "https://u:p@a/?x",
            "https://a/#x",
            "https://a/?x#y",
            "https://a/?x y",
            "https://a/?ä",
            "https://?a",
        ] {
            assert!(HttpsUrl::parse_exact(bad).is_err(), "{bad:?}");
        }
        let moved = HttpsUrl::parse_exact("https://a:444/b").unwrap();
        let moved = moved.with_path("/c?d").unwrap();
        assert_eq!(moved.to_string(), "https://a:444/c?d");
    }

    #[test]
    fn parts_are_as_requests_need_them() {
        let url = HttpsUrl::parse("https://Host.example/a/").unwrap();
        assert_eq!(
            (url.host(), url.port(), url.path()),
            ("host.example", 443, "/a")
        );
        assert_eq!(url.join("/b").to_string(), "https://host.example/a/b");
        let url = HttpsUrl::from_host("fd00::1", 6443).unwrap();
        assert_eq!(url.authority(), "[fd00::1]:6443");
        assert_eq!(url.path(), "/");
    }
}
