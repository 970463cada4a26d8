//! JWTs of configured issuers (OpenID Connect Core 1.0, section 3.1.3.7), AWS STS web identity tokens among
//! them.
//!
//! The issuer comes from the configuration; the token's own claim only picks which one is meant, and its
//! signature must then be that issuer's.

use super::keys::{KeyCache, TokenError};
use super::{Answer, Attested, Attestor, Facts, Presented, Selectors, unverifiable};
use crate::config::Live;
use crate::config::attestor_config::OidcIssuer;
use crate::issuance::Refusal;
use serde_json::{Map, Value};
use sidewind_api::Reason;
use sidewind_api::v1::attest_request::Evidence;
use sidewind_identity::jwt::jws::{Rules, Verified, claimed_issuer};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// By how much the clocks of issuer and control plane may differ.
const LEEWAY: Duration = Duration::from_secs(60);
/// The claim that holds what AWS STS says of a caller.
const AWS_CLAIM: &str = "https://sts.amazonaws.com/";
/// Claims that are no facts about the bearer, or have a selector of their own.
const NO_FACTS: &[&str] = &[
    "iss",
    "sub",
    "aud",
    "exp",
    "nbf",
    "iat",
    "jti",
    "nonce",
    "azp",
    "at_hash",
    "c_hash",
    "auth_time",
];

/// Takes JWTs.
#[derive(Debug)]
pub struct OidcAttestor {
    config: Live,
    keys: Arc<KeyCache>,
}

impl OidcAttestor {
    /// Takes tokens of the issuers of a configuration.
    #[must_use]
    pub fn new(config: Live, keys: Arc<KeyCache>) -> Self {
        Self { config, keys }
    }
}

impl Attestor for OidcAttestor {
    fn attest<'a>(&'a self, presented: Presented<'a>) -> Answer<'a, Attested> {
        Box::pin(async move {
            let Evidence::Oidc(evidence) = presented.evidence else {
                let message = "this is no OIDC token";
                return Err(Refusal::new(Reason::EvidenceMissing, message));
            };
            let config = self.config.load();
            let token = evidence.token.trim();
            let issuer = issuer_of(&config.attestors().oidc, token)?;
            let verified = self.verify(issuer, token, presented.now).await?;
            check(issuer, &verified, presented.now)?;
            Ok(Attested::Facts(facts(issuer, &verified)?))
        })
    }
}

impl OidcAttestor {
    async fn verify(
        &self,
        issuer: &OidcIssuer,
        token: &str,
        now: SystemTime,
    ) -> Result<Verified, Refusal> {
        let audiences = [issuer.audience.as_str()];
        let rules = Rules::oidc(&issuer.issuer, &audiences);
        let mut rules = rules.map_err(|error| refused(error.to_string()))?;
        rules.leeway = LEEWAY;
        let verified = self.keys.verify(token, &issuer.keys, &rules, now).await;
        verified.map_err(|error| match error {
            TokenError::Refused(error) => refused(error.to_string()),
            TokenError::NoKeys { .. } => {
                let what = format!("the keys of issuer {}", issuer.issuer);
                unverifiable("oidc-keys", &what, &error)
            }
        })
    }
}

/// The configured issuer that a token says it is of.
fn issuer_of<'a>(issuers: &'a [Arc<OidcIssuer>], token: &str) -> Result<&'a OidcIssuer, Refusal> {
    if issuers.is_empty() {
        return Err(Refusal::new(
            Reason::AttestorNotConfigured,
            "this control plane takes no OIDC tokens; an AttestorConfig would name its issuers",
        ));
    }
    let claimed = claimed_issuer(token).map_err(|error| refused(error.to_string()))?;
    let known = issuers.iter().find(|issuer| issuer.issuer == claimed);
    known.map(Arc::as_ref).ok_or_else(|| {
        let claimed: String = claimed.chars().take(128).collect();
        refused(format!(
            "tokens of issuer {claimed:?} are not taken; the issuer must be in an AttestorConfig, letter by letter"
        ))
    })
}

/// What the issuer's configuration asks for beyond signature, issuer, audience and end.
fn check(issuer: &OidcIssuer, verified: &Verified, now: SystemTime) -> Result<(), Refusal> {
    let algorithm = verified.header.algorithm;
    if !issuer.algorithms.contains(&algorithm) {
        return Err(refused(format!(
            "tokens of this issuer that are signed with {algorithm} are not taken"
        )));
    }
    let issued_at = verified.issued_at;
    let issued_at = issued_at.ok_or_else(|| refused("the claim 'iat' is missing"))?;
    let age = now.duration_since(issued_at).unwrap_or_default();
    if age > issuer.max_age + LEEWAY {
        return Err(refused(format!(
            "the token is {} old; at most {} is taken",
            sidewind_api::duration::format(age),
            sidewind_api::duration::format(issuer.max_age)
        )));
    }
    if issuer.aws_accounts.is_empty() {
        return Ok(());
    }
    let account = verified.claims.get(AWS_CLAIM);
    let account = account.and_then(|aws| aws.get("aws_account")?.as_str());
    match account {
        Some(account) if issuer.aws_accounts.iter().any(|known| known == account) => Ok(()),
        _ => Err(refused("the token is of an AWS account that is not taken")),
    }
}

fn facts(issuer: &OidcIssuer, verified: &Verified) -> Result<Facts, Refusal> {
    let subject = verified.text("sub").filter(|subject| !subject.is_empty());
    let subject = subject.ok_or_else(|| refused("the claim 'sub' is missing"))?;
    let mut selectors = Selectors::default();
    selectors.add("oidc:issuer", issuer.issuer.as_str());
    selectors.add("oidc:subject", subject);
    add_claims(&mut selectors, &verified.claims);
    Ok(Facts {
        attestor: "oidc",
        selectors,
        pins: Vec::new(),
    })
}

/// Claims that are texts, numbers, truths, or lists of texts. Of claims that are objects, the members one
/// level down, as `claim:member`: what AWS STS says of a caller is there. Deeper ones are no facts, the tags
/// that a caller chooses for a request (`request_tags`) among them.
fn add_claims(selectors: &mut Selectors, claims: &Map<String, Value>) {
    for (name, value) in claims {
        if NO_FACTS.contains(&name.as_str()) {
            continue;
        }
        if let Value::Object(members) = value {
            for (member, value) in members {
                // Another claim can have such a name itself; then neither is a fact.
                let name = format!("{name}:{member}");
                if !claims.contains_key(&name) {
                    add_claim(selectors, &name, value);
                }
            }
        } else if !names_a_member(claims, name) {
            add_claim(selectors, name, value);
        }
    }
}

fn add_claim(selectors: &mut Selectors, name: &str, value: &Value) {
    let key = format!("oidc:claim:{name}");
    match value {
        Value::String(text) => selectors.add(key, text.as_str()),
        Value::Bool(truth) => selectors.add(key, truth.to_string()),
        Value::Number(number) => selectors.add(key, number.to_string()),
        Value::Array(items) => {
            for item in items.iter().filter_map(Value::as_str) {
                selectors.add(key.as_str(), item);
            }
        }
        Value::Null | Value::Object(_) => {}
    }
}

/// Whether a claim's name is also what a member of another claim would be called.
fn names_a_member(claims: &Map<String, Value>, name: &str) -> bool {
    let splits = name.match_indices(':').map(|(at, _)| at);
    let mut members = splits.filter_map(|at| Some((name.get(..at)?, name.get(at + 1..)?)));
    members.any(|(claim, member)| claims.get(claim).is_some_and(|c| c.get(member).is_some()))
}

fn refused(message: impl Into<String>) -> Refusal {
    Refusal::new(Reason::EvidenceRefused, message)
}

#[cfg(test)]
#[path = "oidc_tests.rs"]
mod tests;
