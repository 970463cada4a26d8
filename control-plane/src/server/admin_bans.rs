//! Bans, asked for on the admin socket.

use super::admin_socket::AdminApi;
use crate::issuance::Refusal;
use crate::store::{AuditRecord, GRANTED};
use sidewind_api::{Banned, Reason, v1};
use std::time::{Duration, SystemTime};

/// How long a change of the bans waits for proxies to say that they have it.
const BAN_WAIT: Duration = Duration::from_secs(2);
const BAN_LOOK: Duration = Duration::from_millis(20);

impl AdminApi {
    /// Bans or lifts, and pushes the list to every proxy before it answers.
    pub(super) async fn change_ban(
        &self,
        request: v1::SetBanRequest,
        caller: String,
    ) -> Result<v1::SetBanResponse, Refusal> {
        let v1::Ban {
            subject, reason, ..
        } = request.ban.unwrap_or_default();
        let invalid = |message: String| Refusal::new(Reason::InvalidMessage, message);
        let subject = subject.ok_or_else(|| invalid("name what is to be banned".to_owned()))?;
        let banned = Banned::try_from(&subject).map_err(|error| invalid(error.to_string()))?;
        self.check_bannable(&banned)?;
        let (spiffe_id, serial) = match &banned {
            Banned::Identity(id) => (Some(id.to_string()), None),
            Banned::Serial(serial) => (None, Some(serial.clone())),
        };
        let audit = AuditRecord {
            at: SystemTime::now(),
            event: if request.lift { "unban" } else { "ban" },
            outcome: GRANTED,
            detail: (!reason.is_empty()).then(|| reason.clone()),
            spiffe_id,
            registration: None,
            serial,
            not_after: None,
            caller,
            csr_sha256: None,
        };
        self.bans
            .change(banned, reason, request.lift, &audit)
            .await?;
        let bans = self.bans.api();
        let version = bans.version;
        self.registry.set_bans(bans);
        Ok(v1::SetBanResponse {
            version,
            waiting_for: self.wait_for_bans(version).await,
        })
    }

    /// Waits until every proxy that is connected here has the list, for two seconds at most; how many have not.
    async fn wait_for_bans(&self, version: u64) -> u64 {
        let waited = tokio::time::timeout(BAN_WAIT, async {
            while !self.registry.without_bans(version).is_empty() {
                tokio::time::sleep(BAN_LOOK).await;
            }
        });
        match waited.await {
            Ok(()) => 0,
            Err(_) => u64::try_from(self.registry.without_bans(version).len()).unwrap_or(u64::MAX),
        }
    }

    /// The control plane itself cannot be banned: every proxy would be cut off from what lifts the ban.
    fn check_bannable(&self, banned: &Banned) -> Result<(), Refusal> {
        match banned {
            // Of a foreign trust domain everybody can be: it is cut off here, whatever its own control plane thinks of it.
            Banned::Identity(id)
                if id.trust_domain() != self.authority.trust_domain() && id.is_workload() =>
            {
                Ok(())
            }
            Banned::Identity(id) => self.check_id(id.as_str()).map(drop),
            Banned::Serial(_) => Ok(()),
        }
    }
}
