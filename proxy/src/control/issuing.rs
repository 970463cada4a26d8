//! Getting SVIDs: a first one for evidence, later ones for the SVID before.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use sidewind_api::v1;
use sidewind_api::v1::identity_service_client::IdentityServiceClient;
use sidewind_identity::{PrivateKey, Svid, TrustBundles, tls};

use super::VERSION;
use super::dial::{ALPN, Dialled, Dialler, timed_out};
use super::error::ControlError;
use super::evidence::{self, Occasion};
use super::publisher::TaskTerms;
use crate::config::{ControlPlaneAddress, EvidenceSource};

const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// An SVID with a key made for it alone, and what came with it.
#[derive(Debug)]
pub(super) struct Issued {
    pub(super) svid: Svid,
    pub(super) bundles: Vec<v1::TrustBundle>,
    pub(super) control_plane: String,
    pub(super) control_plane_version: String,
    /// What the control plane says of its clock.
    pub(super) now_unix_ms: i64,
    /// What the workload's tasks may have.
    pub(super) tasks: Option<TaskTerms>,
    pub(super) local: std::net::IpAddr,
}

/// Exchanges evidence for a first SVID. The evidence leaves this process only after the server has proved that it is
/// the control plane, and goes over the connection that it was gathered for.
pub(super) async fn attest(
    dialler: &Dialler,
    address: &ControlPlaneAddress,
    bundles: &Arc<TrustBundles>,
    source: &EvidenceSource,
    now: SystemTime,
) -> Result<Issued, ControlError> {
    let tls = tls::anonymous_client_config(bundles, ALPN).map_err(local("set up TLS"))?;
    let key = PrivateKey::generate().map_err(local("generate a key"))?;
    let dialled = dialler.dial(address, &tls).await?;
    let mut client = IdentityServiceClient::new(dialled.channel.clone());
    let occasion = Occasion {
        client: client.clone(),
        address,
        key: &key,
        now,
    };
    let request = v1::AttestRequest {
        evidence: Some(evidence::gather(source, occasion).await?),
        csr: key.csr_der().map_err(local("sign a request"))?,
        version: VERSION.to_owned(),
    };
    let call = client.attest(request);
    finish(
        address,
        tokio::time::timeout(CALL_TIMEOUT, call).await,
        key,
        &dialled,
    )
}

/// Exchanges the present SVID, over mutual TLS, for its successor.
pub(super) async fn renew(
    dialler: &Dialler,
    address: &ControlPlaneAddress,
    bundles: &Arc<TrustBundles>,
    svid: &Svid,
) -> Result<Issued, ControlError> {
    let tls = tls::client_config(svid, bundles, ALPN).map_err(local("set up TLS"))?;
    let dialled = dialler.dial(address, &tls).await?;
    renew_on(&dialled, address, svid).await
}

/// The same on a connection that was made under the present SVID.
pub(super) async fn renew_on(
    dialled: &Dialled,
    address: &ControlPlaneAddress,
    svid: &Svid,
) -> Result<Issued, ControlError> {
    let key = PrivateKey::generate().map_err(local("generate a key"))?;
    let request = v1::RenewRequest {
        csr: key.csr_der().map_err(local("sign a request"))?,
        version: VERSION.to_owned(),
    };
    let mut client = IdentityServiceClient::new(dialled.channel.clone());
    let call = client.renew(request);
    let answer = tokio::time::timeout(CALL_TIMEOUT, call).await;
    let issued = finish(address, answer, key, dialled)?;
    if issued.svid.id() != svid.id() {
        return Err(ControlError::BadAnswer {
            address: address.to_string(),
            problem: format!("an SVID for {} in place of {}", issued.svid.id(), svid.id()),
        });
    }
    Ok(issued)
}

type Answer =
    Result<Result<tonic::Response<v1::SvidResponse>, tonic::Status>, tokio::time::error::Elapsed>;

fn finish(
    address: &ControlPlaneAddress,
    answer: Answer,
    key: PrivateKey,
    dialled: &Dialled,
) -> Result<Issued, ControlError> {
    let answer = answer
        .map_err(|_| timed_out(address, CALL_TIMEOUT))?
        .map_err(|status| ControlError::Refused {
            address: address.to_string(),
            status,
        })?
        .into_inner();
    let chain = answer
        .certificate_chain
        .into_iter()
        .map(CertificateDer::from)
        .collect();
    let svid = Svid::new(chain, key).map_err(|error| ControlError::BadAnswer {
        address: address.to_string(),
        problem: format!("a certificate that cannot be used: {error}"),
    })?;
    Ok(Issued {
        svid,
        bundles: answer.trust_bundles,
        control_plane: address.to_string(),
        control_plane_version: answer.version,
        now_unix_ms: answer.now_unix_ms,
        tasks: answer.task_identities.map(|terms| TaskTerms {
            needs_token: terms.needs_airflow_token,
        }),
        local: dialled.local,
    })
}

fn local<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> ControlError {
    move |error| ControlError::Local {
        what,
        problem: error.to_string(),
    }
}
