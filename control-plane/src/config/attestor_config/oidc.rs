//! An issuer whose OIDC tokens are believed.

use super::super::Draft;
use super::super::document::{Reader, present};
use super::{KeySource, TOKEN_ALGORITHMS, audience, file, keys};
use serde::Deserialize;
use serde_saphyr::Spanned;
use sidewind_identity::jwt::Algorithm;
use std::time::Duration;

/// An issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcIssuer {
    /// What tokens have as `iss`, byte for byte.
    pub issuer: String,
    /// What tokens must be made for.
    pub audience: String,
    /// What tokens may be signed with.
    pub algorithms: Vec<Algorithm>,
    /// How old a token may be.
    pub max_age: Duration,
    /// The issuer's keys.
    pub keys: KeySource,
    /// AWS accounts whose tokens are taken; empty for issuers that are not AWS STS.
    pub aws_accounts: Vec<String>,
}

/// Hosts of AWS STS's issuers of web identity tokens, one for each account.
const AWS_STS_SUFFIX: &str = ".tokens.sts.global.api.aws";
const DEFAULT_MAX_AGE: Duration = Duration::from_secs(3600);
const LONGEST_MAX_AGE: Duration = Duration::from_secs(86_400);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Entry {
    issuer: Spanned<String>,
    #[serde(default, deserialize_with = "present")]
    audience: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    algorithms: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default, deserialize_with = "present")]
    max_age: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    jwks_file: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    jwks_url: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    ca_file: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    aws_accounts: Option<Spanned<Vec<Spanned<String>>>>,
}

pub(super) fn read(reader: &mut Reader<'_>, draft: &mut Draft, entry: &Spanned<Entry>) {
    let fields = &entry.value;
    let issuer = &fields.issuer;
    reader.take(draft, issuer, format!("issuer {}", issuer.value));
    let url = keys::url(reader, issuer);
    let given = keys::read(
        reader,
        fields.jwks_file.as_ref(),
        fields.jwks_url.as_ref(),
        fields.ca_file.as_ref(),
    );
    let keys = match (given, &url) {
        (Some(keys), _) => Some(keys),
        (None, Some(url)) => Some(KeySource::Discovery {
            issuer: url.clone(),
            given: issuer.value.clone(),
            ca_file: file(reader, fields.ca_file.as_ref()),
        }),
        (None, None) => None,
    };
    let is_aws = url.is_some_and(|url| url.host().ends_with(AWS_STS_SUFFIX));
    let entry = OidcIssuer {
        issuer: issuer.value.clone(),
        audience: audience(reader, fields.audience.as_ref()),
        algorithms: read_algorithms(reader, fields.algorithms.as_ref()),
        max_age: read_max_age(reader, fields.max_age.as_ref()),
        aws_accounts: read_accounts(reader, fields, is_aws),
        keys: match keys {
            Some(keys) if reader.is_sound() => keys,
            _ => return,
        },
    };
    draft.add_issuer(entry);
}

fn read_algorithms(
    reader: &mut Reader<'_>,
    given: Option<&Spanned<Vec<Spanned<String>>>>,
) -> Vec<Algorithm> {
    let Some(given) = given else {
        return TOKEN_ALGORITHMS.to_vec();
    };
    if given.value.is_empty() {
        reader.refuse(given, "must name at least one algorithm");
    }
    let mut algorithms = Vec::new();
    for name in &given.value {
        let known = Algorithm::parse(&name.value);
        match known.filter(|known| TOKEN_ALGORITHMS.contains(known)) {
            Some(algorithm) => algorithms.push(algorithm),
            None => reader.refuse(
                name,
                format!("{:?} is not one of RS256, ES256, ES384", name.value),
            ),
        }
    }
    algorithms
}

fn read_max_age(reader: &mut Reader<'_>, given: Option<&Spanned<String>>) -> Duration {
    let Some(given) = given else {
        return DEFAULT_MAX_AGE;
    };
    match sidewind_api::duration::parse(&given.value) {
        Ok(age) if (Duration::from_secs(60)..=LONGEST_MAX_AGE).contains(&age) => age,
        Ok(_) => {
            reader.refuse(given, "must be from 1m to 24h");
            DEFAULT_MAX_AGE
        }
        Err(error) => {
            reader.refuse(given, error);
            DEFAULT_MAX_AGE
        }
    }
}

fn read_accounts(reader: &mut Reader<'_>, fields: &Entry, is_aws: bool) -> Vec<String> {
    let Some(given) = &fields.aws_accounts else {
        if is_aws {
            reader.refuse(
                &fields.issuer,
                "is of AWS STS, and needs `awsAccounts`: whose tokens are taken",
            );
        }
        return Vec::new();
    };
    super::aws_iam::accounts(reader, given)
}
