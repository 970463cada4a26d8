//! The signed request, as the evidence has it: everything that can be judged without asking STS.

use super::authorization::Authorization;
use super::region::Region;
use crate::attest::challenge::sha256;
use crate::config::attestor_config::AwsRegion;
use crate::issuance::issuer::hex;
use sidewind_api::evidence::{
    KEY_HEADER as KEY, NONCE_HEADER as NONCE, SERVER_ID_HEADER as SERVER_ID, STS_BODY as BODY,
};
use sidewind_api::v1;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The headers that are taken. Others are refused, not dropped: a signature covers what it names.
const TAKEN: [&str; 9] = [
    "authorization",
    "content-type",
    "host",
    "x-amz-content-sha256",
    "x-amz-date",
    "x-amz-security-token",
    SERVER_ID,
    NONCE,
    KEY,
];
/// What must be there and signed.
const REQUIRED: [&str; 4] = ["x-amz-date", SERVER_ID, NONCE, KEY];
const CONTENT_TYPES: [&str; 2] = [
    "application/x-www-form-urlencoded",
    "application/x-www-form-urlencoded; charset=utf-8",
];

/// Most bytes of one header's value: a session token is the longest.
const MAX_VALUE_BYTES: usize = 8 * 1024;
/// STS itself takes a quarter of an hour.
const MAX_AGE: Duration = Duration::from_secs(5 * 60);

/// What evidence must be bound to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Binding<'a> {
    pub(super) server_id: &'a str,
    /// Lower-case hexadecimal SHA-256 of the signing request's SubjectPublicKeyInfo.
    pub(super) key_sha256: &'a str,
    pub(super) now: SystemTime,
}

/// A request that may be sent, in words of this process.
#[derive(Debug)]
pub(super) struct Signed<'a> {
    pub(super) from: &'a AwsRegion,
    /// The nonce that it is signed over; whether it is a known one is yet to be asked.
    pub(super) nonce: &'a str,
    /// Headers to be sent, `host` not among them.
    pub(super) headers: Vec<(&'static str, String)>,
}

/// Judges the evidence.
///
/// # Errors
/// Which rule it breaks, in words fit for its sender.
pub(super) fn check<'a>(
    evidence: &'a v1::AwsIam,
    regions: &'a [Arc<AwsRegion>],
    binding: Binding<'_>,
) -> Result<Signed<'a>, String> {
    let mut regions = regions.iter();
    let from = regions.find(|from| from.region.name() == evidence.region);
    let from = from.ok_or_else(|| {
        let named: String = evidence.region.escape_debug().take(64).collect();
        format!("region {named} is not taken; an AttestorConfig must name it")
    })?;
    let region = &from.region;
    if evidence.body != BODY.as_bytes() {
        return Err(format!("the body is not {BODY}"));
    }
    let headers = Headers::read(&evidence.headers)?;
    let authorization = headers
        .get("authorization")
        .ok_or("Authorization is missing")?;
    let authorization = Authorization::parse(authorization)?;
    if authorization.region != region.name() {
        return Err("the request is signed for another region than the one it names".to_owned());
    }
    headers.check_signed(&authorization)?;
    headers.check_values(region)?;
    let date = headers.get("x-amz-date").unwrap_or_default();
    check_date(date, &authorization, binding.now)?;
    if headers.get(SERVER_ID) != Some(binding.server_id) {
        let ours = binding.server_id;
        return Err(format!(
            "{SERVER_ID} is not {ours}: the request was signed for another control plane"
        ));
    }
    if headers.get(KEY) != Some(binding.key_sha256) {
        return Err(format!(
            "{KEY} is not the hash of the signing request's key"
        ));
    }
    Ok(Signed {
        from,
        nonce: headers.get(NONCE).unwrap_or_default(),
        headers: headers.to_send(&authorization),
    })
}

/// The headers of the evidence, each known and there once.
struct Headers<'a>(Vec<(&'static str, &'a str)>);

impl<'a> Headers<'a> {
    fn read(headers: &'a [v1::HttpHeader]) -> Result<Self, String> {
        if headers.len() > TAKEN.len() {
            return Err("there are too many headers".to_owned());
        }
        let mut read: Vec<(&'static str, &str)> = Vec::new();
        for header in headers {
            // Names are compared without case, so that no spelling passes for another header.
            let known = |name: &&&str| name.eq_ignore_ascii_case(&header.name);
            let Some(name) = TAKEN.iter().find(known) else {
                let name: String = header.name.escape_debug().take(64).collect();
                return Err(format!("header {name} is not taken"));
            };
            if read.iter().any(|(other, _)| other == name) {
                return Err(format!("header {name} is there twice"));
            }
            let value = header.value.as_str();
            let printable = value.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
            if value.is_empty()
                || value.len() > MAX_VALUE_BYTES
                || !printable
                || value.trim() != value
            {
                return Err(format!("header {name} has a value that cannot be sent"));
            }
            read.push((name, value));
        }
        Ok(Self(read))
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        let found = self.0.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| *value)
    }

    /// What is there is signed, and what is signed is there.
    fn check_signed(&self, authorization: &Authorization<'_>) -> Result<(), String> {
        if let Some(missing) = REQUIRED.iter().find(|name| self.get(name).is_none()) {
            return Err(format!("header {missing} is missing"));
        }
        let present = self.0.iter().map(|(name, _)| *name).chain(["host"]);
        for name in present.filter(|name| *name != "authorization") {
            if !authorization.covers(name) {
                return Err(format!("header {name} is not signed"));
            }
        }
        let absent = |name: &&&str| **name != "host" && self.get(name).is_none();
        match authorization.signed_headers.iter().find(absent) {
            Some(name) => Err(format!("header {name:.64} is signed and not there")),
            None => Ok(()),
        }
    }

    fn check_values(&self, region: &Region) -> Result<(), String> {
        let wrong = |name: &str| Err(format!("header {name} has another value than it may have"));
        if self.get("host").is_some_and(|host| host != region.host()) {
            return Err(format!("the host is not {}", region.host()));
        }
        let content_type = self.get("content-type");
        if content_type.is_some_and(|value| !CONTENT_TYPES.contains(&value)) {
            return wrong("content-type");
        }
        let body_sha256 = hex(&sha256(BODY.as_bytes()));
        let stated = self.get("x-amz-content-sha256");
        if stated.is_some_and(|value| value != body_sha256) {
            return wrong("x-amz-content-sha256");
        }
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=-_".contains(&byte);
        let token = self.get("x-amz-security-token");
        if token.is_some_and(|value| !value.bytes().all(is_token)) {
            return wrong("x-amz-security-token");
        }
        Ok(())
    }

    fn to_send(&self, authorization: &Authorization<'_>) -> Vec<(&'static str, String)> {
        let sent = self.0.iter().filter(|(name, _)| *name != "host");
        sent.map(|(name, value)| match *name {
            "authorization" => (*name, authorization.to_value()),
            _ => (*name, (*value).to_owned()),
        })
        .collect()
    }
}

/// `YYYYMMDDTHHMMSSZ`, close to now, and of the day of the credential scope.
fn check_date(
    date: &str,
    authorization: &Authorization<'_>,
    now: SystemTime,
) -> Result<(), String> {
    let wrong = || "x-amz-date is not a time like 20260131T235959Z".to_owned();
    let digits = |from: usize, to: usize| {
        date.get(from..to).and_then(|part| {
            part.bytes()
                .all(|byte| byte.is_ascii_digit())
                .then_some(())?;
            part.parse::<i16>().ok()
        })
    };
    let small = |from| digits(from, from + 2).and_then(|number| i8::try_from(number).ok());
    if date.len() != 16 || date.get(8..9) != Some("T") || date.get(15..) != Some("Z") {
        return Err(wrong());
    }
    let parts = (
        digits(0, 4),
        small(4),
        small(6),
        small(9),
        small(11),
        small(13),
    );
    let (Some(year), Some(month), Some(day), Some(hour), Some(minute), Some(second)) = parts else {
        return Err(wrong());
    };
    let time = jiff::civil::DateTime::new(year, month, day, hour, minute, second, 0);
    let time = time.and_then(|time| time.to_zoned(jiff::tz::TimeZone::UTC));
    let time = SystemTime::from(time.map_err(|_| wrong())?.timestamp());
    if date.get(..8) != Some(authorization.date) {
        return Err("x-amz-date is of another day than the credential scope".to_owned());
    }
    let away = now
        .duration_since(time)
        .unwrap_or_else(|error| error.duration());
    if away > MAX_AGE {
        return Err(format!(
            "the request was signed {} s away from this control plane's time, more than {} s; check the clocks",
            away.as_secs(),
            MAX_AGE.as_secs()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
