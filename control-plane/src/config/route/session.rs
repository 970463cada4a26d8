//! `sessionPersistence` of rules (GEP-1619): which requests go to one endpoint. It is the stickiness of traffic policies,
//! whose cookie holds the name of an endpoint and nothing else: what would need a time in it is refused.

use super::super::document::{Reader, present};
use super::super::traffic_policy::default_cookie;
use super::parts::{is_token, one_of};
use serde::Deserialize;
use serde_saphyr::Spanned;
use sidewind_api::{duration, header_field, v1};
use std::time::Duration;

/// Browsers keep a cookie for no longer.
const MAX_AGE: Duration = Duration::from_secs(400 * 24 * 3600);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SessionPersistence {
    #[serde(default, deserialize_with = "present")]
    session_name: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    absolute_timeout: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    idle_timeout: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present", rename = "type")]
    kind: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    cookie_config: Option<Spanned<CookieConfig>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CookieConfig {
    #[serde(default, deserialize_with = "present")]
    lifetime_type: Option<Spanned<String>>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Cookie,
    Header,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lifetime {
    Session,
    Permanent,
}

/// What keeps the clients of a rule with these backends at their endpoints.
pub(super) fn stickiness(
    reader: &mut Reader<'_>,
    spec: Option<&Spanned<SessionPersistence>>,
    backends: &[v1::RouteBackend],
) -> Option<v1::Stickiness> {
    let at = spec?;
    let spec = &at.value;
    if backends.len() > 1 {
        reader.refuse(
            at,
            "must not be beside several backendRefs: which of them a request goes to is drawn each time",
        );
    }
    if let Some(idle) = &spec.idle_timeout {
        reader.refuse(
            idle,
            "is not supported: what names an endpoint holds no time; leave it out, or use `absoluteTimeout`",
        );
    }
    let kinds = [("Cookie", Kind::Cookie), ("Header", Kind::Header)];
    let kind = match &spec.kind {
        Some(kind) => one_of(reader, kind, &kinds)?,
        None => Kind::Cookie,
    };
    Some(match kind {
        Kind::Cookie => cookie(reader, spec, backends.first()),
        Kind::Header => header(reader, at),
    })
}

/// Names the cookie of a rule that has no backend, and leaves it to the service that the rule is attached to.
pub(super) fn name_cookie(policy: Option<&mut v1::RoutePolicy>, own: &str) {
    let sticky = policy.and_then(|policy| policy.stickiness.as_mut());
    if let Some(sticky) = sticky
        && sticky.cookie.is_empty()
        && sticky.header.is_empty()
    {
        sticky.cookie = default_cookie(own);
    }
}

fn cookie(
    reader: &mut Reader<'_>,
    spec: &SessionPersistence,
    backend: Option<&v1::RouteBackend>,
) -> v1::Stickiness {
    use v1::route_backend::Target;
    let name = match (
        &spec.session_name,
        backend.and_then(|it| it.target.as_ref()),
    ) {
        (Some(name), _) => {
            check_name(reader, name);
            name.value.clone()
        }
        (None, Some(Target::Destination(name))) => default_cookie(name),
        (None, _) => String::new(),
    };
    let lifetimes = [
        ("Session", Lifetime::Session),
        ("Permanent", Lifetime::Permanent),
    ];
    let config = spec.cookie_config.as_ref();
    let lifetime = config.and_then(|config| config.value.lifetime_type.as_ref());
    let lifetime = lifetime.and_then(|lifetime| one_of(reader, lifetime, &lifetimes));
    let mut max_age_seconds = 0;
    match (lifetime.unwrap_or(Lifetime::Session), &spec.absolute_timeout) {
        (Lifetime::Session, None) => {}
        (Lifetime::Session, Some(timeout)) => reader.refuse(
            timeout,
            "needs `cookieConfig.lifetimeType: Permanent`: a cookie of the browser's session does not know its age",
        ),
        (Lifetime::Permanent, None) => {
            let message = "is Permanent, which needs `absoluteTimeout`";
            config.inspect(|config| reader.refuse(config, message));
        }
        (Lifetime::Permanent, Some(timeout)) => match duration::parse(&timeout.value) {
            Ok(age) if (Duration::from_secs(1)..=MAX_AGE).contains(&age) => {
                max_age_seconds = age.as_secs();
            }
            Ok(_) => reader.refuse(timeout, format!("must be from 1s to {MAX_AGE:?}")),
            Err(error) => reader.refuse(timeout, error),
        },
    }
    v1::Stickiness {
        cookie: name,
        max_age_seconds,
        header: String::new(),
    }
}

fn header(reader: &mut Reader<'_>, at: &Spanned<SessionPersistence>) -> v1::Stickiness {
    let spec = &at.value;
    if let Some(timeout) = &spec.absolute_timeout {
        reader.refuse(
            timeout,
            "is for cookies: a header field does not know its age",
        );
    }
    if let Some(config) = &spec.cookie_config {
        reader.refuse(config, "is for `type: Cookie`");
    }
    let Some(name) = &spec.session_name else {
        reader.refuse(
            at,
            "must have a `sessionName`: the header field that clients send back",
        );
        return v1::Stickiness::default();
    };
    check_name(reader, name);
    let field = name.value.to_ascii_lowercase();
    if !header_field::may_change(&field) {
        reader.refuse(name, "is a field that routes may not set");
    }
    v1::Stickiness {
        header: field,
        ..v1::Stickiness::default()
    }
}

fn check_name(reader: &mut Reader<'_>, name: &Spanned<String>) {
    if !(1..=128).contains(&name.value.len()) || !name.value.bytes().all(is_token) {
        reader.refuse(
            name,
            "must be the name of a header or cookie (a token of RFC 9110)",
        );
    }
}
