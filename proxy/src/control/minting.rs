//! JWT-SVIDs, which the control plane signs: its key for them never leaves it.

use sidewind_api::v1;

use super::calling::Caller;
use super::error::ControlError;

/// Gets JWT-SVIDs of this workload's identity.
#[derive(Debug, Clone)]
pub(crate) struct Minter {
    caller: Caller,
}

impl Minter {
    pub(super) fn new(caller: Caller) -> Self {
        Self { caller }
    }

    /// A JWT-SVID of this workload for an audience.
    ///
    /// # Errors
    /// [`ControlError::Refused`] with what the control plane says, or what kept it from being asked.
    pub(crate) async fn mint(
        &self,
        audience: &[String],
    ) -> Result<v1::MintJwtSvidResponse, ControlError> {
        let minted = self.caller.call(|mut client| async move {
            let audience = audience.to_vec();
            let request = v1::MintJwtSvidRequest { audience };
            client.mint_jwt_svid(request).await
        });
        let minted = minted.await?;
        let id = minted.svid.id();
        if minted.answer.spiffe_id != id.as_str() {
            let other = minted.answer.spiffe_id.escape_debug();
            let other: String = other.take(256).collect();
            return Err(ControlError::BadAnswer {
                address: minted.control_plane,
                problem: format!("a JWT-SVID for {other} in place of {id}"),
            });
        }
        Ok(minted.answer)
    }
}
