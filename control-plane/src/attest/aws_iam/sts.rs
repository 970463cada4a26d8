//! Asks STS who signed a request. The endpoint is this process's choice, and redirects lead nowhere.

use super::answer::{self, Caller};
use super::request::Signed;
use crate::attest::places::{self, Places};
use crate::https::{self, HttpsRequest, HttpsResponse};
use crate::issuance::Refusal;
use bytes::Bytes;
use http::header::HOST;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use sidewind_api::Reason;
use sidewind_api::evidence::STS_BODY as BODY;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Sends requests that have been judged.
#[derive(Debug)]
pub(super) struct Sts {
    places: Places,
}

impl Default for Sts {
    fn default() -> Self {
        Self {
            places: Places::new(places::STS),
        }
    }
}

impl Sts {
    /// Whom STS takes the signer for.
    ///
    /// # Errors
    /// `evidence-refused` when STS refuses the request, `evidence-unverifiable` when it does not answer as it
    /// does.
    pub(super) async fn caller(&self, signed: &Signed<'_>) -> Result<Caller, Refusal> {
        let _place = self.places.to_ask("STS").await?;
        let answer = https::send(request(signed)?).await.map_err(|error| {
            let what = format!("the STS of {}", signed.from.region.name());
            super::super::unverifiable("sts", &what, &error)
        })?;
        read(&answer)
    }
}

fn request<'a>(signed: &'a Signed<'_>) -> Result<HttpsRequest<'a>, Refusal> {
    let mut headers = Vec::with_capacity(signed.headers.len() + 1);
    let written = signed
        .headers
        .iter()
        .map(|(name, value)| (*name, value.as_str()));
    let host = (HOST.as_str(), signed.from.region.host());
    for (name, value) in written.chain([host]) {
        let cannot = |_| refused("a header cannot be sent".to_owned());
        let mut value = HeaderValue::from_str(value).map_err(cannot)?;
        value.set_sensitive(true);
        headers.push((HeaderName::from_static(name), value));
    }
    Ok(HttpsRequest {
        method: Method::POST,
        url: signed.from.region.endpoint(),
        headers,
        body: Bytes::from_static(BODY.as_bytes()),
        ca_file: signed.from.ca_file.as_deref(),
        timeout: TIMEOUT,
        max_body_bytes: answer::MAX_ANSWER_BYTES,
    })
}

fn read(answer: &HttpsResponse) -> Result<Caller, Refusal> {
    let is_xml = answer.media_type() == "text/xml";
    let status = answer.status;
    if status == StatusCode::OK {
        if !is_xml {
            return Err(unverifiable("its answer is not text/xml"));
        }
        return answer::caller(&answer.body).map_err(unverifiable);
    }
    if status.is_redirection() {
        return Err(unverifiable("it redirects, which is not followed"));
    }
    let code = answer::error_code(&answer.body).unwrap_or_else(|| "no code".to_owned());
    let busy = status == StatusCode::TOO_MANY_REQUESTS || code.contains("Throttl");
    if status.is_client_error() && !busy {
        return Err(refused(format!(
            "STS refused the request: {status} ({code})"
        )));
    }
    Err(unverifiable(format!("it answered {status} ({code})")))
}

/// The refusal of evidence that is not good.
pub(super) fn refused(why: String) -> Refusal {
    Refusal::new(Reason::EvidenceRefused, why)
}

fn unverifiable(why: impl std::fmt::Display) -> Refusal {
    let message = format!("STS did not say who signed the request: {why}");
    Refusal::new(Reason::EvidenceUnverifiable, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;
    use http::header::CONTENT_TYPE;

    fn answer(status: u16, content_type: &'static str, body: &'static str) -> HttpsResponse {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        HttpsResponse {
            status: StatusCode::from_u16(status).unwrap(),
            headers,
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    const GOOD: &str = "<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>a</Arn><UserId>u</UserId><Account>1</Account></GetCallerIdentityResult></GetCallerIdentityResponse>";
    const ERROR: &str = "<ErrorResponse><Error><Code>ExpiredToken</Code><Message>secret</Message></Error></ErrorResponse>";

    #[test]
    fn only_an_answer_of_sts_counts_and_no_word_of_another_is_told() {
        assert!(read(&answer(200, "text/xml", GOOD)).is_ok());
        assert!(read(&answer(200, "Text/XML; charset=utf-8", GOOD)).is_ok());
        use Reason::{EvidenceRefused, EvidenceUnverifiable};
        for (answer, reason, says) in [
            (
                answer(200, "application/json", GOOD),
                EvidenceUnverifiable,
                "text/xml",
            ),
            (
                answer(200, "text/html", GOOD),
                EvidenceUnverifiable,
                "text/xml",
            ),
            (answer(200, "", GOOD), EvidenceUnverifiable, "text/xml"),
            (
                answer(200, "text/xml", "secret"),
                EvidenceUnverifiable,
                "form",
            ),
            (answer(201, "text/xml", GOOD), EvidenceUnverifiable, "201"),
            (
                answer(301, "text/xml", GOOD),
                EvidenceUnverifiable,
                "redirect",
            ),
            (
                answer(307, "text/xml", GOOD),
                EvidenceUnverifiable,
                "redirect",
            ),
            (
                answer(403, "text/xml", ERROR),
                EvidenceRefused,
                "ExpiredToken",
            ),
            (
                answer(403, "text/html", "<p>secret</p>"),
                EvidenceRefused,
                "no code",
            ),
            (
                answer(400, "text/xml", "secret"),
                EvidenceRefused,
                "no code",
            ),
            (
                answer(
                    400,
                    "text/xml",
                    "<ErrorResponse><Error><Code>Throttling</Code></Error></ErrorResponse>",
                ),
                EvidenceUnverifiable,
                "Throttling",
            ),
            (answer(429, "text/xml", ERROR), EvidenceUnverifiable, "429"),
            (answer(500, "text/xml", ERROR), EvidenceUnverifiable, "500"),
            (
                answer(503, "text/html", "secret"),
                EvidenceUnverifiable,
                "503",
            ),
        ] {
            let refusal = read(&answer).unwrap_err();
            assert_eq!(refusal.reason, reason, "{refusal}");
            assert!(refusal.message.contains(says), "{refusal}");
            assert!(!refusal.message.contains("secret"), "{refusal}");
        }
    }
}
