//! Foreign trust domains, asked for on the admin socket.

use super::admin_socket::AdminApi;
use crate::issuance::Refusal;
use crate::store::{AuditRecord, GRANTED};
use sidewind_api::{Reason, v1};
use sidewind_identity::TrustDomain;
use std::time::SystemTime;

impl AdminApi {
    pub(super) fn federation(&self) -> v1::ListFederationResponse {
        v1::ListFederationResponse {
            relations: self.federation.list(),
        }
    }

    /// Forgets the bundle of a trust domain that no document configures (any more).
    pub(super) async fn forget_bundle(
        &self,
        request: &v1::ForgetTrustDomainRequest,
        caller: String,
    ) -> Result<v1::ForgetTrustDomainResponse, Refusal> {
        let refused = |message: String| Refusal::new(Reason::InvalidMessage, message);
        let trust_domain = TrustDomain::parse(&request.trust_domain)
            .map_err(|error| refused(format!("not the name of a trust domain: {error}")))?;
        let relations = self.federation.list();
        let known = relations
            .iter()
            .find(|relation| relation.trust_domain == trust_domain.as_str());
        if known.is_some_and(|relation| !relation.url.is_empty()) {
            let message = format!(
                "{trust_domain} is configured by a FederatedTrustDomain: take that out first, so that proxies give the bundle up, and put it back afterwards"
            );
            return Err(refused(message));
        }
        let audit = AuditRecord {
            at: SystemTime::now(),
            event: "federation-forget",
            outcome: GRANTED,
            detail: Some(trust_domain.to_string()),
            spiffe_id: None,
            registration: None,
            serial: None,
            not_after: None,
            caller,
            csr_sha256: None,
        };
        let forgotten = self
            .store
            .forget_federated_bundle(&trust_domain, &audit)
            .await
            .map_err(|error| Refusal::store(&error))?;
        if !forgotten {
            return Err(refused(format!(
                "there is no bundle of {trust_domain} here"
            )));
        }
        audit.log();
        let read = self.federation.forgotten().await;
        read.map_err(|error| Refusal::store(&error))?;
        Ok(v1::ForgetTrustDomainResponse {})
    }
}
