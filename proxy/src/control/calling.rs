//! One call of an attested workload, at whichever control plane answers it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sidewind_api::v1::identity_service_client::IdentityServiceClient;
use sidewind_identity::{Svid, tls};
use tonic::transport::Channel;

use super::Shared;
use super::dial::{ALPN, Dialler, timed_out};
use super::error::ControlError;
use crate::config::ControlPlaneAddress;

/// Bound on one try, the connection included.
const TRY_TIMEOUT: Duration = Duration::from_secs(5);

/// Bound on all tries of one call. Who asks for it waits that long, and retries by itself.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// Makes calls under the present SVID.
///
/// Each is on a connection of its own: what is asked for so is kept for minutes, and an idle connection of every proxy
/// would cost the control plane more than a handshake now and then.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    control_planes: Arc<[ControlPlaneAddress]>,
    dialler: Dialler,
    shared: Arc<Shared>,
}

/// An answer, who gave it, and whom it was asked for.
#[derive(Debug)]
pub(super) struct Answered<T> {
    pub(super) answer: T,
    pub(super) control_plane: String,
    pub(super) svid: Svid,
}

impl Caller {
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

    /// Makes a call. Another control plane is tried when one cannot be reached or is out of order; what one refuses,
    /// the others would too.
    ///
    /// # Errors
    /// [`ControlError::Refused`] with what the control plane says, or what kept it from being asked.
    pub(super) async fn call<T, F, A>(&self, call: F) -> Result<Answered<T>, ControlError>
    where
        F: Fn(IdentityServiceClient<Channel>) -> A,
        A: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let Some(svid) = self.shared.publisher.svid() else {
            return Err(ControlError::NoEvidence("there is no SVID yet".to_owned()));
        };
        let Some(first) = self.control_planes.first() else {
            return Err(ControlError::NoEvidence(
                "no control plane is configured".to_owned(),
            ));
        };
        tokio::time::timeout(TIMEOUT, self.try_each(first, &svid, &call))
            .await
            .unwrap_or_else(|_| Err(timed_out(first, TIMEOUT)))
    }

    async fn try_each<T, F, A>(
        &self,
        first: &ControlPlaneAddress,
        svid: &Svid,
        call: &F,
    ) -> Result<Answered<T>, ControlError>
    where
        F: Fn(IdentityServiceClient<Channel>) -> A,
        A: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let mut failed = match self.try_one(first, svid, call).await {
            Err(error) if is_passed_over(&error) => error,
            decided => return decided,
        };
        for address in self.control_planes.iter().skip(1) {
            failed = match self.try_one(address, svid, call).await {
                Err(error) if is_passed_over(&error) => error,
                decided => return decided,
            };
        }
        Err(failed)
    }

    async fn try_one<T, F, A>(
        &self,
        address: &ControlPlaneAddress,
        svid: &Svid,
        call: &F,
    ) -> Result<Answered<T>, ControlError>
    where
        F: Fn(IdentityServiceClient<Channel>) -> A,
        A: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let exchange = async {
            let bundles = self.shared.publisher.bundles();
            let tls =
                tls::client_config(svid, &bundles, ALPN).map_err(|error| ControlError::Local {
                    what: "set up TLS",
                    problem: error.to_string(),
                })?;
            let dialled = self.dialler.dial(address, &tls).await?;
            let answer = call(IdentityServiceClient::new(dialled.channel)).await;
            answer.map_err(|status| ControlError::Refused {
                address: address.to_string(),
                status,
            })
        };
        let answer = tokio::time::timeout(TRY_TIMEOUT, exchange)
            .await
            .map_err(|_| timed_out(address, TRY_TIMEOUT))??;
        Ok(Answered {
            answer: answer.into_inner(),
            control_plane: address.to_string(),
            svid: svid.clone(),
        })
    }
}

/// Whether another control plane may do what this one did not.
pub(super) fn is_passed_over(error: &ControlError) -> bool {
    match error {
        ControlError::Refused { status, .. } => matches!(
            status.code(),
            tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Internal
        ),
        ControlError::BadAnswer { .. } | ControlError::Local { .. } => false,
        _ => true,
    }
}
