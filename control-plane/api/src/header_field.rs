//! Which header fields a route may change.

/// Fields that concern one connection, say how a message is framed, or name the host, which has a filter of its own.
const FIXED: [&str; 14] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Fields that say who the caller is; only proxies set them.
const IDENTITY: [&str; 1] = ["x-forwarded-client-cert"];

/// Whether a route may set, add or remove a field of this name, in lower case. Servers like CGI's read `_` as `-`,
/// so that both count.
#[must_use]
pub fn may_change(name: &str) -> bool {
    let name = name.replace('_', "-");
    let fixed = FIXED.contains(&name.as_str()) || IDENTITY.contains(&name.as_str());
    !fixed && !name.starts_with("sidewind-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_frames_a_message_or_names_its_sender_is_not_for_routes() {
        for name in [
            "host",
            "te",
            "content-length",
            "Sidewind_destination".to_ascii_lowercase().as_str(),
            "x-forwarded-client-cert",
        ] {
            assert!(!may_change(name), "{name}");
        }
        for name in ["x-forwarded-for", "cookie", "x-sidewind"] {
            assert!(may_change(name), "{name}");
        }
    }
}
