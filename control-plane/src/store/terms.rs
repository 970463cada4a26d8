//! The part of a registration that is stored as one JSON object.

use super::{Registration, StoreError, TaskTerms};
use crate::attest::Selectors;
use serde::{Deserialize, Serialize};
use sidewind_identity::TrustDomain;
use std::time::Duration;

/// The stored form. Fields are only added, and each may be missing: older rows have none.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Terms {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dns_names: Vec<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    task_identities: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    task_svid_ttl_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task_airflow: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwt_ttl_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    federates_with: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    selectors: Vec<(String, String)>,
}

/// What of a registration is stored as JSON.
pub(super) fn write(registration: &Registration) -> String {
    let tasks = registration.task_identities.as_ref();
    let terms = Terms {
        dns_names: registration.dns_names.clone(),
        task_identities: tasks.is_some(),
        task_svid_ttl_seconds: tasks.map(|tasks| tasks.svid_ttl.as_secs()),
        task_airflow: tasks.and_then(|tasks| tasks.airflow.clone()),
        jwt_ttl_seconds: registration.jwt_ttl.map(|ttl| ttl.as_secs()),
        federates_with: registration
            .federates_with
            .iter()
            .map(|domain| domain.as_str().to_owned())
            .collect(),
        document: registration.document.clone(),
        selectors: registration
            .selectors
            .iter()
            .map(|selector| (selector.key().to_owned(), selector.value().to_owned()))
            .collect(),
    };
    // Strings, numbers and lists of them have a JSON form.
    serde_json::to_string(&terms).unwrap_or_else(|_| "{}".to_owned())
}

/// Puts what was stored as JSON into a registration.
pub(super) fn read(text: &str, registration: &mut Registration) -> Result<(), StoreError> {
    let corrupt = |why: String| StoreError::Corrupt {
        what: "registration",
        why,
    };
    let terms: Terms = serde_json::from_str(text).map_err(|error| corrupt(error.to_string()))?;
    registration.dns_names = terms.dns_names;
    let default = TaskTerms::default().svid_ttl;
    let task_ttl = terms.task_svid_ttl_seconds.map(Duration::from_secs);
    registration.task_identities = terms.task_identities.then_some(TaskTerms {
        svid_ttl: task_ttl.unwrap_or(default),
        airflow: terms.task_airflow,
    });
    registration.jwt_ttl = terms.jwt_ttl_seconds.map(Duration::from_secs);
    let parse = |name: &String| {
        TrustDomain::parse(name).map_err(|error| corrupt(format!("{name:?}: {error}")))
    };
    registration.federates_with = terms
        .federates_with
        .iter()
        .map(parse)
        .collect::<Result<_, _>>()?;
    registration.document = terms.document;
    registration.selectors = terms.selectors.into_iter().collect::<Selectors>();
    Ok(())
}
