//! Requests of the API, version 2017-08-22 (JSON 1.1).

use super::{AwsPcaError, Settings};
use crate::https::{self, HttpsRequest, HttpsUrl};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sidewind_api::sigv4::{self, amz_date};
use std::time::{Duration, SystemTime};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_ANSWER_BYTES: usize = 256 * 1024;
/// What a certificate may do: sign workloads, and no further authority.
const TEMPLATE: &str = "acm-pca:::template/SubordinateCACertificate_PathLen0/V1";

pub(super) const AUTHORITY_CERTIFICATE: &str = "GetCertificateAuthorityCertificate";
pub(super) const CERTIFICATE: &str = "GetCertificate";
const ISSUE: &str = "IssueCertificate";

#[derive(Debug)]
pub(super) struct Api {
    settings: Settings,
}

/// A certificate and what is above it, in PEM.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Certificate {
    pub(super) certificate: String,
    pub(super) certificate_chain: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Issued {
    certificate_arn: String,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(rename = "__type", default)]
    kind: String,
    #[serde(alias = "Message", default)]
    message: String,
}

impl Api {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings }
    }

    pub(super) fn name(&self) -> String {
        format!("--aws-pca {}", self.settings.arn)
    }

    pub(super) async fn authority_certificate(
        &self,
        now: SystemTime,
    ) -> Result<Certificate, AwsPcaError> {
        let body = json!({"CertificateAuthorityArn": self.settings.arn.as_str()});
        self.ask(AUTHORITY_CERTIFICATE, &body, now).await
    }

    /// Has a request answered by a certificate until then, and gives back what it is called.
    pub(super) async fn issue(
        &self,
        request_pem: &str,
        signer: &CertificateDer<'_>,
        until: SystemTime,
        now: SystemTime,
    ) -> Result<String, AwsPcaError> {
        let partition = self
            .settings
            .arn
            .as_str()
            .split(':')
            .nth(1)
            .unwrap_or("aws");
        let body = json!({
            "CertificateAuthorityArn": self.settings.arn.as_str(),
            "Csr": STANDARD.encode(request_pem),
            "SigningAlgorithm": signing_algorithm(signer)?,
            "TemplateArn": format!("arn:{partition}:{TEMPLATE}"),
            "Validity": {"Type": "ABSOLUTE", "Value": crate::store::unix_seconds(until)},
            "IdempotencyToken": uuid::Uuid::new_v4().simple().to_string(),
        });
        let issued: Issued = self.ask(ISSUE, &body, now).await?;
        if issued.certificate_arn.is_empty() || issued.certificate_arn.len() > 512 {
            let why = "names no certificate".to_owned();
            return Err(AwsPcaError::Answer { action: ISSUE, why });
        }
        Ok(issued.certificate_arn)
    }

    pub(super) async fn certificate(
        &self,
        certificate: &str,
        now: SystemTime,
    ) -> Result<Certificate, AwsPcaError> {
        let body = json!({
            "CertificateAuthorityArn": self.settings.arn.as_str(),
            "CertificateArn": certificate,
        });
        self.ask(CERTIFICATE, &body, now).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        action: &'static str,
        body: &Value,
        now: SystemTime,
    ) -> Result<T, AwsPcaError> {
        let wrong = |why: String| AwsPcaError::Answer { action, why };
        let body = body.to_string();
        let url = self.url()?;
        let headers = self.headers(action, &url, &body, now).await?;
        let answer = https::send(HttpsRequest {
            method: Method::POST,
            url: &url,
            headers,
            body: Bytes::from(body),
            ca_file: self.settings.ca_file.as_deref(),
            timeout: TIMEOUT,
            max_body_bytes: MAX_ANSWER_BYTES,
        })
        .await?;
        if answer.status == StatusCode::OK {
            return serde_json::from_slice(&answer.body)
                .map_err(|error| wrong(format!("cannot be read: {error}")));
        }
        match serde_json::from_slice::<Refusal>(&answer.body) {
            Ok(refusal) if !refusal.kind.is_empty() => Err(AwsPcaError::Refused {
                action,
                // `com.amazonaws.…#Name` in some answers.
                kind: cut(refusal.kind.rsplit('#').next().unwrap_or_default(), 64),
                message: cut(&refusal.message, 256),
            }),
            _ => Err(wrong(format!("has status {}", answer.status))),
        }
    }

    fn url(&self) -> Result<HttpsUrl, AwsPcaError> {
        if let Some(endpoint) = &self.settings.endpoint {
            return Ok(endpoint.clone());
        }
        HttpsUrl::from_host(&self.settings.arn.host(), 443)
            .map_err(|error| AwsPcaError::Request(error.to_string()))
    }

    async fn headers(
        &self,
        action: &'static str,
        url: &HttpsUrl,
        body: &str,
        now: SystemTime,
    ) -> Result<Vec<(HeaderName, HeaderValue)>, AwsPcaError> {
        let credentials = self.settings.credentials.get().await?;
        let date = amz_date(now).map_err(AwsPcaError::Request)?;
        let (host, target) = (url.authority(), format!("ACMPrivateCA.{action}"));
        let mut signed = vec![
            ("content-type", "application/x-amz-json-1.1"),
            ("host", host.as_str()),
            ("x-amz-date", date.as_str()),
            ("x-amz-target", target.as_str()),
        ];
        if let Some(token) = &credentials.session_token {
            signed.push(("x-amz-security-token", token.as_str()));
        }
        let request = sigv4::Request {
            region: self.settings.arn.region(),
            service: "acm-pca",
            headers: signed.clone(),
            body: body.as_bytes(),
        };
        let authorization = request.sign(&credentials.as_signing(), &date);
        signed.push(("authorization", &authorization));
        let header = |(name, value): (&'static str, &str)| {
            let mut value = HeaderValue::from_str(value)
                .map_err(|_| AwsPcaError::Request(format!("{name} cannot be a header")))?;
            value.set_sensitive(matches!(name, "authorization" | "x-amz-security-token"));
            Ok((HeaderName::from_static(name), value))
        };
        signed.into_iter().map(header).collect()
    }
}

/// The algorithm that the authority's key signs with.
fn signing_algorithm(signer: &CertificateDer<'_>) -> Result<&'static str, AwsPcaError> {
    let unknown =
        || AwsPcaError::Request("the authority's key is of a kind that is not known".to_owned());
    let (_, parsed) = X509Certificate::from_der(signer).map_err(|_| unknown())?;
    let algorithm = &parsed.public_key().algorithm;
    if algorithm.algorithm == OID_PKCS1_RSAENCRYPTION {
        return Ok("SHA256WITHRSA");
    }
    let curve = algorithm
        .parameters
        .as_ref()
        .and_then(|it| it.as_oid().ok());
    match curve {
        Some(curve)
            if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == OID_EC_P256 =>
        {
            Ok("SHA256WITHECDSA")
        }
        Some(curve)
            if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == OID_NIST_EC_P384 =>
        {
            Ok("SHA384WITHECDSA")
        }
        _ => Err(unknown()),
    }
}

fn cut(text: &str, characters: usize) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(characters)
        .collect()
}
