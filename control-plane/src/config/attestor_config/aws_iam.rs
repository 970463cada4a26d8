//! AWS accounts whose roles are believed, and the regions whose STS may be asked.

use super::super::Draft;
use super::super::document::{Reader, present};
use super::file;
use crate::attest::aws_iam::arn::is_account;
use crate::attest::aws_iam::region::Region;
use serde::Deserialize;
use serde_saphyr::Spanned;
use std::path::PathBuf;

/// A region whose STS is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsRegion {
    /// The region.
    pub region: Region,
    /// Accounts whose roles are taken there, twelve digits each.
    pub accounts: Vec<String>,
    /// Whom to believe at its endpoint; none: the system's authorities.
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Entry {
    regions: Spanned<Vec<Spanned<String>>>,
    accounts: Spanned<Vec<Spanned<String>>>,
    #[serde(default, deserialize_with = "present")]
    endpoint: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    ca_file: Option<Spanned<String>>,
}

pub(super) fn read(reader: &mut Reader<'_>, draft: &mut Draft, entry: &Spanned<Entry>) {
    let fields = &entry.value;
    let accounts = accounts(reader, &fields.accounts);
    let ca_file = file(reader, fields.ca_file.as_ref());
    if fields.regions.value.is_empty() {
        reader.refuse(&fields.regions, "must name at least one region");
    }
    if let Some(endpoint) = fields
        .endpoint
        .as_ref()
        .filter(|_| fields.regions.value.len() > 1)
    {
        reader.refuse(
            endpoint,
            "is of one region; give each region with one an entry of its own",
        );
    }
    let endpoint = fields.endpoint.as_ref().map(|given| given.value.as_str());
    for name in &fields.regions.value {
        reader.take(draft, name, format!("AWS region {}", name.value));
        let region = match Region::new(&name.value, endpoint) {
            Ok(region) => region,
            Err(error) => {
                let of_endpoint = Region::new(&name.value, None).is_ok();
                let at = fields.endpoint.as_ref().filter(|_| of_endpoint);
                reader.refuse(at.unwrap_or(name), error);
                continue;
            }
        };
        if reader.is_sound() {
            draft.add_aws_region(AwsRegion {
                region,
                accounts: accounts.clone(),
                ca_file: ca_file.clone(),
            });
        }
    }
}

/// The accounts of an entry.
pub(super) fn accounts(
    reader: &mut Reader<'_>,
    given: &Spanned<Vec<Spanned<String>>>,
) -> Vec<String> {
    if given.value.is_empty() {
        reader.refuse(given, "must name at least one account");
    }
    for account in given
        .value
        .iter()
        .filter(|account| !is_account(&account.value))
    {
        reader.refuse(
            account,
            "must be the 12 digits of an AWS account, in quotes",
        );
    }
    let accounts = given.value.iter();
    accounts.map(|account| account.value.clone()).collect()
}
