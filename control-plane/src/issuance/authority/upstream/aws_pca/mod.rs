//! AWS Private CA: the root, or an authority below one, is AWS's, and signs this control plane's signing authorities.
//!
//! - [`arn`]: which authority, and where it answers
//! - [`credentials`]: who asks
//! - `api`: one signed request at a time, by the control plane's own HTTPS client
//!
//! A key is made here and never leaves; its request is answered under the template `SubordinateCACertificate_PathLen0`
//! by a certificate that can sign workloads and nothing else. What comes back is held against the same rules as every
//! other authority: an answer that is no such certificate, or is not below the authority's root, is not used.

mod api;
pub mod arn;
pub mod credentials;
#[cfg(test)]
mod tests;

use super::{Offer, Upstream, UpstreamError};
use crate::https::{HttpsError, HttpsUrl};
use api::Api;
use arn::AuthorityArn;
use credentials::{CredentialsError, CredentialsSource};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sidewind_identity::authority::{SigningAuthority, signing_request};
use sidewind_identity::{Authority, BundleError, PrivateKey, TrustBundle, TrustDomain};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// How often AWS is asked for the authority's own certificate, which is renewed once in years.
const FRESH: Duration = Duration::from_secs(600);
/// How soon after a failure.
const RETRY: Duration = Duration::from_secs(30);
/// How long a certificate may take to be issued.
const ISSUANCE: Duration = Duration::from_secs(60);
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(4);
/// What ends sooner signs nothing.
const SHORTEST_LIFE: Duration = Duration::from_secs(300);
/// Most certificates of an answer.
const MAX_CERTIFICATES: usize = 8;

/// Which authority, and how it is reached.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The authority.
    pub arn: AuthorityArn,
    /// Where it answers, if not where AWS has it.
    pub endpoint: Option<HttpsUrl>,
    /// Whom to believe there; none: the system's authorities.
    pub ca_file: Option<PathBuf>,
    /// Who asks.
    pub credentials: CredentialsSource,
}

/// An authority of AWS Private CA.
#[derive(Debug)]
pub struct AwsPca {
    api: Api,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: Option<Known>,
    tried: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Known {
    trust_domain: TrustDomain,
    offer: Arc<Offer>,
    /// The authority and those between it and the root.
    above: Vec<CertificateDer<'static>>,
}

/// Why AWS Private CA gives nothing.
#[derive(Debug, thiserror::Error)]
pub enum AwsPcaError {
    /// There are no credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// There is no answer.
    #[error(transparent)]
    Https(#[from] HttpsError),
    /// The answer is a refusal.
    #[error("{action} was refused with {kind}: {message}")]
    Refused {
        /// What was asked.
        action: &'static str,
        /// AWS's word for why.
        kind: String,
        /// And its sentence.
        message: String,
    },
    /// The answer is not as the API says.
    #[error("the answer to {action} {why}")]
    Answer {
        /// What was asked.
        action: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The certificate did not come in time.
    #[error("the certificate was still being made after {} s", ISSUANCE.as_secs())]
    Pending,
    /// The authority's root cannot be trusted for the trust domain.
    #[error("the authority's root cannot be in the trust bundle")]
    Root(#[from] BundleError),
    /// The request cannot be signed.
    #[error("a request cannot be made: {0}")]
    Request(String),
}

impl AwsPca {
    /// An authority that is asked from now on.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            api: Api::new(settings),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look(
        &self,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Known, AwsPcaError> {
        let answer = self.api.authority_certificate(now).await?;
        let mut above = certificates(api::AUTHORITY_CERTIFICATE, &answer.certificate)?;
        if let Some(chain) = &answer.certificate_chain {
            above.extend(certificates(api::AUTHORITY_CERTIFICATE, chain)?);
        }
        let wrong = |why: &str| AwsPcaError::Answer {
            action: api::AUTHORITY_CERTIFICATE,
            why: why.to_owned(),
        };
        let root = above.pop().ok_or_else(|| wrong("has no certificate"))?;
        let bundle = TrustBundle::from_der(trust_domain.clone(), 0, vec![root.to_vec()])?;
        let not_after = bundle.authorities().iter().map(Authority::not_after).min();
        let mut not_after = not_after.unwrap_or(now);
        for certificate in &above {
            let single = vec![certificate.to_vec()];
            let between = TrustBundle::from_der(trust_domain.clone(), 0, single)?;
            let ends = between.authorities().iter().map(Authority::not_after);
            not_after = ends.fold(not_after, SystemTime::min);
        }
        if not_after < now + SHORTEST_LIFE {
            return Err(wrong("has ended or ends within minutes"));
        }
        Ok(Known {
            trust_domain: trust_domain.clone(),
            offer: Arc::new(Offer {
                anchor: root.clone(),
                roots: vec![root],
                signing: None,
                not_after,
            }),
            above,
        })
    }

    async fn issued(
        &self,
        known: &Known,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<SigningAuthority, UpstreamError> {
        let key =
            PrivateKey::generate().map_err(|error| AwsPcaError::Request(error.to_string()))?;
        let request = signing_request(&known.trust_domain, &key)?;
        let signer = known.above.first().unwrap_or(&known.offer.anchor);
        let certificate = self
            .api
            .issue(&request, signer, now + lifetime, now)
            .await?;
        let pem = self.wait_for(&certificate, now).await?;
        let mut chain = certificates(api::CERTIFICATE, &pem)?;
        chain.truncate(1);
        chain.extend(known.above.iter().cloned());
        SigningAuthority::from_der(known.trust_domain.clone(), chain, key).map_err(|source| {
            UpstreamError::Load {
                flag: "--aws-pca",
                source,
            }
        })
    }

    /// Asks until the certificate is there.
    async fn wait_for(&self, certificate: &str, now: SystemTime) -> Result<String, AwsPcaError> {
        let until = Instant::now() + ISSUANCE;
        let mut wait = FIRST_WAIT;
        loop {
            match self.api.certificate(certificate, now).await {
                Err(AwsPcaError::Refused { kind, .. }) if kind == "RequestInProgressException" => {}
                answered => return answered.map(|answer| answer.certificate),
            }
            if Instant::now() + wait > until {
                return Err(AwsPcaError::Pending);
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
}

#[tonic::async_trait]
impl Upstream for AwsPca {
    async fn offer(
        &self,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Arc<Offer>, UpstreamError> {
        {
            let state = self.state();
            let age = state.tried.map(|tried| tried.elapsed());
            if let (Some(known), Some(age)) = (&state.known, age)
                && age < FRESH
            {
                return Ok(Arc::clone(&known.offer));
            }
            if age.is_some_and(|age| age < RETRY) {
                return Err(UpstreamError::NothingYet);
            }
        }
        let looked = self.look(trust_domain, now).await;
        let mut state = self.state();
        state.tried = Some(Instant::now());
        match (looked, &state.known) {
            (Ok(found), Some(known)) if *found.offer == *known.offer => {
                Ok(Arc::clone(&known.offer))
            }
            (Ok(found), _) => {
                let offer = Arc::clone(&found.offer);
                state.known = Some(found);
                Ok(offer)
            }
            // It is asked again after a while; what is known stays in use.
            (Err(error), Some(known)) => {
                let error = crate::telemetry::chain(&error);
                tracing::warn!(
                    error,
                    "AWS Private CA cannot be asked; what is known of it stays"
                );
                Ok(Arc::clone(&known.offer))
            }
            (Err(error), None) => Err(error.into()),
        }
    }

    async fn issue(
        &self,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<SigningAuthority, UpstreamError> {
        let known = self
            .state()
            .known
            .clone()
            .ok_or(UpstreamError::NothingYet)?;
        self.issued(&known, lifetime, now).await
    }

    fn name(&self) -> String {
        self.api.name()
    }
}

fn certificates(
    action: &'static str,
    pem: &str,
) -> Result<Vec<CertificateDer<'static>>, AwsPcaError> {
    let wrong = |why: String| AwsPcaError::Answer { action, why };
    let read = CertificateDer::pem_slice_iter(pem.as_bytes()).take(MAX_CERTIFICATES + 1);
    let read: Result<Vec<_>, _> = read.collect();
    let read = read.map_err(|error| wrong(format!("holds what is no PEM: {error}")))?;
    if read.is_empty() || read.len() > MAX_CERTIFICATES {
        let why = format!(
            "holds {} certificates; 1 to {MAX_CERTIFICATES} were expected",
            read.len()
        );
        return Err(wrong(why));
    }
    Ok(read)
}
