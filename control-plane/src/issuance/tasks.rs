//! SVIDs of Airflow tasks: who is asking for which task, the certificate, the audit.
//!
//! A task's identity is the worker's own with the task behind it, so nothing that a worker says can name what is not
//! below it. Its SVID is short-lived and renews nothing: each is asked for by the worker, under the worker's own.

use super::Refusal;
use super::authority::Issued;
use super::issuer::{Issuer, audit_record, check_csr_size};
use super::registrations::name;
use crate::attest::airflow::AirflowWord;
use crate::store::AuditRecord;
use sidewind_api::{Reason, v1};
use sidewind_identity::authority::{MIN_SVID_TTL, SvidTemplate};
use sidewind_identity::{PeerIdentity, SpiffeId, TaskId};
use std::net::IpAddr;
use std::sync::Arc;

/// What the audit and the metrics call it.
const EVENT: &str = "task-svid";

/// Issues SVIDs of tasks.
#[derive(Debug)]
pub struct TaskIssuer {
    issuer: Arc<Issuer>,
    airflow: AirflowWord,
}

impl TaskIssuer {
    /// An issuer that believes these Airflows, where a registration demands their word.
    #[must_use]
    pub fn new(issuer: Arc<Issuer>, airflow: AirflowWord) -> Self {
        Self { issuer, airflow }
    }

    /// Signs a new key for a task of the workload of a living certificate.
    ///
    /// # Errors
    /// Why not; the refusal is in the audit already.
    pub async fn issue(
        &self,
        request: &v1::IssueTaskSvidRequest,
        peer: Option<&PeerIdentity>,
        caller: IpAddr,
    ) -> Result<v1::SvidResponse, Refusal> {
        let mut audit = audit_record(EVENT, &request.csr, caller);
        match self.try_issue(request, peer, &mut audit).await {
            Ok(issued) => {
                self.issuer.granted(audit);
                Ok(self.issuer.response(&issued))
            }
            Err(refusal) => Err(self.issuer.refused(audit, refusal)),
        }
    }

    async fn try_issue(
        &self,
        request: &v1::IssueTaskSvidRequest,
        peer: Option<&PeerIdentity>,
        audit: &mut AuditRecord,
    ) -> Result<Issued, Refusal> {
        audit.spiffe_id = peer.map(|peer| peer.id.to_string());
        let registration = self.issuer.registration_now(peer, audit.at).await?;
        let terms = registration.task_identities.as_ref().ok_or_else(|| {
            task_refused(format!(
                "tasks of {} have no identities; `taskIdentities` in its Registration would allow it",
                registration.spiffe_id
            ))
        })?;
        let id = derive(&registration.spiffe_id, request)?;
        audit.spiffe_id = Some(id.to_string());
        self.issuer.check_ban(&id)?;
        check_csr_size(&request.csr)?;
        if let Some(airflow) = &terms.airflow {
            self.airflow.check(airflow, request, audit.at).await?;
        }
        // It outlives the certificate that asked for it by less than the shortest life.
        let left = peer.map(|peer| peer.not_after.duration_since(audit.at).unwrap_or_default());
        let ttl = terms.svid_ttl.min(registration.svid_ttl);
        let ttl = ttl.min(left.unwrap_or_default()).max(MIN_SVID_TTL);
        let template = SvidTemplate {
            id,
            ttl,
            dns_names: Vec::new(),
        };
        let issued = self.issuer.sign(&request.csr, &template, audit.at)?;
        audit.registration = Some(name(&registration));
        audit.serial = Some(issued.serial.clone());
        audit.not_after = Some(issued.not_after);
        audit.detail = Some(detail(
            &registration.spiffe_id,
            request,
            terms.airflow.as_deref(),
        ));
        Ok(issued)
    }
}

fn derive(worker: &SpiffeId, request: &v1::IssueTaskSvidRequest) -> Result<SpiffeId, Refusal> {
    let derived = TaskId::derive(worker, &request.dag_id, &request.task_id);
    derived.map_err(|error| task_refused(error.to_string()))
}

fn detail(worker: &SpiffeId, request: &v1::IssueTaskSvidRequest, airflow: Option<&str>) -> String {
    match (airflow, &request.airflow) {
        (Some(airflow), Some(token)) => {
            format!(
                "for {worker}, on the word of Airflow {airflow} about {:?}",
                token.ti_id
            )
        }
        _ => format!("for {worker}"),
    }
}

fn task_refused(message: String) -> Refusal {
    Refusal::new(Reason::TaskRefused, message)
}
