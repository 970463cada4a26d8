//! IAM roles: a signed request to ask STS "who am I", which this process sends in its caller's stead.
//!
//! The request is rebuilt, not passed on: method, host, path and body are constants, the endpoint follows
//! from the configuration, and every header is known and read before it is written again. What is left to
//! the caller is the signature and what it is over: a nonce of ours, our name, and the key that the
//! certificate is to be for.
//!
//! It proves a role, not a task: whoever may assume the role chooses the session's name.
//!
//! - [`region`]: which regions, and where their STS is
//! - `request`, `authorization`: what can be judged without asking
//! - `sts`, `answer`: asking, and reading the answer
//! - [`arn`]: who it was

mod answer;
pub mod arn;
mod authorization;
pub mod region;
mod request;
mod sts;

use super::challenge::{Challenges, sha256};
use super::{Answer, Attested, Attestor, Facts, Pin, Presented, Selector, Selectors};
use crate::config::Live;
use crate::config::attestor_config::AwsRegion;
use crate::issuance::Refusal;
use crate::issuance::issuer::hex;
use answer::Caller;
use arn::AssumedRole;
use request::Binding;
use sidewind_api::Reason;
use sidewind_api::v1::attest_request::Evidence;
use std::sync::Arc;
use sts::{Sts, refused};

/// The attestor's kind.
pub const KIND: &str = "aws-iam";

/// Takes signed requests to STS.
#[derive(Debug)]
pub struct AwsIamAttestor {
    config: Live,
    challenges: Arc<Challenges>,
    sts: Sts,
}

impl AwsIamAttestor {
    /// Takes requests for the regions of a configuration. The challenges are those that proxies are given.
    #[must_use]
    pub fn new(config: Live, challenges: Arc<Challenges>) -> Self {
        Self {
            config,
            challenges,
            sts: Sts::default(),
        }
    }

    async fn facts(
        &self,
        regions: &[Arc<AwsRegion>],
        presented: Presented<'_>,
    ) -> Result<Facts, Refusal> {
        let Evidence::AwsIam(evidence) = presented.evidence else {
            let message = "this is no signed request to STS";
            return Err(Refusal::new(Reason::EvidenceMissing, message));
        };
        if regions.is_empty() {
            return Err(Refusal::new(
                Reason::AttestorNotConfigured,
                "this control plane takes no signed requests to STS; an AttestorConfig would name regions and accounts",
            ));
        }
        let key = super::challenge::csr_key(presented.csr)?;
        let binding = Binding {
            server_id: self.challenges.server_id(),
            key_sha256: &hex(&sha256(key)),
            now: presented.now,
        };
        let signed = request::check(evidence, regions, binding).map_err(refused)?;
        // From here on the evidence is spent, whatever comes of it.
        self.challenges.take(signed.nonce)?;
        let caller = self.sts.caller(&signed).await?;
        judge(&caller, signed.from)
    }
}

/// What is true of a caller, when it is a role that is taken.
fn judge(caller: &Caller, from: &AwsRegion) -> Result<Facts, Refusal> {
    let region = &from.region;
    let role = AssumedRole::parse(&caller.arn).map_err(|error| refused(error.to_string()))?;
    let id = role.role_id(&caller.user_id);
    let id = id.map_err(|error| refused(error.to_string()))?;
    if role.account != caller.account {
        return Err(refused(arn::CallerError::Contradiction.to_string()));
    }
    if role.partition != region.partition() {
        let message = format!(
            "{} is not of the partition of {}",
            role.role_arn(),
            region.name()
        );
        return Err(refused(message));
    }
    if !from.accounts.contains(&role.account) {
        return Err(refused(format!(
            "account {} is not one that is taken",
            role.account
        )));
    }
    let arn = role.role_arn();
    // Whoever assumes a role chooses the session's name, so it is for people alone.
    tracing::info!(role = arn, session = role.session, "STS vouches for a role");
    let selectors: Selectors = [
        ("aws-iam:role-arn", arn.as_str()),
        ("aws-iam:role-name", &role.role),
        ("aws-iam:role-id", id),
        ("aws-iam:account", &role.account),
        ("aws-iam:partition", &role.partition),
    ]
    .into_iter()
    .collect();
    Ok(Facts {
        attestor: KIND,
        selectors,
        pins: vec![Pin {
            subject: Selector::new("aws-iam:role-arn", arn),
            fact: Selector::new("aws-iam:role-id", id),
        }],
    })
}

impl Attestor for AwsIamAttestor {
    fn attest<'a>(&'a self, presented: Presented<'a>) -> Answer<'a, Attested> {
        Box::pin(async move {
            let config = self.config.load();
            let facts = self.facts(&config.attestors().aws_iam, presented).await?;
            Ok(Attested::Facts(facts))
        })
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
