//! JWT-SVIDs, which the control plane signs: its key for them never leaves it.

use std::sync::Arc;
use std::time::Duration;

use sidewind_api::v1;
use sidewind_api::v1::identity_service_client::IdentityServiceClient;
use sidewind_identity::{Svid, tls};

use super::Shared;
use super::dial::{ALPN, Dialler, timed_out};
use super::error::ControlError;
use crate::config::ControlPlaneAddress;

/// Bound on one try, the connection included.
const TRY_TIMEOUT: Duration = Duration::from_secs(5);

/// Bound on all tries of one token. Clients of the Workload API wait that long, and retry by themselves.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Gets JWT-SVIDs of this workload's identity.
///
/// Each is asked for on a connection of its own: tokens are kept for minutes by whoever asks, and an idle connection
/// of every proxy would cost the control plane more than a handshake now and then.
#[derive(Debug, Clone)]
pub(crate) struct Minter {
    control_planes: Arc<[ControlPlaneAddress]>,
    dialler: Dialler,
    shared: Arc<Shared>,
}

impl Minter {
    pub(super) fn new(
        control_planes: &[ControlPlaneAddress],
        dialler: Dialler,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            control_planes: control_planes.into(),
            dialler,
            shared,
        }
    }

    /// A JWT-SVID of this workload for an audience. Another control plane is tried when one cannot be reached or is
    /// out of order; what one refuses, the others would too.
    ///
    /// # Errors
    /// [`ControlError::Refused`] with what the control plane says, or what kept it from being asked.
    pub(crate) async fn mint(
        &self,
        audience: &[String],
    ) -> Result<v1::MintJwtSvidResponse, ControlError> {
        let Some(svid) = self.shared.publisher.svid() else {
            return Err(ControlError::NoEvidence("there is no SVID yet".to_owned()));
        };
        let Some(first) = self.control_planes.first() else {
            return Err(ControlError::NoEvidence(
                "no control plane is configured".to_owned(),
            ));
        };
        tokio::time::timeout(TIMEOUT, self.try_each(first, &svid, audience))
            .await
            .unwrap_or_else(|_| Err(timed_out(first, TIMEOUT)))
    }

    async fn try_each(
        &self,
        first: &ControlPlaneAddress,
        svid: &Svid,
        audience: &[String],
    ) -> Result<v1::MintJwtSvidResponse, ControlError> {
        let mut failed = match self.try_one(first, svid, audience).await {
            Err(error) if is_passed_over(&error) => error,
            decided => return decided,
        };
        for address in self.control_planes.iter().skip(1) {
            failed = match self.try_one(address, svid, audience).await {
                Err(error) if is_passed_over(&error) => error,
                decided => return decided,
            };
        }
        Err(failed)
    }

    async fn try_one(
        &self,
        address: &ControlPlaneAddress,
        svid: &Svid,
        audience: &[String],
    ) -> Result<v1::MintJwtSvidResponse, ControlError> {
        let answer = tokio::time::timeout(TRY_TIMEOUT, self.call(address, svid, audience));
        let minted = answer
            .await
            .map_err(|_| timed_out(address, TRY_TIMEOUT))??;
        if minted.spiffe_id != svid.id().as_str() {
            let other: String = minted.spiffe_id.escape_debug().take(256).collect();
            return Err(ControlError::BadAnswer {
                address: address.to_string(),
                problem: format!("a JWT-SVID for {other} in place of {}", svid.id()),
            });
        }
        Ok(minted)
    }

    async fn call(
        &self,
        address: &ControlPlaneAddress,
        svid: &Svid,
        audience: &[String],
    ) -> Result<v1::MintJwtSvidResponse, ControlError> {
        let bundles = self.shared.publisher.bundles();
        let tls =
            tls::client_config(svid, &bundles, ALPN).map_err(|error| ControlError::Local {
                what: "set up TLS",
                problem: error.to_string(),
            })?;
        let dialled = self.dialler.dial(address, &tls).await?;
        let request = v1::MintJwtSvidRequest {
            audience: audience.to_vec(),
        };
        let answer = IdentityServiceClient::new(dialled.channel)
            .mint_jwt_svid(request)
            .await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| ControlError::Refused {
                address: address.to_string(),
                status,
            })
    }
}

/// Whether another control plane may do what this one did not.
fn is_passed_over(error: &ControlError) -> bool {
    match error {
        ControlError::Refused { status, .. } => matches!(
            status.code(),
            tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Internal
        ),
        ControlError::BadAnswer { .. } | ControlError::Local { .. } => false,
        _ => true,
    }
}
