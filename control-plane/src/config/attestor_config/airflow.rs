//! An Airflow whose word about its running tasks is believed.

use super::super::Draft;
use super::super::document::{Reader, present};
use super::{KeySource, file, keys};
use serde::Deserialize;
use serde_saphyr::Spanned;
use std::path::PathBuf;

/// An Airflow deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Airflow {
    /// What registrations call it.
    pub name: String,
    /// What tokens of its Execution API are made for.
    pub audience: String,
    /// What tokens have as `iss`, where it is configured to say so.
    pub issuer: Option<String>,
    /// What its tokens are verified with.
    pub keys: AirflowKeys,
}

/// What tokens are verified with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AirflowKeys {
    /// A file with the secret of `[api_auth] jwt_secret`, read at each use. Whoever has it can make tokens, too.
    Secret(PathBuf),
    /// Public keys.
    Public(KeySource),
}

/// What Airflow makes tokens of its Execution API for, unless it is configured otherwise.
const DEFAULT_AUDIENCE: &str = "urn:airflow.apache.org:task";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Entry {
    name: Spanned<String>,
    #[serde(default, deserialize_with = "present")]
    audience: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    issuer: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    secret_file: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    jwks_file: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    jwks_url: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    ca_file: Option<Spanned<String>>,
}

pub(super) fn read(reader: &mut Reader<'_>, draft: &mut Draft, entry: &Spanned<Entry>) {
    let fields = &entry.value;
    let name = &fields.name;
    if !sidewind_api::service::is_host(&name.value) {
        reader.refuse(name, "must be of lower-case letters, digits, `-` and `.`");
    }
    reader.take(draft, name, format!("Airflow {}", name.value));
    let audience = match &fields.audience {
        Some(given) => super::audience(reader, Some(given)),
        None => DEFAULT_AUDIENCE.to_owned(),
    };
    if let Some(issuer) = fields
        .issuer
        .as_ref()
        .filter(|given| given.value.is_empty())
    {
        reader.refuse(
            issuer,
            "must not be empty; leave it out where Airflow says none",
        );
    }
    let public = keys::read(
        reader,
        fields.jwks_file.as_ref(),
        fields.jwks_url.as_ref(),
        fields.ca_file.as_ref(),
    );
    let keys = match (file(reader, fields.secret_file.as_ref()), public) {
        (Some(secret), None) => AirflowKeys::Secret(secret),
        (None, Some(keys)) => AirflowKeys::Public(keys),
        (Some(_), Some(_)) => {
            reader.refuse(
                entry,
                "may have `secretFile` or a JWKS, and not both: tokens are signed one way",
            );
            return;
        }
        (None, None) => {
            reader.refuse(
                entry,
                "must have one of `secretFile`, `jwksFile` and `jwksUrl`",
            );
            return;
        }
    };
    if reader.is_sound() {
        draft.add_airflow(Airflow {
            name: name.value.clone(),
            audience,
            issuer: fields.issuer.as_ref().map(|given| given.value.clone()),
            keys,
        });
    }
}
