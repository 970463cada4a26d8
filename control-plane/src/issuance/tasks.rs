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
use std::fmt::Write as _;
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

/// Most characters of a name that the audit keeps of what a worker says.
const MAX_SAID: usize = 256;

fn detail(worker: &SpiffeId, request: &v1::IssueTaskSvidRequest, airflow: Option<&str>) -> String {
    let mut detail = format!("for {worker}");
    if let (Some(airflow), Some(token)) = (airflow, &request.airflow) {
        let ti_id = said(&token.ti_id);
        let _ = write!(detail, ", on the word of Airflow {airflow} about {ti_id}");
    }
    let Some(instance) = &request.instance else {
        return detail;
    };
    let _ = write!(
        detail,
        "; as the worker says, run_id={}",
        said(&instance.run_id)
    );
    if let Some(index) = instance.map_index {
        let _ = write!(detail, " map_index={index}");
    }
    if instance.try_number > 0 {
        let _ = write!(detail, " try_number={}", instance.try_number);
    }
    if !instance.triggered_by.is_empty() {
        let _ = write!(detail, " triggered_by={}", said(&instance.triggered_by));
    }
    detail
}

/// A text of somebody else's, in quotes and bounded.
fn said(text: &str) -> String {
    let text: String = text.chars().take(MAX_SAID).collect();
    format!("{text:?}")
}

fn task_refused(message: String) -> Refusal {
    Refusal::new(Reason::TaskRefused, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_audit_says_for_whom_and_which_instance_as_the_worker_says() {
        let worker = SpiffeId::parse("spiffe://td/ns/airflow/sa/worker").unwrap();
        let run = "scheduled__2026-11-21T00:00:00+00:00";
        let instance = v1::TaskInstance {
            run_id: run.to_owned(),
            map_index: Some(0),
            try_number: 2,
            triggered_by: "alice\nbob".to_owned(),
        };
        let token = v1::AirflowTaskToken {
            ti_id: "0193".to_owned(),
            token: "eyJ.secret".to_owned(),
        };
        let scheduled = v1::TaskInstance {
            triggered_by: "x".repeat(1000),
            ..v1::TaskInstance::default()
        };
        let bounded = format!(" run_id=\"\" triggered_by={:?}", "x".repeat(MAX_SAID));
        for (airflow, instance, expected) in [
            (None, None, String::new()),
            (
                Some(token),
                Some(instance),
                format!(
                    ", on the word of Airflow prod about \"0193\"; as the worker says, run_id={run:?} map_index=0 \
                     try_number=2 triggered_by=\"alice\\nbob\""
                ),
            ),
            (
                None,
                Some(scheduled),
                format!("; as the worker says,{bounded}"),
            ),
        ] {
            let request = v1::IssueTaskSvidRequest {
                airflow,
                instance,
                ..v1::IssueTaskSvidRequest::default()
            };
            let detail = detail(&worker, &request, Some("prod"));
            assert_eq!(detail, format!("for {worker}{expected}"));
        }
    }
}
