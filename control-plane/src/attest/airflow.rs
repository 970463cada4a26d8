//! Airflow's own word that a task is running: the token that it gave the task for its Execution API.
//!
//! The token proves a task instance by its id (`sub`), and says nothing of DAG or task. That one instance is of one
//! task is held to here: whoever brings a token for another task than before is refused.

use super::keys::{KeyCache, TokenError};
use super::unverifiable;
use crate::config::Live;
use crate::config::attestor_config::{Airflow, AirflowKeys};
use crate::issuance::Refusal;
use serde_json::{Map, Value};
use sidewind_api::{Reason, v1};
use sidewind_identity::jwt::jws::Rules;
use sidewind_identity::jwt::shared::{SharedSecret, verify_shared};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use zeroize::Zeroizing;

/// By how much the clocks of Airflow and control plane may differ.
const LEEWAY: Duration = Duration::from_secs(30);
/// Most bytes of a secret.
const MAX_SECRET_BYTES: u64 = 4096;
/// Most bytes of a task instance's id: a UUID has 36.
const MAX_ID_BYTES: usize = 64;
/// Task instances that are remembered.
const MAX_INSTANCES: usize = 65_536;
/// How long one is remembered after its token was shown last. A token is good for minutes, and its task may get others
/// for as long as it runs.
const REMEMBERED: Duration = Duration::from_secs(86_400);

/// Verifies tokens of tasks.
#[derive(Debug)]
pub struct AirflowWord {
    config: Live,
    keys: KeyCache,
    instances: Mutex<HashMap<String, Instance>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Instance {
    dag_id: String,
    task_id: String,
    shown: SystemTime,
}

impl AirflowWord {
    /// Takes tokens of the Airflows of a configuration.
    #[must_use]
    pub fn new(config: Live) -> Self {
        Self {
            config,
            keys: KeyCache::default(),
            instances: Mutex::default(),
        }
    }

    /// Checks that an Airflow says that a task instance is running, and that it is not known to be of another task.
    ///
    /// # Errors
    /// When there is no token or it is not good, and when nobody can say.
    pub async fn check(
        &self,
        airflow: &str,
        request: &v1::IssueTaskSvidRequest,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        let config = self.config.load();
        let known = config.attestors().airflow.iter();
        let known = known.into_iter().find(|known| known.name == airflow);
        let airflow = known.ok_or_else(|| {
            let message = format!("no AttestorConfig configures the Airflow {airflow:?}");
            Refusal::new(Reason::AttestorNotConfigured, message)
        })?;
        let token = request.airflow.as_ref().ok_or_else(|| {
            let message = format!(
                "identities of tasks need the task's token of the Execution API of Airflow {}",
                airflow.name
            );
            Refusal::new(Reason::EvidenceMissing, message)
        })?;
        if token.ti_id.is_empty() || token.ti_id.len() > MAX_ID_BYTES {
            return Err(refused("the id of the task instance is none"));
        }
        let claims = self.verify(airflow, &token.token, now).await?;
        check_claims(&claims, &token.ti_id)?;
        self.hold(&token.ti_id, request, now)
    }

    async fn verify(
        &self,
        airflow: &Airflow,
        token: &str,
        now: SystemTime,
    ) -> Result<Map<String, Value>, Refusal> {
        let rules = Rules::audience(&airflow.audience, airflow.issuer.as_deref());
        let mut rules = rules.map_err(|error| refused(error.to_string()))?;
        rules.leeway = LEEWAY;
        match &airflow.keys {
            AirflowKeys::Secret(path) => {
                let secret = read_secret(path).await;
                let secret = secret.map_err(|why| {
                    let what = format!("the secret of Airflow {}", airflow.name);
                    unverifiable("airflow-secret", &what, &std::io::Error::other(why))
                })?;
                verify_shared(token, &secret, &rules, now)
                    .map_err(|error| refused(error.to_string()))
            }
            AirflowKeys::Public(source) => {
                let verified = self.keys.verify(token, source, &rules, now).await;
                let verified = verified.map_err(|error| match error {
                    TokenError::Refused(error) => refused(error.to_string()),
                    TokenError::NoKeys { .. } => {
                        let what = format!("the keys of Airflow {}", airflow.name);
                        unverifiable("airflow-keys", &what, &error)
                    }
                })?;
                Ok(verified.claims)
            }
        }
    }

    /// One task instance is of one task, for as long as it is remembered.
    fn hold(
        &self,
        ti_id: &str,
        request: &v1::IssueTaskSvidRequest,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        let mut instances = self
            .instances
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = instances.get_mut(ti_id) {
            if known.dag_id != request.dag_id || known.task_id != request.task_id {
                return Err(refused(
                    "the token is of a task instance that was of another task before",
                ));
            }
            known.shown = now;
            return Ok(());
        }
        if instances.len() >= MAX_INSTANCES {
            instances.retain(|_, known| {
                now.duration_since(known.shown).unwrap_or_default() < REMEMBERED
            });
        }
        if instances.len() >= MAX_INSTANCES {
            let message = "too many task instances at once; try again";
            return Err(Refusal::new(Reason::Overloaded, message));
        }
        let instance = Instance {
            dag_id: request.dag_id.clone(),
            task_id: request.task_id.clone(),
            shown: now,
        };
        instances.insert(ti_id.to_owned(), instance);
        Ok(())
    }
}

fn check_claims(claims: &Map<String, Value>, ti_id: &str) -> Result<(), Refusal> {
    let subject = claims.get("sub").and_then(Value::as_str);
    if subject != Some(ti_id) {
        return Err(refused("the token is of another task instance"));
    }
    // Older Airflows say none.
    let scope = claims.get("scope");
    let known = |scope: &Value| matches!(scope.as_str(), Some("workload" | "execution"));
    if scope.is_some_and(|scope| !known(scope)) {
        return Err(refused("the token's scope is not that of a task"));
    }
    Ok(())
}

async fn read_secret(path: &Path) -> Result<SharedSecret, String> {
    let named = |why: String| format!("{}: {why}", path.display());
    let content = crate::https::read_bounded(path, MAX_SECRET_BYTES).await;
    let content = Zeroizing::new(content.map_err(|error| named(error.to_string()))?);
    SharedSecret::new(content.trim_ascii()).map_err(|error| named(error.to_string()))
}

fn refused(message: impl Into<String>) -> Refusal {
    Refusal::new(Reason::EvidenceRefused, message)
}
