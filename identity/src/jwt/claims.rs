//! What a token's claims must say: for whom, by whom, and when (RFC 7519 section 4.1).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use super::error::{JwtError, cut};
use super::jws::Rules;

/// The last second of the year 9999: later ones are mistakes, and would overflow a clock somewhere.
const MAX_NUMERIC_DATE: f64 = 253_402_300_799.0;

/// The claims that every kind of token has.
#[derive(Clone, Debug)]
pub(super) struct Common {
    pub(super) audience: Vec<String>,
    pub(super) expires: SystemTime,
    pub(super) issued_at: Option<SystemTime>,
}

pub(super) fn check(
    claims: &Map<String, Value>,
    rules: &Rules<'_>,
    now: SystemTime,
) -> Result<Common, JwtError> {
    let expires = numeric_date(claims, "exp")?.ok_or(JwtError::ClaimMissing("exp"))?;
    let not_before = numeric_date(claims, "nbf")?;
    let issued_at = numeric_date(claims, "iat")?;
    let audience = audience(claims)?;
    if let Some(issuer) = rules.issuer()
        && claims.get("iss").and_then(Value::as_str) != Some(issuer)
    {
        return Err(JwtError::Issuer(issuer.to_owned()));
    }
    let expected = rules.audiences();
    if !audience
        .iter()
        .any(|name| expected.contains(&name.as_str()))
    {
        let expected = expected.join(" or ");
        return Err(JwtError::Audience(cut(&expected)));
    }
    // "On or after" its end a token is not taken (RFC 7519 section 4.1.4).
    if now >= expires + rules.leeway {
        let since = now.duration_since(expires).unwrap_or_default();
        return Err(JwtError::Expired(since.as_secs()));
    }
    if let Some(ahead) = not_before.and_then(|from| ahead(from, now, rules.leeway)) {
        return Err(JwtError::NotYetValid(ahead));
    }
    if let Some(ahead) = issued_at.and_then(|at| ahead(at, now, rules.leeway)) {
        return Err(JwtError::IssuedInFuture(ahead));
    }
    Ok(Common {
        audience,
        expires,
        issued_at,
    })
}

/// By how many seconds a moment is beyond now, where that is more than the clocks may differ by.
fn ahead(moment: SystemTime, now: SystemTime, leeway: Duration) -> Option<u64> {
    let ahead = moment.duration_since(now).ok()?;
    (ahead > leeway).then_some(ahead.as_secs())
}

/// A NumericDate (RFC 7519 section 2): seconds since 1970, whole or not.
fn numeric_date(
    claims: &Map<String, Value>,
    name: &'static str,
) -> Result<Option<SystemTime>, JwtError> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let seconds = value.as_f64().filter(|_| value.is_number());
    let seconds = seconds.filter(|seconds| (0.0..=MAX_NUMERIC_DATE).contains(seconds));
    let seconds = seconds.ok_or(JwtError::ClaimType {
        name,
        expected: "a number of seconds since 1970",
    })?;
    Ok(Some(UNIX_EPOCH + Duration::from_secs_f64(seconds)))
}

/// One audience or several, never none.
fn audience(claims: &Map<String, Value>) -> Result<Vec<String>, JwtError> {
    const EXPECTED: JwtError = JwtError::ClaimType {
        name: "aud",
        expected: "a text, or an array of at least one text",
    };
    let names = match claims.get("aud").ok_or(JwtError::ClaimMissing("aud"))? {
        Value::String(name) => vec![name.clone()],
        Value::Array(names) => {
            let text = |name: &Value| name.as_str().map(str::to_owned).ok_or(EXPECTED);
            names.iter().map(text).collect::<Result<_, _>>()?
        }
        _ => return Err(EXPECTED),
    };
    if names.is_empty() {
        return Err(EXPECTED);
    }
    Ok(names)
}
