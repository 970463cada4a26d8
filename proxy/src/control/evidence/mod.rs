//! Evidence: what proves to the control plane who this workload is, made for one signing request.
//!
//! It is gathered on the connection that it then goes over, whose server has proved that it is the control plane: a
//! challenge is good only at the process that gave it.
//!
//! - `aws_iam`: a request to STS, signed (`sidewind_api::sigv4`) with the role's [`credentials`]
//! - `x509`: a signature by an existing certificate's key
//! - tokens (join tokens, Kubernetes, OIDC) need nothing but being read

mod aws_iam;
mod credentials;
mod x509;

use std::time::{Duration, SystemTime};

use sidewind_api::v1;
use sidewind_api::v1::attest_request::Evidence;
use sidewind_api::v1::identity_service_client::IdentityServiceClient;
use sidewind_identity::PrivateKey;
use tonic::transport::Channel;

use super::VERSION;
use super::dial::timed_out;
use super::error::ControlError;
use crate::config::{ControlPlaneAddress, EvidenceSource, Secret};

const CHALLENGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of a challenge's texts that are taken: both become parts of what is signed.
const MAX_CHALLENGE_BYTES: usize = 512;

/// What evidence is gathered for.
#[derive(Debug)]
pub(super) struct Occasion<'a> {
    /// A client on the connection that the evidence goes over.
    pub(super) client: IdentityServiceClient<Channel>,
    pub(super) address: &'a ControlPlaneAddress,
    /// The key that the new certificate is for.
    pub(super) key: &'a PrivateKey,
    pub(super) now: SystemTime,
}

/// A challenge, and the key that is to be certified.
#[derive(Debug)]
struct Binding {
    server_id: String,
    nonce: String,
    /// SHA-256 of the key's SubjectPublicKeyInfo.
    key_sha256: [u8; 32],
}

/// Gathers evidence.
///
/// # Errors
/// [`ControlError::NoEvidence`] when this machine has none, and whatever asking for a challenge comes to.
pub(super) async fn gather(
    source: &EvidenceSource,
    occasion: Occasion<'_>,
) -> Result<Evidence, ControlError> {
    match source {
        EvidenceSource::JoinToken(source) => {
            let token = source.read().map_err(ControlError::NoEvidence)?;
            Ok(Evidence::JoinToken(v1::JoinToken {
                token: token.expose().to_owned(),
            }))
        }
        EvidenceSource::Kubernetes {
            token_file,
            cluster,
        } => {
            let token = Secret::read_token(token_file).map_err(ControlError::NoEvidence)?;
            Ok(Evidence::Kubernetes(v1::KubernetesToken {
                token: token.expose().to_owned(),
                cluster: cluster.clone(),
            }))
        }
        EvidenceSource::Oidc { token_file } => {
            let token = Secret::read_token(token_file).map_err(ControlError::NoEvidence)?;
            Ok(Evidence::Oidc(v1::OidcToken {
                token: token.expose().to_owned(),
            }))
        }
        EvidenceSource::AwsIam {
            region,
            credentials,
        } => {
            // What takes longest comes before the challenge, which is good for a minute.
            let credentials = credentials::get(credentials).await;
            let credentials = credentials.map_err(ControlError::NoEvidence)?;
            let now = occasion.now;
            let binding = occasion.challenge().await?;
            let evidence = aws_iam::evidence(region, &credentials, &binding, now);
            evidence
                .map(Evidence::AwsIam)
                .map_err(ControlError::NoEvidence)
        }
        EvidenceSource::X509 {
            certificate_file,
            key_file,
        } => {
            let holder = x509::Holder::read(certificate_file, key_file);
            let holder = holder.map_err(ControlError::NoEvidence)?;
            let binding = occasion.challenge().await?;
            let evidence = holder.evidence(&binding);
            evidence
                .map(Evidence::X509)
                .map_err(ControlError::NoEvidence)
        }
    }
}

impl Occasion<'_> {
    async fn challenge(mut self) -> Result<Binding, ControlError> {
        let request = v1::ChallengeRequest {
            version: VERSION.to_owned(),
        };
        let asked = tokio::time::timeout(CHALLENGE_TIMEOUT, self.client.challenge(request)).await;
        let answer = asked
            .map_err(|_| timed_out(self.address, CHALLENGE_TIMEOUT))?
            .map_err(|status| ControlError::Refused {
                address: self.address.to_string(),
                status,
            })?
            .into_inner();
        for text in [&answer.nonce, &answer.server_id] {
            let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
            if text.is_empty() || text.len() > MAX_CHALLENGE_BYTES || !printable {
                return Err(ControlError::BadAnswer {
                    address: self.address.to_string(),
                    problem: "a challenge that cannot be signed".to_owned(),
                });
            }
        }
        Ok(Binding {
            server_id: answer.server_id,
            nonce: answer.nonce,
            key_sha256: sha256(&self.key.public_key_der()),
        })
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut array = [0; 32];
    array.copy_from_slice(digest.as_ref());
    array
}

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
