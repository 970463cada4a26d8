//! The `tracestate` header of W3C Trace Context, section 3.3.
//!
//! The proxy adds no member of its own, so it only has to know whether the header may go on.

/// Members that a list may have.
const MAX_MEMBERS: usize = 32;

/// Bytes of all `tracestate` headers together; the standard demands that at least 512 are carried.
const MAX_BYTES: usize = 2048;

/// Whether the headers make a list that may be sent on. No header at all does.
pub(super) fn is_valid<'a>(headers: impl Iterator<Item = &'a [u8]>) -> bool {
    let (mut members, mut bytes) = (0, 0);
    let mut keys: Vec<&[u8]> = Vec::new();
    for header in headers {
        bytes += header.len();
        if bytes > MAX_BYTES {
            return false;
        }
        for member in header.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            // Empty members are allowed, since some implementations leave them behind.
            if member.is_empty() {
                continue;
            }
            members += 1;
            let Some(equals) = member.iter().position(|byte| *byte == b'=') else {
                return false;
            };
            let (key, value) = member.split_at(equals);
            let value = value.strip_prefix(b"=").unwrap_or_default();
            if members > MAX_MEMBERS || !is_key(key) || !is_value(value) || keys.contains(&key) {
                return false;
            }
            keys.push(key);
        }
    }
    true
}

/// `simple-key`, or `tenant-id@system-id`.
fn is_key(key: &[u8]) -> bool {
    let rest_is_good = |part: &[u8]| {
        part.iter()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/'))
    };
    let starts_with_letter = |part: &[u8]| part.first().is_some_and(u8::is_ascii_lowercase);
    match key.iter().position(|byte| *byte == b'@') {
        None => key.len() <= 256 && starts_with_letter(key) && rest_is_good(key),
        Some(at) => {
            let (tenant, system) = key.split_at(at);
            let system = system.strip_prefix(b"@").unwrap_or_default();
            let tenant_start = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            tenant.len() <= 241
                && tenant.first().is_some_and(tenant_start)
                && rest_is_good(tenant)
                && system.len() <= 14
                && starts_with_letter(system)
                && rest_is_good(system)
        }
    }
}

/// Up to 256 printable ASCII characters without comma and equals, the last one no blank. An empty
/// one, which the grammar forbids, is refused.
fn is_value(value: &[u8]) -> bool {
    let allowed = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b',' | b'=');
    (1..=256).contains(&value.len()) && value.iter().all(allowed) && !value.ends_with(b" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn valid(header: &str) -> bool {
        is_valid([header.as_bytes()].into_iter())
    }

    #[test]
    fn the_standards_grammar_decides() {
        let long_key = "k".repeat(256);
        let long_value = "v".repeat(256);
        for good in [
            "",
            "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
            "rojo=1 , congo=2\t",
            "a=1,,b=2",
            "fw529a3039@dt=FfWrk;x:y",
            "0tenant@sys=1",
            "a= leading blank",
            "a_-*/9=~!",
            &format!("{long_key}=1"),
            &format!("a={long_value}"),
        ] {
            assert!(valid(good), "{good}");
        }
        for bad in [
            "novalue",
            "=1",
            "a=",
            "A=1",
            "9a=1",
            "a@=1",
            "@b=1",
            "a@9b=1",
            "a@b@c=1",
            "a=b=c",
            "a=\u{e9}",
            "a=1,a=2",
            &format!("{long_key}k=1"),
            &format!("a={long_value}v"),
            &format!("{}@b=1", "k".repeat(242)),
            &format!("a@{}=1", "k".repeat(15)),
        ] {
            assert!(!valid(bad), "{bad}");
        }
    }

    #[test]
    fn a_list_has_at_most_32_members_over_all_headers() {
        let member = |number: usize| format!("k{number}=v");
        let list = |numbers: std::ops::Range<usize>| {
            numbers.map(member).collect::<Vec<String>>().join(",")
        };
        let (first, second) = (list(0..20), list(20..32));
        assert!(is_valid([first.as_bytes(), second.as_bytes()].into_iter()));
        let more = list(20..33);
        assert!(!is_valid([first.as_bytes(), more.as_bytes()].into_iter()));
    }

    proptest! {
        #[test]
        fn lists_by_the_grammar_are_valid(
            members in proptest::collection::btree_map(
                "[a-z][a-z0-9_*/-]{0,20}(@[a-z][a-z0-9_*/-]{0,13})?",
                "[ -+\\--<>-~]{0,30}[!-+\\--<>-~]",
                0..32,
            ),
        ) {
            let pairs: Vec<String> = members.iter().map(|(k, v)| format!("{k}={v}")).collect();
            prop_assert!(valid(&pairs.join(",")));
        }

        #[test]
        fn any_bytes_are_answered(bytes in any::<Vec<u8>>()) {
            is_valid([bytes.as_slice()].into_iter());
        }
    }
}
